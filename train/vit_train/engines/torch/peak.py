"""How fast a device multiplies matrices in PyTorch."""

from collections.abc import Callable

import numpy as np
import torch

from vit_torch.linear import linear
from vit_train.matmul_peak import SMALLEST, measured_flops


def matmul_flops(dtype: str, device: torch.device) -> float:
    """FLOP/s of a product of two large square matrices of this type, computed as by the model's linear layers.

    Takes a small part of a second. On a CPU it is the speed with all threads or with one, whichever is higher: if other
    programs use the cores, every product of several threads waits for the slowest of them.
    """

    def square_of(matrix: np.ndarray) -> Callable[[], object]:
        a = torch.from_numpy(matrix).to(device, getattr(torch, dtype))

        def multiply() -> None:
            linear(a, a, None)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return multiply

    if device.type != "cpu":
        return measured_flops(square_of, largest=8192)
    together, threads = measured_flops(square_of, largest=1024), torch.get_num_threads()
    if threads == 1:
        return together
    torch.set_num_threads(1)
    try:
        return max(together, measured_flops(square_of, largest=SMALLEST))
    finally:
        torch.set_num_threads(threads)
