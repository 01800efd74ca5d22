"""The implementations that `vit bench model` measures, the settings, and the required packages.

All implementations are the same network if their library allows: class token, learned positions, GELU (exact in
PyTorch, tanh approximation in JAX), a head for 1000 classes. (vit-pytorch's has two more norms at the patches and no
bias on queries, keys and values.)
Variants with rotary positions, such as dinov3-S/16, are compared with timm's class for them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from vit_cli.requirements import missing
from vit_core import flops
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.schema import Flag, Positive, Schema
from vit_core.variants import variant

Kind = Literal["forward", "train"]
KINDS: tuple[Kind, ...] = ("forward", "train")
Dtype = Literal["float32", "bfloat16"]
Framework = Literal["jax", "torch"]

CLASSES = 1000


class Setting(Schema):
    """One setting of a measurement: an architecture and its conditions."""

    variant: str
    """A published architecture, with an optional image size after an @: S/16, B/16@384."""
    batch_size: Positive
    dtype: Dtype
    """Type of the computation. Trained parameters stay float32."""
    compiled: Flag
    """Whether PyTorch's models use torch.compile. (JAX's are always compiled.)"""
    threads: Positive
    """CPU threads of each implementation."""

    @property
    def model(self) -> ViTConfig:
        """The network. Raises InputError for an unknown architecture."""
        name, at, size = self.variant.partition("@")
        if at and not size.isdecimal():
            raise InputError(f"variant '{self.variant}': expected an image size after the @, as in B/16@384")
        return variant(name, int(size) if at else 224, CLASSES)

    @property
    def flops(self) -> Mapping[Kind, int]:
        """FLOPs for each image: twice the multiply-adds of matrix products; training has three times the forward's."""
        forward = sum(flops.forward(self.model).values())
        return {"forward": forward, "train": 3 * forward}

    def __str__(self) -> str:
        compiled = ", torch.compile" if self.compiled else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.variant}, batch {self.batch_size}, {self.dtype}{compiled}, {threads}"


class Turn(NamedTuple):
    """The times of several consecutive calls."""

    seconds: float
    """Seconds of one call, until its result is available."""
    host_seconds: float
    """Seconds of one call, until it is dispatched to the device."""
    processor_seconds: float
    """Processor seconds of one call, of all threads of the process together."""


class Stopwatch:
    """Measures the time of several consecutive calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.start, self.used = calls, time.perf_counter(), time.process_time()
        self.handed = self.start

    def handed_over(self) -> None:
        """Call this when all calls have been dispatched to the device."""
        self.handed = time.perf_counter()

    def turn(self) -> Turn:
        """Call this when the last result is available; returns the times of one call."""
        passed, used = time.perf_counter() - self.start, time.process_time() - self.used
        return Turn(passed / self.calls, (self.handed - self.start) / self.calls, used / self.calls)


class Runner(Protocol):
    """A model ready to be measured, in a process of its own."""

    def run(self, kind: Kind, calls: int) -> Turn:
        """Calls the forward pass or the train step `calls` times, and waits for the last result."""

    def peak(self) -> float:
        """FLOP/s of a large matrix product of the setting's type."""

    def device_memory(self) -> int | None:
        """The largest number of bytes used on the device; None if the device uses the host's memory."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of the Vision Transformer."""

    name: str
    framework: Framework
    packages: tuple[str, ...]
    """The packages that it needs."""
    checkout: str | None = None
    """Folder of the project's source code, for a project that no package index has."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("vit_")

    def why_absent(self, setting: Setting) -> str | None:
        """The reason why it cannot be measured in a setting; None if it can."""
        if setting.model.rope is not None and not (self.ours or self.name == "timm"):
            return "not measured with rotary positions"
        if self.name in CHECKOUTS and self.checkout is None:
            return (
                f"no package index has it: --peer {self.name}=PATH to a checkout of {CHECKOUTS[self.name].repository}"
            )
        if self.name == "vision_transformer" and setting.dtype != "float32":
            return "its model computes in float32 only"
        absent = missing(self.packages)
        return f"not installed: {', '.join(absent)}" if absent else None


class Checkout(NamedTuple):
    """Source code of an implementation that no package index has."""

    repository: str
    """Owner and name on GitHub."""
    package: str
    """The folder in it that is imported."""


CHECKOUTS = {
    "big_vision": Checkout("google-research/big_vision", "big_vision"),
    "vision_transformer": Checkout("google-research/vision_transformer", "vit_jax"),
}
"""Implementations that are imported from a checkout."""

_ALL = (
    Implementation("vit_torch", "torch", ("torch",)),
    Implementation("timm", "torch", ("torch", "timm")),
    Implementation("transformers", "torch", ("torch", "transformers")),
    Implementation("vit-pytorch", "torch", ("torch", "vit_pytorch")),
    Implementation("vit_jax", "jax", ("jax", "flax", "optax")),
    Implementation("vit_jax scanned", "jax", ("jax", "flax", "optax")),
    Implementation("big_vision", "jax", ("jax", "flax", "optax", "scipy")),
    Implementation("vision_transformer", "jax", ("jax", "flax", "optax")),
)
NAMES = tuple(one.name for one in _ALL)


def implementations(checkouts: Mapping[str, str]) -> list[Implementation]:
    """All implementations. checkouts: name -> folder, for those of CHECKOUTS."""
    return [replace(one, checkout=checkouts.get(one.name)) for one in _ALL]
