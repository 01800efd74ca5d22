"""timm's files, written by timm and read here, and the other way round: the same logits, bits and config.

Folders are those of timm's own `save_for_hf`, and what is written here timm.create_model("local-dir:…") opens strictly.
The bound is parity.FLOAT64_BOUND where a test does not derive another.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.timm_models import ADDED, MODELS, OBLONG, TINY, built, fields_of, saved, with_googles_epsilons
from parity_tests.formats.torch_models import (
    assert_same_checkpoint,
    distance,
    images,
    in_jax,
    ours,
    outputs,
    randomised,
)
from vit_core import ViTConfig, parity
from vit_core.checkpoints import open_checkpoint, save_checkpoint
from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing


@pytest.mark.parametrize("name", MODELS)
def test_read_from_a_folder_and_given_back(name: str, tmp_path: Path) -> None:
    theirs = built(name)
    read = open_checkpoint(saved(theirs, tmp_path / "theirs"))
    assert read.config.provenance.source_format == "timm"
    x_BCHW = images(read)
    expected = outputs(theirs, x_BCHW)
    assert distance(ours(read, x_BCHW), expected) <= parity.FLOAT64_BOUND
    assert distance(ours(read, x_BCHW, "float32"), expected) <= parity.FLOAT32_BOUND

    notes = save_checkpoint(tmp_path / "ours", read, format="timm")
    assert not notes
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert np.array_equal(outputs(again, x_BCHW), expected)
    assert_same_checkpoint(open_checkpoint(tmp_path / "ours"), read)
    if name not in ADDED:
        before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["token", "registers with positions, map", "distilled DeiT", "CLIP, quick GELU"])
def test_jax(name: str, tmp_path: Path) -> None:
    theirs = built(name)
    read = open_checkpoint(saved(theirs, tmp_path))
    x_BCHW = images(read)
    assert distance(in_jax(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("name", MODELS)
def test_shapes_alone(name: str, tmp_path: Path) -> None:
    """The user sets the fields that the arrays do not show; all others are as in config.json."""
    theirs = built(name, img_size=(12, 12))
    known = open_checkpoint(saved(theirs, tmp_path / "folder")).config.model
    fields = {"heads": known.heads, "activation": known.activation, "norm_epsilon": known.norm_epsilon}
    if name in ("token, fc_norm", "avg"):
        fields["pooling"] = known.pooling
    if name in ("no positions", "patch not square"):
        fields["image_size"] = known.image_size
    if known.layer_scale is not None:
        fields["layer_scale"] = known.layer_scale
    file = tmp_path / "folder" / "model.safetensors"
    assert open_checkpoint(file, fields=fields).config.model == known


@pytest.mark.parametrize("name", ["registers", "distilled DeiT", "no_embed_class", "registers with positions"])
@pytest.mark.parametrize("size", [(24, 8), (20, 28), (12, 8)], ids=str)
def test_positions_at_another_resolution(
    name: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm resamples `posemb.float()`; in float64 its arithmetic can be compared with the bound 1e-12 too."""
    theirs = built(name).double()
    read = open_checkpoint(saved(theirs, tmp_path))
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    theirs.set_input_size(img_size=size)
    x_BCHW = images(read, size)
    assert distance(ours(read, x_BCHW, image_size=size), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


# What is written: from configs of ours.

SMALL = ViTConfig(
    image_size=(8, 12), patch_size=4, width=24, depth=2, heads=3, mlp_dim=36, num_classes=5, activation="gelu"
)
NO_TOKEN: dict[str, Any] = {"class_token": False, "class_token_position": None}
CLIP: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "norm_epsilon": 1e-5, "activation": "quick_gelu"}
TIMMS = {"position_resampling": "bicubic_antialias"}

# fmt: off
WRITTEN: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gap": {"pooling": "gap"},
    "gap, fc_norm": {"pooling": "gap", "final_norm": "after_pooling"},
    "map, fc_norm, no token": {"pooling": "map", "final_norm": "after_pooling", **NO_TOKEN},
    "no class token, registers": {"pooling": "gap", "registers": 2, **NO_TOKEN},
    "registers": {"registers": 3, "class_token_position": False},
    "distilled": {"distillation": "head", "layer_scale": 0.1, "qk_norm": True},
    "gated": {"mlp": "swiglu", "registers": 2, "class_token_position": False, "layer_scale": 0.5},
    "gated, no scale": {"mlp": "swiglu", "pooling": "gap", "qkv_bias": False},
    "CLIP": CLIP,
    "CLIP, SwiGLU's biases": {**CLIP, "proj_bias": False, "head_bias": True},
    "epsilon of CLIP alone": {"norm_epsilon": 1e-5, "activation": "gelu_tanh"},
    "no positions": {"position_embedding": "none", "class_token_position": None},
    "no head": {"num_classes": 0},
    "odd widths": {"mlp_dim": 37, "patch_size": (4, 3), "channels": 1},
    "int(28 * (61 / 28)) is 60": {"width": 28, "heads": 2, "mlp_dim": 61},
    "drops": {"dropout": 0.1, "attention_dropout": 0.2, "stochastic_depth": 0.3},
}
WIDENED: dict[str, tuple[dict[str, Any], str]] = {
    "registers and a positioned token": ({"registers": 2}, "added to the token"),
    "sincos": ({"position_embedding": "sincos2d_mae", "class_token_position": None}, "positions: the table"),
    "sincos, distilled": ({"position_embedding": "sincos2d_mae", "class_token_position": None, "distillation": "head"},
                          "position of the class token: zeros"),
    "distilled, no positions": ({"position_embedding": "none", "class_token_position": None, "distillation": "head"},
                                "positions: the table of 'none'"),
    "no patch_bias": ({"patch_bias": False}, "patch_bias: zeros"),
    "no head_bias": ({"head_bias": False}, "head_bias: zeros"),
    "distilled, no head_bias": ({"head_bias": False, "distillation": "head"}, "head_bias: zeros"),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "head_dim": ({"head_dim": 5}, "head_dim 5"),
    "representation": ({"representation": 7}, "representation 7"),
    "patch_norms": ({"patch_norms": True}, "patch_norms true"),
    "cls_gap": ({"pooling": "cls_gap"}, "pooling cls_gap"),
    "first": ({"pooling": "first", **NO_TOKEN}, "pooling first"),
    "patch_bias under pre_norm": ({"pre_norm": True}, "patch_bias true"),
    "token without a head": ({"distillation": "token"}, "distillation token"),
    "registers and distillation": ({"distillation": "head", "registers": 2}, "registers 2"),
    "gated and distilled": ({"distillation": "head", "mlp": "swiglu"}, "mlp swiglu"),
    "gated and map": ({"pooling": "map", "mlp": "swiglu"}, "pooling map"),
    "epsilon": ({"norm_epsilon": 1e-12}, "norm_epsilon 1e-12 (it has 1e-06 or 1e-05); --allow-lossy"),
    "epsilon, gated": ({"norm_epsilon": 1e-5, "mlp": "swiglu"}, "norm_epsilon 1e-05"),
    "stem": ({"stem_layers": (2, 2), "patch_size": 8, "image_size": 16}, "stem_layers (2, 2)"),
}
# fmt: on


def ours_of(fields: dict[str, Any]) -> Checkpoint:
    """Random float32 values, which timm's model keeps whole, and not one field that is a default."""
    config = SMALL.replace(**{**TIMMS, **fields})
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(config, 3).items()}
    for name in arrays.keys() & {"pos_embed", "cls_token"}:
        arrays[name] = (arrays[name] * 256).round() / 256  # so that their sum is exact
    seen = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)} if config.channels == 3 else {}
    preprocessing = Preprocessing(
        image_size=config.image_size,
        channels=config.channels,
        interpolation="bilinear",
        resize="squash",
        crop_fraction=0.9,
        **seen,
    )
    labels = tuple("abcde") if config.num_classes else None
    return Checkpoint.of(CheckpointConfig(model=config, preprocessing=preprocessing, labels=labels), arrays)


def opened_by_timm(read: Checkpoint, folder: Path) -> tuple[VisionTransformer, list[str]]:
    notes = save_checkpoint(folder, read, format="timm")
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), notes


@pytest.mark.parametrize("name", WRITTEN)
def test_written_as_it_is(name: str, tmp_path: Path) -> None:
    mine = ours_of(WRITTEN[name])
    theirs, notes = opened_by_timm(mine, tmp_path)
    assert not notes
    found = fields_of(theirs)
    assert {field: getattr(mine.config.model, field) for field in found} == found
    x_BCHW = images(mine)
    assert distance(ours(mine, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND
    assert_same_checkpoint(open_checkpoint(tmp_path), mine)


@pytest.mark.parametrize("name", WIDENED)
def test_written_with_what_changes_nothing(name: str, tmp_path: Path) -> None:
    """The table of a formula is rounded to float32, the file's type: 2**-24 of each, which the model carries on."""
    mine = ours_of(WIDENED[name][0])
    theirs, notes = opened_by_timm(mine, tmp_path)
    assert any(WIDENED[name][1] in note for note in notes), notes
    x_BCHW = images(mine)
    bound = parity.FLOAT32_BOUND if "sincos" in name else parity.FLOAT64_BOUND
    assert distance(ours(mine, x_BCHW), outputs(theirs, x_BCHW)) <= bound
    again = open_checkpoint(tmp_path)
    assert distance(ours(again, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND
    assert fields_of(theirs).items() <= {**again.config.model.model_dump()}.items()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    fields, reason = REFUSED[name]
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        save_checkpoint(tmp_path / "out", ours_of(fields), format="timm")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_preprocessing_and_labels_as_timm_sees_them(tmp_path: Path) -> None:
    mine = ours_of({})
    theirs, _ = opened_by_timm(mine, tmp_path)
    data = timm.data.resolve_model_data_config(theirs)
    assert data == {
        "input_size": (3, 8, 12),
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.9,
        "crop_mode": "squash",
    }
    assert theirs.pretrained_cfg["label_names"] == list("abcde")


@pytest.mark.parametrize("extension", [".safetensors", ".pth"])
def test_files(extension: str, tmp_path: Path) -> None:
    """timm's own loader takes them."""
    mine, file = ours_of(CLIP), tmp_path / f"model{extension}"
    notes = save_checkpoint(file, mine.with_config(mine.config.replace(labels=tuple("vwxyz"))), format="timm")
    assert "a state dict does not contain preprocessing or labels" in notes
    theirs = timm.create_model("vit_base_patch16_clip_quickgelu_224", **OBLONG, checkpoint_path=str(file))
    x_BCHW = images(mine)
    assert distance(ours(mine, x_BCHW), outputs(theirs.eval(), x_BCHW)) <= parity.FLOAT64_BOUND
    told = {"image_size": (8, 12), "heads": 3, "norm_epsilon": 1e-5, "activation": "quick_gelu"}
    again = open_checkpoint(file, fields=told)
    assert again.config.model == mine.config.model
    assert all(np.array_equal(again.arrays[name], mine.arrays[name]) for name in mine.arrays)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("nested", [None, "state_dict", "state_dict_ema"])
def test_state_dicts_of_trainers(prefix: str, nested: str | None, tmp_path: Path) -> None:
    theirs = built("token", img_size=12)
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    if prefix == "module." and nested:
        state["n_averaged"] = torch.tensor(7)
    torch.save({nested: state, "epoch": 3, "arch": "vit"} if nested else state, tmp_path / "file.pth")
    read = open_checkpoint(tmp_path / "file.pth", fields={"heads": 3})
    assert read.config.provenance.source_format == "timm"
    assert any("left out: n_averaged" in note for note in read.notes) == ("n_averaged" in state)
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def test_what_names_do_not_tell_is_assumed(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({n: t.numpy() for n, t in built("CLIP", img_size=12, num_classes=0).state_dict().items()}, file)
    read = open_checkpoint(file)
    assert assumed(read) == {
        "image_size": (12, 12),
        "heads": 1,
        "pooling": "cls",
        "activation": "gelu",
        "norm_epsilon": 1e-6,
        "position_resampling": "bicubic_antialias",
        "branch_norm": "before",
    }
    assert other_notes(read) == ()
    why = {one.field: str(one) for one in read.assumptions}
    for field in ("activation", "norm_epsilon"):
        assert "this looks like CLIP: OpenAI's have 1e-5 and quick_gelu, OpenCLIP's 1e-5 and gelu" in why[field]
    assert why["position_resampling"].endswith("--from meta for DINO, DINOv2, MAE, DeiT")
    said = open_checkpoint(file, fields={"norm_epsilon": 1e-5, "activation": "quick_gelu", "heads": 3})
    assert assumed(said).keys() == {"image_size", "pooling", "position_resampling", "branch_norm"}


# Stems: timm's weights with Google's epsilons, which are those of the files they come from.


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("vit_tiny_r_s16_p8_224", 32),
        pytest.param("vit_small_r26_s32_224", 32, marks=pytest.mark.slow),
        pytest.param("vit_base_r50_s16_224", 32, marks=pytest.mark.slow),
    ],
)
def test_hybrids(architecture: str, size: int, tmp_path: Path) -> None:
    theirs = randomised(timm.create_model(architecture, img_size=(size, 2 * size), **TINY))
    read = open_checkpoint(saved(theirs, tmp_path / "theirs"))
    assert any("epsilon" in note for note in read.notes)
    x_BCHW = images(read)
    notes = save_checkpoint(tmp_path / "ours", read, format="timm")
    assert [note[:5] for note in notes] == ["stem:"]
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    expected = outputs(theirs, x_BCHW)
    assert np.array_equal(outputs(again, x_BCHW), expected)
    assert_same_checkpoint(open_checkpoint(tmp_path / "ours"), read)
    logits = ours(read, x_BCHW)
    assert not np.array_equal(logits, expected)
    assert distance(logits, outputs(with_googles_epsilons(theirs), x_BCHW)) <= parity.FLOAT64_BOUND
