"""jax.export of a model whose image size is a symbol: the outputs are those of the model at that size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import vit_jax
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity

MODEL = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_dim=16, num_classes=3)
BOUND = 1e-12
"""float64; the positions are resampled one axis at a time instead of in one product, which reorders its sums."""
SIZES = ((16, 12), (8, 8))
"""Height and width; the second is the config's own, where no method changes the positions."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"position_resampling": "dinov2", "registers": 2, "class_token_position": True},
        {"position_resampling": "bicubic_antialias", "class_token": False, "pooling": "gap"},
        {"position_embedding": "sincos2d_mae"},
    ],
)
def test_exported_with_dynamic_height_and_width(fields: dict[str, Any]) -> None:
    config = MODEL.replace(**fields)
    with jax.enable_x64(True):
        model = vit_jax.load(Checkpoint.of(CheckpointConfig(model=config), parity.randomized(config, 0)))
        shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4*h, 4*w, 3"), jnp.float64)
        program = export.export(jax.jit(lambda x_BHWC: model(x_BHWC, interpolate=True)))(shape)
        for size in SIZES:
            x_BHWC, _ = parity.probe(config, 0, image_size=size)
            expected = vit_jax.predict(model, x_BHWC, interpolate=True)
            assert np.abs(program.call(x_BHWC) - expected).max() <= BOUND * np.abs(expected).max()
