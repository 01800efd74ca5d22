"""How fast a device multiplies matrices in PyTorch: what a model's speed is held against."""

import time

import torch


def matmul_flops(dtype: str, device: torch.device) -> float:
    """FLOP/s of a product of two large square matrices of this type on a device: the best of four, after one that warms
    up. Takes a small part of a second."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(n, n, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    seconds = []
    for _ in range(5):
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
