"""Lineage `transformers` against Hugging Face transformers' live models, through files that they or we have written.

Outputs are held to parity.FLOAT64_BOUND in float64, unless a test derives another bound.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file
from torch import Tensor

import vit_jax
import vit_torch
from parity_tests.formats.foreign import assumed
from parity_tests.formats.transformers_models import (
    CASES,
    CLIP,
    DINOV2,
    SDPA,
    SIGLIP,
    SINCOS,
    SMALL,
    assert_close,
    bits,
    images,
    opened_there,
    our_output,
    saved,
    short,
    siglip,
    their_output,
    their_tokens,
)  # fmt: skip
from parity_tests.twins import checkpoint
from vit_core import open_checkpoint, parity
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.saving import express_for

IN_JAX = [
    "ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "Dinov2WithRegistersForImageClassification",
    "SiglipVisionModel", "CLIPVisionModelWithProjection",
]  # fmt: skip
RESAMPLED = [
    "ViTForImageClassification", "DeiTForImageClassification", "ViTMAEModel", "SiglipVisionModel",
    "CLIPVisionModelWithProjection",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_read(case: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.format == "transformers"
    x_BHWC, x_BCHW = images(opened.config.model)
    expected = their_output(theirs, x_BCHW)
    assert_close(our_output(opened, x_BCHW), expected)
    if case in IN_JAX:
        assert_close(vit_jax.predict(vit_jax.load(opened, dtype="float64"), x_BHWC), expected)


@pytest.mark.parametrize("case", CASES)
def test_read_and_written_again(case: str, tmp_path: Path) -> None:
    """Their file -> ours -> their file -> ours: it opens there, and computes the same, and no bit has changed."""
    theirs = saved(case, tmp_path / "theirs")
    opened = open_checkpoint(tmp_path / "theirs")
    save_checkpoint(tmp_path / "again", opened, format="transformers")
    again = opened_there(tmp_path / "again")
    _, x_BCHW = images(opened.config.model)
    assert_close(their_output(again, x_BCHW), their_output(theirs, x_BCHW))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    # Names differ where another class holds what was read; the mask token is not kept.
    before, after = ({short(name): array for name, array in file.items()} for file in (before, after))
    if masked := [name for name in after if name.endswith("mask_token")]:
        assert not after.pop(masked[0]).any()
    assert bits(after) == bits({name: before[name] for name in after})
    left_out = next((note for note in opened.notes if note.startswith("left out")), "")
    assert set(after) == set(before) or left_out
    reopened = open_checkpoint(tmp_path / "again")
    assert reopened.config.model == opened.config.model
    assert bits(reopened.arrays) == bits(opened.arrays)


@pytest.mark.parametrize("case", IN_JAX)
def test_float32(case: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path, torch.float32)
    opened = open_checkpoint(tmp_path)
    x_BHWC, x_BCHW = images(opened.config.model)
    expected = their_output(theirs, x_BCHW.float())
    assert_close(our_output(opened, x_BCHW.float(), "float32"), expected, parity.FLOAT32_BOUND)
    if case == IN_JAX[0]:
        in_jax = vit_jax.predict(vit_jax.load(opened, dtype="float32"), x_BHWC.astype(np.float32))
        assert_close(in_jax, expected, parity.FLOAT32_BOUND)


@pytest.mark.parametrize("size", [(12, 20), (24, 8), (28, 28), (8, 32)], ids=str)
@pytest.mark.parametrize("case", RESAMPLED)
def test_positions_at_another_resolution(case: str, size: tuple[int, int], tmp_path: Path) -> None:
    """(8, 32) has as many patches as (16, 16)."""
    theirs = saved(case, tmp_path)
    opened = open_checkpoint(tmp_path)
    _, x_BCHW = images(opened.config.model, size)
    expected = their_output(theirs, x_BCHW, interpolate_pos_encoding=True)
    assert_close(our_output(opened, x_BCHW, interpolate=True), expected)
    assert_close(our_output(opened.adapt(image_size=size), x_BCHW), expected)


@pytest.fixture
def dinov2_resamples_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables go through `.to(torch.float32)`; kept in float64, its arithmetic can be held to the 1e-12 too."""
    to = torch.Tensor.to

    def keep(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self if torch.float32 in (*args, *kwargs.values()) else to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", keep)


@pytest.mark.parametrize("size", [(12, 20), (24, 8), (28, 28), (8, 32)], ids=str)
@pytest.mark.parametrize("case", ["Dinov2Model", "Dinov2WithRegistersModel"])
@pytest.mark.usefixtures("dinov2_resamples_in_float64")
def test_dinov2_tokens_at_another_resolution(case: str, size: tuple[int, int], tmp_path: Path) -> None:
    """All tokens, as dense tasks use them."""
    theirs = saved(case, tmp_path)
    opened = open_checkpoint(tmp_path)
    _, x_BCHW = images(opened.config.model, size)
    with torch.no_grad():
        tokens_BND = vit_torch.load(opened, dtype="float64").forward_features(x_BCHW, interpolate=True)
    assert_close(tokens_BND.numpy(), their_tokens(theirs, x_BCHW).last_hidden_state.numpy())


@pytest.mark.parametrize("case", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_dinov2_resamples_as_it_is(case: str, tmp_path: Path) -> None:
    """In float32: a coordinate among n points is off by n * 2**-24 on each axis, which counts with the difference of
    neighbours, at most twice the largest value (vit_core/tests/test_position_embeddings.py): n * 2**-22."""
    theirs = saved(case, tmp_path)
    ours_1ND = open_checkpoint(tmp_path).adapt(image_size=(12, 20)).arrays["pos_embed"]
    with torch.no_grad():
        theirs_1ND = theirs.embeddings.interpolate_pos_encoding(torch.zeros(1, 16, 32), 12, 20).numpy()
    assert_close(ours_1ND, theirs_1ND, 4 * 2.0**-22)


def test_last_hidden_state(tmp_path: Path) -> None:
    """The other families' tokens; CLIP's have passed no norm, ours have."""
    for case in ("ViTModel", "DeiTModel", "ViTMAEModel", "SiglipVisionModel", "CLIPVisionModel"):
        theirs = saved(case, tmp_path / case)
        opened = open_checkpoint(tmp_path / case)
        _, x_BCHW = images(opened.config.model)
        with torch.no_grad():
            expected = their_tokens(theirs, x_BCHW).last_hidden_state
            expected = theirs.post_layernorm(expected) if case == "CLIPVisionModel" else expected
            ours = vit_torch.load(opened, dtype="float64").forward_features(x_BCHW)
        assert_close(ours.numpy(), expected.numpy())


# fmt: off
WRITTEN: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "plain": ({}, "ViTForImageClassification", []),
    "no head": ({"num_classes": 0}, "ViTForImageClassification", []),
    "pooler": ({"num_classes": 0, "representation": 24}, "ViTModel", []),
    "token": ({"distillation": "token"}, "DeiTForImageClassification", []),
    "two heads": ({"distillation": "head"}, "DeiTForImageClassificationWithTeacher", []),
    "two tokens": ({"distillation": "head", "num_classes": 0}, "DeiTForImageClassificationWithTeacher", []),
    "token, pooler": ({"distillation": "token", "representation": 24, "num_classes": 0}, "DeiTModel", []),
    "dinov2": ({**DINOV2, "pooling": "cls_gap"}, "Dinov2ForImageClassification", ["dinov2.embeddings.mask_token"]),
    "dinov2, no head": ({**DINOV2, "num_classes": 0}, "Dinov2Model", ["embeddings.mask_token"]),
    "dinov2, both": ({**DINOV2, "pooling": "cls_gap", "num_classes": 0}, "Dinov2ForImageClassification",
                     ["dinov2.embeddings.mask_token"]),
    "swiglu": ({**DINOV2, "num_classes": 0, "mlp": "swiglu", "mlp_dim": 88}, "Dinov2Model", ["embeddings.mask_token"]),
    "registers": ({**DINOV2, "num_classes": 0, "registers": 2, "position_resampling": "bicubic_antialias"},
                  "Dinov2WithRegistersModel", ["embeddings.mask_token"]),
    "siglip": ({**SIGLIP, "pooling": "map", "num_classes": 0}, "SiglipVisionModel", []),
    "siglip, mean": ({**SIGLIP, "pooling": "gap"}, "SiglipForImageClassification", []),
    "siglip, tokens": ({**SIGLIP, "pooling": "gap", "num_classes": 0}, "SiglipVisionModel",
                       ["SiglipVisionModel returns all tokens"]),
    "clip": ({**CLIP, "head_bias": False}, "CLIPVisionModelWithProjection", []),
    "clip, no head": ({**CLIP, "num_classes": 0}, "CLIPVisionModel", []),
    # filled in with what changes no value:
    "sincos": (SINCOS, "ViTForImageClassification", ["positions", "position of the class token"]),
    "no positions": ({"position_embedding": "none"}, "ViTForImageClassification",
                     ["positions", "position of the class token"]),
    "class token without position": ({"class_token_position": False}, "ViTForImageClassification",
                                     ["position of the class token"]),
    "no biases": ({"proj_bias": False, "patch_bias": False, "head_bias": False}, "ViTForImageClassification",
                  ["proj_bias", "patch_bias", "head_bias"]),
    "class token, layer scale (DeiT III)": ({**DINOV2, "class_token_position": False}, "Dinov2ForImageClassification",
                                            ["position of the class token", "pooling", "dinov2.embeddings.mask_token"]),
    "mean beside a class token": ({"pooling": "gap"}, "Dinov2ForImageClassification",
                                  ["pooling", "layer_scale", "dinov2.embeddings.mask_token"]),
    "big_vision": ({**SIGLIP, **SINCOS, "pooling": "gap"}, "SiglipForImageClassification", ["positions"]),
}
# fmt: on


@pytest.mark.parametrize("name", WRITTEN)
def test_written(name: str, tmp_path: Path) -> None:
    """Ours -> theirs, by the class that holds it, -> ours."""
    fields, architecture, expected_notes = WRITTEN[name]
    weights = checkpoint(SMALL.replace(**fields))
    model = express_for(weights, "transformers").checkpoint.config.model
    notes = save_checkpoint(tmp_path, weights, format="transformers")
    assert [note.partition(":")[0] for note in notes] == expected_notes
    theirs = opened_there(tmp_path)
    assert type(theirs).__name__ == architecture
    _, x_BCHW = images(weights.config.model)
    expected = our_output(weights, x_BCHW)
    assert_close(expected, their_output(theirs, x_BCHW))
    reopened = open_checkpoint(tmp_path)
    assert_close(our_output(reopened, x_BCHW), expected)
    assert reopened.config.model == model
    if model == weights.config.model:
        assert bits(reopened.arrays) == bits(weights.arrays)


def test_auto_classes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(SMALL), format="transformers")
    _, x_BCHW = images(SMALL)
    theirs = hf.AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float64, **SDPA)
    assert_close(our_output(checkpoint(SMALL), x_BCHW), theirs(x_BCHW).logits.detach().numpy())
    assert isinstance(hf.AutoModel.from_pretrained(tmp_path), hf.ViTModel)


@pytest.mark.parametrize(
    "case",
    ["ViTModel", "DeiTForImageClassificationWithTeacher", "Dinov2: swiglu", "Dinov2Model",
     "Dinov2WithRegistersForImageClassification", "SiglipVisionModel", "CLIPVisionModel"],
)  # fmt: skip
def test_names_in_memory(case: str, tmp_path: Path) -> None:
    """A state dict saved by hand has transformers 5's names and no config.json: families and sizes are told by them."""
    model = saved(case, tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    opened = open_checkpoint(tmp_path)
    fields: dict[str, Any] = {"heads": 4}
    if opened.config.model.patch_size == (4, 2):
        fields["image_size"] = 16
    if case == "Dinov2Model":
        fields["layer_scale"] = 0.5
    by_hand = open_checkpoint(tmp_path / "weights.pth", fields=fields)
    assert by_hand.config.model == opened.config.model
    assert bits(by_hand.arrays) == bits(opened.arrays)
    expected = {name: getattr(opened.config.model, name) for name in ("image_size", "activation", "norm_epsilon")}
    found = assumed(by_hand)
    found.pop("model_type", None)  # of families that another network has the arrays of: test_same_arrays.py
    if "classifier.weight" in model.state_dict():  # which may be a head of the user's own
        expected["pooling"] = opened.config.model.pooling
    assert found == {name: value for name, value in expected.items() if name not in fields}
    for one in by_hand.assumptions:
        assert ("there is no config.json" in one.why) == (one.field in ("activation", "norm_epsilon"))


def test_heads_are_assumed_without_config(tmp_path: Path) -> None:
    saved("ViTModel", tmp_path)
    opened = open_checkpoint((tmp_path / "model.safetensors").rename(tmp_path / "alone.safetensors"))
    assert opened.config.model.heads == 1
    assert assumed(opened)["heads"] == 1
    assert "heads: 1, one for each 64 of the width; --set heads=N for another number" in opened.notes


def test_the_weights_of_a_folder_have_its_config(tmp_path: Path) -> None:
    saved("ViTModel", tmp_path)
    file, folder = open_checkpoint(tmp_path / "model.safetensors"), open_checkpoint(tmp_path)
    assert file.config.model == folder.config.model
    assert (file.config.model.heads, file.assumptions) == (4, ())
    assert file.notes == ("config: from config.json beside the file", *folder.notes)


def test_pixels_that_no_patch_reads(tmp_path: Path) -> None:
    """google/siglip-so400m-patch14-384 takes 384 pixels and reads 378."""
    torch.manual_seed(0)
    theirs = hf.SiglipVisionModel(siglip(image_size=18)).double().eval()
    theirs.save_pretrained(tmp_path)
    hf.SiglipImageProcessor(size={"height": 18, "width": 18}).save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.config.model.image_size == (16, 16)
    assert opened.config.preprocessing is None
    assert opened.notes == (
        "image_size: 16x16, the part of 18x18 that whole patches cover",
        "preprocessor_config.json left out: it is for 18x18 pixels, which whole patches do not cover",
    )
    x_BCHW = torch.randn(2, 3, 18, 18, dtype=torch.float64)
    assert_close(our_output(opened, x_BCHW[:, :, :16, :16]), their_output(theirs, x_BCHW))
