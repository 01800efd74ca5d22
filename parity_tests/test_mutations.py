"""The proof of the proof: whatever row of the parameter table is wrong in one twin, parity goes red."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import vit_jax
import vit_torch
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parameters, parity
from vit_core.parameters import Parameter
from vit_jax import arrays

# Square matrices, equal heads and head width: a swapped transpose has the right shape, so only values can betray it.
MODEL = ViTConfig(
    image_size=(8, 8),
    patch_size=4,
    channels=4,
    width=16,
    depth=2,
    heads=4,
    mlp_dim=16,
    num_classes=16,
    pooling="map",
    representation=16,
    layer_scale=0.5,
)
IMAGES = parity.probe(MODEL, 1)


Mutant = Callable[[np.ndarray], np.ndarray]
"""What a wrong row makes of an array on disk: the right shape, the wrong values."""


def mutations(row: Parameter) -> Iterator[tuple[str, Mutant]]:
    """Every swap of two axes of equal length, and every axis read backwards."""
    axes = row.jax.split()
    for i, axis in enumerate(axes):
        if row.sizes[axis] > 1:
            yield f"{axis} backwards", lambda array, i=i: np.flip(row.to_jax(array), i)
        for j in range(i):
            if row.sizes[axis] == row.sizes[axes[j]] > 1:
                swapped = list(axes)
                swapped[i], swapped[j] = axes[j], axis
                yield f"{row.jax} read as {' '.join(swapped)}", replace(row, jax=" ".join(swapped)).to_jax


ROWS = parameters.parameters(MODEL)
CASES = [(name, what, mutant) for name, row in ROWS.items() for what, mutant in mutations(row)]


@pytest.fixture(scope="module")
def in_torch() -> dict[str, np.ndarray]:
    return vit_torch.trace(vit_torch.load(checkpoint(MODEL)), *IMAGES)


@pytest.fixture(scope="module")
def compute():  # type: ignore[no-untyped-def]
    """The JAX twin's output as a compiled function of its parameters by canonical name."""
    import jax
    from flax import nnx

    def output(params, x_BHWC):  # type: ignore[no-untyped-def]
        model = nnx.eval_shape(lambda: vit_jax.ViT(MODEL, rngs=nnx.Rngs(0)))
        arrays.write(model, lambda row: params[row.name])
        return model(x_BHWC)

    return jax.jit(output)


def loaded() -> dict[str, np.ndarray]:
    """What the JAX twin loads through the true table."""
    weights = checkpoint(MODEL).arrays
    return {name: row.to_jax(weights[name]) for name, row in ROWS.items()}


def red(compute, params, in_torch) -> bool:  # type: ignore[no-untyped-def]
    output = np.asarray(compute(params, IMAGES[0]))
    return parity.difference(output, in_torch["output"])[1] > parity.FLOAT64_BOUND


def test_the_true_table_is_green(compute, in_torch) -> None:  # type: ignore[no-untyped-def]
    assert not red(compute, loaded(), in_torch)


@pytest.mark.parametrize(("name", "what", "mutant"), CASES, ids=[f"{name}: {what}" for name, what, _ in CASES])
def test_a_mutated_row_is_red(name: str, what: str, mutant: Mutant, compute, in_torch) -> None:  # type: ignore[no-untyped-def]
    assert red(compute, loaded() | {name: mutant(checkpoint(MODEL).arrays[name])}, in_torch)


def test_every_row_is_mutated() -> None:
    assert {name for name, _, _ in CASES} == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_dropped_parameter_is_red(name: str, compute, in_torch) -> None:  # type: ignore[no-untyped-def]
    neutral = 1.0 if re.search(r"norm\d?\.weight$|gamma$", name) else 0.0
    params = loaded()
    if ROWS[name].key_bias is None:
        params[name] = np.full_like(params[name], neutral)
    else:  # softmax is blind to the key bias: drop the others
        params[name] = np.where(np.arange(len(params[name])) == ROWS[name].key_bias, params[name].T, 0.0).T
    assert red(compute, params, in_torch)


@pytest.mark.parametrize(
    "fields",
    [
        {"norm_epsilon": 1e-5},
        {"activation": "gelu"},
        {"final_norm": "after_pooling"},
        {"pooling": "cls"},
        {"class_token_position": False},
        {"representation": None},
        {"layer_scale": None},
        {"qkv_bias": False},
    ],
)
def test_another_config_is_red(fields: dict[str, object], in_torch: dict[str, np.ndarray]) -> None:
    other = MODEL.replace(**fields)
    weights = {**checkpoint(MODEL).arrays, "fc_norm.weight": np.ones(16), "fc_norm.bias": np.zeros(16)}
    weights["pos_embed"] = weights["pos_embed"][:, -other.positions :]
    model = vit_jax.load(checkpoint(other, {name: weights[name] for name in parameters.parameters(other)}))
    assert parity.difference(np.asarray(model(IMAGES[0])), in_torch["output"])[1] > parity.FLOAT64_BOUND
