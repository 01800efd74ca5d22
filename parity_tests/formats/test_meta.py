"""DINOv2 in Meta's own layout (`meta_layouts.py`), against timm's model with timm's loader for such files and against
transformers' Dinov2. The bound is parity.FLOAT64_BOUND."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from parity_tests.formats.meta_layouts import HEADS, State, dinov2, filled, in_file, layout, timm_dinov2, unchunked
from parity_tests.formats.torch_models import distance, hollow, images, in_jax, ours, outputs
from vit_core import parity
from vit_core.checkpoints import open_checkpoint, save_checkpoint

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
    """The arrays under the names of the files that transformers writes."""
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


def test_it_goes_on_to_timm(tmp_path: Path) -> None:
    """DINOv2 with registers, which timm holds with the class token's position added."""
    read = open_checkpoint(in_file(tmp_path / "dinov2.pth", dinov2(registers=4)), fields=HEADS)
    notes = save_checkpoint(tmp_path / "timm", read, format="timm")
    assert any("position_resampling" in note for note in notes) is False
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND
    assert np.array_equal(theirs.reg_token.detach().numpy(), read.arrays["reg_token"])
