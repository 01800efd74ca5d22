"""Arrays that a format requires are added without changing an output; models for which this is impossible are
refused."""

from typing import Any

import numpy as np
import pytest

import vit_torch
from parity_tests.twins import checkpoint
from vit_core import InputError, ViTConfig, parity
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.expressing import Expressed, express
from vit_core.checkpoints.formats.rules import rule, write_by_rules

SMALL = ViTConfig(image_size=(8, 12), patch_size=4, width=24, depth=2, heads=3, mlp_dim=20, num_classes=5)
PLAIN = plain_vit_with(SMALL, activation=ANY, norm_epsilon=ANY)

# fmt: off
EXACT: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "qkv bias": ({"qkv_bias": False}, {"qkv_bias": (True,)}),
    "projection biases": ({"proj_bias": False}, {"proj_bias": (True,)}),
    "gated projection biases": ({"proj_bias": False, "mlp": "swiglu"}, {"proj_bias": (True,)}),
    "patch bias": ({"patch_bias": False}, {"patch_bias": (True,)}),
    "head biases": ({"head_bias": False, "distillation": "head"}, {"head_bias": (True,)}),
    "layer scale": ({}, {"layer_scale": (1.0,)}),
    "class position": ({"class_token_position": False}, {"class_token_position": (True,)}),
    "class position, distilled": (
        {"class_token_position": False, "distillation": "token"}, {"class_token_position": (True,)},
    ),
    "no class position": ({}, {"class_token_position": (False,)}),
    "no class position, distilled": ({"distillation": "head"}, {"class_token_position": (False,)}),
    "sin-cos": ({"position_embedding": "sincos2d_big_vision"}, {"position_embedding": ("learned",)}),
    "sin-cos of MAE": ({"position_embedding": "sincos2d_mae"}, {"position_embedding": ("learned",)}),
    "no positions": ({"position_embedding": "none"}, {"position_embedding": ("learned",)}),
    "sin-cos with a class position": (
        {"position_embedding": "sincos2d_mae"}, {"position_embedding": ("learned",), "class_token_position": (True,)},
    ),
}
# fmt: on


def any_but(**values: Values) -> dict[str, Values]:
    """What a format can hold that has every value of every field, but of these."""
    return {**{field: ANY for field in ViTConfig.model_fields if field not in values}, **values}


@pytest.mark.parametrize("name", EXACT)
def test_no_output_changes(name: str) -> None:
    fields, allowed = EXACT[name]
    before = checkpoint(SMALL.replace(**fields))
    expressed = express(before, any_but(**allowed), "target", allow_lossy=False)
    after = expressed.checkpoint
    assert expressed.notes
    assert all(getattr(after.config.model, field) in values for field, values in allowed.items())
    x_BHWC, _ = parity.probe(SMALL, 1)
    a_BC, b_BC = (vit_torch.predict(vit_torch.load(one), x_BHWC) for one in (before, after))
    assert parity.difference(a_BC, b_BC)[1] <= parity.FLOAT64_BOUND
    np.testing.assert_array_equal(np.float32(a_BC), np.float32(b_BC))


@pytest.mark.parametrize(
    ("fields", "allowed", "name"),
    [
        ({"position_embedding": "sincos2d_mae"}, {"position_embedding": ("learned",)}, "pos_embed"),
        ({}, {"class_token_position": (False,)}, "cls_token"),
    ],
)
def test_what_is_worked_out_is_no_coarser_than_float32(
    fields: dict[str, Any], allowed: dict[str, tuple[Any, ...]], name: str
) -> None:
    """Beside bfloat16 arrays too, where it would change the outputs in their third digit."""
    before = checkpoint(SMALL.replace(**fields)).adapt(dtype="bfloat16")
    expressed = express(before, any_but(**allowed), "target", allow_lossy=False)
    after = expressed.checkpoint
    assert {key: entry.dtype for key, entry in after.arrays.entries.items() if entry.dtype != "bfloat16"} == {
        name: "float32"
    }
    assert expressed.bound == parity.FLOAT32_BOUND
    x_BHWC, _ = parity.probe(SMALL, 1)
    a_BC, b_BC = (vit_torch.predict(vit_torch.load(one, dtype="float64"), x_BHWC) for one in (before, after))
    assert parity.difference(a_BC, b_BC)[1] <= parity.FLOAT32_BOUND


def test_what_is_allowed_already_stays_as_it_is() -> None:
    before = checkpoint(SMALL)
    expressed = express(before, PLAIN, "target", allow_lossy=False)
    assert expressed == Expressed(before)
    assert expressed.bound == parity.FLOAT64_BOUND


def test_zeros_are_exact() -> None:
    expressed = express(checkpoint(SMALL.replace(qkv_bias=False)), PLAIN, "target", allow_lossy=False)
    assert expressed.notes == ("qkv_bias: zeros",)
    assert expressed.bound == parity.FLOAT64_BOUND


def test_a_format_that_forgets_a_field_is_an_error_of_ours() -> None:
    """A format without a rule for a field raises an AssertionError."""
    for field in ViTConfig.model_fields:
        allowed = {name: values for name, values in PLAIN.items() if name != field}
        with pytest.raises(AssertionError, match=f"the format target does not list allowed values of {field}$"):
            express(checkpoint(SMALL), allowed, "target", allow_lossy=False)


def refusal(fields: dict[str, Any], allowed: dict[str, Values], allow_lossy: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        express(checkpoint(SMALL.replace(**fields)), any_but(**allowed), "that format", allow_lossy)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_refusal_names_every_field() -> None:
    said = refusal({"registers": 2, "qk_norm": True, "activation": "gelu"}, PLAIN)
    assert "that format cannot express" in said
    assert "registers 2 (it has 0)" in said
    assert "qk_norm true (it has false)" in said
    assert "activation" not in said, "any"


def test_arrays_that_become_one_have_to_be_of_one_type() -> None:
    pooled = checkpoint(SMALL.replace(pooling="map", class_token=False, class_token_position=None))
    entries = pooled.arrays.with_array("attn_pool.q.weight", pooled.arrays["attn_pool.q.weight"].astype("float32"))
    one = rule(("attn_pool.q.weight", "attn_pool.kv.weight"), "in_proj_weight")
    with pytest.raises(InputError, match=r"attn_pool.q.weight, attn_pool.kv.weight: expected one type"):
        write_by_rules([one], pooled.config.model, entries)


def test_lossy_only_when_allowed() -> None:
    allowed: dict[str, Values] = {"activation": ("gelu",), "norm_epsilon": (1e-12,)}
    said = refusal({}, allowed)
    assert "activation gelu_tanh (it has gelu), norm_epsilon 1e-06 (it has 1e-12)" in said
    assert "--allow-lossy" in said
    expressed = express(checkpoint(SMALL), any_but(**allowed), "that format", allow_lossy=True)
    after = expressed.checkpoint
    assert (after.config.model.activation, after.config.model.norm_epsilon) == ("gelu", 1e-12)
    assert expressed.notes == (
        "lossy: that format cannot express activation gelu_tanh (it has gelu)",
        "lossy: that format cannot express norm_epsilon 1e-06 (it has 1e-12)",
    )


def test_what_is_not_a_little_different_is_never_lossy() -> None:
    said = refusal({"activation": "quick_gelu"}, {"activation": ("gelu",)}, allow_lossy=True)
    assert "activation quick_gelu (it has gelu)" in said
    assert "--allow-lossy" not in said
