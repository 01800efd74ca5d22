"""timm's files: which are taken for timm's, what their names and configs tell, and what is wrong with some."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from timm.models.vision_transformer import VisionTransformer

from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.timm_models import built, fields_of, saved
from parity_tests.formats.torch_models import (
    distance,
    images,
    ours,
    outputs,
)
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.timm import lineage as timm_format
from vit_core.checkpoints.opening import read_source
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.preprocess import Preprocessing


def source_of(architecture: str, **options: Any) -> tuple[VisionTransformer, Source]:
    """A model without values, and what a folder of it would say without model_args."""
    with torch.device("meta"):
        model = timm.create_model(architecture, **options)
    entries = {
        name: LazyArray(tuple(tensor.shape), "float32", lambda: np.zeros(0))
        for name, tensor in model.state_dict().items()
    }
    size = list(model.pretrained_cfg["input_size"])
    config = {"architecture": architecture, "pretrained_cfg": {"input_size": size}}
    return model, Source(Path(architecture), LazyArrays(entries), config)


PUBLISHED = [
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_base_patch16_gap_224",
    "vit_giantopt_patch16_siglip_256",
    "vit_so400m_patch14_siglip_224",
    "vit_large_patch16_siglip_512",
    "vit_large_patch14_clip_quickgelu_336",
    "deit3_small_patch16_224",
    "deit_small_distilled_patch16_224",
    "vit_so150m2_patch16_reg1_gap_256",
    "vit_small_patch16_36x1_224",
    "test_vit2",
]


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_published_architectures_by_name(architecture: str) -> None:
    assert _by_name(architecture) == "read"


def _by_name(architecture: str) -> str:
    theirs, source = source_of(architecture)
    if not timm_format.FORMAT.recognizes(source):
        return "not recognized"
    try:
        found = read_source(timm_format.FORMAT, source, {}).config.model
    except InputError:
        return "refused"
    assert isinstance(theirs, VisionTransformer)
    assert not theirs.pool_include_prefix
    if found.stem_layers is not None:
        return "read"
    live, added = fields_of(theirs), theirs.num_reg_tokens and not theirs.no_embed_class
    whole = tuple(side // patch * patch for side, patch in zip(live["image_size"], live["patch_size"], strict=True))
    live |= {"image_size": whole, "layer_scale": found.layer_scale}
    live |= {"class_token_position": False} if added else {}
    assert live == {field: getattr(found, field) for field in live}
    return "read"


def test_other_lineages_are_not_taken(tmp_path: Path) -> None:
    save_file({"conv1.weight": np.zeros((2, 3, 4, 4), np.float32)}, tmp_path / "resnet.safetensors")
    with pytest.raises(InputError, match="no Vision Transformer with the names of vit, transformers, vit5, meta, timm"):
        open_checkpoint(tmp_path / "resnet.safetensors")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "renamed": ({"blocks.1.norm2.weight": None, "blocks.1.norm_2.weight": (24,)}, "blocks.1.norm_2.weight"),
    "missing": ({"blocks.1.norm2.weight": None}, r"missing blocks.1.norm2.weight \[24\]"),
    "misshapen": ({"blocks.1.norm2.weight": (23,)}, r"blocks.1.norm2.weight expected \[24\] found \[23\]"),
    "extra": ({"blocks.0.attn.rel_pos": (3,)}, "that timm's model does not use: blocks.0.attn.rel_pos"),
    "no norm": ({"norm.weight": None, "norm.bias": None}, r"missing norm.weight \[24\]"),
    "flat patches": ({"patch_embed.proj.weight": (24, 48)}, r"patch_embed.proj.weight has shape \[24, 48\]"),
    "empty": ({"patch_embed.proj.weight": (24, 3, 0, 4)}, "none of length 0"),
    "no square": ({"pos_embed": (1, 8, 24)}, "8 positions do not form a square grid; use --set image_size"),
    "deep": ({"blocks.9999.norm1.weight": (24,)}, "depth"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str, tmp_path: Path) -> None:
    changes, message = FAULTS[name]
    arrays = {n: t.numpy() for n, t in built("token", img_size=12).state_dict().items()}
    for array, shape in changes.items():
        arrays.pop(array, None)
        if shape is not None:
            arrays[array] = np.zeros(shape, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        open_checkpoint(tmp_path / "model.safetensors", fields={"heads": 3})
    assert "\n" not in str(error.value)


ARGS: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": "3"}, "heads"),
    ({"num_heads": -3}, "heads"),
    ({"num_heads": 5}, "does not divide"),
    ({"global_pool": "max"}, "global_pool 'max'"),
    ({"global_pool": {"a": 1}}, "global_pool"),
    ({"act_layer": "relu"}, "act_layer 'relu'"),
    ({"act_layer": ["gelu"]}, "act_layer"),
    ({"act_layer": "silu"}, "act_layer silu in an MLP without a gate cannot be expressed by ViTConfig"),
    ({"norm_layer": "batchnorm"}, "norm_layer 'batchnorm'"),
    ({"norm_layer": "rmsnorm"}, "norm_layer 'rmsnorm', whose epsilon is 1e-6, but the other norms are layer_norm"),
    ({"attn_layer": "diff"}, "attn_layer diff"),
    ({"use_rot_pos_emb": True, "rope_type": "mrope"}, "rope_type 'mrope', expected one of cat, mixed, dinov3"),
    ({"use_rot_pos_emb": True, "rope_grid_indexing": ["ij"]}, "rope_grid_indexing"),
    ({"use_rot_pos_emb": True, "rope_temperature": "hot"}, "base: expected a number"),
    ({"use_rot_pos_emb": True, "ref_feat_shape": [16]}, "rope: reference.1: missing"),
    ({"img_size": "large"}, "image size large"),
    ({"img_size": [8, -12]}, "image size"),
    ({"img_size": [[8], 12]}, "image size"),
    ({"init_values": "small"}, "layer_scale"),
    ({"drop_path_rate": 7}, "stochastic_depth"),
]
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_args": [1]}, "model_args is list"),
    ({"pretrained_cfg": "timm"}, "pretrained_cfg is str"),
    ({"model_args": None, "pretrained_cfg": {"input_size": [3, 2**70]}}, "image size"),
    (
        {"architecture": "vit_base_patch16_newrope_224"},
        "architecture vit_base_patch16_newrope_224 is unknown and may have rotary positions",
    ),
]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"model_args": args}, message) for args, message in ARGS] + CONFIGS,
    ids=lambda value: str(value)[:40],
)
def test_a_config_is_not_trusted(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = saved(built("DeiT III"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    args = fields.get("model_args")
    config |= {**fields, "model_args": config["model_args"] | args} if isinstance(args, dict) else fields
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_configs_of_early_hub_folders(tmp_path: Path) -> None:
    """One flat object, labels under that name; and a size that is not that of the weights."""
    theirs = built("token", img_size=12)
    saved(theirs, tmp_path)
    flat = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 5,
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "labels": list("vwxyz"),
    }
    (tmp_path / "config.json").write_text(json.dumps(flat))
    read = open_checkpoint(tmp_path, fields={"heads": 3})
    assert read.config.labels == tuple("vwxyz")
    assert read.config.preprocessing == Preprocessing(image_size=12, std=(0.25,) * 3, crop_fraction=0.9)
    assert assumed(read) == {"image_size": (12, 12)}
    note = "image_size: (12, 12), from the positions and whole patches; the file states (224, 224)"
    assert other_notes(read) == (note,)
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def test_a_gate_of_another_activation_is_refused(tmp_path: Path) -> None:
    """timm computes it, from the same arrays."""
    args = {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 3, "act_layer": "gelu"}
    theirs = timm.create_model("vit_giant_patch14_dinov2", **args)
    saved(theirs, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="act_layer gelu in an MLP with a gate cannot be expressed by ViTConfig"):
        open_checkpoint(tmp_path)
    config["model_args"]["act_layer"] = "silu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).config.model.mlp == "swiglu"


def with_pretrained_cfg(theirs: VisionTransformer, folder: Path, **fields: Any) -> Checkpoint:
    """A hub folder whose pretrained_cfg has these fields, opened."""
    saved(theirs, folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0, 0, 0], "std": [1, 1, 1], **fields}
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def test_padding_to_a_border(tmp_path: Path) -> None:
    read = with_pretrained_cfg(built("token"), tmp_path, crop_mode="border", crop_pct=0.9)
    assert read.config.preprocessing == Preprocessing(
        image_size=(8, 12), mean=(0, 0, 0), std=(1, 1, 1), resize="border", crop_fraction=0.9, crop_rounding="half_even"
    )
    assert read.notes == ()


ONLY_THEMSELVES: list[tuple[dict[str, Any], str]] = [
    ({"mean": "0.5"}, "left out: preprocessing (mean:"),
    ({"std": [1, 1, 0]}, "left out: preprocessing (std.2: expected more than 0"),
    ({"crop_pct": 1e999}, "left out: preprocessing (crop_fraction:"),
    ({"crop_mode": "corner"}, "left out: preprocessing (crop_mode corner cannot be expressed by Preprocessing)"),
    ({"label_names": [1, 2, 3, 4, 5]}, "left out: label_names, because they are not 5 names"),
    ({"label_names": ["a", "b"]}, "left out: label_names, because they are not 5 names"),
]


@pytest.mark.parametrize(("fields", "note"), ONLY_THEMSELVES, ids=lambda value: str(value)[:40])
def test_what_cannot_be_expressed_beside_the_weights_costs_only_itself(
    fields: dict[str, Any], note: str, tmp_path: Path
) -> None:
    """The model opens and computes the same; a note names the omitted arrays and the reason."""
    theirs = built("token")
    read = with_pretrained_cfg(theirs, tmp_path, **fields)
    assert (read.config.labels, len(read.notes)) == (None, 1)
    assert read.notes[0].startswith(note)
    assert "\n" not in read.notes[0]
    assert (read.config.preprocessing is None) == ("label_names" not in fields)
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def test_means_of_three_channels_for_one(tmp_path: Path) -> None:
    """Three equal values count as one; three others have no meaning for one channel, and cost only themselves."""
    theirs = built("one channel")
    equal = with_pretrained_cfg(theirs, tmp_path / "equal", mean=[0.5] * 3, std=[0.25] * 3)
    assert equal.config.preprocessing is not None
    assert (equal.config.preprocessing.mean, equal.config.preprocessing.std) == ((0.5,), (0.25,))
    assert equal.notes == ("pretrained_cfg: mean and std: three equal values, used as one value for one channel",)
    other = with_pretrained_cfg(theirs, tmp_path / "other", mean=[0.4, 0.5, 0.6])
    assert other.config.preprocessing is None
    assert other.notes == ("left out: preprocessing (mean has 3 values, expected one for each of 1 channels)",)
    x_BCHW = images(other)
    assert distance(ours(other, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def test_a_config_that_names_no_architecture_tells_nothing(tmp_path: Path) -> None:
    folder = saved(built("CLIP"), tmp_path)
    (folder / "config.json").write_text('{"num_classes": 5}')
    read = open_checkpoint(folder, fields={"image_size": (8, 12)})
    same_arrays = {"branch_norm"}
    assert (
        assumed(read).keys() == {"heads", "pooling", "activation", "norm_epsilon", "position_resampling"} | same_arrays
    )
    assert any("this looks like CLIP" in note for note in read.notes)


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    read = open_checkpoint(saved(built("token"), tmp_path), fields={"heads": 2, "activation": "quick_gelu"})
    assert (read.config.model.heads, read.config.model.activation) == (2, "quick_gelu")


def test_canonical_state_dicts_are_timms(tmp_path: Path) -> None:
    """What torch.save makes of the PyTorch twin, with fields that timm itself has not."""
    fields = {"registers": 2, "head_dim": 6, "pooling": "cls_gap", "representation": 7, "qk_norm": True}
    sizes = {"image_size": 12, "patch_size": 4, "width": 24, "depth": 2, "heads": 3, "mlp_dim": 36, "num_classes": 5}
    config = ViTConfig(**sizes, **fields, activation="gelu", position_resampling="bicubic_antialias")
    file = tmp_path / "model.safetensors"
    save_file(dict(checkpoint(config).arrays), file)
    read = open_checkpoint(file, fields={"pooling": "cls_gap"})
    assert read.config.model == config
    assert list(read.arrays) == list(parameters(config))
