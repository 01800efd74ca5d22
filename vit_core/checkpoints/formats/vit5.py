"""Reads and writes ViT-5's .pth files as its authors released them (arXiv:2602.08071).

The names are those of DeiT III, on whose code it is based, with norms of queries and keys and, in every block, the
frequencies of two rotations: `attn.rope.freqs` for the patches, and `attn.rope_reg.freqs` for the registers, which have
their own square grid and come after the patches in that code. Source: wangf3014/ViT-5, models_vit5.py and rope.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.example_models import VIT5
from vit_core.checkpoints.formats.interface import (
    FROM_ARRAYS,
    Fields,
    Format,
    Reading,
    Source,
    Writer,
    Writing,
    axes_of,
    call,
    mlp_ratio,
    not_carried,
)
from vit_core.checkpoints.formats.rules import Rule, rule, write_by_rules
from vit_core.checkpoints.formats.shapes import fields_from_shapes
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.rope import PUBLISHED, Rope
from vit_core.rotations import frequencies

_PATCHES, _REGISTERS = "rope", "rope_reg"
_FREQUENCIES = r"^blocks\.\d+\.attn\.rope(_reg)?\.freqs$"
_RESAMPLING = "bicubic"
_SLACK = {"float32": 2.0**-22, "float64": 2.0**-22, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Type -> maximum relative difference between frequencies and the powers of a base. They were computed in float32, and
may have been converted."""


def recognizes_source(source: Source) -> bool:
    """Whether a block has fixed frequencies (one axis), and LayerScale, norms of queries or rotated registers under
    ViT-5's names. (rope-vit's learned frequencies have the same name and three axes. Other code uses this name for a
    rotation along one axis, with twice as many values for a head.)"""
    shapes = source.arrays.shapes
    own = ("blocks.0.gamma_1", "blocks.0.attn.q_norm.weight", _name(0, _REGISTERS))
    return len(shapes.get(_name(0, _PATCHES), ())) == 1 and any(name in shapes for name in own) and not source.config


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the names, the shapes, and the values of the frequencies. Raises InputError
    for a model that ViTConfig cannot express."""
    where, shapes = source.path, source.arrays.shapes
    width = axes_of(shapes, "patch_embed.proj.weight", 4, where)[0]
    bands = axes_of(shapes, _name(0, _PATCHES), 1, where)[0]
    if not bands or width % (4 * bands):
        raise InputError(
            f"{where}: {_name(0, _PATCHES)} has {bands} values, for heads of {4 * bands}, but {width} is not a "
            "multiple of it"
        )
    if fields.get("heads", width // (4 * bands)) != width // (4 * bands):
        raise InputError(
            f"{where}: {_name(0, _PATCHES)} has {bands} values, which are those of {width // (4 * bands)} heads in "
            f"ViT-5; heads {fields['heads']} does not fit them"
        )
    ours = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): shape for name, shape in shapes.items()}
    found = fields_from_shapes(ours, {"heads": width // (4 * bands), **fields}, where)
    if found.fields["qk_norm"] and found.fields["norm"] != "rms_norm":
        raise InputError(
            f"{where}: has RMSNorm for queries and keys and LayerNorm elsewhere, which ViTConfig cannot express"
        )
    depth, registers = found.fields["depth"], found.fields["registers"]
    rope = {
        **PUBLISHED["vit5"],
        "base": _base_of(source.arrays, depth, _PATCHES, where),
        "register_base": _base_of(source.arrays, depth, _REGISTERS, where) if registers else None,
    }
    code = {"rope": rope, "activation": "gelu", "norm_epsilon": 1e-6, "position_resampling": _RESAMPLING}
    model = ViTConfig.parse({**found.fields, **code, **fields}, str(where))
    assumptions = tuple(one for one in found.assumptions if one.field not in fields)
    return Reading(CheckpointConfig(model=model), _rules(model), source.arrays, _FREQUENCIES, (), assumptions)


def _name(layer: int, rotation: str) -> str:
    return f"blocks.{layer}.attn.{rotation}.freqs"


def _base_of(arrays: LazyArrays, depth: int, rotation: str, where: object) -> float:
    """The base whose powers are the frequencies of all blocks. Raises InputError if there is none."""
    bases = set()
    for name in (_name(layer, rotation) for layer in range(depth)):
        bands = axes_of(arrays.shapes, name, 1, where)[0]
        values, slack = arrays[name].astype(np.float64), _SLACK.get(arrays.entries[name].dtype, 0.0)
        guess = float(values[-1]) ** (-bands / (bands - 1)) if bands > 1 and values[-1] > 0 else 0.0
        usual = PUBLISHED["vit5"]["base" if rotation == _PATCHES else "register_base"]
        known = [usual, *(float(f"{guess:.{digits}g}") for digits in range(1, 8))]
        fitting = (base for base in known if base > 0 and np.isfinite(base) and _fits(values, base, slack))
        base = next(fitting, None)
        if base is None:
            shown = ", ".join(f"{value:.4g}" for value in values[:4])
            raise InputError(
                f"{where}: {name} ({shown}, ...) are not powers base^(-i / {bands}) of one base, which is all that "
                "ViTConfig can express"
            )
        bases.add(base)
    if len(bases) > 1:
        raise InputError(f"{where}: {rotation}.freqs of its blocks have bases {sorted(bases)}; expected one")
    return float(bases.pop())


def _fits(values: np.ndarray, base: float, slack: float) -> bool:
    return bool(np.allclose(_frequencies(base, 4 * len(values)), values, rtol=slack, atol=0))


def _frequencies(base: float, head_dim: int) -> np.ndarray:
    return frequencies(Rope(**{**PUBLISHED["vit5"], "base": base}), head_dim)


def _rules(model: ViTConfig) -> list[Rule]:
    """A rule for every parameter."""
    return [rule(name, re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)) for name in parameters(model)]


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that the authors' class can express. Raises InputError for images or patches that are not
    square."""
    for field, (height, width) in (("image_size", model.image_size), ("patch_size", model.patch_size)):
        if height != width:
            raise InputError(f"--to vit5: {field} {height}x{width}; ViT-5's code accepts only squares")
    rope, either = model.rope or Rope(**PUBLISHED["vit5"]), (True, False)
    base = PUBLISHED["vit5"]["register_base"] if model.registers else None
    register_base = rope.register_base if rope.register_base and model.registers else base
    return plain_vit_with(
        model,
        activation=("gelu",),
        norm_epsilon=(1e-6,),
        rope=(Rope(**{**PUBLISHED["vit5"], "base": rope.base, "register_base": register_base}),),
        class_token_position=(False,),
        position_embedding=("learned", "none"),
        registers=ANY,
        layer_scale=ANY,
        norm=("rms_norm",) if model.qk_norm else ("rms_norm", "layer_norm"),
        qk_norm=either,
        qkv_bias=either,
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The state dict, with the frequencies, which are buffers of its class."""
    model = checkpoint.config.model
    rope, arrays = model.rope or Rope(), write_by_rules(_rules(model), model, checkpoint.arrays)
    for rotation, base in ((_PATCHES, rope.base), (_REGISTERS, rope.register_base)):
        for layer in range(model.depth if base is not None else 0):
            values = convert(_frequencies(base or 1.0, model.head_width), "float32")
            arrays = LazyArrays.with_array(arrays, _name(layer, rotation), values)
    notes = (f"opens in wangf3014/ViT-5: {call('vit_models', arguments(model))}, norm_layer its {_NORMS[model.norm]}",)
    return Writing(arrays, notes=(*notes, *not_carried(checkpoint, _RESAMPLING)))


_NORMS = {"rms_norm": "RMSNorm", "layer_norm": "torch.nn.LayerNorm with eps 1e-6"}


def arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of the authors' vit_models, except the class of its norms."""
    rope = model.rope or Rope()
    return {
        "img_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "in_chans": model.channels,
        "num_classes": model.num_classes,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": mlp_ratio(model.mlp_dim, model.width),
        "qkv_bias": model.qkv_bias,
        "ape": model.position_embedding == "learned",
        "rope": True,
        "num_registers": model.registers,
        "reg_theta": rope.register_base,
        "qk_norm": model.qk_norm,
        "layer_scale": model.layer_scale is not None,
        "flash": False,
    }


_WITHOUT = {
    "rope": {**PUBLISHED["vit5"], "register_base": None},
    "registers": 0,
    "norm": "layer_norm",
    "qk_norm": False,
}
FORMAT = Format(
    "vit5",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"patch_embed\.proj\.weight",),
    determined=FROM_ARRAYS
    | {"class_token_position", "pooling", "heads", "activation", "norm_epsilon", "position_resampling"},
    writer=Writer((".pth",), allowed_values, write_checkpoint),
    examples={"ViT-5": VIT5, "LayerNorm, no registers": {**VIT5, **_WITHOUT}},
)
