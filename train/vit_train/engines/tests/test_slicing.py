"""Optimizers that see matrices, with slices of the parameters: threads in the place of processes, in unequal parts."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from vit_train.config import Optimizer
from vit_train.engines.tests.optimizer_runs import (
    RUNS,
    STEPS,
    TABLE,
    Arrays,
    InTorch,
    assert_same,
    run,
    start,
)
from vit_train.engines.torch.optimizers import is_whole
from vit_train.engines.torch.slicing import WHOLE, Slicing


class Threads:
    """A process group whose processes are threads."""

    def __init__(self, count: int) -> None:
        self.count, self.sent = count, {}
        self.barrier, self.own = threading.Barrier(count, timeout=60), threading.local()

    def size(self) -> int:
        return self.count

    def rank(self) -> int:
        return int(self.own.rank)

    def exchanged(self, sent: list[Tensor]) -> list[list[Tensor]]:
        """What each thread has sent."""
        self.sent[self.rank()] = sent
        self.barrier.wait()
        found = [self.sent[i] for i in range(self.count)]
        self.barrier.wait()
        return found

    def all_reduce(self, x: Tensor, group: Any) -> None:
        assert group is self
        x.copy_(torch.stack([sent[0] for sent in self.exchanged([x.clone()])]).sum(0))

    def all_to_all_single(self, y: Tensor, x: Tensor, received: list[int], sent: list[int], group: Any) -> None:
        assert group is self
        arrived = [parts[self.rank()] for parts in self.exchanged(list(x.split(sent)))]
        assert [len(part) for part in arrived] == received
        y.copy_(torch.cat(arrived))

    def run(self, function: Callable[[Slicing], Any]) -> list[Any]:
        """What a function returns in each thread."""

        def one(rank: int) -> Any:
            self.own.rank = rank
            try:
                return function(Slicing(self))  # type: ignore[arg-type]
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, range(self.count)))


@pytest.fixture(params=[2, 5])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Threads:
    made = Threads(request.param)
    monkeypatch.setattr(dist, "all_reduce", made.all_reduce)
    monkeypatch.setattr(dist, "all_to_all_single", made.all_to_all_single)
    return made


class InSlices(InTorch):
    """Optimizer steps on slices, as FSDP2 cuts them."""

    def __init__(self, config: Optimizer, params: Arrays, slicing: Slicing) -> None:
        super().__init__(config, params, slicing=slicing)
        self.slicing = slicing

    def step(self, step: int, gradients: Arrays) -> None:
        super().step(step, sliced(gradients, self.slicing))


def sliced(arrays: Arrays, slicing: Slicing) -> Arrays:
    return {name: slices(array, slicing.count)[slicing.index] for name, array in arrays.items()}


def slices(array: np.ndarray, count: int) -> list[np.ndarray]:
    """By torch.chunk along the first axis, and empty ones where there are not enough."""
    found = [part.numpy() for part in torch.tensor(array).chunk(count)]
    return [*found, *(array[:0] for _ in range(count - len(found)))]


@pytest.mark.parametrize("name", ["adafactor", "lamb", "muon"])
def test_slices_are_moved_as_the_whole(name: str, threads: Threads) -> None:
    """Also after they and their statistics were stored in between."""
    config = RUNS[f"{name}, decoupled, plain"]

    def train(slicing: Slicing) -> Arrays:
        first = run(InSlices(config, sliced(start(), slicing), slicing), range(8))
        second = InSlices(config, first.export(), slicing)
        second.restore(8, first.statistics())
        run(second, range(8, STEPS))
        return second.export() | second.statistics()

    whole, found = run(InTorch(config, start())), threads.run(train)
    expected = whole.export() | whole.statistics()
    assert [each.keys() for each in found] == [expected.keys()] * threads.count
    for key in filter(is_whole, expected):
        for each in found[1:]:
            np.testing.assert_array_equal(each[key], found[0][key])
    joined = {
        key: found[0][key] if is_whole(key) else np.concatenate([each[key] for each in found]) for key in expected
    }
    assert_same(joined, expected)


def test_only_means_over_rows_and_columns_are_whole() -> None:
    keys = InTorch(RUNS["adafactor, decoupled, plain"], start()).statistics()
    kinds = {kind: is_whole(f"{kind}/{name}") for kind, name in (key.split("/") for key in keys)}
    assert {kind for kind, whole in kinds.items() if whole} == {"second_moment_rows", "second_moment_columns"}
    assert not any(map(is_whole, TABLE))


@pytest.mark.parametrize("name", TABLE)
def test_pieces_of_matrices_lie_where_torch_cuts(name: str, threads: Threads) -> None:
    row = TABLE[name]
    array = np.random.default_rng(0).standard_normal(row.shape)
    matrices = WHOLE.split(torch.tensor(array), WHOLE.pieces(row))

    def split(slicing: Slicing) -> list[Tensor]:
        pieces = slicing.pieces(row)
        found = slicing.split(torch.tensor(slices(array, slicing.count)[slicing.index]), pieces)
        for piece, x, matrix in zip(pieces, found, matrices, strict=True):
            assert torch.equal(x, matrix[piece.rows])
            assert piece.shape == row.matrix_shape == matrix.shape
        return found

    for parts, matrix in zip(zip(*threads.run(split), strict=True), matrices, strict=True):
        assert torch.equal(torch.cat(parts), matrix)


@pytest.mark.parametrize("matrices", [1, 3, 12])
def test_a_function_of_whole_matrices(matrices: int, threads: Threads) -> None:
    """Each process calls it for its share of the matrices, at most."""
    row, draw = TABLE["blocks.0.mlp.fc1.weight"], torch.Generator().manual_seed(0)
    whole = torch.randn((matrices, *row.shape), generator=draw, dtype=torch.float64)
    counts: list[int] = []

    def function(x: Tensor) -> Tensor:
        counts.append(len(x))
        return x.flip(-2).cumsum(-2)

    def apply(slicing: Slicing) -> Tensor:
        (piece,) = slicing.pieces(row)
        parts = [matrix[piece.rows] for matrix in whole]
        returned = slicing.on_whole(function, slicing.join(parts), [piece] * matrices)
        return torch.stack(slicing.part(returned, parts))

    assert torch.equal(torch.cat(threads.run(apply), dim=1), whole.flip(-2).cumsum(-2))
    assert sum(counts) == matrices
    assert max(counts) == -(-matrices // threads.count)
