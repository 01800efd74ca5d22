"""How fast a device multiplies matrices in PyTorch."""

from collections.abc import Callable

import numpy as np
import torch

from vit_torch.linear import linear
from vit_train.matmul_peak import measured_flops


def matmul_flops(dtype: str, device: torch.device) -> float:
    """FLOP/s of a product of two large square matrices of this type, computed as by the model's linear layers.

    Takes a small part of a second.
    """

    def square_of(matrix: np.ndarray) -> Callable[[], object]:
        a = torch.from_numpy(matrix).to(device, getattr(torch, dtype))

        def multiply() -> None:
            linear(a, a, None)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return multiply

    return measured_flops(square_of, largest=1024 if device.type == "cpu" else 8192)
