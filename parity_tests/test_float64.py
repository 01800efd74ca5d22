"""float64: every stage, the output and every gradient agree to 1e-12, and outputs are equal once rounded to float32."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_tests.twins import assert_one_model, traces
from vit_core import ViTConfig, masks, parity, variants
from vit_core.position_embeddings import METHODS

SMALL = ViTConfig(image_size=(8, 12), patch_size=4, width=24, depth=1, heads=3, mlp_dim=40, num_classes=5)
STEM = {"stem_width": 32, "image_size": (16, 24), "patch_size": 8}

FIELDS = {
    "paper": {"depth": 2},
    "patch not square": {"image_size": (8, 12), "patch_size": (4, 3)},
    "one channel": {"channels": 1},
    "head_dim": {"head_dim": 5},
    "width not divisible by heads": {"width": 20, "head_dim": 7},
    "no head": {"num_classes": 0},
    "gap": {"pooling": "gap"},
    "map": {"pooling": "map"},
    "no class token, gap": {"class_token": False, "pooling": "gap"},
    "no class token, map": {"class_token": False, "pooling": "map"},
    "class token without position": {"class_token_position": False},
    "sincos2d_big_vision": {"position_embedding": "sincos2d_big_vision"},
    "sincos2d_mae": {"position_embedding": "sincos2d_mae"},
    "sincos2d, no class token": {
        "position_embedding": "sincos2d_mae",
        "class_token": False,
        "pooling": "gap",
    },
    "no positions": {"position_embedding": "none"},
    "norm after pooling": {"final_norm": "after_pooling"},
    "norm after gap": {"final_norm": "after_pooling", "pooling": "gap"},
    "norm after map": {"final_norm": "after_pooling", "pooling": "map"},
    "representation": {"representation": 16},
    "exact gelu": {"activation": "gelu"},
    "exact gelu in map": {"activation": "gelu", "pooling": "map"},
    "epsilon": {"norm_epsilon": 1e-3},
    "no qkv bias": {"qkv_bias": False},
    "layer scale": {"layer_scale": 0.1},
    "unfold": {"patch_embedding": "unfold"},
    "unfold, patch not square": {"patch_embedding": "unfold", "patch_size": (4, 3)},
    "depth 3": {"depth": 3},
    "class token and mean": {"pooling": "cls_gap"},
    "class token and mean, representation": {"pooling": "cls_gap", "representation": 16},
    "first patch": {"pooling": "first", "class_token": False},
    "first register": {"pooling": "first", "class_token": False, "registers": 2},
    "distillation token": {"distillation": "token"},
    "distillation head": {"distillation": "head"},
    "distillation without positions": {"distillation": "head", "class_token_position": False},
    "distillation without head": {"distillation": "head", "num_classes": 0},
    "registers": {"registers": 3},
    "registers, gap": {"registers": 3, "pooling": "gap"},
    "registers, map, no class token": {"registers": 1, "pooling": "map", "class_token": False},
    "every prefix token": {"registers": 2, "distillation": "token"},
    "representation without head": {"representation": 16, "num_classes": 0},
    "quick gelu": {"activation": "quick_gelu", "pooling": "map"},
    "rope": {"rope": "dinov3", "position_embedding": "none", "registers": 2},
    "rope on a grid": {"rope": "eva02", "depth": 2},
    "rope, x first": {"rope": "pe", "pooling": "map", "pool_prefix": True},
    "rope, axial": {"rope": "axial"},
    "rope, mixed": {"rope": "mixed", "depth": 2},
    "rope by the shorter side, rounded periods": {"rope": {"normalize": "min", "periods": "bfloat16", "offset": 0.25}},
    "rope by the longer side, interleaved": {"rope": {"normalize": "max", "pairs": "neighbours", "axes": "xy"}},
    "rope, normed queries and keys": {"rope": "mixed", "qk_norm": True},
    "no key bias": {"key_bias": False},
    "no key bias, rope": {"key_bias": False, "rope": "dinov3"},
    "attention norm": {"attention_norm": True},
    "mlp norm": {"mlp_norm": True},
    "mlp norm, swiglu": {"mlp_norm": True, "mlp": "swiglu"},
    "RMSNorm": {"norm": "rms_norm", "qk_norm": True, "pooling": "map", "final_norm": "after_pooling", "pre_norm": True},
    "norms after the branches": {"branch_norm": "after", "layer_scale": 0.5},
    "no final norm": {"final_norm": "none", "pooling": "gap"},
    "another pooling": {"pooling": "map", "pool_heads": 2, "pool_mlp_dim": 20},
    "mean of all tokens": {"pooling": "gap", "pool_prefix": True, "registers": 2},
    "relative table": {"relative_bias": "table", "position_embedding": "none", "key_bias": False, "depth": 2},
    "relative table, shared": {"relative_bias": "table", "relative_bias_shared": True, "depth": 2},
    "relative table without class token": {"relative_bias": "table", "class_token": False, "pooling": "gap"},
    "relative network": {"relative_bias": "mlp", "relative_bias_dim": 6, "registers": 1},
    "relative network without class token": {  # whose last bias softmax is invariant to
        "relative_bias": "mlp",
        "relative_bias_dim": 6,
        "class_token": False,
        "pooling": "gap",
    },
    "relative network, shared": {"relative_bias": "mlp", "relative_bias_shared": True, "relative_bias_dim": 6},
    "parallel": {"parallel": True, "layer_scale": 0.5, "depth": 2},
    "parallel, swiglu, rope": {"parallel": True, "mlp": "swiglu", "rope": "axial", "mlp_norm": True},
    "swiglu": {"mlp": "swiglu", "pooling": "map"},
    "swiglu without bias": {"mlp": "swiglu", "proj_bias": False},
    "norm before the blocks": {"pre_norm": True},
    "normed queries and keys": {"qk_norm": True},
    "normed queries and keys, no bias": {"qk_norm": True, "qkv_bias": False, "head_dim": 5},
    "no projection bias": {"proj_bias": False, "pooling": "map"},
    "no head bias": {"head_bias": False, "distillation": "head"},
    "no patch bias": {"patch_bias": False},
    "no patch bias, unfold": {"patch_bias": False, "patch_embedding": "unfold"},
    "patch norms": {"patch_norms": True, "patch_size": (4, 3)},
    "patch norms, no bias": {"patch_norms": True, "patch_bias": False},
    "embed norm": {"embed_norm": True},
    "embed norm, unfold": {"embed_norm": True, "patch_embedding": "unfold", "norm": "rms_norm"},
    "root": {**STEM, "stem_layers": ()},
    "root, odd sizes": {**STEM, "stem_layers": (), "image_size": (12, 20), "patch_size": 4},
    "one stage": {**STEM, "stem_layers": (2,)},
    "three stages": {**STEM, "stem_layers": (1, 1, 2), "image_size": (32, 48), "patch_size": (32, 16)},
    "ResNet, unfold, patch norms": {**STEM, "stem_layers": (1,), "patch_norms": True},
}


SLOW = ("one stage", "three stages", "ResNet, unfold, patch norms")
"""Stems have many layers to compile."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FIELDS]
)
def test_every_field(name: str) -> None:
    config = SMALL.replace(**FIELDS[name])
    a, b = traces(config)
    assert_one_model(parity.compare(a, b))
    assert len(a) > 2 + config.depth


@pytest.mark.parametrize(
    "rates",
    [
        pytest.param({"dropout": 0.3}, marks=pytest.mark.slow),
        pytest.param({"attention_dropout": 0.3}, marks=pytest.mark.slow),
        pytest.param({"stochastic_depth": 0.6}, marks=pytest.mark.slow),
        {"dropout": 0.1, "attention_dropout": 0.2, "stochastic_depth": 0.5, "layer_scale": 1.0},
        {"dropout": 0.3, "mlp": "swiglu", "registers": 2, "distillation": "head"},
    ],
)
def test_masks_drop_the_same_in_both(rates: dict[str, float]) -> None:
    config = SMALL.replace(depth=3, **rates)
    drawn = masks.draw(config, 4, np.random.default_rng(3))
    assert all((mask == 0).any() for mask in drawn.values())
    a, b = traces(config, masks=drawn, batch=4)
    assert_one_model(parity.compare(a, b))
    assert np.abs(a["output"] - a["logits"]).max() > 1e-3, "the masks changed nothing"


@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        (True, "none"),
        (True, "dots"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [(True, "full"), (False, "dots"), (False, "full")]),
    ],
)
def test_scanned_and_rematerialised_layers(scan: bool, remat: str) -> None:
    config = SMALL.replace(depth=3, stochastic_depth=0.5, layer_scale=0.5, mlp="swiglu", qk_norm=True)
    drawn = masks.draw(config, 2, np.random.default_rng(1))
    a, b = traces(config, masks=drawn, jax_options={"scan": scan, "remat": remat}, torch_options={"remat": remat})
    assert_one_model(parity.compare(a, b))


@pytest.mark.parametrize("method", METHODS)
def test_another_resolution_at_run_time(method: str) -> None:
    a, b = traces(SMALL.replace(position_resampling=method), image_size=(20, 8))
    assert_one_model(parity.compare(a, b))


@pytest.mark.parametrize("positions", ["sincos2d_big_vision", "sincos2d_mae", "none"])
def test_another_resolution_of_computed_positions(positions: str) -> None:
    a, b = traces(SMALL.replace(position_embedding=positions), image_size=(20, 8))
    assert_one_model(parity.compare(a, b))


@pytest.mark.parametrize(
    "fields",
    [
        {"rope": "dinov3", "registers": 2},
        {"rope": "eva02"},
        {"rope": "mixed"},
        {"relative_bias": "table"},
        {"relative_bias": "mlp", "relative_bias_shared": True, "relative_bias_dim": 4},
    ],
)
def test_another_resolution_of_places_in_the_blocks(fields: dict[str, Any]) -> None:
    a, b = traces(SMALL.replace(position_embedding="none", **fields), image_size=(20, 8))
    assert_one_model(parity.compare(a, b))


@pytest.mark.parametrize("class_token_position", [False, True])
def test_another_resolution_beside_every_prefix_token(class_token_position: bool) -> None:
    prefix = {"distillation": "head", "registers": 2, "class_token_position": class_token_position}
    a, b = traces(SMALL.replace(**prefix), image_size=(20, 8))
    assert_one_model(parity.compare(a, b))


@pytest.mark.slow
def test_another_resolution_after_a_stem() -> None:
    """The padding "SAME" differs between the two resolutions."""
    a, b = traces(SMALL.replace(**STEM, stem_layers=(1, 1)), image_size=(24, 56))
    assert_one_model(parity.compare(a, b))


@st.composite
def today(draw: st.DrawFn, several: bool, heads: int, head_dim: int | None) -> dict[str, Any]:
    """Fields of models after the plain ViT; rotations and relative positions only where there are several patches."""
    turns = several and head_dim is None
    parallel = draw(st.booleans())
    return {
        "rope": draw(st.sampled_from([None, "dinov3", "eva02", "mixed"])) if turns else None,
        "relative_bias": draw(st.sampled_from(["none", "mlp"])) if several else "none",
        "relative_bias_dim": 5,
        "norm": draw(st.sampled_from(["layer_norm", "rms_norm"])),
        "parallel": parallel,
        "branch_norm": "before" if parallel else draw(st.sampled_from(["before", "after"])),
        "mlp_norm": draw(st.booleans()),
        "attention_norm": heads * (head_dim or 2) > 1 and draw(st.booleans()),
    }


@st.composite
def configs(draw: st.DrawFn) -> ViTConfig:
    patch = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    heads, head_dim = draw(st.integers(1, 4)), draw(st.sampled_from([None, 1, 2, 3, 5]))
    channels = draw(st.integers(1, 4))
    class_token, classes = draw(st.booleans()), draw(st.integers(0, 9))
    positions = draw(st.sampled_from(["learned", "sincos2d_big_vision", "sincos2d_mae", "none"]))
    # Over a single key the softmax is constant: queries (the pooling's latent, a norm of queries) have gradients of
    # zero in exact arithmetic, and a relative difference would compare rounding noise with nothing.
    several = grid[0] * grid[1] > 1
    poolings = ["cls", "gap", "cls_gap"] if class_token else ["gap", "first"]
    pooling = draw(st.sampled_from([*poolings, "map"] if several else poolings))
    distillation = draw(st.sampled_from(["none", "token", "head"])) if pooling == "cls" else "none"
    only_before = pooling == "cls_gap" or distillation == "head"
    return ViTConfig(
        image_size=(patch[0] * grid[0], patch[1] * grid[1]),
        patch_size=patch,
        channels=channels,
        width=heads * 4 * draw(st.integers(2, 3)),
        depth=draw(st.integers(1, 3)),
        heads=heads,
        head_dim=head_dim,
        mlp_dim=draw(st.integers(1, 40)),
        num_classes=classes,
        pooling=pooling,
        class_token=class_token,
        class_token_position=draw(st.booleans()) if class_token and positions == "learned" else None,
        position_embedding=positions,
        distillation=distillation,
        registers=draw(st.integers(0, 3)),
        final_norm="before_pooling" if only_before else draw(st.sampled_from(["before_pooling", "after_pooling"])),
        representation=None if distillation == "head" else draw(st.sampled_from([None, 8])),
        pre_norm=draw(st.booleans()),
        mlp=draw(st.sampled_from(["mlp", "swiglu"])),
        activation=draw(st.sampled_from(["gelu_tanh", "gelu", "quick_gelu"])),
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-5, 1e-12])),
        qkv_bias=draw(st.booleans()),
        qk_norm=several and head_dim != 1 and draw(st.booleans()),
        proj_bias=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        patch_bias=draw(st.booleans()),
        patch_norms=patch[0] * patch[1] * channels > 1 and draw(st.booleans()),
        **draw(today(several, heads, head_dim)),
        layer_scale=draw(st.sampled_from([None, 0.1])),
        patch_embedding=draw(st.sampled_from(["conv", "unfold"])),
        dropout=draw(st.sampled_from([0.0, 0.2])),
        attention_dropout=draw(st.sampled_from([0.0, 0.2])),
        stochastic_depth=draw(st.sampled_from([0.0, 0.5])),
    )


@pytest.mark.release
@settings(max_examples=settings().max_examples // 20, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs(), seed=st.integers(0, 2**16))
def test_random_configs(config: ViTConfig, seed: int) -> None:
    drawn = masks.draw(config, 2, np.random.default_rng(seed))
    a, b = traces(config, masks=drawn, seed=seed, jax_options={"scan": seed % 2 == 0})
    assert_one_model(parity.compare(a, b))


@pytest.mark.release
def test_full_size_base() -> None:
    a, b = traces(variants.variant("B/16", image_size=224, num_classes=1000), jax_options={"scan": True})
    report = parity.compare(a, b)
    assert_one_model(report)
    assert report.outputs == 2000
