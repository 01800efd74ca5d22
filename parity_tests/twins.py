"""Both twins with one set of arrays, for the tests in this folder."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import vit_jax
import vit_torch
from vit_core import CheckpointConfig, ViTConfig, parity
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.parity import Report


def checkpoint(config: ViTConfig, arrays: Mapping[str, np.ndarray] | None = None, seed: int = 0) -> Checkpoint:
    """A checkpoint in memory; every parameter random unless `arrays` are given."""
    arrays = parity.randomized(config, seed) if arrays is None else arrays
    return Checkpoint.of(CheckpointConfig(model=config), arrays)


def traces(
    config: ViTConfig,
    *,
    dtype: str = "float64",
    masks: Mapping[str, np.ndarray] | None = None,
    image_size: tuple[int, int] | None = None,
    batch: int = 2,
    seed: int = 0,
    jax_options: Any = None,
    torch_options: Any = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The results of JAX and PyTorch from the same random weights on the same random images."""
    weights = checkpoint(config, seed=seed)
    images = parity.probe(config, seed + 1, batch, image_size)
    interpolate = image_size is not None
    in_jax = vit_jax.trace(
        vit_jax.load(weights, dtype=dtype, **(jax_options or {})),
        *images,
        None if masks is None else {site: jnp.asarray(mask) for site, mask in masks.items()},
        interpolate=interpolate,
    )
    in_torch = vit_torch.trace(
        vit_torch.load(weights, dtype=dtype, **(torch_options or {})),
        *images,
        None if masks is None else {site: torch.as_tensor(mask) for site, mask in masks.items()},
        interpolate=interpolate,
    )
    return in_jax, in_torch


def assert_one_model(report: Report) -> None:
    """Every tensor within its bound, and the outputs bit-for-bit equal once rounded to float32."""
    assert report.ok, f"first divergence {report.first_divergence}, worst {report.worst}"
    assert report.equal_rounded == report.outputs
