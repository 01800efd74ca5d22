"""Patch sizes drawn while training (FlexiViT): the kernel as NumPy and timm resize it, positions as at load, and which
size a batch has."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm.layers
import torch
from flax import nnx

import vit_jax
import vit_torch
from parity_tests.test_patch_kernels import condition, inverse_bound
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.patch_kernels import METHODS
from vit_core.position_embeddings import resampling_matrix
from vit_jax.patch_kernels import resized as resized_in_jax
from vit_torch.patch_kernels import resized as resized_in_torch
from vit_train.config import Augmentation, TrainConfig
from vit_train.data.batches import Batches
from vit_train.tests.small_run import CONFIG, quadrants

MODEL = ViTConfig(
    image_size=(24, 12), patch_size=6, width=24, depth=2, heads=3, mlp_dim=32, num_classes=5, patch_embedding="unfold"
)
KINDS: dict[str, dict[str, Any]] = {
    "learned positions": {},
    "sine-cosine positions, patches not square": {"position_embedding": "sincos2d_mae", "patch_size": (6, 4)},
    "rotary positions": {"position_embedding": "none", "rope": "dinov3"},
    "relative positions": {"position_embedding": "none", "relative_bias": "table"},
    "stem": {"image_size": (48, 24), "patch_size": 12, "stem_layers": (), "stem_width": 32},
}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest value of b."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def in_jax(kernel_DCPQ: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    kernel_PQCD = jnp.asarray(kernel_DCPQ.transpose(2, 3, 1, 0))
    return np.asarray(resized_in_jax(kernel_PQCD, size)).transpose(3, 2, 0, 1)


def in_torch(kernel_DCPQ: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resized_in_torch(torch.from_numpy(kernel_DCPQ), size).numpy()


SIZES = [((32, 32), (16, 16)), ((16, 16), (30, 30)), ((8, 12), (10, 7))]


@pytest.mark.parametrize("resized", [in_jax, in_torch])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_pseudo_inverse(old: tuple[int, int], new: tuple[int, int], resized: Callable[..., np.ndarray]) -> None:
    """NumPy's of the matrix that resizes whole patches; timm's to the error of its float32: its precision times the
    condition number of that matrix, whose inverse it forms, and 10 for the sums of the product."""
    kernel = np.random.default_rng(0).standard_normal((3, 2, *old))
    whole = np.kron(*(resampling_matrix(METHODS[0], *axis) for axis in zip(old, new, strict=True)))
    expected = (kernel.reshape(3, 2, -1) @ np.linalg.pinv(whole.T).T).reshape(3, 2, *new)
    assert distance(resized(kernel, new), expected) < inverse_bound(METHODS[0], old, new)
    timms = timm.layers.resample_patch_embed(
        torch.from_numpy(kernel).float(), list(new), interpolation="bilinear", antialias=True
    )
    assert (
        distance(resized(kernel, new), timms.numpy()) < 10 * condition(METHODS[0], old, new) * np.finfo(np.float32).eps
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_at_run_time_is_that_at_load(kind: str) -> None:
    """In both twins, and the gradients of the parameters, which reach the kernel through the resizing."""
    weights = checkpoint(MODEL.replace(**KINDS[kind]))
    config, patch = weights.config.model, (4, 4) if kind == "stem" else (3, 4)
    images_BHWC, _ = parity.probe(config, 1, 2)
    x_BCHW, probe_BC = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), np.random.default_rng(2).normal(size=(2, 5))
    model = vit_torch.load(weights, dtype="float64")
    logits_BC = model(x_BCHW, patch_size=patch)
    with torch.no_grad():
        loaded = vit_torch.load(weights.adapt(patch_size=patch), dtype="float64")(x_BCHW).numpy()
    assert distance(logits_BC.detach().numpy(), loaded) < parity.FLOAT64_BOUND
    (logits_BC * torch.from_numpy(probe_BC)).sum().backward()
    graph, state = nnx.split(vit_jax.load(weights, dtype="float64"))

    def loss(state: Any) -> tuple[jax.Array, jax.Array]:
        logits_BC = nnx.merge(graph, state)(jnp.asarray(images_BHWC), patch_size=patch)
        return (logits_BC * probe_BC).sum(), logits_BC

    (_, ours_BC), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert distance(np.asarray(ours_BC), loaded) < parity.FLOAT64_BOUND
    found, rows = vit_jax.arrays.read(nnx.merge(graph, gradients)), parameters(config)
    for name, p in model.named_parameters():
        expected = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        # The gradient of a key bias is zero in exact arithmetic: rounding noise beside the other gradients of its row.
        bound = parity.FLOAT64_BOUND * max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(rows[name].to_torch(np.asarray(found[name])), expected, 0, bound, err_msg=name)


def flexible(**fields: Any) -> TrainConfig:
    return CONFIG.replace(**{"patch_sizes": (2, 4, 8), "steps": 60, **fields})


def test_the_size_of_a_batch_is_a_function_of_the_seed_and_its_number() -> None:
    run = flexible()
    sizes = [Batches(quadrants(), run)[step].patch_size for step in range(30)]
    assert set(sizes) == {(2, 2), (4, 4), (8, 8)}
    half = Batches(quadrants(), run, rows=np.arange(8))
    assert [half[step].patch_size for step in reversed(range(30))] == sizes[::-1]
    assert [Batches(quadrants(), run.replace(seed=1))[step].patch_size for step in range(30)] != sizes
    batch = Batches(quadrants(), run)[0]
    assert batch.fingerprint() != batch._replace(patch_size=(1, 1)).fingerprint()
    plain = Batches(quadrants(), CONFIG)[0]
    assert plain.patch_size is None
    np.testing.assert_array_equal(plain.images_BHWC, batch.images_BHWC)


def test_masks_have_the_tokens_of_the_size() -> None:
    batches = Batches(quadrants(), flexible(model=CONFIG.model.replace(dropout=0.1), augmentation=Augmentation()))
    for step in range(5):
        side = 8 // batches[step].patch_size[0]  # type: ignore[index]
        assert batches[step].masks["pos_drop"].shape == (16, 1 + side * side, 16)


def test_what_is_counted() -> None:
    """FLOPs are the mean over the sizes; memory is that of the longest sequence."""
    run = flexible()
    assert [network.tokens for network in run.networks] == [17, 5, 2]
    assert run.longest.tokens == 17
    each = [run.replace(patch_sizes=(size,)).forward_flops["mlp"] for size in (2, 4, 8)]
    assert run.forward_flops["mlp"] == sum(each) / 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_sizes": (3,)}, r"patch_sizes: 3 does not divide image_size \(8, 8\); these do: \[2, 4, 8\]"),
        ({"patch_sizes": (4, 4)}, "has a size twice"),
        (
            {"model": CONFIG.model.replace(patch_norms=True), "patch_sizes": (4, 8)},
            r"patch_sizes: patch_size: a norm of whole patches \(patch_norms\) cannot be resized",
        ),
    ],
)
def test_impossible_sizes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        flexible(**fields)


def test_a_model_refuses_patches_that_do_not_fit() -> None:
    model = vit_torch.from_seed(MODEL, 0)
    with pytest.raises(InputError, match=r"not a multiple of the patch \(5, 5\)"):
        model(torch.zeros(1, 3, 24, 12), patch_size=(5, 5))
