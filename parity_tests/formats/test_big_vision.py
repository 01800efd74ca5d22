"""Files of google-research/big_vision, built as NumPy alone builds them, against timm's loader of such files and
against the published architecture in NumPy (google_reference.py)."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
import timm
import torch

from parity_tests.formats.foreign import assumed
from parity_tests.formats.google_files import (
    BIG_VISION,
    LINEN,
    Arrays,
    assert_same_bits,
    config_and_use,
    fault,
    file_shapes,
    full_size,
    in_file,
    prefixed,
    random_arrays,
    save,
    stacked,
)
from parity_tests.formats.google_reference import assert_equal, forward, images, in_jax, in_timm, in_torch
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.arrays import LazyArray
from vit_core.checkpoints import open_checkpoint, save_checkpoint
from vit_core.checkpoints.formats import big_vision
from vit_core.errors import InputError
from vit_core.parameters import count, parameters

shapes_of = partial(file_shapes, parts=LINEN, positions=BIG_VISION)
SMALL = ViTConfig(
    image_size=12,
    patch_size=4,
    width=24,
    depth=2,
    heads=3,
    mlp_dim=36,
    num_classes=5,
    class_token_position=False,
    position_resampling="zoom_linear",
)
NO_TOKEN = {"class_token": False}
SINCOS = {"position_embedding": "sincos2d_big_vision"}
PIXELS = "preprocessing: none in the file; images ranged from -1 to 1 (mean = std = 0.5), their resizing is unknown"
GAP = "pooling: gap, which has the same arrays as pooling=first; --set pooling=first for that"

# fmt: off
IN_TIMM: dict[str, dict[str, Any]] = {
    "tok": {"no_embed_class": True},
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "map": {"global_pool": "map", "class_token": False},
}
"""timm's model for each way of pooling."""
FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tok": ({}, {}),
    "gap": ({"pool": "gap"}, {}),
    "map": ({"pool": "map"}, {}),
    "0": ({"pool": "0"}, {"pooling": "first"}),
    "tok, sincos2d": ({"positions": None}, {"image_size": (12, 12)}),
    "gap, sincos2d": ({"pool": "gap", "positions": None}, {"image_size": (12, 12)}),
    "map, sincos2d": ({"pool": "map", "positions": None}, {"image_size": (12, 12)}),
    "tok, pre_logits": ({"rep": 16}, {}),
    "map, pre_logits": ({"pool": "map", "rep": 16}, {}),
    "gap, no head": ({"pool": "gap", "classes": 0}, {}),
    "0, pre_logits, no head": ({"pool": "0", "classes": 0, "rep": 16}, {"pooling": "first"}),
}
"""Fields that the file contains, and fields that the user has to set."""
# fmt: on


def laid_out(arrays: Arrays, prefix: str = "params/", scanned: bool = False) -> Arrays:
    """As big_vision would have saved it."""
    return prefixed(stacked(arrays, 2) if scanned else arrays, prefix)


@pytest.mark.parametrize("scanned", [False, True], ids=["layers apart", "scanned"])
@pytest.mark.parametrize("prefix", ["params/", "", "params/img/"])
@pytest.mark.parametrize("pool", IN_TIMM)
def test_logits_are_those_of_timms_loader(pool: str, prefix: str, scanned: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "file.npz", laid_out(random_arrays(shapes_of(pool=pool)), prefix, scanned))
    opened, x = open_checkpoint(path), images()
    assert opened.config.provenance.source_format == "big_vision"
    theirs = in_timm(path, x, **IN_TIMM[pool])
    assert_equal(in_torch(opened, x), theirs)
    if scanned and prefix == "params/":
        assert_equal(in_jax(opened, x), theirs)


@pytest.mark.parametrize("pool", IN_TIMM)
def test_float32(pool: str, tmp_path: Path) -> None:
    path = save(tmp_path / "file.npz", laid_out(random_arrays(shapes_of(pool=pool), dtype=np.float32)))
    x = images().astype(np.float32)
    ours = in_torch(path, x)
    assert ours.dtype == np.float32
    assert_equal(ours, in_timm(path, x, dtype=torch.float32, **IN_TIMM[pool]), parity.FLOAT32_BOUND)


@pytest.mark.parametrize("scanned", [False, True], ids=["layers apart", "scanned"])
@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_the_published_architecture(name: str, scanned: bool, tmp_path: Path) -> None:
    file, fields = FILES[name]
    arrays, x = random_arrays(shapes_of(**file)), images()
    opened = open_checkpoint(save(tmp_path / "file.npz", laid_out(arrays, scanned=scanned)), fields=fields)
    theirs = forward(arrays, x, pool=file.get("pool", "tok"), positions=file.get("positions", BIG_VISION))
    assert_equal(in_torch(opened, x), theirs)
    if name == "0, pre_logits, no head" and scanned:
        assert_equal(in_jax(opened, x), theirs)


@pytest.mark.parametrize("name", ["Transformer/pos_embedding", BIG_VISION])
def test_positions_from_before_2022_have_one_for_the_class_token(name: str, tmp_path: Path) -> None:
    """big_vision reads these by adding it to the token."""
    arrays, x = random_arrays(shapes_of(positions="Transformer/pos_embedding")), images()
    assert arrays["Transformer/pos_embedding"].shape == (1, 10, 24)
    table = arrays.pop("Transformer/pos_embedding")
    added = {**arrays, "cls": arrays["cls"] + table[:, :1], BIG_VISION: table[:, 1:]}
    path = save(tmp_path / "file.npz", {**arrays, name: table})
    for fields in ({}, {"image_size": (12, 12)}):
        opened = open_checkpoint(path, fields=fields)
        assert opened.config.model == SMALL.replace(class_token_position=True)
        assert_equal(in_torch(opened, x), forward(added, x, pool="tok", positions=BIG_VISION))


# fmt: off
PUBLISHED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("B/16", {"grid": 196}, "vit_base_patch16_224", {"no_embed_class": True}),
    ("B/16", {"grid": 1024, "pool": "map", "classes": 0}, "vit_base_patch16_siglip_512", {}),
    ("L/16", {"grid": 576, "pool": "map", "classes": 0}, "vit_large_patch16_siglip_384", {}),
    ("So400m/14", {"grid": 729, "pool": "map", "classes": 0}, "vit_so400m_patch14_siglip_378", {}),
    ("B/32", {"grid": 49, "pool": "gap"}, "vit_base_patch32_224", IN_TIMM["gap"]),
]
# fmt: on


@pytest.mark.parametrize("scanned", [False, True], ids=["layers apart", "scanned"])
@pytest.mark.parametrize(("spelled", "file", "name", "options"), PUBLISHED, ids=str)
def test_published_files(spelled: str, file: dict[str, Any], name: str, options: dict[str, Any], scanned: bool) -> None:
    """Names and shapes of full-size models are read as the models that timm builds for them."""
    shapes = full_size(spelled, **file, parts=LINEN, positions=BIG_VISION)
    if scanned:
        depth = sum(name.endswith("LayerNorm_1/scale") for name in shapes)
        stacks = {name: shape for name, shape in shapes.items() if "encoderblock_" not in name}
        layer = {name: shape for name, shape in shapes.items() if "encoderblock_0/" in name}
        shapes = stacks | {name.replace("block_0", "block"): (depth, *shape) for name, shape in layer.items()}
    model = config_and_use(big_vision, prefixed(shapes, "params/img/" if file.get("pool") == "map" else "params/"))
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=model.num_classes, **options)
    assert model.image_size == theirs.patch_embed.img_size
    assert model.heads == theirs.blocks[0].attn.num_heads
    ours = {name: row.shape for name, row in parameters(model).items()}
    assert ours == {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}


def test_published_baseline_without_a_table() -> None:
    """ViT-S/16 of "Better plain ViT baselines": timm's vit_small_patch16_224 less the class token and the table."""
    model = config_and_use(big_vision, full_size("S/16", pool="gap", parts=LINEN, positions=None))
    assert (model.position_embedding, model.image_size) == ("sincos2d_big_vision", (224, 224))
    assert (model.class_token, model.pooling) == (False, "gap")
    assert count(model) == 22_050_664 - (1 + 197) * 384


@pytest.mark.parametrize("name", FILES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    file, fields = FILES[name]
    arrays = laid_out(random_arrays(shapes_of(**file), dtype=np.float32))
    opened = open_checkpoint(save(tmp_path / "theirs.npz", arrays), fields=fields)
    notes = save_checkpoint(tmp_path / "ours.npz", opened, format="big_vision")
    assert [note.partition(":")[0] for note in notes] == (["pooling"] if file.get("pool") == "0" else [])
    assert_same_bits(in_file(tmp_path / "ours.npz"), arrays)
    again = open_checkpoint(tmp_path / "ours.npz", fields=fields)
    assert again.config.model == opened.config.model
    assert_same_bits(dict(again.arrays), dict(opened.arrays))


def test_scanned_layers_are_written_apart(tmp_path: Path) -> None:
    arrays = random_arrays(shapes_of(), dtype=np.float32)
    opened = open_checkpoint(save(tmp_path / "theirs.npz", laid_out(arrays, "", scanned=True)))
    save_checkpoint(tmp_path / "ours.npz", opened, format="big_vision")
    assert_same_bits(in_file(tmp_path / "ours.npz"), prefixed(arrays, "params/"))


def test_a_layer_is_read_without_its_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are mapped, so only the accessed pages are read."""
    arrays = random_arrays(shapes_of())
    opened = open_checkpoint(save(tmp_path / "file.npz", laid_out(arrays, scanned=True)))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("a whole member is read"))
    layer = opened.arrays["blocks.1.norm1.weight"]
    assert (layer == arrays["Transformer/encoderblock_1/LayerNorm_0/scale"]).all()
    layer[:] = 0  # whoever gets an array may write into it
    assert (opened.arrays["blocks.1.norm1.weight"] == arrays["Transformer/encoderblock_1/LayerNorm_0/scale"]).all()


def test_compressed_stacks(tmp_path: Path) -> None:
    arrays, x = random_arrays(shapes_of()), images()
    np.savez_compressed(tmp_path / "file.npz", **laid_out(arrays, scanned=True))
    assert_equal(in_torch(tmp_path / "file.npz", x), forward(arrays, x, pool="tok", positions=BIG_VISION))


@pytest.mark.parametrize("scanned", [False, True], ids=["layers apart", "scanned"])
def test_bfloat16(scanned: bool, tmp_path: Path) -> None:
    """NumPy writes it as raw bytes."""
    arrays = random_arrays(shapes_of(), dtype=ml_dtypes.bfloat16)
    path = save(tmp_path / "file.npz", laid_out(arrays, scanned=scanned))
    assert in_file(path)["params/cls"].dtype == "V2"
    opened, x = open_checkpoint(path), images()
    assert {entry.dtype for entry in opened.arrays.entries.values()} == {"bfloat16"}
    precise = {name: array.astype(np.float64) for name, array in arrays.items()}
    assert_equal(in_torch(opened, x, dtype="float64"), forward(precise, x, pool="tok", positions=BIG_VISION))
    save_checkpoint(tmp_path / "ours.npz", opened, format="big_vision")
    assert_same_bits(in_file(tmp_path / "ours.npz"), in_file(save(tmp_path / "apart.npz", laid_out(arrays))))


def test_what_the_file_cannot_tell_is_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "file.npz", random_arrays(shapes_of(pool="gap", positions=None)))
    why = "that of the published files without positions"
    size = f"image_size: 224x224, {why}; --set image_size=VALUE for another"
    table = f"position_embedding: sincos2d_big_vision, {why}; --set position_embedding=VALUE for another"
    assert open_checkpoint(path).notes == (size, table, GAP, PIXELS)
    found = {"image_size": (224, 224), "position_embedding": "sincos2d_big_vision", "pooling": "gap"}
    assert assumed(open_checkpoint(path)) == found
    assert open_checkpoint(path).config.model == SMALL.replace(pooling="gap", image_size=224, **NO_TOKEN, **SINCOS)
    said = open_checkpoint(path, fields={"pooling": "first", "image_size": (8, 12), **SINCOS})
    assert (said.assumptions, said.notes) == ((), (PIXELS,))
    assert said.config.model == SMALL.replace(pooling="first", image_size=(8, 12), **NO_TOKEN, **SINCOS)


def test_fields_win_over_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "file.npz", laid_out(random_arrays(shapes_of())))
    fields = {"activation": "gelu", "norm_epsilon": 1e-5, "dropout": 0.1, "pooling": "gap"}
    assert open_checkpoint(path, fields=fields).config.model == SMALL.replace(**fields)
    with pytest.raises(InputError, match="pooling: 'first' is the class token where there is one"):
        open_checkpoint(path, fields={"pooling": "first"})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "gap", **NO_TOKEN},
        {"pooling": "map", **NO_TOKEN},
        {"pooling": "map", "num_classes": 0, **NO_TOKEN},
        {"representation": 16},
    ],
    ids=str,
)
def test_ours_to_big_vision_and_back(fields: dict[str, Any], tmp_path: Path) -> None:
    ours, x = checkpoint(SMALL.replace(**fields)), images()
    assert save_checkpoint(tmp_path / "file.npz", ours, format="big_vision") == ()
    again = open_checkpoint(tmp_path / "file.npz")
    assert again.config.model == ours.config.model
    assert_same_bits(dict(again.arrays), dict(ours.arrays))
    theirs = {name.removeprefix("params/"): array for name, array in in_file(tmp_path / "file.npz").items()}
    pool = {"cls": "tok"}.get(ours.config.model.pooling, ours.config.model.pooling)
    file = {"pool": pool, "classes": ours.config.model.num_classes, "rep": fields.get("representation", 0)}
    assert {name: array.shape for name, array in theirs.items()} == shapes_of(**file)
    assert_equal(in_torch(ours, x), forward(theirs, x, pool=pool, positions=BIG_VISION))
    if "representation" not in fields:
        options = {**IN_TIMM[pool], "num_classes": ours.config.model.num_classes}
        assert_equal(in_torch(ours, x), in_timm(tmp_path / "file.npz", x, **options))


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"class_token_position": True}, "position of the class token: added to the token"),
        ({"position_embedding": "sincos2d_mae"}, "positions: the table of 'sincos2d_mae'"),
        ({"position_embedding": "none"}, "positions: the table of 'none'"),
        ({"qkv_bias": False}, "qkv_bias: zeros"),
        ({"proj_bias": False, "head_bias": False, "patch_bias": False}, "patch_bias: zeros"),
    ],
    ids=str,
)
def test_what_is_filled_in_changes_nothing(fields: dict[str, Any], note: str, tmp_path: Path) -> None:
    ours = checkpoint(SMALL.replace(**fields))
    assert note in save_checkpoint(tmp_path / "file.npz", ours, format="big_vision")
    assert_equal(in_timm(tmp_path / "file.npz", images(), **IN_TIMM["tok"]), in_torch(ours, images()))


def test_what_is_written_without_a_table(tmp_path: Path) -> None:
    ours = checkpoint(SMALL.replace(pooling="gap", image_size=(8, 12), **NO_TOKEN, **SINCOS))
    notes = save_checkpoint(tmp_path / "file.npz", ours, format="big_vision")
    assert notes == ("image_size: 8x12 is not in the file; read it with --set image_size=8x12",)
    again = open_checkpoint(tmp_path / "file.npz", fields={"image_size": (8, 12)})
    assert again.config.model == ours.config.model
    assert_same_bits(dict(again.arrays), dict(ours.arrays))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pooling": "cls_gap"}, "pooling cls_gap (it has cls or gap or map or first)"),
        ({"pooling": "gap"}, "class_token true (it has false)"),
        ({"pooling": "map"}, "class_token true (it has false)"),
        ({"registers": 2}, "registers 2 (it has 0)"),
        ({"distillation": "head"}, "distillation head (it has none)"),
        ({"final_norm": "after_pooling"}, "final_norm after_pooling (it has before_pooling)"),
        ({"qk_norm": True}, "qk_norm true (it has false)"),
        ({"mlp": "swiglu"}, "mlp swiglu (it has mlp)"),
        ({"layer_scale": 0.1}, "layer_scale 0.1 (it has none)"),
        ({"stem_layers": (), "stem_width": 32}, "stem_layers () (it has none)"),
        ({"activation": "gelu"}, "activation gelu (it has gelu_tanh); --allow-lossy uses that value instead"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        save_checkpoint(tmp_path / "file.npz", checkpoint(SMALL.replace(**fields)), format="big_vision")
    assert "big_vision cannot express " in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert reason in str(refusal.value)
    assert not (tmp_path / "file.npz").exists()


@pytest.mark.parametrize("grid", [(5, 7), (2, 4)])
def test_positions_at_another_resolution_as_scipy_zooms_them(grid: tuple[int, int], tmp_path: Path) -> None:
    arrays, size = random_arrays(shapes_of()), (4 * grid[0], 4 * grid[1])
    opened = open_checkpoint(save(tmp_path / "file.npz", laid_out(arrays))).adapt(image_size=size)
    table = arrays[BIG_VISION].reshape(3, 3, 24)
    zoomed = scipy.ndimage.zoom(table, (grid[0] / 3, grid[1] / 3, 1), order=1).reshape(1, -1, 24)
    assert_equal(opened.arrays["pos_embed"], zoomed)
    x = images((2, *size, 3))
    assert_equal(in_torch(opened, x), forward({**arrays, BIG_VISION: zoomed}, x, pool="tok", positions=BIG_VISION))


@pytest.mark.parametrize("scanned", [False, True], ids=["layers apart", "scanned"])
def test_missing_misshapen_and_strange_arrays_are_named(scanned: bool) -> None:
    arrays = laid_out(random_arrays(shapes_of(pool="map", rep=16)), scanned=scanned)
    whole = {name: LazyArray.of(array) for name, array in arrays.items()}
    for name in whole:
        left = {other: entry for other, entry in whole.items() if other != name}
        # A layer of a stack goes by its number. The prefix is named once; without the patches it is not known.
        own = name.removeprefix("params/")
        names = (own, own.replace("encoderblock/", "encoderblock[0]/"))
        modules = tuple(name.rpartition("/")[0] for name in names)
        if name not in (f"params/{BIG_VISION}", "params/MAPHead_0/probe"):  # without which it is another model
            assert any(module in fault(big_vision, left) for module in modules)
        said = fault(big_vision, {**left, name: LazyArray.of(np.zeros((2, 7)))})
        assert any(module in said for module in modules)
        said = fault(big_vision, {**whole, f"{name}_2": whole[name]})
        assert said.startswith("file.npz: in 'params': ")
        assert any(f"{name}_2" in said for name in names)


def test_stacks_that_are_none() -> None:
    arrays = laid_out(random_arrays(shapes_of()), "", scanned=True)
    whole, scale = {name: LazyArray.of(array) for name, array in arrays.items()}, "encoderblock/LayerNorm_0/scale"
    for shape, reason in {
        (0, 24): "Transformer/encoderblock/LayerNorm_0/scale has 0 layers, expected 1 to 4096",
        (2**40, 0): "Transformer/encoderblock/LayerNorm_0/scale has 1099511627776 layers, expected 1 to 4096",
        (3, 24): "Transformer/encoderblock/LayerNorm_0/bias has shape [2, 24], expected 3 layers",
        (): "Transformer/encoderblock/LayerNorm_0/scale has 0 layers, expected 1 to 4096",
    }.items():
        entry = LazyArray(shape, "float32", lambda: pytest.fail("read"))
        assert reason in fault(big_vision, {**whole, f"Transformer/{scale}": entry})


def test_naflexs_patches_with_one_row_of_positions_are_refused() -> None:
    """NaFlex has a table of two axes (test_big_vision_flexible.py)."""
    arrays = laid_out(random_arrays(shapes_of(pool="map", classes=0)), "params/img/")
    whole = {name: LazyArray.of(array) for name, array in arrays.items()}
    said = fault(big_vision, {**whole, "params/img/embedding/kernel": LazyArray.of(np.zeros((48, 24)))})
    assert said == "file.npz: in 'params/img': pos_embedding has shape [1, 9, 24]; expected [N, N, 24]"
