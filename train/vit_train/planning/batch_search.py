"""Searches the largest batch that fits on a slice, with a mesh and a rematerialization (`vit plan --fit`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import floor, log2

from vit_core.errors import InputError
from vit_train.config import Mesh, TrainConfig
from vit_train.planning.plan import Plan

REMATS = ("none", "dots", "full")
"""The kinds of rematerialization, from the least to the most recomputation."""

LARGEST_BATCH = 2**20
"""Examples of a batch; larger ones are not tried."""


@dataclass(frozen=True)
class BatchSearch:
    """Result of a search."""

    tried: list[Plan]
    """The plans that were compiled, in order."""
    best: Plan | None
    """The best of them; None if none fits."""


def find_largest_batch(config: TrainConfig, devices: int, plan: Callable[[TrainConfig], Plan]) -> BatchSearch:
    """Searches batch (a power of two for each device), remat and mesh; `plan` compiles one combination.

    The largest batch is best; among equal batches the plan that recomputes less, then the one with the first mesh.
    Memory grows with the batch and with less rematerialization; combinations whose result follows from this are not
    compiled.
    """
    tried: list[Plan] = []
    best: Plan | None = None
    for mesh in meshes(config, devices):

        def attempt(batch: int, remat: str = "full", mesh: Mesh = mesh) -> Plan:
            tried.append(plan(config.replace(mesh=mesh, remat=remat, batch_size=batch)))
            return tried[-1]

        # If the best batch so far does not fit on a mesh with full rematerialization, no plan of this mesh is better.
        smallest = smallest_batch(config, mesh)
        found = largest_fitting(attempt, smallest, best.config.batch_size if best else smallest)
        if found is None:
            continue
        for remat in REMATS[:-1]:
            if best and rank(best) >= (found.config.batch_size, -REMATS.index(remat)):
                break
            if (lighter := attempt(found.config.batch_size, remat)).fits:
                found = lighter
                break
        if best is None or rank(found) > rank(best):
            best = found
    return BatchSearch(tried, best)


def rank(plan: Plan) -> tuple[int, int]:
    """Sort key of a plan: greater is better."""
    return plan.config.batch_size, -REMATS.index(plan.config.remat)


def meshes(config: TrainConfig, devices: int) -> Iterator[Mesh]:
    """The meshes to try: the recipe's own, then groups of 1, 4, 16 and 64 devices that share the parameters, then some
    that also divide each layer.

    Larger groups turn gathers into sums of whole weights, and layers in many parts wait for each other.
    """
    wanted = [
        config.mesh,
        *(Mesh(fsdp=fsdp) for fsdp in (1, 4, 16, 64)),
        Mesh(fsdp=16, tensor=2),
        Mesh(fsdp=16, tensor=4),
    ]
    found: list[Mesh] = []
    for mesh in wanted:
        try:
            full = mesh.over(devices, config.model)
        except InputError:
            continue
        if full not in found:
            found.append(full)
            yield full


def smallest_batch(config: TrainConfig, mesh: Mesh) -> int:
    """The smallest batch that the devices of a mesh can share."""
    return mesh.data * mesh.fsdp * config.accumulation * (2 if config.augmentation.mixes else 1)


def largest_fitting(attempt: Callable[[int], Plan], smallest: int, at_least: int) -> Plan | None:
    """The plan of the largest batch that fits, among smallest x 1, 2, 4, ... that are not below `at_least`; None if the
    first of these does not fit.

    Memory is modeled as a constant plus a part proportional to the batch. The next batch to try is the one that fills
    the device according to the two largest batches so far.
    """
    low = max(0, floor(log2(at_least / smallest)))
    low += smallest << low < at_least
    if not (fitting := attempt(smallest << low)).fits:
        return None
    constant = fitting.compiled.needed - proportional_part(fitting)
    high = floor(log2(LARGEST_BATCH / smallest)) + 1
    while high - low > 1:
        room = (fitting.target.chip.memory - constant) / max(fitting.compiled.needed - constant, 1)
        guess = min(max(low + floor(log2(max(room, 1))), low + 1), high - 1)
        tried = attempt(smallest << guess)
        if tried.fits:
            # Two points of a line give its constant.
            grown = (tried.compiled.needed - fitting.compiled.needed) / (2 ** (guess - low) - 1)
            low, fitting, constant = guess, tried, fitting.compiled.needed - grown
        else:
            high = guess
    return fitting


def proportional_part(plan: Plan) -> int:
    """A first estimate of the bytes that grow with the batch: all except the state."""
    return max(plan.compiled.needed - sum(plan.shares.values()) + plan.shares["batch"], 1)
