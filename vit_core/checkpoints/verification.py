"""Verifies a written checkpoint: reads it back and compares its config and outputs with the original model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.any_aspect import is_any_aspect
from vit_core.checkpoints.formats.vit.folder import WEIGHTS
from vit_core.checkpoints.opening import open_checkpoint
from vit_core.config import TRAINING_ONLY, ViTConfig
from vit_core.errors import InputError
from vit_core.storage import Location, absolute

_ASKED_FOR = ((), ("image_size",), ("rope",), ("image_size", "rope"), ("image_size", "rope", "final_norm"))
"""Sets of fields, the smallest first, that a format without a config file may need from the user to read some models
(grids that are not square, rotary positions)."""


class Twin(Protocol):
    """The functions of a twin that verification calls. The packages vit_jax and vit_torch have them."""

    def load(self, path: Checkpoint, *, dtype: str) -> Any: ...

    def predict(self, model: Any, x_BHWC: np.ndarray, *, interpolate: bool) -> np.ndarray: ...


@dataclass(frozen=True)
class Difference:
    """The difference between two sets of outputs for the same random images."""

    what: str
    max_abs: float
    relative: float
    equal_rounded: int
    outputs: int
    bound: float
    """Upper bound of `relative` for `ok`."""

    @property
    def ok(self) -> bool:
        return self.relative <= self.bound

    def __str__(self) -> str:
        if not np.isfinite(self.max_abs):
            return f"{self.what}: cannot be compared, the outputs are not finite"
        return (
            f"{self.what}: largest difference {self.max_abs:.1e} (relative {self.relative:.1e}, bound "
            f"{self.bound:.0e}), equal bit for bit once rounded to float32: "
            f"{self.equal_rounded} of {self.outputs}"
        )


def check_not_source(target: Location, *sources: Location) -> None:
    """Raises InputError if `target` is one of the sources, or writing it would replace files of one."""
    target = absolute(target)
    for source in map(absolute, sources):
        holds_it = target == source.parent and (target / WEIGHTS).exists()
        part_of_it = target.parent == source and target.is_file()
        if target == source or holds_it or part_of_it:
            raise InputError(f"{target}: is the source or a part of it; choose another target")


def read_back(path: Location, format: str, written: ViTConfig) -> tuple[Checkpoint, dict[str, Any]]:
    """Opens a written checkpoint. Also returns the config fields that had to be given because its files do not contain
    them."""
    for names in _ASKED_FOR:
        missing = {name: getattr(written, name) for name in names}
        try:
            opened = open_checkpoint(path, format=format, fields=missing)
            break
        except InputError:
            if names == _ASKED_FOR[-1]:
                raise
    if more := different(written, opened.config.model):
        missing |= more
        opened = open_checkpoint(path, format=format, fields=missing)
    return opened, missing


def different(expected: ViTConfig, found: ViTConfig) -> dict[str, Any]:
    """Name -> expected value of the fields that differ and change the outputs."""
    a, b = _effective(expected), _effective(found)
    return {name: getattr(expected, name) for name in a if a[name] != b[name]}


def _effective(config: ViTConfig) -> Mapping[str, Any]:
    fields = {name: getattr(config, name) for name in ViTConfig.model_fields if name not in TRAINING_ONLY}
    return {**fields, "head_dim": config.attention_dim, "layer_scale": config.layer_scale is None}


def probes(config: CheckpointConfig) -> list[np.ndarray]:
    """Random batches of images x_BHWC for which outputs are compared: one of the model's image size and, if images keep
    their aspect ratio (NaFlex), one that is not square."""
    model, (h, w), (P, Q) = config.model, config.model.grid, config.model.patch_size
    sizes = [model.image_size]
    if is_any_aspect(config):
        sizes.append((max(h // 2, 1) * P, 2 * w * Q))
    return [parity.probe(model, 0, image_size=size)[0] for size in sizes]


def outputs_of(twin: Twin, checkpoint: Checkpoint, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model for each batch, in float64. The model is freed afterwards, so that two models are never in
    memory together."""
    model, own = twin.load(checkpoint, dtype="float64"), checkpoint.config.model.image_size
    return [twin.predict(model, x_BHWC, interpolate=x_BHWC.shape[1:3] != own) for x_BHWC in batches]


def difference(what: str, a_BC: np.ndarray, b_BC: np.ndarray, bound: float = parity.FLOAT64_BOUND) -> Difference:
    """Compares two sets of outputs. Raises InputError if their shapes differ."""
    if a_BC.shape != b_BC.shape:
        raise InputError(f"{what}: outputs of shape {a_BC.shape}, expected {b_BC.shape}")
    max_abs, relative = parity.difference(a_BC, b_BC)
    return Difference(what, max_abs, relative, int((np.float32(a_BC) == np.float32(b_BC)).sum()), b_BC.size, bound)
