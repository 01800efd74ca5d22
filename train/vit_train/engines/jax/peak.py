"""How fast a device multiplies matrices in JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_train.matmul_peak import measured_flops


def matmul_flops(dtype: str) -> float:
    """FLOP/s of a product of two large square matrices of this type on the first device. Takes a small part of a
    second."""
    device = jax.local_devices()[0]
    product = jax.jit(jnp.matmul)

    def square_of(matrix: np.ndarray) -> Callable[[], object]:
        a = jax.device_put(matrix.astype(jnp.dtype(dtype)), device)
        return lambda: jax.block_until_ready(product(a, a))

    return measured_flops(square_of, largest=1024 if jax.default_backend() == "cpu" else 8192)
