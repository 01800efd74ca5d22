"""Finds the Vision Transformers in the tree of a container, under any keys and with any prefix of the names.

Trainers nest a state dict under a key ("state_dict", "model_ema", "target_encoder"), put the model's attribute before
every name ("model.", "backbone.", "visual.trunk.") and wrap modules (DistributedDataParallel, torch.compile, FSDP). A
model is identified by an array that each format has once, such as the patch projection: the text before the name of
that array is the prefix of the model in the file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.containers import MODULES, Container, StandIn
from vit_core.checkpoints.formats.beside_model import COPIES, words_of
from vit_core.checkpoints.module_facts import module_facts
from vit_core.errors import InputError, abbreviate, one_line, unknown_name

_WRAPPER_PARTS = r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
"""Parts that wrapping modules (DistributedDataParallel, torch.compile, FSDP) add to names."""
_WRAPPED = rf"(?:(?<=^)|(?<=\.)){_WRAPPER_PARTS}\."
_OPTIMIZER_PARTS = frozenset(
    ("mu", "nu", "m", "v", "trace", "momentum", "exp_avg", "exp_avg_sq", "grad_ema", "grad_sq_ema", "opt_state")
    + ("param_states", "optimizer", "optimizer_states")
)
"""Keys under which optimizers keep arrays with the names of the parameters."""
_ADAMS = {"m": "v", "v": "m"}
"""Keys of Adam's two averages. One of them alone in the names of a state dict, in a file without another model, is an
attribute of a module."""
_BOXES = ("value", "raw_value")
"""Key of the array in the mapping of a variable: in nnx.State, depending on Flax's version, and in
linen.Partitioned."""
_PREFERRED_PARTS = (
    *("state_dict_ema", "model_ema", "ema_model", "ema", "ema_state_dict", "ema_params", "params_ema"),
    *("target_encoder", "teacher"),
)
"""Keys and prefixes of averaged weights and of teachers in distillation, which are chosen before other models."""
_OTHER_AVERAGES = re.compile(
    r"(?!(?:\w+_)?(?:no|non|not|without|before|pre|raw)_)(?:(?:\w+_)?(?:ema|swa)(?:_\w+)?|averaged?(?:_\w+)?)"
)
"""Other keys of averaged weights ("swa_model", "net_ema"), which are chosen next."""
_LAST_PARTS = re.compile(r"student(?:_\w+)?|txt|text|text_model|textual")
"""Keys and prefixes of students in distillation and of text towers, which are chosen last."""
COUNTERS = re.compile(r"n_averaged|steps|(?:.*\.)?total_(?:ops|params)")
"""Names of the number of averaged steps, stored with the arrays of an averaged model by torch.optim.swa_utils and
mmengine, and of the numbers of operations and parameters that thop stores in each module."""
CLASS_WEIGHTS = re.compile(r"(?:.*\.)?(?:\w+_)?(?:criterion|loss)(?:s|es|_\w+)?(?:\.\d+)?\.(?:weight|pos_weight)")
"""Names of the classes' weights in torch's CrossEntropyLoss and BCEWithLogitsLoss, which have one axis. (Losses with
margins keep a classifier under such names, a matrix.)"""


@dataclass(frozen=True)
class Candidate:
    """One model in a container."""

    keys: tuple[str, ...]
    """The keys of the tree that lead to the mapping of the model."""
    prefix: str
    """The text before all its names, without the parts of wrappers; may be empty."""
    arrays: LazyArrays
    """Its arrays under their names without the prefix."""
    beside: LazyArrays
    """The other arrays of the same mapping."""
    separator: str = "."
    wrappers: tuple[str, ...] = ()
    """The parts that wrapping modules added to the names; they are removed from `prefix` and `arrays`."""
    swapped: bool = False
    """Whether these are the trained weights that mmengine's EMAHook stores under "ema_state_dict"; the average is under
    "state_dict"."""
    of_other_sizes: bool = False
    """Whether this is a teacher with other arrays than all other models in the file: another model that was given to
    the training, not an average of the student."""

    @property
    def name(self) -> str:
        """The value of `--part` for this model: keys and prefix, such as "state_dict_ema" or "model/backbone"."""
        return "/".join([*self.keys, *self.prefix.strip("./").split(self.separator)]).strip("/") or "the whole file"

    @property
    def prefix_parts(self) -> tuple[str, ...]:
        """The parts of the prefix."""
        return tuple(part for part in re.split(r"[./]", self.prefix) if part)

    @property
    def parts(self) -> tuple[str, ...]:
        """The keys and the parts of the prefix."""
        return (*self.keys, *self.prefix_parts)

    @property
    def counted(self) -> bool:
        """Whether these arrays are under "ema_state_dict" with mmengine's number of steps."""
        return self.keys[-1:] == ("ema_state_dict",) and ("steps" in self.arrays or "steps" in self.beside)


def find_candidates(
    tree: Mapping[str, Any], separator: str, anchors: Sequence[str], *, joined: bool = False
) -> list[Candidate]:
    """Every model in a container's tree; the first is the default.

    separator: the text between the parts of array names. anchors: regular expressions of the ends of names that occur
    exactly once in a model. joined: whether names contain the keys of nested mappings.
    """
    anchor = re.compile(rf"(?:^|(?<=[./]))(?:{'|'.join(anchors)})$")
    found = [
        candidate
        for keys, arrays in _array_mappings(tree, separator)
        for candidate in _candidates_in(keys, arrays, anchor, separator)
    ]
    models = [candidate for candidate in found if not _optimizer_parts(candidate)]
    if not models and not joined:
        paths = {candidate.parts for candidate in found}
        models = [one for one in found if _of_module(one) and not _has_pair(one, paths)]
    stored = {candidate.keys for candidate in models}
    marked = (replace(one, swapped=one.counted and (*one.keys[:-1], "state_dict") in stored) for one in models)
    return sorted((replace(one, of_other_sizes=_is_given_teacher(one, models)) for one in marked), key=_preference)


def _is_given_teacher(candidate: Candidate, models: Sequence[Candidate]) -> bool:
    """Whether a candidate is called a teacher and no other model has four fifths of its arrays. (An average may have
    more than the student, such as a head.)"""
    if "teacher" not in candidate.parts:
        return False
    own, others = candidate.arrays.shapes, [one.arrays.shapes for one in models if "teacher" not in one.parts]
    return bool(others) and not any(
        5 * sum(own.get(name) == shape for name, shape in other.items()) > 4 * len(own) for other in others
    )


def _optimizer_parts(candidate: Candidate) -> frozenset[str]:
    return _OPTIMIZER_PARTS.intersection(_without_target(candidate.parts))


def _of_module(candidate: Candidate) -> bool:
    """Whether no part suggests an optimizer except for `m` or `v` in the names of the arrays."""
    return _optimizer_parts(candidate) <= _ADAMS.keys() and not _ADAMS.keys() & set(candidate.keys)


def _has_pair(candidate: Candidate, paths: Set[tuple[str, ...]]) -> bool:
    """Whether both of Adam's averages are in a file. paths: the parts that lead to each mapping of arrays."""
    parts = candidate.parts
    return any((*parts[:i], _ADAMS[part], *parts[i + 1 :]) in paths for i, part in enumerate(parts) if part in _ADAMS)


def choose_candidate(candidates: Sequence[Candidate], part: str | None, where: object) -> Candidate:
    """The first candidate, or the one that `part` names (`--part`). Raises InputError, with `where` in its message, for
    an unknown name."""
    if part is None:
        return candidates[0]
    for candidate in candidates:
        if part.strip("/.") in (candidate.name, candidate.name.replace("/", "."), candidate.prefix.strip("./")):
            return candidate
    names = [one_line(candidate.name) for candidate in candidates]
    raise InputError(f"{where}: {unknown_name('--part', part, names)}")


def choice_notes(chosen: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """Notes on where the model was found, and on the other models in the file."""
    notes = [f"model found under '{one_line(chosen.name)}'"] if chosen.parts else []
    if chosen.wrappers:
        notes.append(f"parts of names that wrappers added are removed: {', '.join(chosen.wrappers)}")
    if others := [_described(candidate) for candidate in candidates if candidate is not chosen]:
        notes.append(f"other models in the file: {abbreviate(others)}; choose one with --part NAME")
    return notes


def _described(candidate: Candidate) -> str:
    if candidate.of_other_sizes:
        return f"{candidate.name} (of other sizes: another model, given to the training)"
    why = " (the weights before averaging: mmengine stores the average under state_dict)" if candidate.swapped else ""
    return f"{candidate.name}{why}"


def arrays_beside(chosen: Candidate, candidates: Sequence[Candidate]) -> LazyArrays:
    """The arrays in the mapping of a model that belong to none of the models in the file, such as a separate head."""
    others = [candidate.parts for candidate in candidates if candidate is not chosen]
    return LazyArrays(
        {
            name: array
            for name, array in chosen.beside.entries.items()
            if not _belongs_to(others, (*chosen.keys, *_module(name, chosen.prefix_parts)))
        }
    )


def shared_beside(chosen: Candidate, candidates: Sequence[Candidate], beside: Iterable[str]) -> frozenset[str]:
    """Names of the arrays beside an averaged model or a teacher that may belong to another model of the file instead,
    because they are at the same level of the tree."""
    return _beside_too(chosen, candidates, beside) if _preference(chosen)[0] < 0 else frozenset()


def joint_beside(chosen: Candidate, candidates: Sequence[Candidate], beside: Iterable[str]) -> frozenset[str]:
    """Names of the arrays beside a model that are at the level of another model too and may read the outputs of both:
    none of the two is an average, a teacher or a student of the other."""
    others = [one for one in candidates if not words_of("/".join((*chosen.parts, *one.parts))) & COPIES]
    return _beside_too(chosen, others, beside)


def _beside_too(chosen: Candidate, candidates: Sequence[Candidate], beside: Iterable[str]) -> frozenset[str]:
    """Names of the arrays beside a model that are at the same level of the tree as another candidate, or above it."""
    others = [candidate.parts for candidate in candidates if candidate is not chosen]
    outer = {name: (*chosen.keys, *_module(name, chosen.prefix_parts))[:-1] for name in beside}
    return frozenset(name for name, path in outer.items() if any(other[: len(path)] == path for other in others))


def keys_beside(chosen: Candidate, candidates: Sequence[Candidate], tree: Mapping[str, Any]) -> list[str]:
    """The keys of the tree that lead to none of the models, at each level on the way to the chosen one."""
    others = [candidate.parts for candidate in candidates if candidate is not chosen]
    beside, level = list[str](), tree
    for depth, key in enumerate(chosen.keys):
        names = (str(name) for name in level if name != key)
        beside += [name[:60] for name in names if not _belongs_to(others, (*chosen.keys[:depth], name))]
        level = level[key]
    if chosen.separator == ".":  # if it is "/", these keys are first parts of array names
        beside += [str(name)[:60] for name, value in level.items() if not isinstance(value, LazyArray | Mapping)]
    return list(dict.fromkeys(beside))


def check_read(container: Container, chosen: Candidate, candidates: Sequence[Candidate], where: object) -> None:
    """Raises InputError if arrays of a model are of a kind that cannot be read: without them it would be another
    model."""
    level: Any = container.tree
    for key in chosen.keys:
        level = level[key]
    prefix = chosen.prefix.replace("/", ".")
    inner = tuple(
        other.replace("/", ".")
        for other in (one.prefix for one in candidates if one.keys == chosen.keys)
        if len(other) > len(prefix)
    )
    roots, is_tree = {re.split(r"[./]", name)[0] for name in chosen.arrays}, container.separator == "/"
    unread = []
    for name, value in _unread_arrays(level, container.separator):
        stripped = re.sub(_WRAPPED, "", name) if chosen.wrappers else name
        root, _, inside = stripped.removeprefix(prefix).partition(".")
        # A tree may have other parts than a model, and lists of names are arrays of objects.
        of_model = root in roots or not ((is_tree and inside) or value.kind == "an array of Python objects")
        if stripped.startswith(prefix) and not stripped.startswith(inner) and of_model:
            unread.append(f"{one_line(name)[-60:]} ({one_line(value.kind)[:80]})")
    if unread:
        raise InputError(
            f"{where}: arrays of the model that cannot be read: {abbreviate(unread, most=3)}; save them as plain dense "
            "arrays (in PyTorch: tensor.to_dense(), .dequantize() or .resolve_neg(); in NumPy: array.astype(float))"
        )


def _unread_arrays(level: Mapping[str, Any], separator: str, start: str = "") -> Iterator[tuple[str, StandIn]]:
    """Names, joined by ".", and stand-ins of the arrays in a mapping that cannot be read; for the separator "/" also of
    those in the mappings below."""
    for name, value in level.items():
        if isinstance(value, StandIn) and value.is_array:
            yield f"{start}{name}".replace("/", "."), value
        elif isinstance(value, Mapping) and separator == "/":
            yield from _unread_arrays(value, separator, f"{start}{name}.")


def modules_of(arrays: Iterable[str], prefix: Sequence[str]) -> list[str]:
    """The modules of arrays beside a model, such as "params/txt" or "head": each name up to the first part that differs
    from the model's prefix."""
    modules = (name[: len("x".join(_module(name, prefix)))] for name in arrays)
    return list(dict.fromkeys(name[:60] for name in modules))


def facts_beside(tree: Mapping[str, Any], chosen: Candidate) -> dict[str, Any]:
    """The values in the tree that are not arrays, from all levels on the way to a model: `{"arch": ..., "args":
    ...}`; of pickled modules those of the model itself."""
    facts: dict[str, Any] = {}
    level: Any = tree
    for key in (*chosen.keys, None):
        if not isinstance(level, Mapping):
            break
        facts |= {name: value for name, value in level.items() if not isinstance(value, LazyArray) and name != key}
        level = level.get(key) if key is not None else None
    if MODULES in facts:
        names = modules_of_pickle(tree, chosen)
        own = {name.removeprefix(chosen.prefix): x for name, x in names.items() if name.startswith(chosen.prefix)}
        facts[MODULES] = module_facts(own)
    return facts


def modules_of_pickle(tree: Mapping[str, Any], chosen: Candidate) -> dict[str, Any]:
    """The classes and settings of all modules in the pickled module that contains a model, by their names without parts
    of wrappers; empty if the file has only arrays."""
    found: Mapping[str, Any] = {}
    level: Any = tree
    for key in (*chosen.keys, None):
        if not isinstance(level, Mapping):
            break
        attributes = level.get(MODULES)
        found, level = attributes if isinstance(attributes, Mapping) else found, level.get(key)
    return {re.sub(_WRAPPED, "", name): value for name, value in found.items()}


def _without_target(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The parts without `optimizer/target`, which in flax.optim's state lead to the parameters."""
    i = next((i for i in range(len(parts) - 1) if parts[i : i + 2] == ("optimizer", "target")), len(parts))
    return (*parts[:i], *parts[i + 2 :])


def _array_mappings(
    tree: Mapping[str, Any], separator: str, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, LazyArray]]]:
    """Every mapping whose keys begin array names, with the keys that lead to it. For the separator "/": the whole tree,
    flattened. For pickles: each mapping that contains arrays directly."""
    if separator == "/":
        yield keys, flattened(tree, separator)
        return
    own = {name: value for name, value in tree.items() if isinstance(value, LazyArray)}
    if own:
        yield keys, own
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _array_mappings(value, separator, (*keys, str(name)))


def flattened(tree: Mapping[str, Any], separator: str) -> dict[str, LazyArray]:
    """Joined keys -> array, for every array of a tree."""
    return dict(_flattened(tree, separator))


def _flattened(tree: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, LazyArray]]:
    """Every array with its joined keys. The mapping around the array of a variable (see `_boxed`) adds no part to the
    name."""
    if (boxed := _boxed(tree)) is not None and prefix:
        yield prefix.removesuffix(separator), boxed
        return
    for name, value in tree.items():
        if isinstance(value, LazyArray):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _flattened(value, separator, f"{prefix}{name}{separator}")


def _boxed(tree: Mapping[str, Any]) -> LazyArray | None:
    """The array of an NNX variable or of a boxed Linen parameter: a mapping whose only array is its value. None for
    another mapping."""
    arrays = {key: value for key, value in tree.items() if isinstance(value, LazyArray | Mapping)}
    boxed = next((arrays[key] for key in _BOXES if set(arrays) == {key}), None)
    return boxed if isinstance(boxed, LazyArray) else None


def _without_wrappers(arrays: Mapping[str, LazyArray]) -> tuple[dict[str, LazyArray], tuple[str, ...]]:
    """The arrays without the parts of names that wrapping modules added, and those parts. Unchanged if two names would
    become equal."""
    stripped = {re.sub(_WRAPPED, "", name): array for name, array in arrays.items()}
    if len(stripped) < len(arrays) or stripped.keys() == arrays.keys():
        return dict(arrays), ()
    parts = {part for name in arrays for part in name.split(".") if re.fullmatch(_WRAPPER_PARTS, part)}
    return stripped, tuple(sorted(parts))


def _candidates_in(
    keys: tuple[str, ...], wrapped: Mapping[str, LazyArray], anchor: re.Pattern[str], separator: str
) -> Iterator[Candidate]:
    arrays, wrappers = _without_wrappers(wrapped)
    prefixes = dict.fromkeys(name[: match.start()] for name in arrays if (match := anchor.search(name)))
    for prefix in prefixes:
        within = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {name: array for name, array in arrays.items() if name.startswith(prefix) and not name.startswith(within)}
        inside = {name[len(prefix) :]: array for name, array in own.items()}
        beside = {name: array for name, array in arrays.items() if name not in own}
        yield Candidate(keys, prefix, LazyArrays(inside), LazyArrays(beside), separator, wrappers)


def _preference(candidate: Candidate) -> tuple[int, int]:
    """Sort key: averaged weights and teachers first, then models with the fewest keys, students and text towers
    last."""
    for rank, part in enumerate(_PREFERRED_PARTS):
        if part in candidate.parts and not candidate.swapped and not candidate.of_other_sizes:
            return rank - len(_PREFERRED_PARTS) - 1, len(candidate.parts)
    # Only as a key: as a prefix it may belong to a backbone without its head.
    if any(_OTHER_AVERAGES.fullmatch(key) for key in candidate.keys) and not candidate.swapped:
        return -1, len(candidate.parts)
    last = candidate.swapped or any(_LAST_PARTS.fullmatch(part) for part in candidate.parts)
    return 2 if candidate.of_other_sizes else int(last), len(candidate.parts)


def _module(name: str, prefix: Sequence[str]) -> tuple[str, ...]:
    """The first parts of an array's name, up to and including the first that differs from a model's prefix."""
    parts = re.split(r"[./]", name)
    same = next((i for i, pair in enumerate(zip(parts, prefix, strict=False)) if pair[0] != pair[1]), len(prefix))
    return tuple(parts[: same + 1])


def _belongs_to(models: Iterable[tuple[str, ...]], path: tuple[str, ...]) -> bool:
    """Whether a path of keys is the path of one of the models, or leads to it."""
    return any(model[: len(path)] == path for model in models)
