"""Refuses arrays that may belong to another timm architecture with the same names and shapes as a VisionTransformer.

Only the architecture's name (in a folder's config.json, or as train.py's `arch`) shows that the Perception Encoder
rotates queries and keys, that *_rpn models have norms after the branches, or that pooling includes registers.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.formats.interface import Fields, Source
from vit_core.checkpoints.formats.timm.eva import eva_mark
from vit_core.checkpoints.formats.timm.relative import has_relative_bias, with_canonical_names
from vit_core.checkpoints.formats.timm.rotary import IN_TIMM
from vit_core.errors import InputError

_ATTENTION = {
    "lambda_q1": "differential attention (attn_layer 'diff', vit_dwee_*, vit_dlittle_*)",
    "gate.weight": "attention with a gate (attn_gated)",
}
"""Part of a name in the first block -> the attention that has it, which ViTConfig cannot express."""


def check_parts(names: Mapping[str, object], where: object) -> None:
    """Raises InputError for arrays of parts that ViTConfig cannot express and timm's classes offer as arguments."""
    parts = [said for part, said in _ATTENTION.items() if any(f"blocks.0.{at}{part}" in names for at in ("", "attn."))]
    if {"norm.weight", "fc_norm.weight"} <= names.keys():
        parts.append("two last norms, before the pooling and after it (norm, fc_norm)")
    if {"dist_token", "reg_token"} <= names.keys():
        parts.append("registers of a distilled model, which timm leaves out of its computation (reg_token)")
    if parts:
        raise InputError(f"{where}: has {parts[0]}, which ViTConfig cannot express")


def check_lookalikes(source: Source, config: Mapping[str, Any]) -> None:
    """Raises InputError for arrays that a published architecture of another kind has too, unless the file states the
    architecture."""
    names = with_canonical_names(source.arrays)
    if "architecture" in config or eva_mark(names) or has_relative_bias(names):
        return
    pooled, class_token = "attn_pool.latent" in names, "cls_token" in names
    if pooled and "norm_pre.weight" in names:
        raise InputError(
            f"{source.path}: a norm before the blocks with attention pooling is that of the Perception Encoder "
            "(vit_pe_core_*), which computes other outputs from the same arrays; use --from timm --set rope=pe for it, "
            "only --from timm if it is a plain VisionTransformer"
        )
    elif pooled and "reg_token" in names and "blocks.0.ls1.gamma" in names and not class_token:
        other = "registers with attention pooling and LayerScale are those of test_vit3, which pools registers too and"
    elif (
        not class_token
        and "fc_norm.weight" in names
        and "blocks.0.attn.qkv.bias" not in names
        and "blocks.0.ls1.gamma" not in names
    ):
        other = "the mean without a bias of queries, keys and values is that of vit_base_patch16_rpn_224, which"
    else:
        return
    raise InputError(
        f"{source.path}: {other} computes other outputs from the same arrays; use --from timm if it is a plain "
        "VisionTransformer"
    )


def check_last_norm(names: Mapping[str, object], known: Fields, where: object) -> None:
    """Raises InputError for a norm before the blocks and none after them, as in two kinds of the Perception Encoder,
    unless `final_norm` is known."""
    if "final_norm" in known or "norm_pre.weight" not in names or {"norm.weight", "fc_norm.weight"} & names.keys():
        return
    raise InputError(
        f"{where}: a norm before the blocks and none after them is that of the Perception Encoder (vit_pe_lang_*, "
        "vit_pe_spatial_*); use --set rope=pe --set final_norm=none for it"
    )


def check_rotation(shapes: Mapping[str, tuple[int, ...]], known: Fields, where: object) -> None:
    """Raises InputError for names of timm's Eva class if its rotary positions are not known. EVA-02, DINOv3, PE,
    rope-vit and EVA, which has no rotary positions, have the same names."""
    mark = eva_mark(shapes)
    if mark is None or "rope" in known or has_relative_bias(shapes):
        return
    rotations = [_likely_rotation(shapes), *IN_TIMM, "none"]
    likely, *others = dict.fromkeys(rotations)
    raise InputError(
        f"{where}: {mark} is a name of timm's Eva class, and no array shows its rotary positions; use --set "
        f"rope={likely} (most likely, by the names), {', '.join(others[:-1])} or {others[-1]}"
    )


def _likely_rotation(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "rope.freqs" in shapes:
        return "mixed"
    if "norm_pre.weight" in shapes:
        return "pe"
    if "pos_embed" not in shapes:
        return "dinov3" if "reg_token" in shapes else "axial"
    if "blocks.0.attn.q_norm.weight" in shapes and "blocks.0.norm1.bias" not in shapes:
        return "vit5"
    first, second = (shapes.get(f"blocks.0.mlp.fc{i}.weight", (0, 0)) for i in (1, 2))
    gated = len(first) == len(second) == 2 and first[0] == 2 * second[1] > 0
    gated |= "blocks.0.mlp.fc1_g.weight" in shapes or "blocks.0.mlp.norm.weight" in shapes
    return "eva02" if gated else "none"
