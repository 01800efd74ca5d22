"""timm's VisionTransformer (and distilled DeiT): state dicts, and the folders timm.create_model("local-dir:…") opens.

Canonical names are timm's, so the rules are the parameter table itself. What has to be worked out is the config: from
the shapes, and from a folder's config.json where there is one (architecture, model_args, pretrained_cfg).
Lineage: huggingface/pytorch-image-models, timm/models/vision_transformer.py, vision_transformer_hybrid.py and deit.py.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoint import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.formats import timm_config
from vit_core.formats.lineage import Fields, Reading, Source, Writing, without_prefix
from vit_core.formats.rules import Rule, rule
from vit_core.formats.rules import write as written
from vit_core.formats.shapes import fields_of
from vit_core.formats.timm_config import ACTIVATIONS, STEMS
from vit_core.formats.widening import fixed, precise
from vit_core.parameters import parameters

NAME = "timm"
CONTAINERS = ("folder", ".safetensors", ".pth")
_STEM_NOTE = "stem: with Google's epsilons (1e-6 in its norms, where timm has 1e-5), with which it was trained"


def recognises(source: Source) -> bool:
    """By the names, under whatever prefix a trainer put before them."""
    names = unwrapped(source.arrays)
    return "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names


def unwrapped(arrays: LazyArrays) -> LazyArrays:
    """Without what DistributedDataParallel and torch.compile put before the names."""
    return without_prefix(arrays, "module.", "_orig_mod.", "module.")


def read(source: Source, fields: Fields) -> Reading:
    """From the shapes, and config.json where there is one."""
    arrays, where = unwrapped(source.arrays), source.path
    told, size = timm_config.told(source.config, where)
    found, prefix, notes = fields_of(arrays.shapes, {**told, **fields}, where, size)
    if size not in (None, found["image_size"]) and "image_size" not in fields:
        notes = (*notes, f"image_size: {found['image_size']}, as positions and whole patches say; config.json: {size}")
    if found["registers"] and prefix == found["class_token"] + found["registers"]:
        arrays, notes = _without_positions(arrays, prefix), (*notes, "positions of class and register tokens: added")
        found["class_token_position"] = False
    found |= {"activation": "gelu", "norm_epsilon": 1e-6, "position_resampling": "bicubic_antialias"}
    if "architecture" not in source.config:
        notes = (*notes, *_assumed(found, {**told, **fields}))
    if "stem_layers" in found:
        notes = (*notes, _STEM_NOTE)
    if found["layer_scale"] is None:
        told.pop("layer_scale", None)
    model = ViTConfig.parse({**found, **told, **fields}, str(where))
    timm_config.check_gate(source.config, model.mlp, where)
    if source.config and (model.mlp, model.pooling) == ("swiglu", "map"):
        raise InputError(f"{where}: timm's attention pooling has SiLU beside SwiGLU, which has no place in the schema")
    config, more = timm_config.checkpoint_config(model, source.config, where)
    return Reading(config, rules(model), arrays, left_out=r"^n_averaged$", notes=(*notes, *more))


def _assumed(found: Fields, fields: Fields) -> list[str]:
    """What a state dict alone does not tell."""
    notes = [] if "pooling" in fields else [f"pooling: {found['pooling']}, by the names; --set pooling=... for others"]
    if not {"activation", "norm_epsilon"} <= set(fields):
        more = ""
        if found["pre_norm"] and not found["patch_bias"]:
            more = " (this looks like CLIP: OpenAI's has norm_epsilon=1e-5 activation=quick_gelu, OpenCLIP's gelu)"
        notes.append(f"activation: gelu, norm_epsilon: 1e-6, timm's own; --set others{more}")
    if found["class_token"] and not found["num_classes"] and found["layer_scale"] is None:
        notes.append("lineage: timm's; Meta's DINO has the same names, and resamples positions its way (--from meta)")
    return notes


def _without_positions(arrays: LazyArrays, prefix: int) -> LazyArrays:
    """With positions of tokens before the patches added to the tokens, which changes no value but by rounding."""
    entries, pos, start = dict(arrays.entries), arrays.entries["pos_embed"], 0
    for name in ("cls_token", "reg_token"):
        if name in entries:
            token = entries[name]
            stop = start + token.shape[1]
            dtype = precise(token.dtype)
            entries[name] = token.then(partial(_add, pos, start, stop, dtype), token.shape, dtype)
            start = stop
    grid = (1, pos.shape[1] - prefix, pos.shape[2])
    entries["pos_embed"] = pos.then(lambda pos_1ND: pos_1ND[:, prefix:], grid, pos.dtype)
    return LazyArrays(entries)


def _add(pos: LazyArray, start: int, stop: int, dtype: str, token_1ND: np.ndarray) -> np.ndarray:
    return (token_1ND.astype("float64") + pos.read()[:, start:stop].astype("float64")).astype(dtype)


def rules(model: ViTConfig) -> list[Rule]:
    """Every name is the same."""
    return [rule(name, name) for name in parameters(model)]


def holds(model: ViTConfig) -> Mapping[str, tuple[Any, ...]]:
    """Most of the schema. Epsilon, a gated MLP, two tokens and stems are set by architectures, each for itself."""
    distilled, gated, stem = model.distillation != "none", model.mlp == "swiglu", model.stem_layers is not None
    special = distilled or gated or stem
    own: dict[str, tuple[Any, ...] | None] = {
        "distillation": ("none", "head"),
        "class_token": None,
        "class_token_position": (True,) if distilled else (False,) if model.registers else (True, False),
        "registers": (0,) if distilled else None,
        "pre_norm": None,
        "qk_norm": None,
        "mlp": ("mlp",) if distilled or stem else ("mlp", "swiglu"),
        "pooling": ("cls", "gap") if gated else ("cls", "gap", "map"),
        "final_norm": None,
        "layer_scale": None,
        "qkv_bias": None,
        "proj_bias": None,
        "patch_bias": (not model.pre_norm,),
        "stem_layers": (None,) if distilled or gated else (None, *STEMS),
        "stem_width": (64,) if stem else None,
        "norm_epsilon": (1e-6,) if special else (1e-6, 1e-5),
        "activation": ACTIVATIONS,
    }
    # Positions first: what is learned by then may have a row for the class token.
    positions = ("learned",) if distilled else ("learned", "none")
    return {"position_embedding": positions, **fixed(model, position_embedding=positions, **own)}


def write(checkpoint: Checkpoint) -> Writing:
    """The same names, and the config.json that builds the model for them."""
    model, notes = checkpoint.config.model, []
    if checkpoint.config.preprocessing is None:
        notes.append("preprocessing: unknown, where timm takes ImageNet's mean and std")
    elif checkpoint.config.preprocessing.exif_rotation:
        notes.append("preprocessing: timm turns no image as its EXIF data says")
    if model.position_embedding == "learned" and model.position_resampling != "bicubic_antialias":
        notes.append(f"position_resampling: timm's own, bicubic_antialias, not {model.position_resampling}")
    if model.stem_layers is not None:
        notes.append(_STEM_NOTE)
    texts = {"config.json": timm_config.text_of(checkpoint.config)}
    return Writing(written(rules(model), model, checkpoint.arrays), texts, tuple(notes))
