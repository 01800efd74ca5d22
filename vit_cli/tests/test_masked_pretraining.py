"""Masked-autoencoder pretraining by the command line: images without labels to an encoder that opens like any other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_cli.tests.printed import Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random
from vit_core import open_checkpoint
from vit_core.parameters import DECODER
from vit_train.data.sources import open_split
from vit_train.masked_steps import masked_step
from vit_train.run import read_request
from vit_train.tests.small_run import folder_of_images, quadrants

SMALL = [
    "--model.image-size", "8", "--model.patch-size", "2", "--model.width", "16",
    "--model.depth", "1", "--model.heads", "2", "--model.mlp-dim", "16", "--mae.decoder-width", "16",
    "--mae.decoder-depth", "1", "--mae.decoder-heads", "2", "--batch-size", "16", "--schedule.warmup-steps", "2",
    "--compute-dtype", "float32", "--framework", "torch", "--no-tensorboard",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images without classes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, example in enumerate(quadrants(40).examples):
        (folder / f"{i:02d}.png").write_bytes(example["image"])
    return folder


@pytest.mark.slow
def test_images_without_labels_give_an_encoder(vit: Vit, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["pretrain", "imagenet_mae", "--data", photos, *SMALL, "--out", run]
    out = vit(*words, "--steps", "6", "--log-every", "3", "--evaluate-every", "3")
    assert "fitted to photos: 36 images: " in out or "6 steps of 16 images" in out
    assert "loss of the hidden patches" in out
    assert "the decoder is not in the checkpoint" in out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation_loss" in line] == [3, 6]
    # Normalized patches have a variance of about 1, which predictions near zero leave as it is.
    assert all(0.3 < line["evaluation_loss"] < 3 for line in lines if "evaluation_loss" in line)
    for path in (run, run / "steps" / "000006"):
        encoder = open_checkpoint(path)
        assert not any(name.startswith(DECODER) for name in encoder.arrays)
        assert encoder.config.labels is None
    assert "resuming after step 6" in vit("resume", run, "--steps", "8")
    classes = folder_of_images(tmp_path / "classes", 64)
    tuned = tmp_path / "tuned"
    vit(
        "finetune", "imagenet_mae", "--init", run, "--data", classes, "--data.eval-split", "none", "--steps", "2",
        "--batch-size", "16", "--schedule.warmup-steps", "1", "--lr", "0", "--compute-dtype", "float32",
        "--framework", "torch", "--out", tuned,
    )  # fmt: skip
    before, after = open_checkpoint(run).arrays, open_checkpoint(tuned).arrays
    assert set(after) - set(before) == {"head.weight", "head.bias"}
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["timm", "transformers", "meta"])
def test_the_encoder_is_converted_like_any_other(vit: Vit, format: str, photos: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / ("out.pth" if format == "meta" else "out")
    words = ["pretrain", "imagenet_mae", "--data", photos, *SMALL, "--out", run]
    vit(*words, "--steps", "3")
    printed = vit("convert", run, out, "--to", format)
    assert "largest difference" in printed


@pytest.mark.parametrize(
    "framework", [pytest.param("jax", marks=pytest.mark.release), pytest.param("torch", marks=pytest.mark.slow)]
)
def test_pretraining_goes_on_from_what_another_library_opens(
    vit: Vit, refused: Vit, framework: str, photos: Path, tmp_path: Path
) -> None:
    """With a learning rate of zero, encoder and decoder stay those of the run that they were converted from."""
    run, folder, more = tmp_path / "run", tmp_path / "hub", tmp_path / "more"
    small = [*SMALL[: SMALL.index("--framework")], "--framework", framework, "--no-tensorboard"]
    vit("pretrain", "imagenet_mae", "--data", photos, *small, "--out", run, "--steps", "3")
    printed = vit("convert", run, folder, "--to", "transformers", "--decoder")
    assert "a saved step, with its decoder" in printed
    assert "transformers itself: largest difference" in printed
    printed = refused("convert", run, tmp_path / "out", "--to", "timm", "--decoder")
    assert "timm cannot store the decoder of a masked autoencoder; formats that can: transformers" in printed
    printed = refused("convert", run, tmp_path / "out", "--decoder")
    assert "vit cannot store the decoder of a masked autoencoder; a run keeps it in its saved steps, RUN/st" in printed
    printed = refused("convert", run / "checkpoint", tmp_path / "out", "--to", "transformers", "--decoder")
    assert "has no decoder of a masked autoencoder" in printed
    words = ["pretrain", "imagenet_mae", "--init", folder, "--data", photos, "--batch-size", "16", "--lr", "0"]
    words += ["--schedule.warmup-steps", "0", "--compute-dtype", "float32", "--framework", framework]
    printed = vit(*words, "--steps", "2", "--out", more)
    assert "a new decoder" not in printed
    before, after = masked_step(run), masked_step(more)
    assert before is not None
    assert before.decoder is not None
    assert after is not None
    assert after.decoder is not None
    assert after.config.model.position_embedding == "sincos2d_mae"
    assert after.decoder.mae == before.decoder.mae.replace(decoder_mlp_dim=64)
    for ours, theirs in ((before.arrays, after.arrays), (before.decoder.arrays, after.decoder.arrays)):
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert "resuming after step 2" in vit("resume", more, "--steps", "3")


@pytest.mark.slow
def test_a_decoder_that_is_missing_or_of_another_size_is_a_new_one(vit: Vit, photos: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["pretrain", "imagenet_mae", "--data", photos]
    vit(*words, *SMALL, "--out", run, "--steps", "3")
    more = [*SMALL[SMALL.index("--mae.decoder-width") :], "--steps", "3", "--image-size", "12"]
    assert "a new decoder: " in vit(*words, "--init", run / "checkpoint", *more, "--out", tmp_path / "encoder")
    printed = vit(*words, "--init", run, *more, "--mae.decoder-depth", "2", "--out", tmp_path / "both")
    assert "a new decoder, of another size than that of " in printed
    assert "image size 8 x 8 -> 12 x 12, position embeddings computed anew" in printed


def test_only_masked_autoencoders_are_pretrained_from_a_checkpoint(refused: Vit) -> None:
    for words in (("pretrain", "digits"), ("explain", "digits", "--stage", "pretrain")):
        printed = refused(*words, "--init", "x")
        assert "--init: only masked autoencoders (--mae.mask-ratio 0.75) are pretrained from a checkpoint" in printed


def test_pretraining_from_a_checkpoint_is_explained(vit: Vit, refused: Vit, photos: Path, tmp_path: Path) -> None:
    """With --stage pretrain: the checkpoint's network and the recipe's mask ratio. Without: the fine-tuning config."""
    save_random(tmp_path / "encoder")
    words = ["explain", "imagenet_mae", "--init", tmp_path / "encoder", "--batch-size", "16"]
    words += ["--steps", "3", "--schedule.warmup-steps", "1"]
    printed = vit(*words, "--data", photos, "--stage", "pretrain")
    assert f"imagenet_mae: pretrain {tmp_path}/encoder" in printed
    for field, value in (("model.width", MODEL.width), ("model.num_classes", 0), ("mae.mask_ratio", 0.75)):
        assert re.search(rf"^ {field} +{value} $", printed, re.M), field
    assert "photos: no split 'validation'" in refused(*words, "--data", photos)
    printed = vit(*words, "--data.eval-split", "none", "--all")
    assert re.search(r"^ mae.mask_ratio +0.0 $", printed, re.M)
    assert "--stage finetune: give the checkpoint" in refused("explain", "digits", "--stage", "finetune")


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_images_are_completed_in_a_figure(vit: Vit, framework: str, photos: Path, tmp_path: Path) -> None:
    """Completed are the run's own held-out images, by the decoder in its newest saved step."""
    run, figures = tmp_path / "run", tmp_path / "figures"
    vit("pretrain", "imagenet_mae", "--data", photos, *SMALL, "--out", run, "--steps", "3")
    printed = vit("show", run, "--out", figures, "--framework", framework)
    assert f"wrote {figures / 'completed.png'}" in printed
    drawn = np.asarray(Image.open(figures / "completed.png").convert("L"))
    assert len(set(drawn.ravel())) > 50
    assert "the 25% of their patches that the encoder sees" in (figures / "index.html").read_text()
    held_out = open_split(read_request(run).config.data, "test")
    Path(held_out.name(0)).write_bytes(b"no image")
    printed = vit("show", run, "--out", figures, "--framework", framework)
    assert f"skipped: {held_out.name(0)}: " in printed
    assert f"wrote {figures / 'completed.png'}" in printed


def test_training_toward_nothing_is_refused(vit: Vit, photos: Path) -> None:
    words = ["explain", "imagenet_mae", "--data", photos]
    assert "data.labelled: false leaves nothing to train toward" in vit(*words, "--mae.mask-ratio", "0", status=2)
    assert "of which the encoder sees 50" in vit(*words)
