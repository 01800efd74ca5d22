"""Lineage `transformers`: containers, labels, preprocessing, what is left out, and what is refused for which reason."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
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
from vit_core import formats, open_checkpoint
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing, load_image


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
    """As in openai/clip-vit-large-patch14, where it stands beside vision_config."""
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
    formats.save_as(tmp_path, weights, "transformers")
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert (config.id2label, config.label2id["ray"]) == (dict(enumerate(labels)), 3)
    assert open_checkpoint(tmp_path).config.labels == labels
    edit(tmp_path, lambda config: config | {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}})
    assert open_checkpoint(tmp_path).config.labels is None
    edit(tmp_path, lambda config: config | {"id2label": {"a": [], **{str(i): {} for i in range(4)}}})
    assert open_checkpoint(tmp_path).config.labels is None


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
    formats.save_as(tmp_path / "ours", opened, "transformers")
    assert open_checkpoint(tmp_path / "ours").config.preprocessing == seen
    ours = hf.AutoImageProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    written_CHW = ours(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    assert np.abs(written_CHW - expected_CHW).max() <= 2.0**-20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"do_resize": False}, "images are taken as they are (do_resize or do_rescale false)"),
        ({"do_rescale": False}, "images are taken as they are (do_resize or do_rescale false)"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is not 1/255"),
        ({"resample": 4}, "resample 4"),
        ({"resample": [2]}, "resample [2]"),
        ({"size": {"longest_edge": 16}}, "size {'longest_edge': 16}"),
        ({"size": {"shortest_edge": 16}}, "the shortest edge is scaled and nothing is cropped"),
        ({"size": "16"}, "size 16"),
        ({"do_center_crop": True, "crop_size": 20}, "a crop of 20 from 16"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 12}}, "a crop of 8x12 from 16x16"),
        ({"image_processor_type": "BeitImageProcessor"}, "it is for BeitImageProcessor"),
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
    assert "preprocessor_config.json is for 8x8 pixels; taken over for the model's" in opened.notes
    adapted = opened.adapt(image_size=8).config.preprocessing
    assert adapted is not None
    assert (adapted.image_size, adapted.crop_fraction) == ((8, 8), 0.5)


def test_preprocessing_of_nonsense_is_an_error(tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": 16, "image_mean": ["red", {}], "image_std": []})
    )
    with pytest.raises(InputError, match=r"preprocessor_config.json: mean") as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"exif_rotation": True}, {"resize": "crop"}], ids=str)
def test_preprocessing_that_no_processor_has(fields: dict[str, Any], tmp_path: Path) -> None:
    weights = checkpoint(SMALL.replace(image_size=(8, 12)))
    seen = Preprocessing(image_size=(8, 12), **{"resize": "squash", **fields})
    weights = weights.with_config(weights.config.replace(preprocessing=seen))
    notes = formats.save_as(tmp_path, weights, "transformers")
    assert [note.partition(":")[0] for note in notes] == ["no preprocessor_config.json"]
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_preprocessing_of_the_model_before_goes(tmp_path: Path) -> None:
    weights = checkpoint(SMALL)
    seen = weights.config.replace(preprocessing=Preprocessing(image_size=16, mean=(0.1, 0.2, 0.3), resize="squash"))
    formats.save_as(tmp_path, weights.with_config(seen), "transformers")
    assert open_checkpoint(tmp_path).config.preprocessing == seen.preprocessing
    formats.save_as(tmp_path, weights, "transformers")
    assert open_checkpoint(tmp_path).config.preprocessing is None


def test_recognised_by_its_names(tmp_path: Path) -> None:
    """Under whatever a trainer put before them."""
    model = saved("ViTForImageClassification", tmp_path)
    rewrite(tmp_path, lambda file: {f"module.{name}": array for name, array in file.items()})
    opened = open_checkpoint(tmp_path)
    assert opened.format == "transformers"
    _, x_BCHW = images(opened.config.model)
    assert_close(our_output(opened, x_BCHW), their_output(model, x_BCHW))


# fmt: off
WRONG_CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "width": ("ViTModel", {"hidden_size": 48}, "says hidden_size 48, its arrays 32;"),
    "width as text": ("ViTModel", {"hidden_size": "32"}, "says hidden_size '32', its arrays 32;"),
    "depth": ("ViTModel", {"num_hidden_layers": 10**9}, "says num_hidden_layers 1000000000, its arrays 2;"),
    "mlp": ("ViTModel", {"intermediate_size": [48]}, "says intermediate_size [48], its arrays 48;"),
    "channels": ("ViTModel", {"num_channels": 1}, "says num_channels 1, its arrays 3;"),
    "patch": ("ViTModel", {"patch_size": 8}, "says patch_size 8, its arrays 4;"),
    "qkv_bias": ("ViTModel", {"qkv_bias": False}, "says qkv_bias False, its arrays True;"),
    "image": ("ViTModel", {"image_size": 24}, "says image_size 24, its arrays 16 positions of patches [4, 4];"),
    "image of text": ("ViTModel", {"image_size": "16"}, "says image_size '16'; expected pixels"),
    "image of three": ("ViTModel", {"image_size": [4, 4, 4]}, "says image_size [4, 4, 4]; expected pixels"),
    "negative image": ("ViTModel", {"image_size": -16}, "says image_size -16; expected pixels"),
    "heads": ("ViTModel", {"num_attention_heads": 5}, "heads: 5 does not divide width 32"),
    "heads of text": ("ViTModel", {"num_attention_heads": "4"}, "heads: Input should be a valid integer, found '4'"),
    "negative heads": ("ViTModel", {"num_attention_heads": -4}, "heads: Input should be greater than or equal to 1"),
    "epsilon": ("ViTModel", {"layer_norm_eps": "x"}, "norm_epsilon: Input should be a valid number, found 'x'"),
    "infinite epsilon": ("ViTModel", {"layer_norm_eps": float("inf")}, "norm_epsilon: Input should be a finite number"),
    "activation": ("ViTModel", {"hidden_act": "relu"}, "says hidden_act 'relu', which the schema cannot say; known: "),
    "activation nested": ("ViTModel", {"hidden_act": {"a": []}}, "says hidden_act {'a': []}, which"),
    "pooler": ("ViTModel", {"pooler_act": "relu"}, "says pooler_act 'relu'; known: tanh"),
    "labels": ("ViTForImageClassification", {"id2label": {"0": "a"}},
               "says number of labels (id2label) 1, its arrays 5 (rows of classifier.weight);"),
    "ratio": ("Dinov2Model", {"mlp_ratio": 3}, "says mlp_ratio 3, its arrays mlp_dim 64 for width 32;"),
    "ratio of text": ("Dinov2Model", {"mlp_ratio": "2"}, "says mlp_ratio '2', its arrays"),
    "ratio nan": ("Dinov2Model", {"mlp_ratio": float("nan")}, "says mlp_ratio nan, its arrays"),
    "swiglu": ("Dinov2Model", {"use_swiglu_ffn": True}, "says use_swiglu_ffn True, its arrays False;"),
    "layer scale": ("Dinov2Model", {"layerscale_value": "x"}, "layer_scale: Input should be a valid number, found 'x'"),
    "registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 4}, "says num_register_tokens 4, its arrays 3;"),
    "vision_config": ("SiglipModel", {"vision_config": [1]}, "says vision_config [1]; expected an object of fields"),
    "dinov3": ("ViTModel", {"model_type": "dinov3_vit"}, "says model_type 'dinov3_vit', which is another network"),
    "siglip2": ("SiglipVisionModel", {"model_type": "siglip2"}, "says model_type 'siglip2', which is another network"),
    "beit": ("ViTModel", {"model_type": "beit"}, "says model_type 'beit', which is another network"),
    "model_type nested": ("ViTModel", {"model_type": [["vit"]]}, "says model_type [['vit']], which is another network"),
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
    """Every value in turn replaced by what JSON can hold."""
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
        InputError, match=r"arrays with no place .*: vit.encoder.layer.0.gate.weight; nothing is dropped"
    ):
        open_checkpoint(tmp_path)


# fmt: off
NO_HEAD = {"num_classes": 0}
REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "qk_norm": ({"qk_norm": True}, "transformers cannot hold qk_norm true (there: false)"),
    "patch_norms": ({"patch_norms": True}, "cannot hold patch_norms true (there: false)"),
    "stem": ({"stem_layers": ()}, "cannot hold stem_layers () (there: none)"),
    "head_dim": ({"head_dim": 16}, "cannot hold head_dim 16 (there: none or 8)"),
    "fc_norm": ({"final_norm": "after_pooling"}, "cannot hold final_norm after_pooling (there: before_pooling)"),
    "pooler and head": ({"representation": 24}, "cannot hold representation 24 (there: none)"),
    "map with class token": ({"pooling": "map"}, "cannot hold pooling map (there: cls)"),
    "map with head": ({**SIGLIP, "pooling": "map"}, "cannot hold num_classes 5 (there: 0)"),
    "first": ({**SIGLIP, **NO_HEAD, "pooling": "first"}, "cannot hold pooling first (there: map or gap)"),
    "layer scale in siglip": ({**SIGLIP, "pooling": "gap", "layer_scale": 0.1}, "cannot hold layer_scale 0.1"),
    "clip with biases": ({**CLIP, "patch_bias": True},
                         "cannot hold patch_bias true (there: false), head_bias true (there: false)"),
    "layer scale in clip": ({**CLIP, "head_bias": False, "layer_scale": 0.1}, "cannot hold layer_scale 0.1"),
    "clip, not square": ({**CLIP, **NO_HEAD, "image_size": (8, 16)},
                         "its CLIPVisionModel takes squares only, found image_size 8x16"),
    "siglip, not square": ({**SIGLIP, "pooling": "gap", "patch_size": (4, 2)},
                           "its SiglipForImageClassification takes squares only, found patch_size 4x2"),
    "dinov2, not square": ({**DINOV2, **NO_HEAD, "image_size": (8, 32)},
                           "takes the positions of an image that is not square for a square grid"),
    "dinov2, mlp_dim": ({**DINOV2, **NO_HEAD, "mlp_dim": 48}, "found mlp_dim 48"),
    "swiglu, mlp_dim": ({**DINOV2, **NO_HEAD, "mlp": "swiglu", "mlp_dim": 60}, "found mlp_dim 60"),
    "registers and distillation": ({"distillation": "token", "registers": 2}, "cannot hold registers 2 (there: 0)"),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        formats.save_as(tmp_path / "folder", checkpoint(SMALL.replace(**fields)), "transformers")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()


def test_clip_classifier_is_refused(tmp_path: Path) -> None:
    hf.CLIPForImageClassification(clip_and_text(**FIVE)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="CLIPForImageClassification takes the mean of tokens before their norm"):
        open_checkpoint(tmp_path)


def test_dinov2_of_an_image_that_is_not_square_is_refused(tmp_path: Path) -> None:
    hf.Dinov2Model(dinov2(image_size=(8, 32))).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="takes the positions of an image that is not square for a square grid"):
        open_checkpoint(tmp_path)


def test_another_resampling_is_noted(tmp_path: Path) -> None:
    weights = checkpoint(SMALL.replace(position_resampling="zoom_linear"))
    notes = formats.save_as(tmp_path, weights, "transformers")
    assert notes == ["positions: resampled by 'bicubic' there (here: 'zoom_linear')"]
