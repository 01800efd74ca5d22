"""Freed memory stays with the process, so that the kernel does not clear it again for each step."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource
import jax, jax.numpy as jnp
from vit_train.frameworks import join_processes

join_processes("jax")
add = jax.jit(lambda x: x + 1)
x = jnp.zeros(16 * 2**20)  # 64 MiB

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        add(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(8)))  # the heap grows until the pieces in use lie apart
"""


@pytest.mark.release
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_the_next_array_takes_the_place_of_the_last() -> None:
    """The user's own setting of malloc comes first. With it the kernel clears the pages of every result, whatever
    their size."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", CODE], env=own | more, capture_output=True, check=True).stdout)
        for more in ({}, {"MALLOC_TOP_PAD_": "131072"})  # glibc's default
    )
    assert kept * 10 < given_back
