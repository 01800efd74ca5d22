"""Files of timm's models with other arguments than their architectures': equal to timm's logits, or refused.

Whoever trains with timm changes arguments (`--model-kwargs`, `timm.create_model(name, ...)`), and the file states them:
a hub folder's config.json all of them, a checkpoint of train.py only those that were given.
"""

import importlib
import inspect
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from parity_tests.formats.test_timm_eva import outputs
from parity_tests.formats.torch_models import distance, images, ours, randomised
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.checkpoints.formats.timm import config_json
from vit_core.errors import InputError

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
NAFLEX = "naflexvit_base_patch16_"
READ: list[tuple[str, dict[str, Any]]] = [
    # The place of the last norm, or its absence, does not show the pooling if an argument set it.
    ("deit3_small_patch16_224", {"fc_norm": True}),
    ("vit_small_patch14_reg4_dinov2", {"fc_norm": True, "pool_include_prefix": True}),
    ("beit_base_patch16_224", {"use_fc_norm": False}),
    ("beit3_base_patch16_224", {"final_norm": False}),
    ("vit_relpos_base_patch16_clsgap_224", {"fc_norm": False}),
    ("eva02_base_patch16_clip_224", {"use_fc_norm": True}),
    ("eva02_tiny_patch14_224", {"use_fc_norm": False}),
    ("vit_small_patch16_dinov3", {"use_post_transformer_norm": False}),
    ("beitv2_base_patch16_224", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
    ("vit_base_patch16_siglip_gap_224", {"class_token": True}),
    # Another width keeps the architecture's heads.
    ("vit_base_patch16_224", {"embed_dim": 96, "num_heads": None}),
    ("naflexvit_so150m2_patch16_reg1_gap", {"embed_dim": 104, "num_heads": None}),
    # The patch projection of NaFlexVit is a matrix, whose axes only the arguments show.
    (f"{NAFLEX}gap", {"patch_size": (2, 8)}),
    (f"{NAFLEX}gap", {"patch_size": (4, 8), "in_chans": 1, "patchify_channels_last": False}),
    (f"{NAFLEX}map", {"in_chans": 12, "patch_size": 4}),
    (f"{NAFLEX}siglip", {"embed_proj_type": "conv", "in_chans": 4}),
    (f"{NAFLEX}map", {"rope_type": "axial", "rope_grid_indexing": "xy", "rope_ref_feat_shape": (4, 4)}),
    (f"{NAFLEX}gap", {"rope_type": "dinov3", "rope_rotate_half": True, "pos_embed": "none", "img_size": 32}),
    (f"{NAFLEX}siglip", {"rope_type": "mixed"}),
    (f"{NAFLEX}gap", {"attn_type": "eva", "swiglu_mlp": True}),
    (f"{NAFLEX}map", {"attn_type": "rope", "qkv_fused": False}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("aimv2_large_patch14_224", {"norm_layer": "rmsnorm"}, "epsilon is 1e-6, but the norm of the patches .* 1e-5"),
    ("deit_tiny_distilled_patch16_224", {"reg_tokens": 2}, "registers of a distilled model"),
    ("eva02_tiny_patch14_224", {"use_post_transformer_norm": True}, "two last norms"),
    ("vit_dpwee_patch16_reg1_gap_256", {}, "differential attention"),
    (f"{NAFLEX}map", {"attn_gated": True}, "attention with a gate"),
    (f"{NAFLEX}parfac_gap", {"pos_embed_grid_size": (3, 5)}, "positions of 3 rows and 5 columns"),
    (
        f"{NAFLEX}gap",
        {"pos_embed_interp_mode": "nearest"},
        "pos_embed_interp_mode nearest.* cannot be expressed",
    ),
]


def built(architecture: str, given: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A small model with random weights, and all its arguments."""
    size = {} if architecture.startswith("naflex") else {"img_size": 24}
    kwargs = {**SMALL, **size, **given}
    return randomised(timm.create_model(architecture, num_classes=5, **kwargs)), kwargs


def in_a_checkpoint(model: nn.Module, architecture: str, kwargs: dict[str, Any], folder: Path) -> Path:
    """What timm's train.py saves for `--model-kwargs` and no `--gp`."""
    args = Namespace(model=architecture, gp=None, num_classes=5, model_kwargs=kwargs)
    file = folder / "checkpoint.pth.tar"
    folder.mkdir()
    torch.save({"arch": architecture, "args": args, "epoch": 1, "state_dict": model.state_dict()}, file)
    return file


def in_a_hub_folder(model: nn.Module, architecture: str, kwargs: dict[str, Any], folder: Path) -> Path:
    save_for_hf(model, folder, model_args=kwargs)
    assert json.loads((folder / "config.json").read_text())["architecture"] == architecture
    return folder


FILES = {"train.py": in_a_checkpoint, "hub": in_a_hub_folder}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("architecture", "given"), READ, ids=str)
def test_arguments_are_read(architecture: str, given: dict[str, Any], file: str, tmp_path: Path) -> None:
    theirs, kwargs = built(architecture, given)
    read = open_checkpoint(FILES[file](theirs, architecture, kwargs, tmp_path / "file"))
    assert not read.assumptions
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def called_with(cls: type, *_: Any, **given: Any) -> SimpleNamespace:
    """A class and the arguments that an architecture passes to it."""
    return SimpleNamespace(cls=cls, given=given)


@pytest.mark.parametrize("module", ["vision_transformer", "deit", "eva", "beit", "vision_transformer_relpos"])
def test_what_names_imply_is_what_timm_sets(module: str) -> None:
    """For every architecture: the pooling, and the heads where the size in the name tells them."""
    source = importlib.import_module(f"timm.models.{module}")
    for name in timm.list_models(module=module):
        with patch.object(source, "build_model_with_cfg", called_with):
            created: Any = timm.create_model(name)
        arguments = created.given
        defaults = {key: one.default for key, one in inspect.signature(created.cls.__init__).parameters.items()}
        stated, _ = config_json.stated_fields({"architecture": name, "model_args": {"embed_dim": 1}}, name)
        assert stated.get("heads", arguments["num_heads"]) == arguments["num_heads"], name
        if "distilled" not in name:
            pooling = config_json.POOLING[arguments.get("global_pool", defaults["global_pool"])]
            assert config_json.pooling_by_name(name) == pooling, name


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("architecture", "given", "error"), REFUSED, ids=str)
def test_arguments_are_refused(architecture: str, given: dict[str, Any], error: str, file: str, tmp_path: Path) -> None:
    theirs, kwargs = built(architecture, given)
    path = FILES[file](theirs, architecture, kwargs, tmp_path / "file")
    with pytest.raises(InputError, match=error):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"patch_size": 0}, "args: patch_size '0', expected a whole number above 0"),
        ({"patch_size": [8]}, r"patch_size '\[8\]', expected a side, or height and width"),
        ({"in_chans": "3"}, "in_chans '3', expected a whole number above 0"),
        ({"rope_type": ["a"]}, "rope_type .*, expected one of none, axial, mixed, dinov3"),
    ],
    ids=str,
)
def test_invalid_arguments_are_named(argument: dict[str, Any], error: str, tmp_path: Path) -> None:
    theirs, kwargs = built(f"{NAFLEX}gap", {})
    path = in_a_checkpoint(theirs, f"{NAFLEX}gap", {**kwargs, **argument}, tmp_path / "file")
    with pytest.raises(InputError, match=error):
        open_checkpoint(path)


def test_a_named_naflex_has_the_patches_of_its_name(tmp_path: Path) -> None:
    theirs, _ = built(f"{NAFLEX}gap", {"patch_size": 16, "in_chans": 12})
    torch.save({"arch": f"{NAFLEX}gap", "state_dict": theirs.state_dict()}, file := tmp_path / "named.pth")
    model = open_checkpoint(file, fields={"heads": 3}).config.model
    assert (model.patch_size, model.channels) == ((16, 16), 12)


def test_patches_of_naflex_without_arguments_are_assumed(tmp_path: Path) -> None:
    theirs, _ = built(f"{NAFLEX}gap", {})
    torch.save(theirs.state_dict(), file := tmp_path / "bare.pth")
    read = open_checkpoint(file, fields={"heads": 3})
    assert [(one.field, one.value) for one in read.assumptions if one.field == "patch_size"] == [("patch_size", [8, 8])]
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


BOTH = (True, False)
BLOCKS: dict[str, tuple[Any, ...]] = {
    "qkv_bias": BOTH,
    "qk_norm": BOTH,
    "init_values": (None, 0.1),
    "norm_layer": ("layernorm", "rmsnorm"),
    "in_chans": (1, 4),
    "mlp_ratio": (2.0, 4.0),
}
PLAIN: dict[str, tuple[Any, ...]] = BLOCKS | {
    **dict.fromkeys(
        ["class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm", "pool_include_prefix", "proj_bias"], BOTH
    ),
    "reg_tokens": (0, 2),
    "global_pool": ("token", "avg", "map"),
    "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
    "scale_attn_norm": (True,),
    "scale_mlp_norm": (True,),
    "pos_embed": ("learn", "none"),
    "embed_norm_layer": ("layernorm",),
    "attn_layer": ("diff",),
    "img_size": (24, (16, 32)),
}
EVA: dict[str, tuple[Any, ...]] = {key: BLOCKS[key] for key in BLOCKS if key != "norm_layer"} | {
    **dict.fromkeys(
        [
            "swiglu_mlp",
            "scale_mlp",
            "scale_attn_inner",
            "class_token",
            "no_embed_class",
            "use_abs_pos_emb",
            "use_rot_pos_emb",
            "rope_rotate_half",
            "use_post_norm",
            "use_pre_transformer_norm",
            "use_post_transformer_norm",
            "use_fc_norm",
            "qkv_fused",
        ],
        BOTH,
    ),
    "attn_type": ("eva", "rope"),
    "num_reg_tokens": (0, 2),
    "rope_type": ("cat", "mixed", "dinov3"),
    "rope_grid_offset": (0.0, 1.0),
    "rope_grid_indexing": ("ij", "xy"),
    "rope_temperature": (100.0, 5000.0),
    "ref_feat_shape": (4, (2, 3)),
    "global_pool": ("token", "avg", "map"),
    "attn_pool_num_heads": (2,),
    "attn_pool_mlp_ratio": (2.0,),
    "attn_only_layer_scale": (True,),
    "num_kv_heads": (1,),
    "swiglu_align_to": (16,),
}
BEIT: dict[str, tuple[Any, ...]] = {
    key: BLOCKS[key] for key in ("qkv_bias", "init_values", "in_chans", "mlp_ratio")
} | {
    **dict.fromkeys(["swiglu_mlp", "scale_mlp", "use_rel_pos_bias", "use_fc_norm"], BOTH),
    "use_abs_pos_emb": (True,),
    "global_pool": ("token", "avg"),
}
PACKED: dict[str, tuple[Any, ...]] = BLOCKS | {
    **dict.fromkeys(["class_token", "final_norm", "fc_norm"], BOTH),
    "reg_tokens": (0, 2),
    "pos_embed": ("learned", "factorized", "none"),
    "pos_embed_grid_size": ((4, 4), (3, 5)),
    "pos_embed_interp_mode": ("bilinear",),
    "pos_embed_antialias": (False,),
    "rope_type": ("axial", "dinov3", "mixed"),
    "pre_norm": (True,),
    "global_pool": ("token", "avg", "map"),
    "pool_include_prefix": (True,),
    "embed_proj_type": ("conv",),
    "act_layer": ("gelu_tanh", "quick_gelu"),
    "attn_type": ("eva", "rope"),
    "swiglu_mlp": (True,),
    "attn_gated": (True,),
    "patchify_channels_last": (False,),
    "patch_size": ((2, 8), (4, 8)),
}
CLASSES: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "VisionTransformer": (
        "vit_small_patch16_224 vit_base_patch16_clip_quickgelu_224 deit3_small_patch16_224 vit_base_patch16_siglip_224 "
        "vit_base_patch16_siglip_gap_224 vit_small_patch14_reg4_dinov2 aimv2_large_patch14_224 beit3_base_patch16_224 "
        "vit_base_patch16_rpn_224 deit_tiny_distilled_patch16_224 vit_medium_patch16_reg4_gap_256 test_vit2 test_vit3",
        PLAIN,
    ),
    "Eva": (
        "eva02_tiny_patch14_224 eva_giant_patch14_224 vit_base_patch16_rope_reg1_gap_256 vit_small_patch16_dinov3 "
        "vit_pe_core_tiny_patch16_384 vit_pe_spatial_tiny_patch16_512 vit_base_patch16_rope_224 "
        "vit_small_patch16_rope_mixed_224 eva02_base_patch16_clip_224",
        EVA,
    ),
    "Beit": ("beit_base_patch16_224 beitv2_base_patch16_224", BEIT),
    "NaFlexVit": (f"{NAFLEX}gap {NAFLEX}map {NAFLEX}siglip {NAFLEX}par_gap {NAFLEX}parfac_gap", PACKED),
}
DRAWS = 60


@pytest.mark.parametrize("name", CLASSES)
def test_drawn_arguments_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Never misread: a file of arguments drawn at random opens with timm's logits, or not at all."""
    architectures, options = CLASSES[name]
    random, seen = Random(name), Counter[str]()
    for draw in range(DRAWS):
        share, architecture = random.choice((0.05, 0.1, 0.2)), random.choice(architectures.split())
        given = {key: random.choice(values) for key, values in options.items() if random.random() < share}
        if "pe_core" in architecture:  # its own 8 heads do not divide the width
            given.setdefault("attn_pool_num_heads", 4)
        try:
            theirs, kwargs = built(architecture, given)
            shape = (2, kwargs.get("in_chans", 3), 24, 24)
            outputs(theirs, torch.zeros(shape, dtype=torch.float64))
        except Exception:  # timm raises errors of many kinds for arguments that do not go together
            seen["invalid in timm"] += 1
            continue
        path = FILES[random.choice(list(FILES))](theirs, architecture, kwargs, tmp_path / str(draw))
        try:
            read = open_checkpoint(path)
        except InputError:
            seen["refused"] += 1
            continue
        x_BCHW = images(read)
        difference = distance(ours(read, x_BCHW), outputs(theirs, x_BCHW))
        assert difference <= parity.FLOAT64_BOUND, (architecture, given)
        seen["read"] += 1
    assert seen["read"] >= DRAWS / 3, seen
