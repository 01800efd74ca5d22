"""What every kind of file with named arrays is opened as: a tree of arrays and plain values, read lazily.

Files are untrusted: no code of a file is run, sizes are checked before memory is taken, and every fault is an
InputError of one line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.errors import InputError, one_line
from vit_core.storage import Location

_MOST_NAME_CHARACTERS = 2**26
_MOST_PARTS = 64


@dataclass(frozen=True, eq=False)
class StandIn:
    """Takes the place of something that is no array and no plain value, as an object of a class in a pickle.

    Nothing of it was imported or called: it only has what the file says about the object, as plain data.
    """

    kind: str
    """The full name of its class, or what it is in words ("a quantized tensor")."""
    arguments: tuple[Any, ...] = ()
    """What its class would have been called with."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """What would have become its attributes."""

    def __repr__(self) -> str:
        return f"<{one_line(self.kind)[:100]}>"


@dataclass(frozen=True, eq=False)
class Container:
    """An opened file or folder. Names, shapes and types are known; values are read when they are asked for."""

    path: Location
    """The file (of a folder of weights, the one that was chosen), or the folder of an Orbax or DCP checkpoint."""
    kind: str
    """"safetensors", "npz", "pth", "pickle", "msgpack", "orbax", "dcp"; "safetensors shards" for an index of shards."""
    tree: Mapping[str, Any]
    """Nested mappings as in the file. Leaves are LazyArray, plain values (str, int, float, bool, None, and lists of
    them) and StandIn. A list with arrays or mappings in it is a mapping from "0", "1", ... to its elements."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a person should know about how it was read."""
    separator: str = "."
    """What joins the keys of the tree to the names of `arrays`: "." in pickles, "/" in npz and Flax trees."""

    @cached_property
    def arrays(self) -> LazyArrays:
        """Every array of the tree, under the keys that lead to it. Raises InputError if two get the same name."""
        entries: dict[str, LazyArray] = {}
        characters = 0
        for keys, array in walk_arrays(self.tree):
            name = self.separator.join(keys)
            characters += len(name)
            if name in entries:
                raise InputError(f"{self.path}: has two arrays named {one_line(name)[:60]}; remove one of them")
            if characters > _MOST_NAME_CHARACTERS:
                raise InputError(f"{self.path}: the names of its arrays have more than {_MOST_NAME_CHARACTERS} letters")
            entries[name] = array
        return LazyArrays(entries)


def walk_arrays(tree: Mapping[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], LazyArray]]:
    """Every array of a tree, with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, LazyArray):
            yield (*keys, key), value
        elif isinstance(value, Mapping):
            yield from walk_arrays(value, (*keys, key))


def nested(flat: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """A tree of names such as "params/Dense_0/kernel".

    A name that begins with another whole name stays whole, and so does one of more than 64 parts.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        parts = name.split(separator, _MOST_PARTS)
        prefixes = (separator.join(parts[:count]) for count in range(1, len(parts)))
        if len(parts) > _MOST_PARTS or any(prefix in flat for prefix in prefixes):
            tree[name] = value
            continue
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return tree
