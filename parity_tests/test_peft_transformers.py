"""Adapters that peft trains over models of transformers, which have their own names and no fused queries and keys."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import vit_jax
import vit_torch
from parity_tests.formats.foreign import images, nchw, randomized
from vit_core import open_checkpoint, parity
from vit_core.checkpoints.adapter_folder import ADAPTER_WEIGHTS
from vit_core.errors import InputError

SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 12,
    "patch_size": 4,
}  # fmt: skip
OLD = {"attention.q_proj": "attention.attention.query", "attention.v_proj": "attention.attention.value"}
"""Names of modules before transformers 5, as most folders in the Hub have them."""


def vit(classes: int = 5, **options: Any) -> Any:
    return randomized(hf.ViTForImageClassification(hf.ViTConfig(**SIZES, num_labels=classes, **options)))


def adapted(model: Any, folder: Path, **options: Any) -> Any:
    """The model with random adapters, which are in the folder; the model itself is in `folder`/base."""
    model.save_pretrained(folder / "base")
    theirs = peft.get_peft_model(deepcopy(model), peft.LoraConfig(r=3, lora_alpha=5, **options)).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    theirs.save_pretrained(folder / "adapter")
    return theirs


def assert_same(folder: Path, outputs: Callable[[torch.Tensor], Any]) -> Any:
    found = open_checkpoint(folder / "adapter", base=folder / "base")
    x_BHWC = images(found.config.model)
    with torch.no_grad():
        expected = outputs(nchw(x_BHWC)).numpy()
    for twin in (vit_torch, vit_jax):
        assert parity.difference(twin.predict(twin.load(found), x_BHWC), expected)[1] <= parity.FLOAT64_BOUND
    return found


KINDS: dict[str, dict[str, Any]] = {
    "queries and values": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]},
    "every layer": {"target_modules": "all-linear", "use_rslora": True},
    "patches, the head": {"target_modules": ["projection", "classifier", "o_proj"], "alpha_pattern": {"o_proj": 2}},
    "keys of one layer, norms": {
        "target_modules": ["k_proj"], "layers_to_transform": [1], "modules_to_save": ["layernorm"]
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_over_vit(kind: str, tmp_path: Path) -> None:
    theirs = adapted(vit(), tmp_path, **KINDS[kind])
    assert_same(tmp_path, lambda x: theirs(pixel_values=x).logits)


def test_names_of_older_versions(tmp_path: Path) -> None:
    theirs = adapted(vit(), tmp_path, **KINDS["queries and values"])
    file = tmp_path / "adapter" / ADAPTER_WEIGHTS
    arrays = {name.replace(".vit.layers.", ".vit.encoder.layer."): x for name, x in load_file(file).items()}
    for new, old in OLD.items():
        arrays = {name.replace(new, old): x for name, x in arrays.items()}
    save_file(arrays, file)
    assert_same(tmp_path, lambda x: theirs(pixel_values=x).logits)


def test_a_classifier_over_a_model_with_a_pooler(tmp_path: Path) -> None:
    """As over google/vit-base-patch16-224-in21k: the class with a classifier leaves the pooler out."""
    model = vit(classes=7)
    theirs = adapted(model, tmp_path, **KINDS["queries and values"])
    bare = hf.ViTModel(model.config, add_pooling_layer=True).double()
    bare.load_state_dict(model.vit.state_dict(), strict=False)
    bare.save_pretrained(tmp_path / "base")
    found = assert_same(tmp_path, lambda x: theirs(pixel_values=x).logits)
    assert (found.config.model.num_classes, found.config.model.representation) == (7, None)


def test_both_towers_of_clip(tmp_path: Path) -> None:
    text = {**SIZES, "vocab_size": 9, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = hf.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=5)
    theirs = adapted(randomized(hf.CLIPModel(config)), tmp_path, target_modules=["q_proj", "v_proj"])
    tower = theirs.base_model.model
    found = assert_same(tmp_path, lambda x: tower.visual_projection(tower.vision_model(x).pooler_output))
    assert "left out: adapters of text_model" in found.notes


def test_those_of_another_model(tmp_path: Path) -> None:
    adapted(vit(), tmp_path, **KINDS["queries and values"])
    config = hf.ViTConfig(**{**SIZES, "num_hidden_layers": 1}, num_labels=5)
    hf.ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    with pytest.raises(
        InputError, match=r"the base has no vit\.layers\.1\.attention\.q_proj\.weight; check that this is the base"
    ):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    config = hf.ViTConfig(**{**SIZES, "hidden_size": 48}, num_labels=5)
    hf.ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"do not fit the base's weight of \[48, 48\]|matrices of"):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
