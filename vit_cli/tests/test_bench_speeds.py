"""`vit bench train`, `input` and `sources`: what is compared, and how it is shown."""

import io
import json
import statistics
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_cli.application import COMMANDS
from vit_cli.benchmarks import generated_jpegs, input_speed, loop_speed, machine, source_speed
from vit_cli.commands import bench
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
    assert list(ways) == [input_speed.OURS, input_speed.REDUCED, input_speed.PILLOW, input_speed.TENSORS]
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
    found = loop_speed.LoopSpeed((4.0, 5.0, 2.0), (3.0, 5.0, 1.0), 0.0, 0.0, 0.0, "")
    assert (found.ratio, found.ratios) == (0.75, (0.75, 1.0, 0.5))


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 10, 11, 25, 200])
def test_a_step_is_saved_in_the_measured_part_of_each_round(steps: int) -> None:
    """Saving follows the log line of the same step, so a step saved at the last line is not in the measured part."""
    rounds = 5
    config = loop_speed.config_of("mu/16", 4, "float32", steps, rounds, threads=1)
    for i in range(rounds):
        of_round = range(i * steps + 1, (i + 1) * steps + 1)
        first = next(step for step in of_round if step % config.log_every == 0)
        assert any(step % config.save_every == 0 for step in range(first, of_round[-1])), i


def test_saving_is_the_time_beside_the_steps() -> None:
    """Two steps of 0.5 s and two of 1 s between the lines, and 1 s of saving."""
    lines = (
        {"step": 2, "seconds": 10.0, "step_seconds": 9.0},
        {"step": 4, "seconds": 12.0, "step_seconds": 0.5},
        {"step": 6, "seconds": 14.0, "step_seconds": 1.0},
    )
    window = loop_speed.Window(lines)
    assert (window.steps, window.seconds, window.saving) == (4, 4.0, 0.25)


@pytest.mark.parametrize(("loop", "warned"), [((3.0, 5.0, 9.0), False), ((3.0, 6.0, 9.0), True)])
def test_a_loop_that_is_faster_than_its_step_is_an_error_of_the_measurement(
    loop: tuple[float, ...], warned: bool, printed: Printing, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = loop_speed.LoopSpeed((4.0, 5.0, 5.0), loop, 0.25, 0.5, 0.125, "1 x cpu")
    monkeypatch.setattr(loop_speed, "measure", lambda *given: found)
    said = printed("bench", "train", "--framework", "torch").out
    assert ("warning: PyTorch: the loop was faster than its own step" in said) == warned
    assert ("100% (75% to 180%)" if not warned else "120% (75% to 180%)") in said
    (row,) = (line.split() for line in said.splitlines() if "1 x cpu" in line)
    assert row[-3:] == ["50.0%", "25.0%", "12%"]


def test_figures_are_written_to_a_file(
    printed: Printing, refused: Vit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As given, with settings and machine; the file of an earlier run is replaced, that of somebody else is not."""
    found = loop_speed.LoopSpeed((4.0, 5.0), (3.0, 5.0), 0.25, 0.5, 0.125, "1 x cpu")
    monkeypatch.setattr(loop_speed, "measure", lambda *given: found)
    monkeypatch.setattr(machine, "_devices", lambda framework: "cpu")
    file = tmp_path / "loop.json"
    for steps in (4, 6):
        printed("bench", "train", "--framework", "torch", "--steps", steps, "--json", file)
        report = json.loads(file.read_text())
        assert report["command"] == "vit bench train"
        assert report["settings"]["steps"] == steps
        assert report["machine"] == machine.this_machine().model_dump(mode="json")
        assert report["results"] == {
            "PyTorch": {
                "bare": [4.0, 5.0],
                "loop": [3.0, 5.0],
                "saving": 0.25,
                "data_wait": 0.5,
                "mfu": 0.125,
                "hardware": "1 x cpu",
            }
        }
    file.write_text('{"results": "mine"}')
    said = refused("bench", "train", "--framework", "torch", "--json", file)
    assert "exists and is not a file of vit bench, so it is not replaced" in said


def test_every_measurement_can_be_written_to_a_file() -> None:
    (group,) = (command for command in COMMANDS.values() if command.name == "bench")
    for part in set(group.parts) - {"all"}:  # which has a folder
        assert "json" in signature(getattr(bench, part)).parameters, part


def test_input_is_measured(printed: Printing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_speed, "SMALL_SET", 256)
    monkeypatch.setattr(input_speed, "SMALL_BATCHES", 1)
    lines = printed("bench", "input", "--images", 2, "--rounds", 1).out.splitlines()
    rows = [line.rsplit(maxsplit=2) for line in lines if line.strip().startswith(("ours", "torchvision"))]
    small = [input_speed.OURS, input_speed.PILLOW]
    large = [input_speed.OURS, input_speed.REDUCED, input_speed.PILLOW, input_speed.TENSORS]
    assert [name.strip() for name, *_ in rows] == large + small + small
    assert rows[2][2] == rows[5][2] == rows[7][2] == "1.00"


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
    assert 0 < found.saving < 1
    assert not list(tmp_path.glob("bench-*")), "the run is removed"
