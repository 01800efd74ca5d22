"""big_vision's NaFlex and FlexiViT files, against the published architecture in NumPy (google_reference.py).

What both resize is resized here by jax.image, as big_vision does: positions with antialiasing, and patches without,
where FlexiViT has tf.image, whose bilinear resizing is the same.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import vit_torch
from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.google_files import (
    BIG_VISION,
    LINEN,
    Arrays,
    assert_same_bits,
    file_shapes,
    in_file,
    prefixed,
    random_arrays,
    save,
    stacked,
)
from parity_tests.formats.google_reference import assert_equal, forward, images, in_torch
from parity_tests.test_naflex import in_torch as as_tensors
from vit_cli.application import run
from vit_core import open_checkpoint, save_checkpoint
from vit_core.errors import InputError
from vit_core.naflex import collate

shapes_of = partial(file_shapes, parts=LINEN, positions=BIG_VISION, grid=16)
SIZES = ((8, 20), (16, 16), (12, 4))
KINDS: dict[str, dict[str, Any]] = {
    "map": {"pool": "map", "classes": 0},
    "gap": {"pool": "gap"},
    "map, representation": {"pool": "map", "rep": 16},
}


def naflex_file(arrays: Arrays) -> Arrays:
    """The arrays of a model of one size in NaFlex's shapes: a Dense over patches, and the two axes of the table."""
    kernel, table = arrays["embedding/kernel"], arrays[BIG_VISION]
    return {**arrays, "embedding/kernel": kernel.reshape(48, 24), BIG_VISION: table.reshape(4, 4, 24)}


def with_grid(arrays: Arrays, grid: tuple[int, int]) -> Arrays:
    """With the table of positions for another grid."""
    table = arrays[BIG_VISION].reshape(1, 4, 4, 24)
    resized = jax.image.resize(table, (1, *grid, 24), "linear")
    return {**arrays, BIG_VISION: np.asarray(resized).reshape(1, -1, 24)}


def one_by_one(arrays: Arrays, pool: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of several aspects, and the outputs for each, computed alone and without padding."""
    for height, width in SIZES:
        x_HWC = images((height, width, 3))
        p = with_grid(arrays, (height // 4, width // 4))
        yield x_HWC, forward(p, x_HWC[None], pool=pool, positions=BIG_VISION)


@pytest.mark.parametrize("scanned", [False, True], ids=["layers apart", "scanned"])
@pytest.mark.parametrize("kind", KINDS)
def test_naflex(kind: str, scanned: bool, tmp_path: Path) -> None:
    """A batch of three aspects with padding; nothing but the preprocessing is assumed."""
    arrays = random_arrays(shapes_of(**KINDS[kind]))
    file = naflex_file(arrays)
    path = save(tmp_path / "file.npz", prefixed(stacked(file, 2) if scanned else file, "params/img/"))
    opened = open_checkpoint(path)
    assert assumed(opened) == {}
    assert any("at most 16 patches, the number of positions" in note for note in other_notes(opened))
    made = opened.config.preprocessing
    assert made is not None
    assert (made.max_patches, made.patch_size, opened.config.model.image_size) == (16, (4, 4), (16, 16))
    alone, expected = zip(*one_by_one(arrays, KINDS[kind]["pool"]), strict=True)
    batch = as_tensors(collate(alone, opened.config.model, length=20))
    with torch.no_grad():
        found_BC = vit_torch.load(opened, dtype="float64").eval()(batch).numpy()
    assert_equal(found_BC, np.concatenate(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_naflex_is_written(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bit of theirs, by the command, which checks it for two sizes of images."""
    file = prefixed(naflex_file(random_arrays(shapes_of(**KINDS[kind]), dtype=np.float32)), "params/")
    path, again = save(tmp_path / "file.npz", file), tmp_path / "again.npz"
    assert run(["convert", str(path), str(again), "--to", "big_vision"]) == 0
    out = capsys.readouterr().out
    assert "written for big_vision's NaFlex" in out
    assert "read back, images of 8x32: largest difference 0.0e+00" in out
    assert_same_bits(in_file(again), file)


def test_naflex_as_transformers_siglip_2(tmp_path: Path) -> None:
    arrays = naflex_file(random_arrays(shapes_of(**KINDS["map"])))
    opened = open_checkpoint(save(tmp_path / "file.npz", arrays))
    assert save_checkpoint(tmp_path / "hub", opened, format="transformers") == ()
    again = open_checkpoint(tmp_path / "hub")
    assert again.config.model == opened.config.model
    assert again.config.preprocessing == opened.config.preprocessing
    save_checkpoint(tmp_path / "back.npz", again, format="big_vision")
    assert_same_bits(in_file(tmp_path / "back.npz"), prefixed(arrays, "params/"))


def test_what_naflex_cannot_hold(tmp_path: Path) -> None:
    arrays = naflex_file(random_arrays(shapes_of(pool="gap")))
    path = save(tmp_path / "file.npz", arrays)
    with pytest.raises(InputError, match="expects 48 values of a patch, not those of 5x5 with 3 channels"):
        open_checkpoint(path, fields={"patch_size": 5})
    assert open_checkpoint(path, fields={"patch_size": (2, 8)}).config.model.image_size == (8, 32)
    opened = open_checkpoint(path)
    for change, message in (
        ({"position_resampling": "bicubic"}, "NaFlex cannot express position_resampling 'bicubic'"),
        ({"patch_size": (2, 8), "image_size": (4, 64)}, "a square grid of positions, found"),
    ):
        model = opened.config.model.replace(**change)
        made = opened.config.preprocessing
        assert made is not None
        sizes = {"patch_size": model.patch_size, "image_size": model.image_size}
        config = opened.config.replace(model=model, preprocessing=made.replace(**sizes))
        with pytest.raises(InputError) as error:
            save_checkpoint(tmp_path / "x.npz", opened.with_config(config), format="big_vision")
        assert message in str(error.value)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(("pool", "patch"), [("tok", 8), ("gap", 3), ("map", 12)])
def test_flexivit(pool: str, patch: int, tmp_path: Path) -> None:
    """With other patches, and positions resampled as its code does: chosen when the file is opened and, for larger
    patches, which no method antialiases, at run time."""
    arrays, x = random_arrays(shapes_of(pool=pool)), images((2, 24, 24, 3))
    opened = open_checkpoint(save(tmp_path / "flexivit.npz", arrays))
    grid = (24 // patch, 24 // patch)
    basis = jax.image.resize(np.eye(16).reshape(16, 4, 4), (16, patch, patch), "linear", antialias=False)
    inverse = np.linalg.pinv(np.asarray(basis).reshape(16, -1))
    kernel = (inverse @ arrays["embedding/kernel"].reshape(16, -1)).reshape(patch, patch, 3, 24)
    resized = {**with_grid(arrays, grid), "embedding/kernel": kernel}
    expected = forward(resized, x, pool=pool, positions=BIG_VISION)
    how = {"position_embedding_method": "bilinear_antialias"}
    assert_equal(in_torch(opened.adapt(image_size=24, patch_size=patch, patch_method="bilinear", **how), x), expected)
    if patch < 4:
        return
    model = vit_torch.load(opened.adapt(**how), dtype="float64").eval()
    with torch.no_grad():
        x_BCHW = torch.from_numpy(x).permute(0, 3, 1, 2)
        assert_equal(model(x_BCHW, interpolate=True, patch_size=(patch, patch)).numpy(), expected)
