"""Both engines' optimizers against the formulas written out, against each other, and against other projects'."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import timm.optim
import torch

from vit_core import parity
from vit_core.parameters import Stack
from vit_train.config import Optimizer
from vit_train.engines.jax import optimizers as jax_optimizers
from vit_train.engines.tests.optimizer_runs import (
    ENGINES,
    QUICK,
    RELEASE,
    ROWS,
    RUNS,
    STEPS,
    TABLE,
    Arrays,
    InJax,
    InTorch,
    Rows,
    assert_same,
    fraction,
    gradients,
    matrices,
    near_orthogonal,
    run,
    start,
    written_out,
)
from vit_train.engines.torch import many_tensors, muon
from vit_train.engines.torch import optimizers as torch_optimizers
from vit_train.engines.torch.slicing import WHOLE


@pytest.fixture(autouse=True)
def _float64(request: pytest.FixtureRequest) -> Iterator[None]:
    with jax.enable_x64("float32" not in request.node.name):
        yield


def marked(name: str) -> Any:
    if name in QUICK:
        return name
    return pytest.param(name, marks=pytest.mark.release if name in RELEASE else pytest.mark.slow)


@pytest.mark.parametrize("name", [marked(name) for name in RUNS])
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


def of_torch(o: Optimizer, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], rows: Rows = PLAIN) -> Arrays:
    """A run of another torch optimizer, on parameters that need not be split into matrices."""
    params = {name: torch.tensor(array, requires_grad=True) for name, array in start(rows).items()}
    groups = [{"params": [p], "weight_decay": o.weight_decay * rows[name].decay} for name, p in params.items()]
    theirs = make(groups)
    for step in range(STEPS):
        for name, gradient in gradients(step, rows).items():
            params[name].grad = torch.tensor(gradient)
        for group in theirs.param_groups:
            group["lr"] = o.learning_rate * fraction(step)
        theirs.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def of_optax(o: Optimizer, make: Callable[[Any, Any], optax.GradientTransformation], rows: Rows = PLAIN) -> Arrays:
    """A run of an optax optimizer, made from the schedule of the learning rate and the mask of weight decay."""
    params, mask = start(rows), {name: row.decay for name, row in rows.items()}
    fractions = jnp.array([fraction(step) for step in range(STEPS)])
    theirs = make(lambda count: o.learning_rate * fractions[count], mask)
    state = theirs.init(params)
    for step in range(STEPS):
        updates, state = theirs.update(gradients(step, rows), state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(p) for name, p in params.items()}


def big_vision(o: Optimizer, lr: Any, mask: Any) -> optax.GradientTransformation:
    """big_vision's order: the optimizer, the peak, the weight decay, the schedule."""
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


def torchs_muon(o: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    chosen = {"nesterov": o.nesterov, "eps": 1e-300, "adjust_lr_fn": "match_rms_adamw"}
    return torch.optim.Muon(groups, momentum=o.momentum, **chosen)


def optaxs_muon(o: Optimizer, lr: Any, mask: Any) -> optax.GradientTransformation:
    """Without the 1e-8 that it adds to the norm."""
    chosen = {"beta": o.momentum, "eps": 0.0, "nesterov": o.nesterov, "consistent_rms": 0.2}
    return optax.contrib.muon(lr, weight_decay=o.weight_decay, weight_decay_mask=mask, **chosen)


HIDDEN = {name: row for name, row in PLAIN.items() if row.matrix is not None}


@pytest.mark.parametrize(
    ("name", "of_framework", "make"),
    [
        ("muon, decoupled, plain", of_torch, torchs_muon),
        pytest.param("muon, without looking ahead", of_torch, torchs_muon, marks=pytest.mark.slow),
        ("muon, without looking ahead", of_optax, optaxs_muon),
    ],
)
def test_both_engines_equal_torchs_and_optaxs_muon(
    name: str, of_framework: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, where torch's would compute in bfloat16."""
    o = RUNS[name]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "bfloat16", torch.float64)
        expected = of_framework(o, partial(make, o), HIDDEN)
    for engine in ENGINES.values():
        assert_same(run(engine(o, start(HIDDEN), HIDDEN)).export(), expected)


def test_matrices_are_moved_the_same_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    o = RUNS["muon, decoupled, plain"]
    together = run(ENGINES["torch"](o, start(HIDDEN), HIDDEN)).export()
    monkeypatch.setattr(muon, "TOGETHER", 1)
    assert_same(run(ENGINES["torch"](o, start(HIDDEN), HIDDEN)).export(), together)


@pytest.mark.parametrize("shape", [(36, 40), (40, 36), (7, 90), (1, 5)])
def test_muons_iteration_is_its_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    """On singular values over eight powers of ten. In exact arithmetic, both are the same. Rounding grows by the slope
    of five iterations, 485; an iteration has three products, whose sums have at most max(shape) terms."""
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    x = u * np.logspace(0, -8, min(shape)) @ vt
    expected = near_orthogonal(x)
    for ours in (np.asarray(jax_optimizers.orthogonalized(jnp.asarray(x))), np_of_torch(x)):
        assert np.abs(ours - expected).max() <= 485 * 3 * max(shape) * 2.0**-53
    for zeros in (jax_optimizers.orthogonalized(jnp.zeros(shape)), np_of_torch(np.zeros(shape))):
        assert not np.asarray(zeros).any()


def np_of_torch(x: np.ndarray) -> np.ndarray:
    return muon.orthogonalized(torch.tensor(x)).numpy()


@pytest.mark.parametrize("name", OTHERS)
def test_both_engines_equal_torch_optax_and_timm(name: str) -> None:
    o, (of_framework, make) = RUNS[f"{name}, plain"], OTHERS[name]
    expected = of_framework(o, partial(make, o))
    for engine in ENGINES.values():
        assert_same(run(engine(o, start(PLAIN), PLAIN)).export(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lamb", "muon"])
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
    separate = [ENGINES[engine](config, {qkv: third}, {qkv: alone}) for third in thirds(start(rows)[qkv])]
    for step in range(STEPS):
        for one, gradient in zip(separate, thirds(gradients(step, rows)[qkv]), strict=True):
            one.step(step, {qkv: gradient})
    for one, third in zip(separate, thirds(together), strict=True):
        assert parity.difference(one.export()[qkv], third)[1] <= 9 * 2.0**-53  # sums in another order


def thirds(qkv: np.ndarray) -> list[np.ndarray]:
    return [third.copy() for third in np.split(qkv, 3)]


def test_parameters_are_split_as_the_parameter_table_says() -> None:
    for row in TABLE.values():
        array = np.random.default_rng(0).standard_normal(row.shape)
        in_torch = torch.tensor(array)
        views = WHOLE.split(in_torch, WHOLE.pieces(row))
        stack = Stack((row,))
        in_jax = jax_optimizers.split_matrices(stack, jnp.asarray(row.to_jax(array)).reshape(stack.jax_shape))
        for ours in (views, in_jax):
            for a, b in zip(ours, matrices(row, array), strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            jax_optimizers.merge_matrices(stack, in_jax).reshape(row.jax_shape), row.to_jax(array), strict=True
        )
        views[-1].zero_()
        assert in_torch.flatten()[-1] == 0, "it is a copy, not a view"


def test_weights_of_zero_move_under_lamb() -> None:
    """Where all weights are zero, as in a new head, the trust ratio is 1."""
    for make in ENGINES.values():
        zeros = {name: np.zeros(row.shape) for name, row in ROWS.items()}
        moved = run(make(RUNS["lamb, decoupled, plain"], zeros), range(1)).export()["blocks.0.mlp.fc1.weight"]
        assert 0.5 < np.abs(moved).max() / (0.02 * fraction(0)) <= 1


@pytest.mark.parametrize("limit", [1.0, 1e3])
def test_clipping_equals_optax(limit: float) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((40, 36)) for name in "ab"}
    expected, _ = optax.clip_by_global_norm(limit).update(arrays, optax.EmptyState())
    tensors = {name: torch.tensor(g) for name, g in arrays.items()}
    squares = many_tensors.squared_norms(list(tensors.values()))
    torch_optimizers.clip(tensors, squares, limit)
    in_jax = {name: jnp.asarray(g) for name, g in arrays.items()}
    clipped = jax_optimizers.clip(in_jax, sum(jnp.sum(g**2) for g in in_jax.values()), limit)
    for ours in ({n: np.asarray(g) for n, g in clipped.items()}, {n: g.numpy() for n, g in tensors.items()}):
        assert_same(ours, {n: np.asarray(g) for n, g in expected.items()})
    # 2,880 squares are added in pairs, in 12 levels: 13 roundings, on each side, and as many for another order.
    assert float(squares.sum()) == pytest.approx(sum(np.sum(g**2) for g in arrays.values()), rel=52 * 2.0**-53)


@pytest.mark.parametrize("together", [1, 15, 2**24])
def test_many_tensors_are_computed_as_one_after_the_other(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_tensors, "TOGETHER", together)
    draw, share = torch.Generator().manual_seed(0), torch.tensor(0.3, dtype=torch.float64)
    shapes = ((2, 3), (7,), (4, 4), ())
    xs, targets = ([torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes] for _ in range(2))
    moved, shrunk, multiplied = ([x.clone() for x in xs] for _ in range(3))
    many_tensors.move(moved, targets, share)
    many_tensors.shrink(shrunk, share)
    many_tensors.multiply(multiplied, share)
    norms = torch.stack([x.norm() for x in xs])
    torch.testing.assert_close(many_tensors.squared_norms(xs), norms**2, rtol=9 * 2.0**-53, atol=0)
    # The square of a norm has a root and a square more, and sums in another order; the others have three operations.
    for i, (x, target) in enumerate(zip(xs, targets, strict=True)):
        torch.testing.assert_close(moved[i], torch.lerp(x, target, share), rtol=3 * 2.0**-53, atol=3 * 2.0**-53)
        torch.testing.assert_close(shrunk[i], x * 0.7, rtol=3 * 2.0**-53, atol=0)
        torch.testing.assert_close(multiplied[i], x * 0.3, rtol=0, atol=0)
