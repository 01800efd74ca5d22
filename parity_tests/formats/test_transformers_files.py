"""Folders of `transformers`: containers, labels, what is left out, and what is refused for which reason."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

from parity_tests.formats.transformers_models import (
    CLIP,
    DINOV2,
    FIVE,
    SIGLIP,
    SMALL,
    assert_close,
    bits,
    clip_and_text,
    dinov2,
    edit,
    images,
    our_output,
    rewrite,
    saved,
    their_output,
)  # fmt: skip
from parity_tests.twins import checkpoint
from vit_core import open_checkpoint
from vit_core.checkpoints import save_checkpoint
from vit_core.errors import InputError


@pytest.mark.parametrize("container", ["shards", "bin"])
def test_containers(container: str, tmp_path: Path) -> None:
    model = saved("ViTForImageClassification", tmp_path / "whole")
    if container == "shards":
        model.save_pretrained(tmp_path / "other", max_shard_size="20KB")
        assert (tmp_path / "other" / "model.safetensors.index.json").exists()
    else:
        (tmp_path / "other").mkdir()
        shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "other")
        file = load_file(tmp_path / "whole" / "model.safetensors")
        torch.save({name: torch.from_numpy(a) for name, a in file.items()}, tmp_path / "other" / "pytorch_model.bin")
    whole, other = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "other")
    assert other.config.model == whole.config.model
    assert bits(other.arrays) == bits(whole.arrays)


@pytest.mark.parametrize(
    ("case", "left_out"),
    [
        ("ViTForMaskedImageModeling", ["decoder.0.bias", "decoder.0.weight", "vit.embeddings.mask_token"]),
        ("ViTMAEForPreTraining", ["decoder.decoder_embed.bias"]),
        ("Dinov2Model", ["embeddings.mask_token"]),
        ("SiglipModel", ["logit_bias", "logit_scale", "text_model."]),
        ("SiglipForImageClassification", ["vision_model.head.attention.in_proj_bias"]),
        ("CLIPModel", ["logit_scale", "text_model.", "text_projection"]),
    ],
)
def test_left_out_is_listed(case: str, left_out: list[str], tmp_path: Path) -> None:
    saved(case, tmp_path)
    (note,) = [note for note in open_checkpoint(tmp_path).notes if note.startswith("left out: ")]
    names = note.removeprefix("left out: ")
    assert all(name in names for name in left_out[:1])
    everything = set(load_file(tmp_path / "model.safetensors"))
    assert all(any(name.startswith(start) for name in everything) for start in left_out)


def test_buffers_of_old_versions_are_left_out(tmp_path: Path) -> None:
    saved("CLIPVisionModelWithProjection", tmp_path)
    rewrite(tmp_path, lambda file: file | {"vision_model.embeddings.position_ids": np.arange(17)[None]})
    assert open_checkpoint(tmp_path).notes == ("left out: vision_model.embeddings.position_ids",)


def test_clips_vision_config_dict_counts(tmp_path: Path) -> None:
    """As in openai/clip-vit-large-patch14, where it is next to vision_config."""
    saved("CLIPModel", tmp_path)
    edit(tmp_path, lambda config: config | {"vision_config_dict": {"num_attention_heads": 2}})
    assert open_checkpoint(tmp_path).config.model.heads == 2
    assert hf.CLIPConfig.from_pretrained(tmp_path).vision_config.num_attention_heads == 2


def test_defaults_of_a_sparse_vision_config(tmp_path: Path) -> None:
    """As in google/siglip-base-patch16-224, whose vision_config says nothing but its model_type."""
    saved("SiglipModel", tmp_path)
    edit(tmp_path, lambda config: config | {"vision_config": {"model_type": "siglip_vision_model"}})
    sparse, theirs = open_checkpoint(tmp_path, fields={"heads": 4}).config.model, hf.SiglipVisionConfig()
    assert (sparse.norm_epsilon, sparse.activation) == (theirs.layer_norm_eps, "gelu_tanh")
    with pytest.raises(InputError, match="heads: 12 does not divide width 32"):
        open_checkpoint(tmp_path)
    assert theirs.num_attention_heads == 12


def test_labels(tmp_path: Path) -> None:
    labels = ("tench", "goldfish", "shark", "ray", "cock")
    weights = checkpoint(SMALL)
    weights = weights.with_config(weights.config.replace(labels=labels))
    save_checkpoint(tmp_path, weights, format="transformers")
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert (config.id2label, config.label2id["ray"]) == (dict(enumerate(labels)), 3)
    assert open_checkpoint(tmp_path).config.labels == labels
    edit(tmp_path, lambda config: config | {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}})
    assert open_checkpoint(tmp_path).config.labels is None
    edit(tmp_path, lambda config: config | {"id2label": {"a": [], **{str(i): {} for i in range(4)}}})
    assert open_checkpoint(tmp_path).config.labels is None


def test_recognized_by_its_names(tmp_path: Path) -> None:
    """Under whatever a trainer put before them."""
    model = saved("ViTForImageClassification", tmp_path)
    rewrite(tmp_path, lambda file: {f"module.{name}": array for name, array in file.items()})
    opened = open_checkpoint(tmp_path)
    assert opened.format == "transformers"
    _, x_BCHW = images(opened.config.model)
    assert_close(our_output(opened, x_BCHW), their_output(model, x_BCHW))


# fmt: off
WRONG_CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "width": ("ViTModel", {"hidden_size": 48}, "states hidden_size 48, but the arrays show 32;"),
    "width as text": ("ViTModel", {"hidden_size": "32"}, "states hidden_size '32', but the arrays show 32;"),
    "depth": ("ViTModel", {"num_hidden_layers": 10**9}, "states num_hidden_layers 1000000000, but the arrays show 2;"),
    "mlp": ("ViTModel", {"intermediate_size": [48]}, "states intermediate_size [48], but the arrays show 48;"),
    "channels": ("ViTModel", {"num_channels": 1}, "states num_channels 1, but the arrays show 3;"),
    "patch": ("ViTModel", {"patch_size": 8}, "states patch_size 8, but the arrays show 4;"),
    "qkv_bias": ("ViTModel", {"qkv_bias": False}, "states qkv_bias False, but the arrays show True;"),
    "image": ("ViTModel", {"image_size": 24}, "image_size 24, but the arrays show 16 positions for patches of [4, 4];"),
    "image of text": ("ViTModel", {"image_size": "16"}, "states image_size '16'; expected pixels"),
    "image of three": ("ViTModel", {"image_size": [4, 4, 4]}, "states image_size [4, 4, 4]; expected pixels"),
    "negative image": ("ViTModel", {"image_size": -16}, "states image_size -16; expected pixels"),
    "heads": ("ViTModel", {"num_attention_heads": 5}, "heads: 5 does not divide width 32"),
    "heads of text": ("ViTModel", {"num_attention_heads": "4"}, "heads: expected an integer, found '4'"),
    "negative heads": ("ViTModel", {"num_attention_heads": -4}, "heads: expected 1 or more"),
    "epsilon": ("ViTModel", {"layer_norm_eps": "x"}, "norm_epsilon: expected a number, found 'x'"),
    "infinite epsilon": ("ViTModel", {"layer_norm_eps": float("inf")}, "norm_epsilon: expected a finite number"),
    "activation": ("ViTModel", {"hidden_act": "relu"}, "'relu', which ViTConfig cannot express; supported: "),
    "activation nested": ("ViTModel", {"hidden_act": {"a": []}}, "states hidden_act {'a': []}, which"),
    "pooler": ("ViTModel", {"pooler_act": "relu"}, "states pooler_act 'relu'; supported: tanh"),
    "ratio": ("Dinov2Model", {"mlp_ratio": 3}, "states mlp_ratio 3, but the arrays show mlp_dim 64 for width 32;"),
    "ratio of text": ("Dinov2Model", {"mlp_ratio": "2"}, "states mlp_ratio '2', but the arrays show"),
    "ratio nan": ("Dinov2Model", {"mlp_ratio": float("nan")}, "states mlp_ratio nan, but the arrays show"),
    "swiglu": ("Dinov2Model", {"use_swiglu_ffn": True}, "states use_swiglu_ffn True, but the arrays show False;"),
    "layer scale": ("Dinov2Model", {"layerscale_value": "x"}, "layer_scale: expected a number, found 'x'"),
    "registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 4}, "register_tokens 4, but the arrays show 3"),
    "vision_config": ("SiglipModel", {"vision_config": [1]}, "states vision_config [1]; expected an object of fields"),
    "swinv2": ("SiglipVisionModel", {"model_type": "swinv2"}, "states model_type 'swinv2', which cannot be read"),
    "yolos": ("ViTModel", {"model_type": "yolos"}, "states model_type 'yolos', which cannot be read"),
    "model_type nested": ("ViTModel", {"model_type": [["vit"]]}, "states model_type [['vit']], which cannot be read"),
}
# fmt: on


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_configs_that_are_wrong(name: str, tmp_path: Path) -> None:
    case, change, message = WRONG_CONFIGS[name]
    saved(case, tmp_path)
    edit(tmp_path, lambda config: config | change)
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_user_says_counts(tmp_path: Path) -> None:
    saved("ViTModel", tmp_path)
    edit(tmp_path, lambda config: config | {"hidden_act": ["?"], "num_attention_heads": "?", "image_size": "?"})
    said = {"activation": "gelu", "heads": 4, "image_size": (8, 32), "position_resampling": "zoom_linear"}
    model = open_checkpoint(tmp_path, fields=said).config.model
    assert {name: getattr(model, name) for name in said} == said


ANYTHING = [None, True, -1, 0, 1e308, float("nan"), 2**70, "", "é" * 500, [], [[]], {}, {"a": {"b": [1]}}]


@pytest.mark.parametrize(
    "case", ["ViTForImageClassification", "Dinov2ForImageClassification", "CLIPModel", "SiglipModel"]
)
def test_any_config_is_read_or_refused_in_one_line(case: str, tmp_path: Path) -> None:
    """Every value in turn is replaced by each kind of JSON value."""
    saved(case, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    nested = config.get("vision_config", {})
    said = set()
    for fields, key in [(config, key) for key in config] + [(nested, key) for key in nested]:
        before = fields[key]
        for value in ANYTHING:
            fields[key] = value
            (tmp_path / "config.json").write_text(json.dumps(config))
            try:
                open_checkpoint(tmp_path)
            except InputError as error:
                said.add(str(error))
        fields[key] = before
    assert len(said) > 20
    assert not any("\n" in line or len(line) > 1000 for line in said)


ENDS = [
    "embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
    "encoder.layer.1.attention.attention.key.bias", "encoder.layer.0.intermediate.dense.weight", "layernorm.weight",
    "classifier.weight",
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_arrays_that_are_wrong_are_named(end: str, tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    name = next(name for name in whole if name.endswith(end))
    wrong: list[dict[str, np.ndarray]] = [
        {other: array for other, array in whole.items() if other != name},
        {other if other != name else f"{name}_old": array for other, array in whole.items()},
        whole | {name: np.ones((*whole[name].shape, 1))},
        *([whole | {name: whole[name].astype(np.float16)}] if "attention" in name else []),
    ]
    for file in wrong:
        rewrite(tmp_path, lambda _, file=file: file)
        with pytest.raises(InputError) as error:
            open_checkpoint(tmp_path, format="transformers")
        assert end in str(error.value)
        assert "\n" not in str(error.value)


def test_arrays_with_no_place_are_named(tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    rewrite(tmp_path, lambda file: file | {"vit.encoder.layer.0.gate.weight": np.ones(1)})
    with pytest.raises(
        InputError,
        match=r"arrays that .* model does not use: vit.encoder.layer.0.gate.weight; arrays are left out only if",
    ):
        open_checkpoint(tmp_path)


# fmt: off
NO_HEAD = {"num_classes": 0}
REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "qk_norm": ({"qk_norm": True}, "transformers cannot express qk_norm true (it has false)"),
    "patch_norms": ({"patch_norms": True}, "cannot express patch_norms true (it has false)"),
    "stem": ({"stem_layers": ()}, "cannot express stem_layers () (it has none)"),
    "head_dim": ({"head_dim": 16}, "cannot express head_dim 16 (it has none or 8)"),
    "fc_norm": ({"final_norm": "after_pooling"}, "cannot express final_norm after_pooling (it has before_pooling)"),
    "pooler and head": ({"representation": 24}, "cannot express representation 24 (it has none)"),
    "map with class token": ({"pooling": "map"}, "cannot express pooling map (it has cls)"),
    "map with head": ({**SIGLIP, "pooling": "map"}, "cannot express num_classes 5 (it has 0)"),
    "first": ({**SIGLIP, **NO_HEAD, "pooling": "first"}, "cannot express pooling first (it has map or gap)"),
    "layer scale in siglip": ({**SIGLIP, "pooling": "gap", "layer_scale": 0.1}, "cannot express layer_scale 0.1"),
    "clip with biases": ({**CLIP, "patch_bias": True},
                         "cannot express patch_bias true (it has false), head_bias true (it has false)"),
    "layer scale in clip": ({**CLIP, "head_bias": False, "layer_scale": 0.1}, "cannot express layer_scale 0.1"),
    "clip, not square": ({**CLIP, **NO_HEAD, "image_size": (8, 16)},
                         "its CLIPVisionModel accepts only squares, found image_size 8x16"),
    "siglip, not square": ({**SIGLIP, "pooling": "gap", "patch_size": (4, 2)},
                           "its SiglipForImageClassification accepts only squares, found patch_size 4x2"),
    "dinov2, not square": ({**DINOV2, **NO_HEAD, "image_size": (8, 32)},
                           "treats positions of an image that is not square as those of a square grid"),
    "dinov2, mlp_dim": ({**DINOV2, **NO_HEAD, "mlp_dim": 48}, "found mlp_dim 48"),
    "swiglu, mlp_dim": ({**DINOV2, **NO_HEAD, "mlp": "swiglu", "mlp_dim": 60}, "found mlp_dim 60"),
    "registers and distillation": ({"distillation": "token", "registers": 2}, "cannot express registers 2 (it has 0)"),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        save_checkpoint(tmp_path / "folder", checkpoint(SMALL.replace(**fields)), format="transformers")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()


def test_clip_classifier_is_refused(tmp_path: Path) -> None:
    hf.CLIPForImageClassification(clip_and_text(**FIVE)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="CLIPForImageClassification computes the mean of tokens before their norm"):
        open_checkpoint(tmp_path)


def test_dinov2_of_an_image_that_is_not_square_is_refused(tmp_path: Path) -> None:
    hf.Dinov2Model(dinov2(image_size=(8, 32))).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="treats positions of an image that is not square as those of a square grid"):
        open_checkpoint(tmp_path)


def test_another_resampling_is_noted(tmp_path: Path) -> None:
    weights = checkpoint(SMALL.replace(position_resampling="zoom_linear"))
    notes = save_checkpoint(tmp_path, weights, format="transformers")
    assert notes == ("positions: transformers resamples them by 'bicubic', this model by 'zoom_linear'",)
