"""The threads that make the images of a batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def in_threads(work: Callable[[range], None], count: int, threads: int) -> None:
    """Calls `work` for ranges that together are range(count), in a number of threads. Returns when all are done."""
    if threads == 1:
        work(range(count))
        return
    size = max(1, count // (4 * threads))
    for _ in _pool(threads).map(work, (range(i, min(i + size, count)) for i in range(0, count, size))):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads that make images in this process."""
    return ThreadPoolExecutor(threads, thread_name_prefix="images")
