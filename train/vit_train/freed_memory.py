"""Configures glibc's malloc to keep freed memory in the process."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3), by their numbers in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Lets this process keep freed memory for later arrays of any thread, instead of returning it to the kernel.

    A train step on a CPU frees its activations when it ends. By default glibc returns such large blocks, and in the
    next step the kernel clears the same pages again, which takes much of the time of JAX's steps. With this setting the
    process never shrinks. Call before the framework starts its threads: existing threads keep the default. Does nothing
    with another C library, or if MALLOC_... or GLIBC_TUNABLES is in the environment.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or chosen:
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_MAX, 0)  # a block with its own mapping is always returned to the kernel
        library.mallopt(_TRIM_THRESHOLD, -1)  # the end of the heap is never returned
        library.mallopt(_ARENA_MAX, 1)  # the heaps of other threads have at most 64 MiB
