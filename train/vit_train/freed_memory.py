"""What becomes of memory that arrays no longer need (glibc's malloc)."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3), by their numbers in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Lets this process keep freed memory for later arrays of any thread, instead of giving it back to the kernel.

    A train step on a CPU frees its activations when it ends. By default glibc gives such large pieces back, and in the
    next step the kernel clears the same pages again, which costs JAX's steps much of their time. With this setting the
    process stays as large as it once was. Call before the framework starts its threads: those that are there already
    keep to the default. Does nothing with another C library, or where MALLOC_... or GLIBC_TUNABLES is in the
    environment.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or chosen:
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_MAX, 0)  # a piece with a mapping of its own is always given back
        library.mallopt(_TRIM_THRESHOLD, -1)  # nothing is taken off the end of the heap
        library.mallopt(_ARENA_MAX, 1)  # the heaps of other threads hold 64 MiB at most
