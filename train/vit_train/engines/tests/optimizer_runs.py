"""Runs of both engines' optimizers on arrays, and the formulas written out in NumPy, for the tests of optimizers."""

from collections import ChainMap
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import einops
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

from vit_core import ViTConfig, parity
from vit_core.parameters import Parameter, parameters, stacks
from vit_torch import arrays
from vit_train.config import Optimizer
from vit_train.engines.jax import optimizers as jax_optimizers
from vit_train.engines.torch import many_tensors
from vit_train.engines.torch import optimizers as torch_optimizers
from vit_train.engines.torch.slicing import WHOLE, Slicing

Arrays = dict[str, np.ndarray]
Rows = Mapping[str, Parameter]

MODEL = ViTConfig(
    image_size=16, patch_size=4, width=36, depth=1, heads=3, mlp_dim=40, num_classes=33, layer_scale=0.5, pooling="map"
)
TABLE = parameters(MODEL)
NAMES = [
    "pos_embed",  # 17 x 36: a matrix too small to factor, and without weight decay
    "blocks.0.attn.qkv.weight",  # three of 36 x 36
    "blocks.0.attn.qkv.bias",  # a vector, though of three axes in JAX
    "blocks.0.mlp.fc1.weight",  # 40 x 36: its rows are the longer axis
    "blocks.0.mlp.fc2.weight",  # 36 x 40
]
ROWS = {name: TABLE[name] for name in NAMES}
STEPS = 20

# Epsilons so large that they matter; an Adafactor that reaches its upper limit (at step 8).
BASE = {
    "adamw": Optimizer(name="adamw", beta2=0.98, epsilon=1e-2),
    "lion": Optimizer(name="lion", beta2=0.99),
    "sgd": Optimizer(name="sgd"),
    "adafactor": Optimizer(name="adafactor", beta2=0.8, epsilon=1e-2),
    "lamb": Optimizer(name="lamb", epsilon=1e-2),
    "muon": Optimizer(name="muon", momentum=0.95, beta2=0.98, epsilon=1e-2),
}
BASE = {name: optimizer.resolved() for name, optimizer in BASE.items()}
DECAYS = dict.fromkeys(BASE, ("decoupled", "independent")) | {
    "sgd": ("decoupled", "independent", "coupled"),
    "lamb": ("decoupled",),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, by depth": {"clip_norm": 60.0, "layer_decay": 0.75, "frozen": ("*.fc2.*",)},
}
RUNS = (
    {
        f"{name}, {decay}, {variant}": optimizer.replace(decay=decay, learning_rate=0.02, weight_decay=0.1, **change)
        for name, optimizer in BASE.items()
        for decay in DECAYS[name]
        for variant, change in VARIANTS.items()
    }
    | {
        f"{name}, no momentum": BASE[name].replace(momentum=0.0, learning_rate=0.02, weight_decay=0.1)
        for name in ("sgd", "adafactor")
    }
    | {"muon, without looking ahead": BASE["muon"].replace(nesterov=False, learning_rate=0.02, weight_decay=0.1)}
)
RUNS |= {
    f"{name}, bfloat16 moments": BASE[name].replace(moment_dtype="bfloat16", learning_rate=0.02, weight_decay=0.1)
    for name in BASE
}
ONE_EACH = {name: RUNS[f"{name}, decoupled, clipped, by depth"] for name in BASE}
"""One of each optimizer, with all that combines with it."""
QUICK = (
    "adamw, decoupled, clipped, by depth",
    "sgd, decoupled, clipped, by depth",
    "lion, decoupled, clipped, by depth",
)
"""Those of them that compile soon."""
RELEASE = [f"{name}, {decay}, plain" for name in ("adafactor", "lamb", "muon") for decay in DECAYS[name]]
"""Those that compile long, and whose steps are a part of the clipped ones'."""


def start(rows: Rows = ROWS) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(row.shape) for name, row in rows.items()}


def gradients(step: int, rows: Rows = ROWS) -> Arrays:
    rng = np.random.default_rng([1, step])
    return {name: rng.standard_normal(row.shape) * 2.0 ** (i % 3) for i, (name, row) in enumerate(rows.items())}


def fraction(step: int) -> float:
    return (step + 1) / 4 if step < 4 else 1 - step / 40


class InJax:
    """Optimizer steps in JAX on arrays in the layout on disk; under jax.jit with donated arrays, or op by op."""

    def __init__(self, config: Optimizer, params: Arrays, rows: Rows = ROWS, jitted: bool = False) -> None:
        self.config, self.rows, self.params = config, rows, dict(params)
        self.dtype = next(iter(params.values())).dtype
        self.update = update_of(config, rows, self.dtype)
        self.trained = self._on_device(params)
        self.state = {leaf: jnp.zeros(x.shape, x.dtype) for leaf, (x, _) in self.update.statistics.items()}
        self.moved = compiled(config, self.dtype) if jitted else partial(moved, self.update)

    def step(self, step: int, gradients: Arrays) -> None:
        share = jnp.asarray(fraction(step), self.dtype)
        rate, g = self.config.learning_rate * share, self._on_device(gradients)
        self.trained, self.state = self.moved(self.trained, g, self.state, jnp.int32(step), rate, share)

    def export(self) -> Arrays:
        stacks, layout = self.update.stacks, jax_optimizers.to_disk_layout
        return dict(ChainMap(*(layout(stacks[name], np.array(p)) for name, p in self.trained.items()), self.params))

    def statistics(self) -> Arrays:
        found = {}
        for leaf, x in self.state.items():
            kind, _, stack = leaf.partition("/")
            layers = jax_optimizers.to_disk_layout(
                self.update.stacks[stack], np.array(x), by_matrix=self.update.by_matrix
            )
            found |= {f"{kind}/{name}": layer for name, layer in layers.items()}
        return found

    def restore(self, step: int, statistics: Arrays) -> None:
        for leaf, (x, _) in self.update.statistics.items():
            kind, _, name = leaf.partition("/")
            stack = self.update.stacks[name]
            layers = {row.name: statistics[f"{kind}/{row.name}"] for row in stack.rows}
            by_matrix = self.update.by_matrix
            host = jax_optimizers.from_disk_layout(stack, layers, x.shape, by_matrix=by_matrix)
            self.state[leaf] = jnp.array(host, x.dtype)

    def _on_device(self, arrays: Arrays) -> dict[str, jax.Array]:
        return {
            name: jnp.array(jax_optimizers.from_disk_layout(stack, arrays, stack.jax_shape), self.dtype)
            for name, stack in self.update.stacks.items()
        }


def update_of(config: Optimizer, rows: Rows, dtype: Any) -> jax_optimizers.OptimizerUpdate:
    factors = config.factors(rows)
    return jax_optimizers.OptimizerUpdate(config.resolved(), stacks(rows[name] for name in factors), factors, dtype)


def moved(update: jax_optimizers.OptimizerUpdate, params: Any, gradients: Any, state: Any, *scalars: Any) -> Any:
    if limit := update.config.clip_norm:
        squares = jax_optimizers.squared_norms(gradients, update.stacks)
        gradients = jax_optimizers.clip(gradients, jnp.concatenate(list(squares.values())).sum(), limit)
    return update.update(params, gradients, state, *scalars)


@cache
def compiled(config: Optimizer, dtype: Any) -> Any:
    return jax.jit(partial(moved, update_of(config, ROWS, dtype)), donate_argnums=(0, 2))


class InTorch:
    """The same steps in torch; slicing: of slices of the parameters."""

    def __init__(
        self, config: Optimizer, params: Arrays, rows: Rows = ROWS, jitted: bool = False, slicing: Slicing = WHOLE
    ) -> None:
        self.config, self.rows = config, rows
        self.params = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in params.items()}
        self.update = torch_optimizers.OptimizerUpdate(config, rows, config.factors(rows), self.params, slicing)

    def step(self, step: int, gradients: Arrays) -> None:
        grads = {name: torch.tensor(gradients[name]).to(self.params[name]) for name in self.update.factors}
        if self.config.clip_norm:
            squares = many_tensors.squared_norms(list(grads.values()))
            torch_optimizers.clip(grads, squares, self.config.clip_norm)
        dtype = next(iter(self.params.values())).dtype
        rates = self.config.learning_rate * fraction(step), fraction(step)
        self.update.step(grads, *torch.tensor(rates, dtype=dtype))

    def export(self) -> Arrays:
        return {name: p.detach().numpy().copy() for name, p in self.params.items()}

    def statistics(self) -> Arrays:
        return {key: arrays.to_numpy(x).copy() for key, x in self.update.statistics().items()}

    def restore(self, step: int, statistics: Arrays) -> None:
        self.update.restore(step, {key: arrays.from_numpy(array) for key, array in statistics.items()})


ENGINES: dict[str, Any] = {"jax": InJax, "torch": InTorch}


def run(engine: Any, steps: range = range(STEPS)) -> Any:
    for step in steps:
        engine.step(step, gradients(step, engine.rows))
    return engine


def assert_same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in b:
        assert a[name].shape == b[name].shape
        assert parity.difference(a[name], b[name])[1] <= parity.FLOAT64_BOUND, name


def matrices(row: Parameter, array: np.ndarray) -> list[np.ndarray]:
    """The matrices that the parameter table defines for a parameter in torch's layout. (`reduce`, because the pattern
    of pos_embed leaves out an axis of length 1.)"""
    if row.matrix is None:
        return [array.ravel()]
    view = einops.reduce(array, f"{row.torch} -> {row.matrix}", "sum", **row.sizes)
    return [view] if view.ndim == 2 else list(view)


def written_out(o: Optimizer, rows: Rows = ROWS) -> Arrays:
    """The formulas in the docstring of Optimizer, in NumPy."""
    trained, params = o.factors(rows), start(rows)
    states: dict[tuple[str, int], dict[str, Any]] = {}
    for step in range(STEPS):
        grads = {name: gradients(step, rows)[name] for name in trained}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            row, lr = rows[name], o.learning_rate * fraction(step) * trained[name]
            clipped = g * (o.clip_norm / max(norm, o.clip_norm)) if o.clip_norm else g
            pieces = zip(matrices(row, params[name]), matrices(row, clipped), strict=True)
            moved = [
                formula(o, step + 1, p, g, states.setdefault((name, i), {}), lr, fraction(step), row)
                for i, (p, g) in enumerate(pieces)
            ]
            params[name] = np.stack(moved).reshape(row.shape)
    return params


def near_orthogonal(x: np.ndarray) -> np.ndarray:
    """U p(S) V^T by the singular value decomposition, where p is Muon's polynomial, five times."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vt


def formula(o: Optimizer, t: int, p: Any, g: Any, s: dict[str, Any], lr: float, share: float, row: Parameter) -> Any:
    weight_decay = o.weight_decay if row.decay else 0.0
    m, v = s.get("m", 0), s.get("v", 0)
    if o.decay == "coupled":
        g = g + weight_decay * p
    if o.name == "muon" and row.name.startswith("blocks.") and g.ndim == 2:
        s["m"] = m = o.momentum * m + (1 - o.momentum) * g
        seen = o.momentum * m + (1 - o.momentum) * g if o.nesterov else m
        u = 0.2 * np.sqrt(max(g.shape)) * near_orthogonal(seen)
    elif o.name in ("adamw", "lamb", "muon"):
        s["m"], s["v"] = m, v = o.beta1 * m + (1 - o.beta1) * g, o.beta2 * v + (1 - o.beta2) * g**2
        u = m / (1 - o.beta1**t) / (np.sqrt(v / (1 - o.beta2**t)) + o.epsilon)
    elif o.name == "lion":
        u, s["m"] = np.sign(o.beta1 * m + (1 - o.beta1) * g), o.beta2 * m + (1 - o.beta2) * g
    elif o.name == "sgd":
        u = s["m"] = o.momentum * m + g
    else:
        beta = min(o.beta2, 1 - t**-0.8)
        square = g**2 + o.epsilon
        if g.ndim == 2 and min(g.shape) >= 32:
            s["rows"] = beta * s.get("rows", 0) + (1 - beta) * square.mean(axis=1)
            s["columns"] = beta * s.get("columns", 0) + (1 - beta) * square.mean(axis=0)
            v = np.outer(s["rows"], s["columns"]) / s["rows"].mean()
        else:
            s["v"] = v = beta * v + (1 - beta) * square
        u = s["m"] = o.momentum * m + (1 - o.momentum) * g / np.sqrt(v)
    if o.moment_dtype:  # rounded between steps: the update of this step uses it unrounded
        s["m"] = s["m"].astype(ml_dtypes.bfloat16).astype(np.float64)
    if o.name == "lamb":
        u = u + weight_decay * p
        return p - lr * u * np.linalg.norm(p) / np.linalg.norm(u)
    lost = {"decoupled": lr, "independent": share, "coupled": 0.0}[o.decay] * weight_decay
    return p - lr * u - lost * p
