"""Whether two models are the same: the measure, the bounds and the report that the tests and `vit parity` share.

The measure of a pair of tensors is max|a - b| / max|b|, over a whole stored tensor. The key bias, whose
gradient is zero in exact arithmetic, is thereby compared relative to the query and value biases that it is stored with;
the bias of the keys' norm, which is stored alone, relative to that of the queries' norm; and the last bias of a network
of relative positions, which adds one number to all scores where no token comes before the patches, relative to the
weights that it is added to.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vit_core.config import ViTConfig
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.parameters import Parameter, parameters

FLOAT64_BOUND = 1e-12
"""Bound of every stage and gradient in float64: 9,000 roundings of 2**-53.

A gradient of L/16 has three times the roundings of its logits (see FLOAT32_BOUND), which makes 307 of 2**-53, and is a
sum over 2 x 197 tokens whose terms cancel to a twentieth of their sizes: 6,100, or 7e-13. A larger difference is a bug.
"""
FLOAT32_BOUND = 1e-5
"""Bound of the logits in float32, of any published size: 168 roundings of 2**-24 of the largest logit.

In each of the 24 blocks of L/16, sums of 1,024, 64, 197, 1,024, 1,024 and 4,096 products follow each other. A sum of n
terms of both signs is off by 0.42 sqrt(n / 2) roundings: the partial sums are smaller, and a rounding has a standard
deviation of 0.42 of its bound. This makes 125 for one twin and 177 for the difference of two, if each block replaced
its input. A block only adds to it, so that early roundings become smaller beside the sum.
"""
SHARDED_BOUND = 1e-10
"""Bound of training in float64 on several devices or in several processes and on one, which sum in other orders.

In six steps, gradients differ by 7 roundings of 2**-53 of their largest value, which is about 1/8 in these runs. Where
a gradient is almost zero, AdamW divides the difference by epsilon = 1e-6: 1e-10 of an update, and a trained tensor is
at least as large as an update. In 300 steps, each weight has 8 roundings in each step, which grow to 3e-11 in weights
and 6e-11 in losses (`parity_tests/test_growth.py` measures it).
"""
COMPARABLE = 3.0
"""Bound of the ratio of the twins' largest errors in bfloat16.

Both round at the same places, so each error is a draw from one normal distribution. The largest of 20 draws is more
than three times as large as that of 20 other draws in one of 2,500 cases, in either direction.
"""


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
        """The first tensor out of bounds, in the order of computation."""
        return next((row for row in self.rows if not row.ok), None)


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Report:
    """Compares two float64 traces, in the order of `b`. A tensor that only one of them has differs infinitely."""
    rows, prefixed = [], any(name.endswith(("cls_token", "reg_token", "dist_token")) for name in b)
    for name in [*b, *(name for name in a if name not in b)]:
        there = name in a and name in b and a[name].shape == b[name].shape
        like = name.replace("k_norm.bias", "q_norm.bias")
        if not prefixed:
            like = like.replace("rel_pos.mlp.fc2.bias", "rel_pos.mlp.fc2.weight")
        sibling = b.get(like)
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
    """Compares each stage of two low-precision traces with a float64 one; only the output has a bound.

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
    """(max|a - b|, max|a - b| / max|b|), computed in float64; infinite where any value is not finite.

    like: the array whose maximum is the scale, instead of b.
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


def randomized(config: ViTConfig, seed: int, mae: MaskedAutoencoder | None = None) -> dict[str, np.ndarray]:
    """Random values for every parameter, float64 in torch's layout, so that each one affects the outputs.

    Matrices keep the scale of their inputs, biases and tokens are of order one, scales lie about one.
    """
    rng = np.random.default_rng(seed)
    return {name: _random(row, rng) for name, row in parameters(config, mae).items()}


def _random(row: Parameter, rng: np.random.Generator) -> np.ndarray:
    sample = rng.standard_normal(row.shape)
    if row.decay:
        return sample / np.sqrt(row.size / row.shape[0])
    if row.jax_name.endswith(("scale", "gamma")):
        return 1 + 0.3 * sample
    return 0.5 * sample
