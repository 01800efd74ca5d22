"""Finds a classification head that was added to a backbone: one Linear with any usual name."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.formats import probe_norm
from vit_core.checkpoints.formats.beside_model import is_aside, sizes_of, taking_part
from vit_core.checkpoints.formats.interface import Source
from vit_core.errors import InputError, abbreviate, one_line

_INSIDE = re.compile(r"(\.(\d+|heads?|fc|linear|classifier|dense|out|layers|proj))*")
"""Path of the Linear within the module of a head (open_clip's is `head.proj`). A layer of an MLP (`fc.fc1`) is not a
head."""
_HEAD_ROOTS = r"(head|heads|fc|classifier|cls_head|linear_head|linear|classification_head|lin_cls|last_layer)"
AFTER_BACKBONE = re.compile(
    r"(\w+_)?heads?(_\w+)?[./]|(fc|classifier|cls_classifier|linear|lin_cls|projector|last_layer)[./]"
)
"""Names of modules after a backbone: heads, projectors and others."""
_MAY_BE_HEAD = re.compile(rf"(.+\.)?(\w+_)?({_HEAD_ROOTS}|classifiers)(_\w+)?(\.|$)")
"""Names of modules that may be the head in place of a model's own."""
_NUMBER = re.compile(r"[0-9]{1,4}")

Found = tuple[LazyArrays, list[str], frozenset[str]]


@dataclass(frozen=True)
class _Head:
    """A module with one Linear."""

    root: str
    """The name of the module."""
    linear: str
    members: dict[str, LazyArray]
    """All arrays of the module."""
    is_beside: bool
    """Whether the module is outside the model."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs, inputs."""
        return self.members[f"{self.linear}.weight"].shape


def with_linear_head(arrays: LazyArrays, source: Source, width: int, name: str) -> Found:
    """The arrays, with a head under `name` (`NAME.weight`, `NAME.bias`) if they had none and one was found; notes; and,
    if the head is outside the model, the name of its module.

    arrays: those of the model, under canonical names. source: has the arrays outside the model's prefix. A head is one
    Linear with `width` or 2 `width` inputs: alone in a module (`fc`), with dropout in a Sequential (`head.1`), or the
    only layer after the model in a Sequential. A batch norm without weights before the Linear is merged into it; a
    module with any other array is not used. A head outside the model is used only if no other array outside the model
    may take part in the computation, or if the user gives its number of classes. Raises InputError if a module outside
    the model may be the head in place of the model's own.
    """
    found = _heads(arrays, source, width)
    chosen = [head for head in found if head.shape[0] == source.num_classes]
    if f"{name}.weight" in arrays:
        classes = arrays.shapes[f"{name}.weight"][0]
        if len(chosen) != 1 or not chosen[0].is_beside or source.num_classes == classes:
            return arrays, _beside_own_head(arrays, source, width, classes, found), frozenset()
        arrays = LazyArrays({key: x for key, x in arrays.entries.items() if not key.startswith(f"{name}.")})
    if not found:
        return arrays, [], frozenset()
    head = (chosen or found)[0]
    if head.is_beside and len(chosen) != 1 and (doubt := _doubt(head, found, arrays, source)):
        return arrays, [f"head: {doubt}"], frozenset()
    kept = {key: entry for key, entry in arrays.entries.items() if head.is_beside or key not in head.members}
    leaves, notes = _leaves(head, source, width)
    used = frozenset({head.root}) if head.is_beside else frozenset[str]()
    names = [name]
    if head.is_beside and "dist_token" in arrays and "head_dist.weight" not in arrays:
        names.append("head_dist")  # the mean of the outputs is then the output for the mean of the tokens
        notes.append(
            "distillation: the head reads the mean of both tokens, which timm's backbone without a head returns"
        )
    return LazyArrays({**kept, **{f"{n}.{leaf}": entry for n in names for leaf, entry in leaves.items()}}), notes, used


def _heads(arrays: LazyArrays, source: Source, width: int) -> list[_Head]:
    """The modules with a Linear that may be the head: those within the model, then those beside it."""
    beside = source.beside
    roots = [(arrays, root) for root in _roots(arrays)]
    outside = dict.fromkeys((*_roots(beside), *_after(source.prefix, beside)))
    roots += [(beside, root) for root in outside if not is_aside(root, source.prefix)]
    found = list[_Head]()
    for group, root in roots:
        members = {key: entry for key, entry in group.entries.items() if key == root or key.startswith(f"{root}.")}
        linear = _linear(members, width)
        if linear is not None and _INSIDE.fullmatch(linear.removeprefix(root)):
            found.append(_Head(root, linear, members, group is beside))
    return found


def _doubt(head: _Head, found: Sequence[_Head], arrays: LazyArrays, source: Source) -> str | None:
    """Why a head beside a model is left out; None if it is certain to be the head."""
    name, remedy = one_line(head.root), f"--set num_classes={head.shape[0]} uses it nevertheless"
    if len(found) > 1:
        names = abbreviate([one_line(other.root) for other in found])
        return f"left out, because it may be any of {names}; --set num_classes=N uses the one with N classes"
    if not source.shared.isdisjoint(head.members):
        why = "because it may belong to another model in the file; --part NAME opens that model with it"
        return f"'{name}' is left out, {why}"
    if not source.joint.isdisjoint(head.members):
        return f"'{name}' is left out, because it may read the outputs of two models in the file; {remedy}"
    if others := taking_part(source, [head.root], sizes_of(arrays) | {*head.shape}):
        return f"'{name}' is left out, because {_named(list(others))} may change its inputs or outputs; {remedy}"
    return None


def _beside_own_head(arrays: LazyArrays, source: Source, width: int, classes: int, found: Sequence[_Head]) -> list[str]:
    """A note on modules beside a model with a head of its own, which cannot be between the two. Raises InputError if
    one of them may be the head in place of it, or change its inputs or outputs, unless the user gives the number of
    classes."""
    others = taking_part(source, (), sizes_of(arrays))
    if not others or source.num_classes is not None:
        return []
    heads = {one for one in others if _MAY_BE_HEAD.match(one) or one in _after(source.prefix, source.beside)}
    channels = {shape[1] for shape in arrays.shapes.values() if len(shape) == 4}
    doubtful = [
        module
        for module, shapes in others.items()
        if _is_before(source.prefix, module)
        or "prompt" in module.lower()
        or any(
            prod(shape) == 1
            or (len(shape) == 2 and (shape[1] == classes or (module in heads and shape[1] in (width, 2 * width))))
            or (len(shape) == 4 and shape[0] in channels)
            for shape in shapes
        )
    ]
    if not doubtful:
        return [f"head: the model's own; {_named(list(others))} beside it assumed to have no part in the outputs"]
    linear = {head.linear: head.shape[0] for head in found if head.is_beside and head.shape[0] != classes}
    choices = [f"num_classes={classes} uses the model's own"]
    choices += [f"num_classes={linear[one]} '{one_line(one)}'" for one in doubtful if one in linear][:1]
    raise InputError(
        f"{source.path}: the model has a head with {classes} classes, but {_named(doubtful)} beside the model may be "
        f"the head, or change its inputs or outputs; --set {', '.join(choices)}, num_classes=0 no head"
    )


def _is_before(prefix: Sequence[str], module: str) -> bool:
    """Whether a module is before a model in a Sequential, as `0` and `0.bn` before `1`, and `body.0` before
    `body.1.vit`."""
    parts = module.split(".")
    same = next((i for i, pair in enumerate(zip(parts, prefix, strict=False)) if pair[0] != pair[1]), len(prefix))
    here = (parts[same], prefix[same]) if same < min(len(parts), len(prefix)) else ("", "")
    return all(map(_NUMBER.fullmatch, here)) and int(here[0]) < int(here[1])


def _named(modules: Sequence[str]) -> str:
    return abbreviate([f"'{one_line(module)}'" for module in modules], most=3)


def _leaves(head: _Head, source: Source, width: int) -> tuple[dict[str, LazyArray], list[str]]:
    """`weight` and `bias` of a head, and notes on what was assumed about it."""
    linear, members = head.linear, head.members
    leaves = {leaf: members[f"{linear}.{leaf}"] for leaf in ("weight", "bias") if f"{linear}.{leaf}" in members}
    note = f"head: the Linear '{linear}' {'beside' if head.is_beside else 'in'} the model"
    if norm := probe_norm.norm_before(members, linear):
        leaves = probe_norm.joined(members, norm, linear)
        note += f", with the batch norm '{norm}' merged into it (epsilon {probe_norm.EPSILON} assumed)"
    notes = [note]
    unseen = [] if source.modules else _without_arrays(head, source.prefix)  # else their classes are checked
    if unseen:
        where = ", ".join(f"'{one}'" for one in unseen)
        notes.append(
            f"head: {where} without arrays before it assumed to be a dropout or an identity, not an activation; "
            "--set num_classes=0 leaves out the head"
        )
    if head.shape[1] == 2 * width:
        notes.append(
            f"head: its {2 * width} inputs assumed to be the class token and the mean of the patches, in this order; "
            "not the mean first, nor the class tokens of two blocks or of two images; "
            "--set num_classes=0 leaves out the head"
        )
    return leaves, notes


def _without_arrays(head: _Head, prefix: Sequence[str]) -> list[str]:
    """The modules before a head's Linear in a Sequential that have no arrays: the numbers that are missing before its
    own."""
    outer, _, last = head.linear.rpartition(".")
    if not _NUMBER.fullmatch(last):
        return []
    first = 0
    if head.linear == head.root:  # in a Sequential with the model
        depth = outer.count(".") + 1 if outer else 0
        first = int(prefix[depth]) + 1 if depth < len(prefix) and _NUMBER.fullmatch(prefix[depth]) else int(last)
    start = f"{outer}." if outer else ""
    there = {name.removeprefix(start).partition(".")[0] for name in head.members}
    return [f"{start}{i}" for i in range(first, int(last)) if str(i) not in there]


def _roots(arrays: Iterable[str]) -> list[str]:
    """The modules whose names are those of heads."""
    pattern = re.compile(rf"^(?!pre_logits\.)((?:\w+\.)??{_HEAD_ROOTS})\.")
    return list(dict.fromkeys(match[1] for name in arrays if (match := pattern.match(name))))


def _after(prefix: Sequence[str], beside: Iterable[str]) -> list[str]:
    """A list with the module after a model, or after a module that contains the model, in a Sequential (`model.1` for
    the prefixes `model.0` and `model.0.vit`); empty if several modules after it have arrays, because then none of them
    is the head alone."""
    last = max((i for i, part in enumerate(prefix) if _NUMBER.fullmatch(part)), default=None)
    if last is None:
        return []
    outer = "".join(f"{part}." for part in prefix[:last])
    modules = {name.removeprefix(outer).partition(".")[0] for name in beside if name.startswith(outer)}
    later = [one for one in modules if not _NUMBER.fullmatch(one) or int(one) > int(prefix[last])]
    return [f"{outer}{one}" for one in later if len(later) == 1 and _NUMBER.fullmatch(one)]


def _linear(members: dict[str, LazyArray], width: int) -> str | None:
    """The name of the only Linear in a module, which may also have a batch norm without weights before it; None if the
    module has other arrays."""
    weights = [name for name in members if name.endswith(".weight")]
    if len(weights) != 1 or len(members[weights[0]].shape) != 2:
        return None
    linear = weights[0].removesuffix(".weight")
    classes, inputs = members[weights[0]].shape
    bias, norm = members.get(f"{linear}.bias"), probe_norm.norm_before(members, linear)
    others = set(members) - {f"{linear}.weight", f"{linear}.bias"} - (probe_norm.names_of(norm) if norm else set())
    if inputs not in (width, 2 * width) or others:
        return None
    return linear if bias is None or bias.shape == (classes,) else None
