"""Files of google-research/vision_transformer, built as NumPy alone builds them, against timm's loader of such files
and against the published architecture in NumPy (google_reference.py)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import timm
import torch
from flax.training.checkpoints import convert_pre_linen
from flax.traverse_util import flatten_dict, unflatten_dict
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer_hybrid import HybridEmbed

import vit_torch
from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.google_files import (
    GOOGLE,
    LINEN,
    PRE_LINEN,
    assert_same_bits,
    config_and_use,
    fault,
    file_shapes,
    full_size,
    in_file,
    prefixed,
    published,
    random_arrays,
    save,
)
from parity_tests.formats.google_reference import (
    assert_equal,
    by,
    forward,
    images,
    in_jax,
    in_timm,
    in_torch,
    timm_from,
)
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity, variants
from vit_core.arrays import LazyArray
from vit_core.checkpoints import open_checkpoint, save_checkpoint
from vit_core.checkpoints.formats.google import lineage
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.preprocess import Preprocessing

SMALL = ViTConfig(
    image_size=12,
    patch_size=4,
    width=24,
    depth=2,
    heads=3,
    mlp_dim=36,
    num_classes=5,
    position_resampling="zoom_linear",
)
GAP: dict[str, Any] = {"pooling": "gap", "class_token": False, "class_token_position": None}
HYBRID: dict[str, Any] = {"heads": 2, "width": 16, "mlp": 24, "channels": 3}
STEMS: dict[str, dict[str, Any]] = {
    "R50+B/16": {"layers": (3, 4, 9), "kernel": (1, 1), "grid": 4, "root": 32},
    "R26+S/32": {"layers": (2, 2, 2, 2), "kernel": (1, 1), "grid": 4, "root": 32},
    "R+Ti/16": {"layers": (), "kernel": (8, 8), "grid": 4, "root": 32},
    "small": {"layers": (1, 2), "kernel": (2, 2), "grid": 4, "root": 32},
}
STRIDES = {"R50+B/16": 16, "R26+S/32": 32, "R+Ti/16": 32, "small": 16}
"""Pixels from patch to patch. (The root takes 4, though a comment in Google's code says 2: R+Ti/16 has 7x7 at 224.)"""


# fmt: off
TIMM: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "token": ({}, {}, ""),
    "token, opt/target": ({}, {}, "opt/target/"),
    "token, no head": ({"classes": 0}, {"num_classes": 0}, ""),
    "gap": ({"pool": "gap"}, {"global_pool": "avg", "fc_norm": False, "class_token": False}, ""),
}
"""Fields of the file, arguments of timm's model, and the prefix of the names."""
FILES: dict[str, dict[str, Any]] = {
    "token": {},
    "no head": {"classes": 0},
    "pre_logits": {"rep": 16},
    "pre_logits, no head": {"rep": 16, "classes": 0},
    "gap": {"pool": "gap"},
    "gap, pre_logits": {"pool": "gap", "rep": 16},
    "one channel": {"channels": 1},
}
# fmt: on


@pytest.mark.parametrize("name", TIMM)
def test_logits_are_those_of_timms_loader(name: str, tmp_path: Path) -> None:
    file, options, prefix = TIMM[name]
    path = save(tmp_path / "file.npz", prefixed(random_arrays(file_shapes(**file)), prefix))
    opened, x = open_checkpoint(path), images()
    assert opened.config.provenance.source_format == "google"
    theirs = in_timm(path, x, **options)
    assert_equal(in_torch(opened, x), theirs)
    if name == "token":
        assert_equal(in_jax(opened, x), theirs)


def test_float32(tmp_path: Path) -> None:
    path = save(tmp_path / "file.npz", random_arrays(file_shapes(), dtype=np.float32))
    x = images().astype(np.float32)
    theirs = in_timm(path, x, dtype=torch.float32)
    for ours in (in_torch(path, x), in_jax(path, x)):
        assert ours.dtype == np.float32
        assert_equal(ours, theirs, parity.FLOAT32_BOUND)


@pytest.mark.parametrize("parts", [PRE_LINEN, LINEN], ids=["pre-Linen", "Linen"])
@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_the_published_architecture(name: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    arrays = random_arrays(file_shapes(**FILES[name], parts=parts))
    x = images((2, 12, 12, FILES[name].get("channels", 3)))
    path = save(tmp_path / "file.npz", arrays)
    theirs = forward(arrays, x, pool=FILES[name].get("pool", "tok"), parts=parts, positions=GOOGLE)
    assert_equal(in_torch(path, x), theirs)
    if name == "pre_logits":
        assert_equal(in_jax(path, x), theirs)


@pytest.mark.parametrize("norm", [(), (1, 1, 1)], ids=["[C]", "[1,1,1,C]"])
@pytest.mark.parametrize("name", STEMS)
def test_hybrids(name: str, norm: tuple[int, ...], tmp_path: Path) -> None:
    arrays = random_arrays(file_shapes(**STEMS[name], **HYBRID, norm=norm))
    opened, stride = open_checkpoint(save(tmp_path / "file.npz", arrays)), STRIDES[name]
    model, x = opened.config.model, images((2, 2 * stride, 2 * stride, 3))
    assert (model.stem_layers, model.patch_size) == (STEMS[name]["layers"], (stride, stride))
    theirs = forward(arrays, x, pool="tok", parts=PRE_LINEN, positions=GOOGLE)
    assert_equal(in_torch(opened, x), theirs)
    if name == "small" and norm:
        assert_equal(in_jax(opened, x), theirs)


@pytest.mark.parametrize("name", STEMS)
def test_hybrids_arrays_go_where_timms_loader_puts_them(name: str, tmp_path: Path) -> None:
    """The arrays only: timm's epsilons are others than Google's. (Its classes have no root of 32 channels.)"""
    stem, kernel = {**STEMS[name], "root": 64}, STEMS[name]["kernel"][0]
    path = save(tmp_path / "file.npz", random_arrays(file_shapes(**stem, **HYBRID, norm=(1, 1, 1))))
    if stem["layers"]:
        backbone = ResNetV2(stem["layers"], num_classes=0, global_pool="", preact=False, stem_type="same")
    else:
        backbone = create_resnetv2_stem(3, stem_type="same", preact=False)
    sizes = {"img_size": 2 * STRIDES[name], "patch_size": kernel, "embed_dim": 16, "num_heads": 2}
    theirs = timm_from(path, embed_layer=lambda **how: HybridEmbed(backbone, **how), **sizes).state_dict()
    ours = vit_torch.load(path).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(array, theirs[name]) for name, array in ours.items())


# fmt: off
PUBLISHED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("B/16", {"grid": 196}, "vit_base_patch16_224", {}),
    ("B/16", {"grid": 576, "parts": LINEN}, "vit_base_patch16_384", {}),
    ("B/16", {"grid": 196, "classes": 21843, "rep": 768}, "vit_base_patch16_224", {}),
    ("S/32", {"grid": 49, "pool": "gap"}, "vit_small_patch32_224",
     {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    ("L/16", {"grid": 576}, "vit_large_patch16_384", {}),
    ("H/14", {"grid": 256, "classes": 21843, "rep": 1280}, "vit_huge_patch14_224", {}),
    ("B/1", {"grid": 576, "layers": (3, 4, 9), "norm": (1, 1, 1)}, "vit_base_r50_s16_384", {}),
    ("S/1", {"grid": 49, "layers": (2, 2, 2, 2)}, "vit_small_r26_s32_224", {}),
    ("L/1", {"grid": 144, "layers": (3, 4, 6, 3)}, "vit_large_r50_s32_384", {}),
    ("Ti/8", {"grid": 49, "layers": ()}, "vit_tiny_r_s16_p8_224", {}),
]
# fmt: on


@pytest.mark.parametrize(("spelled", "file", "name", "options"), PUBLISHED, ids=str)
def test_published_files(spelled: str, file: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    """Names and shapes of full-size models are read as timm's models for them (which have no pre_logits)."""
    model = config_and_use(lineage, full_size(spelled, **file))
    assert {field: getattr(model, field) for field in ("width", "depth", "heads", "mlp_dim")} == variants.VARIANTS[
        spelled.partition("/")[0]
    ]
    assert model.representation == file.get("rep")
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=model.num_classes, **options)
    assert model.image_size == theirs.patch_embed.img_size
    shapes = {name: row.shape for name, row in parameters(model).items() if not name.startswith("pre_logits.")}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}


@pytest.mark.parametrize(
    "file", [*FILES.values(), *({**stem, **HYBRID, "norm": (1, 1, 1)} for stem in STEMS.values())], ids=str
)
def test_there_and_back(file: dict[str, Any], tmp_path: Path) -> None:
    arrays = random_arrays(file_shapes(**file), dtype=np.float32)
    opened = open_checkpoint(save(tmp_path / "theirs.npz", arrays))
    assert save_checkpoint(tmp_path / "ours.npz", opened, format="google") == ()
    assert_same_bits(in_file(tmp_path / "ours.npz"), arrays)
    again = open_checkpoint(tmp_path / "ours.npz")
    assert again.config.model == opened.config.model
    assert_same_bits(dict(again.arrays), dict(opened.arrays))


@pytest.mark.parametrize("fields", [{}, GAP, {"representation": 16}, {"num_classes": 0}], ids=str)
def test_ours_to_google_and_back(fields: dict[str, Any], tmp_path: Path) -> None:
    ours = checkpoint(SMALL.replace(**fields))
    assert save_checkpoint(tmp_path / "file.npz", ours, format="google") == ()
    again = open_checkpoint(tmp_path / "file.npz")
    assert again.config.model == ours.config.model
    assert_same_bits(dict(again.arrays), dict(ours.arrays))
    if not ours.config.model.representation:
        options = {"global_pool": "avg", "fc_norm": False, "class_token": False} if fields is GAP else {}
        theirs = timm_from(tmp_path / "file.npz", num_classes=ours.config.model.num_classes, **options)
        assert_equal(in_torch(ours, images()), by(theirs, images()))


def test_googles_own_code_converts_what_is_written(tmp_path: Path) -> None:
    """It renames by flax.training.checkpoints.convert_pre_linen; ten layers and more are sorted as numbers there."""
    save_checkpoint(tmp_path / "file.npz", checkpoint(SMALL.replace(depth=11, representation=16)), format="google")
    tree = unflatten_dict({tuple(name.split("/")): array for name, array in in_file(tmp_path / "file.npz").items()})
    converted = {"/".join(path): array for path, array in flatten_dict(convert_pre_linen(tree)).items()}
    expected = file_shapes(depth=11, rep=16, parts=LINEN)
    assert {name: array.shape for name, array in converted.items()} == expected
    x = images()
    ours = in_torch(checkpoint(SMALL.replace(depth=11, representation=16)), x)
    assert_equal(ours, forward(converted, x, pool="tok", positions=GOOGLE))


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"position_embedding": "sincos2d_mae"}, "positions: the table of 'sincos2d_mae'"),
        ({"position_embedding": "sincos2d_big_vision", **GAP}, "positions: the table of 'sincos2d_big_vision'"),
        ({"position_embedding": "none"}, "positions: the table of 'none'"),
        ({"class_token_position": False}, "position of the class token: zeros"),
        ({"qkv_bias": False}, "qkv_bias: zeros"),
        ({"proj_bias": False, "head_bias": False, "patch_bias": False}, "proj_bias: zeros"),
    ],
    ids=str,
)
def test_what_is_filled_in_changes_nothing(fields: dict[str, Any], note: str, tmp_path: Path) -> None:
    if "position_embedding" in fields:
        fields = {"class_token_position": None, **fields}
    ours = checkpoint(SMALL.replace(**fields))
    assert note in save_checkpoint(tmp_path / "file.npz", ours, format="google")
    options = {"global_pool": "avg", "fc_norm": False, "class_token": False} if "pooling" in fields else {}
    assert_equal(in_timm(tmp_path / "file.npz", images(), **options), in_torch(ours, images()))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pooling": "map", "class_token": False, "class_token_position": None}, "pooling map (it has cls or gap)"),
        ({"pooling": "first", "class_token": False, "class_token_position": None}, "pooling first (it has cls or gap)"),
        ({"pooling": "cls_gap"}, "pooling cls_gap (it has cls or gap)"),
        ({"pooling": "gap"}, "class_token true (it has false)"),
        ({"registers": 2}, "registers 2 (it has 0)"),
        ({"distillation": "token"}, "distillation token (it has none)"),
        ({"final_norm": "after_pooling"}, "final_norm after_pooling (it has before_pooling)"),
        ({"pre_norm": True}, "pre_norm true (it has false)"),
        ({"qk_norm": True}, "qk_norm true (it has false)"),
        ({"mlp": "swiglu"}, "mlp swiglu (it has mlp)"),
        ({"layer_scale": 0.1}, "layer_scale 0.1 (it has null)"),
        ({"patch_norms": True}, "patch_norms true (it has false)"),
        ({"head_dim": 5}, "head_dim 5 (it has none or 8)"),
        ({"activation": "quick_gelu"}, "activation quick_gelu (it has gelu_tanh)"),
        ({"activation": "gelu"}, "activation gelu (it has gelu_tanh); --allow-lossy uses that value instead"),
        ({"norm_epsilon": 1e-5}, "norm_epsilon 1e-05 (it has 1e-06); --allow-lossy uses that value instead"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    ours = checkpoint(SMALL.replace(**fields))
    with pytest.raises(InputError) as refusal:
        save_checkpoint(tmp_path / "file.npz", ours, format="google")
    assert "google cannot express " in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert reason.replace("null", "none") in str(refusal.value)
    assert not (tmp_path / "file.npz").exists()


def test_lossy_activation(tmp_path: Path) -> None:
    ours = checkpoint(SMALL.replace(activation="gelu"))
    notes = save_checkpoint(tmp_path / "file.npz", ours, format="google", allow_lossy=True)
    assert notes == ("lossy: google cannot express activation gelu (it has gelu_tanh)",)
    assert_same_bits(dict(open_checkpoint(tmp_path / "file.npz").arrays), dict(ours.arrays))


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    ours = checkpoint(SMALL).adapt(dtype="bfloat16")
    notes = save_checkpoint(tmp_path / "file.npz", ours, format="google")
    assert notes == ("bfloat16: written as float32, because the project's code does not read bfloat16",)
    again = open_checkpoint(tmp_path / "file.npz")
    assert all(again.arrays[name].dtype == np.float32 for name in again.arrays)
    assert all((again.arrays[name] == array.astype(np.float32)).all() for name, array in ours.arrays.items())


def test_image_that_is_no_square(tmp_path: Path) -> None:
    ours = checkpoint(SMALL.replace(image_size=(8, 20)))
    notes = save_checkpoint(tmp_path / "file.npz", ours, format="google")
    assert notes == ("image_size: 8x20 is not in the file; read it with --set image_size=8x20",)
    with pytest.raises(InputError, match="10 positions do not form a square grid; use --set image_size=HEIGHTxWIDTH"):
        open_checkpoint(tmp_path / "file.npz")
    assert open_checkpoint(tmp_path / "file.npz", fields={"image_size": (8, 20)}).config.model == ours.config.model


@pytest.mark.parametrize("format", ["google", "big_vision"])
def test_what_has_no_place_in_the_file_is_noted(format: str, tmp_path: Path) -> None:
    seen = Preprocessing(image_size=12, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    ours = checkpoint(SMALL.replace(position_resampling="bicubic", class_token_position=format == "google"))
    ours = ours.with_config(ours.config.replace(preprocessing=seen, labels=tuple("abcde")))
    assert save_checkpoint(tmp_path / "file.npz", ours, format=format) == (
        "position_resampling: bicubic is not in the file; its code uses zoom_linear",
        "preprocessing: not in the file; its code expects images from -1 to 1, "
        "not mean [0.4, 0.5, 0.6] and std [0.2, 0.2, 0.2]",
        "labels: not in the file",
    )
    assert_same_bits(dict(open_checkpoint(tmp_path / "file.npz").arrays), dict(ours.arrays))


@pytest.mark.parametrize("grid", [(5, 7), (2, 4), (6, 3)])
@pytest.mark.parametrize("pool", ["tok", "gap"])
def test_positions_at_another_resolution_as_scipy_zooms_them(grid: tuple[int, int], pool: str, tmp_path: Path) -> None:
    arrays = random_arrays(file_shapes(pool=pool))
    size = (4 * grid[0], 4 * grid[1])
    opened = open_checkpoint(save(tmp_path / "file.npz", arrays)).adapt(image_size=size)
    token, table = np.split(arrays[GOOGLE], [pool == "tok"], axis=1)
    zoomed = scipy.ndimage.zoom(table.reshape(3, 3, 24), (grid[0] / 3, grid[1] / 3, 1), order=1)
    resized = {**arrays, GOOGLE: np.concatenate([token, zoomed.reshape(1, -1, 24)], axis=1)}
    assert_equal(opened.arrays["pos_embed"], resized[GOOGLE])
    x = images((2, *size, 3))
    assert_equal(in_torch(opened, x), forward(resized, x, pool=pool, parts=PRE_LINEN, positions=GOOGLE))


def test_head_of_zeros_warns(tmp_path: Path) -> None:
    arrays = random_arrays(file_shapes())
    arrays["head/kernel"][:] = 0
    opened = open_checkpoint(save(tmp_path / "file.npz", arrays))
    with pytest.warns(UserWarning, match="all weights of the head are zeros, so it cannot classify; replace it"):
        opened.arrays["head.weight"]


def test_a_pooling_without_a_class_token_is_assumed(tmp_path: Path) -> None:
    """Scenic's code, which has the same names, may take the first token instead of the mean."""
    path = save(tmp_path / "file.npz", random_arrays(file_shapes(pool="gap")))
    assert assumed(open_checkpoint(path)) == {"image_size": (12, 12), "pooling": "gap"}
    assert open_checkpoint(path, fields={"pooling": "first"}).config.model.pooling == "first"


def test_notes_and_what_is_left_out(tmp_path: Path) -> None:
    arrays = {
        **prefixed(random_arrays(file_shapes()), "opt/target/"),
        "opt/state/step": np.array(3),
        "extra/time": np.array(1.5),
    }
    opened = open_checkpoint(save(tmp_path / "file.npz", arrays))
    assert opened.config.model == SMALL
    assert opened.config.preprocessing is None
    assert assumed(opened) == {"image_size": (12, 12)}
    assert other_notes(opened) == (
        "model found under 'opt/target'",
        "preprocessing: none in the file; images ranged from -1 to 1 (mean = std = 0.5), their resizing is unknown",
        "left out: opt/state, extra",
    )


def test_fields_win_over_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "file.npz", random_arrays(file_shapes()))
    fields = {"activation": "gelu", "norm_epsilon": 1e-5, "dropout": 0.1, "pooling": "gap"}
    assert open_checkpoint(path, fields=fields).config.model == SMALL.replace(**fields)
    with pytest.raises(InputError, match="Google's files have no reg_token; leave out the field that adds it"):
        open_checkpoint(path, fields={"registers": 2})


@pytest.mark.parametrize("hybrid", [False, True])
def test_missing_misshapen_and_strange_arrays_are_named(hybrid: bool) -> None:
    shapes = file_shapes(rep=16, **({**STEMS["small"], **HYBRID} if hybrid else {}))
    whole = {name: LazyArray.of(array) for name, array in random_arrays(shapes).items()}
    for name in shapes:
        left = {other: entry for other, entry in whole.items() if other != name}
        if name not in ("cls", "conv_root/kernel"):  # without which it is another model, whose arrays do not fit
            assert name.rpartition("/")[0] in fault(lineage, left)
        assert name in fault(lineage, {**left, name: LazyArray.of(np.zeros((2, 7)))})
        assert f"{name}_2" in fault(lineage, {**whole, f"{name}_2": whole[name]})


@pytest.mark.parametrize("hybrid", [False, True])
def test_shapes_of_a_damaged_file(hybrid: bool) -> None:
    """Names and shapes come from a header that anybody may have written; nothing is read or allocated for them."""
    shapes = file_shapes(rep=16, **({**STEMS["small"], **HYBRID} if hybrid else {}))
    whole = published(shapes).arrays.entries
    for name, shape in shapes.items():
        for damaged in ((), (0,) * len(shape), (*shape[:-1], 0), (2**40, *shape[1:]), (*shape, 1), (1, *shape)):
            assert damaged != shape
            fault(lineage, {**whole, name: LazyArray(damaged, "float32", whole[name].read)})
    many = {f"Transformer/encoderblock_{i}/LayerNorm_0/scale": LazyArray.of(np.ones(24)) for i in (4096, 9999)}
    assert "depth: expected at most 4096, found 10000" in fault(lineage, {**whole, **many})
