"""Mutation test of parity: an error in any row of the parameter table in one twin makes the comparison fail."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import vit_jax
import vit_torch
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parameters, parity, rotations
from vit_core.parameters import Parameter, groups_of
from vit_core.rope import PUBLISHED, Rope
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
OTHER = ViTConfig(
    image_size=(8, 8),
    patch_size=4,
    channels=4,
    width=16,
    depth=2,
    heads=4,
    mlp_dim=16,
    num_classes=16,
    distillation="head",
    registers=4,
    pre_norm=True,
    mlp="swiglu",
    qk_norm=True,
    patch_norms=True,
)
HYBRID = OTHER.replace(
    depth=1, image_size=(16, 16), patch_size=8, channels=4, patch_norms=False, stem_layers=(1, 1), stem_width=32
)
TODAY = ViTConfig(
    image_size=(8, 8),
    patch_size=4,
    channels=4,
    width=16,
    depth=2,
    heads=4,
    head_dim=4,
    mlp_dim=16,
    num_classes=16,
    rope={**PUBLISHED["mixed"], "base": 4.0},
    relative_bias="table",
    key_bias=False,
    attention_norm=True,
    mlp_norm=True,
    branch_norm="after",
    pooling="map",
    pool_heads=2,
    pool_mlp_dim=16,
    pool_prefix=True,
)
RELATIVE = TODAY.replace(
    rope=None, relative_bias="mlp", relative_bias_shared=True, relative_bias_dim=16, branch_norm="before",
    parallel=True, norm="rms_norm", key_bias=True,
)  # fmt: skip
"""Has the rows of a shared network and of parallel blocks, which TODAY lacks."""


Mutant = Callable[[np.ndarray], np.ndarray]
"""Changes that a wrong row makes to an array on disk: the right shape, the wrong values."""


def mutations(row: Parameter) -> Iterator[tuple[str, Mutant]]:
    """Every swap of two axes of equal length, and every axis read backwards."""
    axes = [axis for group in groups_of(row.jax) for axis in group]

    def reading(layout: list[str], backwards: int | None = None) -> Mutant:
        def read(array: np.ndarray) -> np.ndarray:
            apart = replace(row, jax=" ".join(layout)).to_jax(array)
            return (apart if backwards is None else np.flip(apart, backwards)).reshape(row.jax_shape)

        return read

    for i, axis in enumerate(axes):
        if row.sizes[axis] > 1:
            yield f"{axis} backwards", reading(axes, i)
        for j in range(i):
            if row.sizes[axis] == row.sizes[axes[j]] > 1:
                swapped = list(axes)
                swapped[i], swapped[j] = axes[j], axis
                yield f"{row.jax} read as {' '.join(swapped)}", reading(swapped)


def blind(row: Parameter) -> bool:
    """Whether softmax is invariant to the whole parameter, so that no output depends on it."""
    return row.key_bias == slice(None)


MODELS = {"MODEL": MODEL, "OTHER": OTHER, "HYBRID": HYBRID, "TODAY": TODAY, "RELATIVE": RELATIVE}
OWN = {"HYBRID": ("patch_embed.",), "RELATIVE": ("shared_rel_pos.", "blocks.0.")}
"""Prefixes of the rows that are tried, where not all are."""
ROWS = {
    (model, name): row
    for model, config in MODELS.items()
    for name, row in parameters.parameters(config).items()
    if name.startswith(OWN.get(model, ("",)))
}
CASES = [(of, what, mutant) for of, row in ROWS.items() if not blind(row) for what, mutant in mutations(row)]


class Comparison:
    """For one config: what PyTorch computes, and whether the JAX twin with given parameters computes something else."""

    def __init__(self, config: ViTConfig) -> None:
        self.images, self.weights = parity.probe(config, 1), checkpoint(config)
        self.in_torch = vit_torch.trace(vit_torch.load(self.weights), *self.images)
        self.rows = parameters.parameters(config)
        self.loaded = {name: row.to_jax(self.weights.arrays[name]) for name, row in self.rows.items()}

        def output(params, x_BHWC):  # type: ignore[no-untyped-def]
            model = nnx.eval_shape(lambda: vit_jax.ViT(config, rngs=nnx.Rngs(0)))
            arrays.write(model, lambda row: params[row.name])
            tokens_BND = model.forward_features(x_BHWC)
            return tokens_BND, model.forward_head(tokens_BND)

        self.compute = jax.jit(output)

    def red(self, **changed: np.ndarray) -> bool:
        """The tokens are compared too, because logits do not change if registers, which have no positions, are
        permuted."""
        found = self.compute(self.loaded | changed, self.images[0])
        true = self.in_torch["norm"], self.in_torch["output"]
        differ = (parity.difference(np.asarray(a), b)[1] for a, b in zip(found, true, strict=True))
        return any(relative > parity.FLOAT64_BOUND for relative in differ)


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Comparison]:
    return {model: Comparison(config) for model, config in MODELS.items()}


@pytest.mark.parametrize("model", MODELS)
def test_the_true_table_is_green(model: str, comparisons: dict[str, Comparison]) -> None:
    assert not comparisons[model].red()


@pytest.mark.parametrize(("of", "what", "mutant"), CASES, ids=[f"{' '.join(of)}: {what}" for of, what, _ in CASES])
def test_a_mutated_row_is_red(
    of: tuple[str, str], what: str, mutant: Mutant, comparisons: dict[str, Comparison]
) -> None:
    model, name = of
    assert comparisons[model].red(**{name: mutant(comparisons[model].weights.arrays[name])})


def test_every_row_is_mutated() -> None:
    assert {of for of, _, _ in CASES} == {of for of, row in ROWS.items() if not blind(row)}
    assert {name for (_, name), row in ROWS.items() if blind(row)} == {f"blocks.{i}.attn.k_norm.bias" for i in (0, 1)}


@pytest.mark.parametrize("of", ROWS, ids=" ".join)
def test_a_dropped_parameter_is_red(of: tuple[str, str], comparisons: dict[str, Comparison]) -> None:
    """Except for a key bias, to which softmax is invariant."""
    (model, name), row = of, ROWS[of]
    loaded = comparisons[model].loaded[name]
    dropped = np.full_like(loaded, 1.0 if row.jax_name.endswith(("scale", "gamma")) else 0.0)
    if row.key_bias is not None:
        dropped[row.key_bias] = loaded[row.key_bias]
    assert comparisons[model].red(**{name: dropped}) != blind(row)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"norm_epsilon": 1e-5},
        {"activation": "quick_gelu"},
        {"proj_bias": False},
        {"head_bias": False},
        {"patch_bias": False},
        {"activation": "gelu"},
        {"final_norm": "after_pooling"},
        {"pooling": "cls"},
        {"class_token_position": False},
        {"representation": None},
        {"layer_scale": None},
        {"qkv_bias": False},
    ],
)
def test_another_config_is_red(fields: dict[str, object], comparisons: dict[str, Comparison]) -> None:
    other, comparison = MODEL.replace(**fields), comparisons["MODEL"]
    weights = {**comparison.weights.arrays, "fc_norm.weight": np.ones(16), "fc_norm.bias": np.zeros(16)}
    weights["pos_embed"] = weights["pos_embed"][:, -other.positions :]
    model = vit_jax.load(checkpoint(other, {name: weights[name] for name in parameters.parameters(other)}))
    output = np.asarray(model(comparison.images[0]))
    assert parity.difference(output, comparison.in_torch["output"])[1] > parity.FLOAT64_BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"distillation": "token"},
        {"class_token_position": False},
        {"registers": 0},
        {"pre_norm": False},
        {"qk_norm": False},
        {"patch_norms": False},
    ],
)
def test_another_config_of_the_descendants_is_red(
    fields: dict[str, object], comparisons: dict[str, Comparison]
) -> None:
    other, comparison = OTHER.replace(**fields), comparisons["OTHER"]
    weights = dict(comparison.weights.arrays)
    weights["pos_embed"] = weights["pos_embed"][:, -other.positions :]
    model = vit_jax.load(checkpoint(other, {name: weights[name] for name in parameters.parameters(other)}))
    output = np.asarray(model(comparison.images[0]))
    assert parity.difference(output, comparison.in_torch["output"])[1] > parity.FLOAT64_BOUND


ROTARY = ViTConfig(
    image_size=(8, 12),
    patch_size=4,
    width=32,
    depth=2,
    heads=2,
    mlp_dim=16,
    num_classes=4,
    registers=2,
    rope="dinov3",
    position_embedding="none",
    key_bias=False,
)
"""Its grid is not square, so that the order of axes and their normalization show."""
GRID = ROTARY.replace(rope="eva02")


@pytest.fixture(scope="module")
def rotary() -> dict[ViTConfig, np.ndarray]:
    """What PyTorch computes."""
    return {c: vit_torch.predict(vit_torch.load(checkpoint(c)), parity.probe(c, 1)[0]) for c in (ROTARY, GRID)}


def in_jax(config: ViTConfig) -> np.ndarray:
    return vit_jax.predict(vit_jax.load(checkpoint(config)), parity.probe(config, 1)[0])


@pytest.mark.parametrize("config", [ROTARY, GRID], ids=["centered", "grid"])
def test_true_rotations_are_green(config: ViTConfig, rotary: dict[ViTConfig, np.ndarray]) -> None:
    assert parity.difference(in_jax(config), rotary[config])[1] <= parity.FLOAT64_BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "change"),
    [
        (ROTARY, {"base": 101.0}),
        (ROTARY, {"periods": "bfloat16"}),
        (ROTARY, {"pairs": "neighbours"}),
        (ROTARY, {"axes": "xy"}),
        (ROTARY, {"offset": 0.5}),
        (ROTARY, {"normalize": "min"}),
        (ROTARY, {"normalize": "max"}),
        (ROTARY, {"coordinates": "grid"}),
        (GRID, {"base": 100.0}),
        (GRID, {"pairs": "halves"}),
        (GRID, {"axes": "xy"}),
        (GRID, {"reference": None}),
        (GRID, {"reference": (15, 16)}),
    ],
    ids=lambda value: "centered" if value is ROTARY else "grid" if value is GRID else str(value),
)
def test_another_rotation_is_red(
    config: ViTConfig, change: dict[str, object], rotary: dict[ViTConfig, np.ndarray]
) -> None:
    """An offset alone leaves all differences of grid coordinates as they are; of centered ones too, but for tokens
    before the patches, which are not rotated."""
    assert config.rope is not None
    mutant = config.replace(rope=config.rope.replace(**change))
    assert parity.difference(in_jax(mutant), rotary[config])[1] > 1e-6


@pytest.mark.parametrize("name", ["one token too early", "one token too late", "prefix rotated", "backwards"])
def test_a_rotation_of_other_tokens_is_red(
    name: str, monkeypatch: pytest.MonkeyPatch, rotary: dict[ViTConfig, np.ndarray]
) -> None:
    true = rotations.axial_rotation
    expected = rotary[ROTARY]

    def wrong(rope: Rope, grid: tuple[int, int], head_dim: int, prefix: int, registers: int) -> tuple[np.ndarray, ...]:
        cos, sin = true(rope, grid, head_dim, prefix, registers)
        if name == "backwards":
            return cos, -sin
        if name == "prefix rotated":
            as_patch = [np.repeat(table[prefix : prefix + 1], prefix, axis=0) for table in (cos, sin)]
            return np.concatenate([as_patch[0], cos[prefix:]]), np.concatenate([as_patch[1], sin[prefix:]])
        by = -1 if name == "one token too early" else 1
        return np.roll(cos, by, axis=0), np.roll(sin, by, axis=0)

    monkeypatch.setattr(rotations, "axial_rotation", wrong)
    assert parity.difference(in_jax(ROTARY), expected)[1] > 1e-6
