"""The schema: what it accepts, and the one line it answers anything else with."""

import json

import pytest

import vit_core
from vit_core import CheckpointConfig, InputError, ViTConfig, variant
from vit_core.variants import VARIANTS

FIELDS = {
    "image_size": (32, 48),
    "patch_size": (8, 16),
    "width": 24,
    "depth": 3,
    "heads": 3,
    "mlp_dim": 40,
    "num_classes": 5,
}


def test_names_of_the_package_are_those_of_its_modules() -> None:
    """They are imported when they are first used."""
    assert [name for name in vit_core.__all__ if not hasattr(vit_core, name)] == []
    assert vit_core.variant is vit_core.variants.variant
    assert vit_core.Checkpoint is vit_core.checkpoints.checkpoint.Checkpoint
    with pytest.raises(AttributeError, match="module 'vit_core' has no attribute 'variety'"):
        _ = vit_core.variety  # type: ignore[attr-defined]


def test_sizes() -> None:
    c = ViTConfig(**FIELDS)
    assert (c.grid, c.tokens, c.positions, c.head_width) == ((4, 3), 13, 13, 8)
    assert ViTConfig(**{**FIELDS, "image_size": 32, "patch_size": 8}).image_size == (32, 32)
    assert c.replace(head_dim=5).head_width == 5
    assert c.replace(class_token_position=False).positions == 12
    full = c.replace(distillation="token", registers=4)
    assert (full.prefix_tokens, full.prefix_positions, full.tokens, full.positions) == (6, 2, 18, 14)
    placeless = full.replace(class_token_position=False)
    assert (placeless.prefix_tokens, placeless.prefix_positions, placeless.positions) == (6, 0, 12)
    assert (c.pooled, c.features) == (24, 24)
    assert (c.replace(pooling="cls_gap").features, c.replace(representation=7, num_classes=0).features) == (48, 7)
    biases = [{}, {"relative_bias": "table"}, {"relative_bias": "mlp", "relative_bias_shared": True}]
    assert [c.replace(**fields).relative_bias_per_block for fields in biases] == [False, True, False]
    assert c.replace(stochastic_depth=0.2).drop_path_rates == (0.0, 0.1, 0.2)
    assert c.replace(depth=1, stochastic_depth=0.2).drop_path_rates == (0.0,)


@pytest.mark.parametrize(
    ("layers", "stride", "channels", "kernel"),
    [(None, 1, 3, 64), ((), 4, 64, 16), ((2,), 4, 256, 16), ((3, 4, 9), 16, 1024, 4), ((2, 2, 2, 2), 32, 2048, 2)],
)
def test_stems(layers: tuple[int, ...] | None, stride: int, channels: int, kernel: int) -> None:
    c = ViTConfig(**{**FIELDS, "image_size": 128, "patch_size": 64}, stem_layers=layers)
    assert (c.stem_stride, c.stem_channels, c.patch_kernel, c.grid) == (stride, channels, (kernel, kernel), (2, 2))


def test_class_token_position_is_wherever_it_can() -> None:
    assert ViTConfig(**FIELDS).class_token_position
    assert not ViTConfig(**FIELDS, class_token=False, pooling="gap").class_token_position
    assert not ViTConfig(**FIELDS, position_embedding="sincos2d_mae").class_token_position


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "image_size: height 30 is not a multiple of patch_size 8; the nearest is 32"),
        ({"image_size": (32, 40)}, "width 40 is not a multiple of patch_size 16"),
        ({"heads": 5}, "heads: 5 does not divide width 24"),
        ({"heads": 5, "head_dim": 4, "pooling": "map"}, "which pooling 'map' needs"),
        (
            {"qk_norm": True, "head_dim": 1},
            "qk_norm: a norm over heads of width 1 leaves nothing; set head_dim above 1",
        ),
        ({"patch_norms": True, "embed_norm": True}, "embed_norm: true is one of the two norms of patch_norms"),
        ({"patch_norms": True, "patch_size": 1, "channels": 1}, "patch_norms: a norm over patches of one value leaves"),
        ({"class_token": False}, "pooling: 'cls' needs class_token true"),
        ({"class_token": False, "pooling": "gap", "class_token_position": True}, "class_token_position: true needs"),
        ({"position_embedding": "sincos2d_mae", "width": 30}, "width: 30 is not a multiple of 4"),
        ({"class_token": False, "pooling": "cls_gap"}, "pooling: 'cls_gap' needs class_token true; use 'gap'"),
        (
            {"pooling": "cls_gap", "final_norm": "after_pooling"},
            "pooling: 'cls_gap' gives twice the width; set final_norm",
        ),
        (
            {"pooling": "first"},
            "pooling: 'first' is the class token where there is one; use 'cls', or class_token false",
        ),
        ({"distillation": "token", "pooling": "gap"}, "distillation: 'token' needs pooling 'cls'; set it, or distill"),
        ({"distillation": "head", "final_norm": "after_pooling"}, "distillation: 'head' reads two normed tokens; set"),
        (
            {"distillation": "head", "representation": 8},
            "distillation: 'head' has no hidden layer for its token; leave out repr",
        ),
        ({"registers": -1}, "registers: expected 0 or more, found -1"),
        ({"stem_layers": (), "stem_width": 40}, "stem_width: 40 is not a multiple of its 32 groups; the nearest is 32"),
        ({"stem_layers": (1, 1, 1)}, "patch_size: (8, 16) is not a multiple of the stem's stride 16; "),
        ({"stem_layers": (1, 0)}, "stem_layers.1: expected 1 or more, found 0"),
        ({"imagesize": 32}, "unknown key 'imagesize'; did you mean 'image_size'?"),
        ({"activation": "relu"}, "activation: expected 'gelu_tanh', 'gelu' or 'quick_gelu', found 'relu'"),
        ({"depth": 0}, "depth: expected 1 or more, found 0"),
        ({"dropout": 1.0}, "dropout: expected less than 1, found 1.0"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon: expected"),
        ({"width": "wide"}, "width: expected an integer"),
    ],
)
def test_impossible_configs_are_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        ViTConfig(**{**FIELDS, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_faults_at_once() -> None:
    with pytest.raises(
        InputError, match=r"depth: expected 1 or more, found -1; unknown key 'widht'; did you mean 'width'"
    ):
        ViTConfig(**{**FIELDS, "depth": -1, "widht": 3})


def test_frozen_and_hashable() -> None:
    c = ViTConfig(**FIELDS)
    assert hash(c) == hash(ViTConfig(**FIELDS))
    with pytest.raises(ValueError, match="frozen"):
        c.depth = 4


def test_json_round_trip_and_schema() -> None:
    c = CheckpointConfig(model=ViTConfig(**FIELDS, layer_scale=0.1, pooling="map"))
    text, stamp = c.to_json()
    assert CheckpointConfig.from_json(text, "here") == (c, stamp)
    properties = CheckpointConfig.model_json_schema()["$defs"]["ViTConfig"]["properties"]
    assert properties.keys() == ViTConfig.model_fields.keys()
    assert all("description" in field for field in properties.values())
    assert set(json.loads(text)["model"]) == set(ViTConfig.model_fields)


def test_nested_keys_are_answered_with_the_nearest() -> None:
    text, _ = CheckpointConfig(model=ViTConfig(**FIELDS)).to_json()
    fields = json.loads(text)
    fields["model"]["qkv_bais"] = True
    with pytest.raises(InputError, match=r"^config.json: model: unknown key 'qkv_bais'; did you mean 'qkv_bias'"):
        CheckpointConfig.from_json(json.dumps(fields), "config.json")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_configs(name: str) -> None:
    c = variant(f"{name}/14", image_size=224, num_classes=10)
    assert (c.patch_size, c.width % c.heads) == ((14, 14), 0)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("b/16", "did you mean 'B'"),
        ("So400/14", "did you mean 'So400m'"),
        ("huge/16", "'huge'; known: mu, Ti, S, M"),
        ("B", "does not name its patch size; write, for example, 'B/16'"),
        ("B/0", "patch size"),
        ("B/-16", "patch size"),
    ],
)
def test_unknown_variants(spelled: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        variant(spelled, image_size=224, num_classes=10)
