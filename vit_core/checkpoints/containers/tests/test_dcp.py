"""Folders of torch.distributed.checkpoint: tensors in one piece and in several, written by the library itself."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from vit_core.checkpoints.containers import describe_kind, open_container
from vit_core.errors import InputError

STATE: dict[str, Any] = {
    "model": {"blocks.0.weight": torch.arange(12.0).reshape(3, 4), "half": torch.ones(4, dtype=torch.bfloat16)},
    "scalar": torch.tensor(2.5),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    "epoch": 3,
    "rates": [0.1, 0.2],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(dict(STATE), checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_as_written(folder: Path) -> None:
    opened = open_container(folder)
    assert (opened.kind, opened.notes) == ("dcp", ())
    assert describe_kind(folder) == "a folder of torch.distributed.checkpoint (DCP)"
    assert set(opened.tree) == {"model", "scalar", "transposed", "optimizer", "epoch", "rates"}
    assert set(opened.tree["model"]) == {"blocks.0.weight", "half"}
    assert (opened.tree["epoch"], opened.tree["rates"]) == (3, [0.1, 0.2])
    tensors = {"model.blocks.0.weight": STATE["model"]["blocks.0.weight"], "model.half": STATE["model"]["half"]}
    tensors |= {"scalar": STATE["scalar"], "transposed": STATE["transposed"]}
    tensors |= {"optimizer.state.0.exp_avg": torch.zeros(3)}
    assert set(opened.arrays) == set(tensors)
    for name, tensor in tensors.items():
        entry, array = opened.arrays.entries[name], opened.arrays[name]
        assert (entry.shape, entry.dtype) == (array.shape, array.dtype.name)
        assert entry.dtype == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())
        array[...] = 0
        np.testing.assert_array_equal(opened.arrays[name].astype(np.float64), tensor.double().numpy())


Change = Any


def in_pieces(folder: Path, change: Change = None) -> Path:
    """model/matrix [5, 4] in pieces of rows 0-1, rows 2-4 of columns 0-2, and the rest, as three ranks write it."""
    whole = torch.arange(20.0).reshape(5, 4)
    boxes = [((0, 0), (2, 4)), ((2, 0), (3, 3)), ((2, 3), (3, 1))]
    parts = {f"part{i}": whole[r : r + h, c : c + w].clone() for i, ((r, c), (h, w)) in enumerate(boxes)}
    dcp.save(parts, checkpoint_id=folder, no_dist=True)
    metadata = FileSystemReader(folder).read_metadata()
    described = metadata.state_dict_metadata.pop("part0")
    places = {}
    for i, (offsets, _) in enumerate(boxes):
        metadata.state_dict_metadata.pop(f"part{i}", None)
        place = next(info for index, info in metadata.storage_data.items() if index.fqn == f"part{i}")
        places[MetadataIndex("model.matrix", torch.Size(offsets), i)] = place
    described.size = torch.Size([5, 4])
    described.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes]
    metadata.state_dict_metadata["model.matrix"] = described
    metadata.storage_data = places
    metadata.planner_data = {"model.matrix": ("model", "matrix")}
    if change:
        change(metadata, described)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def test_in_pieces(tmp_path: Path) -> None:
    opened = open_container(in_pieces(tmp_path / "dcp"))
    assert opened.arrays.shapes == {"model.matrix": (5, 4)}
    np.testing.assert_array_equal(opened.arrays["model.matrix"], np.arange(20.0).reshape(5, 4))


def fewer(_: Any, described: Any) -> None:
    described.chunks.pop()


def overlapping(metadata: Any, described: Any) -> None:
    described.chunks[2] = ChunkStorageMetadata(torch.Size([1, 3]), torch.Size([3, 1]))
    index = next(index for index in metadata.storage_data if index.index == 2)
    metadata.storage_data[MetadataIndex("model.matrix", torch.Size([1, 3]), 2)] = metadata.storage_data[index]


def outside(metadata: Any, described: Any) -> None:
    described.chunks[2] = ChunkStorageMetadata(torch.Size([3, 3]), torch.Size([3, 1]))
    index = next(index for index in metadata.storage_data if index.index == 2)
    metadata.storage_data[MetadataIndex("model.matrix", torch.Size([3, 3]), 2)] = metadata.storage_data[index]


def huge(_: Any, described: Any) -> None:
    described.size = torch.Size([2**40, 4])
    described.chunks = [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([2**40, 4]))]


def elsewhere(metadata: Any, _: Any) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = "../secret.distcp"


def past_the_end(metadata: Any, _: Any) -> None:
    for place in metadata.storage_data.values():
        place.offset = 10**9


def compressed(metadata: Any, _: Any) -> None:
    for place in metadata.storage_data.values():
        place.transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer, "the pieces of model.matrix do not cover it"),
        (overlapping, "pieces of model.matrix overlap"),
        (outside, "a piece of model.matrix is partly outside the tensor"),
        (huge, "but the file has fewer bytes"),
        (elsewhere, "a piece is in ../secret.distcp, which is missing"),
        (past_the_end, "the file is truncated"),
        (compressed, "its pieces are compressed or encrypted, which is not supported"),
    ],
)
def test_broken_metadata(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_container(in_pieces(tmp_path / "dcp", change))
    assert "\n" not in str(caught.value)


def test_a_piece_of_another_shape(tmp_path: Path) -> None:
    def swapped(metadata: Any, _: Any) -> None:
        places = metadata.storage_data
        first, second = list(places)[:2]
        places[first], places[second] = places[second], places[first]

    opened = open_container(in_pieces(tmp_path / "dcp", swapped))
    with pytest.raises(InputError, match=r"reading model.matrix.*another shape or type than .metadata states"):
        opened.arrays["model.matrix"]


def test_no_code_runs(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('code ran')",))

    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not the metadata of a distributed checkpoint"):
        open_container(folder)


def test_a_part_alone_and_an_index_alone(folder: Path) -> None:
    (part,) = folder.glob("*.distcp")
    with pytest.raises(InputError, match=r"is a part of a checkpoint of .*\(DCP\); give the folder that contains it"):
        open_container(part)
    part.unlink()
    with pytest.raises(InputError, match=r"has the index .*, \.metadata, but none of its \.distcp files; copy these"):
        open_container(folder)
