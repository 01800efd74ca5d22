"""Who takes part in `vit bench model`, what is measured of them, and what each needs.

Every contestant is the same network where its library allows: class token, learned positions, GELU (in PyTorch by the
error function, in JAX by tanh), a head for 1000 classes. (vit-pytorch's has two more norms at the patches and no bias
on queries, keys and values.)
Variants with rotary positions, such as dinov3-S/16, are measured beside timm's class for them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
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
    """What is measured: one architecture under fixed conditions."""

    variant: str
    """A published architecture and, after an @, its image size: S/16, B/16@384."""
    batch_size: Positive
    dtype: Dtype
    """Type of the computation. Trained parameters stay float32."""
    compiled: Flag
    """Whether PyTorch's models pass through torch.compile. (JAX's are compiled always.)"""
    threads: Positive
    """CPU threads of each contestant."""

    @property
    def model(self) -> ViTConfig:
        """The network. InputError for an unknown architecture."""
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
    """Several calls one after another."""

    seconds: float
    """For one call, until its result is there."""
    host_seconds: float
    """For one call, until it has been handed to the device."""
    processor_seconds: float
    """For one call, of all threads of the process together."""


class Stopwatch:
    """Times several calls one after another."""

    def __init__(self, calls: int) -> None:
        self.calls, self.start, self.used = calls, time.perf_counter(), time.process_time()
        self.handed = self.start

    def handed_over(self) -> None:
        """All calls have been handed to the device."""
        self.handed = time.perf_counter()

    def turn(self) -> Turn:
        """The last result is there."""
        passed, used = time.perf_counter() - self.start, time.process_time() - self.used
        return Turn(passed / self.calls, (self.handed - self.start) / self.calls, used / self.calls)


class Runner(Protocol):
    """A model ready to be measured, in a process of its own."""

    def run(self, kind: Kind, calls: int) -> Turn:
        """Calls the forward pass or the train step so often, and waits for the last result."""

    def peak(self) -> float:
        """FLOP/s of a large matrix product of the setting's type."""

    def device_memory(self) -> int | None:
        """The most bytes that were used on the device; None where it is the host's memory."""


@dataclass(frozen=True)
class Contestant:
    """One implementation of the Vision Transformer."""

    name: str
    framework: Framework
    packages: tuple[str, ...]
    """What has to be installed."""
    checkout: str | None = None
    """Folder of a project's source code, for one that no package index has."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("vit_")

    def why_absent(self, model: ViTConfig) -> str | None:
        """Why it cannot take part with a network; None where it can."""
        if model.rope is not None and not (self.ours or self.name == "timm"):
            return "not measured with rotary positions"
        if self.name in CHECKOUTS and self.checkout is None:
            return f"no package index has it: --peer {self.name}=PATH to a checkout of {CHECKOUTS[self.name]}"
        absent = missing(self.packages)
        return f"not installed: {', '.join(absent)}" if absent else None


CHECKOUTS = {"big_vision": "google-research/big_vision"}
"""Contestants that are imported from a checkout, and its repository."""

_ALL = (
    Contestant("vit_torch", "torch", ("torch",)),
    Contestant("timm", "torch", ("torch", "timm")),
    Contestant("transformers", "torch", ("torch", "transformers")),
    Contestant("vit-pytorch", "torch", ("torch", "vit_pytorch")),
    Contestant("vit_jax", "jax", ("jax", "flax", "optax")),
    Contestant("vit_jax scanned", "jax", ("jax", "flax", "optax")),
    Contestant("big_vision", "jax", ("jax", "flax", "optax", "scipy")),
)
NAMES = tuple(contestant.name for contestant in _ALL)


def contestants(checkouts: Mapping[str, str]) -> list[Contestant]:
    """All contestants. checkouts: name -> folder, for those of CHECKOUTS."""
    return [Contestant(c.name, c.framework, c.packages, checkouts.get(c.name)) for c in _ALL]
