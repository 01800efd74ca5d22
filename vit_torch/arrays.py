"""The parameters of a model by canonical name, for loading, saving, initializing and comparing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from vit_core.parameters import Initializer
from vit_core.rotations import mixed_start

if TYPE_CHECKING:
    from vit_torch.model import ViT


def write(model: "ViT", arrays: Mapping[str, np.ndarray]) -> None:
    """Sets every parameter to the array of its canonical name; the model takes the arrays' memory and dtype."""
    tensors = {name: from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict(tensors, strict=True, assign=True)


def initialize(model: "ViT", generator: torch.Generator | None = None) -> None:
    """Draws new values of every parameter from its row's distribution, in the model's type.

    generator: of the values; None: torch's own.
    """
    table = model.table
    found = dict(model.named_parameters())
    if table.keys() != found.keys():
        raise AssertionError(f"table and model disagree on {sorted(table.keys() ^ found.keys())}")
    with torch.no_grad():
        for name, row in table.items():
            _draw(row.initializer, found[name], generator)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory (a copy where torch could not write to it); bfloat16 too."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor as a contiguous array; bfloat16 too."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _draw(init: Initializer, tensor: Tensor, generator: torch.Generator | None) -> None:
    if init.kind == "constant":
        nn.init.constant_(tensor, init.value)
    elif init.kind == "uniform":
        nn.init.uniform_(tensor, -init.value, init.value, generator=generator)
    elif init.kind == "normal":
        nn.init.normal_(tensor, 0.0, init.value, generator=generator)
    elif init.kind == "rope":
        _, heads, pairs = tensor.shape
        uniform_T1 = torch.rand((heads, 1), generator=generator, device=tensor.device)
        tensor.copy_(mixed_start(init.value, 2 * pairs, uniform_T1, torch))
    else:
        limit = 2 * init.value
        nn.init.trunc_normal_(tensor, 0.0, init.value, -limit, limit, generator=generator)
