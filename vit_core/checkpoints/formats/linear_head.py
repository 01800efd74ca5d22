"""Finds a classification head that was added to a backbone: one Linear with any usual name."""

import re
from collections.abc import Iterable, Sequence

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.formats import probe_norm
from vit_core.checkpoints.formats.interface import Source
from vit_core.errors import abbreviate, one_line

_INSIDE = re.compile(r"(\.(\d+|heads?|fc|linear|classifier|dense|out|layers|proj))*")
"""Path of the Linear within the module of a head (open_clip's is `head.proj`). A layer of an MLP (`fc.fc1`) is not a
head."""
_HEAD_ROOTS = r"(head|heads|fc|classifier|cls_head|linear_head|linear|classification_head|lin_cls|last_layer)"
AFTER_BACKBONE = re.compile(
    r"(\w+_)?heads?(_\w+)?[./]|(fc|classifier|cls_classifier|linear|lin_cls|projector|last_layer)[./]"
)
"""Names of modules after a backbone: heads, projectors and others."""
_ASIDE = re.compile(
    r"projector|predictor|decoder|momentum|teacher|student|text|txt|criterion|loss|queue|proto", re.IGNORECASE
)
"""Names of modules of self-supervised training and of text towers. They are not between a backbone and a classifier."""
_NUMBER = re.compile(r"[0-9]{1,4}")


def with_linear_head(
    arrays: LazyArrays, source: Source, width: int, name: str
) -> tuple[LazyArrays, list[str], frozenset[str]]:
    """The arrays, with a head under `name` (`NAME.weight`, `NAME.bias`) if they had none and one was found; notes; and,
    if the head is outside the model, the name of its module.

    arrays: those of the model, under canonical names. source: has the arrays outside the model's prefix. A head is one
    Linear with `width` or 2 `width` inputs: alone in a module (`fc`), with dropout in a Sequential (`head.1`), or the
    only layer after the model in a Sequential. A batch norm without weights before the Linear is merged into it; a
    module with any other array is not used. A head outside the model is not used if there are several, if it may belong
    to another model or read the outputs of two, or if another module outside the model has as many outputs as the head
    has inputs, because that module may be between them.
    """
    if f"{name}.weight" in arrays:
        return arrays, [], frozenset()
    beside = source.beside
    roots = [(arrays, root, "in the model") for root in _roots(arrays)]
    roots += [(beside, root, "beside the model") for root in (*_roots(beside), *_after(source.prefix, beside))]
    found = list[tuple[LazyArrays, str, str, dict[str, LazyArray], str]]()
    for group, root, where in roots:
        members = {key: entry for key, entry in group.entries.items() if key == root or key.startswith(f"{root}.")}
        linear = _linear(members, width)
        if linear is not None and _INSIDE.fullmatch(linear.removeprefix(root)):
            found.append((group, root, where, members, linear))
    if not found:
        return arrays, [], frozenset()
    group, root, where, members, linear = found[0]
    if group is beside and len(found) > 1:
        names = abbreviate([one_line(other[1]) for other in found])
        note = f"head: left out, because it may be any of {names}; to use one, save the model without the others"
        return arrays, [note], frozenset()
    if group is beside and not source.shared.isdisjoint(members):
        why = "because it may belong to another model in the file; --part NAME opens that model with it"
        return arrays, [f"head: '{one_line(root)}' is left out, {why}"], frozenset()
    inputs = members[f"{linear}.weight"].shape[1]
    if group is beside and (between := _between(beside, root, inputs, width)):
        why = f"because '{one_line(between)}' may be before it; if it is not, save the model without that module"
        return arrays, [f"head: '{one_line(root)}' is left out, {why}"], frozenset()
    if group is beside and inputs > width and not source.is_alone:
        note = f"head: '{one_line(root)}' is left out, because it may read the outputs of two models in the file"
        return arrays, [note], frozenset()
    kept = {key: entry for key, entry in arrays.entries.items() if key not in members}
    leaves = {leaf: members[f"{linear}.{leaf}"] for leaf in ("weight", "bias") if f"{linear}.{leaf}" in members}
    note = f"head: the Linear '{linear}' {where}"
    if norm := probe_norm.norm_before(members, linear):
        leaves = probe_norm.joined(members, norm, linear)
        note += f", with the batch norm '{norm}' merged into it (epsilon {probe_norm.EPSILON} assumed)"
    head = {f"{name}.{leaf}": entry for leaf, entry in leaves.items()}
    used = frozenset({root}) if group is beside else frozenset[str]()
    return LazyArrays({**kept, **head}), [note], used


def _between(beside: LazyArrays, head: str, inputs: int, width: int) -> str | None:
    """The module outside the model that may compute a head's inputs: a norm, or a Linear on the model's outputs. None
    if there is none."""
    for name, entry in beside.entries.items():
        module, _, leaf = name.rpartition(".")
        fits = leaf in ("weight", "running_mean") and entry.shape in ((inputs,), (inputs, width))
        if fits and module != head and not module.startswith(f"{head}.") and not _ASIDE.search(module):
            return module
    return None


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
