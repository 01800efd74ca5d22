"""`Container`: an opened file or folder of any kind, as a tree of arrays, which are read lazily, and plain values.

Files are untrusted: no code of a file is run, sizes are checked before memory is allocated, and every error is an
InputError of one line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.errors import InputError, one_line
from vit_core.storage import Location

MODULES = "attributes of modules"
"""The key of a pickled torch.nn.Module's settings, in the mapping of its arrays."""
_MOST_NAME_CHARACTERS = 2**26
_MOST_PARTS = 64


@dataclass(frozen=True, eq=False)
class StandIn:
    """Replaces a value that is neither an array nor plain data, such as an object of a class in a pickle.

    Its class was not imported, and nothing was called. It has only the data that the file has for the object.
    """

    kind: str
    """The full name of its class, or a description ("a quantized tensor")."""
    arguments: tuple[Any, ...] = ()
    """The arguments with which unpickling would have called its class."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """The attributes that unpickling would have set."""
    is_array: bool = False
    """Whether it replaces an array, of a kind that cannot be read."""

    def __repr__(self) -> str:
        return f"<{one_line(self.kind)[:100]}>"


@dataclass(frozen=True, eq=False)
class Container:
    """An opened file or folder. Names, shapes and types are known; values are read when they are used."""

    path: Location
    """The file that is read (for a folder of weights, the chosen file), or the folder of an Orbax or DCP checkpoint."""
    kind: str
    """"safetensors", "npz", "pth", "pickle", "msgpack", "orbax", "dcp", "hdf5", "keras preset", "keras archive";
    "safetensors shards" and "hdf5 shards" for an index of shards."""
    tree: Mapping[str, Any]
    """Nested mappings as in the file. Leaves are LazyArray, plain values (str, int, float, bool, None, and lists of
    them) and StandIn. A list with arrays or mappings in it is a mapping from "0", "1", ... to its elements."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Notes for the user on how it was read."""
    separator: str = "."
    """The text between keys of the tree in the names of `arrays`: "." in PyTorch files, "/" in npz files and Flax
    trees."""

    @property
    def of_keras(self) -> bool:
        """Whether it was saved by Keras. The metadata are then config files of Keras and names of layers."""
        return self.kind.startswith(("keras", "hdf5"))

    @cached_property
    def arrays(self) -> LazyArrays:
        """Every array of the tree, named by its keys joined with `separator`. Raises InputError if two arrays get the
        same name."""
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
    """The tree of a flat mapping with names such as "params/Dense_0/kernel".

    A name is not split if another whole name is its prefix, or if it has more than 64 parts.
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
