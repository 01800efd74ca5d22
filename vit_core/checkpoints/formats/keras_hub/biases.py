"""Finds which layers of a Vision Transformer of keras_hub have biases, and adds the missing ones as zeros.

keras_hub's classes choose biases for other groups of layers than ViTConfig: if some layers of a group have them, the
others get zeros, which changes no output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import DTYPES, LazyArray
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.keras_hub.families import PARTS, Family, in_block
from vit_core.errors import InputError


@dataclass(frozen=True)
class Biases:
    """The biases of all blocks."""

    fields: Mapping[str, Any]
    """Those of ViTConfig."""
    there: Mapping[str, bool]
    """Layer in a block -> whether it has a bias."""
    zeros: Mapping[str, LazyArray]
    """The biases that were added."""
    notes: tuple[str, ...]


def find_biases(source: Source, family: Family, depth: int, *, gated: bool) -> Biases:
    """Finds the biases. Raises InputError if the blocks differ."""
    queries = [f"{family.attention}/{part}" for part in PARTS]
    others = [f"{family.attention}/output_dense"]
    others += [name for ours, names in in_block(family, gated).items() if "mlp" in ours for name in names.split()]
    there = {layer: _has_bias(source, family, layer, depth) for layer in (*queries, *others)}
    own = [there[layer] for layer in queries]
    key_bias = own != [True, False, True]
    added = list[str]()
    for group in (queries if key_bias else [], others):
        if any(there[layer] for layer in group):
            added += [layer for layer in group if not there[layer]]
    notes = (f"biases that the file does not have are set to zeros: {', '.join(added)}",) if added else ()
    zeros = {f"{name}/vars/1": zero for i in range(depth) for name, zero in _zeros(source, family, added, i)}
    fields = {"qkv_bias": any(own), "key_bias": key_bias, "proj_bias": any(there[layer] for layer in others)}
    return Biases(fields, there, zeros, notes)


def _has_bias(source: Source, family: Family, layer: str, depth: int) -> bool:
    found = {f"{family.block_name(i)}/{layer}/vars/1" in source.arrays for i in range(depth)}
    if len(found) > 1:
        raise InputError(f"{source.path}: {layer} has a bias in some blocks only, expected one in all or in none")
    return found.pop()


def _zeros(source: Source, family: Family, layers: list[str], i: int) -> list[tuple[str, LazyArray]]:
    """Zeros with the shape and type of the outputs of each layer's kernel."""
    made = []
    for layer in layers:
        name = f"{family.block_name(i)}/{layer}"
        if (kernel := source.arrays.entries.get(f"{name}/vars/0")) is None:
            continue  # the rules report it as missing
        shape = kernel.shape[-1:] if layer.endswith("output_dense") else kernel.shape[1:]
        zeros = partial(np.zeros, shape, DTYPES.get(kernel.dtype, DTYPES["float32"]))
        made.append((name, LazyArray(shape, kernel.dtype, zeros)))
    return made
