"""TPU slices by name ("v5e:16x16"), and what a device of each generation can hold and do. No framework here.

Speeds are the published ones of a chip (docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, .../tpu7x),
divided by the devices that JAX sees in it. Memory is what XLA's compiler grants a program on a device, from its answer
to one that wants more (libtpu 0.0.42): the HBM but for what the runtime keeps.
"""

import os
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

from vit_core.errors import InputError

GIB = 2**30
LOCAL = "local"
"""Instead of a slice: the devices of this machine."""


@dataclass(frozen=True)
class Chip:
    """A device as JAX sees it: a chip of TPU v4 to v6e, half a chip of tpu7x."""

    name: str
    memory: int
    """Bytes that a program can have."""
    flops: float | None = None
    """Peak bfloat16 FLOP/s; none: not known here, and the two that follow likewise."""
    bandwidth: float | None = None
    """Of its memory, bytes/s."""
    links: float | None = None
    """Bytes/s that reach it from other devices, over all its links: half of what is published for both directions."""
    kind: str = ""
    """jax.Device.device_kind."""


@dataclass(frozen=True)
class Family:
    """A generation of slices."""

    chip: Chip
    example: str
    dimensions: int
    chips: int
    """In the largest slice."""
    cores: int = 1
    """Devices in a chip."""


# fmt: off
FAMILIES = {
    # 275 TFLOP/s, 32 GiB, 1200 GB/s; six links of 50 GB/s each way (arXiv:2304.01433, table 4).
    "v4": Family(Chip("v4", int(30.75 * GIB), 275e12, 1200e9, 300e9, "TPU v4"), "v4:4x4x4", 3, 4096),
    # 197 TFLOP/s, 16 GB, 819 GB/s; 400 GB/s of links in both directions.
    "v5e": Family(Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, "TPU v5 lite"), "v5e:16x16", 2, 256),
    # 459 TFLOP/s, 95 GB, 2765 GB/s; 1200 GB/s; 6144 chips in the largest job.
    "v5p": Family(Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 600e9, "TPU v5"), "v5p:8x8x4", 3, 6144),
    # 918 TFLOP/s, 32 GB, 1638 GB/s; 800 GB/s.
    "v6e": Family(Chip("v6e", int(31.25 * GIB), 918e12, 1638e9, 400e9, "TPU v6 lite"), "v6e:16x16", 2, 256),
    # 2307 TFLOP/s, 192 GiB, 7380 GB/s; 1200 GB/s; two devices in a chip.
    "tpu7x": Family(Chip("tpu7x", int(94.75 * GIB), 1153.5e12, 3690e9, 300e9, "TPU7x"), "tpu7x:4x4x4", 3, 9216, 2),
}
# fmt: on


@dataclass(frozen=True)
class Topology:
    """A slice of a family."""

    family: Family
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.family.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def devices(self) -> int:
        """That JAX sees."""
        return prod(self.shape) * self.family.cores

    @property
    def options(self) -> dict[str, object]:
        """For jax.experimental.topologies.get_topology_desc, beside the name."""
        # Without it a v4 chip is two devices of half the memory; every later one of two cores decides for itself.
        megacore = {"chip_config_name": "megacore"} if self.family.chip.name == "v4" else {}
        # By default hosts are 2 x 2 chips, which a slice of one chip has not.
        return megacore | ({"chips_per_host_bounds": (1, 1, 1)} if prod(self.shape) == 1 else {})


def parse(text: str) -> Topology:
    """A slice from its name. InputError for one that is not made."""
    name, colon, lengths = text.partition(":")
    if name not in FAMILIES:
        slices = ", ".join(family.example for family in FAMILIES.values())
        raise InputError(f"unknown topology '{text}'; expected {LOCAL}, or the sides of a slice in chips: {slices}")
    family = FAMILIES[name]
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", lengths):
        raise InputError(f"topology '{text}': expected the chips along each side of the slice, as {family.example}")
    shape = tuple(map(int, lengths.split("x")))
    if len(shape) != family.dimensions:
        raise InputError(f"topology '{text}': {name} slices have {family.dimensions} sides, as {family.example}")
    if prod(shape) > 1 and any(length % 2 for length in shape[:2]):
        raise InputError(f"topology '{text}': hosts are 2 x 2 chips, so the first two sides must be even")
    if prod(shape) > family.chips:
        raise InputError(f"topology '{text}': {prod(shape)} chips; the largest {name} slice has {family.chips}")
    return Topology(family, shape)


def local_chip(kind: str, memory: int) -> Chip:
    """A device of this machine: the known speeds, where it is a TPU."""
    for family in FAMILIES.values():
        if family.chip.kind == kind:
            return replace(family.chip, memory=memory)
    return Chip(kind, memory, kind=kind)


WITHOUT_HARDWARE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # It complains where these are not set, whatever they are.
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Else only one process at a time could have libtpu, as if it held a TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment in which libtpu compiles on a machine without a TPU, in silence; to be set before jax is imported."""

SILENCE = {name: value for name, value in WITHOUT_HARDWARE.items() if name != "JAX_PLATFORMS"}


def silence() -> None:
    """Where libtpu is there for `vit plan` and no TPU is, keeps it from saying so whenever JAX starts."""
    devices = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    if not devices and find_spec("libtpu"):
        os.environ |= {name: value for name, value in SILENCE.items() if name not in os.environ}
