"""The processes of a JAX run: one alone, or several connected by jax.distributed."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_core.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    index: int
    """Number of this process, from 0."""
    count: int
    """Number of processes."""

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, in its type: it is sent as bytes, because JAX may lack float64."""
        if self.count == 1:
            return counts
        ours = np.asarray(counts, order="C")
        gathered = multihost_utils.process_allgather(np.frombuffer(ours.tobytes(), np.uint8))
        rows = [np.frombuffer(row.tobytes(), ours.dtype).reshape(ours.shape) for row in gathered]
        total: np.ndarray = np.stack(rows).sum(axis=0, dtype=ours.dtype)
        return total


def join(distributed: str | None = None) -> Processes:
    """Connects with the other processes of the run, if there are any; must be called before anything is computed.

    distributed: "HOST:PORT,INDEX/COUNT", the address of the first process, the number of this one and how many there
    are; "off": no others; None: what JAX finds by itself (TPU pods, SLURM, Open MPI). Raises InputError for anything
    else, and where the others cannot be reached.
    """
    if not jax.distributed.is_initialized() and distributed != "off":
        # The training loop handles SIGTERM itself; JAX's service would take the signal away.
        jax.config.update("jax_enable_preemption_service", False)
        given = {} if distributed is None else parse_distributed(distributed)
        try:
            jax.distributed.initialize(**given)
        except (ValueError, RuntimeError) as error:
            # No cluster found, or (in a program that has computed something) too late to look for one.
            alone = "coordinator_address should be defined" in str(error) or "before any JAX calls" in str(error)
            if given or not alone:
                what = f"--distributed {distributed}" if given else "the other processes cannot be joined"
                raise InputError(f"{what}: {str(error).splitlines()[0]}; to train alone: --distributed off") from None
    return joined_processes()


def joined_processes() -> Processes:
    """The processes that this one is connected with."""
    return Processes(jax.process_index(), jax.process_count())


def parse_distributed(distributed: str) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize from "HOST:PORT,INDEX/COUNT". Raises InputError for another form."""
    match = re.fullmatch(r"(.+:\d+),(\d+)/(\d+)", distributed)
    if not match or int(match[2]) >= int(match[3]):
        raise InputError(
            f"--distributed {distributed}: expected HOST:PORT,INDEX/COUNT, INDEX from 0, as 10.0.0.1:1234,0/2; or off"
        )
    return {"coordinator_address": match[1], "process_id": int(match[2]), "num_processes": int(match[3])}
