"""The one table: counts against published figures, layouts, what each row says of itself."""

import numpy as np
import pytest

from vit_core import ViTConfig, variant
from vit_core.parameters import count, draw, parameters

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


def test_layouts_are_inverse_and_shapes_true() -> None:
    for row in parameters(MODEL).values():
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


def test_only_kernels_decay() -> None:
    decayed = {name for name, row in parameters(MODEL).items() if row.decay}
    assert decayed == {name for name, row in parameters(MODEL).items() if row.jax_name.endswith("kernel")}
    assert {"head.weight", "patch_embed.proj.weight", "attn_pool.kv.weight"} < decayed


def test_matrix_views_have_the_rows_size() -> None:
    for row in parameters(MODEL).values():
        assert (row.matrix is not None) == (row.decay or row.name == "pos_embed")
        for axis in (row.matrix or "").replace("(", " ").replace(")", " ").split():
            assert axis in row.sizes


def test_draws_depend_on_seed_and_name_alone() -> None:
    rows, deeper = parameters(MODEL), parameters(MODEL.replace(depth=3))
    name = "blocks.1.mlp.fc1.weight"
    np.testing.assert_array_equal(draw(rows[name], 5), draw(deeper[name], 5))
    assert not np.array_equal(draw(rows[name], 5), draw(rows["blocks.0.mlp.fc1.weight"], 5))
