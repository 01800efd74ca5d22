"""Whole files of DINO, DINOv2, MAE and DeiT (`meta_layouts.py`): recognized, read to timm's outputs, and resampled by
each project's own arithmetic; and what is refused. The bound is parity.FLOAT64_BOUND."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.meta_layouts import (
    HEAD,
    HEADS,
    TINY,
    State,
    backbone,
    dinov2,
    filled,
    in_file,
    layout,
    prefixed,
    unchunked,
)
from parity_tests.formats.torch_models import distance, images, ours, outputs
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.errors import InputError

# Positions at another resolution, by each project's own arithmetic.


def with_offset(grid_1DHW: Tensor, size: tuple[int, int]) -> Tensor:
    """DINO and DINOv2 without registers: by factors that are a tenth of a patch too large."""
    side = int(math.sqrt(grid_1DHW.shape[2] * grid_1DHW.shape[3]))
    factors = tuple((n + 0.1) / side for n in size)
    return nn.functional.interpolate(grid_1DHW, scale_factor=factors, mode="bicubic")


def antialiased(grid_1DHW: Tensor, size: tuple[int, int]) -> Tensor:
    """DINOv2 with registers."""
    return nn.functional.interpolate(grid_1DHW, size=size, mode="bicubic", antialias=True)


def plain(grid_1DHW: Tensor, size: tuple[int, int]) -> Tensor:
    """MAE and DeiT, before fine-tuning."""
    return nn.functional.interpolate(grid_1DHW, size=size, mode="bicubic", align_corners=False)


MAE_DECODER = {
    "mask_token": (1, 1, 16),
    "decoder_pos_embed": (1, 10, 16),
    "decoder_embed.weight": (16, 24),
    "decoder_blocks.0.norm1.weight": (16,),
    "decoder_norm.weight": (16,),
    "decoder_pred.bias": (48,),
}
DINO_HEAD = {"head.mlp.0.weight": (8, 24), "head.last_layer.weight_g": (6, 1), "head.last_layer.weight_v": (6, 8)}


def deit3() -> State:
    scales = {f"blocks.{i}.gamma_{j}": (24,) for i in (0, 1) for j in (1, 2)}
    return backbone(**HEAD, **scales, pos_embed=(1, 9, 24))


def finetuned_mae() -> State:
    state = backbone(**HEAD, **{"fc_norm.weight": (24,), "fc_norm.bias": (24,)})
    return {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}


DECODER = "decoder_pos_embed, decoder_embed.weight, decoder_blocks.0.norm1.weight, decoder_norm.weight"
# name: what is saved; timm's model of it; the format asked for, if it has to be; the resampling; what is left out
FILES: dict[str, tuple[Any, dict[str, Any], str | None, Any, str]] = {
    "DINO, backbone": (backbone, {}, "meta", with_offset, ""),
    "DINO, teacher and student": (
        lambda: {
            "teacher": prefixed("backbone.", backbone()) | filled(DINO_HEAD),
            "student": prefixed("module.backbone.", filled(layout(24, 2, 40, 4, 10))) | filled(DINO_HEAD),
            "epoch": 3,
            "args": Namespace(arch="vit_small"),
        },
        {},
        None,
        with_offset,
        "epoch, args, head",
    ),
    "DINO, student alone": (
        lambda: {"student": prefixed("module.backbone.", backbone()) | prefixed("module.", filled(DINO_HEAD))},
        {},
        None,
        with_offset,
        "head",
    ),
    "MAE, pretrained": (
        lambda: {"model": backbone(**MAE_DECODER), "args": Namespace(), "epoch": 1},
        {},
        None,
        plain,
        f"mask_token, {DECODER}, decoder_pred.bias and 2 more",
    ),
    "MAE, encoder": (lambda: {"model": backbone()}, {}, None, plain, ""),
    "MAE, fine-tuned": (
        lambda: {"model": finetuned_mae()},
        {"num_classes": 5, "global_pool": "avg"},
        None,
        plain,
        "",
    ),
    "DeiT": (lambda: {"model": backbone(**HEAD)}, {"num_classes": 5}, None, plain, ""),
    "DeiT, averaged": (
        lambda: {"model": backbone(**HEAD, odd=(3,)), "model_ema": backbone(**HEAD), "epoch": 3},
        {"num_classes": 5},
        None,
        plain,
        "epoch",
    ),
    "DeiT, distilled": (
        lambda: {
            "model": backbone(
                **HEAD,
                **{"head_dist.weight": (5, 24), "head_dist.bias": (5,), "dist_token": (1, 1, 24)},
                pos_embed=(1, 11, 24),
            )
        },
        {"num_classes": 5, "architecture": "deit_base_distilled_patch16_224"},
        None,
        plain,
        "",
    ),
    "DeiT III": (
        lambda: {"model": deit3()},
        {"num_classes": 5, "architecture": "deit3_base_patch16_224"},
        "meta",
        plain,
        "",
    ),
    "DeiT III, of its training script": (
        lambda: {"model": deit3(), "args": Namespace(model="deit_base_patch16_LS"), "epoch": 799},
        {"num_classes": 5, "architecture": "deit3_base_patch16_224"},
        None,
        plain,
        "args, epoch",
    ),
    "DINOv2": (dinov2, {"architecture": "vit_base_patch14_dinov2"}, None, with_offset, "mask_token"),
    "DINOv2, registers": (
        lambda: dinov2(registers=4),
        {"architecture": "vit_base_patch14_reg4_dinov2"},
        None,
        antialiased,
        "mask_token",
    ),
    "DINOv2, training": (
        lambda: {
            "model": {
                **prefixed("teacher.backbone.", dinov2(chunks=2)),
                **prefixed("student.backbone.", dinov2(chunks=2)),
                **prefixed("teacher.dino_head.", filled({"mlp.0.weight": (8, 24)})),
                "dino_loss.center": torch.zeros(1, 8),
            }
        },
        {"architecture": "vit_base_patch14_dinov2"},
        None,
        with_offset,
        "mask_token, teacher.dino_head, dino_loss",
    ),
    "DINOv2, teacher_checkpoint": (
        lambda: {"teacher": prefixed("backbone.", dinov2()) | filled({"dino_head.mlp.0.weight": (8, 24)})},
        {"architecture": "vit_base_patch14_dinov2"},
        None,
        with_offset,
        "mask_token, dino_head",
    ),
}


def inner(saved: Any) -> State:
    """The backbone (and heads) in what is saved, under timm's names but for DINOv2's."""
    for key in ("model_ema", "teacher", "model", "student"):
        saved = saved.get(key, saved)
    found: State = {}
    for prefix in ("", "backbone.", "module.backbone.", "teacher.backbone."):
        part = {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
        found = part if "cls_token" in part else found
    wrong = ("decoder_", "head.mlp", "head.last", "dino_", "student.", "teacher.", "backbone.", "ibot")
    found = {name: tensor for name, tensor in found.items() if not name.startswith(wrong)}
    if found.get("mask_token", torch.zeros(2)).ndim == 3:
        del found["mask_token"]
    return unchunked(found) if "blocks.0.0.norm1.weight" in found else found


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    """Recognized, read to the same outputs, and at a resolution that is no square too."""
    make, options, format, resampling, left = FILES[name]
    saved = make()
    file = in_file(tmp_path / "file.pth", saved)
    read = open_checkpoint(file, format=format, fields=HEADS)
    assert read.config.provenance.source_format == "meta"
    of = {plain: "bicubic", with_offset: "dinov2", antialiased: "bicubic_antialias"}[resampling]
    fields = {"image_size": (12, 12), "pooling": read.config.model.pooling, "position_resampling": of}
    assert assumed(read) == {**fields, "activation": "gelu", "norm_epsilon": 1e-6}
    assert [note for note in other_notes(read) if note.startswith("left out: ")] == [f"left out: {left}"] * bool(left)

    options = {**TINY, "mlp_ratio": 40 / 24, "num_classes": 0, **options}
    architecture = options.pop("architecture", "vit_base_patch16_224")
    theirs = timm.create_model(architecture, **options).eval()
    state = inner(saved)
    filter_fn = checkpoint_filter_fn
    theirs.load_state_dict(filter_fn(dict(state), theirs, adapt_layer_scale=True), strict=True)
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND

    size = (20, 8)
    theirs = theirs.double()
    prefix = theirs.pos_embed.shape[1] - 9
    pos_1ND = theirs.pos_embed.data
    grid_1DHW = pos_1ND[:, prefix:].reshape(1, 3, 3, 24).permute(0, 3, 1, 2)
    resampled_1DHW = resampling(grid_1DHW, (5, 2))
    assert resampled_1DHW.shape[2:] == (5, 2)
    theirs.set_input_size(img_size=size)
    theirs.pos_embed.data = torch.cat([pos_1ND[:, :prefix], resampled_1DHW.flatten(2).transpose(1, 2)], 1)
    x_BCHW = images(read, size)
    assert distance(ours(read, x_BCHW, image_size=size), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize(
    "state",
    [
        lambda: backbone(**HEAD),
        lambda: {"state_dict": backbone()},
        lambda: {"state_dict_ema": prefixed("module.", backbone(**HEAD))},
        lambda: {"model": backbone(**{"norm_pre.weight": (24,), "norm_pre.bias": (24,)})},
        lambda: {"model": backbone(reg_token=(1, 2, 24))},
    ],
)
def test_timms_files_are_not_metas(state: Any, tmp_path: Path) -> None:
    read = open_checkpoint(in_file(tmp_path / "file.pth", state()), fields=HEADS)
    assert read.config.provenance.source_format == "timm"


FAULTS: dict[str, tuple[Any, str]] = {
    "linear head of four blocks": (
        lambda: prefixed("backbone.", dinov2()) | filled({"linear_head.weight": (5, 120), "linear_head.bias": (5,)}),
        r"in 'backbone': linear_head.weight \[5, 120\] uses more than the last block.*expected 48 columns",
    ),
    "probe with a batch norm": (
        lambda: {"model": backbone(**{"head.0.running_mean": (24,), "head.1.weight": (5, 24)})},
        "arrays that meta's model does not use: head.0.running_mean, head.1.weight",
    ),
    "missing": (
        lambda: {n: t for n, t in dinov2().items() if n != "blocks.1.ls2.gamma"},
        r"missing blocks.1.ls2.gamma \[24\]",
    ),
    "misshapen": (
        lambda: dinov2() | {"blocks.1.ls2.gamma": torch.zeros(23)},
        r"blocks.1.ls2.gamma expected \[24\] found \[23\]",
    ),
    "misshapen, under Meta's own name": (
        lambda: dinov2(swiglu=True, chunks=2) | {"blocks.1.1.mlp.w3.bias": torch.zeros(23)},
        r"blocks.1.1.mlp.w3.bias expected \[24\] found \[23\]",
    ),
    "chunked and not": (
        lambda: dinov2() | dinov2(chunks=1),
        "two arrays are the same parameter",
    ),
    "renamed": (
        lambda: {n.replace("blocks.1.mlp.fc1", "blocks.1.mlp.fc_1"): t for n, t in dinov2().items()},
        "blocks.1.mlp.fc_1.weight",
    ),
    "DeiT III, or a rotary ViT": (
        lambda: {"model": deit3()},
        "those of DeiT III and of rotary ViTs .*use --from meta if it is DeiT III",
    ),
    "BEiT": (
        lambda: backbone(**{"mask_token": (1, 1, 24), "blocks.0.gamma_1": (24,), "blocks.0.attn.q_bias": (24,)}),
        "that meta's model does not use: blocks.0.attn.qkv.bias",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str, tmp_path: Path) -> None:
    make, message = FAULTS[name]
    with pytest.raises(InputError, match=message) as error:
        open_checkpoint(in_file(tmp_path / "file.pth", make()), fields=HEADS)
    assert "\n" not in str(error.value)
