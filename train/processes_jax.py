"""The processes of a JAX run: alone, or one of several that jax.distributed brought together."""

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
    count: int

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum over all processes, in the counts' own type: as bytes, because JAX may lack float64."""
        if self.count == 1:
            return counts
        ours = np.asarray(counts, order="C")
        gathered = multihost_utils.process_allgather(np.frombuffer(ours.tobytes(), np.uint8))
        return np.stack([np.frombuffer(row.tobytes(), ours.dtype).reshape(ours.shape) for row in gathered]).sum(
            axis=0, dtype=ours.dtype
        )


def join(distributed: str | None = None) -> Processes:
    """Joins the others, if there are others; must come before anything is computed.

    distributed: "HOST:PORT,INDEX/COUNT", the first process's address and which of how many this one is; "off"; none:
    what JAX finds by itself (TPU pods, SLURM, Open MPI). Raises InputError for anything else.
    """
    if not jax.distributed.is_initialized() and distributed != "off":
        # The loop handles SIGTERM itself; JAX's own service would take it away.
        jax.config.update("jax_enable_preemption_service", False)
        given = {} if distributed is None else parsed(distributed)
        try:
            jax.distributed.initialize(**given)
        except (ValueError, RuntimeError) as error:
            # No cluster found, or (in a program that has computed something) too late to look for one.
            alone = "coordinator_address should be defined" in str(error) or "before any JAX calls" in str(error)
            if given or not alone:
                what = f"--distributed {distributed}" if given else "the other processes cannot be joined"
                raise InputError(f"{what}: {str(error).splitlines()[0]}; to train alone: --distributed off") from None
    return here()


def here() -> Processes:
    """This process, as it has joined."""
    return Processes(jax.process_index(), jax.process_count())


def parsed(distributed: str) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize."""
    match = re.fullmatch(r"(.+:\d+),(\d+)/(\d+)", distributed)
    if not match or int(match[2]) >= int(match[3]):
        raise InputError(
            f"--distributed {distributed}: expected HOST:PORT,INDEX/COUNT, INDEX from 0, as 10.0.0.1:1234,0/2; or off"
        )
    return {"coordinator_address": match[1], "process_id": int(match[2]), "num_processes": int(match[3])}
