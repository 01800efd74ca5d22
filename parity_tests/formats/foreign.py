"""Models of other projects with every parameter random, as the tests of the formats begin with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import vit_jax
import vit_torch
from vit_core import ViTConfig, open_checkpoint, parity
from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.containers import Container
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.opening import find_source

SMALL = ViTConfig(image_size=12, patch_size=4, width=24, depth=2, heads=3, mlp_dim=40, num_classes=5, activation="gelu")


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, on the scales of parity.randomized: no zero head, no idle bias."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            sample = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "weight" and parameter.ndim > 1:
                sample /= parameter[0].numel() ** 0.5
            elif name == "weight":
                sample = 1 + 0.3 * sample
            else:
                sample *= 0.5
            parameter.data = sample
    return model


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A state dict, saved as users do."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def opened(path: Path, **fields: Any) -> Checkpoint:
    """With fields of the config that the user says."""
    return open_checkpoint(path, fields=fields)


def source_of(entries: Mapping[str, LazyArray], name: str = "file.pth", **more: Any) -> Source:
    """The input of a format for a state dict with these names: the model in it, without its prefix and wrappers."""
    path = Path(name)
    return find_source(Container(path, "pth", dict(entries)), None, Source(path, LazyArrays(dict(entries)), **more))


def assumed(checkpoint: Checkpoint) -> dict[str, Any]:
    """Field -> value of everything that was assumed in a reading; each is assumed once, and has a note of its own."""
    fields = [one.field for one in checkpoint.assumptions]
    assert len(fields) == len(set(fields))
    assert checkpoint.notes[: len(fields)] == tuple(map(str, checkpoint.assumptions))
    return {one.field: one.value for one in checkpoint.assumptions}


def other_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The notes that are no assumptions."""
    return checkpoint.notes[len(checkpoint.assumptions) :]


def images(config: ViTConfig) -> np.ndarray:
    """Random images x_BHWC."""
    return parity.probe(config, 1)[0]


def largest_difference(
    checkpoint: Checkpoint, expected: torch.Tensor, dtype: str = "float64", *, jax: bool = False
) -> float:
    """The largest difference between the outputs of a twin and the expected ones, relative to the scale of these.

    checkpoint: what the twin loads. expected: the outputs of the model that the checkpoint came from or went to, for
    the images of `parity.probe` with seed 1.
    """
    twin: Any = vit_jax if jax else vit_torch
    model = checkpoint.config.model
    found = twin.trace(twin.load(checkpoint, dtype=dtype), *parity.probe(model, 1))["output"]
    return parity.difference(found, expected.detach().double().numpy())[1]


def nchw(x_BHWC: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """As PyTorch takes them."""
    return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).to(dtype)


def assert_same_bits(a: LazyArrays | dict[str, np.ndarray], b: LazyArrays | dict[str, np.ndarray]) -> None:
    """The same names, shapes, types and bytes."""
    assert set(a) == set(b)
    for name in a:
        x, y = a[name], b[name]
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes()), name
