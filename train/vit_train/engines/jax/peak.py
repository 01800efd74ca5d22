"""How fast a device multiplies matrices in JAX: what a model's speed is held against."""

import time

import jax
import jax.numpy as jnp


def matmul_flops(dtype: str) -> float:
    """FLOP/s of a product of two large square matrices of this type on the first device: the best of four, after one
    that compiles. Takes a small part of a second."""
    n = 1024 if jax.default_backend() == "cpu" else 8192
    device = jax.local_devices()[0]
    a, b = (jax.device_put(jax.random.normal(jax.random.key(i), (n, n), dtype), device) for i in range(2))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)
