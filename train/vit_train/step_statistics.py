"""Reads the optimizer's statistics and the moving average of a step that Orbax saved, without JAX.

A statistic is the leaf "<kind>/<stack>" of the JAX engine's state. Optimizers that see parameters as matrices (LAMB,
Adafactor) keep it as [matrices, rows, columns], or as a mean over rows or columns [matrices, length]; the others keep
it in the layout of the parameter.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.formats.vit.step import PARAMETERS, OrbaxStep
from vit_core.parameters import DECODER, Parameter, Stack

SKIPPED = "skipped"
"""The leaf that counts skipped updates."""
AVERAGE = "average"
"""The kind of leaf that holds the moving average."""
ADAPTER = "adapter"
"""The kind of leaf that holds the matrices of low-rank adapters."""
BASE = "base"
"""The kind of leaf that holds a weight without its adapter, which is a part of the step's parameter."""

_MEANS = {"second_moment_rows": slice(0, 1), "second_moment_columns": slice(1, None)}
"""Statistics that are means over a matrix's rows or columns, and which of the matrix's lengths they have."""


def step_statistics(step: OrbaxStep, rows: Mapping[str, Parameter]) -> LazyArrays:
    """Statistics by "<kind>/<canonical name>", and "skipped", as `statistics` of the engines returns them: in PyTorch's
    layout, means over rows and columns as [matrices of the parameter, length]. Adapters and their base too.

    A masked autoencoder's decoder is among them, as "params/<canonical name>".

    Raises InputError if the step has other parameters than `rows`.
    """
    kinds = {leaf.partition("/")[0] for leaf in step.manifest.leaves} - {PARAMETERS, SKIPPED}
    by_matrix = kinds - {AVERAGE, ADAPTER, BASE} if step.manifest.structured else set()
    leaves = step.leaves(kinds)
    leaves += [leaf for leaf in step.leaves((PARAMETERS,)) if leaf.startswith(f"{PARAMETERS}/{DECODER}")]

    def shape_of(kind: str, stack: Stack) -> tuple[int, ...]:
        if kind not in by_matrix:
            return stack.jax_shape
        return len(stack.rows) * _matrices(stack), *_lengths(kind, stack)

    arrays: dict[str, LazyArray] = {}
    for leaf, stack in step.stacks(rows, leaves, shape_of):
        kind, dtype = leaf.partition("/")[0], step.manifest.leaves[leaf].dtype
        for i, row in enumerate(stack.rows):
            read: Callable[[], np.ndarray] = partial(step.read_row, leaf, stack, i)
            if kind in by_matrix:
                read = partial(_read_matrices, step, leaf, stack, i)
            shape = (_matrices(stack), *_lengths(kind, stack)) if kind in _MEANS else row.shape
            arrays[f"{kind}/{row.name}"] = LazyArray(shape, dtype, read)
    if SKIPPED in step.manifest.leaves:
        arrays[SKIPPED] = step.lazy_leaf(SKIPPED)
    return LazyArrays(arrays)


def _read_matrices(step: OrbaxStep, leaf: str, stack: Stack, i: int) -> np.ndarray:
    """Row i of a leaf that is kept by matrix."""
    row, matrices = stack.rows[i], _matrices(stack)
    array = step.read_leaf(leaf, slice(i * matrices, (i + 1) * matrices))
    return array.reshape(row.shape) if array.size == row.size else array


def _matrices(stack: Stack) -> int:
    """How many matrices the optimizer sees in each parameter of a stack."""
    return stack.rows[0].size // prod(stack.rows[0].matrix_shape)


def _lengths(kind: str, stack: Stack) -> tuple[int, ...]:
    """Shape of a statistic of one matrix."""
    shape = stack.rows[0].matrix_shape
    return shape[_MEANS[kind]] if kind in _MEANS else shape
