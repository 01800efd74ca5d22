"""`vit plan --fit`: the largest batch that fits on a slice, and the mesh and rematerialisation to have it with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import floor, log2

from vit_core.errors import InputError

from .config import Mesh, TrainConfig
from .plan import Plan

REMATS = ("none", "dots", "full")
"""The least recomputation first."""

LARGEST = 2**20
"""Examples of a batch; nobody trains with more."""


@dataclass(frozen=True)
class Fit:
    """What was tried, in that order, and the best of it; none if nothing fits."""

    tried: list[Plan]
    best: Plan | None


def fit(config: TrainConfig, devices: int, plan: Callable[[TrainConfig], Plan]) -> Fit:
    """Searches batch (a power of two for each device), remat and mesh by compiling what `plan` is given.

    The largest batch is best; of plans of one batch that which computes less again, then that of the first mesh.
    Memory grows with the batch and with less rematerialisation: what follows from that is not compiled.
    """
    tried: list[Plan] = []
    best: Plan | None = None
    for mesh in meshes(config, devices):

        def attempt(batch: int, remat: str = "full", mesh: Mesh = mesh) -> Plan:
            tried.append(plan(config.replace(mesh=mesh, remat=remat, batch_size=batch)))
            return tried[-1]

        # A mesh that cannot hold the best batch so far with everything computed again has nothing better.
        smallest = unit(config, mesh)
        found = largest(attempt, smallest, best.config.batch_size if best else smallest)
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
    return Fit(tried, best)


def rank(plan: Plan) -> tuple[int, int]:
    """Better plans have greater ones."""
    return plan.config.batch_size, -REMATS.index(plan.config.remat)


def meshes(config: TrainConfig, devices: int) -> Iterator[Mesh]:
    """The recipe's own, then groups of 1, 4, 16 and 64 that share the parameters, then some that share each layer.

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


def unit(config: TrainConfig, mesh: Mesh) -> int:
    """The smallest batch that a mesh can share."""
    return mesh.data * mesh.fsdp * config.accumulation * (2 if config.augmentation.mixes else 1)


def largest(attempt: Callable[[int], Plan], smallest: int, at_least: int) -> Plan | None:
    """The largest fitting batch of smallest x 1, 2, 4, ..., from `at_least` on; none if that does not fit.

    Memory is taken for a constant and a part that is proportional to the batch: the next batch to try is where the
    two largest so far say that the device is full.
    """
    low = max(0, floor(log2(at_least / smallest)))
    low += smallest << low < at_least
    if not (fitting := attempt(smallest << low)).fits:
        return None
    constant = fitting.compiled.needed - slope(fitting)
    high = floor(log2(LARGEST / smallest)) + 1
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


def slope(plan: Plan) -> int:
    """A first idea of what grows with the batch: all but the state."""
    return max(plan.compiled.needed - sum(plan.shares.values()) + plan.shares["batch"], 1)
