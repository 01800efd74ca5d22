"""`vit plan`: the train step of a recipe compiled for a TPU slice that is not there, and what can be read off it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import jax
from flax import nnx
from jax.experimental import topologies as jax_topologies

import vit_jax
from vit_core import ViTConfig, flops
from vit_core.errors import InputError
from vit_core.parameters import count

from .compiled import Compiled, compiled
from .config import TrainConfig
from .mesh_jax import make_mesh
from .step_jax import Step
from .topologies import Chip, Topology, local_chip

KINDS = {"params": "parameters", "average": "moving average", "skipped": "counters"}
"""Of a step's state, by the first part of a name; all others are the optimizer's."""


@dataclass(frozen=True)
class Target:
    """The devices to compile for."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]


@dataclass(frozen=True)
class Plan:
    """A recipe on so many devices. Bytes and seconds are those of one device in one step."""

    config: TrainConfig
    """Its mesh worked out."""
    target: Target
    shares: dict[str, int]
    """Bytes of what stays between steps and of the batch, computed from the shards: parameters, optimizer state, ..."""
    gradients: int
    """Bytes of the gradients, if all are there at once."""
    compiled: Compiled
    cached: bool
    xla_flops: float | None
    """Of an image forward, as XLA counts them."""

    @property
    def devices(self) -> int:
        return len(self.target.devices)

    @property
    def parameters(self) -> int:
        return count(self.config.model)

    @property
    def forward_flops(self) -> int:
        """For an image, by arithmetic."""
        return sum(flops.forward(self.config.model).values())

    @property
    def training_flops(self) -> int:
        """For an image: the backward pass has two products for each of the forward pass."""
        return 3 * self.forward_flops

    @property
    def recomputed_flops(self) -> int:
        """For an image, on top of these."""
        return flops.recomputed(self.config.model, self.config.remat)

    @property
    def fits(self) -> bool:
        return self.compiled.refused is None and self.compiled.needed <= self.target.chip.memory

    @property
    def activations(self) -> int:
        """Estimated bytes: XLA's temporaries less the gradients. (Gathered weights are still among them.)"""
        assert self.compiled.memory is not None
        return max(self.compiled.memory.temporaries - self.gradients, 0)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that a step takes at least, by what it waits for; empty where the device's speeds are not known.

        Memory: every argument is read, every output written, every temporary written and read, once. Links: every
        collective passes its bytes along a ring.
        """
        chip, memory = self.target.chip, self.compiled.memory
        if not (memory and chip.flops and chip.bandwidth and chip.links):
            return {}
        computed = (self.training_flops + self.recomputed_flops) * self.config.batch_size / self.devices
        moved = memory.arguments + memory.outputs + 2 * memory.temporaries
        return {
            "FLOPs": computed / chip.flops,
            "memory": moved / chip.bandwidth,
            "links": sum(collective.received for collective in self.compiled.collectives) / chip.links,
        }


def target(topology: Topology | None) -> Target:
    """The devices of a slice, or (none) of this machine. InputError for a slice that libtpu does not know."""
    if topology is None:
        device = jax.devices()[0]
        return Target("local", local_chip(device.device_kind, local_memory(device)), jax.devices())
    try:
        description = jax_topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **topology.options)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise InputError(f"topology {topology}: libtpu does not know it: {error}") from None
    return Target(str(topology), topology.family.chip, description.devices)


def local_memory(device: jax.Device) -> int:
    """Bytes that a device of this machine has; those of a CPU share the machine's."""
    if stats := device.memory_stats():
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def plan(config: TrainConfig, target: Target) -> Plan:
    """Lowers and compiles the very step that `vit pretrain` runs. InputError where the devices cannot share it."""
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    config = config.replace(mesh=config.mesh.over(len(target.devices), config.model))
    step = Step(config, make_mesh(config, target.devices))
    lowered = step.lower()
    made, cached = compiled(lowered, f"{target.name} {target.devices[0].platform} {target.devices[0].device_kind}")
    parameters = {name: leaf for name, leaf in step.state.items() if name.startswith("params/")}
    return Plan(
        config=config,
        target=target,
        shares={**state_shares(step.state), "batch": sum(map(share, jax.tree.leaves(step.batch)))},
        gradients=sum(map(share, parameters.values())),
        compiled=made,
        cached=cached,
        xla_flops=xla_flops(config.model),
    )


def share(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes that a device has of an array."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return prod(shape) * leaf.dtype.itemsize


def state_shares(state: dict[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """Bytes that a device has of each kind of state."""
    shares = {"parameters": 0, "optimizer state": 0}
    for name, leaf in state.items():
        kind = KINDS.get(name.partition("/")[0], "optimizer state")
        shares[kind] = shares.get(kind, 0) + share(leaf)
    return shares


@cache
def xla_flops(config: ViTConfig) -> float | None:
    """FLOPs of an image forward as XLA counts them, in a model whose layers are not scanned; none where it does not.

    Layers being alike, one and two of them say what any number costs.
    """

    def counted(depth: int) -> float:
        shallow = config.replace(depth=depth)
        graph, state = nnx.split(nnx.eval_shape(lambda: vit_jax.ViT(shallow, rngs=nnx.Rngs(0))))
        images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), "float32")
        lowered = jax.jit(lambda state, images: nnx.merge(graph, state)(images)).lower(state, images)
        return float((lowered.cost_analysis() or {})["flops"])

    try:
        first = counted(1)
        return first + (config.depth - 1) * (counted(2) - first)
    except KeyError:
        return None
