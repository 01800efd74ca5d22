"""`vit bench train`, `input` and `sources`: what is compared, and how it is shown."""

import io
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_cli.benchmarks import generated_jpegs, input_speed, loop_speed, source_speed
from vit_cli.tests.printed import Printing, Vit


def test_generated_files_are_like_photos() -> None:
    """ImageNet's have 110 kB on average, at 500 x 375."""
    files = generated_jpegs.jpegs(3)
    assert len(set(files)) == 3
    for file in files:
        assert 50_000 < len(file) < 200_000


def test_all_ways_make_the_same_kind_of_image() -> None:
    (file,) = generated_jpegs.jpegs(1)
    ways = input_speed.prepared_by("bilinear")
    assert list(ways) == [input_speed.OURS, input_speed.PILLOW, input_speed.TENSORS]
    whole = np.asarray(Image.open(io.BytesIO(file)))
    for name, prepare in ways.items():
        x = np.asarray(prepare(file))
        assert x.dtype == np.uint8
        assert sorted(x.shape) == [3, 224, 224], name
        assert whole.min() <= x.min() < x.max() <= whole.max(), name


def test_ratios_are_of_the_same_round() -> None:
    speeds = {input_speed.OURS: [3.0, 8.0, 5.0], input_speed.PILLOW: [2.0, 2.0, 5.0]}
    assert input_speed.times_pillow(speeds, input_speed.OURS) == 1.5
    assert input_speed.times_pillow({input_speed.OURS: [1.0]}, input_speed.OURS) is None
    found = loop_speed.LoopSpeed((4.0, 5.0, 2.0), (3.0, 5.0, 1.0), 0.0, 0.0, "")
    assert found.ratio == 0.75


def test_input_is_measured(printed: Printing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_speed, "SMALL_SET", 256)
    monkeypatch.setattr(input_speed, "SMALL_BATCHES", 1)
    lines = printed("bench", "input", "--images", 2, "--rounds", 1).out.splitlines()
    rows = [line.rsplit(maxsplit=2) for line in lines if line.strip().startswith(("ours", "torchvision"))]
    large, small = [input_speed.OURS, input_speed.PILLOW, input_speed.TENSORS], [input_speed.OURS, input_speed.PILLOW]
    assert [name.strip() for name, *_ in rows] == large + small + small
    assert rows[1][2] == rows[4][2] == rows[6][2] == "1.00"


def test_every_source_has_the_same_examples(tmp_path: Path) -> None:
    splits = source_speed.sources(tmp_path, 6)
    images = {name: sorted((each["label"], each["image"]) for each in split.examples) for name, split in splits.items()}
    assert list(images) == [source_speed.PREPARED, source_speed.PARQUET, source_speed.TAR, source_speed.FOLDERS]
    assert all(found == images[source_speed.FOLDERS] for found in images.values())
    assert len(set(images[source_speed.FOLDERS])) == 6
    speeds = {source_speed.PREPARED: [2.0, 4.0, 1.0], source_speed.TAR: [3.0, 4.0, 0.5]}
    assert source_speed.times_prepared(speeds, source_speed.TAR) == 1.0


def test_sources_are_measured(printed: Printing) -> None:
    lines = printed("bench", "sources", "--images", 4, "--rounds", 1).out.splitlines()
    (prepared,) = (line.split() for line in lines if source_speed.PREPARED in line)
    assert prepared[-1] == "1.00"


def test_wrong_numbers_are_refused(refused: Vit) -> None:
    assert "--steps 0: expected 4 or more" in refused("bench", "train", "--steps", "0")
    assert "--images 0: expected 1 or more" in refused("bench", "input", "--images", "0")
    assert "--images 1: expected 2 or more" in refused("bench", "sources", "--images", "1")


@pytest.mark.release
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_loop_is_measured_beside_the_step(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = loop_speed.config_of("mu/32", 4, "float32", steps=10, rounds=3, threads=1, workers=1)
    found = loop_speed.measure(framework, config, rounds=3)  # type: ignore[arg-type]
    assert len(found.bare) == len(found.loop) == 3
    assert 0 < statistics.median(found.loop) < statistics.median(found.bare), "it decodes and logs"
    assert 0 < found.data_wait < 1
    assert not list(tmp_path.glob("bench-*")), "the run is removed"
