"""Compiles a train step and reads memory, collectives and compile time from the result, which is cached on disk."""

import hashlib
import os
import re
import time
import warnings
from importlib.metadata import PackageNotFoundError, version

import jax

from vit_core.schema import NonNegative, Real, Schema
from vit_train.planning.hlo import Collective, Program
from vit_train.planning.work import Work, work_of
from vit_train.user_cache import user_cache

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

REFUSALS = (
    r"memory required[^(]*\(([\d.]+)([KMGT]?)\) exceeds",
    r"Used ([\d.]+)([KMGT]?) of",
    r"allocating ([\d.]+) ?([KMGT]?)",
)
"""Patterns of XLA's out-of-memory messages, with the memory that the program needed."""


class Memory(Schema):
    """Memory of one device, in bytes, as XLA reports it."""

    arguments: NonNegative
    outputs: NonNegative
    aliased: NonNegative
    """Bytes of outputs that replace arguments."""
    temporaries: NonNegative
    program: NonNegative
    peak: NonNegative
    """Largest use of memory during the step; on a TPU including its on-chip memory."""

    @property
    def total(self) -> int:
        """Bytes that have to fit into a device's memory."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


class Compiled(Schema):
    """Result of a compilation; or of a refused one, if the program does not fit into memory."""

    seconds: Real
    memory: Memory | None = None
    refused: NonNegative | None = None
    """Bytes that the program needs on a device, if XLA refused to compile it."""
    collectives: tuple[Collective, ...] = ()
    uncounted: tuple[str, ...] = ()
    """Loops whose collectives are counted once, because their number of iterations is unknown."""
    work: Work | None = None
    """The work of a device in one run of the program; None if XLA refused to compile it."""

    @property
    def needed(self) -> int:
        """Bytes needed on a device."""
        if self.memory is not None:
            return self.memory.total
        assert self.refused is not None
        return self.refused


def compile_cached(lowered: jax.stages.Lowered, devices: str) -> tuple[Compiled, bool]:
    """The compilation of a step for the devices that it was lowered for, and whether a cached one was reused.

    devices: description of the devices; part of the cache key.
    """
    path = user_cache() / "plans" / f"{cache_key(lowered, devices)}.json"
    try:
        return Compiled.model_validate_json(path.read_bytes()), True
    except (OSError, ValueError):
        pass  # it is missing or incomplete
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
    """Compiles a step. If XLA refuses because of too little memory, the result says so; other errors are raised."""
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # JAX's own cache of compilations cannot be read for devices that are not present.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = refused_bytes(str(error))
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
        seconds=seconds,
        memory=memory,
        collectives=tuple(program.collectives),
        uncounted=tuple(program.uncounted),
        work=work_of(program),
    )


def refused_bytes(message: str) -> int | None:
    """Bytes that a program needs, from XLA's out-of-memory message; None for any other message."""
    if not message.startswith("RESOURCE_EXHAUSTED"):
        return None
    for pattern in REFUSALS:
        if found := re.search(pattern, message):
            return int(float(found[1]) * UNITS[found[2]])
    return None


def cache_key(lowered: jax.stages.Lowered, devices: str) -> str:
    """A hash of the program, the devices and the compilers."""
    compilers = [f"{name} {installed_version(name)}" for name in ("jax", "jaxlib", "libtpu")]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    parts = [
        lowered.as_text(),
        devices,
        *compilers,
        *flags,
        *Compiled.model_fields,
        *Memory.model_fields,
        *Work.model_fields,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def installed_version(package: str) -> str:
    """Version of a package; "none" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
