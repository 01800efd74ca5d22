"""`vit show`: the figures that it writes, the page, and what it refuses."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

import vit_jax
import vit_torch
from vit_cli.reports.page import page
from vit_cli.tests.printed import Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random
from vit_core import CheckpointConfig, open_checkpoint, parity, save_checkpoint
from vit_core.checkpoints import Checkpoint
from vit_train.calibration import BINS
from vit_train.data.batches import EvaluationBatches
from vit_train.engines.torch.predictor import TorchPredictor
from vit_train.predictions import predictions_for
from vit_train.tests.small_run import CONFIG, LABELS, folder_of_images, quadrants
from vit_train.tests.small_run import MODEL as SMALL

WITHOUT_DATA = [
    "attention.png",
    "attention_distance.png",
    "patch_filters.png",
    "position_similarity.png",
    "rollout.png",
]
OF_DATA = ["confused.png", "confusion_matrix.png", "reliability.png", "worst.png"]


class _PageImages(HTMLParser):
    """The images of a page, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(base64.b64decode((value or "").removeprefix("data:image/png;base64,")))
            elif name in ("src", "href"):
                self.addresses.append(value or "")


def assert_page_of(folder: Path, files: list[str]) -> None:
    """The folder has these figures, none of one color, and a page with all of them and without other files."""
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "index.html"])
    found = _PageImages((folder / "index.html").read_text())
    assert sorted(found.images) == sorted((folder / file).read_bytes() for file in files)
    assert all(address.startswith("#") for address in found.addresses)
    for file in files:
        assert len(set(np.asarray(Image.open(folder / file).convert("L")).ravel())) > 50, file


def test_of_an_image(vit: Vit, tmp_path: Path) -> None:
    save_random(tmp_path / "model", MODEL.replace(registers=2, depth=2))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "cat.png")
    out = vit("show", tmp_path / "model", tmp_path / "cat.png", "--out", tmp_path / "figures")
    assert f"wrote {tmp_path / 'figures' / 'index.html'}" in out
    assert_page_of(tmp_path / "figures", [*WITHOUT_DATA, "registers.png"])
    assert "Of cat.png: how much the class token attends" in (tmp_path / "figures" / "index.html").read_text()


@pytest.mark.slow
def test_of_a_data_set(vit: Vit, tmp_path: Path) -> None:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(SMALL, 0).items()}
    config = CheckpointConfig(model=SMALL, labels=LABELS, preprocessing=CONFIG.preprocessing)
    save_checkpoint(tmp_path / "model", Checkpoint.of(config, arrays))
    images = folder_of_images(tmp_path / "images", 20)
    out = vit("show", tmp_path / "model", "--data", images, "--out", tmp_path / "figures")
    assert "not drawn" not in out
    assert_page_of(tmp_path / "figures", [*WITHOUT_DATA, *OF_DATA])
    again = vit("show", tmp_path / "model", "--out", tmp_path / "figures")
    assert "not drawn: attention; give an IMAGE, or --data" in again


def test_predictions_are_the_models() -> None:
    """Confusion matrix and calibration are those of scikit-learn; the worst images are those with the largest loss
    among the wrong ones."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(SMALL, 0).items()}
    weights = Checkpoint.of(CheckpointConfig(model=SMALL, preprocessing=CONFIG.preprocessing), arrays)
    split, predictor = quadrants(24), TorchPredictor(weights)
    predictions = predictions_for(predictor, split, CONFIG.preprocessing, range(4), 24)
    logits_NC = predictor.predict(EvaluationBatches(split, CONFIG.preprocessing, 24)[0].images_BHWC).astype(np.float64)
    classes_N = np.array([split.examples[i]["label"] for i in range(24)])
    expected = confusion_matrix(classes_N, logits_NC.argmax(axis=1), labels=range(4))
    assert predictions.report.confusion_matrix.tolist() == expected.tolist()
    probabilities_N, right_N = softmax(logits_NC, axis=1).max(axis=1), logits_NC.argmax(axis=1) == classes_N
    accuracies, confidences = calibration_curve(right_N, probabilities_N, n_bins=BINS, strategy="uniform")
    found = predictions.calibration
    full = found.counts_K > 0
    np.testing.assert_allclose(found.correct_K[full] / found.counts_K[full], accuracies, rtol=2.0**-52)  # one quotient
    # The logits of one batch and of several differ in their last bits of float32, here and in the losses.
    np.testing.assert_allclose(found.confidences_K[full] / found.counts_K[full], confidences, rtol=parity.FLOAT32_BOUND)
    losses_N = np.log(np.exp(logits_NC).sum(axis=1)) - logits_NC[np.arange(24), classes_N]
    wrong = np.sort(losses_N[logits_NC.argmax(axis=1) != classes_N])[::-1]
    assert len(wrong) > 3
    np.testing.assert_allclose([each.loss for each in predictions.worst(3)], wrong[:3], rtol=parity.FLOAT32_BOUND)
    pair = predictions.confused(1, 2)[0]
    off = expected - np.diag(np.diag(expected))
    assert off[LABELS.index(pair.label), LABELS.index(pair.prediction)] == off.max()


def test_both_frameworks_give_the_same_attention(tmp_path: Path) -> None:
    """float32: as for logits, about 170 roundings of the scale."""
    checkpoint = open_checkpoint(save_random(tmp_path / "model", MODEL.replace(depth=2)))
    x_BHWC = parity.probe(MODEL, 0)[0].astype(np.float32)
    pairs = zip(*(twin.attention_weights(twin.load(checkpoint), x_BHWC) for twin in (vit_torch, vit_jax)), strict=True)
    for in_torch, in_jax in pairs:
        assert in_torch.shape == (2, 2, 5, 5)
        np.testing.assert_allclose(in_torch.sum(axis=-1), 1, rtol=parity.FLOAT32_BOUND)
        assert parity.difference(in_torch, in_jax)[1] <= parity.FLOAT32_BOUND


def test_a_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    text = page("<i>run</i>", [("labels", "<script>")], [("A & B", '"quoted" <b>', tmp_path / "a.png")])
    assert not re.search("<i>|<script>|<b>", text)
    assert _PageImages(text).images == [b"image"]


def save_small(folder: Path) -> Path:
    """A random model of the classes of `folder_of_images`."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(SMALL, 0).items()}
    config = CheckpointConfig(model=SMALL, labels=LABELS, preprocessing=CONFIG.preprocessing)
    save_checkpoint(folder, Checkpoint.of(config, arrays))
    return folder


def test_bad_input(refused: Vit, tmp_path: Path) -> None:
    model = save_random(tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("my page")
    assert "contains other files (index.html); choose another --out" in refused(
        "show", model, "--out", tmp_path / "mine"
    )
    assert (tmp_path / "mine" / "index.html").read_text() == "my page"
    refusing = Path("/proc/figures/of_a_model")
    line = refused("show", tmp_path / "none", "--out", refusing)
    assert f"--out {refusing}: cannot write there (" in line, "before the model, which is missing, is opened"
    where = ("--out", tmp_path / "new")
    assert "is a folder; give one image" in refused("show", model, tmp_path, *where)
    (tmp_path / "note.txt").write_text("no image")
    assert "begin no image format" in refused("show", model, tmp_path / "note.txt", *where)
    assert "--images 0: expected 1 or more" in refused("show", model, "--images", 0, *where)
    small, images = save_small(tmp_path / "small"), folder_of_images(tmp_path / "images", 4)
    for file in images.glob("*/*.png"):
        file.write_bytes(b"no image")
    line = refused("show", small, "--data", images, *where)
    assert "images (all images): none of 4 images can be read; see the lines above" in line
    assert not (tmp_path / "new").exists()


def test_unreadable_images_are_named_once_and_left_out(vit: Vit, tmp_path: Path) -> None:
    small, images = save_small(tmp_path / "small"), folder_of_images(tmp_path / "images", 40)
    first = sorted(images.glob("*/*.png"))[0]
    first.write_bytes(b"no image")
    printed = vit("show", small, "--data", images, "--out", tmp_path / "new")
    assert len(re.findall(f"warning: skipped: {first}: cannot decode .*; fix or remove it", printed)) == 1
    assert_page_of(tmp_path / "new", [*WITHOUT_DATA, *OF_DATA])
