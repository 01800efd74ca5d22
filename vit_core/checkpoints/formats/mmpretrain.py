"""The format of OpenMMLab's mmpretrain (formerly mmcls): its VisionTransformer, DeiT and DeiT III backbones.

Names are those in mmpretrain/models/backbones/{vision_transformer,deit,deit3}.py and heads/. (They were not tested
against the library, which needs mmcv, which has no builds for current versions of PyTorch.) The model's config is a
Python file beside the checkpoint, or text under `meta`. It is not run, so heads, epsilon and activation are assumed.

The blocks of DeiT III in mmpretrain compute the first norm before both branches; the second norm is stored, but not
used. mmcls and Meta's code, from which the published weights come, use both.
"""

from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, CheckpointConfig
from vit_core.checkpoints.formats.beside_model import sizes_of, taking_part
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Fields, Format, Reading, Source, layers_of
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


def recognizes_source(source: Source) -> bool:
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
    notes = ["head: from the module 'head' outside the backbone"] if head else []
    if model.class_token and not shapes.fields["class_token_position"]:  # only in DeiT III
        arrays, more = _with_used_norms(source.arrays, arrays, where)
        notes += more
    assumed = (*shapes.assumptions, *_assumptions(model))
    return Reading(
        CheckpointConfig(model=model),
        [rule(name, name) for name in parameters(model)],
        arrays,
        r"^mask_token$",
        notes=tuple(notes),
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


def _with_used_norms(theirs: LazyArrays, arrays: LazyArrays, where: object) -> tuple[LazyArrays, list[str]]:
    """The arrays of a DeiT III, with the norms that its code computes before the MLPs; and notes.

    theirs: the arrays under the names in the file. If no second norm was trained, the weights were trained in
    mmpretrain: then the first norms are copied. Raises InputError if both norms were trained and differ, because the
    file does not show which of them the code computed.
    """
    blocks = [f"blocks.{i}" for i in range(layers_of(arrays.entries, "blocks."))]
    if "layers.0.norm2.weight" in theirs or not all(f"{block}.norm2.bias" in arrays for block in blocks):
        return arrays, []
    pairs = {f"{block}.norm{{}}.{leaf}": float(leaf == "weight") for block in blocks for leaf in ("weight", "bias")}
    first, second = ({name: arrays.entries[name.format(i)] for name in pairs} for i in (1, 2))
    if all((second[name].read() == initial).all() for name, initial in pairs.items()):
        copied = {name.format(2): entry for name, entry in first.items()}
        note = "ln1 is used before the MLPs too, as in mmpretrain's DeiT III; ln2 has its initial values"
        return LazyArrays({**arrays.entries, **copied}), [note]
    if all((second[name].read() == first[name].read()).all() for name in pairs):
        return arrays, []
    raise InputError(
        f"{where}: mmpretrain's DeiT III computes ln1 before the attention and before the MLP, although it stores ln2, "
        "but weights of Meta or mmcls need both, and the file does not show which these are; for weights trained in "
        "mmpretrain copy each layer's ln1 into its ln2; to use both rename them to norm1 and norm2"
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
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"patch_embed\.projection\.weight",),
    determined=FROM_ARRAYS | {"class_token_position"},
)
