"""`vit formats`: small random models written in each format, opened by the library it belongs to, and read back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import vit_torch
from vit_core import conversion, formats, parity
from vit_core.arrays import LazyArrays
from vit_core.checkpoint import Checkpoint, CheckpointConfig, open_checkpoint
from vit_core.config import ViTConfig
from vit_core.containers import open_container
from vit_torch.references import reference

_NO_TOKEN: dict[str, Any] = {"class_token": False}
_GELU: dict[str, Any] = {"activation": "gelu"}
_CLIP: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "norm_epsilon": 1e-5}
_SIGLIP: dict[str, Any] = {"pooling": "map", **_NO_TOKEN}
_DINOV2: dict[str, Any] = {"layer_scale": 1.0, **_GELU}
_GATED: dict[str, Any] = {**_DINOV2, "mlp": "swiglu", "mlp_dim": 96, "registers": 4}
_LUCIDRAINS: dict[str, Any] = {"patch_norms": True, "qkv_bias": False, "norm_epsilon": 1e-5, **_GELU}

# fmt: off
EXAMPLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("vit", "class token", {}),
    ("vit", "registers, gated MLP, LayerScale", _GATED),
    ("timm", "class token", _GELU),
    ("timm", "mean, fc_norm", {"pooling": "gap", "final_norm": "after_pooling", **_GELU}),
    ("timm", "attention pooling (SigLIP)", _SIGLIP),
    ("timm", "registers, gated MLP, LayerScale (DINOv2)", {**_GATED, "class_token_position": False}),
    ("timm", "distilled (DeiT)", {"distillation": "head", **_GELU}),
    ("timm", "pre-norm, quick GELU (CLIP)", _CLIP),
    ("timm", "qk-norm, no class position", {"qk_norm": True, "class_token_position": False, **_GELU}),
    ("transformers", "ViT", _GELU),
    ("transformers", "ViTModel with pooler", {"representation": 128, "num_classes": 0, **_GELU}),
    ("transformers", "DeiT with teacher", {"distillation": "head", **_GELU}),
    ("transformers", "Dinov2", {"num_classes": 0, **_DINOV2}),
    ("transformers", "Dinov2WithRegisters, gated MLP", {"num_classes": 0, **_GATED, "mlp_dim": 344}),
    ("transformers", "SigLIP", {"num_classes": 0, **_SIGLIP}),
    ("transformers", "CLIP with projection", {**_CLIP, "head_bias": False}),
    ("torchvision", "class token", _GELU),
    ("google", "class token", {}),
    ("google", "mean", {"pooling": "gap", **_NO_TOKEN}),
    ("google", "representation layer", {"representation": 48}),
    ("google", "hybrid (R26)", {"stem_layers": (1, 1), "stem_width": 32, "image_size": 32, "patch_size": 16}),
    ("big_vision", "attention pooling", _SIGLIP),
    ("big_vision", "mean", {"pooling": "gap", **_NO_TOKEN}),
    ("big_vision", "class token, sin-cos positions", {"position_embedding": "sincos2d_big_vision"}),
    ("lucidrains", "class token", _LUCIDRAINS),
)
# fmt: on
READ_ONLY = {"meta": "DINO, DINOv2, MAE, DeiT .pth"}
"""Formats that nobody needs written: what is read, see parity_tests/formats."""


@dataclass(frozen=True)
class Proof:
    """What was seen of one model in one format."""

    format: str
    model: str
    same_bits: bool
    """Whether all arrays and the config are the same, bit for bit, when it is read back."""
    same_file: bool
    """Whether what was read, written again, gives the same arrays."""
    difference: conversion.Difference | None
    """From the outputs of the format's own library, in float64; none where no library has such a model."""

    @property
    def ok(self) -> bool:
        return self.same_bits and self.same_file and (self.difference is None or self.difference.ok)


def proofs(seed: int = 0) -> Iterator[Proof]:
    """One for each example, as it is made."""
    for format, what, fields in EXAMPLES:
        with TemporaryDirectory() as folder:
            yield _proof(format, what, _example(fields), Path(folder), seed)


def _example(fields: dict[str, Any]) -> ViTConfig:
    plain = {"image_size": 16, "patch_size": 4, "width": 128, "depth": 2, "heads": 2, "mlp_dim": 256, "num_classes": 5}
    return ViTConfig(**{**plain, **fields})


def _proof(format: str, what: str, model: ViTConfig, folder: Path, seed: int) -> Proof:
    arrays = LazyArrays.of(parity.randomized(model, seed)).as_type("float32")
    checkpoint = Checkpoint(Path("random"), CheckpointConfig(model=model), arrays)
    suffix = {"google": ".npz", "big_vision": ".npz", "torchvision": ".pth", "lucidrains": ".pth"}.get(format, "")
    first, second = folder / f"first{suffix}", folder / f"second{suffix}"
    formats.save_as(first, checkpoint, format)
    fields = conversion.different(model, open_checkpoint(first, format=format).config.model)
    found = open_checkpoint(first, format=format, fields=fields)
    formats.save_as(second, found, format)
    same_config = not conversion.different(model, found.config.model)
    return Proof(
        format,
        what,
        same_config and _same(found.arrays, checkpoint.arrays),
        _same(open_container(second).arrays, open_container(first).arrays),
        _against_library(first, format, checkpoint, seed),
    )


def _same(a: LazyArrays, b: LazyArrays) -> bool:
    return a.shapes == b.shapes and all(a[name].tobytes() == b[name].tobytes() for name in a)


def _against_library(path: Path, format: str, checkpoint: Checkpoint, seed: int) -> conversion.Difference | None:
    x_BHWC, _ = parity.probe(checkpoint.config.model, seed)
    theirs_BC = outputs_by_library(path, format, checkpoint.config.model, x_BHWC)
    if theirs_BC is None:
        return None
    ours_BC = vit_torch.predict(vit_torch.load(checkpoint, dtype="float64"), x_BHWC)
    return conversion.difference(format, theirs_BC, ours_BC)


def outputs_by_library(path: Path, format: str, model: ViTConfig, x_BHWC: np.ndarray) -> np.ndarray | None:
    """What the format's own library makes of images, in float64; none where it has no such model."""
    theirs = reference(path, format, model)
    return None if theirs is None else theirs(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).numpy()
