"""TPU slices by name ("v5e:16x16"), with memory and speed of a device of each generation. Imports no framework.

Speeds are the published ones of a chip (docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, .../tpu7x),
divided by the number of devices that JAX sees in it. Memory is what XLA's compiler allows a program on a device, taken
from its error message for a program that needs more (libtpu 0.0.42): the HBM without what the runtime reserves.
"""

import re
from dataclasses import dataclass, replace
from math import prod

from vit_core.errors import InputError
from vit_core.libtpu import QUIET_ENVIRONMENT

GIB = 2**30
LOCAL = "local"
"""Name that stands for the devices of this machine instead of a slice."""


@dataclass(frozen=True)
class Chip:
    """A device as JAX sees it: a chip of TPU v4 to v6e, half a chip of tpu7x."""

    name: str
    memory: int
    """Bytes that a program may use."""
    flops: float | None = None
    """Peak FLOP/s in bfloat16. None: not known (also for the next two fields)."""
    bandwidth: float | None = None
    """Bytes/s of its memory."""
    links: float | None = None
    """Bytes/s received from other devices over all links: half of the published value for both directions."""
    kind: str = ""
    """jax.Device.device_kind."""


@dataclass(frozen=True)
class Family:
    """A generation of TPUs, and its slices."""

    chip: Chip
    example: str
    dimensions: int
    chips: int
    """Chips in the largest slice."""
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
        """Number of devices that JAX sees."""
        return prod(self.shape) * self.family.cores

    @property
    def options(self) -> dict[str, object]:
        """Arguments of jax.experimental.topologies.get_topology_desc, in addition to the name."""
        # Without it a v4 chip is two devices of half the memory; later chips with two cores have a default.
        megacore = {"chip_config_name": "megacore"} if self.family.chip.name == "v4" else {}
        # By default hosts have 2 x 2 chips, more than a slice of one chip.
        return megacore | ({"chips_per_host_bounds": (1, 1, 1)} if prod(self.shape) == 1 else {})


def parse(text: str, also: str = "") -> Topology:
    """The slice with a name such as "v5e:16x16". Raises InputError for a slice that does not exist.

    also: other expected values, for the error message.
    """
    name, colon, lengths = text.partition(":")
    if name not in FAMILIES:
        slices = ", ".join(family.example for family in FAMILIES.values())
        raise InputError(f"unknown topology '{text}'; expected {also}the sides of a slice in chips: {slices}")
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
    """A device of this machine; its speeds are known if it is a TPU."""
    for family in FAMILIES.values():
        if family.chip.kind == kind:
            return replace(family.chip, memory=memory)
    return Chip(kind, memory, kind=kind)


WITHOUT_HARDWARE = {"JAX_PLATFORMS": "cpu", **QUIET_ENVIRONMENT}
"""Environment in which libtpu compiles without a TPU and logs nothing; to be set before jax is imported."""
