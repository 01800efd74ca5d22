"""A process for each implementation, so that the threads, memory and libraries of one do not affect the others."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from vit_cli.benchmarks.implementations import Implementation, Kind, Runner, Setting, Turn
from vit_core.errors import shortened
from vit_train.freed_memory import keep_freed_memory


class Memory(NamedTuple):
    """The largest amount of memory in use."""

    bytes: int
    on_device: bool
    """Whether this is the device's memory instead of the process's."""


class Failed(Exception):
    """An implementation failed; the message gives the reason."""


class Worker:
    """An implementation in its own process. Its methods raise Failed if its library raises an error."""

    def __init__(self, implementation: Implementation, setting: Setting) -> None:
        self.implementation = implementation
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(implementation, setting, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, kind: Kind, calls: int) -> Turn:
        """Calls the forward pass or the train step `calls` times."""
        turn: Turn = self._ask("run", kind, calls)
        return turn

    def peak(self) -> float:
        """FLOP/s of a large matrix product."""
        found: float = self._ask("peak")
        return found

    def memory(self) -> Memory:
        """The largest amount of memory until now."""
        found: Memory = self._ask("memory")
        return found

    def close(self) -> None:
        """Ends the process, also in the middle of a call."""
        self.pipe.close()
        self.process.join(timeout=1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _ask(self, *words: Any) -> Any:
        try:
            self.pipe.send(words)
            answer, failed = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            raise Failed(f"its process ended with status {self.process.exitcode}") from None
        if failed:
            raise Failed(answer)
        return answer


def _serve(implementation: Implementation, setting: Setting, pipe: Connection) -> None:
    """Answers the requests from the pipe until it is closed."""
    _limit_threads(setting.threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a GPU
    runner: Runner | None = None
    with suppress(EOFError):
        while True:
            question, *words = pipe.recv()
            try:
                runner = runner or _open_runner(implementation, setting)
                pipe.send((_answer(runner, question, words), False))
            except Exception as error:  # of any kind: it is another project's code
                pipe.send((f"{type(error).__name__}: {shortened(str(error))}", True))


def _open_runner(implementation: Implementation, setting: Setting) -> Runner:
    """The implementation's model in this process; for the twins with the trainer's memory setting."""
    if implementation.ours:
        keep_freed_memory()
    if implementation.framework == "torch":
        from vit_cli.benchmarks.torch_runner import TorchRunner

        return TorchRunner(implementation.name, setting)
    from vit_cli.benchmarks.jax_runner import JaxRunner

    return JaxRunner(implementation, setting)


def _answer(runner: Runner, question: str, words: Sequence[Any]) -> Any:
    if question == "memory":
        return _memory(runner.device_memory())
    return runner.peak() if question == "peak" else runner.run(*words)


def _limit_threads(threads: int) -> None:
    """Must come before the frameworks are imported, which read it once: PyTorch's OpenMP and MKL, and XLA (NPROC)."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["NPROC"] = str(threads)


def _memory(device_bytes: int | None) -> Memory:
    if device_bytes is not None:
        return Memory(device_bytes, on_device=True)
    status = Path("/proc/self/status")
    if status.exists():  # rusage would count what the parent used when it started this process
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return Memory(int(line.split()[1]) * 1024, on_device=False)
    unit = 1 if sys.platform == "darwin" else 1024
    return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, on_device=False)
