"""Published architectures by the papers' names: `variant("B/16", image_size=224, num_classes=1000)`.

Rows as in "Scaling Vision Transformers" (arXiv:2106.04560, Table 2), with Ti and S from DeiT (arXiv:2012.12877),
So400m from arXiv:2305.13035 and e from PaLI (arXiv:2209.06794); mu is big_vision's smallest, for experiments.
"""

import re
from typing import Any

from vit_core.config import ViTConfig
from vit_core.errors import InputError, unknown_name

TIMM = r"vit_(tiny|small|medium|base|large|huge)(?:_patch([0-9]+)(_[0-9]+)?(\..+)?)?"
"""timm's names of plain architectures: vit_small_patch16_224.augreg_in1k."""
# fmt: off
VARIANTS: dict[str, dict[str, int]] = {
    "mu":     {"width":   32, "depth":  1, "mlp_dim":   128, "heads":  2},
    "Ti":     {"width":  192, "depth": 12, "mlp_dim":   768, "heads":  3},
    "S":      {"width":  384, "depth": 12, "mlp_dim":  1536, "heads":  6},
    "M":      {"width":  512, "depth": 12, "mlp_dim":  2048, "heads":  8},
    "B":      {"width":  768, "depth": 12, "mlp_dim":  3072, "heads": 12},
    "L":      {"width": 1024, "depth": 24, "mlp_dim":  4096, "heads": 16},
    "So400m": {"width": 1152, "depth": 27, "mlp_dim":  4304, "heads": 16},
    "H":      {"width": 1280, "depth": 32, "mlp_dim":  5120, "heads": 16},
    "g":      {"width": 1408, "depth": 40, "mlp_dim":  6144, "heads": 16},
    "G":      {"width": 1664, "depth": 48, "mlp_dim":  8192, "heads": 16},
    "e":      {"width": 1792, "depth": 56, "mlp_dim": 15360, "heads": 16},
}
_DINOV3: dict[str, Any] = {
    "rope": "dinov3", "position_embedding": "none", "registers": 4, "layer_scale": 1e-5, "key_bias": False,
    "activation": "gelu", "norm_epsilon": 1e-5,
}
_VIT5: dict[str, Any] = {
    "rope": "vit5", "registers": 4, "class_token_position": False, "layer_scale": 1e-4, "activation": "gelu",
    "norm": "rms_norm", "qk_norm": True, "qkv_bias": False,
}
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "dinov3": {
        "S":  {**_DINOV3, **VARIANTS["S"]},
        "S+": {**_DINOV3, **VARIANTS["S"], "mlp": "swiglu"},
        "B":  {**_DINOV3, **VARIANTS["B"]},
        "L":  {**_DINOV3, **VARIANTS["L"]},
        "H+": {**_DINOV3, **VARIANTS["H"], "mlp": "swiglu", "heads": 20},
        "7B": {**_DINOV3, "width": 4096, "depth": 40, "mlp_dim": 8192, "heads": 32, "mlp": "swiglu",
               "qkv_bias": False, "key_bias": True},
    },
    "vit5": {
        "S":  {**_VIT5, **VARIANTS["S"]},
        "B":  {**_VIT5, **VARIANTS["B"]},
        "L":  {**_VIT5, **VARIANTS["L"]},
        "XL": {**_VIT5, "width": 1152, "depth": 28, "mlp_dim": 4608, "heads": 16},
    },
}
"""Families with choices of their own -> size -> fields; "dinov3-B/16" is DINOv3's ViT-B (arXiv:2508.10104, table 3),
"vit5-B/16" ViT-5's (arXiv:2602.08071; the authors' code, github.com/wangf3014/ViT-5)."""
# fmt: on


def variant(spelled: str, image_size: int | tuple[int, int], num_classes: int, **fields: Any) -> ViTConfig:
    """The config of a published architecture, e.g. "B/16": a name of VARIANTS, a slash, the patch size; or one of
    FAMILIES, e.g. "dinov3-7B/16".

    `fields` set anything else (pooling="map", activation="gelu", ...). Raises InputError for an unknown variant.
    """
    name, slash, patch = spelled.partition("/")
    architecture = architecture_fields(name)
    if not (slash and re.fullmatch("[1-9][0-9]*", patch)):
        raise InputError(f"variant '{spelled}' does not name its patch size; write, for example, '{name}/16'")
    geometry = {"image_size": image_size, "patch_size": int(patch), "num_classes": num_classes}
    return ViTConfig(**{**architecture, **geometry, **fields})


def architecture_fields(name: str) -> dict[str, Any]:
    """The fields of ViTConfig that an architecture sets, by its name without the patch size: "B", "dinov3-7B". Raises
    InputError for an unknown one."""
    family, _, size = name.rpartition("-")
    if family in FAMILIES and size in FAMILIES[family]:
        return FAMILIES[family][size]
    if (timm := re.fullmatch(TIMM, name)) is not None:
        size = {"tiny": "Ti"}.get(timm[1], timm[1][0].upper())
        raise InputError(f"unknown variant '{name}'; timm's is called {size}/{timm[2] or 16} here")
    if name not in VARIANTS:
        sizes = [f"{family}-{size}" for family, rows in FAMILIES.items() for size in rows]
        raise InputError(f"{unknown_name('variant', name, [*VARIANTS, *sizes])}; with the patch size: B/16")
    return dict(VARIANTS[name])
