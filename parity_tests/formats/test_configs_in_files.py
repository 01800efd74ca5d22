"""transformers' config within a file of weights is used like a config.json: of a pickled model, or beside a state dict.

Outputs agree with transformers' own to parity.FLOAT64_BOUND, 1e-12; to FLOAT32_BOUND for classes that compute a part in
float32 also in a float64 model: DINOv3's angles and AIMv2's norms.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from parity_tests.formats.foreign import images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.errors import InputError

SIZES: dict[str, Any] = {"image_size": 8, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 3, "intermediate_size": 48, "attn_implementation": "sdpa"}


def whole(model: Any, path: Path) -> None:
    torch.save(model, path)


def beside(model: Any, path: Path) -> None:
    torch.save({"state_dict": model.state_dict(), "config": model.config.to_dict()}, path)


def as_object(model: Any, path: Path) -> None:
    torch.save({"model": model.state_dict(), "hyper_parameters": {"config": model.config}}, path)


def in_metadata(model: Any, path: Path) -> None:
    save_file(model.state_dict(), path, metadata={"config": json.dumps(model.config.to_dict())})


SAVED: dict[str, Callable[[Any, Path], None]] = {
    "whole.pt": whole,
    "beside.pt": beside,
    "object.pt": as_object,
    "metadata.safetensors": in_metadata,
}
MODELS: dict[str, dict[str, Any]] = {
    "ViTModel": {"layer_norm_eps": 1e-3, "hidden_act": "gelu_pytorch_tanh"},
    "Dinov2Model": {"layer_norm_eps": 1e-3},
    "DINOv3ViTModel": {"rope_theta": 50.0, "num_register_tokens": 2},
    "Aimv2VisionModel": {"rms_norm_eps": 1e-2},
    "SiglipVisionModel": {"layer_norm_eps": 1e-3},
}


def made(name: str, **options: Any) -> Any:
    kind = getattr(transformers, name)
    return randomized(kind(kind.config_class(**SIZES, **HEADS, **options)))


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("name", MODELS)
def test_what_the_arrays_do_not_show_comes_from_the_config(name: str, saved: str, tmp_path: Path) -> None:
    model = made(name, **MODELS[name])
    SAVED[saved](model, tmp_path / saved)
    found = opened(tmp_path / saved)
    with torch.no_grad():
        output = model(nchw(images(found.config.model)))
    pooled = name.startswith(("ViT", "Siglip", "Aim"))
    expected = output.pooler_output if pooled else output.last_hidden_state[:, 0]
    in_float32 = name in ("DINOv3ViTModel", "Aimv2VisionModel")
    assert largest_difference(found, expected) <= (parity.FLOAT32_BOUND if in_float32 else parity.FLOAT64_BOUND)
    assert found.config.model.heads == 3
    assert found.assumptions == ()
    (note,) = (note for note in found.notes if note.startswith("config: "))
    assert "used like a config.json" in note


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ViTModel", {"pooler_act": "relu"}, "the config in it states pooler_act 'relu'; supported: tanh"),
        ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "gelu"}, "states hidden_act 'gelu' for a gated MLP"),
        ("Aimv2VisionModel", {"hidden_act": "gelu"}, "states hidden_act 'gelu' for a gated MLP"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    name: str, options: dict[str, Any], reason: str, saved: str, tmp_path: Path
) -> None:
    SAVED[saved](made(name, **options), tmp_path / saved)
    with pytest.raises(InputError, match=reason):
        opened(tmp_path / saved)


@pytest.mark.parametrize("saved", SAVED)
def test_a_model_type_that_has_the_names_of_another_is_refused(saved: str, tmp_path: Path) -> None:
    """An AST has the arrays of DeiT, and spectrograms as its images."""
    sizes = {name: value for name, value in SIZES.items() if name != "image_size"}
    config = transformers.ASTConfig(
        **sizes, **HEADS, num_mel_bins=8, max_length=8, frequency_stride=4, time_stride=4, num_labels=5
    )
    SAVED[saved](transformers.ASTForAudioClassification(config), tmp_path / saved)
    with pytest.raises(InputError, match=r"states model_type 'audio.spectrogram.transformer', which cannot be read"):
        opened(tmp_path / saved)


@pytest.mark.parametrize("saved", [whole, beside, as_object])
@pytest.mark.parametrize("name", ["SiglipModel", "CLIPModel"])
def test_the_config_of_two_towers(name: str, saved: Callable[[Any, Path], None], tmp_path: Path) -> None:
    tower = {**SIZES, **HEADS, "layer_norm_eps": 1e-3}
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    kind = getattr(transformers, name)
    model = randomized(kind(kind.config_class(vision_config=tower, text_config=text, projection_dim=24)))
    saved(model, tmp_path / "x.pt")
    found = opened(tmp_path / "x.pt")
    with torch.no_grad():
        expected = model.vision_model(nchw(images(found.config.model))).pooler_output
        expected = model.visual_projection(expected) if name == "CLIPModel" else expected
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert (found.config.model.heads, found.assumptions) == (3, ())


OTHER: dict[str, dict[str, Any]] = {
    "a text model": {"text_config": transformers.BertConfig(hidden_size=24, num_attention_heads=3).to_dict()},
    "a text model as an object": {"bert": transformers.BertConfig(hidden_size=24, num_attention_heads=3)},
    "a teacher": {"teacher_config": transformers.Dinov2Config(**SIZES, **HEADS).to_dict()},
    "two towers of another width": {"clip_config": transformers.CLIPConfig().to_dict()},
    "training": {"config": {"model_type": "my vit", "lr": 0.1}},
    "another number of layers": {"config": transformers.ViTConfig(**{**SIZES, "num_hidden_layers": 3}).to_dict()},
    "another image size": {"config": transformers.ViTConfig(**{**SIZES, "image_size": 32}).to_dict()},
}


@pytest.mark.parametrize("name", OTHER)
def test_the_config_of_another_model_is_not_used(name: str, tmp_path: Path) -> None:
    model = made("ViTModel")
    torch.save({"state_dict": model.state_dict(), **OTHER[name]}, tmp_path / "x.pt")
    found = opened(tmp_path / "x.pt", heads=3)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model))).pooler_output
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    contradicted = [note for note in found.notes if "left out because the arrays contradict it" in note]
    assert len(contradicted) == name.startswith("another")


def test_the_pooling_of_a_users_class_stays_an_assumption(tmp_path: Path) -> None:
    """The config describes the backbone; the head beside it is the user's."""
    backbone = made("ViTModel")
    model = nn.ModuleDict({"vit": backbone, "classifier": nn.Linear(24, 5)}).double()
    torch.save({"state_dict": model.state_dict(), "config": backbone.config.to_dict()}, tmp_path / "x.pt")
    assert {one.field for one in opened(tmp_path / "x.pt").assumptions} >= {"pooling"}
