"""DINO, DINOv2, MAE and DeiT (III too) as Meta released them: read only, since nobody loads these files but to convert.

The names are timm's, on whose code these projects built, but for DINOv2's registers and gated MLP, its blocks in chunks
and DeiT III's LayerScale. All have LayerNorm's epsilon 1e-6 and the exact GELU; they differ in how they resample
positions. Lineage: facebookresearch/dino, dinov2, mae and deit.
"""

import re

from vit_core.arrays import LazyArrays
from vit_core.checkpoint import CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.formats.lineage import Fields, Reading, Source, without_prefix
from vit_core.formats.rules import rule
from vit_core.formats.shapes import fields_of
from vit_core.formats.timm import unwrapped
from vit_core.parameters import parameters

NAME = "meta"

_RENAMED = (
    (r"^blocks\.[0-9]+\.([0-9]+)\.", r"blocks.\1."),  # DINOv2's chunks; the second number counts on
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^register_tokens$", "reg_token"),
    (r"^linear_head\.", "head."),
)
_LEFT_OUT = (
    r"^mask_token$|^decoder_|^(teacher\.)?(head\.(mlp|last_layer)|dino_head|ibot_head)\."
    r"|^student\.|^(dino|ibot_patch)_loss\."
)
"""Mask tokens, MAE's decoder, projection heads, and in DINOv2's training the student beside the teacher."""
_SUPERVISED, _DISTILLED = ("model", "model_ema"), ("teacher", "student")
"""Where the training scripts of MAE and DeiT, and of DINO and DINOv2, put the weights; timm's have other names."""


_THEIRS = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token"}
_NOT_THEIRS = r"^norm_pre\.|^reg_token$|\.attn\.[qk]_norm\.|^attn_pool\."


def recognises(source: Source) -> bool:
    """By a name that only Meta's files have, or by where the weights were nested."""
    arrays = _backbone(source.arrays)
    if source.config or not set(arrays) >= _THEIRS or any(re.search(_NOT_THEIRS, name) for name in arrays):
        return False
    return _named(source) or _nested(source, *_SUPERVISED, *_DISTILLED)


def _named(source: Source) -> bool:
    arrays = _backbone(source.arrays)
    own = any(re.search(_LEFT_OUT, name) or _canonical(name) != name for name in arrays)
    return own or set(arrays) != set(unwrapped(source.arrays))


def read(source: Source, fields: Fields) -> Reading:
    """From the names and shapes."""
    arrays, where = _backbone(source.arrays), source.path
    names = [name for name in arrays if not re.search(_LEFT_OUT, name)]
    theirs = {_canonical(name): name for name in names}
    if len(theirs) < len(names):
        raise InputError(f"{where}: two arrays have one meaning; expected the names of one of Meta's projects")
    found, _, notes = fields_of({ours: arrays.shapes[name] for ours, name in theirs.items()}, fields, where)
    if "linear_head.weight" in arrays and found["pooling"] != "cls_gap":
        raise InputError(
            f"{where}: linear_head.weight {list(arrays.shapes['linear_head.weight'])} reads more than the last block, "
            f"which has no place in the schema; expected {2 * found['width']} columns (DINOv2's with layers=1)"
        )
    found |= {"activation": "gelu", "norm_epsilon": 1e-6, "position_resampling": _resampling(source, arrays)}
    model = ViTConfig.parse({**found, **fields}, str(where))
    named = [rule(ours, theirs.get(ours, ours)) for ours in parameters(model)]
    notes = (*notes, f"position_resampling: {model.position_resampling}, by the project that the names point to")
    if not _named(source):
        notes = (*notes, "lineage: Meta's, as it is nested; activation gelu, norm_epsilon 1e-6; --from timm for timm's")
    return Reading(CheckpointConfig(model=model), named, arrays, _LEFT_OUT, notes)


def _backbone(arrays: LazyArrays) -> LazyArrays:
    return without_prefix(unwrapped(arrays), "teacher.backbone.", "backbone.")


def _nested(source: Source, *keys: str) -> bool:
    return any(note.startswith(f"read '{key}'") for key in keys for note in source.notes)


def _resampling(source: Source, arrays: LazyArrays) -> str:
    """DINOv2 antialiases where it has registers; where not, it kept DINO's offset of 0.1. MAE and DeiT do neither."""
    if "register_tokens" in arrays:
        return "bicubic_antialias"
    dinov2 = len(arrays.shapes.get("mask_token", ())) == 2 or "linear_head.weight" in arrays
    supervised = "head.weight" in arrays or "fc_norm.weight" in arrays or _nested(source, *_SUPERVISED)
    mae = any(name.startswith("decoder_") for name in arrays)
    return "bicubic" if (supervised or mae) and not dinov2 else "dinov2"


def _canonical(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name
