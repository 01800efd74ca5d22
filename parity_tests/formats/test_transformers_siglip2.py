"""SigLIP 2 in transformers' own files, read and written: images of any aspect (NaFlex), and those of one size.

Its class for images of any aspect resamples positions in float32 on a processor, whatever the type of the model
(`parity_tests/test_naflex.py` has the bound of that). Here its module computes them in float64, so that the bound is
float64's. Images are no single patch wide, for which torch resamples wrongly (there too).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.models.siglip2 import modeling_siglip2
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import vit_jax
import vit_torch
from parity_tests.formats.foreign import assert_same_bits, images, largest_difference, nchw, opened, randomized
from parity_tests.formats.transformers_models import FIVE, MLP, SDPA, SIZES, TEXT, opened_there
from parity_tests.pixel_sweep import picture
from parity_tests.test_naflex import in_jax, in_torch
from parity_tests.twins import checkpoint
from vit_cli.application import run
from vit_core import Checkpoint, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.errors import InputError
from vit_core.naflex import collate
from vit_core.preprocess import Preprocessing, load_image
from vit_torch.references.interface import in_float64

MODEL = ViTConfig(
    image_size=16, patch_size=4, width=32, depth=2, heads=4, mlp_dim=48, num_classes=0, class_token=False, pooling="map"
)
MADE = Preprocessing(
    image_size=16, max_patches=20, patch_size=4, interpolation="bilinear", resize="squash", mean=(0.1, 0.5, 0.3)
)
KINDS: dict[str, dict[str, Any]] = {
    "Siglip2VisionModel": {},
    "Siglip2VisionModel, tokens": {"pooling": "gap"},
    "Siglip2ForImageClassification": {"pooling": "gap", "num_classes": 5, "activation": "gelu", "norm_epsilon": 1e-5},
}
IMAGES = (picture(20, 41), picture(33, 17), picture(16, 16))


def any_aspect(kind: str, **changes: Any) -> Checkpoint:
    """A checkpoint of ours for images of any aspect, float64."""
    made = checkpoint(MODEL.replace(**{**KINDS[kind], **changes}))
    return made.with_config(made.config.replace(preprocessing=MADE))


@pytest.fixture(autouse=True)
def float64_positions() -> Iterator[None]:
    with in_float64(modeling_siglip2):
        yield


def theirs_of(folder: Path) -> tuple[Any, np.ndarray]:
    """What the processor in a folder makes of three images, in one batch with padding, and what the class gives."""
    inputs = Siglip2ImageProcessorPil.from_pretrained(folder)(list(IMAGES), return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        out = opened_there(folder)(**inputs)
    for name in ("logits", "pooler_output"):
        if out.get(name) is not None:
            return inputs, out[name].numpy()
    weights_BN = inputs["pixel_attention_mask"].double()
    return inputs, (torch.einsum("bn,bnd->bd", weights_BN, out.last_hidden_state) / weights_BN.sum(1)[:, None]).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read(kind: str, tmp_path: Path) -> None:
    """Every bit comes back, their class opens the folder, their processor makes the same batch of images of three
    aspects, and both twins compute the same from it."""
    before = any_aspect(kind)
    notes = save_checkpoint(tmp_path / "there", before, format="transformers")
    assert all("returns all tokens" in note for note in notes)
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert config["architectures"] == [kind.split(",")[0]]
    assert config["model_type"] == ("siglip2" if "Image" in kind else "siglip2_vision_model")
    after = open_checkpoint(tmp_path / "there")
    assert (after.config.model, after.config.preprocessing) == (before.config.model, MADE)
    assert_same_bits(after.arrays, before.arrays)

    inputs, expected_BC = theirs_of(tmp_path / "there")
    fitted = [load_image(image, MADE) for image in IMAGES]
    ours = collate(fitted, before.config.model, length=20)
    np.testing.assert_array_equal(ours.valid_BN, inputs["pixel_attention_mask"].numpy() == 1)
    # A quotient, a difference and a product of float32, each rounded; there they come in another order.
    assert np.abs(ours.patches_BNP - inputs["pixel_values"].numpy()).max() <= 4 * 2.0**-24 / min(MADE.std)
    batch = ours._replace(patches_BNP=inputs["pixel_values"].numpy())
    in_pytorch = vit_torch.load(after, dtype="float64")
    with torch.no_grad():
        found = [in_pytorch(in_torch(batch)).numpy(), vit_jax.load(after, dtype="float64")(in_jax(batch))]
    for found_BC in found:
        assert parity.difference(np.asarray(found_BC), expected_BC)[1] <= parity.FLOAT64_BOUND


def test_their_folder_written_again(tmp_path: Path) -> None:
    """All files say the same once more: each array's bits, the class, and what its processor does."""
    vision: dict[str, Any] = {key: value for key, value in SIZES.items() if key != "image_size"}
    config = hf.Siglip2Config(vision_config={**vision, **MLP, "num_patches": 16}, text_config=TEXT, **FIVE, **SDPA)
    model: Any = randomized(hf.Siglip2ForImageClassification(config))
    model.save_pretrained(tmp_path / "theirs")
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=20, resample=3).save_pretrained(tmp_path / "theirs")
    found = opened(tmp_path / "theirs")
    assert save_checkpoint(tmp_path / "again", found, format="transformers") == ()
    again = opened(tmp_path / "again")
    assert again.config == found.config.replace(provenance=again.config.provenance)
    assert_same_bits(again.arrays, found.arrays)
    there, processor = opened_there(tmp_path / "again"), hf.AutoImageProcessor.from_pretrained(tmp_path / "again")
    head = "vision_model.head."  # which the class has, and its classifier does not read
    assert {name: x for name, x in model.state_dict().items() if not name.startswith(head)}.keys() == set(
        there.state_dict()
    )
    assert (processor.max_num_patches, processor.patch_size, processor.resample) == (20, 4, 3)
    np.testing.assert_array_equal(*(theirs_of(tmp_path / name)[1] for name in ("theirs", "again")))


def test_a_folder_without_a_processor_is_none_for_one_size(tmp_path: Path) -> None:
    """As many patches as there are positions, said; and its class again."""
    save_checkpoint(tmp_path / "there", any_aspect("Siglip2VisionModel"), format="transformers")
    (tmp_path / "there" / "preprocessor_config.json").unlink()
    found = opened(tmp_path / "there")
    assert any("at most 16 patches, the number of positions" in note for note in found.notes)
    save_checkpoint(tmp_path / "again", found, format="transformers")
    assert type(opened_there(tmp_path / "again")) is hf.Siglip2VisionModel


def test_siglip_2_for_one_size(tmp_path: Path) -> None:
    """transformers keeps it as SigLIP, with another filter in its processor: so it is read and written."""
    config = hf.SiglipConfig(vision_config={**SIZES, **MLP}, text_config=TEXT, **SDPA)
    model: Any = randomized(hf.SiglipModel(config))
    model.save_pretrained(tmp_path / "theirs")
    hf.SiglipImageProcessor(size={"height": 16, "width": 16}, resample=2).save_pretrained(tmp_path / "theirs")
    found = opened(tmp_path / "theirs")
    assert found.config.preprocessing == Preprocessing(image_size=16, interpolation="bilinear", resize="squash")
    assert save_checkpoint(tmp_path / "again", found, format="transformers") == ()
    again, there = opened(tmp_path / "again"), opened_there(tmp_path / "again")
    assert type(there) is hf.SiglipVisionModel
    assert_same_bits(again.arrays, found.arrays)
    assert again.config.preprocessing == found.config.preprocessing
    with torch.no_grad():
        outputs = [tower(nchw(images(MODEL))).pooler_output for tower in (there, model.vision_model)]
    assert all(largest_difference(again, expected) <= parity.FLOAT64_BOUND for expected in outputs)


def test_the_command_proves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For images of the table's grid and of another one."""
    save_checkpoint(tmp_path / "ours", any_aspect("Siglip2VisionModel"))
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "there"), "--to", "transformers"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "largest difference" in line]
    assert [line.partition(":")[0] for line in lines] == [
        *("read back", "read back, images of 8x32", "transformers itself", "transformers itself, images of 8x32")
    ]
    assert all("bound 1e-12" in line for line in lines)


def test_what_its_class_cannot_hold(tmp_path: Path) -> None:
    """Another rule for positions is refused; a model that is not SigLIP is written for one size, with a note."""
    with pytest.raises(InputError) as error:
        save_checkpoint(
            tmp_path / "x", any_aspect("Siglip2VisionModel", position_resampling="bicubic"), format="transformers"
        )
    assert "transformers' Siglip2 cannot express position_resampling 'bicubic' (it has 'bilinear_antialias')" in str(
        error.value
    )
    assert "--method bilinear_antialias" in str(error.value)
    assert not (tmp_path / "x").exists()
    vit = any_aspect("Siglip2ForImageClassification", class_token=True, pooling="cls")
    notes = save_checkpoint(tmp_path / "x", vit, format="transformers")
    assert any(
        "images of one size: Siglip2, for any aspect ratio, cannot express this model's class_token" in note
        for note in notes
    )
    assert not (tmp_path / "x" / "preprocessor_config.json").exists()
