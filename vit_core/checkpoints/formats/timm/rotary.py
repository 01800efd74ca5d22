"""Converts timm's settings of rotary positions in its Eva class: by the architecture's name and by arguments.

No array shows them. An argument in config.json, even null, replaces the architecture's, as in timm.create_model.
Source: huggingface/pytorch-image-models, timm/models/eva.py and timm/layers/pos_embed_sincos.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from vit_core.errors import InputError
from vit_core.rope import PUBLISHED, Rope

_ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"^eva02_(?!enormous_)|_rope_reg\d+_gap_", {"ref_feat_shape": 16}),
    (r"^vit_pe_", {"rope_grid_indexing": "xy"}),
    (r"^vit_pe_\w+_(tiny|small|base|large)_", {"rope_grid_offset": 1.0}),
    (r"_rope_(mixed_|ape_)*\d+$", {"rope_grid_indexing": "xy", "rope_temperature": 100.0}),
    (r"_rope_mixed_", {"rope_type": "mixed", "rope_temperature": 10.0}),
    (
        r"_dinov3(_qkvb)?$|_lingbot$|_sapiens2$",
        {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True},
    ),
    (r"_sapiens2$", {"rope_rescale_coords": 2.0}),
)
"""Pattern of architecture names -> the arguments that they pass to timm's Eva."""
_WITHOUT = r"^eva_giant_|^eva02_enormous_"
"""Architectures of timm's Eva without rotary positions."""
_TYPES = ("cat", "mixed", "dinov3")
_AXES = {"ij": "yx", "xy": "xy"}
_TRAINING = {"shift": "rope_shift_coords", "jitter": "rope_jitter_coords", "rescale": "rope_rescale_coords"}


def is_eva(architecture: str) -> bool:
    """Whether an architecture of this name is one of timm's Eva class."""
    return any(re.search(pattern, architecture) for pattern in (_WITHOUT, *(one for one, _ in _ARCHITECTURES)))


def read_rope(architecture: str, args: Mapping[str, Any], where: object) -> dict[str, Any] | None:
    """The fields of Rope for an architecture's name ("" if unknown) and arguments; None if there are no rotary
    positions.

    Raises InputError for a kind of rotation that Rope cannot express.
    """
    named: dict[str, Any] = {}
    for pattern, own in _ARCHITECTURES:
        named |= own if re.search(pattern, architecture) else {}
    if re.search("^vit_pe_", architecture) and (sizes := re.search(r"_patch(\d+)_(\d+)$", architecture)):
        named["ref_feat_shape"] = int(sizes[2]) // int(sizes[1])
    said = {"use_rot_pos_emb": bool(named), **named, **args}
    if not said["use_rot_pos_emb"]:
        return None
    kind, axes = said.get("rope_type", "cat"), said.get("rope_grid_indexing", "ij")
    for key, value, known in (("rope_type", kind, _TYPES), ("rope_grid_indexing", axes, tuple(_AXES))):
        if str(value) not in known:
            raise InputError(f"{where}: config.json: {key} {str(value)[:60]!r}, expected one of {', '.join(known)}")
    reference = said.get("ref_feat_shape") if kind == "cat" else None
    fields = {
        "frequencies": "mixed" if kind == "mixed" else "axial",
        "coordinates": "centered" if kind == "dinov3" else "grid",
        "offset": 0.0 if kind == "mixed" else said.get("rope_grid_offset", 0.0),
        "reference": (reference, reference) if isinstance(reference, int) else reference,
        "axes": _AXES[axes],
        "base": said.get("rope_temperature", 10_000.0),
        "pairs": "halves" if said.get("rope_rotate_half") else "neighbours",
    }
    return fields | {ours: said.get(key) for ours, key in _TRAINING.items()}


def rope_args(rope: Rope | None) -> dict[str, Any]:
    """The arguments of timm's Eva for rotary positions that it can compute (see `nearest`)."""
    if rope is None:
        return {"use_rot_pos_emb": False}
    kind = "dinov3" if rope.coordinates == "centered" else "mixed" if rope.frequencies == "mixed" else "cat"
    return {
        "use_rot_pos_emb": True,
        "rope_type": kind,
        "rope_grid_offset": rope.offset,
        "rope_grid_indexing": next(theirs for theirs, ours in _AXES.items() if ours == rope.axes),
        "rope_temperature": rope.base,
        "rope_rotate_half": rope.pairs == "halves",
        "ref_feat_shape": rope.reference,
        **{key: getattr(rope, ours) for ours, key in _TRAINING.items()},
    }


IN_TIMM = tuple(name for name, fields in PUBLISHED.items() if "register_base" not in fields)
"""Names of the published variants that timm has: all except ViT-5's."""


def nearest(rope: Rope) -> Rope:
    """The rotary positions that timm's Eva can compute: `rope`, with the fields that no argument can set replaced."""
    mixed = {"offset": 0.0, "reference": None} if rope.frequencies == "mixed" else {}
    return rope.replace(normalize="separate", periods="float64", register_base=None, **mixed)
