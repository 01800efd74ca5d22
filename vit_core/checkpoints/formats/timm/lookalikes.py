"""Architectures of timm whose arrays are named and shaped like those of a plain VisionTransformer's.

Without the architecture's name (a folder's config.json, train.py's `arch`) nothing else in a file shows that the
Perception Encoder rotates queries and keys, that *_rpn models norm after the branches, or that pooling takes registers.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.formats.interface import Source
from vit_core.errors import InputError


def check_lookalikes(source: Source, config: Mapping[str, Any]) -> None:
    """InputError for arrays that a published architecture of another kind has too, unless the file names its own."""
    if "architecture" in config:
        return
    names = source.arrays
    pooled, class_token = "attn_pool.latent" in names, "cls_token" in names
    if pooled and "norm_pre.weight" in names:
        other = "a norm before the blocks with attention pooling is that of the Perception Encoder (vit_pe_*), which"
    elif pooled and "reg_token" in names and "blocks.0.ls1.gamma" in names and not class_token:
        other = "registers with attention pooling and LayerScale are those of test_vit3, which pools the registers and"
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
