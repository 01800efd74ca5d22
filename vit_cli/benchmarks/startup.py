"""How long `vit --help` takes in a new process, against its limit, and which large packages it imports."""

import subprocess
import sys
import time
from dataclasses import dataclass

LIMIT_SECONDS = 0.3
HEAVY = ("jax", "torch", "numpy", "pydantic", "vit_core", "vit_train", "vit_jax", "vit_torch", "grain", "transformers")
"""Packages that must not be imported for the help."""

_PROGRAM = "from vit_cli.main import main; main()"
_IMPORTED = (
    "import atexit, sys\n"
    f"found = lambda: [name for name in {HEAVY!r} if name in sys.modules]\n"
    "atexit.register(lambda: print('imported', *found(), file=sys.stderr))\n"
)


@dataclass(frozen=True)
class Startup:
    """What one command costs before it does anything."""

    seconds: float
    """The best of several runs: whatever else the machine does only adds."""
    imported: tuple[str, ...]
    """Those of `HEAVY` that were imported."""

    @property
    def ok(self) -> bool:
        return self.seconds <= LIMIT_SECONDS and not self.imported


def help_startup(repeats: int = 10) -> Startup:
    """Measures `vit --help`."""
    return Startup(min(_seconds() for _ in range(repeats)), imported_by("--help"))


def imported_by(*words: str) -> tuple[str, ...]:
    """Those of `HEAVY` that a command imports."""
    command = [sys.executable, "-c", _IMPORTED + _PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("imported")]
    return tuple(line.split()[1:])


def _seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _PROGRAM, "--help"], capture_output=True, check=True)
    return time.perf_counter() - start
