"""Weights in several files, with an index in JSON: {"weight_map": {name of an array: file}}."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.container import Container, nested
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError, abbreviate, one_line
from vit_core.storage import Location

_LONGEST_INDEX = 2**26


def read_shards(index: FileRange, open_file: Callable[[Location], Container]) -> Container:
    """Opens the shards of an index, which are files in its folder or below it. open_file: opens one shard. Raises
    InputError if a shard or one of its arrays is missing, or if a shard is outside of that folder."""
    with readable(index.path, "an index of shards"):
        if index.length > _LONGEST_INDEX:
            raise ValueError(f"more than {_LONGEST_INDEX:,} bytes")
        shard_of = json.loads(index.read(0, index.length))["weight_map"]
        shard_of = {name: _path_below(shard, index.path) for name, shard in shard_of.items()}
        names = sorted(set(shard_of.values()))
        for shard in names:
            if not (index.path.parent / shard).is_file():
                step = f"{index.path.name} names it as one of {len(names)} shards; copy it here too"
                raise InputError(f"{index.path.parent / shard}: no such file; {step}")
        opened = {shard: open_file(index.path.parent / shard) for shard in names}
        entries: dict[str, LazyArray] = {}
        for name, shard in shard_of.items():
            if name not in opened[shard].arrays:
                raise ValueError(f"{shard} has no {name[:60]}")
            entries[name] = opened[shard].arrays.entries[name]
        unnamed, twice = _unnamed(shard_of, opened)
        entries |= {name: opened[shard].arrays.entries[name] for name, shard in unnamed.items()}
    first = next(iter(opened.values()), Container(index.path, "", {}))
    notes = tuple(dict.fromkeys(note for container in opened.values() for note in container.notes))
    if unnamed:
        notes += (
            f"arrays read although the index does not name them: {abbreviate([one_line(x)[:60] for x in unnamed])}",
        )
    if twice:
        notes += (f"left out: in several shards and not in the index: {abbreviate([one_line(x)[:60] for x in twice])}",)
    tree: dict[str, Any] = nested(entries, "/") if first.separator == "/" else dict(entries)
    return replace(first, path=index.path, kind=f"{first.kind} shards", tree=tree, notes=notes)


def _path_below(shard: object, index: Location) -> str:
    """The path of a shard from the folder of its index, with "/". Raises InputError if it leads out of that folder."""
    if not isinstance(shard, str) or not shard or shard.endswith(".index.json"):
        raise ValueError(f"'{str(shard)[:60]}' names no shard")
    path = PurePosixPath(shard.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise InputError(
            f"{index}: names the shard '{one_line(shard)[:60]}', which is outside of its folder; move the shards "
            "beside the index, and write their names alone in its weight_map"
        )
    return str(path)


def _unnamed(shard_of: dict[str, str], opened: dict[str, Container]) -> tuple[dict[str, str], set[str]]:
    """Arrays that the index does not name: those in one shard, with their shard, because libraries read them too; and
    those in several shards."""
    found, twice = dict[str, str](), set[str]()
    for shard, container in opened.items():
        for name in container.arrays:
            if name not in shard_of and found.setdefault(name, shard) != shard:
                twice.add(name)
    return {name: shard for name, shard in found.items() if name not in twice}, twice
