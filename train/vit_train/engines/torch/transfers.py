"""Asynchronous copies of arrays between the host and a device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_torch import arrays


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of an array on a device; the host does not wait for it."""
    tensor: Tensor = arrays.from_numpy(array)
    if device.type == "cuda":  # only copies from pinned memory are asynchronous
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Arriving:
    """Numbers that a device still computes; who asks for them waits until they are on the host."""

    def __init__(self, values: Tensor) -> None:
        self.host, self.arrived = values, None
        if values.device.type == "cuda":
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def parts(self, sizes: Sequence[int]) -> list["ArrivingPart"]:
        """The numbers in parts of these sizes, one after the other."""
        ends = np.cumsum(sizes).tolist()
        return [ArrivingPart(self, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    def array(self) -> np.ndarray:
        """The numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.numpy()


class ArrivingPart:
    """A part of an arriving array, which can be converted to a NumPy array or a number."""

    def __init__(self, whole: Arriving, part: slice) -> None:
        self.whole, self.part = whole, part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.whole.array()[self.part], dtype, copy=copy)

    def __float__(self) -> float:
        return float(self.whole.array()[self.part].item())

    def __int__(self) -> int:
        return int(float(self))
