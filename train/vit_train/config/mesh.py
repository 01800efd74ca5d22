"""Config of how the devices of all processes share a run."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Self

from pydantic import Field, model_validator

from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.schema import Schema

Devices = Annotated[int, Field(ge=-1, le=2**24, strict=True)]


class Mesh(Schema):
    """How many devices share a run along each axis. One of the axes may be -1: all devices that the others leave."""

    data: Devices = -1
    """Devices that each have a part of the batch."""
    fsdp: Devices = 1
    """Devices that each have a part of the batch, and of every matrix and its statistics (arXiv:1910.02054, stage 3): a
    slice of model.width, which it must divide."""
    tensor: Devices = 1
    """Devices that each have some heads and some hidden units (arXiv:1909.08053): it must divide model.heads and
    model.mlp_dim."""
    prefetch: Annotated[int, Field(ge=0, le=64, strict=True)] = 0
    """PyTorch with fsdp: number of blocks whose weights are asked for before a block computes, in the forward and in
    the backward pass: more of them hide slow links, and each takes memory. 0: as FSDP2 does it by itself, one in the
    backward pass, and in the forward pass as many as the host is ahead of the device."""

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        if 0 in self.axes.values():
            raise ValueError("mesh: 0 devices along an axis; expected 1 or more, or -1 for those that are left")
        if list(self.axes.values()).count(-1) > 1:
            raise ValueError(f"mesh: {self}: only one axis may be -1")
        return self

    def __str__(self) -> str:
        return " x ".join(f"{name} {size}" for name, size in self.axes.items())

    @property
    def axes(self) -> dict[str, int]:
        """Number of devices by axis, the outermost axis first."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    def over(self, devices: int, model: ViTConfig) -> Self:
        """The mesh over a number of devices, with -1 replaced. Raises InputError if devices or model cannot be
        divided."""
        fixed = prod(size for size in self.axes.values() if size != -1)
        rest = [name for name, size in self.axes.items() if size == -1]
        if devices % fixed or not (rest or devices == fixed):
            raise InputError(
                f"mesh: {self} needs {'a multiple of ' * bool(rest)}{fixed} devices, there are {devices}; change "
                "mesh.data, mesh.fsdp or mesh.tensor"
            )
        full = self.replace(**dict.fromkeys(rest, devices // fixed))
        check_divides(full.axes, model)
        return full


def check_divides(axes: Mapping[str, int], model: ViTConfig, prefix: str = "model.") -> None:
    """Raises InputError if a mesh with these numbers of devices along its axes cannot divide a model. prefix: text
    before the names of fields in the message."""
    for axis, lengths in {"fsdp": ("width",), "tensor": ("heads", "mlp_dim")}.items():
        for name in lengths:
            if (length := getattr(model, name)) % axes[axis]:
                raise InputError(f"mesh.{axis}: {axes[axis]} does not divide {prefix}{name} {length}")
