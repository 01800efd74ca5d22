"""Checks of the modules in a pickled model (`torch.save(model)`) that have no arrays, or settings of their own.

A file of a pickled torch.nn.Module has the classes of all its modules. The arrays of a model with an activation before
its head, with a softmax after it, or with patches that overlap are those of the plain model.
"""

import re
from collections.abc import Iterator, Mapping
from math import isclose
from typing import Any

from vit_core.checkpoints.formats.interface import Fields, Reading, Source
from vit_core.checkpoints.module_facts import ACTIVATIONS, NO_ACTIVATIONS, OF_A_LAYER, settings_of_layers
from vit_core.errors import InputError, abbreviate, one_line

_LIBRARIES = re.compile(
    r"(torch|timm|torchvision|transformers|open_clip|clip|vit_pytorch|pytorch_pretrained_vit|dinov[23]|mmpretrain|mmcls"
    r"|mmcv|mmengine|builtins)\."
)
_PASSIVE = re.compile(
    r"\w*Dropout\w*|Identity|(NonDynamicallyQuantizable)?Linear|Sequential|Module(List|Dict)|Flatten|BatchNorm1d|\w*DropPath"
)
"""Classes of modules that compute nothing in evaluation, or that are read, or refused, by their arrays."""
_PATCHES = re.compile(
    r"(?:.*\.)?(?:patch_embed\.proj|patch_embed\.projection|patch_embeddings\.projection|patch_embedding)"
    r"|conv_proj|conv1"
)
_HEAD = re.compile(r"(?:heads?|fc|classifier|cls_head|linear_head|linear|classification_head|lin_cls)(?:\..*)?")
_WHOLE_NORM = re.compile(r"(?:vit\.)?(?:norm|fc_norm|norm_pre|layernorm|ln_pre|ln_post|encoder\.ln)\.eps")
"""The epsilons of norms before and after the layers."""
_NORM_OR_POOLING = re.compile(
    r"(Layer|RMS|Simple|Group|Batch|Instance|Lp|\w*Response)Norm\w*|\w+Pool\w*|\w*[Ss]oftmax\w*"
)
_OTHER_NORM = re.compile(r"(?!.*(?:layer|rms|batch)norm$)\w+norm", re.IGNORECASE)
_WITH_ACTIVATIONS = re.compile(
    r"(?:.*\.)?(?:pooler|attn_pool|probe|pre_logits|mlp|rel_pos\w*|backbone|\w*stem|(?:\w+_)?heads?|fc|classifier)\..*"
)
"""Modules outside the layers that contain activations of their own, or are checked as a head."""
_FIELDS = {"norm_eps": "norm_epsilon", "act_layer": "activation", "num_heads": "heads", "branch_norm": "branch_norm"}
"""Setting of modules -> our field."""
_OTHER_TOWERS = re.compile(r"text|.*decoder")
_TRACED = re.compile(r"^__torch__\.|___torch_mangle_\d+\.")
"""Parts that TorchScript adds to the names of classes."""


def check_modules(source: Source, reading: Reading, fields: Fields) -> list[str]:
    """Notes on classes in a pickled model that are not a library's; empty for a file without modules.

    reading: of its arrays. fields: given by the user, which settle settings that differ. Raises InputError for modules
    that change the outputs in a way that ViTConfig cannot express.
    """
    prefix, where = "".join(f"{part}." for part in source.prefix), source.path
    kinds = {
        name.removesuffix("class").removesuffix("."): _TRACED.sub("", str(kind))
        for name, kind in source.modules.items()
        if name == "class" or name.endswith(".class")
    }
    own = {name.removeprefix(prefix): value for name, value in source.modules.items() if name.startswith(prefix)}
    own = {name: value for name, value in own.items() if not _OTHER_TOWERS.match(name)}
    _check_patches(own, where)
    _check_norms(own, where)
    _check_layers(own, fields, where)
    _check_between(source, own, where)
    around = list(_around(source, kinds, prefix))
    active = [name for name in around if not _PASSIVE.fullmatch(kinds[name].rpartition(".")[2])]
    active = [name for name in active if _LIBRARIES.match(kinds[name]) and _is_in_sequential(name, kinds)]
    if active and source.num_classes is None and reading.config.model.num_classes:
        named = [f"{one_line(kinds[name].rpartition('.')[2])} ('{one_line(name)}')" for name in active]
        raise InputError(
            f"{where}: {abbreviate(named)} before or after the head cannot be expressed by ViTConfig; --set "
            "num_classes=0 leaves out the head, --set num_classes=N opens the model without what has no arrays"
        )
    outer = ["".join(f"{part}." for part in source.prefix[:i]).removesuffix(".") for i in range(len(source.prefix))]
    inside = [name for name in kinds if f"{name}.".startswith(prefix)]
    shown = dict.fromkeys(kinds[name] for name in (*outer, *inside, *around) if name in kinds)
    notes = []
    if unknown := [one_line(kind) for kind in shown if not _LIBRARIES.match(kind)]:
        notes = [f"assumed to compute what the arrays suggest: {abbreviate(unknown)}, whose code is not in the file"]
    arrays = [*(f"{prefix}{name}" for name in source.arrays), *source.beside]
    with_arrays = {name.rpartition(".")[0] for name in arrays}
    users = {name for name in inside if name and not _LIBRARIES.match(kinds.get(name.rpartition(".")[0], "torch."))}
    beside = [name for name in kinds if name and name not in (*outer, *inside, *around, *with_arrays)]
    beside += [name for name in inside if name in users and name not in with_arrays]
    changing = [
        f"{one_line(kinds[one].rpartition('.')[2])} ('{one_line(one)}')" for one in beside if _changes(kinds[one])
    ]
    if changing:
        notes.append(f"assumed to have no part in the outputs: {abbreviate(changing)}, beside the model")
    return notes


def _is_in_sequential(name: str, kinds: Mapping[str, str]) -> bool:
    """Whether a module is directly in a Sequential, other than torchvision's with a representation layer, whose tanh is
    a part of our models."""
    outer = name.rpartition(".")[0]
    return kinds.get(outer, "").endswith(".Sequential") and f"{outer}.pre_logits" not in kinds


def _check_patches(own: Mapping[str, Any], where: object) -> None:
    """Raises InputError for patches that overlap, or that are taken from a padded image."""
    for name, kernel in own.items():
        module, _, last = name.rpartition(".")
        if last != "kernel_size" or not _PATCHES.fullmatch(module):
            continue
        stride, padding = own.get(f"{module}.stride", kernel), own.get(f"{module}.padding", 0)
        padded = padding not in (0, "valid") and padding != [0, 0]
        if stride != kernel or padded:
            raise InputError(
                f"{where}: {one_line(module)} has kernel_size {kernel}, stride {stride} and padding {padding}; "
                "expected stride equal to kernel_size and no padding, because patches of ViTConfig do not overlap"
            )


def _check_layers(own: Mapping[str, Any], fields: Fields, where: object) -> None:
    """Raises InputError for layers that differ in a setting, for other norms with another epsilon than theirs, and for
    attention of another scale."""
    found = settings_of_layers(own)
    found["norm_eps"] += [value for name, value in own.items() if _WHOLE_NORM.fullmatch(name) and found["norm_eps"]]
    for setting, field in _FIELDS.items():
        if field not in fields and len(values := list(dict.fromkeys(map(str, found[setting])))) > 1:
            named = abbreviate([one_line(one) for one in values])
            raise InputError(
                f"{where}: its layers and norms have several values of {setting} ({named}), which ViTConfig cannot "
                f"express; --set {field}=VALUE opens it with one for all, and other outputs"
            )
    for name, scale in own.items():
        size = own.get(f"{name.removesuffix('.scale')}.head_dim") if name.endswith(".scale") else None
        if isinstance(size, int) and isinstance(scale, float) and not isclose(scale, size**-0.5, rel_tol=1e-6):
            raise InputError(
                f"{where}: {one_line(name)} is {scale}, which ViTConfig cannot express; expected {size}^-0.5 as usual"
            )


def _check_norms(own: Mapping[str, Any], where: object) -> None:
    """Raises InputError for a kind of norm in the layers that ViTConfig does not have, and whose arrays are those of a
    kind that it has (timm's SimpleNorm)."""
    for name, kind in own.items():
        module, last = name.removesuffix(".class"), str(kind).rpartition(".")[2]
        has_parts = any(other.startswith(f"{module}.") and other.endswith(".class") for other in own if other != name)
        if module != name and not has_parts and OF_A_LAYER.fullmatch(f"{module}.") and _OTHER_NORM.fullmatch(last):
            raise InputError(
                f"{where}: {one_line(last)} ('{one_line(module)}') cannot be expressed by ViTConfig; expected norms of "
                "the kinds LayerNorm and RMSNorm"
            )


def _changes(kind: str) -> bool:
    """Whether a library's class without arrays changes its inputs in evaluation: an activation, a norm or a pooling."""
    last = kind.rpartition(".")[2]
    is_activation = kind.startswith(ACTIVATIONS) and (last.endswith("Softmax") or not last.startswith(NO_ACTIVATIONS))
    return is_activation or (bool(_LIBRARIES.match(kind)) and bool(_NORM_OR_POOLING.fullmatch(last)))


def _check_between(source: Source, own: Mapping[str, Any], where: object) -> None:
    """Raises InputError for an activation, a norm or a pooling without arrays outside the layers, in the place of a
    module that computes nothing (`pos_drop`, `fc_norm`)."""
    with_arrays = {name.rpartition(".")[0] for name in source.arrays}
    for name, kind in own.items():
        module = name.removesuffix(".class")
        outside = name.endswith(".class") and not OF_A_LAYER.fullmatch(f"{module}.")
        outer = own.get(f"{module.rpartition('.')[0]}.class".removeprefix("."), "")
        if not _LIBRARIES.match(_TRACED.sub("", str(outer))):
            continue  # a user's class, whose code is not in the file, may not call it
        if not outside or module in with_arrays or _WITH_ACTIVATIONS.fullmatch(f"{module}."):
            continue
        if _changes(_TRACED.sub("", str(kind))):
            called = f"{one_line(str(kind).rpartition('.')[2])} ('{one_line(module)}')"
            raise InputError(
                f"{where}: {called} has no arrays and changes the outputs, which ViTConfig cannot express; save the "
                "state dict of a model without it to open that"
            )


def _around(source: Source, kinds: Mapping[str, str], prefix: str) -> Iterator[str]:
    """The modules in a Sequential with the model, in the module of its head, and in that of a head beside it."""
    for depth in range(len(source.prefix)):
        outer = "".join(f"{part}." for part in source.prefix[:depth])
        within = f"{outer}{source.prefix[depth]}."
        if kinds.get(outer.removesuffix("."), "").endswith(".Sequential"):
            yield from (
                name
                for name in kinds
                if name.startswith(outer) and not f"{name}.".startswith((within, ".")) and f"{name}." != outer
            )
        elif depth == len(source.prefix) - 1:
            yield from (name for name in kinds if name.startswith(outer) and _HEAD.fullmatch(name.removeprefix(outer)))
    yield from (name for name in kinds if name.startswith(prefix) and _HEAD.fullmatch(name.removeprefix(prefix)))
