"""The one table: counts against published figures, layouts, what each row says of itself."""

import numpy as np
import pytest

from vit_core import ViTConfig, variant
from vit_core.parameters import Initializer, count, initial_value, parameters

MODEL = ViTConfig(
    image_size=(8, 12),
    patch_size=(4, 2),
    width=24,
    depth=2,
    heads=3,
    head_dim=5,
    mlp_dim=40,
    num_classes=7,
    pooling="map",
    representation=9,
    layer_scale=0.1,
)


EVERYTHING = ViTConfig(
    image_size=(16, 24),
    patch_size=8,
    width=24,
    depth=2,
    heads=3,
    mlp_dim=40,
    num_classes=7,
    distillation="head",
    registers=3,
    pre_norm=True,
    mlp="swiglu",
    qk_norm=True,
    patch_norms=True,
    stem_layers=(2, 1),
    stem_width=32,
)


# As counted by google-research/vision_transformer's tests, and by torchvision's and timm's model tables.
@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("B/16", 86_567_656),
        ("B/32", 88_224_232),
        ("L/16", 304_326_632),
        ("L/32", 306_535_400),
        ("H/14", 632_045_800),
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
    ],
)
def test_published_counts(name: str, exact: int) -> None:
    assert count(variant(name, image_size=224, num_classes=1000)) == exact


@pytest.mark.parametrize(
    ("name", "fields", "millions"),
    [
        ("g/14", {"num_classes": 0}, 1011),  # "Scaling Vision Transformers", table 2
        ("G/14", {"num_classes": 0}, 1843),
        # PaLI, table 1: with its attention pooling and the head for JFT-3B's 29,593 classes
        ("e/14", {"num_classes": 29_593, "pooling": "map", "class_token": False}, 3926),
    ],
)
def test_published_sizes(name: str, fields: dict[str, object], millions: int) -> None:
    # Printed in whole millions; whether positions and tokens are counted is not said: within one.
    assert count(variant(name, image_size=224, **fields)) / 1e6 == pytest.approx(millions, abs=1.0)


@pytest.mark.parametrize("model", [MODEL, EVERYTHING], ids=["MODEL", "EVERYTHING"])
def test_layouts_are_inverse_and_shapes_true(model: ViTConfig) -> None:
    for row in parameters(model).values():
        array = np.arange(row.size, dtype=np.float32).reshape(row.shape)
        in_jax = row.to_jax(array)
        assert in_jax.shape == row.jax_shape
        np.testing.assert_array_equal(row.to_torch(in_jax), array)


def test_rows_written_out_by_hand() -> None:
    rows = parameters(MODEL)
    qkv = rows["blocks.1.attn.qkv.weight"]
    assert (qkv.shape, qkv.jax_shape, qkv.jax_name) == ((45, 24), (24, 3, 3, 5), "blocks.1.attn.qkv.kernel")
    assert (qkv.decay, qkv.depth, qkv.layer, qkv.matrix) == (True, 2, 1, "qkv (heads head_dim) width")
    weight = np.arange(45 * 24).reshape(45, 24)
    assert qkv.to_jax(weight)[7, 1, 2, 4] == weight[1 * 15 + 2 * 5 + 4, 7]
    patch = rows["patch_embed.proj.weight"]
    assert (patch.shape, patch.jax_shape) == ((24, 3, 4, 2), (4, 2, 3, 24))
    assert (rows["blocks.0.attn.qkv.bias"].key_bias, rows["attn_pool.kv.bias"].key_bias) == (slice(1, 2), slice(0, 1))
    assert rows["pos_embed"].shape == (1, 13, 24)
    depths = {"patch_embed.proj.weight": 0, "cls_token": 0, "blocks.0.norm1.weight": 1, "norm.bias": 3, "head.bias": 3}
    assert {name: rows[name].depth for name in depths} == depths
    assert rows["head.weight"].shape == (7, 9)
    assert "norm.weight" in rows
    assert "fc_norm.weight" not in rows


def test_rows_of_the_descendants_written_out_by_hand() -> None:
    rows = parameters(EVERYTHING)
    gated = rows["blocks.1.mlp.fc1.weight"]
    assert (gated.shape, gated.jax_shape, gated.matrix) == ((80, 24), (24, 2, 40), "gate mlp width")
    weight = np.arange(80 * 24).reshape(80, 24)
    assert gated.to_jax(weight)[7, 1, 5] == weight[40 + 5, 7]
    assert rows["blocks.0.mlp.fc1.bias"].jax_shape == (2, 40)
    norm = rows["patch_embed.norm_in.weight"]  # 1024 / 4 * 2 * 2 channels of a patch
    assert (norm.shape, norm.jax_shape, norm.jax_name) == ((256,), (256,), "patch_embed.norm_in.scale")
    assert rows["patch_embed.proj.weight"].shape == (24, 256, 1, 1)
    small = parameters(MODEL.replace(patch_norms=True))["patch_embed.norm_in.bias"]  # 3 channels of 4 x 2
    assert small.to_jax(np.arange(24))[(1 * 2 + 1) * 3 + 2] == 2 * 8 + 1 * 2 + 1
    assert rows["blocks.0.attn.qkv.bias"].key_bias is None
    assert rows["blocks.0.attn.k_norm.bias"].key_bias == slice(None)
    assert (rows["reg_token"].shape, rows["dist_token"].shape, rows["pos_embed"].shape) == (
        (1, 3, 24),
        (1, 1, 24),
        (1, 8, 24),
    )
    assert rows["reg_token"].initializer == Initializer("normal", 1e-6)  # zeros would stay alike for ever
    assert rows["head_dist.weight"].shape == rows["head.weight"].shape == (7, 24)
    unit = "patch_embed.backbone.stages.1.blocks.0"
    assert rows[f"{unit}.downsample.conv.weight"].shape == (256, 128, 1, 1)
    assert rows[f"{unit}.conv2.weight"].jax_shape == (3, 3, 64, 64)
    assert rows[f"{unit}.norm3.weight"].initializer.value == 0
    assert rows[f"{unit}.norm2.weight"].depth == rows["reg_token"].depth == 0
    assert rows["norm_pre.weight"].depth == 0
    assert "blocks.0.mlp.fc1.bias" not in parameters(EVERYTHING.replace(proj_bias=False))
    assert "patch_embed.proj.bias" not in parameters(EVERYTHING.replace(patch_bias=False))
    headless = parameters(EVERYTHING.replace(head_bias=False))
    assert {name for name in headless if name.startswith("head")} == {"head.weight", "head_dist.weight"}
    features = parameters(MODEL.replace(pooling="cls_gap"))["pre_logits.fc.weight"]
    assert (features.shape, features.jax) == ((9, 48), "pooled representation")


@pytest.mark.parametrize("model", [MODEL, EVERYTHING], ids=["MODEL", "EVERYTHING"])
def test_only_kernels_decay(model: ViTConfig) -> None:
    decayed = {name for name, row in parameters(model).items() if row.decay}
    assert decayed == {name for name, row in parameters(model).items() if row.jax_name.endswith("kernel")}
    assert {"head.weight", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"} < decayed


@pytest.mark.parametrize("model", [MODEL, EVERYTHING], ids=["MODEL", "EVERYTHING"])
def test_matrix_views_have_the_rows_size(model: ViTConfig) -> None:
    for row in parameters(model).values():
        assert (row.matrix is not None) == (row.decay or row.name == "pos_embed")
        for axis in (row.matrix or "").replace("(", " ").replace(")", " ").split():
            assert axis in row.sizes


def test_draws_depend_on_seed_and_name_alone() -> None:
    rows, deeper = parameters(MODEL), parameters(MODEL.replace(depth=3))
    name = "blocks.1.mlp.fc1.weight"
    np.testing.assert_array_equal(initial_value(rows[name], 5), initial_value(deeper[name], 5))
    assert not np.array_equal(initial_value(rows[name], 5), initial_value(rows["blocks.0.mlp.fc1.weight"], 5))
