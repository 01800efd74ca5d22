"""The machine of a measurement: its devices, and the versions of all packages involved."""

import multiprocessing
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vit_cli.requirements import TWINS, missing
from vit_core.schema import Positive, Schema

PACKAGES = (
    "vit-parity", "torch", "timm", "transformers", "vit-pytorch", "jax", "jaxlib", "flax", "optax", "torchvision",
    "Pillow", "numba", "simplejpeg",
)  # fmt: skip

_DEVICES = {
    "jax": "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind, sep='\\t')",
    "torch": (
        "import torch; n = torch.cuda.device_count(); "
        "print(*(('cuda', n, torch.cuda.get_device_name()) if n else ('cpu', 1, 'cpu')), sep='\\t')"
    ),
}
"""Programs that print a framework's devices. They run in their own processes, because a process with a TPU keeps it
from others."""


class Machine(Schema):
    """The machine of a measurement. Results of two machines, or of two sets of versions, are not compared."""

    processor: str
    cores: Positive
    """Cores of the processor that this process may use."""
    devices: dict[str, str]
    """Framework -> its devices, as text."""
    python: str
    versions: dict[str, str]

    @property
    def has_tpu(self) -> bool:
        """Whether JAX runs on a TPU."""
        return self.devices.get("jax", "").startswith("tpu")

    @property
    def has_accelerator(self) -> bool:
        """Whether a framework runs on a device other than the CPU."""
        return any(device.partition(",")[0] not in ("cpu", "none that works") for device in self.devices.values())

    def __str__(self) -> str:
        devices = "; ".join(f"{framework}: {device}" for framework, device in self.devices.items())
        versions = ", ".join(f"{package} {number}" for package, number in self.versions.items())
        return f"{self.processor}, {self.cores} cores; {devices}; Python {self.python}, {versions}"


def this_machine() -> Machine:
    """This machine, with the devices of the frameworks that are installed."""
    present = [framework for framework, packages in TWINS.items() if not missing(packages)]
    return Machine(
        processor=_processor(),
        cores=available_cores(),
        devices={framework: _devices(framework) for framework in present},
        python=platform.python_version(),
        versions={package: number for package in PACKAGES if (number := _version(package))},
    )


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return multiprocessing.cpu_count()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if (cpuinfo.exists())
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _devices(framework: str) -> str:
    done = subprocess.run([sys.executable, "-c", _DEVICES[framework]], capture_output=True, text=True, check=False)
    if done.returncode:
        return "none that works"
    kind, count, name = done.stdout.splitlines()[-1].split("\t")
    return kind if kind == name else f"{kind}, {count} x {name}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
