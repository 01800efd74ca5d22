"""The processes of a run: their interface, reading together, and ending together."""

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np

from vit_core.errors import DamagedError, InputError
from vit_core.storage import StorageError

logger = logging.getLogger("vit")
Result = TypeVar("Result")


class Processes(Protocol):
    """This process among those of a run (engines.jax.processes, engines.torch.processes)."""

    @property
    def index(self) -> int:
        """Number of this process, from 0."""

    @property
    def count(self) -> int:
        """Number of processes."""

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes; every process has to call it."""


def read_together(processes: Processes, read: Callable[[], Result]) -> Result:
    """What `read` returns in this process; every process has to call it.

    DamagedError in every process if `read` raises one in any of them, so that no process goes back to an earlier step
    alone while the others wait for it. Other errors are raised where they occur.
    """
    result, damage = None, None
    try:
        result = read()
    except DamagedError as error:
        damage = error
    failed_P = np.zeros(processes.count, np.int64)
    failed_P[processes.index] = damage is not None
    failed = np.flatnonzero(processes.total(failed_P))
    if damage is not None:
        raise damage
    if len(failed):
        raise DamagedError(f"process {failed[0]} found a damaged file; see its message")
    return result  # type: ignore[return-value]


@contextmanager
def end_together(processes: Processes) -> Iterator[None]:
    """If an error is raised within the context in one of several processes, reports it and ends this process at once.
    The others, which would wait for it for ever, are ended by the launcher that started them."""
    try:
        yield
    except Exception as error:
        if processes.count == 1:
            raise
        expected = isinstance(error, InputError | StorageError)
        if expected:
            logger.error("%s", error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        logging.shutdown()
        time.sleep(2 if processes.index == 0 else 0)  # the process that holds the others together leaves last
        os._exit(2 if expected else 1)


def end_with_parent() -> None:
    """In a worker process: ends it when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
