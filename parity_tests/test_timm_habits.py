"""The methods by which timm's users take a model apart and change its head, in both twins, equal to timm's."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import vit_jax
import vit_torch
from parity_tests.timm_twin import AFTER, NO_TOKEN, SMALL, timm_twin
from parity_tests.twins import checkpoint
from vit_core import CheckpointConfig, InputError, open_checkpoint, parity

HEADS: dict[str, dict[str, Any]] = {
    "token": {},
    "token, fc_norm": AFTER,
    "avg": {"pooling": "gap", **NO_TOKEN},
    "map": {"pooling": "map"},
    "registers": {"registers": 2, "class_token_position": False},
    "two heads": {"distillation": "head"},
}
NEW_CLASSES = 7


def assert_equal(ours: Any, theirs: Any) -> None:
    difference, relative = parity.difference(np.asarray(ours), theirs.detach().numpy())
    assert relative <= parity.FLOAT64_BOUND, difference


def random_heads(model: vit_torch.ViT) -> dict[str, np.ndarray]:
    """Random values for a new head, which begins with zeros."""
    rng = np.random.default_rng(5)
    names = [name for name, _ in model.named_parameters() if name.startswith("head")]
    return {name: rng.normal(size=model.get_parameter(name).shape) for name in names}


@pytest.mark.parametrize("name", HEADS)
def test_features_heads_and_new_heads_are_timms(name: str) -> None:
    config = SMALL.replace(depth=1, **HEADS[name])
    weights, theirs = checkpoint(config), timm_twin(config).eval()
    x_BHWC = np.random.default_rng(1).normal(size=(2, *config.image_size, 3))
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)
    in_torch, in_jax = vit_torch.load(weights), vit_jax.load(weights)
    theirs.load_state_dict(in_torch.state_dict(), strict=True)

    def assert_one_model() -> None:
        with torch.no_grad():
            tokens = theirs.forward_features(x_BCHW)
            assert_equal(in_torch.forward_features(x_BCHW), tokens)
            for pre_logits in (False, True):
                found = in_torch.forward_head(tokens, pre_logits=pre_logits)
                assert_equal(found, theirs.forward_head(tokens, pre_logits=pre_logits))
            assert_equal(in_torch(x_BCHW), theirs(x_BCHW))

    assert_one_model()
    for model in (in_torch, in_jax, theirs):
        model.reset_classifier(NEW_CLASSES)
    heads = random_heads(in_torch)
    in_torch.load_state_dict({**in_torch.state_dict(), **{k: torch.from_numpy(v) for k, v in heads.items()}})
    arrays = {name: parameter.detach().numpy() for name, parameter in in_torch.named_parameters()}
    vit_jax.arrays.write(in_jax, lambda row: jnp.asarray(row.to_jax(arrays[row.name])))
    theirs.load_state_dict(in_torch.state_dict(), strict=True)
    assert_one_model()
    tokens, logits, features = in_parts(in_jax, x_BHWC)
    assert_equal(tokens, theirs.forward_features(x_BCHW))
    assert_equal(logits, theirs(x_BCHW))
    for model in (in_torch, in_jax, theirs):
        model.reset_classifier(0)
    theirs.load_state_dict(in_torch.state_dict(), strict=True)
    assert_one_model()
    assert_equal(features, theirs(x_BCHW))
    assert jax.eval_shape(in_jax, jnp.asarray(x_BHWC)).shape == in_torch(x_BCHW).shape == (2, config.features)


def in_parts(model: vit_jax.ViT, x_BHWC: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, logits and the head's inputs, from one compiled program."""

    def parts(model: vit_jax.ViT, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tokens = model.forward_features(x_BHWC)
        return tokens, model.forward_head(tokens), model.forward_head(tokens, pre_logits=True)

    found: tuple[jax.Array, jax.Array, jax.Array] = nnx.jit(parts)(model, jnp.asarray(x_BHWC))
    return found


@pytest.mark.parametrize("name", ["token", "two heads"])
def test_get_classifier(name: str) -> None:
    config = SMALL.replace(**HEADS[name])
    theirs, ours = timm_twin(config), vit_torch.load(checkpoint(config))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    found = [model.get_classifier() for model in (theirs, ours, vit_jax.load(checkpoint(config)))]
    for their_head, in_torch, in_jax in zip(*(x if isinstance(x, tuple) else (x,) for x in found), strict=True):
        torch.testing.assert_close(in_torch.weight, their_head.weight, rtol=0, atol=0)
        np.testing.assert_array_equal(np.asarray(in_jax.kernel[...]).T, their_head.weight.detach().numpy())
    ours.reset_classifier(0)
    heads = ours.get_classifier()
    assert all(isinstance(head, nn.Identity) for head in (heads if isinstance(heads, tuple) else (heads,)))


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", HEADS)
def test_optimizers_of_timm_group_the_parameters_as_for_their_own_model(name: str, layer_decay: float | None) -> None:
    """The learning rate and the decay of each parameter, with and without layer-wise decay."""
    config = SMALL.replace(depth=2, **HEADS[name])
    found = []
    for model in (timm_twin(config), vit_torch.from_seed(config, 0)):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=layer_decay)
        rates = {
            names[id(parameter)]: (group["weight_decay"], group["lr"] * group.get("lr_scale", 1.0))
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        found.append(rates)
    theirs, ours = found
    if name == "map":  # timm decays the query of attention pooling
        decay, rate = theirs["attn_pool.latent"]
        theirs["attn_pool.latent"] = (0.0, rate)
        assert decay == 0.1
    assert ours == theirs


def test_shared_position_biases_are_grouped_with_the_embeddings_as_in_timms_beit() -> None:
    model = vit_torch.from_seed(
        SMALL.replace(relative_bias="table", relative_bias_shared=True, position_embedding="none"), 0
    )
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    shared = {name: group for name, group in groups.items() if "rel_pos" in name}
    assert shared
    assert set(shared.values()) == {groups["cls_token"]} == {0}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, x_BCHW = vit_torch.from_seed(SMALL, 0), torch.rand(2, 3, *SMALL.image_size)
    nn.init.normal_(model.head.weight)
    gradients = []
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        assert model.remat == ("full" if enable else "none")
        gradients.append(torch.autograd.grad(model(x_BCHW).square().sum(), list(model.parameters())))
    for recomputed, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)


@pytest.mark.parametrize("twin", [vit_jax, vit_torch], ids=["jax", "torch"])
@pytest.mark.parametrize(
    "fields", [{"head_bias_init": -10.0}, {"representation": 6}, {"distillation": "head"}], ids=str
)
@pytest.mark.parametrize("classes", [0, NEW_CLASSES])
def test_a_new_head_is_that_of_load(twin: Any, fields: dict[str, Any], classes: int, tmp_path: Path) -> None:
    """The same checkpoint, whether the head is replaced when a model is loaded or afterwards; without labels."""
    config = CheckpointConfig(model=SMALL.replace(**fields), labels=tuple("abcde"), probabilities="sigmoid")
    weights = checkpoint(config.model).with_config(config)
    model = twin.load(weights, dtype="float32")
    model.reset_classifier(classes)
    twin.save(model, tmp_path / "after")
    twin.save(twin.load(weights, dtype="float32", num_classes=classes), tmp_path / "at load")
    after, expected = (open_checkpoint(tmp_path / name) for name in ("after", "at load"))
    assert after.config == expected.config
    assert (after.config.labels, after.config.probabilities) == (None, None)
    assert after.arrays.keys() == expected.arrays.keys()
    for name in expected.arrays:
        np.testing.assert_array_equal(after.arrays[name], expected.arrays[name], err_msg=name)


def test_a_new_head_trains_and_keeps_the_mode() -> None:
    """In both twins the new parameters are among the model's, in its type."""
    in_torch, in_jax = (twin.from_seed(SMALL, 0, dtype="bfloat16") for twin in (vit_torch, vit_jax))
    in_torch.eval().reset_classifier(3)
    assert not in_torch.head.training
    assert {p.dtype for p in in_torch.parameters()} == {torch.bfloat16}
    assert in_torch.head.weight.requires_grad
    in_jax.reset_classifier(3)
    assert {str(leaf.dtype) for leaf in nnx.to_flat_state(nnx.state(in_jax, nnx.Param)).leaves} == {"bfloat16"}
    assert in_jax.head.kernel.shape == (SMALL.width, 3)
    with pytest.raises(InputError, match="num_classes"):
        in_torch.reset_classifier(-1)
