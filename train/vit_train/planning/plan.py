"""Compiles the train step of a recipe for devices that need not be present, and computes its memory, FLOPs and
transfers."""

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
from vit_train.config import TrainConfig
from vit_train.engines.jax.mesh import make_mesh
from vit_train.engines.jax.train_step import TrainStep
from vit_train.planning.compilation import Compiled, compile_cached
from vit_train.planning.topologies import Chip, Topology, local_chip
from vit_train.teachers import open_teacher

KINDS = {"params": "parameters", "average": "moving average", "skipped": "counters"}
"""Kind of each part of a step's state, by the first part of a leaf's name; all other leaves belong to the
optimizer."""


@dataclass(frozen=True)
class Target:
    """The devices to compile for."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]


@dataclass(frozen=True)
class Plan:
    """A recipe's train step on its devices. Bytes and seconds are for one device and one step."""

    config: TrainConfig
    """The recipe's config; in its mesh, -1 is replaced by the number of devices."""
    target: Target
    shares: dict[str, int]
    """Bytes of the state between steps, by kind ("parameters", "optimizer state", ...), and of the batch; computed from
    the shards."""
    gradients: int
    """Bytes of all gradients together."""
    compiled: Compiled
    cached: bool
    """Whether an earlier compilation was reused."""
    xla_flops: float | None
    """FLOPs of the forward pass of an image, as XLA counts them; None if XLA does not count them."""

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self.target.devices)

    @property
    def parameters(self) -> int:
        """Number of parameters of the run's network, with the decoder of a masked autoencoder."""
        return sum(row.size for row in self.config.table.values())

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of an image, computed from the shapes (vit_core.flops)."""
        return sum(flops.in_training(self.config.longest, self.config.masked).values())

    @property
    def training_flops(self) -> int:
        """FLOPs of training on an image: the backward pass has two products for each one of the forward pass."""
        return 3 * self.forward_flops

    @property
    def recomputed_flops(self) -> int:
        """FLOPs that the backward pass recomputes for an image, in addition to training_flops."""
        return flops.recomputed(self.config.longest, self.config.remat, self.config.masked)

    @property
    def executed_share(self) -> float | None:
        """training_flops divided by the FLOPs of the products that the program executes; None if these are not
        known."""
        work = self.compiled.work
        if work is None or not work.flops:
            return None
        return self.training_flops * self.config.batch_size / self.devices / work.flops

    @property
    def fits(self) -> bool:
        """Whether the step fits into a device's memory."""
        return self.compiled.refused is None and self.compiled.needed <= self.target.chip.memory

    @property
    def activations(self) -> int:
        """Estimated bytes of activations: XLA's temporaries minus the gradients. (They include gathered weights.)"""
        assert self.compiled.memory is not None
        return max(self.compiled.memory.temporaries - self.gradients, 0)

    @property
    def bounds(self) -> dict[str, float]:
        """Lower bounds of the seconds of a step, by the part that limits it; empty if the speeds are not known.

        FLOPs: all products at peak speed. Memory: every argument is read once, every output is written once, every
        temporary is written and read once. Links: every collective passes its bytes along a ring.
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
    """The devices of a slice; None: those of this machine. Raises InputError for a slice that libtpu does not know."""
    if topology is None:
        device = jax.devices()[0]
        return Target("local", local_chip(device.device_kind, local_memory(device)), jax.devices())
    try:
        description = jax_topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **topology.options)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise InputError(f"topology {topology}: libtpu does not know it: {error}") from None
    return Target(str(topology), topology.family.chip, description.devices)


def local_memory(device: jax.Device) -> int:
    """Bytes of memory of one device of this machine; CPU devices share the machine's memory equally."""
    if stats := device.memory_stats():
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def plan(config: TrainConfig, target: Target) -> Plan:
    """Lowers and compiles the step that training executes; if there are several, the one with the most tokens. Raises
    InputError if the devices cannot share it."""
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    config = config.replace(mesh=config.mesh.over(len(target.devices), config.model))
    teacher, _ = open_teacher(config, None)
    mesh = make_mesh(config.mesh, config.model, target.devices)
    step = TrainStep(config, mesh, None if teacher is None else teacher.config)
    lowered = step.lower()
    first = target.devices[0]
    compiled, cached = compile_cached(lowered, f"{target.name} {first.platform} {first.device_kind}")
    parameters = {name: leaf for name, leaf in step.state.items() if name.startswith("params/")}
    return Plan(
        config=step.config,
        target=target,
        shares={
            **state_bytes(step.state),
            **teacher_bytes(step),
            "batch": sum(map(device_bytes, jax.tree.leaves(step.batch))),
        },
        gradients=sum(map(device_bytes, parameters.values())),
        compiled=compiled,
        cached=cached,
        xla_flops=xla_flops(config.longest) if config.masked is None else None,
    )


def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one device."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return int(prod(shape) * leaf.dtype.itemsize)


def teacher_bytes(step: TrainStep) -> dict[str, int]:
    """Bytes of the teacher's parameters on one device; empty for a run without a teacher."""
    return {"teacher": sum(map(device_bytes, step.taught.values()))} if step.taught else {}


def state_bytes(state: dict[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """Bytes of each kind of state on one device."""
    shares = {"parameters": 0, "optimizer state": 0}
    for name, leaf in state.items():
        kind = KINDS.get(name.partition("/")[0], "optimizer state")
        shares[kind] = shares.get(kind, 0) + device_bytes(leaf)
    return shares


@cache
def xla_flops(config: ViTConfig) -> float | None:
    """FLOPs of the forward pass of an image, as XLA counts them in a model whose layers are not scanned; None if XLA
    does not count them.

    The layers are equal, so the counts of models of one and two layers give the count for any number.
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
