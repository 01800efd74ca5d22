"""safetensors files: read by the library, written here array by array."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from vit_core.arrays import DTYPES, LazyArray, LazyArrays
from vit_core.checkpoints.containers.checked_arrays import checked
from vit_core.checkpoints.containers.container import Container
from vit_core.checkpoints.containers.partial_copy import AHEAD
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import one_line

_TYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
} | {f"{sign}{bits}": f"{kind}{bits}" for sign, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
_LONGEST_HEADER = 10**8
"""Bytes; the same limit as in the library."""


def read_safetensors(source: FileRange) -> Container:
    """Opens a safetensors file. Raises InputError if it is damaged."""
    with readable(source.path, "a complete safetensors file"):
        offsets = _offsets(source) if source.partial else {}
        file: Any = safe_open(source.file, framework="np")  # the library's types are incomplete
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        tree = {}
        for name, view in views.items():
            kind = view.get_dtype()
            read = partial(_read, source, offsets.get(name), file.get_tensor, name)
            tree[name] = LazyArray(tuple(view.get_shape()), _TYPES.get(kind, kind), read)
        return Container(source.path, "safetensors", tree, file.metadata() or {})


def _offsets(source: FileRange) -> dict[str, tuple[int, int]]:
    """Array -> start and length of its bytes in the file, for a file that is downloaded in parts. Downloads the
    header."""
    header = 8 + int.from_bytes(source.read(0, 8), "little")
    if header > _LONGEST_HEADER:
        raise ValueError(f"the header has more than {_LONGEST_HEADER:,} bytes")
    fields = json.loads(source.read(8, header - 8))
    spans = {name: entry["data_offsets"] for name, entry in fields.items() if name != "__metadata__"}
    return {name: (header + start, end - start) for name, (start, end) in spans.items()}


def _read(source: FileRange, span: tuple[int, int] | None, get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    with readable(source.path, f"complete (reading {one_line(name)[:60]})"):
        if span:
            source.require(*span, ahead=AHEAD)
        return get(name)


def write_safetensors(path: Path, arrays: LazyArrays, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, with one array at a time in memory. (The library's writer needs all arrays in memory,
    twice.)"""
    kinds = {name: kind for kind, name in _TYPES.items()}
    entries = dict(sorted(arrays.entries.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize))  # keeps alignment
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        header[name] = {"dtype": kinds[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries.items():
            file.write(checked(name, entry, arrays[name]).reshape(-1).view(np.uint8).data)
