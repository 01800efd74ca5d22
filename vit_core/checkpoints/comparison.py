"""Runs the twins on checkpoints and random images, so that `vit_core.parity` can compare what they compute."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vit_core.arrays import convert
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.errors import InputError
from vit_core.parity import probe, randomized

Trace = dict[str, np.ndarray]
"""The float64 output of each stage by name, and the gradients as "grad.NAME" in torch's layout."""


class Twin(Protocol):
    """The functions of a twin that the comparison calls. The packages vit_jax and vit_torch have them."""

    def load(self, path: Checkpoint, *, dtype: str) -> Any: ...

    def trace(self, model: Any, x_BHWC: np.ndarray, probe_BC: np.ndarray) -> Trace: ...


def randomize_constants(checkpoint: Checkpoint, seed: int) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with every constant parameter replaced by random values, and the names of those parameters.

    Otherwise a head of zeros would hide every difference between two models.
    """
    constant = [name for name, array in checkpoint.arrays.items() if array.size > 1 and (array == array.flat[0]).all()]
    random, arrays = randomized(checkpoint.config.model, seed), checkpoint.arrays
    for name in constant:
        arrays = arrays.with_array(name, convert(random[name], "float32"))
    return dataclasses.replace(checkpoint, arrays=arrays), constant


def trace_twins(checkpoint: Checkpoint, twins: Iterable[Twin], dtype: str, seed: int) -> list[Trace]:
    """The trace of each twin, from the same weights and the same random images."""
    x_BHWC, probe_BC = probe(checkpoint.config.model, seed)
    return [twin.trace(twin.load(checkpoint, dtype=dtype), x_BHWC, probe_BC) for twin in twins]


def trace_each(checkpoints: Sequence[Checkpoint], twins: Iterable[Twin], seed: int) -> list[Trace]:
    """The float64 trace of each checkpoint on the same random images, computed by the twin at the same position.

    Gradients are left out where the checkpoints have different parameters. Raises InputError for models with different
    inputs or outputs.
    """
    first, *others = (checkpoint.config.model for checkpoint in checkpoints)
    x_BHWC, probe_BC = probe(first, seed)
    for other in others:
        for field in ("image_size", "channels", "num_classes", "features"):
            a, b = getattr(first, field), getattr(other, field)
            if a != b and not (field == "features" and first.num_classes):
                raise InputError(f"models with {field} {a} and {b} cannot be compared; expected the same {field}")
    traces = [
        twin.trace(twin.load(checkpoint, dtype="float64"), x_BHWC, probe_BC)
        for twin, checkpoint in zip(twins, checkpoints, strict=True)
    ]
    if all(checkpoint.arrays.shapes == checkpoints[0].arrays.shapes for checkpoint in checkpoints):
        return traces
    return [{name: x for name, x in trace.items() if not name.startswith("grad.")} for trace in traces]
