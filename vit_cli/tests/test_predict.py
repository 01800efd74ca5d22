"""`vit predict`: what it writes, what it skips, and what it refuses."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import vit_torch
from vit_cli.tests.printed import Printing, Vit
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity, save_checkpoint
from vit_core.preprocess import Preprocessing

MODEL = ViTConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4)
LABELS = ("north", "east, or so", "south", "west")
COUNT = 11


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("predict") / "checkpoint", labels=LABELS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in a folder and in one below it, a hidden one, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for i in range(COUNT):
        pixels_HWC = np.random.default_rng(i).integers(0, 256, (20 + i, 30 - i, 3), np.uint8)
        Image.fromarray(pixels_HWC).save(folder / ("more" if i % 3 else ".") / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    Image.fromarray(pixels_HWC).save(folder / ".hidden.png")
    return folder


def saved(folder: Path, model: ViTConfig = MODEL, **fields: object) -> Path:
    fields = {"preprocessing": Preprocessing(image_size=model.image_size), **fields}
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    save_checkpoint(folder, Checkpoint.of(CheckpointConfig(model=model, **fields), arrays))  # type: ignore[arg-type]
    return folder


def expected_rows(checkpoint: Path, photos: Path, top_k: int = 4) -> list[tuple[str, int, str, float]]:
    """What Python's pipeline finds; by the same batches, so to the last bit."""
    paths = sorted(map(str, photos.glob("[!.]*.png"))) + sorted(map(str, photos.glob("more/*.png")))
    assert len(paths) == COUNT
    found = vit_torch.pipeline(checkpoint, top_k=top_k, batch_size=4).stream(paths)
    return [
        (path, rank, label, probability)
        for path, each in zip(paths, found, strict=True)
        for rank, (label, probability) in enumerate(zip(each.labels, each.probabilities, strict=True), start=1)
    ]


def test_every_kind_of_output_has_pythons_predictions(printed: Printing, checkpoint: Path, photos: Path) -> None:
    words = ["predict", checkpoint, photos, "--top-k", 4, "--batch-size", 4]
    expected, out = expected_rows(checkpoint, photos), photos.parent / "out"
    out.mkdir(exist_ok=True)
    shown = printed(*words).out
    assert [line.split()[0] for line in shown.splitlines() if ".png" in line] == [row[0] for row in expected[::4]]
    assert f"{COUNT} images: " in shown
    on_stdout = printed(*words, "--to", "csv")
    assert f"{COUNT} images: " in on_stdout.err
    printed(*words, "--out", out / "rows.csv")
    assert (out / "rows.csv").read_text() == on_stdout.out
    rows = [(image, int(rank), label, float(p)) for image, rank, label, p in csv.reader(on_stdout.out.splitlines()[1:])]
    assert rows == expected
    printed(*words, "--out", out / "rows.parquet")
    assert list(pandas.read_parquet(out / "rows.parquet").itertuples(index=False, name=None)) == expected
    lines = [json.loads(line) for line in printed(*words, "--to", "jsonl").out.splitlines()]
    assert [line["image"] for line in lines] == [row[0] for row in expected[::4]]
    assert [label for line in lines for label in line["labels"]] == [row[2] for row in expected]
    assert [p for line in lines for p in line["probabilities"]] == [row[3] for row in expected]


SHARDS_PRINTED = """
import sys
import jax
import vit_jax
from vit_cli.application import run

start = vit_jax.OnDevices.start

def printing(self, pixels_BHWC):
    values = self.values(self.state, jax.device_put(pixels_BHWC, self.by_image))
    print("images on each device:", [shard.data.shape[0] for shard in values.addressable_shards], file=sys.stderr)
    return start(self, pixels_BHWC)

vit_jax.OnDevices.start = printing
sys.exit(run(sys.argv[1:]))
"""
"""`vit`, which also prints how each batch is divided: 11 images in batches of 4."""


@pytest.mark.slow
def test_two_devices_in_jax_share_each_batch(checkpoint: Path, photos: Path) -> None:
    """Probabilities of both twins, whose logits of at most 10 differ by parity.FLOAT32_BOUND of their scale."""
    command = [sys.executable, "-c", SHARDS_PRINTED, "predict", str(checkpoint), str(photos), "--framework", "jax"]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    words = ["--to", "csv", "--batch-size", "3"]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=True)
    assert "2 x cpu" in done.stderr
    assert done.stderr.count("images on each device: [2, 2]") == 3
    found = pandas.read_csv(io.StringIO(done.stdout))
    expected = expected_rows(checkpoint, photos)
    assert [*zip(found["image"], found["rank"], found["label"], strict=True)] == [row[:3] for row in expected]
    assert found["probability"].tolist() == pytest.approx([row[3] for row in expected], abs=10 * parity.FLOAT32_BOUND)


def test_images_are_named_in_several_ways(
    printed: Printing, checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(*words: object) -> list[str]:
        rows = printed("predict", checkpoint, *words, "--to", "csv", "--top-k", 1).out.splitlines()[1:]
        return [row.split(",")[0] for row in rows]

    one, below = str(photos / "0.png"), str(photos / "more/1.png")
    assert images(below, one) == [below, one]
    assert images(f"{photos}/more/[12].png") == [below, str(photos / "more/2.png")]
    assert images(f"{photos}/**/1.png") == [below]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{below}\n\n{one}\n"))
    assert images("-") == [below, one]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{below}\0{one}\0"))
    message = "-: paths are separated by zero bytes; expected one on each line, as find prints them without -print0"
    assert message in printed("predict", checkpoint, "-", "--to", "csv", status=2).err


def test_an_unreadable_image_is_named_and_skipped_or_an_error(
    printed: Printing, refused: Vit, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    words = ["predict", checkpoint, photos, tmp_path, "--out", tmp_path / "rows.csv"]
    shown = printed(*words).out
    assert f"skipped: cannot decode image '{tmp_path}/broken.jpg': " in shown
    assert f"{COUNT} images (1 skipped): " in shown
    assert "broken" not in (tmp_path / "rows.csv").read_text()
    before = (tmp_path / "rows.csv").read_text()
    assert f"cannot decode image '{tmp_path}/broken.jpg': " in refused(*words, "--unreadable", "error")
    assert (tmp_path / "rows.csv").read_text() == before, "what was there is still there"
    broken = [tmp_path / "broken.jpg"]
    only = printed("predict", checkpoint, *broken, status=2)
    assert f"vit: error: cannot decode image '{broken[0]}': " in only.err
    assert "skipped" not in only.out, "a single image is named once"
    several = f"none of the 2 images can be read; the first: cannot decode image '{broken[0]}'"
    assert several in refused("predict", checkpoint, *broken * 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg", "rows.csv"]


def test_a_run_says_how_its_outputs_become_probabilities(printed: Printing, photos: Path, tmp_path: Path) -> None:
    """By sigmoid each class has a probability of its own."""
    sums = {}
    for how in ("softmax", "sigmoid"):
        folder = saved(tmp_path / how, labels=LABELS, probabilities=how)
        line = printed("predict", folder, photos / "0.png", "--to", "jsonl").out
        sums[how] = sum(json.loads(line)["probabilities"])
    assert sums["softmax"] == pytest.approx(1.0, abs=1e-12)  # a few roundings of float64
    assert abs(sums["sigmoid"] - 1.0) > 0.01


def test_names_of_classes_from_a_file(printed: Printing, refused: Vit, photos: Path, tmp_path: Path) -> None:
    without = saved(tmp_path / "without", labels=None)
    assert "has no names for its 4 classes; give them in their order: " in refused("predict", without, photos)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    words = ["predict", without, photos / "0.png", "--to", "jsonl", "--class-names", tmp_path / "names.txt"]
    assert set(json.loads(printed(*words).out)["labels"]) == set("abcd")
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert "2 names of classes for its 4 outputs" in refused(*words)
    (tmp_path / "names.txt").unlink()
    assert f"--class-names {tmp_path}/names.txt: cannot be read (No such file or directory)" in refused(*words)


def test_a_table_names_images_beside_it(printed: Printing, checkpoint: Path, photos: Path) -> None:
    table = photos.parent / "table.csv"
    names = ["4.png", "0.png"]
    (photos.parent / "few").mkdir()
    for name in names:
        (photos.parent / "few" / name).write_bytes(next(photos.rglob(name)).read_bytes())
    table.write_text("label,path\n" + "".join(f"any,few\\{name}\n" for name in names))  # as written on Windows
    rows = list(csv.reader(printed("predict", checkpoint, table, "--top-k", 1, "--to", "csv").out.splitlines()))[1:]
    assert [row[0] for row in rows] == [str(photos.parent / "few" / name) for name in names]
    by_pattern = printed("predict", checkpoint, f"{table.parent}/tab*.csv", "--top-k", 1, "--to", "csv").out
    assert list(csv.reader(by_pattern.splitlines()))[1:] == rows
    of_files = printed("predict", checkpoint, *(row[0] for row in rows), "--top-k", 1, "--to", "csv").out
    assert list(csv.reader(of_files.splitlines()))[1:] == rows


def test_what_is_assumed_is_said(printed: Printing, photos: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "unrecorded", labels=LABELS, preprocessing=None)
    warned = printed("predict", folder, photos / "0.png", "--image-size", 24).out
    assert "warning: preprocessing: the checkpoint does not record how its images were made; assumed " in warned
    assert "warning: positions resampled from a 2 x 2 grid to 3 x 3 and not trained since" in warned


def test_bad_input_is_one_line(refused: Vit, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    headless = saved(tmp_path / "headless", MODEL.replace(num_classes=0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    (tmp_path / "headless.csv").write_text(f"{photos / '0.png'}\n" * 2)
    for words, why in (
        ([headless, photos], f"{headless}: has no head, so no classes to predict; fine-tune it first"),
        ([checkpoint], "no images: give files, folders, patterns or tables, or - for paths on standard input"),
        ([checkpoint, tmp_path / "empty"], f"{tmp_path}/empty: no images; expected files such as .jpg or .png in it"),
        ([checkpoint, tmp_path / "no.jpg"], f"{tmp_path}/no.jpg: no such image; expected a file, folder, table or"),
        ([checkpoint, tmp_path / "*.jpg"], f"{tmp_path}/*.jpg: no file matches this pattern"),
        ([checkpoint, tmp_path / "no.csv"], "no.csv: no column path or image or file; found: a, b; rename the column"),
        ([checkpoint, tmp_path / "headless.csv"], "headless.csv: its first line is an image; expected the names of"),
        ([checkpoint, photos, "-"], f"-: reads the images from standard input; leave out {photos}"),
        ([checkpoint, photos, "--to", "parquet"], "--to parquet: cannot be printed; add --out FILE.parquet"),
        ([checkpoint, photos, "--out", "x.txt"], "--out x.txt: expected a name that ends in .csv, .jsonl or .parquet"),
        ([checkpoint, photos, "--out", tmp_path / "no/x.csv"], "/no/x.csv: its folder is missing; give a file in"),
        ([checkpoint, photos, "--out", "x.csv", "--to", "table"], "--to table: is for the terminal; leave out --out"),
        ([checkpoint, photos, "--top-k", 0], "--top-k 0: expected 1 or more"),
        ([checkpoint, photos, "--gpus", 2], "all devices that the framework finds are used"),
    ):
        assert why in refused("predict", *words)


def test_the_benchmark_says_what_the_slower_part_allows(vit: Vit) -> None:
    shown = vit("bench", "predict", "--variant", "mu/16", "--repeats", 1)
    rates = [float(line.split()[-1].replace(",", "")) for line in shown.splitlines() if re.search(r"\d\.\d *$", line)]
    model, decoding, predict = rates
    (share,) = re.findall(r"^(\d+)% of the rate that the slower", shown, re.M)
    assert int(share) == pytest.approx(100 * predict / min(model, decoding), abs=1)  # all are printed rounded


def test_classes_above_the_threshold_are_marked(vit: Vit, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    """Only of a model whose classes are decided one by one."""
    several = saved(tmp_path / "several", labels=LABELS, probabilities="sigmoid")
    image = photos / "0.png"
    found = vit_torch.pipeline(several, top_k=4)(str(image))
    between = float(np.mean(found.probabilities[1:3]))
    reached = float(found.probabilities[1])
    for words, threshold in (((), 0.5), (("--threshold", between), between), (("--threshold", reached), reached)):
        lines = vit("predict", several, image, *words).splitlines()
        title = f"from {threshold:.6g}" if words else "above 0.5"
        assert any(title in line for line in lines)
        marked = [label for label in LABELS if any(label in line and line.endswith(" yes ") for line in lines)]
        above = [
            label
            for label, p in zip(found.labels, found.probabilities, strict=True)
            if (p >= threshold if words else p > threshold)
        ]
        assert sorted(marked) == sorted(above)
    assert "above 0.5" not in vit("predict", checkpoint, image)
    assert "each image has one class here" in vit("predict", checkpoint, image, "--threshold", 0.3, status=2)
    assert "expected a probability from 0 to 1" in vit("predict", several, image, "--threshold", 30, status=2)
    assert "marks classes in the table" in vit("predict", several, image, "--threshold", 0.3, "--to", "csv", status=2)
