"""Models of PyTorch projects as references: filled with random values that leave none idle, asked for outputs.

Values are float32, so that files keep them whole; what is computed from them is compared in float64.
"""

import json
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

import vit_jax
import vit_torch
from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint

Model = TypeVar("Model", bound=nn.Module)


def randomised(model: Model, seed: int = 0) -> Model:
    """Matrices keep the scale of their inputs, the rest is of order one, scales lie about one. Tokens and positions are
    multiples of 2**-8, so that their sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        sample = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim in (2, 4):
            sample /= parameter[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            sample = 1 + 0.3 * sample
        elif parameter.ndim == 3:
            sample = (128 * sample).round() / 256
        else:
            sample = 0.5 * sample
        parameter.data = sample
    return model.eval()


def images(checkpoint: Checkpoint, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Random ones that the model takes, float64 [2, C, H, W]."""
    x_BHWC, _ = parity.probe(checkpoint.config.model, 1, image_size=size)
    return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).contiguous()


def outputs(model: nn.Module, x_BCHW: torch.Tensor, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The outputs of another project's model in a type."""
    with torch.no_grad():
        return deepcopy(model).to(dtype)(x_BCHW.to(dtype)).numpy()


def ours(checkpoint: Checkpoint, x_BCHW: torch.Tensor, dtype: str = "float64", **load: object) -> np.ndarray:
    """The outputs of the PyTorch twin in a type."""
    with torch.no_grad():
        return vit_torch.load(checkpoint, dtype=dtype, **load)(x_BCHW.to(getattr(torch, dtype))).numpy()


def in_jax(checkpoint: Checkpoint, x_BCHW: torch.Tensor) -> np.ndarray:
    """The outputs of the JAX twin in float64."""
    return np.asarray(vit_jax.load(checkpoint, dtype="float64")(x_BCHW.permute(0, 2, 3, 1).numpy()))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """parity's measure."""
    assert a.shape == b.shape
    return parity.difference(a, b)[1]


def hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of zeros of full size that the disk has no bytes of."""
    header, end = dict[str, object](), 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def assert_same_checkpoint(a: Checkpoint, b: Checkpoint) -> None:
    """The same config, whatever its provenance, and the same bits."""
    assert a.config.replace(provenance=b.config.provenance) == b.config
    assert list(a.arrays) == list(b.arrays)
    for name in a.arrays:
        left, right = a.arrays[name], b.arrays[name]
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), name
