"""Keys of sidecars: none that a library writes is called unknown, and an invented one is named."""

import argparse
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from timm.models import PretrainedCfg, VisionTransformer
from timm.models._hub import save_config_for_hf
from timm.models.eva import Eva

from parity_tests.formats.transformers_models import edit, saved
from vit_core import open_checkpoint
from vit_core.checkpoints.formats.timm.known_keys import (
    MODEL_ARGS,
    OTHER_SCRIPTS,
    PRETRAINED_CFG,
    TRAIN_OPTIONS,
    unknown_hub_keys,
)
from vit_core.checkpoints.formats.transformers.known_keys import unknown_config_keys
from vit_core.checkpoints.formats.transformers.names import FAMILIES, TOWER_OF

UNKNOWN = "unknown keys, which may change the model"
TOWERS = ("ViT", "DeiT", "ViTMAE", "ViTMSN", "IJepa", "Dinov2", "Dinov2WithRegisters", "CLIPVision", "SiglipVision")


VERSION_4 = """_name_or_path add_cross_attention architectures attention_dropout bad_words_ids bos_token_id
chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout
early_stopping encoder_no_repeat_ngram_size eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id
hidden_act hidden_size id2label image_size initializer_factor initializer_range intermediate_size
is_decoder is_encoder_decoder label2id layer_norm_eps length_penalty max_length min_length model_type
no_repeat_ngram_size num_attention_heads num_beam_groups num_beams num_hidden_layers num_return_sequences
output_attentions output_hidden_states output_scores pad_token_id patch_size prefix problem_type projection_dim
pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
task_specific_params temperature tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
torchscript transformers_version typical_p use_bfloat16"""


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = getattr(hf, f"{name}Config")().to_dict()
    return config


@pytest.mark.parametrize("name", TOWERS)
def test_every_key_of_transformers_is_known(name: str) -> None:
    config = config_of(name)
    model_type = config["model_type"]
    assert model_type in FAMILIES
    assert unknown_config_keys(config, config, model_type) == []
    changed = {**config, "rope_theta": 100.0, "sliding_window": 4}
    assert unknown_config_keys(changed, changed, model_type) == [f"config.json: {UNKNOWN}: rope_theta, sliding_window"]


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_every_key_of_towers_beside_text_is_known(name: str) -> None:
    config = config_of(name)
    model_type, tower = TOWER_OF[config["model_type"]], config["vision_config"]
    assert unknown_config_keys(config, tower, model_type) == []
    config["window"], tower["rope_theta"] = 3, 100.0
    assert unknown_config_keys(config, tower, model_type) == [
        f"config.json: {UNKNOWN}: window",
        f"config.json: vision_config: {UNKNOWN}: rope_theta",
    ]


def test_keys_of_another_kind_of_tower_are_unknown() -> None:
    """What a ViT's class would ignore, another library may not."""
    config = {**config_of("ViT"), "num_register_tokens": 4}
    assert unknown_config_keys(config, config, "vit") == [f"config.json: {UNKNOWN}: num_register_tokens"]


def test_keys_of_version_4_are_known() -> None:
    """The vision_config of openai/clip-vit-base-patch32, which has every default of its time."""
    config = dict.fromkeys(VERSION_4.split(), 1)
    assert len(config) == 65
    assert unknown_config_keys(config, config, "clip_vision_model") == []


def test_an_invented_key_is_named_on_opening(tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    assert [note for note in open_checkpoint(tmp_path).notes if UNKNOWN in note] == []
    edit(tmp_path, lambda config: config | {"attention_sinks": 2, "empty": [], "absent": None})
    assert f"config.json: {UNKNOWN}: attention_sinks" in open_checkpoint(tmp_path).notes


def test_every_key_of_timm_is_known() -> None:
    """All fields of its pretrained_cfg, and all arguments but those that replace modules."""
    assert {each.name for each in dataclasses.fields(PretrainedCfg)} <= PRETRAINED_CFG
    arguments = set(inspect.signature(VisionTransformer).parameters)
    assert arguments - MODEL_ARGS == {"embed_layer", "block_fn", "mlp_layer"}
    assert set(inspect.signature(Eva).parameters) <= MODEL_ARGS


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224", "deit3_small_patch16_224"])
def test_hub_folders_of_timm_are_known(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, depth=1, embed_dim=32, num_heads=2, img_size=32, num_classes=3)
    given = {"model_args": {"depth": 1, "embed_dim": 32}, "label_names": ["a", "b", "c"]}
    save_config_for_hf(model, str(tmp_path / "config.json"), given)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"pretrained_cfg", "model_args", "label_names"} <= set(config)
    assert unknown_hub_keys(config) == []
    config["model_args"]["mlp_layer"] = "glu"
    config["pretrained_cfg"]["letterbox"] = True
    assert unknown_hub_keys({**config, "gate": 1}) == [
        f"config.json: {UNKNOWN}: gate",
        f"config.json: model_args: {UNKNOWN}: mlp_layer",
        f"config.json: pretrained_cfg: {UNKNOWN}: letterbox",
    ]


def test_a_timm_wrapper_is_known() -> None:
    config = hf.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 1}).to_dict()
    assert config["model_type"] == "timm_wrapper"
    assert unknown_hub_keys(config) == []


OPTIONS = {
    "opt": "adamw", "opt_betas": [0.9, 0.999], "sched": "cosine", "lr": 1e-3, "aa": "rand-m9-mstd0.5", "reprob": 0.25,
    "model_ema": True, "workers": 8, "amp_dtype": "float16", "naflex_loader": False, "kd_model_name": None,
    "in_chans": 3, "num_classes": 3, "drop_path": 0.1, "rank": 0, "world_size": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "notes"),
    [
        ({}, []),
        ({"rope": "axial", "nothing": None}, [f"args: {UNKNOWN}: rope"]),
        ({"model_kwargs": {"mlp_layer": "glu", "qk_norm": False}}, [f"args: model_kwargs: {UNKNOWN}: mlp_layer"]),
    ],
)
def test_options_of_training_scripts(more: dict[str, Any], notes: list[str], tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, img_size=32, num_classes=3)
    args = argparse.Namespace(model="vit_tiny_patch16_224", img_size=32, **OPTIONS, **more)
    saved_file = {"epoch": 3, "arch": "vit_tiny_patch16_224", "state_dict": model.state_dict(), "args": args}
    torch.save(saved_file, tmp_path / "last.pth.tar")
    opened = open_checkpoint(tmp_path / "last.pth.tar")
    assert opened.format == "timm"
    assert [note for note in opened.notes if UNKNOWN in note] == notes


def test_options_are_listed_once() -> None:
    assert not TRAIN_OPTIONS & OTHER_SCRIPTS
    assert len(TRAIN_OPTIONS) > 180
