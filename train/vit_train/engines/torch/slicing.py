"""Matrices of which each process has some rows: sums over them, and work on whole ones.

FSDP cuts every parameter along its first axis into slices of equal length, the last of them shorter or empty. The
matrices that the parameter table sees in a parameter (queries, keys and values, for example) lie across the cuts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from vit_core.parameters import Parameter


@dataclass(frozen=True)
class Piece:
    """The rows of a matrix that each process has, or its elements of a vector; with one process, all of them."""

    shape: tuple[int, ...]
    """The shape of the whole matrix or vector, of which this is a part."""
    bounds: tuple[int, ...]
    """Process i has the rows bounds[i] to bounds[i + 1]."""
    process: int
    """This process."""

    def rows_of(self, process: int) -> slice:
        """The rows of a process."""
        return slice(*self.bounds[process : process + 2])

    def size_of(self, process: int) -> int:
        """How many elements a process has."""
        return (self.bounds[process + 1] - self.bounds[process]) * prod(self.shape[1:])

    @property
    def rows(self) -> slice:
        """The rows of this process."""
        return self.rows_of(self.process)


@dataclass(frozen=True)
class Slicing:
    """The processes that each have a slice of every parameter."""

    group: dist.ProcessGroup | None = None
    """None: this process has all of them."""

    @property
    def count(self) -> int:
        """Number of slices."""
        return 1 if self.group is None else self.group.size()

    @property
    def index(self) -> int:
        """Which slice is this process's."""
        return 0 if self.group is None else self.group.rank()

    def pieces(self, row: Parameter) -> list[Piece]:
        """The pieces of a parameter's matrices, or of its one vector."""
        length, (rows, *columns) = row.shape[0], row.matrix_shape
        longest, each = -(-length // self.count), row.size // length // prod(columns)  # rows in an index of the axis
        cuts = [min(i * longest, length) * each for i in range(self.count + 1)]
        return [
            Piece(row.matrix_shape, tuple(min(max(cut - first, 0), rows) for cut in cuts), self.index)
            for first in range(0, length * each, rows)
        ]

    def split(self, x: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
        """This process's pieces of the matrices in its slice of a parameter, as views of the slice."""
        parts = x.view(-1).split([piece.size_of(self.index) for piece in pieces])
        return [part.view(-1, *piece.shape[1:]) for part, piece in zip(parts, pieces, strict=True)]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by the sum of those of all processes, which have to call it with the same shapes."""
        if self.group is None or not tensors:
            return
        together = _joined(tensors)
        dist.all_reduce(together, group=self.group)
        torch._foreach_copy_(list(tensors), _parted(together, tensors))

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """Pieces of matrices of one shape as one tensor, for arithmetic on all of their elements: [matrices, rows,
        columns] with one process, otherwise [elements]."""
        return torch.stack(list(pieces)) if self.group is None else _joined(pieces)

    def part(self, together: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The pieces that `join` has joined, as views."""
        return list(together) if self.group is None else _parted(together, like)

    def on_whole(self, function: Callable[[Tensor], Tensor], together: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """A function of whole matrices [matrices, rows, columns], applied to the matrices of one shape whose pieces
        `join` has joined; returns pieces of the same shapes, joined.

        Each process gets an equal share of the matrices, has them whole for as long as the function takes, and sends
        the rows of the others back.
        """
        if self.group is None:
            return function(together)
        share = -(-len(pieces) // self.count)
        of_process = [pieces[i * share : (i + 1) * share] for i in range(self.count)]
        own = of_process[self.index]
        sent = [sum(piece.size_of(self.index) for piece in those) for those in of_process]
        received = [sum(piece.size_of(i) for piece in own) for i in range(self.count)]
        arrived = together.new_empty(sum(received))
        dist.all_to_all_single(arrived, together, received, sent, group=self.group)
        result = arrived.new_empty(0)
        if own:
            parts = arrived.split([piece.size_of(i) for i in range(self.count) for piece in own])
            whole = [torch.cat(parts[j :: len(own)]).view(piece.shape) for j, piece in enumerate(own)]
            done = function(torch.stack(whole))
            back = [done[j, piece.rows_of(i)] for i in range(self.count) for j, piece in enumerate(own)]
            result = _joined(back)
        returned = torch.empty_like(together)
        dist.all_to_all_single(returned, result, sent, received, group=self.group)
        return returned


WHOLE = Slicing()
"""The slicing of parameters that are not cut: this process has all of each."""


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


def _parted(together: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = together.split([x.numel() for x in like])
    return [part.view(x.shape) for part, x in zip(parts, like, strict=True)]
