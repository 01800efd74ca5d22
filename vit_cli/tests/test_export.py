"""`vit export`: what it writes and prints, that its files run without this package, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

import vit_torch
from vit_cli import export_check, exported_files
from vit_cli.tests.printed import Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random, set_to
from vit_core import CheckpointConfig, Provenance, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.checkpoints import Checkpoint
from vit_core.preprocess import Preprocessing, load_image

LABELS = ("cat", "dog", "bird")
PREPROCESSING = Preprocessing(image_size=8, crop_fraction=0.8, mean=(0.4, 0.5, 0.6))
SERVING = """
import json, sys
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
assert json.loads(session.get_modelmeta().custom_metadata_map["probabilities"]) == "softmax"
image = np.asarray(Image.open(sys.argv[2]).convert("RGB"))
(logits,) = session.run(None, {"images": image[None]})
ours = [name for name in sys.modules if name.startswith(("vit_", "torch", "jax"))]
print(json.dumps({"logits": logits[0].tolist(), "label": labels[logits[0].argmax()], "ours": ours}))
"""
"""What somebody who has the file alone runs."""


def save_labelled(folder: Path, model: ViTConfig = MODEL) -> Path:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    preprocessing = PREPROCESSING.replace(image_size=model.image_size)
    config = CheckpointConfig(
        model=model, labels=LABELS, preprocessing=preprocessing, provenance=Provenance(run="pets", step=7)
    )
    save_checkpoint(folder, Checkpoint.of(config, arrays))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_labelled(tmp_path / "checkpoint")


@pytest.mark.slow
def test_an_onnx_file_is_served_without_this_package(vit: Vit, checkpoint: Path, tmp_path: Path) -> None:
    """In a process that cannot import it: `-I` ignores PYTHONPATH and the working directory."""
    out = vit("export", checkpoint, tmp_path / "pets.onnx")
    assert "pets.onnx: onnx, opset 20, float32, " in out
    assert "images uint8 [batch, height, width, 3] -> logits float32 [batch, 3]" in out
    assert "LayerNormalization 3" in out
    lines = [line for line in out.splitlines() if line.startswith("random images")]
    assert [line.partition(":")[0].split()[-1] for line in lines] == ["1x6x12x3", "3x16x10x3", "2x8x8x3"]
    assert all(line.endswith("of the scale (bound 1e-05) ok") for line in lines), lines
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 21, 3), np.uint8)).save(tmp_path / "image.png")
    assert_served(tmp_path / "pets.onnx", tmp_path / "image.png", checkpoint)


def assert_served(file: Path, image: Path, checkpoint: Path, preprocessing: Preprocessing = PREPROCESSING) -> None:
    """In a process of its own, an image file gets the model's logits and label."""
    command = [sys.executable, "-I", "-c", SERVING, file, image]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=image.parent)
    found = json.loads(done.stdout)
    assert found["ours"] == []
    (expected_C,) = vit_torch.predict(vit_torch.load(checkpoint), load_image(image, preprocessing)[None])
    assert np.abs(found["logits"] - expected_C).max() <= parity.FLOAT32_BOUND * np.abs(expected_C).max()
    assert found["label"] == LABELS[expected_C.argmax()]


@pytest.mark.slow
def test_large_weights_lie_beside_an_onnx_file(
    vit: Vit, refused: Vit, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a limit that this small model exceeds; protobuf's own is that of the next test."""
    monkeypatch.setattr("vit_torch.onnx_file.EMBEDDED_BYTES", 1000)
    out = vit("export", checkpoint, tmp_path / "pets.onnx", "--input", "pixels", "--batch", 1)
    assert f"wrote {tmp_path / 'pets.onnx'}, {tmp_path / 'pets.onnx.data'}" in out
    weights = sum(array.nbytes for array in open_checkpoint(checkpoint).arrays.values())
    file, data = ((tmp_path / name).stat().st_size for name in ("pets.onnx", "pets.onnx.data"))
    assert data >= weights / 2, "small tensors may stay in the file"
    assert f"{(file + data) / 1e6:,.2f} MB" in out
    assert "already has pets.onnx.data, pets.onnx" in refused("export", checkpoint, tmp_path / "pets.onnx")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("pets.onnx", "pets.onnx.data"):
        (tmp_path / name).rename(moved / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    whole = PREPROCESSING.replace(crop_fraction=1.0)  # an image of the model's size, as it is
    assert_served(moved / "pets.onnx", tmp_path / "image.png", checkpoint, whole)


@pytest.mark.release
def test_weights_of_more_than_2_gib(vit: Vit, refused: Vit, tmp_path: Path) -> None:
    """Wide rather than deep, which costs the least to trace; in onnxruntime, moved to another folder."""
    wide = MODEL.replace(width=2816, mlp_dim=65536 + 32768, heads=2, depth=1)
    source = save_labelled(tmp_path / "wide", wide)
    out = vit("export", source, tmp_path / "wide.onnx", "--input", "pixels", "--batch", 1)
    assert (tmp_path / "wide.onnx.data").stat().st_size > 2**31
    assert "(bound 1e-05) ok" in out
    line = refused("export", source, tmp_path / "wide.jaxexport", "--input", "pixels")
    assert "jax-export: a file ends at 2 GiB, the weights are 2.2; use onnx" in line


def test_a_description_lies_beside_a_jax_program(vit: Vit, checkpoint: Path, tmp_path: Path) -> None:
    out = vit("export", checkpoint, tmp_path / "pets.mlirbc", "--batch", 2, "--no-check")
    assert "input: pixels of the model's size, because the program cannot resize images: " in out
    assert f"wrote {tmp_path / 'pets.mlirbc'}, {tmp_path / 'pets.mlirbc.json'}" in out
    found = json.loads((tmp_path / "pets.mlirbc.json").read_text())
    assert found["program"] == {
        "input": {"name": "images", "type": "uint8", "shape": [2, 8, 8, 3]},
        "output": {"name": "logits", "type": "float32"},
    }
    assert found["labels"] == list(LABELS)
    assert found["provenance"]["run"] == "pets"
    assert found["preprocessing"]["crop_fraction"] == 0.8


def test_another_model_is_not_written(
    vit: Vit, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of other weights: the command notices, writes nothing and leaves what was there."""
    other = open_checkpoint(save_random(tmp_path / "other", head_bias=set_to(3.0)))
    write = exported_files.write_files
    target = tmp_path / "pets.jaxexport"
    target.write_text("mine")

    def write_other(path: Path, _: Checkpoint, *rest: Any) -> None:
        write(path, other, *rest)

    monkeypatch.setattr("vit_cli.commands.export.write_files", write_other)
    out = vit("export", checkpoint, target, "--input", "pixels", "--batch", 1, "--overwrite", status=1)
    assert "OUT" in out
    assert "not written, because its outputs are not those of the model" in out
    assert target.read_text() == "mine"
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_predictions_from_file_to_label(vit: Vit, tmp_path: Path) -> None:
    """Accuracy, changes and margins are those of the outputs; the last images of a fixed batch are counted once."""
    from vit_train.tests.small_run import CONFIG, LABELS, folder_of_images
    from vit_train.tests.small_run import MODEL as SMALL

    images = folder_of_images(tmp_path / "images", 20)
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(SMALL, 0).items()}
    config = CheckpointConfig(model=SMALL, labels=LABELS, preprocessing=CONFIG.preprocessing)
    save_checkpoint(tmp_path / "small", Checkpoint.of(config, arrays))
    words = ("export", tmp_path / "small", tmp_path / "small.jaxexport", "--data", images, "--batch", 3)
    out = vit(*words, "--input", "pixels")
    assert "20 images, from file to label" in out
    (line,) = (line for line in out.splitlines() if line.startswith(" small.jaxexport"))
    accuracy = vit("evaluate", tmp_path / "small", "--data", images)
    (row,) = (line for line in accuracy.splitlines() if line.startswith(" weights"))
    assert line.split()[1] == row.split()[1], "the top-1 of vit evaluate"
    assert line.split()[2] == "0"
    rows = "".join(f"{path},{path.parent.name}\n" for path in images.glob("*/*.png"))
    (tmp_path / "list.csv").write_text(f"file,finding\n{rows}")
    table = ("--data", tmp_path / "list.csv", "--data.label-column", "finding")
    assert "20 images, from file to label" in vit("export", tmp_path / "small", tmp_path / "t.jaxexport", *table)
    first = sorted(images.glob("*/*.png"))[0]
    first.write_bytes(b"no image")
    out = vit("export", tmp_path / "small", tmp_path / "again.jaxexport", *words[3:])
    assert "19 images, from file to label" in out
    assert re.search(f"warning: skipped: {first}: cannot decode .*; fix or remove it", out)


def test_on_data_counts_what_changes() -> None:
    found = export_check.OnData("images")
    found.twin = [np.array([[3.0, 1.0, 0.0], [0.0, 5.0, 4.5]]), np.array([[0.0, 0.0, 2.0]])]
    found.file = [np.array([[3.0, 1.5, 0.0], [0.0, 4.0, 4.5]]), np.array([[0.0, 0.0, 2.0]])]
    found.wanted = [0, 1, 0]
    assert (found.images, found.changed, found.largest, found.relative) == (3, 1, 1.0, 0.2)
    assert found.margins.tolist() == [0.5, 2.0, 2.0]
    assert (found.accuracy("twin"), found.accuracy("file")) == (2 / 3, 1 / 3)


def test_on_data_counts_decisions_where_images_have_several_classes() -> None:
    """mAP is scikit-learn's; a class that no image has is left out."""
    rng = np.random.default_rng(0)
    outputs_NO, sets_NO = rng.normal(size=(40, 4)).round(1) + 0.05, rng.random((40, 4)) < 0.3
    sets_NO[:, 3] = False
    found = export_check.OnData("images", [outputs_NO[:30], outputs_NO[30:]], [-outputs_NO[:30], outputs_NO[30:]])
    found.sets = list(sets_NO)
    expected = average_precision_score(sets_NO[:, :3], outputs_NO[:, :3], average="macro")
    assert found.accuracy("twin") == pytest.approx(expected, rel=parity.FLOAT64_BOUND)
    assert found.decisions_changed == 30 * 4
    assert found.decision_margins.tolist() == sorted(np.abs(outputs_NO).ravel().tolist())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a.bin"], "no target has this extension; use --to, or one of .onnx (onnx), .pt2 (torch-export)"),
        (["a.pt2", "--precision", "int8"], "precision: int8 is made by onnxruntime's quantizer; torch-export has none"),
        (["a.mlirbc", "--batch", "any"], "stablehlo: a dynamic shape (tensor<?x...>, stablehlo.get_dimension_size)"),
        (["a.mlirbc", "--any-size"], "stablehlo: a dynamic shape"),
        (["a.onnx", "--input", "image", "--any-size"], "input: 'image' is resized to the model's size; use 'pixels'"),
        (
            ["a.onnx", "--input", "image", "--preprocessing", "interpolation=nearest"],
            "input: 'image' cannot be resized in the program (interpolation nearest: Pillow adds up its coordinates",
        ),
        (["a.pt2", "--opset", "20"], "--opset 20: only ONNX files have an opset; leave it out for torch-export"),
        (["a.pt2", "--any-size", "--data", "digits"], "so --any-size cannot be compared on them; remove one"),
        (["taken.onnx"], "already has taken.onnx; choose another name, or add --overwrite"),
        (["taken"], "no target has this extension"),
    ],
)
def test_bad_input(refused: Vit, checkpoint: Path, tmp_path: Path, words: list[str], line: str) -> None:
    (tmp_path / "taken.onnx").write_text("somebody's")
    before = sorted(tmp_path.rglob("*"))
    assert line in refused("export", checkpoint, tmp_path / words[0], *words[1:])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("target", "package"), [("a.onnx", "onnxruntime"), ("a.jaxexport", "flatbuffers")])
def test_missing_packages_are_named(
    refused: Vit, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, package: str
) -> None:
    monkeypatch.setattr("vit_cli.requirements.find_spec", lambda name: None if name == package else object())
    line = refused("export", checkpoint, tmp_path / target)
    assert f"this command needs {package}: pip install 'vit-parity[export]'" in line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"pooling": "map", "class_token": False}, ["--any-size"], marks=pytest.mark.release),
        pytest.param(
            {"pooling": "gap", "position_embedding": "sincos2d_mae"},
            ["--any-size", "--input", "normalised"],
            marks=pytest.mark.release,
        ),
        pytest.param(
            {"pooling": "cls_gap", "registers": 2, "mlp": "swiglu"}, ["--batch", "2"], marks=pytest.mark.release
        ),
        pytest.param(
            {"activation": "quick_gelu", "pre_norm": True}, ["--precision", "float16"], marks=pytest.mark.release
        ),
        pytest.param(
            {"stem_layers": (1,), "stem_width": 32, "patch_size": 8, "image_size": 16},
            ["--any-size"],
            marks=pytest.mark.release,
        ),
        pytest.param(
            {"distillation": "head", "qk_norm": True},
            ["--opset", "21", "--precision", "int8"],
            marks=pytest.mark.release,
        ),
    ],
)
def test_kinds_of_models_in_onnxruntime(vit: Vit, tmp_path: Path, fields: dict[str, Any], words: list[str]) -> None:
    """The command's own check, which compares with the PyTorch model: within 1e-5 of the scale in float32."""
    save_labelled(tmp_path / "checkpoint", MODEL.replace(**fields))
    out = vit("export", tmp_path / "checkpoint", tmp_path / "a.onnx", *words)
    lines = [line for line in out.splitlines() if line.startswith("random images")]
    assert len(lines) >= 2
    assert "OUT" not in out
    if "--precision" not in words:
        assert all("(bound 1e-05)" in line for line in lines)
    assert ("MatMulInteger" in out) == ("int8" in words)
