"""Whether two models are one: the measure, the bounds and the report that the tests and `vit parity` share.

The measure of a pair of tensors is max|a - b| / max|b|, over a whole stored tensor. (So the key bias, whose gradient is
zero in exact arithmetic, is held against the query and value biases it is stored with; the bias of the keys' norm,
which is stored alone, against that of the queries'.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoint import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import Parameter, parameters

FLOAT64_BOUND = 1e-12
"""Every stage and gradient in float64. Rounding alone leaves 1e-14 at B/16; what needs a looser bound has met a bug."""
COMPARABLE = 3.0
"""Errors of two twins that round at the same places are two draws of one size: the worst of many logits each."""
FLOAT32_BOUND = 1e-5
"""The logits in float32: about 170 roundings (2**-24 each) of their scale, for any published size."""


class Twin(Protocol):
    """What parity asks of a twin's package: vit_jax and vit_torch, or anything with the same verbs."""

    def load(self, path: Checkpoint, *, dtype: str) -> Any: ...

    def trace(self, model: Any, x_BHWC: np.ndarray, probe_BC: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Row:
    """One compared tensor."""

    name: str
    max_abs: float
    relative: float

    @property
    def ok(self) -> bool:
        return self.relative <= FLOAT64_BOUND


@dataclass(frozen=True)
class Report:
    """All compared tensors, in the order the network computes them."""

    rows: tuple[Row, ...]
    equal_rounded: int
    """Outputs that are bit-for-bit equal once rounded to float32."""
    outputs: int

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def worst(self) -> Row:
        return max(self.rows, key=lambda row: row.relative)

    @property
    def first_divergence(self) -> Row | None:
        """The first tensor out of bounds: where to look."""
        return next((row for row in self.rows if not row.ok), None)


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Report:
    """Compares two float64 traces, in the order of b; a tensor only one of them has counts as infinitely far apart."""
    rows = []
    for name in [*b, *(name for name in a if name not in b)]:
        there = name in a and name in b and a[name].shape == b[name].shape
        sibling = b.get(name.replace("k_norm.bias", "q_norm.bias"))
        rows.append(Row(name, *(difference(a[name], b[name], sibling) if there else (np.inf, np.inf))))
    equal = np.float32(a["output"]) == np.float32(b["output"])
    return Report(tuple(rows), int(equal.sum()), equal.size)


@dataclass(frozen=True)
class OracleRow:
    """One tensor in low precision: each twin's error against a float64 oracle, and how far the twins are apart."""

    name: str
    error_a: float
    error_b: float
    apart: float
    ok: bool


def against_oracle(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], oracle: Mapping[str, np.ndarray], dtype: str
) -> list[OracleRow]:
    """Each stage of two low-precision traces against a float64 one, in its order; the output is bound.

    float32: the outputs are within FLOAT32_BOUND. bfloat16: each twin's error is within COMPARABLE times the other's.
    """
    rows = []
    for name in oracle:
        if not name.startswith("grad."):
            error_a, error_b, apart = (difference(x[name], y[name])[1] for x, y in ((a, oracle), (b, oracle), (a, b)))
            comparable = np.isfinite(apart) and max(error_a, error_b) <= COMPARABLE * min(error_a, error_b)
            ok = name != "output" or (apart <= FLOAT32_BOUND if dtype == "float32" else comparable)
            rows.append(OracleRow(name, error_a, error_b, apart, bool(ok)))
    return rows


def difference(a: np.ndarray, b: np.ndarray, like: np.ndarray | None = None) -> tuple[float, float]:
    """(max|a - b|, max|a - b| / max|b|), computed in float64; not finite anywhere counts as infinite.

    like: whose maximum is taken, if not b's.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    like = b if like is None else like.astype(np.float64)
    if not all(np.isfinite(x).all() for x in (a, b, like)):
        return np.inf, np.inf
    max_abs, scale = float(np.abs(a - b).max(initial=0.0)), float(np.abs(like).max(initial=0.0))
    return max_abs, 0.0 if max_abs == 0 else max_abs / scale if scale else np.inf


def probe(
    config: ViTConfig, seed: int, batch: int = 2, image_size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Random images x_BHWC, uniform on [-1, 1], and the random weights probe_BC of the outputs: both float64."""
    rng = np.random.default_rng(seed)
    x_BHWC = rng.uniform(-1, 1, (batch, *(image_size or config.image_size), config.channels))
    return x_BHWC, rng.standard_normal((batch, config.num_classes or config.features))


def randomized(config: ViTConfig, seed: int) -> dict[str, np.ndarray]:
    """A value for every parameter that leaves none idle, float64 in torch's layout: what parity is shown on.

    Matrices keep the scale of their inputs, biases and tokens are of order one, scales lie about one.
    """
    rng = np.random.default_rng(seed)
    return {name: _random(row, rng) for name, row in parameters(config).items()}


def awakened(checkpoint: Checkpoint, seed: int) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with its constant parameters randomised, and their names: a zero head would prove nothing."""
    idle = [name for name, array in checkpoint.arrays.items() if array.size > 1 and (array == array.flat[0]).all()]
    random = randomized(checkpoint.config.model, seed)
    awake: LazyArrays = checkpoint.arrays
    for name in idle:
        awake = awake.with_array(name, convert(random[name], "float32"))
    return Checkpoint(checkpoint.path, checkpoint.config, awake), idle


def run(checkpoint: Checkpoint, twins: Iterable[Twin], dtype: str, seed: int) -> list[dict[str, np.ndarray]]:
    """The traces of each twin, from the same weights on the same random images."""
    x_BHWC, probe_BC = probe(checkpoint.config.model, seed)
    return [twin.trace(twin.load(checkpoint, dtype=dtype), x_BHWC, probe_BC) for twin in twins]


def run_each(checkpoints: Sequence[Checkpoint], twins: Iterable[Twin], seed: int) -> list[dict[str, np.ndarray]]:
    """The float64 traces of several checkpoints on the same random images, each by a twin of its own.

    Without gradients where their parameters are not the same. InputError for models that take or give other shapes.
    """
    first, *others = (checkpoint.config.model for checkpoint in checkpoints)
    x_BHWC, probe_BC = probe(first, seed)
    for other in others:
        for what in ("image_size", "channels", "num_classes", "features"):
            a, b = getattr(first, what), getattr(other, what)
            if a != b and not (what == "features" and first.num_classes):
                raise InputError(f"models with {what} {a} and {b}: there is nothing to compare")
    traces = [
        twin.trace(twin.load(checkpoint, dtype="float64"), x_BHWC, probe_BC)
        for twin, checkpoint in zip(twins, checkpoints, strict=True)
    ]
    if all(checkpoint.arrays.shapes == checkpoints[0].arrays.shapes for checkpoint in checkpoints):
        return traces
    return [{name: x for name, x in trace.items() if not name.startswith("grad.")} for trace in traces]


def _random(row: Parameter, rng: np.random.Generator) -> np.ndarray:
    sample = rng.standard_normal(row.shape)
    if row.decay:
        return sample / np.sqrt(row.size / row.shape[0])
    if row.jax_name.endswith(("scale", "gamma")):
        return 1 + 0.3 * sample
    return 0.5 * sample
