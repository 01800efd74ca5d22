"""Image processors of `transformers`: the pixels of their own, and what Preprocessing cannot express."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image

from parity_tests.formats.transformers_models import SMALL, assert_close, images, our_output, saved, their_output
from parity_tests.twins import checkpoint
from vit_core import open_checkpoint
from vit_core.checkpoints import save_checkpoint
from vit_core.preprocess import Preprocessing, load_image

PIL = {"ViT": hf.ViTImageProcessorPil, "DeiT": hf.DeiTImageProcessorPil, "Bit": hf.BitImageProcessorPil,
       "CLIP": hf.CLIPImageProcessorPil, "Siglip": hf.SiglipImageProcessorPil}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "kind", "fields"),
    [
        ("ViTForImageClassification", "ViT", {"size": {"height": 16, "width": 16}}),
        ("ViT: not square", "ViT", {"size": {"height": 8, "width": 12}, "image_mean": [0.1, 0.2, 0.3], "resample": 3}),
        ("DeiTForImageClassification", "DeiT", {"size": {"height": 18, "width": 18}, "crop_size": 16}),
        ("Dinov2Model", "Bit", {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}),
        ("SiglipVisionModel", "Siglip", {"size": {"height": 16, "width": 16}, "do_normalize": False}),
        ("CLIPVisionModel", "CLIP", {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
    ],
)
def test_preprocessing(case: str, kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """The pixels of their processors by Pillow; read, and read again from what we write. Both round, in float32, what
    is a quotient, a difference and a quotient, so each is off by a few 2**-24 of what is subtracted.

    Margins are even here: half an odd one goes down in their crop by Pillow, to even in torchvision's and ours."""
    saved(case, tmp_path / "theirs")
    theirs = PIL[kind](**fields)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = open_checkpoint(tmp_path / "theirs")
    seen = opened.config.preprocessing
    assert seen is not None
    pixels = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected_CHW = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    assert np.abs(load_image(tmp_path / "image.png", seen).transpose(2, 0, 1) - expected_CHW).max() <= 2.0**-20
    save_checkpoint(tmp_path / "ours", opened, format="transformers")
    assert open_checkpoint(tmp_path / "ours").config.preprocessing == seen
    ours = hf.AutoImageProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    written_CHW = ours(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    assert np.abs(written_CHW - expected_CHW).max() <= 2.0**-20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"do_resize": False}, "images are not resized or not rescaled (do_resize or do_rescale is false)"),
        ({"do_rescale": False}, "images are not resized or not rescaled (do_resize or do_rescale is false)"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is not 1/255"),
        ({"resample": 4}, "resample 4"),
        ({"resample": [2]}, "resample [2]"),
        ({"size": {"longest_edge": 16}}, "size {'longest_edge': 16}"),
        ({"size": {"shortest_edge": 16}}, "the shortest edge is scaled without a crop"),
        ({"size": "16"}, "size 16"),
        ({"do_center_crop": True, "crop_size": 20}, "the crop of 20 from 16 pixels"),
        (
            {"do_center_crop": True, "crop_size": {"height": 8, "width": 12}},
            "the crop of 8x12 from 16x16 has another aspect ratio",
        ),
        ({"image_processor_type": "SamImageProcessor"}, "it is for SamImageProcessor"),
        ({"image_processor_type": ["x"]}, "it is for ['x']ImageProcessor"),
    ],
)
def test_preprocessing_that_cannot_be_said(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    fields = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    opened = open_checkpoint(tmp_path)
    assert opened.config.preprocessing is None
    assert opened.notes == (f"preprocessor_config.json left out: {reason}",)


def test_preprocessing_for_another_size(tmp_path: Path) -> None:
    """facebook/dinov2-base has positions for 518 pixels and a processor that gives 224."""
    saved("Dinov2Model", tmp_path)
    hf.BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    seen = opened.config.preprocessing
    assert seen is not None
    assert (seen.image_size, seen.crop_fraction, seen.resize) == ((16, 16), 0.5, "crop")
    assert "preprocessor_config.json is for 8x8 pixels; used for the model's image size instead" in opened.notes
    adapted = opened.adapt(image_size=8).config.preprocessing
    assert adapted is not None
    assert (adapted.image_size, adapted.crop_fraction) == ((8, 8), 0.5)


def test_preprocessing_of_nonsense_costs_only_itself(tmp_path: Path) -> None:
    theirs = saved("ViTForImageClassification", tmp_path)
    nonsense = {"size": 16, "image_mean": ["red", {}], "image_std": []}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(nonsense))
    opened = open_checkpoint(tmp_path)
    assert opened.config.preprocessing is None
    (note,) = opened.notes
    assert note.startswith("left out: preprocessing (")
    assert "preprocessor_config.json: mean" in note
    assert "\n" not in note
    _, x_BCHW = images(opened.config.model)
    assert_close(our_output(opened, x_BCHW), their_output(theirs, x_BCHW))


@pytest.mark.parametrize("fields", [{"exif_rotation": True}, {"resize": "crop"}], ids=str)
def test_preprocessing_that_no_processor_has(fields: dict[str, Any], tmp_path: Path) -> None:
    weights = checkpoint(SMALL.replace(image_size=(8, 12)))
    seen = Preprocessing(image_size=(8, 12), **{"resize": "squash", **fields})
    weights = weights.with_config(weights.config.replace(preprocessing=seen))
    notes = save_checkpoint(tmp_path, weights, format="transformers")
    assert [note.partition(":")[0] for note in notes] == ["no preprocessor_config.json"]
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_preprocessing_of_the_model_before_goes(tmp_path: Path) -> None:
    weights = checkpoint(SMALL)
    seen = weights.config.replace(preprocessing=Preprocessing(image_size=16, mean=(0.1, 0.2, 0.3), resize="squash"))
    save_checkpoint(tmp_path, weights.with_config(seen), format="transformers")
    assert open_checkpoint(tmp_path).config.preprocessing == seen.preprocessing
    save_checkpoint(tmp_path, weights, format="transformers")
    assert open_checkpoint(tmp_path).config.preprocessing is None
