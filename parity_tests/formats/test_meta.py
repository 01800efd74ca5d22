"""Files in the layout of DINO, DINOv2, MAE and DeiT, made here name by name from their code, against timm's models.

Nothing of Meta's is on an index, so the layouts are spelled out: what each project's modules call their parameters, and
what its scripts put around them. timm's VisionTransformer computes the same with its own loader for DINOv2's files
(checkpoint_filter_fn), and so does transformers' Dinov2. The bound is parity.FLOAT64_BOUND.
"""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from parity_tests.formats.torch_models import distance, hollow, images, in_jax, ours, outputs, randomised
from vit_core import formats, parity
from vit_core.checkpoint import open_checkpoint
from vit_core.errors import InputError

TINY: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
HEADS = {"heads": 3}
State = dict[str, Tensor]


def layout(
    width: int,
    depth: int,
    mlp_dim: int,
    patch: int,
    positions: int,
    *,
    registers: int = 0,
    swiglu: bool = False,
    scale: bool = False,
    chunks: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a backbone by Meta's code: DINO's and MAE's without the options, which are DINOv2's."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, positions, width)}
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for layer in range(depth):
        block = f"blocks.{layer // (depth // chunks)}.{layer}." if chunks else f"blocks.{layer}."
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if swiglu:
            linears |= {"mlp.w12": (2 * mlp_dim, width), "mlp.w3": (width, mlp_dim)}
        else:
            linears |= {"mlp.fc1": (mlp_dim, width), "mlp.fc2": (width, mlp_dim)}
        for name, shape in linears.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
        if scale:
            shapes |= {f"{block}{name}.gamma": (width,) for name in ("ls1", "ls2")}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def filled(shapes: dict[str, tuple[int, ...]]) -> State:
    """Random, as parity_tests.formats.torch_models does."""
    holder = nn.Module()
    for name, shape in shapes.items():
        holder.register_parameter(name.replace(".", "/"), nn.Parameter(torch.empty(shape)))
    randomised(holder)
    return {name.replace("/", "."): parameter.data for name, parameter in holder.named_parameters()}


def dinov2(**options: Any) -> State:
    """The released file: the backbone, and a mask token with two axes."""
    state = filled(layout(24, 2, 40, 4, 10, scale=True, **options))
    return {**state, "mask_token": torch.ones(1, 24)}


def unchunked(state: State) -> State:
    """Blocks counted once, as timm does."""
    return {".".join([*n.split(".")[:1], *n.split(".")[2:]]) if n[:7] == "blocks." else n: t for n, t in state.items()}


def timm_dinov2(state: State, **options: Any) -> VisionTransformer:
    """timm's model with timm's own loader for these files, strict."""
    architecture = "vit_giant_patch14_dinov2" if options.pop("swiglu", False) else "vit_base_patch14_dinov2"
    options = {**TINY, "mlp_ratio": 40 / 24, "num_classes": 0, **options}
    model = timm.create_model(architecture, **options)
    model.load_state_dict(checkpoint_filter_fn(dict(state), model), strict=True)
    return model.eval()


def in_file(path: Path, saved: object) -> Path:
    torch.save(saved, path)
    return path


DINOV2: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {"position_resampling": "dinov2"}),
    "registers": (
        {"registers": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"registers": 4, "position_resampling": "bicubic_antialias", "class_token_position": True},
    ),
    "SwiGLU": ({"swiglu": True}, {"swiglu": True, "mlp_ratio": 80 / 24}, {"mlp": "swiglu", "mlp_dim": 40}),
}


@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("name", DINOV2)
def test_dinov2(name: str, chunks: int, tmp_path: Path) -> None:
    options, theirs, expected = DINOV2[name]
    state = dinov2(**options, chunks=chunks)
    read = open_checkpoint(in_file(tmp_path / "dinov2.pth", state), fields=HEADS)
    assert read.config.provenance.source_format == "meta"
    assert {field: getattr(read.config.model, field) for field in expected} == expected
    assert "left out: mask_token" in read.notes
    x_BCHW = images(read)
    reference = outputs(timm_dinov2(unchunked(state) if chunks else state, **theirs), x_BCHW)
    assert distance(ours(read, x_BCHW), reference) <= parity.FLOAT64_BOUND
    assert distance(ours(read, x_BCHW, "float32"), reference) <= parity.FLOAT32_BOUND


@pytest.mark.parametrize("name", ["registers", "SwiGLU"])
def test_jax(name: str, tmp_path: Path) -> None:
    options, theirs, _ = DINOV2[name]
    state = dinov2(**options)
    read = open_checkpoint(in_file(tmp_path / "dinov2.pth", state), fields=HEADS)
    x_BCHW = images(read)
    assert distance(in_jax(read, x_BCHW), outputs(timm_dinov2(state, **theirs), x_BCHW)) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_against_transformers(registers: int, swiglu: bool, tmp_path: Path) -> None:
    """The class token and the mean of the patches, which its classifier reads."""
    from transformers import (
        Dinov2Config,
        Dinov2ForImageClassification,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersForImageClassification,
    )

    mlp_dim = (int(24 * 4 * 2 / 3) + 7) // 8 * 8 if swiglu else 96
    state = filled(layout(24, 2, mlp_dim, 4, 10, scale=True, registers=registers, swiglu=swiglu))
    head = filled({"linear_head.weight": (5, 48), "linear_head.bias": (5,)})
    classifier = {**{f"backbone.{name}": tensor for name, tensor in state.items()}, **head}
    classifier["backbone.mask_token"] = torch.ones(1, 24)
    read = open_checkpoint(in_file(tmp_path / "lc.pth", classifier), fields=HEADS)
    assert read.config.model.pooling == "cls_gap"

    more = {"num_register_tokens": registers} if registers else {}
    config = (Dinov2WithRegistersConfig if registers else Dinov2Config)(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        mlp_ratio=4,
        image_size=12,
        patch_size=4,
        use_swiglu_ffn=swiglu,
        num_labels=5,
        layer_norm_eps=1e-6,
        **more,
    )
    prefix = "dinov2_with_registers" if registers else "dinov2"
    file = _transformers_names({**state, **head, "mask_token": torch.ones(1, 24)}, prefix)
    config.save_pretrained(tmp_path / "hf")
    save_file({name: tensor.contiguous() for name, tensor in file.items()}, tmp_path / "hf" / "model.safetensors")
    kind = Dinov2WithRegistersForImageClassification if registers else Dinov2ForImageClassification
    model, info = kind.from_pretrained(tmp_path / "hf", dtype=torch.float64, output_loading_info=True)
    assert not any(info.values()), info

    x_BCHW = images(read)
    with torch.no_grad():
        logits = model.eval()(x_BCHW).logits.numpy()
    assert distance(ours(read, x_BCHW), logits) <= parity.FLOAT64_BOUND


def _transformers_names(state: State, prefix: str) -> State:
    """Of the files that transformers writes."""
    whole = {
        "cls_token": f"{prefix}.embeddings.cls_token",
        "pos_embed": f"{prefix}.embeddings.position_embeddings",
        "register_tokens": f"{prefix}.embeddings.register_tokens",
        "mask_token": f"{prefix}.embeddings.mask_token",
        "patch_embed.proj": f"{prefix}.embeddings.patch_embeddings.projection",
        "norm": f"{prefix}.layernorm",
        "linear_head": "classifier",
    }
    inside = {
        "attn.proj": "attention.output.dense",
        "ls1": "layer_scale1",
        "ls2": "layer_scale2",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
    }
    theirs: State = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".") if name not in whole else (name, "", "")
        leaf = leaf.replace("gamma", "lambda1")
        if stem in whole:
            theirs[whole[stem] + (f".{leaf}" if leaf else "")] = tensor
            continue
        _, layer, stem = stem.split(".", 2)
        block = f"{prefix}.encoder.layer.{layer}"
        if stem == "attn.qkv":
            for part, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[f"{block}.attention.attention.{part}.{leaf}"] = values
        else:
            theirs[f"{block}.{inside.get(stem, stem)}.{leaf}"] = tensor
    return theirs


@pytest.mark.parametrize(
    ("width", "depth", "mlp_dim", "heads", "options"),
    [
        (384, 12, 1536, 6, {}),
        (384, 12, 1536, 6, {"registers": 4}),
        (1536, 40, 4096, 24, {"swiglu": True}),
        (1536, 40, 4096, 24, {"swiglu": True, "registers": 4}),
    ],
    ids=["S/14", "S/14 registers", "g/14", "g/14 registers"],
)
def test_released_sizes(
    width: int, depth: int, mlp_dim: int, heads: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """dinov2_vits14 and the like at 518 pixels, no word of theirs missing or needed; their values are not read."""
    shapes = {**layout(width, depth, mlp_dim, 14, 37 * 37 + 1, scale=True, **options), "mask_token": (1, width)}
    model = open_checkpoint(hollow(tmp_path / "dinov2.safetensors", shapes)).config.model
    assert (model.image_size, model.patch_size, model.heads, model.depth) == ((518, 518), (14, 14), heads, depth)
    assert (model.mlp_dim, model.num_classes, model.activation, model.norm_epsilon) == (mlp_dim, 0, "gelu", 1e-6)


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


def backbone(**more: tuple[int, ...]) -> State:
    """DINO's, MAE's and DeiT's names."""
    return filled({**layout(24, 2, 40, 4, 10), **more})


HEAD = {"head.weight": (5, 24), "head.bias": (5,)}
MAE_DECODER = {
    "mask_token": (1, 1, 16),
    "decoder_pos_embed": (1, 10, 16),
    "decoder_embed.weight": (16, 24),
    "decoder_blocks.0.norm1.weight": (16,),
    "decoder_norm.weight": (16,),
    "decoder_pred.bias": (48,),
}
DINO_HEAD = {"head.mlp.0.weight": (8, 24), "head.last_layer.weight_g": (6, 1), "head.last_layer.weight_v": (6, 8)}


def finetuned_mae() -> State:
    state = backbone(**HEAD, **{"fc_norm.weight": (24,), "fc_norm.bias": (24,)})
    return {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


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
        "head.mlp.0.weight, head.last_layer.weight_g, head.last_layer.weight_v",
    ),
    "DINO, student alone": (
        lambda: {"student": prefixed("module.backbone.", backbone()) | prefixed("module.", filled(DINO_HEAD))},
        {},
        None,
        with_offset,
        "head.mlp.0.weight, head.last_layer.weight_g, head.last_layer.weight_v",
    ),
    "MAE, pretrained": (
        lambda: {"model": backbone(**MAE_DECODER), "args": Namespace(), "epoch": 1},
        {},
        None,
        plain,
        "mask_token, decoder_pos_embed",
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
        "",
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
        lambda: {
            "model": backbone(
                **HEAD,
                **{f"blocks.{i}.gamma_{j}": (24,) for i in (0, 1) for j in (1, 2)},
                pos_embed=(1, 9, 24),
            )
        },
        {"num_classes": 5, "architecture": "deit3_base_patch16_224"},
        None,
        plain,
        "",
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
        "mask_token",
    ),
    "DINOv2, teacher_checkpoint": (
        lambda: {"teacher": prefixed("backbone.", dinov2()) | filled({"dino_head.mlp.0.weight": (8, 24)})},
        {"architecture": "vit_base_patch14_dinov2"},
        None,
        with_offset,
        "mask_token, dino_head.mlp.0.weight",
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
    """Recognised, read to the same outputs, and at a resolution that is no square too."""
    make, options, format, resampling, left = FILES[name]
    saved = make()
    file = in_file(tmp_path / "file.pth", saved)
    read = open_checkpoint(file, format=format, fields=HEADS)
    assert read.config.provenance.source_format == "meta"
    assert any(note.startswith(f"left out: {left}") for note in read.notes) == bool(left)

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
        r"linear_head.weight \[5, 120\] reads more than the last block.*expected 48 columns",
    ),
    "probe with a batch norm": (
        lambda: {"model": backbone(**{"head.0.running_mean": (24,), "head.1.weight": (5, 24)})},
        "arrays with no place in meta's model as read: head.0.running_mean, head.1.weight",
    ),
    "missing": (
        lambda: {n: t for n, t in dinov2().items() if n != "blocks.1.ls2.gamma"},
        r"missing blocks.1.ls2.gamma \[24\]",
    ),
    "misshapen": (
        lambda: dinov2() | {"blocks.1.ls2.gamma": torch.zeros(23)},
        r"blocks.1.ls2.gamma expected \[24\] found \[23\]",
    ),
    "chunked and not": (
        lambda: dinov2() | dinov2(chunks=1),
        "two arrays have one meaning",
    ),
    "renamed": (
        lambda: {n.replace("blocks.1.mlp.fc1", "blocks.1.mlp.fc_1"): t for n, t in dinov2().items()},
        "blocks.1.mlp.fc_1.weight",
    ),
    "BEiT": (
        lambda: backbone(**{"mask_token": (1, 1, 24), "blocks.0.gamma_1": (24,), "blocks.0.attn.q_bias": (24,)}),
        "no place in meta's model as read: blocks.0.attn.q_bias",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str, tmp_path: Path) -> None:
    make, message = FAULTS[name]
    with pytest.raises(InputError, match=message) as error:
        open_checkpoint(in_file(tmp_path / "file.pth", make()), fields=HEADS)
    assert "\n" not in str(error.value)


def test_it_goes_on_to_timm(tmp_path: Path) -> None:
    """DINOv2 with registers, which timm holds with the class token's position added."""
    read = open_checkpoint(in_file(tmp_path / "dinov2.pth", dinov2(registers=4)), fields=HEADS)
    notes = formats.save_as(tmp_path / "timm", read, "timm")
    assert any("position_resampling" in note for note in notes) is False
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND
    assert np.array_equal(theirs.reg_token.detach().numpy(), read.arrays["reg_token"])
    with pytest.raises(InputError, match="unknown format to write"):
        formats.save_as(tmp_path / "meta", read, "meta")
