"""Both engines' optimizers against the formulas written out, against each other, and against other people's."""

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import einops
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import timm.optim
import torch

from train import optimizers_jax, optimizers_torch
from train.config import Optimizer
from vit_core import ViTConfig, parity
from vit_core.parameters import Parameter, Stack, parameters, stacks
from vit_torch import arrays

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

# Epsilons that are felt; an Adafactor that meets its cap (at step 8).
BASE = {
    "adamw": Optimizer(name="adamw", beta2=0.98, epsilon=1e-2),
    "lion": Optimizer(name="lion", beta2=0.99),
    "sgd": Optimizer(name="sgd"),
    "adafactor": Optimizer(name="adafactor", beta2=0.8, epsilon=1e-2),
    "lamb": Optimizer(name="lamb", epsilon=1e-2),
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
RUNS = {
    f"{name}, {decay}, {variant}": optimizer.replace(decay=decay, learning_rate=0.02, weight_decay=0.1, **change)
    for name, optimizer in BASE.items()
    for decay in DECAYS[name]
    for variant, change in VARIANTS.items()
} | {
    f"{name}, no momentum": BASE[name].replace(momentum=0.0, learning_rate=0.02, weight_decay=0.1)
    for name in ("sgd", "adafactor")
}
RUNS |= {
    f"{name}, bfloat16 moments": BASE[name].replace(moment_dtype="bfloat16", learning_rate=0.02, weight_decay=0.1)
    for name in BASE
}
FIVE = {name: RUNS[f"{name}, decoupled, clipped, by depth"] for name in BASE}


def start(rows: Rows = ROWS) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(row.shape) for name, row in rows.items()}


def gradients(step: int, rows: Rows = ROWS) -> Arrays:
    rng = np.random.default_rng([1, step])
    return {name: rng.standard_normal(row.shape) * 2.0 ** (i % 3) for i, (name, row) in enumerate(rows.items())}


def fraction(step: int) -> float:
    return (step + 1) / 4 if step < 4 else 1 - step / 40


class InJax:
    """A run from and to arrays in the layout on disk; under jax.jit with donated parameters and state, or op by op."""

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
        found = [optimizers_jax.on_disk(self.update.stacks[name], np.array(p)) for name, p in self.trained.items()]
        return dict(ChainMap(*found, self.params))

    def statistics(self) -> Arrays:
        found = {}
        for leaf, x in self.state.items():
            kind, _, stack = leaf.partition("/")
            layers = optimizers_jax.on_disk(self.update.stacks[stack], np.array(x), pieces=self.update.structured)
            found |= {f"{kind}/{name}": layer for name, layer in layers.items()}
        return found

    def restore(self, step: int, statistics: Arrays) -> None:
        for leaf, (x, _) in self.update.statistics.items():
            kind, _, name = leaf.partition("/")
            stack = self.update.stacks[name]
            layers = {row.name: statistics[f"{kind}/{row.name}"] for row in stack.rows}
            pieces = self.update.structured
            self.state[leaf] = jnp.array(optimizers_jax.off_disk(stack, layers, x.shape, pieces=pieces), x.dtype)

    def _on_device(self, arrays: Arrays) -> dict[str, jax.Array]:
        return {
            name: jnp.array(optimizers_jax.off_disk(stack, arrays, stack.jax_shape), self.dtype)
            for name, stack in self.update.stacks.items()
        }


def update_of(config: Optimizer, rows: Rows, dtype: Any) -> optimizers_jax.Update:
    factors = config.factors(rows)
    return optimizers_jax.Update(config.resolved(), stacks(rows[name] for name in factors), factors, dtype)


def moved(update: optimizers_jax.Update, params: Any, gradients: Any, state: Any, *scalars: Any) -> Any:
    if limit := update.config.clip_norm:
        squares = optimizers_jax.squared_norms(gradients, update.stacks)
        gradients = optimizers_jax.clip(gradients, jnp.concatenate(list(squares.values())).sum(), limit)
    return update.update(params, gradients, state, *scalars)


@cache
def compiled(config: Optimizer, dtype: Any) -> Any:
    return jax.jit(partial(moved, update_of(config, ROWS, dtype)), donate_argnums=(0, 2))


class InTorch:
    """The same in torch."""

    def __init__(self, config: Optimizer, params: Arrays, rows: Rows = ROWS, jitted: bool = False) -> None:
        self.config, self.rows = config, rows
        self.params = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in params.items()}
        self.update = optimizers_torch.Update(config, rows, self.params)

    def step(self, step: int, gradients: Arrays) -> None:
        grads = {name: torch.tensor(gradients[name]).to(self.params[name]) for name in self.update.factors}
        if self.config.clip_norm:
            optimizers_torch.clip(grads, optimizers_torch.squared_norms(grads), self.config.clip_norm)
        self.update.step(grads, self.config.learning_rate * fraction(step), fraction(step))

    def export(self) -> Arrays:
        return {name: p.detach().numpy().copy() for name, p in self.params.items()}

    def statistics(self) -> Arrays:
        return {key: arrays.to_numpy(x).copy() for key, x in self.update.statistics().items()}

    def restore(self, step: int, statistics: Arrays) -> None:
        self.update.restore(step, {key: arrays.from_numpy(array) for key, array in statistics.items()})


ENGINES: dict[str, Any] = {"jax": InJax, "torch": InTorch}


@pytest.fixture(autouse=True)
def _float64(request: pytest.FixtureRequest) -> Iterator[None]:
    with jax.enable_x64("float32" not in request.node.name):
        yield


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
    """The table's view of a parameter in torch's layout. (`reduce`: pos_embed's leaves out an axis of length 1.)"""
    if row.matrix is None:
        return [array.ravel()]
    view = einops.reduce(array, f"{row.torch} -> {row.matrix}", "sum", **row.sizes)
    return [view] if view.ndim == 2 else list(view)


def written_out(o: Optimizer, rows: Rows = ROWS) -> Arrays:
    """What the docstring of Optimizer says, in NumPy."""
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
                formula(o, step + 1, p, g, states.setdefault((name, i), {}), lr, fraction(step), row.decay)
                for i, (p, g) in enumerate(pieces)
            ]
            params[name] = np.stack(moved).reshape(row.shape)
    return params


def formula(o: Optimizer, t: int, p: Any, g: Any, s: dict[str, Any], lr: float, share: float, decays: bool) -> Any:
    weight_decay = o.weight_decay if decays else 0.0
    m, v = s.get("m", 0), s.get("v", 0)
    if o.decay == "coupled":
        g = g + weight_decay * p
    if o.name in ("adamw", "lamb"):
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
    if o.moment_dtype:  # between steps: this one's update has it as it is
        s["m"] = s["m"].astype(ml_dtypes.bfloat16).astype(np.float64)
    if o.name == "lamb":
        u = u + weight_decay * p
        return p - lr * u * np.linalg.norm(p) / np.linalg.norm(u)
    lost = {"decoupled": lr, "independent": share, "coupled": 0.0}[o.decay] * weight_decay
    return p - lr * u - lost * p


@pytest.mark.parametrize("name", RUNS)
def test_both_engines_follow_the_formulas(name: str) -> None:
    expected = written_out(RUNS[name])
    in_jax, in_torch = run(InJax(RUNS[name], start())), run(InTorch(RUNS[name], start()))
    for engine in (in_jax, in_torch):
        assert_same(engine.export(), expected)
    assert_same(in_jax.export(), in_torch.export())
    assert_same(in_jax.statistics(), in_torch.statistics())
    assert_same(in_torch.statistics(), in_jax.statistics())
    unmoved = {n for n, array in start().items() if np.array_equal(array, in_jax.export()[n])}
    assert unmoved == ROWS.keys() - RUNS[name].factors(ROWS).keys()


PLAIN = {name: TABLE[name] for name in (f"blocks.0.{of}.weight" for of in ("norm1", "mlp.fc1", "mlp.fc2"))}


def of_torch(o: Optimizer, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> Arrays:
    """A run of somebody's torch optimizer on parameters that are matrices or vectors as they are."""
    params = {name: torch.tensor(array, requires_grad=True) for name, array in start(PLAIN).items()}
    groups = [{"params": [p], "weight_decay": o.weight_decay * PLAIN[name].decay} for name, p in params.items()]
    theirs = make(groups)
    for step in range(STEPS):
        for name, gradient in gradients(step, PLAIN).items():
            params[name].grad = torch.tensor(gradient)
        for group in theirs.param_groups:
            group["lr"] = o.learning_rate * fraction(step)
        theirs.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def of_optax(o: Optimizer, make: Callable[[Any, Any], optax.GradientTransformation]) -> Arrays:
    """The same with optax, given the learning rate's schedule and the mask of weight decay."""
    params, mask = start(PLAIN), {name: row.decay for name, row in PLAIN.items()}
    fractions = jnp.array([fraction(step) for step in range(STEPS)])
    theirs = make(lambda count: o.learning_rate * fractions[count], mask)
    state = theirs.init(params)
    for step in range(STEPS):
        updates, state = theirs.update(gradients(step, PLAIN), state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(p) for name, p in params.items()}


def big_vision(o: Optimizer, lr: Any, mask: Any) -> optax.GradientTransformation:
    """Its order: the optimizer, the peak, the weight decay, the schedule."""
    scale, decay = optax.scale(o.learning_rate), optax.add_decayed_weights(o.weight_decay, mask)
    schedule = optax.scale_by_schedule(lambda count: -lr(count) / o.learning_rate)
    return optax.chain(optax.scale_by_adam(o.beta1, o.beta2, o.epsilon), scale, decay, schedule)


def decoupled_sgd(o: Optimizer, lr: Any, mask: Any) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(o.weight_decay, mask)
    return optax.chain(optax.trace(o.momentum), decay, optax.scale_by_learning_rate(lr))


def adafactor(o: Optimizer, groups: Any) -> torch.optim.Optimizer:
    cap = {"beta2_cap": o.beta2, "min_dim_size_to_factor": 32}
    momentum = {"momentum": o.momentum, "momentum_dtype": torch.float64}
    return timm.optim.AdafactorBigVision(groups, eps=o.epsilon, **cap, **momentum)


def lamb(o: Optimizer, groups: Any) -> torch.optim.Optimizer:
    betas = (o.beta1, o.beta2)
    return timm.optim.Lamb(groups, betas=betas, eps=o.epsilon, max_grad_norm=None, always_adapt=True)


OTHERS = {
    "adamw, decoupled": (of_torch, lambda o, g: torch.optim.AdamW(g, betas=(o.beta1, o.beta2), eps=o.epsilon)),
    "adamw, independent": (of_optax, big_vision),
    "lion, decoupled": (of_torch, lambda o, g: timm.optim.Lion(g, betas=(o.beta1, o.beta2))),
    "sgd, decoupled": (of_optax, decoupled_sgd),
    "sgd, coupled": (of_torch, lambda o, g: torch.optim.SGD(g, momentum=o.momentum)),
    "adafactor, decoupled": (of_torch, adafactor),
    "lamb, decoupled": (of_torch, lamb),
}


@pytest.mark.parametrize("name", OTHERS)
def test_both_engines_are_as_torch_optax_and_timm(name: str) -> None:
    o, (of_framework, make) = RUNS[f"{name}, plain"], OTHERS[name]
    expected = of_framework(o, partial(make, o))
    for engine in ENGINES.values():
        assert_same(run(engine(o, start(PLAIN), PLAIN)).export(), expected)


@pytest.mark.parametrize("name", ["adafactor", "lamb"])
@pytest.mark.parametrize("engine", ENGINES)
def test_queries_keys_and_values_are_three_matrices(engine: str, name: str) -> None:
    qkv = "blocks.0.attn.qkv.weight"
    fused = TABLE[qkv]
    alone = replace(
        fused,
        torch="(heads head_dim) width",
        jax="width heads head_dim",
        matrix="(heads head_dim) width",
        sizes={axis: length for axis, length in fused.sizes.items() if axis != "qkv"},
    )
    config = RUNS[f"{name}, decoupled, plain"]
    rows = {qkv: fused}
    together = run(ENGINES[engine](config, start(rows), rows)).export()[qkv]
    apart = [ENGINES[engine](config, {qkv: third}, {qkv: alone}) for third in thirds(start(rows)[qkv])]
    for step in range(STEPS):
        for one, gradient in zip(apart, thirds(gradients(step, rows)[qkv]), strict=True):
            one.step(step, {qkv: gradient})
    for one, third in zip(apart, thirds(together), strict=True):
        assert parity.difference(one.export()[qkv], third)[1] <= 1e-15


def thirds(qkv: np.ndarray) -> list[np.ndarray]:
    return [third.copy() for third in np.split(qkv, 3)]


def test_pieces_are_the_tables_matrices() -> None:
    for row in TABLE.values():
        array = np.random.default_rng(0).standard_normal(row.shape)
        in_torch = torch.tensor(array)
        pieces = optimizers_torch.apart(row, in_torch)
        stack = Stack((row,))
        in_jax = optimizers_jax.apart(stack, jnp.asarray(row.to_jax(array)).reshape(stack.jax_shape))
        for ours in (pieces, in_jax):
            for a, b in zip(ours, matrices(row, array), strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            optimizers_jax.joined(stack, in_jax).reshape(row.jax_shape), row.to_jax(array), strict=True
        )
        pieces[-1].zero_()
        assert in_torch.flatten()[-1] == 0, "a copy"


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_float32_run_resumes_bit_for_bit(engine: str, name: str) -> None:
    params = {n: array.astype(np.float32) for n, array in start().items()}
    whole, cut = (run(ENGINES[engine](FIVE[name], params, jitted=True), range(6)) for _ in range(2))
    again = ENGINES[engine](FIVE[name], cut.export(), jitted=True)
    again.restore(6, cut.statistics())
    assert {array.dtype for array in cut.statistics().values()} == {np.dtype(np.float32)}
    for one in (whole, again):
        run(one, range(6, 12))
    for ours, theirs in ((again.export(), whole.export()), (again.statistics(), whole.statistics())):
        assert ours.keys() == theirs.keys()
        for n in theirs:
            np.testing.assert_array_equal(ours[n], theirs[n])


@pytest.mark.parametrize("name", FIVE)
def test_a_run_goes_from_engine_to_engine_and_back(name: str) -> None:
    params, statistics = start(), InTorch(FIVE[name], start()).statistics()
    for i, make in enumerate((InJax, InTorch, InJax, InTorch)):
        engine = make(FIVE[name], params)
        engine.restore(5 * i, statistics)
        run(engine, range(5 * i, 5 * i + 5))
        params, statistics = engine.export(), engine.statistics()
    assert_same(params, written_out(FIVE[name]))


@pytest.mark.parametrize("name", FIVE)
def test_statistics_are_whole_before_the_first_step(name: str) -> None:
    in_jax, in_torch = (make(FIVE[name], start()).statistics() for make in (InJax, InTorch))
    assert_same(in_jax, in_torch)
    assert {key.partition("/")[2] for key in in_torch} == FIVE[name].factors(ROWS).keys()
    assert not any(array.any() for array in in_torch.values())


def test_statistics_lie_as_on_disk() -> None:
    statistics = InTorch(RUNS["adafactor, decoupled, plain"], start()).statistics()
    shapes = {key: array.shape for key, array in statistics.items()}
    assert shapes["momentum/blocks.0.attn.qkv.weight"] == ROWS["blocks.0.attn.qkv.weight"].shape
    assert shapes["second_moment_rows/blocks.0.mlp.fc1.weight"] == (1, 40)
    assert shapes["second_moment_columns/blocks.0.mlp.fc1.weight"] == (1, 36)
    assert shapes["second_moment_rows/blocks.0.attn.qkv.weight"] == (3, 36)
    assert shapes["second_moment/pos_embed"] == ROWS["pos_embed"].shape
    assert "second_moment/blocks.0.mlp.fc1.weight" not in shapes


def test_weights_of_zero_move_under_lamb() -> None:
    """The trust ratio of a fresh head is 1."""
    for make in ENGINES.values():
        zeros = {name: np.zeros(row.shape) for name, row in ROWS.items()}
        moved = run(make(RUNS["lamb, decoupled, plain"], zeros), range(1)).export()["blocks.0.mlp.fc1.weight"]
        assert 0.5 < np.abs(moved).max() / (0.02 * fraction(0)) <= 1


@pytest.mark.parametrize("limit", [1.0, 1e3])
def test_clipping_is_optaxs(limit: float) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((40, 36)) for name in "ab"}
    expected, _ = optax.clip_by_global_norm(limit).update(arrays, optax.EmptyState())
    tensors = {name: torch.tensor(g) for name, g in arrays.items()}
    squares = optimizers_torch.squared_norms(tensors)
    optimizers_torch.clip(tensors, squares, limit)
    in_jax = {name: jnp.asarray(g) for name, g in arrays.items()}
    clipped = optimizers_jax.clip(in_jax, sum(jnp.sum(g**2) for g in in_jax.values()), limit)
    for ours in ({n: np.asarray(g) for n, g in clipped.items()}, {n: g.numpy() for n, g in tensors.items()}):
        assert_same(ours, {n: np.asarray(g) for n, g in expected.items()})
    assert float(squares.sum()) == pytest.approx(sum(np.sum(g**2) for g in arrays.values()), rel=1e-14)
