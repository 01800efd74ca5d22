"""`vit bench startup`: how long `vit --help` takes in a new process and which large packages it imports, and what the
import of each twin adds to that of its framework."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass

from vit_cli.requirements import TWINS, missing

HEAVY = ("jax", "torch", "numpy", "pydantic", "vit_core", "vit_train", "vit_jax", "vit_torch", "grain", "transformers")
"""Packages that must not be imported for the help."""

_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Environment in which Python keeps compiled modules, as by default; otherwise each start would compile them."""

_PROGRAM = "from vit_cli.main import main; main()"
_IMPORTED = (
    "import atexit, sys\n"
    f"found = lambda: [name for name in {HEAVY!r} if name in sys.modules]\n"
    "atexit.register(lambda: print('imported', *found(), file=sys.stderr))\n"
)
_TWIN = """
import time
start = time.perf_counter(); import {beyond}
middle = time.perf_counter(); import {package}
print(middle - start, time.perf_counter() - middle)
"""
_BEYOND = {"jax": ("vit_jax", "flax.nnx"), "torch": ("vit_torch", "torch")}
"""Framework -> its twin, and the module that is imported before it and not counted."""


@dataclass(frozen=True)
class Startup:
    """The startup time of a command."""

    seconds: float
    """The shortest of several runs, because other programs can only increase the time."""
    imported: tuple[str, ...]
    """The packages in `HEAVY` that were imported."""
    limit: float = 0.3

    @property
    def ok(self) -> bool:
        return self.seconds <= self.limit and not self.imported


@dataclass(frozen=True)
class ImportStartup:
    """The time of importing a twin: the shortest of several runs."""

    package: str
    """The twin."""
    beyond: str
    """The module that is imported before it, such as torch."""
    beyond_seconds: float
    """Seconds of importing that module."""
    seconds: float
    """Seconds of importing the twin itself, in a process that has already imported the module `beyond`."""
    limit: float = 0.1

    @property
    def ok(self) -> bool:
        return self.seconds <= self.limit


def help_startup(repeats: int = 10) -> Startup:
    """Measures `vit --help`."""
    return Startup(min(_seconds() for _ in range(repeats)), imported_by("--help"))


def import_startups(repeats: int = 10) -> list[ImportStartup]:
    """Measures the twins whose frameworks are installed."""
    found = []
    for framework, (package, beyond) in _BEYOND.items():
        if not missing(TWINS[framework]):
            program = _TWIN.format(package=package, beyond=beyond)
            times = [tuple(map(float, _output(program).split())) for _ in range(repeats)]
            found.append(ImportStartup(package, beyond, *(min(each) for each in zip(*times, strict=True))))
    return found


def imported_by(*words: str) -> tuple[str, ...]:
    """The packages in `HEAVY` that a command imports."""
    command = [sys.executable, "-c", _IMPORTED + _PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_ENVIRONMENT)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("imported")]
    return tuple(line.split()[1:])


def _output(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=_ENVIRONMENT).stdout


def _seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _PROGRAM, "--help"], capture_output=True, check=True, env=_ENVIRONMENT)
    return time.perf_counter() - start
