"""A train step as one CUDA graph: the host hands over one graph in place of some thousand kernels."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vit_core.errors import shortened
from vit_train.config import TrainConfig
from vit_train.data.batches import Batch

logger = logging.getLogger("vit")

CALLS_BEFORE = 3
"""Number of steps before one is recorded; they compile and choose kernels."""

Update = Callable[[Tensor, Sequence[Batch]], Tensor]
"""Numbers and parts of a batch, on the device -> what it computes."""


class RecordedUpdate:
    """An update on a CUDA device, which is called as it is for a few steps, then recorded, and from then on replayed:
    the same kernels on the same memory (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

    The update must change what it changes in place, read nothing on the host, and be called with tensors of the same
    shapes, which nobody changes afterwards. Where it cannot be recorded, that is logged, and it is called as it is.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.result = torch.empty(0)

    def __call__(self, update: Update, numbers: Tensor, parts: Sequence[Batch]) -> Tensor:
        """What the update computes, the same one in each call; the next call writes into the same memory.

        (It is an argument, since an object that kept its engine's update would keep the engine.)
        """
        self.calls += 1
        if self.calls == CALLS_BEFORE + 1:
            self._record(update, numbers, parts)
        if self.graph is None:
            return self._as_it_is(update, numbers, parts)
        for own, given in zip(self.inputs, _tensors(numbers, parts), strict=True):
            assert own.shape == given.shape
            own.copy_(given)
        self.graph.replay()
        return self.result

    def _as_it_is(self, update: Update, numbers: Tensor, parts: Sequence[Batch]) -> Tensor:
        """Calls the update on the stream that it is recorded on: autograd goes on using the stream that it began on."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = update(numbers, parts)
        current.wait_stream(self.stream)
        return result

    def _record(self, update: Update, numbers: Tensor, parts: Sequence[Batch]) -> None:
        """Records the update, without executing it; the tensors become the memory that replays read."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                result = update(numbers, parts)
        except RuntimeError as error:
            why = shortened(str(error))
            logger.warning(f"the train step cannot be recorded as a CUDA graph, so that the host takes longer: {why}")
            return
        self.graph, self.inputs, self.result = graph, _tensors(numbers, parts), result


def may_be_recorded(config: TrainConfig, processes: int) -> bool:
    """Whether every update of a run uses the same kernels on the same memory, so that it can be recorded as a CUDA
    graph."""
    same_shapes = len(config.networks) == 1 and config.preprocessing.max_patches is None
    # Moments of another type are new tensors in each step, and recomputation asks for the state of random numbers.
    in_place = config.optimizer.moment_dtype is None and config.remat == "none"
    return same_shapes and in_place and processes == 1 and config.mesh.fsdp == 1


def _tensors(numbers: Tensor, parts: Sequence[Batch]) -> list[Tensor]:
    return [numbers, *(x for part in parts for x in (*part[:5], *part.masks.values()))]
