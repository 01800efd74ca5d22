"""Converts the objects of the pickle reader to plain data: nested mappings of arrays, plain values and stand-ins.

The result is a tree of bounded size and depth. A structure that contains itself, is too deep, or has more than a
million values (shared ones counted each time) is replaced by a stand-in.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.container import MODULES, StandIn
from vit_core.checkpoints.containers.pickle_arrays import NumpyArray, NumpyType
from vit_core.checkpoints.containers.pickle_objects import Storage, UnreadTensor
from vit_core.checkpoints.containers.pickle_reader import Global, Instance
from vit_core.checkpoints.containers.reading import readable
from vit_core.errors import InputError, abbreviate, one_line

_MOST_VALUES = 1_000_000
_DEEPEST, _HIGHEST = 50, 100
"""Maximum depth at which values are converted, and maximum height of a structure. The second limit is needed because a
structure that was converted at a small depth may be shared at a larger one."""
_MOST_COPIED = 1_000_000
"""Maximum number of module members that are copied; they are copied again for each module above them."""
_LONGEST_KEY = 1000

_ATTRIBUTES_ARE_THE_MAPPING = {"argparse.Namespace", "types.SimpleNamespace"}
_ARE_MAPPINGS = {
    "flax.core.frozen_dict.FrozenDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
}
"""Classes of dictionaries: listed here so that empty ones are recognized too."""
_CONTENT = {
    "omegaconf": ("_content", "_val"),
    "ml_collections": ("_fields", "_value"),
    "mmengine": ("_cfg_dict",),
    "mmcv": ("_cfg_dict",),
}
"""Library of settings -> the attributes in which its objects store the values."""

_NOTHING: dict[Any, Any] = {}


class _Plain(NamedTuple):
    value: Any
    size: int
    """Number of values in it; shared ones are counted each time."""
    height: int
    has_arrays: bool


def _stand_in(kind: str, is_array: bool = False) -> _Plain:
    return _Plain(StandIn(kind, is_array=is_array), 1, 0, False)


class PlainTree:
    """Converts objects of the pickle reader to plain data. `notes` lists what was replaced by stand-ins."""

    def __init__(self, path: object) -> None:
        self._path = path
        self._known: dict[int, _Plain] = {}
        """id of an object -> its plain data. The objects live as long as the converted root, so ids are not reused."""
        self._open: set[int] = set()
        self._kinds: dict[str, None] = {}
        self._unread: list[str] = []
        self._copied = 0

    def convert(self, value: Any) -> Any:
        """The plain data of an object. The caller keeps the object alive until the last conversion."""
        return self._converted(value, ()).value

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the arrays that were left out, and on the classes whose objects were kept as plain data."""
        kinds = [one_line(kind)[:80] for kind in self._kinds]
        notes = []
        if self._unread:
            notes.append(f"left out, because they are not plain arrays: {abbreviate(self._unread, most=3)}")
        if quantized := [kind for kind in kinds if ".quantized." in kind]:
            notes.append(f"left out, because their weights are quantized: modules of {abbreviate(quantized, most=3)}")
        if kinds:
            notes.append(f"kept as plain data, without running their code: objects of {abbreviate(kinds, most=3)}")
        return tuple(notes)

    def _converted(self, value: Any, keys: tuple[str, ...]) -> _Plain:
        if value is None or isinstance(value, str | int | float):
            return _Plain(value, 1, 0, False)
        if isinstance(value, LazyArray):
            return self._array(value, keys)
        known = self._known.get(id(value))
        if known:
            return known
        if id(value) in self._open:
            return _stand_in("a structure that contains itself")
        if len(keys) > _DEEPEST:
            return _stand_in(f"a structure of more than {_DEEPEST} levels")
        self._open.add(id(value))
        result = self._composite(value, keys)
        if result.size > _MOST_VALUES:
            result = _stand_in(f"a structure of more than {_MOST_VALUES:,} values")
        self._open.discard(id(value))
        self._known[id(value)] = result
        return result

    def _composite(self, value: Any, keys: tuple[str, ...]) -> _Plain:
        if isinstance(value, dict):
            return self._mapping(value, keys)
        if isinstance(value, list | tuple):
            return self._list(value, keys)
        if isinstance(value, Instance):
            return self._instance(value, keys)
        if isinstance(value, NumpyArray):
            objects = _stand_in("an array of Python objects", is_array=True)
            return objects if value.array is None else self._array(value.array, keys)
        if isinstance(value, UnreadTensor):
            return self._unread_tensor(value, keys)
        if isinstance(value, Global):
            is_value = value.name.startswith("torch.")  # a dtype or a layout
            return _Plain(value.name, 1, 0, False) if is_value else _stand_in(value.name)
        kinds = {NumpyType: "a NumPy type", Storage: "a storage without a tensor", bytes: "bytes"}
        return _stand_in(kinds.get(type(value), "an object"))

    def _mapping(self, entries: Mapping[Any, Any], keys: tuple[str, ...]) -> _Plain:
        children: dict[str, _Plain] = {}
        for i, (key, value) in enumerate(entries.items()):
            name = _key_text(key, i)
            children[name] = self._converted(value, (*keys, name))
        return _assembled(children)

    def _list(self, items: list[Any] | tuple[Any, ...], keys: tuple[str, ...]) -> _Plain:
        if len(items) > _MOST_VALUES:
            return _Plain(None, len(items), 1, False)
        children = [self._converted(item, (*keys, str(i))) for i, item in enumerate(items)]
        if any(isinstance(child.value, LazyArray | Mapping) for child in children):
            return _assembled({str(i): child for i, child in enumerate(children)})
        children = [_low(child) for child in children]
        return _Plain([child.value for child in children], *_totals(children))

    def _instance(self, value: Instance, keys: tuple[str, ...]) -> _Plain:
        kind, state = value.kind, _attributes(value.state)
        if kind.startswith("pathlib."):
            parts = [part for part in value.arguments[:1000] if isinstance(part, str)]
            return _Plain(str(PurePosixPath(*parts)), 1, 0, False)
        if kind == "torch.device":
            return _Plain(
                ":".join(str(part) for part in value.arguments[:2] if isinstance(part, str | int)), 1, 0, False
            )
        for name in _CONTENT.get(kind.partition(".")[0], ()):
            if name in state:
                return self._converted(state[name], (*keys, name))
        if kind in _ATTRIBUTES_ARE_THE_MAPPING:
            return self._converted(state, keys)
        self._kinds.setdefault(kind)
        if isinstance(state.get("_parameters"), dict) and isinstance(state.get("_modules"), dict):
            return self._module(kind, state, keys)
        if value.entries:
            return self._converted(value.entries, keys)
        if kind in _ARE_MAPPINGS:
            given = value.arguments[0] if value.arguments else None
            return self._converted(given if isinstance(given, dict) else value.entries, keys)
        if value.elements:
            return self._converted(value.elements, keys)
        return self._object(value, state, keys)

    def _module(self, kind: str, state: Mapping[str, Any], keys: tuple[str, ...]) -> _Plain:
        """The entries of the `state_dict` of a pickled torch.nn.Module, under the same names; and under MODULES the
        classes and settings of its modules, with names that are joined likewise ("blocks.0.attn.num_heads")."""
        buffers, temporary = state.get("_buffers"), state.get("_non_persistent_buffers_set")
        groups = (state["_parameters"], buffers if isinstance(buffers, dict) else {}, state["_modules"])
        skipped = temporary if isinstance(temporary, list) else []
        self._count_copied(sum(map(len, groups)) + len(skipped) + len(state))
        names = {name for name in skipped if isinstance(name, str)}
        members = {k: v for group in groups for k, v in group.items() if v is not None and k not in names}
        nested = self._mapping(members, keys)
        if nested.size > _MOST_VALUES or not isinstance(nested.value, Mapping):
            return nested
        own = {name: value for name, value in state.items() if _is_setting(name, value)}
        settings = self._mapping({"class": kind, **own}, keys)
        size, height = nested.size + settings.size, max(nested.height, settings.height + 1)
        return _Plain(self._joined(nested.value, settings.value, size), size, height, nested.has_arrays)

    def _joined(self, members: Mapping[str, Any], settings: Mapping[str, Any], size: int) -> dict[str, Any]:
        """The members of a module, with the names joined to theirs of those of the modules in it, which have theirs
        joined already; and the settings of all."""
        self._count_copied(size)
        names_joined, settings_joined = dict[str, Any](), dict(settings)
        for name, value in members.items():
            inner = value.items() if isinstance(value, Mapping) else [("", value)]
            names_joined |= {f"{name}.{rest}".removesuffix("."): x for rest, x in inner if rest != MODULES}
            of_inner = value.get(MODULES) if isinstance(value, Mapping) else None
            if isinstance(of_inner, Mapping):
                settings_joined |= {f"{name}.{rest}": x for rest, x in of_inner.items()}
        return {**names_joined, MODULES: settings_joined}

    def _count_copied(self, members: int) -> None:
        self._copied += members
        if self._copied > _MOST_COPIED:
            raise ValueError(f"its modules have more than {_MOST_COPIED:,} members")

    def _object(self, value: Instance, state: dict[Any, Any], keys: tuple[str, ...]) -> _Plain:
        """A stand-in for an object. If its attributes contain arrays, as those of a training state or a compiled module
        do, the mapping of its attributes."""
        attributes = self._converted(state, keys)
        if value.kind.startswith("__torch__.") and isinstance(attributes.value, Mapping):  # a module of TorchScript
            own = {"class": value.kind, **{name: x for name, x in attributes.value.items() if _is_setting(name, x)}}
            members = {name: x for name, x in attributes.value.items() if isinstance(x, LazyArray | Mapping)}
            return attributes._replace(value=self._joined(members, own, attributes.size))
        if value.kind.startswith("__torch__.") or attributes.has_arrays:
            return attributes
        arguments = self._converted(value.arguments, keys)
        inner = arguments.value.values() if isinstance(arguments.value, Mapping) else arguments.value
        contained = tuple(inner) if isinstance(inner, Iterable) else (inner,)
        known = attributes.value if isinstance(attributes.value, Mapping) else {}
        return _Plain(StandIn(value.kind, contained, known), *_totals([attributes, arguments]))

    def _array(self, array: LazyArray, keys: tuple[str, ...]) -> _Plain:
        name = _name(keys)
        return _Plain(LazyArray(array.shape, array.dtype, partial(_read, self._path, name, array)), 1, 0, True)

    def _unread_tensor(self, tensor: UnreadTensor, keys: tuple[str, ...]) -> _Plain:
        if not tensor.reason:
            self._unread.append(f"{_name(keys)} ({one_line(tensor.kind)[:100]})")
            return _stand_in(tensor.kind, is_array=True)
        assert tensor.shape is not None
        message = f"{self._path}: {_name(keys)} has shape {list(tensor.shape)}, {tensor.reason}"
        return _Plain(LazyArray(tensor.shape, tensor.dtype, partial(_refuse, message)), 1, 0, True)


def _is_setting(name: object, value: object) -> bool:
    """Whether an attribute of a module is a plain value that its constructor was given, or a configuration."""
    if not isinstance(name, str) or name.startswith("_"):
        return False
    is_size = isinstance(value, tuple) and len(value) <= 3 and all(isinstance(side, int) for side in value)
    return is_size or isinstance(value, str | int | float) or (name == "config" and isinstance(value, dict | Instance))


def _refuse(message: str) -> np.ndarray:
    raise InputError(message)


def _read(path: object, name: str, array: LazyArray) -> np.ndarray:
    with readable(path, f"complete (reading {name})"):
        return array.read()


def _low(child: _Plain) -> _Plain:
    return child if child.height < _HIGHEST else _stand_in(f"a structure of more than {_HIGHEST} levels")


def _name(keys: tuple[str, ...]) -> str:
    return one_line(".".join(keys)[-60:])


def _totals(children: Iterable[_Plain]) -> tuple[int, int, bool]:
    """Number of values, height, and whether there are arrays, for a structure with these children."""
    count, height, has_arrays = 1, 0, False
    for child in children:
        count, height, has_arrays = count + child.size, max(height, child.height), has_arrays or child.has_arrays
    return count, height + 1, has_arrays


def _assembled(children: dict[str, _Plain]) -> _Plain:
    """A mapping of converted children. If it has too many values, its largest children are replaced by stand-ins."""
    children = {name: _low(child) for name, child in children.items()}
    count = 1 + sum(child.size for child in children.values())
    for name in sorted(children, key=lambda name: -children[name].size) if count > _MOST_VALUES else ():
        if count <= _MOST_VALUES:
            break
        count -= children[name].size - 1
        children[name] = _stand_in("a structure of too many values")
    tree: dict[str, Any] = {}
    for name, child in children.items():
        if "\0" in name:  # a tuple of text, as a key of flax.traverse_util.flatten_dict
            _insert(tree, name.split("\0"), child.value)
        else:
            tree[name] = child.value
    _, height, has_arrays = _totals(children.values())
    levels = max((name.count("\0") for name in children), default=0)
    return _Plain(tree, count, height + levels, has_arrays)


def _attributes(state: Any) -> dict[Any, Any]:
    """The attributes in a state, which is a dictionary, or a pair of dictionaries of which the second is for slots."""
    pair = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    return next((part for part in pair if isinstance(part, dict) and part), _NOTHING)


def _key_text(key: Any, index: int) -> str:
    """The text of a key. The text of other keys, and of ones that are too long, contains `index`, so that all remain
    different."""
    if isinstance(key, tuple):
        return "\0".join(_key_text(part, index) for part in key)
    if isinstance(key, str):
        key = key.replace("\0", " ") if "\0" in key else key
        return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}... ({index})"
    if isinstance(key, Global):
        return key.name
    if key is None or isinstance(key, int | float):
        return str(key)
    return f"key {index}"


def _insert(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    node = tree
    for part in parts[:-1]:
        inner = node.get(part)
        if not isinstance(inner, dict):
            inner = node[part] = {}
        node = inner
    node[parts[-1]] = value
