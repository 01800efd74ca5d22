"""Flax's msgpack files: what flax.serialization.msgpack_restore gives is what is read here, lazily."""

from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers import StandIn, open_container
from vit_core.errors import InputError

TREE: dict[str, Any] = {
    "params": {
        "Dense_0": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)},
        "half": np.arange(3, dtype=np.float16),
        "empty": np.empty((0, 2), np.float32),
        "scalar": np.array(2.5),
    },
    "ids": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "flags": np.array([True, False]),
    "layers": {"0": jnp.zeros(2), "1": jnp.ones(3)},
    "step": 3,
    "negative": -70_000,
    "large": 2**40,
    "rate": 0.1,
    "name": "vit ü",
    "long": "x" * 300,
    "none": None,
    "yes": True,
    "numpy": np.float32(0.5),
    "shape": [1, 2, 3],
    "nothing": {},
}


def same(read: Any, restored: Any) -> None:
    """A tree and what Flax makes of the same file."""
    if isinstance(restored, dict):
        assert list(read) == list(restored)
        for key, value in restored.items():
            same(read[key], value)
    elif isinstance(restored, np.ndarray):
        assert isinstance(read, LazyArray)
        array = read.read()
        assert (read.shape, read.dtype) == (array.shape, array.dtype.name) == (restored.shape, restored.dtype.name)
        assert array.tobytes() == restored.tobytes()
        array[...] = 0
        assert read.read().tobytes() == restored.tobytes()
    else:
        assert read == restored
        assert type(read) is (float if isinstance(restored, np.floating) else type(restored))


def test_trees(tmp_path: Path) -> None:
    content = flax.serialization.msgpack_serialize(TREE)
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    opened = open_container(tmp_path / "flax_model.msgpack")
    assert (opened.kind, opened.notes) == ("msgpack", ())
    same(opened.tree, flax.serialization.msgpack_restore(content))
    assert "params/Dense_0/kernel" in opened.arrays


def test_states_of_modules(tmp_path: Path) -> None:
    """flax.serialization.to_bytes of variables, as flax.training.checkpoints wrote them to `checkpoint_0`."""
    variables = nn.Dense(3).init({"params": jnp.zeros(2, jnp.uint32)}, jnp.ones((1, 2)))
    (tmp_path / "checkpoint_0").write_bytes(content := flax.serialization.to_bytes(variables))
    same(open_container(tmp_path / "checkpoint_0").tree, flax.serialization.msgpack_restore(content))


def test_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    tree = {"params": {"kernel": np.arange(77.0).reshape(7, 11), "bias": np.ones(3)}}
    content = flax.serialization.msgpack_serialize(tree)
    assert b"__msgpack_chunked_array__" in content
    (tmp_path / "w.msgpack").write_bytes(content)
    same(open_container(tmp_path / "w.msgpack").tree, flax.serialization.msgpack_restore(content))


def test_other_values(tmp_path: Path) -> None:
    tree = {"w": np.ones(2), "c": 1j, "b": b"text", "raw": b"\xff" * 10_000}
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    read = open_container(tmp_path / "w.msgpack").tree
    assert (read["c"].kind, read["b"], read["raw"].kind) == ("a complex number", "text", "bytes")
    assert isinstance(read["c"], StandIn)


KEY = b"\x81\xa1w"
ARRAY = b"\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (KEY + b"\x01", "without arrays"),
        (b"\x82" + KEY[1:] + b"\x01" + KEY[1:] + b"\x02", "two values for w"),
        (KEY * 100 + b"\x01", "more than 1,000,000 values or 50 levels"),
        (KEY + b"\xdd\xff\xff\xff\xff", "truncated"),
        (KEY + b"\xdb\xff\xff\xff\xff", "truncated"),
        (KEY + b"\xc6\xff\xff\xff\xff", "truncated"),
        (KEY + b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01", "truncated"),
        (KEY + b"\xc7\x18\x01" + ARRAY[:-1], "truncated"),
        (KEY + b"\xc7\x15\x01" + ARRAY.replace(b"\x91\x02", b"\x91\x03"), "8 bytes for shape"),
        (KEY + b"\xc7\x16\x01" + ARRAY.replace(b"\x91\x02", b"\x92\x02\xff"), "an array has no valid shape"),
        (KEY + b"\xc7\x15\x01" + ARRAY + b"\x00", "1 bytes follow its end"),
        (KEY + b"\xc1", "unknown type 193"),
        (b"\x81\xa1w\xdd" + (2_000_000).to_bytes(4, "big") + b"\xc0" * 2_000_000, "more than 1,000,000 values"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.msgpack").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_container(tmp_path / "w.msgpack")
    assert "\n" not in str(caught.value)


def test_the_smallest_file(tmp_path: Path) -> None:
    """What the broken ones differ from."""
    (tmp_path / "w.msgpack").write_bytes(KEY + b"\xc7\x15\x01" + ARRAY)
    assert open_container(tmp_path / "w.msgpack").arrays["w"].tolist() == [0, 0]
