"""The format of OpenMMLab's mmpretrain (formerly mmcls): its VisionTransformer, DeiT and DeiT III backbones.

Names are those in mmpretrain/models/backbones/{vision_transformer,deit,deit3}.py and heads/. (They were not tested
against the library, which needs mmcv, which has no builds for current versions of PyTorch.) The model's config is a
Python file beside the checkpoint, or text under `meta`. It is not run, so heads, epsilon and activation are assumed.
"""

from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, CheckpointConfig
from vit_core.checkpoints.formats.beside_model import sizes_of, taking_part
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Fields, Format, Reading, Source
from vit_core.checkpoints.formats.rules import rule
from vit_core.checkpoints.formats.shapes import fields_from_shapes
from vit_core.config import ViTConfig
from vit_core.errors import InputError, abbreviate, one_line
from vit_core.parameters import parameters

_RENAMED = {
    "patch_embed.projection": "patch_embed.proj",
    "pre_norm": "norm_pre",
    "ln1": "norm",
    "ln2": "fc_norm",
    "norm1": "norm",  # mmcls before 1.0
    "norm2": "fc_norm",
}
_IN_LAYER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
    "ffn.w12": "mlp.fc1",
    "ffn.w3": "mlp.fc2",
}
_LAYER_SCALE = {
    f"{module}.gamma{i}.{leaf}": f"ls{i}.gamma"
    for i, module in ((1, "attn"), (2, "ffn"))
    for leaf in ("weight", "scale")  # in mmpretrain's own LayerScale, and in mmcv's
}
_HEADS = {
    "head.layers.head": "head",
    "head.layers.head_dist": "head_dist",
    "head.layers.pre_logits": "pre_logits.fc",
    "head.fc": "head",
}
"""Modules outside the backbone -> ours."""


def recognises_source(source: Source) -> bool:
    """Whether the arrays have the names of its patch projection and first layer."""
    names = source.arrays
    ffn = ("layers.0.ffn.layers.0.0.weight", "layers.0.ffn.w12.weight")
    return (
        "patch_embed.projection.weight" in names
        and "layers.0.attn.qkv.weight" in names
        and any(f in names for f in ffn)
    )


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the names and shapes of the backbone and of a head outside it. Raises
    InputError for a model that ViTConfig cannot express."""
    where = source.path
    entries = {_canonical(name): entry for name, entry in source.arrays.entries.items()}
    if len(entries) < len(source.arrays):
        raise InputError(f"{where}: two arrays are the same parameter; expected the names of one version of mmpretrain")
    head, used = _head(source.beside)
    _check_between(source, used, fields)
    arrays = LazyArrays({**entries, **head})
    if "norm.weight" in arrays and "fc_norm.weight" in arrays:
        raise InputError(
            f"{where}: has a norm before the mean of the tokens and another one after it (ln1 and ln2, mmpretrain's "
            "out_type 'avg_featmap' with final_norm), which ViTConfig cannot express"
        )
    shapes = fields_from_shapes(arrays.shapes, fields, where)
    found: dict[str, Any] = {
        **shapes.fields,
        "activation": "gelu",
        "norm_epsilon": 1e-6,
        "position_resampling": "bicubic",
    }
    model = ViTConfig.parse({**found, **fields}, str(where))
    assumed = (*shapes.assumptions, *_assumptions(model))
    return Reading(
        CheckpointConfig(model=model),
        [rule(name, name) for name in parameters(model)],
        arrays,
        r"^mask_token$",
        notes=tuple(["head: from the module 'head' outside the backbone"] if head else ()),
        assumptions=tuple(one for one in assumed if one.field not in fields),
        used=used,
    )


def _canonical(name: str) -> str:
    if not name.startswith("layers."):
        stem, _, leaf = name.rpartition(".")
        return f"{_RENAMED[stem]}.{leaf}" if stem in _RENAMED else name
    _, layer, inside = name.split(".", 2)
    if inside in _LAYER_SCALE:
        return f"blocks.{layer}.{_LAYER_SCALE[inside]}"
    stem, _, leaf = inside.rpartition(".")
    return f"blocks.{layer}.{_IN_LAYER.get(stem, stem)}.{leaf}"


def _head(beside: LazyArrays) -> tuple[dict[str, LazyArray], frozenset[str]]:
    """The arrays of the head under canonical names, and the modules that they come from."""
    found: dict[str, LazyArray] = {}
    for name, entry in beside.entries.items():
        stem, _, leaf = name.rpartition(".")
        if stem in _HEADS and leaf in ("weight", "bias"):
            found[f"{_HEADS[stem]}.{leaf}"] = entry
    return found, frozenset(("head",)) if found else frozenset()


def _check_between(source: Source, used: frozenset[str], fields: Fields) -> None:
    """Raises InputError if a module such as a neck may be between the backbone and a head, unless the user gives the
    number of classes."""
    others = list(taking_part(source, used, sizes_of(source.arrays)))
    if used and others and "num_classes" not in fields:
        raise InputError(
            f"{source.path}: {abbreviate([one_line(one) for one in others])} beside the backbone may change the inputs "
            "of the head; use --set num_classes=0 to leave out the head, --set num_classes=N to use it nevertheless"
        )


def _assumptions(model: ViTConfig) -> list[Assumption]:
    why = "mmpretrain's default"
    tanh, no_other = "with tanh, the default of its head", "another act_cfg cannot be expressed"
    hidden = [Assumption("representation", model.representation, tanh, no_other)] if model.representation else []
    return [
        *hidden,
        Assumption("pooling", model.pooling, "by the names of the arrays", "--set pooling=gap or another"),
        Assumption("activation", model.activation, why, "--set activation=quick_gelu or another"),
        Assumption("norm_epsilon", model.norm_epsilon, why),
        Assumption("position_resampling", model.position_resampling, why),
    ]


FORMAT = Format(
    "mmpretrain",
    recognises=recognises_source,
    read=read_source,
    anchors=(r"patch_embed\.projection\.weight",),
    determined=FROM_ARRAYS | {"class_token_position"},
)
