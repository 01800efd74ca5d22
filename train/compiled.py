"""What XLA makes of a train step: memory, collectives, the time it took; or what it lacked. Kept between runs."""

import hashlib
import os
import re
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from vit_core.schema import NonNegative, Real, Schema

from .hlo import Collective, Program

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

REFUSALS = (
    r"memory required[^(]*\(([\d.]+)([KMGT]?)\) exceeds",
    r"Used ([\d.]+)([KMGT]?) of",
    r"allocating ([\d.]+) ?([KMGT]?)",
)
"""How XLA's compilers say what a program wanted that was not to be had."""


class Memory(Schema):
    """Of one device, in bytes, as XLA reports it."""

    arguments: NonNegative
    outputs: NonNegative
    aliased: NonNegative
    """Outputs that are written over arguments."""
    temporaries: NonNegative
    program: NonNegative
    peak: NonNegative
    """At the fullest moment of the step; on a TPU with its on-chip memory."""

    @property
    def total(self) -> int:
        """What has to fit into a device's memory."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


class Compiled(Schema):
    """A compilation, or a refusal to compile what would not fit."""

    seconds: Real
    memory: Memory | None = None
    refused: NonNegative | None = None
    """Bytes that XLA wanted on a device, where it refused."""
    collectives: tuple[Collective, ...] = ()
    uncounted: tuple[str, ...] = ()
    """Loops whose collectives are counted once, because nothing says how often they go round."""

    @property
    def needed(self) -> int:
        """Bytes on a device."""
        if self.memory is not None:
            return self.memory.total
        assert self.refused is not None
        return self.refused


def compiled(lowered: jax.stages.Lowered, where: str) -> tuple[Compiled, bool]:
    """The compilation of a step for the devices it was lowered for, and whether it was at hand from an earlier one."""
    path = cache() / f"{key(lowered, where)}.json"
    try:
        return Compiled.model_validate_json(path.read_bytes()), True
    except (OSError, ValueError):
        pass  # none, or not a whole one
    made = compile_now(lowered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(made.model_dump_json())
        part.replace(path)
    except OSError:
        pass  # a full or read-only disk costs the next run a compilation
    return made, False


def compile_now(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles; a refusal for lack of memory is a result too."""
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # Where JAX keeps compilations itself: it cannot read back those for devices that are not there.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = refusal(str(error))
        if wanted is None:
            raise
        return Compiled(seconds=time.perf_counter() - began, refused=wanted)
    seconds = time.perf_counter() - began
    found, program = executable.memory_analysis(), Program(executable.as_text() or "")
    assert found is not None
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        program=found.generated_code_size_in_bytes,
        peak=found.peak_memory_in_bytes,
    )
    return Compiled(
        seconds=seconds, memory=memory, collectives=tuple(program.collectives), uncounted=tuple(program.uncounted)
    )


def refusal(message: str) -> int | None:
    """Bytes that a program wanted, by XLA's complaint of too little memory; none for any other complaint."""
    if not message.startswith("RESOURCE_EXHAUSTED"):
        return None
    for pattern in REFUSALS:
        if found := re.search(pattern, message):
            return int(float(found[1]) * UNITS[found[2]])
    return None


def key(lowered: jax.stages.Lowered, where: str) -> str:
    """Of a compilation: the program, the devices and the compilers."""
    compilers = [f"{name} {installed(name)}" for name in ("jax", "jaxlib", "libtpu")]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    parts = [lowered.as_text(), where, *compilers, *flags, *Compiled.model_fields, *Memory.model_fields]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def installed(package: str) -> str:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def cache() -> Path:
    """Where compilations are kept: plans of vit-parity under XDG_CACHE_HOME (default: ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit-parity" / "plans"
