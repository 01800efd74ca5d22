"""Initial values: equal in distribution in both twins (and to the table's words), and equal in value from one seed."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from scipy import stats

import vit_jax
import vit_torch
from vit_core import ViTConfig, parameters
from vit_core.parameters import Initializer
from vit_jax import arrays as jax_arrays

MODEL = ViTConfig(
    image_size=32,
    patch_size=4,
    width=64,
    depth=1,
    heads=4,
    mlp_dim=128,
    num_classes=10,
    pooling="map",
    representation=48,
    layer_scale=0.1,
    head_bias_init=-10.0,
)
ROWS = parameters.parameters(MODEL)
RANDOM = [name for name, row in ROWS.items() if row.initializer.kind != "constant"]


def distribution(initializer: Initializer):  # type: ignore[no-untyped-def]
    value = initializer.value
    return {
        "uniform": stats.uniform(-value, 2 * value),
        "normal": stats.norm(0, value),
        "truncated_normal": stats.truncnorm(-2, 2, 0, value),
    }[initializer.kind]


@pytest.fixture(scope="module")
def drawn() -> dict[str, dict[str, np.ndarray]]:
    """Initial values in torch's layout: by JAX, by PyTorch, and by NumPy from a seed."""
    model = vit_jax.ViT(MODEL, rngs=nnx.Rngs(7))
    torch_model = vit_torch.ViT(MODEL, generator=torch.Generator().manual_seed(7))
    return {
        "jax": {name: jax_arrays.to_numpy(ROWS[name], value) for name, value in jax_arrays.read(model).items()},
        "torch": {name: p.detach().numpy() for name, p in torch_model.named_parameters()},
        "numpy": {name: parameters.initial_value(row, 7) for name, row in ROWS.items()},
    }


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("by", ["jax", "torch", "numpy"])
def test_the_table_is_the_distribution(by: str, name: str, drawn: dict[str, dict[str, np.ndarray]]) -> None:
    # Seeds are fixed, so this cannot flicker. Rows of a few values tell only gross errors; those of thousands (each
    # kind has one) also a fan or a truncation, which the standard deviation and the largest value show apart.
    values, true = drawn[by][name].ravel().astype(np.float64), distribution(ROWS[name].initializer)
    assert stats.kstest(values, true.cdf).pvalue > 1e-4
    # The standard deviation's own standard error is at most sd / sqrt(2 n) for tails no heavier than a normal's.
    assert abs(values.std() / true.std() - 1) < 5 / np.sqrt(2 * len(values))
    assert np.abs(values).max() <= true.support()[1] * (1 + 2**-23)


@pytest.mark.parametrize("name", RANDOM)
def test_the_twins_agree_in_distribution(name: str, drawn: dict[str, dict[str, np.ndarray]]) -> None:
    a, b = drawn["jax"][name].ravel(), drawn["torch"][name].ravel()
    assert stats.ks_2samp(a, b).pvalue > 1e-4
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("by", ["jax", "torch", "numpy"])
def test_constants(by: str, drawn: dict[str, dict[str, np.ndarray]]) -> None:
    assert (drawn[by]["head.weight"] == 0).all()
    assert (drawn[by]["head.bias"] == -10).all()
    assert (drawn[by]["blocks.0.norm1.weight"] == 1).all()
    assert (drawn[by]["blocks.0.ls1.gamma"] == np.float32(0.1)).all() or by == "numpy"
    assert (drawn[by]["cls_token"] == 0).all()


def test_published_numbers() -> None:
    """The lineage's values worked out by hand, row by row, so that the table is not its own reference."""
    zero, one = Initializer("constant", 0.0), Initializer("constant", 1.0)
    xavier = {fans: Initializer("uniform", np.sqrt(6 / sum(fans))) for fans in [(64, 64), (64, 128), (1, 64)]}
    small = Initializer("normal", 1e-6)
    lecun = {fan: Initializer("truncated_normal", np.sqrt(1 / fan) / 0.87962566103423978) for fan in (48, 64)}
    mlp = {"fc1.weight": xavier[64, 128], "fc1.bias": small, "fc2.weight": xavier[64, 128], "fc2.bias": small}
    norm = {"weight": one, "bias": zero}
    expected = {
        "patch_embed.proj.weight": lecun[48],  # 4 x 4 x 3
        "patch_embed.proj.bias": zero,
        "cls_token": zero,
        "pos_embed": Initializer("normal", 0.02),
        **{f"blocks.0.norm1.{leaf}": value for leaf, value in norm.items()},
        "blocks.0.attn.qkv.weight": xavier[64, 64],  # of each third
        "blocks.0.attn.qkv.bias": zero,
        "blocks.0.attn.proj.weight": xavier[64, 64],
        "blocks.0.attn.proj.bias": zero,
        "blocks.0.ls1.gamma": Initializer("constant", 0.1),
        **{f"blocks.0.norm2.{leaf}": value for leaf, value in norm.items()},
        **{f"blocks.0.mlp.{leaf}": value for leaf, value in mlp.items()},
        "blocks.0.ls2.gamma": Initializer("constant", 0.1),
        **{f"norm.{leaf}": value for leaf, value in norm.items()},
        "attn_pool.latent": xavier[1, 64],
        **{f"attn_pool.{name}.weight": xavier[64, 64] for name in ("q", "kv", "proj")},
        **{f"attn_pool.{name}.bias": zero for name in ("q", "kv", "proj")},
        **{f"attn_pool.norm.{leaf}": value for leaf, value in norm.items()},
        **{f"attn_pool.mlp.{leaf}": value for leaf, value in mlp.items()},
        "pre_logits.fc.weight": lecun[64],
        "pre_logits.fc.bias": zero,
        "head.weight": zero,
        "head.bias": Initializer("constant", -10.0),
    }
    assert {name: row.initializer for name, row in ROWS.items()} == expected


def test_lecun_normal_is_flaxs() -> None:
    theirs = jax.nn.initializers.lecun_normal()(jax.random.key(0), (4, 4, 3, 64))
    table = distribution(ROWS["patch_embed.proj.weight"].initializer)
    assert stats.kstest(np.asarray(theirs).ravel(), table.cdf).pvalue > 1e-4


def test_from_one_seed_the_same_values() -> None:
    model, other = vit_jax.from_seed(MODEL, 3), vit_torch.from_seed(MODEL, 3)
    in_jax, in_torch = jax_arrays.read(model), dict(other.named_parameters())
    for name, row in ROWS.items():
        np.testing.assert_array_equal(jax_arrays.to_numpy(row, in_jax[name]), in_torch[name].detach().numpy())
    assert not np.array_equal(
        parameters.initial_value(ROWS["pos_embed"], 3), parameters.initial_value(ROWS["pos_embed"], 4)
    )
