"""The processes that share a PyTorch run."""

import atexit
import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device."""

    index: int
    """Number of this process, from 0."""
    count: int
    """Number of processes."""
    device: torch.device

    @property
    def hardware(self) -> str:
        """The device in words."""
        cuda = self.device.type == "cuda"
        return f"1 x {torch.cuda.get_device_name(self.device) if cuda else self.device.type}"

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes; every process has to call it."""
        if self.count == 1:
            return counts
        summed = torch.as_tensor(counts, device=self.device)
        dist.all_reduce(summed)
        return summed.cpu().numpy()


def join() -> Processes:
    """This process, alone or with the others of torchrun, to which the first call connects it."""
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if count == 1:
        return Processes(0, 1, device)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # FSDP and NCCL use the current device
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)  # its threads must end before the interpreter does
    return Processes(dist.get_rank(), count, device)
