"""Masked-autoencoder pretraining: the twins are one model, and its loss is that of transformers' ViTMAEForPreTraining.

The references have random weights. The bound is parity.FLOAT64_BOUND.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import vit_jax
import vit_torch
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity, save_checkpoint, variant
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.decoder import Decoder
from vit_core.errors import InputError
from vit_core.masked_autoencoder import MaskedAutoencoder, draw_order, order_of
from vit_core.masks import PATCH_ORDER
from vit_core.parameters import DECODER, parameters
from vit_jax import arrays as jax_arrays
from vit_jax import masked_autoencoder as in_jax
from vit_torch import masked_autoencoder as in_torch

SMALL = ViTConfig(
    image_size=16, patch_size=4, width=24, depth=2, heads=3, mlp_dim=40, num_classes=0, activation="gelu",
    norm_epsilon=1e-12, position_embedding="sincos2d_mae",
)  # fmt: skip
MAE = MaskedAutoencoder(mask_ratio=0.7, decoder_width=16, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=20)


def twins(
    config: ViTConfig, mae: MaskedAutoencoder, arrays: Mapping[str, np.ndarray], **storage: Any
) -> tuple[Any, Any]:
    """Both twins with these arrays, in float64."""
    return in_jax.from_arrays(config, mae, arrays, **storage), in_torch.from_arrays(config, mae, arrays)


def called_in_jax(model: Any, method: str, x_BHWC: np.ndarray, order_BN: np.ndarray) -> np.ndarray:
    """The result of a method of the model for images, with patches in this order."""
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, x, order: getattr(nnx.merge(graph, state), method)(x, {PATCH_ORDER: order}))
    return np.asarray(call(state, jnp.asarray(x_BHWC), jnp.asarray(order_BN)))


def called_in_torch(model: Any, method: str, x_BHWC: np.ndarray, order_BN: np.ndarray) -> np.ndarray:
    """The same in PyTorch."""
    images = torch.tensor(x_BHWC).permute(0, 3, 1, 2)
    found: np.ndarray = getattr(model, method)(images, {PATCH_ORDER: torch.tensor(order_BN)}).detach().numpy()
    return found


def jax_losses(model: Any, x_BHWC: np.ndarray, order_BN: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss of each image, and the gradients of their mean in torch's layout."""
    graph, state = nnx.split(model)

    def mean(state: Any) -> tuple[jax.Array, jax.Array]:
        losses_B = nnx.merge(graph, state)(jnp.asarray(x_BHWC), {PATCH_ORDER: jnp.asarray(order_BN)})
        return losses_B.mean(), losses_B

    gradients, losses_B = jax.jit(jax.grad(mean, has_aux=True))(state)
    found = jax_arrays.read(nnx.merge(graph, gradients))
    return np.asarray(losses_B), {name: jax_arrays.to_numpy(model.table[name], x) for name, x in found.items()}


def torch_losses(model: Any, x_BHWC: np.ndarray, order_BN: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same in PyTorch."""
    losses_B = model(torch.tensor(x_BHWC).permute(0, 3, 1, 2), {PATCH_ORDER: torch.tensor(order_BN)})
    losses_B.mean().backward()
    return losses_B.detach().numpy(), {
        name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None
    }


def transformers_model(
    config: ViTConfig, mae: MaskedAutoencoder, arrays: Mapping[str, np.ndarray], folder: Path
) -> Any:
    """transformers' model with these arrays, from a folder that was written here."""
    encoder = Checkpoint.of(
        CheckpointConfig(model=config), {name: arrays[name] for name in arrays if not name.startswith(DECODER)}
    )
    decoder = LazyArrays.of({name: arrays[name] for name in arrays if name.startswith(DECODER)})
    whole = replace(encoder, decoder=Decoder(mae, decoder))
    save_checkpoint(folder, whole, format="transformers", decoder=True)
    model, info = ViTMAEForPreTraining.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        pytest.param({"qkv_bias": False, "channels": 1}, {"mask_ratio": 0.5}, marks=pytest.mark.slow),
        ({}, {"normalize_target": True}),
    ],
    ids=["plain", "one channel", "normalised target"],
)
def test_the_loss_is_that_of_transformers(fields: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    config, mae = SMALL.replace(**fields), MAE.replace(**changes)
    arrays = parity.randomized(config, 0, mae)
    rng = np.random.default_rng(1)
    x_BHWC, noise_BN = rng.uniform(-1, 1, (3, *config.image_size, config.channels)), rng.random((3, 16))
    theirs = transformers_model(config, mae, arrays, tmp_path)
    expected = theirs(torch.tensor(x_BHWC).permute(0, 3, 1, 2), noise=torch.tensor(noise_BN))
    order_BN = order_of(noise_BN)
    for model, call in zip(twins(config, mae, arrays), (called_in_jax, called_in_torch), strict=True):
        losses_B = call(model, "__call__", x_BHWC, order_BN)
        # All images have as many hidden patches, so the mean over all patches is the mean of the images' losses.
        assert parity.difference(losses_B.mean(), expected.loss.detach().numpy())[1] < parity.FLOAT64_BOUND
        predicted_BNV = call(model, "reconstruct", x_BHWC, order_BN)
        assert parity.difference(predicted_BNV, expected.logits.detach().numpy())[1] < parity.FLOAT64_BOUND


def test_a_base_model_has_the_parameters_of_transformers() -> None:
    """Their default config is the paper's B/16; its tables of positions are not trained."""
    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(ViTMAEConfig())
    base = variant("B/16", 224, 0, position_embedding="sincos2d_mae")
    ours = sum(row.size for row in parameters(base, MaskedAutoencoder(mask_ratio=0.75)).values())
    assert ours == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


TWINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"normalize_target": True}),
    "learned positions, registers, no class token": (
        {"position_embedding": "learned", "registers": 2, "class_token": False, "pooling": "gap"},
        {},
    ),
    "other blocks": ({"mlp": "swiglu", "norm": "rms_norm", "qk_norm": True, "layer_scale": 0.3, "head_dim": 12}, {}),
    "sizes not square": ({"image_size": (8, 24), "patch_size": (4, 8), "parallel": True}, {"mask_ratio": 0.5}),
    "pre_norm, unfolded": ({"pre_norm": True, "patch_embedding": "unfold", "patch_norms": True}, {}),
}


@pytest.mark.parametrize(
    "what", [what if what == "plain" else pytest.param(what, marks=pytest.mark.slow) for what in TWINS]
)
def test_the_twins_have_the_same_loss_and_gradients(what: str) -> None:
    fields, changes = TWINS[what]
    config, mae = SMALL.replace(**fields), MAE.replace(**changes)
    arrays, rng = parity.randomized(config, 0, mae), np.random.default_rng(1)
    x_BHWC = rng.uniform(-1, 1, (3, *config.image_size, config.channels))
    order_BN = draw_order(config, 3, rng)
    models = twins(config, mae, arrays, scan=what != "plain")
    ours, theirs = jax_losses(models[0], x_BHWC, order_BN), torch_losses(models[1], x_BHWC, order_BN)
    assert ours[1].keys() == theirs[1].keys() == parameters(config, mae).keys()
    report = parity.compare(*({**gradients, "output": losses_B} for losses_B, gradients in (ours, theirs)))
    assert report.ok, f"first divergence {report.first_divergence}, worst {report.worst}"
    assert all(np.abs(gradient).max() > 0 for name, gradient in theirs[1].items() if "k_norm.bias" not in name)


def test_hidden_patches_do_not_reach_the_encoder() -> None:
    arrays, rng = parity.randomized(SMALL, 0, MAE), np.random.default_rng(1)
    x_BHWC, order_BN = rng.uniform(-1, 1, (2, 16, 16, 3)), draw_order(SMALL, 2, rng)
    hidden, visible = int(order_BN[0, -1]), int(order_BN[0, 0])

    for model, call in zip(twins(SMALL, MAE, arrays), (called_in_jax, called_in_torch), strict=True):
        before = call(model, "encode", x_BHWC, order_BN)
        assert before.shape == (2, 1 + 4, 24)  # 30 % of 16 patches, rounded down, and the class token
        for patch, changed in ((hidden, False), (visible, True)):
            other_BHWC, (row, column) = x_BHWC.copy(), divmod(patch, 4)
            other_BHWC[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
            assert (before != call(model, "encode", other_BHWC, order_BN)).any() == changed


def test_the_encoder_is_saved_like_any_other(tmp_path: Path) -> None:
    arrays = parity.randomized(SMALL, 0, MAE)
    x_BHWC = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3))
    for twin, model in zip((vit_jax, vit_torch), twins(SMALL, MAE, arrays), strict=True):
        twin.save(model, tmp_path / twin.__name__)
        encoder = vit_torch.load(tmp_path / twin.__name__)
        tokens = encoder.forward_features(torch.tensor(x_BHWC).permute(0, 3, 1, 2)).detach().numpy()
        # With nothing hidden, the encoder of MAE is the ViT.
        order_BN = np.tile(np.arange(16, dtype=np.int32), (2, 1))
        whole = in_torch.from_arrays(SMALL, MAE.replace(mask_ratio=2**-20), arrays)
        whole.mae = MAE.replace(mask_ratio=0.0)
        assert parity.difference(called_in_torch(whole, "encode", x_BHWC, order_BN), tokens)[1] < parity.FLOAT64_BOUND


def test_the_order_is_drawn_uniformly_and_rounded_as_in_transformers() -> None:
    order_BN = draw_order(SMALL, 4000, np.random.default_rng(0))
    assert (np.sort(order_BN, axis=1) == np.arange(16)).all()
    shares = np.bincount(order_BN[:, : MAE.visible(SMALL)].ravel(), minlength=16) / 4000
    assert np.abs(shares - 4 / 16).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)  # four standard deviations of a share


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({"num_classes": 3}, {}, "num_classes: mae.mask_ratio needs 0 here"),
        ({"rope": "axial", "heads": 2}, {}, "rope: mae.mask_ratio needs None"),
        ({"dropout": 0.1}, {}, "dropout: mae.mask_ratio needs 0.0 here"),
        ({"pooling": "map"}, {}, "trains no layer after the pooling"),
        ({"position_embedding": "none"}, {}, "needs positions"),
        ({}, {"mask_ratio": 0.99}, "leaves 0 of 16 patches"),
        ({}, {"decoder_width": 18, "decoder_heads": 3}, "decoder's blocks: width: 18 is not a multiple of 4"),
        ({}, {"decoder_heads": 3}, "heads: 3 does not divide width 16"),
    ],
)
def test_what_cannot_be_trained_is_refused(fields: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    config, mae = SMALL.replace(**fields), MAE.replace(**changes)
    with pytest.raises(InputError, match=message):
        mae.check(config)
