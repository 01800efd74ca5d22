"""`vit features`: what it prints, skips and refuses. (parity_tests/test_features.py holds its values against timm.)"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_cli.inference import Extraction
from vit_cli.tests.printed import Printing, Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random
from vit_core.feature_files import read_features


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b/0.png", "a/deeper/0.png", "alone.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)).save(path)
    (tmp_path / "photos/b/broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_rows_have_the_names_and_folders_of_their_images(printed: Printing, photos: Path, tmp_path: Path) -> None:
    model, out = save_random(tmp_path / "model"), tmp_path / "x.npy"
    shown = printed("features", model, photos, "--out", out)
    assert "warning: preprocessing: the checkpoint does not record how its images were made" in shown.out
    assert f"skipped: cannot decode image '{photos}/b/broken.png': " in shown.out
    assert f"wrote {out} (3 x {MODEL.width}, images in {tmp_path}/x.csv)" in shown.out
    names = ["a/deeper/0.png,a", "alone.png,", "b/0.png,b"]
    assert (tmp_path / "x.csv").read_text().splitlines() == ["image,label", *(f"{photos}/{name}" for name in names)]
    found = read_features(out)
    assert found.labels is None, "one of them has none"
    np.testing.assert_array_equal(found.values_N[0], found.values_N[2])  # the same image
    printed("features", model, photos / "a", photos / "b/0.png", "--out", out, "--pool", "tokens")
    assert read_features(out).values_N.shape == (2, MODEL.tokens, MODEL.width)


def test_labels_of_a_table(vit: Vit, refused: Vit, photos: Path, tmp_path: Path) -> None:
    model, out, table = save_random(tmp_path / "model"), tmp_path / "x.npy", photos / "list.csv"
    table.write_text("file,label,finding\na/deeper/0,one,healthy\nb/0.png,two,\nalone.png,one,ill\n")
    vit("features", model, table, "--out", out)
    assert read_features(out).labels == ("one", "two", "one")
    vit("features", model, table, "--out", out, "--data.label-column", "finding")
    assert [line.rpartition(",")[2] for line in (tmp_path / "x.csv").read_text().splitlines()[1:]] == [
        "healthy",
        "",
        "ill",
    ]
    message = "--data.label-column finding: is for tables (.csv, .tsv, .jsonl), and there is none"
    assert message in refused("features", model, photos, "--out", out, "--data.label-column", "finding")
    with table.open("a") as file:
        file.write("b/0.png,three,ill\n")
    assert "0.png is in line 3 too, with other values; keep one of them" in refused(
        "features", model, table, "--out", out
    )
    message = "list.csv: data.label_column: no column 'fnding'; found: file, label, finding"
    assert message in refused("features", model, table, "--out", out, "--data.label-column", "fnding")


def test_an_interrupted_command_leaves_what_was_there(
    printed: Printing, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save_random(tmp_path / "model"), tmp_path / "x.npy"
    printed("features", model, photos / "a", "--out", out)
    before = {path: path.read_bytes() for path in tmp_path.glob("x.*")}
    stream = Extraction.stream

    def interrupted(*words: Any, **options: Any) -> Iterator[Any]:
        yield next(stream(*words, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Extraction, "stream", interrupted)
    shown = printed("features", model, photos, "--out", out, status=130)
    assert f"{out}: not written; the next command starts again (for many images, write several files)" in shown.out
    assert shown.err == "vit: interrupted\n"
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_bad_input_is_one_line_and_leaves_nothing(refused: Vit, photos: Path, tmp_path: Path) -> None:
    model = save_random(tmp_path / "model")
    without = save_random(tmp_path / "without", MODEL.replace(class_token=False, pooling="gap"))
    out = tmp_path / "x.npy"
    (tmp_path / "mine.csv").write_text("something else")
    for words, why in (
        ([model, photos], "features: the option --out is missing"),
        ([model, photos, "--out", "x.txt"], "expected a name that ends in .npy, .safetensors or .parquet"),
        ([model, photos, "--out", tmp_path / "mine.npy"], f"would replace {tmp_path}/mine.csv, another file"),
        ([model, photos, "--out", out, "--layer", 1], "layer 1: the model has 1 blocks; expected 0 to 0, or -1"),
        ([without, photos, "--out", out, "--pool", "cls"], "pool cls: the model has no class token; use gap"),
        ([model, photos, "--out", out, "--unreadable", "error"], f"cannot decode image '{photos}/b/broken.png'"),
        ([model, photos / "b/broken.png", "--out", out], "vit: error: cannot decode image '"),
        ([model, photos, "--out", out, "--threads", 0], "--threads 0: expected 1 or more"),
    ):
        assert why in refused("features", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "model", "photos", "without"]
