"""The format of Meta's files: DINO, DINOv2, DINOv3, MAE, DeiT, DeiT III and I-JEPA.

The names are timm's, on whose code these projects are based, except for DINOv2's registers, gated MLP and chunks of
blocks, and DeiT III's LayerScale. All have LayerNorm's epsilon 1e-6 and the exact GELU. They differ in how they
resample positions. (DINOv3's files are read by meta_dinov3.) Source: facebookresearch/dino, dinov2, mae, deit and
ijepa.
"""

import re
from collections.abc import Mapping
from math import isqrt

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, CheckpointConfig
from vit_core.checkpoints.formats import meta_dinov3, meta_mae, meta_writer
from vit_core.checkpoints.formats.added_axes import with_all_axes
from vit_core.checkpoints.formats.example_models import DINOV2, DINOV3, GATED_DINOV2, GELU
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Fields, Format, Reading, Source, Writer
from vit_core.checkpoints.formats.linear_head import with_linear_head
from vit_core.checkpoints.formats.rules import rule
from vit_core.checkpoints.formats.shapes import fields_from_shapes
from vit_core.checkpoints.formats.timm import train_args
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_RENAMED = (
    (r"^blocks\.[0-9]+\.([0-9]+)\.", r"blocks.\1."),  # DINOv2's chunks; the second number counts all blocks
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^register_tokens$", "reg_token"),
    (r"^linear_head\.", "head."),
)
_LEFT_OUT = (
    r"^mask(ed_embed|_token)$|^decoder_|^(head\.(mlp|last_layer)|dino_head|ibot_head)\.|^(dino|ibot_patch)_loss\."
    r"|^fc\.(fc|bn)\d\."
)
"""Mask tokens (iBOT's is `masked_embed`), MAE's decoder, projection heads (MSN's is `fc`)."""
_OF_MOCO = r"|^head\.\d+\."
"""MoCo v3's projection head, a Sequential."""
_SUPERVISED = (("model",), ("model_ema",))
"""The keys under which the training scripts of MAE and DeiT store the weights; timm's script has other keys."""
_MOCO = ("base_encoder", "momentum_encoder")
_SELF_SUPERVISED = ("teacher", "student", "target_encoder", *_MOCO)
"""The keys or prefixes under which those of DINO, DINOv2, I-JEPA, MSN and MoCo v3 store them. (I-JEPA's also uses the
key "encoder", but not as a prefix.)"""
_MOCO_HEADS = 12
"""Attention heads of all MoCo v3 models, including its vit_small."""
_ALWAYS = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
_NEVER = r"relative_position|^norm_pre\.|^reg_token$|\.attn\.[qk]_norm\.|^attn_pool\.|^rope\.freqs$"


def recognizes_source(source: Source) -> bool:
    """Whether a name exists only in Meta's files, or the weights are under a key of Meta's scripts.

    Raises InputError for arrays that both DeiT III and rotary ViTs (naver-ai/rope-vit) have.
    """
    names = set(source.arrays)
    if source.config or not names >= _ALWAYS or any(re.search(_NEVER, name) for name in names):
        return False
    if meta_dinov3.PERIODS in names:
        return True
    if train_args.hub_config(source):  # a file of timm's train.py, which names the architecture
        return False
    recognized = _is_nested_by_them(source) or _has_own_names(source)
    if recognized and _may_be_rotary(source):
        if "pos_embed" not in names:  # DeiT III always has it: this is timm's Eva
            return False
        raise InputError(
            f"{source.path}: LayerScale as gamma_1 and positions of patches are those of DeiT III and of rotary ViTs "
            "(rope-vit), which compute other outputs from the same arrays; use --from meta if it is DeiT III, "
            "--from timm --set rope=axial if it is rope-vit"
        )
    return recognized


def _has_own_names(source: Source) -> bool:
    return any(re.search(_LEFT_OUT, name) or _canonical(name) != name for name in source.arrays)


def _may_be_rotary(source: Source) -> bool:
    """Whether the arrays may be rope-vit's, with a grid of any shape. iBOT's files look the same, but have a position
    for the class token and are under a key of self-supervised training."""
    shapes = source.arrays.shapes
    whole_bias = "blocks.0.attn.qkv.bias" in shapes and "blocks.0.attn.q_bias" not in shapes  # unlike BEiT's
    layer_scale = whole_bias and any(name.endswith(".gamma_1") for name in shapes)
    rows = (*shapes.get("pos_embed", ()), 0, 0)[1]
    of_ibot = isqrt(rows) ** 2 != rows and _is_nested(source, *_SELF_SUPERVISED)
    return layer_scale and not of_ibot and not _states_deit3(source)


def _states_deit3(source: Source) -> bool:
    """Whether `args`, which DeiT III's training script saves, name an architecture of DeiT III."""
    attributes = getattr(source.facts.get("args"), "attributes", source.facts.get("args"))
    name = attributes.get("model") if isinstance(attributes, Mapping) else None
    return isinstance(name, str) and name.startswith("deit_") and "_LS" in name and "rope" not in name


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the names and shapes. Raises InputError for a model that ViTConfig cannot
    express."""
    if meta_dinov3.PERIODS in source.arrays:
        return meta_dinov3.read_source(source, fields)
    where, of_moco = source.path, _is_nested(source, *_MOCO)
    left_out = _LEFT_OUT + _OF_MOCO * of_moco
    names = [name for name in source.arrays if not re.search(left_out, name)]
    renamed = {_canonical(name): name for name in names}
    if len(renamed) < len(names):
        raise InputError(f"{where}: two arrays are the same parameter; expected the names of one of Meta's projects")
    linear = _linear_head(source)
    ours = LazyArrays({ours: source.arrays.entries[name] for ours, name in renamed.items()})
    width = (ours.entries["patch_embed.proj.weight"].shape or (0,))[0] if "patch_embed.proj.weight" in ours else 0
    ours, notes, used = with_linear_head(with_all_axes(ours), source, width, "head")
    shapes = fields_from_shapes(ours.shapes, {"heads": _MOCO_HEADS, **fields} if of_moco else fields, where)
    found = shapes.fields
    if linear and found["pooling"] != "cls_gap":
        raise InputError(
            f"{where}: linear_head.weight {list(linear.shape)} uses more than the last "
            f"block, which ViTConfig cannot express; expected {2 * width} columns (DINOv2's with layers=1)"
        )
    resampling = _resampling(source)
    found |= {"activation": "gelu", "norm_epsilon": 1e-6, "position_resampling": resampling}
    model = ViTConfig.parse({**found, **fields}, str(where))
    left = {name: entry for name, entry in source.arrays.entries.items() if re.search(left_out, name)}
    arrays = LazyArrays({renamed.get(name, name): entry for name, entry in ours.entries.items()} | left)
    named = [rule(name, renamed.get(name, name)) for name in parameters(model)]
    assumed = (*shapes.assumptions, *_assumptions(source, model))
    assumed = tuple(one for one in assumed if one.field not in fields)
    decoder = meta_mae.read_decoder(source, arrays, model)
    config = CheckpointConfig(model=model)
    return Reading(config, named, arrays, left_out, tuple(notes), assumed, used=used, decoder=decoder)


def _assumptions(source: Source, model: ViTConfig) -> list[Assumption]:
    by_project = "as in the project that has these names"
    assumed = [
        *([Assumption("heads", model.heads, "as in MoCo v3's models")] if _is_nested(source, *_MOCO) else ()),
        Assumption("pooling", model.pooling, "by the names of the arrays", "--set pooling=gap or another"),
        Assumption("position_resampling", model.position_resampling, by_project),
    ]
    if _is_nested_by_them(source) and not _has_own_names(source):
        nested = "as in Meta's projects, which have this key of the weights"
        assumed += [
            Assumption("activation", model.activation, nested, "--from timm for timm's"),
            Assumption("norm_epsilon", model.norm_epsilon, nested, "--from timm for timm's"),
        ]
    else:
        assumed += [
            Assumption("activation", model.activation, "as in Meta's projects"),
            Assumption("norm_epsilon", model.norm_epsilon, "as in Meta's projects"),
        ]
    return assumed


def _is_nested_by_them(source: Source) -> bool:
    """Whether the weights are under a key of Meta's training scripts."""
    return _is_nested(source, *_SELF_SUPERVISED) or (not source.prefix and source.keys in (*_SUPERVISED, ("encoder",)))


def _is_nested(source: Source, *keys: str) -> bool:
    return any(part in keys for part in (*source.keys, *source.prefix))


def _linear_head(source: Source) -> LazyArray | None:
    """The weight of DINOv2's linear classifier, which is outside the backbone; None if there is none."""
    groups = (source.arrays.entries, source.beside.entries)
    return next((group["linear_head.weight"] for group in groups if "linear_head.weight" in group), None)


def _resampling(source: Source) -> str:
    """The method by which the project of a file resamples positions. DINOv2 antialiases with registers, and otherwise
    uses DINO's offset of 0.1. MAE and DeiT do neither."""
    arrays = source.arrays
    if _is_nested(source, *_MOCO):
        return "bicubic"
    if "register_tokens" in arrays:
        return "bicubic_antialias"
    dinov2 = len(arrays.shapes.get("mask_token", ())) == 2 or _linear_head(source) is not None
    supervised = "head.weight" in arrays or "fc_norm.weight" in arrays or source.keys in _SUPERVISED
    mae = any(name.startswith("decoder_") for name in arrays)
    if "cls_token" not in arrays and _is_nested(source, "encoder", "target_encoder"):
        return "bicubic"  # I-JEPA
    return "bicubic" if (supervised or mae) and not dinov2 else "dinov2"


def _canonical(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name


FORMAT = Format(
    "meta",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"patch_embed\.proj\.weight",),
    determined=FROM_ARRAYS | {"class_token_position"},
    writer=Writer((".pth",), meta_writer.allowed_values, meta_writer.write_checkpoint),
    examples={
        "DINO": {"num_classes": 0, **GELU},
        "DINOv2": {"num_classes": 0, **DINOV2},
        "DINOv2 with registers, gated MLP": {"num_classes": 0, **GATED_DINOV2},
        "DINOv2 with a linear head": {"pooling": "cls_gap", **DINOV2},
        "DINOv3": {**DINOV3, "rope": {"rescale": 2.0, "periods": "bfloat16"}, "registers": 4},
        "DINOv3, gated MLP": {
            **DINOV3,
            "rope": {"rescale": 2.0, "periods": "float32"},
            "mlp": "swiglu",
            "mlp_dim": 96,
            "registers": 4,
        },
    },
)
