"""The rows of adapters, the type that they are merged in, and what the config refuses."""

import numpy as np
import pytest
import torch

from vit_core import ViTConfig
from vit_core.errors import InputError
from vit_core.lora import Lora, adapter_rows, adapters, merged
from vit_core.parameters import initial_value, parameters

MODEL = ViTConfig(image_size=8, patch_size=4, width=12, depth=2, heads=3, mlp_dim=20, num_classes=4, mlp="swiglu")


def test_rows_stand_beside_the_table() -> None:
    lora = Lora(rank=2, targets=("qkv", "proj", "fc1", "fc2"))
    rows, table = adapter_rows(MODEL, lora), parameters(MODEL)
    assert len(adapters(MODEL, lora)) == 8
    assert not rows.keys() & table.keys()
    expected = {"attn.qkv": (36, 12), "attn.proj": (12, 12), "mlp.fc1": (40, 12), "mlp.fc2": (12, 20)}
    for layer, (outputs, inputs) in expected.items():
        down, up = (rows[f"blocks.1.{layer}.lora_{side}.weight"] for side in "AB")
        assert (down.shape, up.shape) == ((2, inputs), (outputs, 2))
        assert (down.depth, down.layer, down.decay) == (2, 1, True)
        # Contracted over the rank in the JAX layout, they are the adapter of the weight in its JAX layout.
        a, b = (
            np.random.default_rng(0).standard_normal((2, inputs)),
            np.random.default_rng(1).standard_normal((outputs, 2)),
        )
        product = np.tensordot(down.to_jax(a), up.to_jax(b), 1)
        rounding = 2.0**-53 * (np.abs(b) @ np.abs(a)).max()  # both round the second product and the sum
        expected_here = table[f"blocks.1.{layer}.weight"].to_jax(b @ a)
        np.testing.assert_allclose(product, expected_here, rtol=0, atol=4 * rounding)
        # torch's kaiming_uniform_ with a = sqrt(5), which peft and the paper's library begin with, has this limit.
        start = torch.nn.init.kaiming_uniform_(torch.empty(4000, inputs), a=5**0.5)
        limit = down.initializer.value
        assert 0.99 * limit < start.abs().max() <= limit * (1 + 1e-6)
        assert np.abs(initial_value(down, 0)).max() <= limit
        assert not initial_value(up, 0).any()


def test_merged_is_rounded_once() -> None:
    rng = np.random.default_rng(0)
    weight, down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 7), (3, 7), (9, 3)))
    exact = weight.astype(np.longdouble) + 0.3 * (up.astype(np.longdouble) @ down.astype(np.longdouble))
    np.testing.assert_array_equal(merged(weight, down, up, 0.3), exact.astype(np.float32))


def test_adapters_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="targets: none leaves nothing to adapt"):
        Lora(rank=2, targets=())
