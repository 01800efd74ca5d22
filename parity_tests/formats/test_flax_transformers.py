"""flax_model.msgpack of transformers' former Flax classes, against the PyTorch classes in float64.

transformers 5 has no Flax classes any more, so the trees are made from the PyTorch models' files by the documented rule
of its `modeling_flax_pytorch_utils`: "/" for ".", `kernel` (transposed) for `weight`, `scale` for a norm's, `embedding`
for a table's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from flax import serialization
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from parity_tests.formats.foreign import images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.errors import InputError

HF: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ViTForImageClassification": ("ViTConfig", {"num_labels": 5}, "logits"),
    "ViTModel": ("ViTConfig", {}, "pooler_output"),
    "Dinov2ForImageClassification": ("Dinov2Config", {"num_labels": 5, "mlp_ratio": 2}, "logits"),
    "Dinov2Model": ("Dinov2Config", {"mlp_ratio": 3, "use_swiglu_ffn": True}, "pooler_output"),
    "CLIPVisionModel": ("CLIPVisionConfig", {}, "pooler_output"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {"projection_dim": 5}, "image_embeds"),
}


def flax_tree(state: dict[str, np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
    """A PyTorch state dict as the tree of the Flax class."""
    tree = {}
    for name, array in state.items():
        *module, leaf = name.split(".")
        if leaf == "weight" and array.ndim == 1:
            leaf = "scale"
        elif leaf == "weight" and "position_embedding" in name:
            leaf = "embedding"
        elif leaf == "weight":
            leaf, array = "kernel", array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        tree[(*module, leaf)] = np.ascontiguousarray(array)
    return tree


def saved(name: str, folder: Path) -> Any:
    """A model with random values, its folder of Flax's files, and the output to compare."""
    config_class, options, output = MODELS[name]
    config = getattr(transformers, config_class)(**HF, **options)
    config._attn_implementation = "sdpa"
    model: Any = randomized(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tree = unflatten_dict(flax_tree(state))
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return lambda x_BCHW: model(pixel_values=x_BCHW)[output]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_folder(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    for path in (tmp_path, tmp_path / "flax_model.msgpack"):
        found = opened(path)
        with torch.no_grad():
            expected = model(nchw(images(found.config.model)))
        assert found.format == "transformers"
        assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert largest_difference(found, expected, jax=True) <= parity.FLOAT64_BOUND


def test_both_towers_of_clip(tmp_path: Path) -> None:
    """FlaxCLIPModel: the text tower is left out."""
    tower = {**HF, "hidden_act": "quick_gelu"}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 6}
    config = transformers.CLIPConfig(vision_config=tower, text_config=text, projection_dim=5)
    config._attn_implementation = "sdpa"
    model: Any = randomized(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    tree = flax_tree(load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(unflatten_dict(tree)))
    found = opened(tmp_path)
    with torch.no_grad():
        features = model.vision_model(pixel_values=nchw(images(found.config.model))).pooler_output
        expected = model.visual_projection(features)
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert any("left out" in note and "text_model" in note for note in found.notes)


def test_without_a_config_its_fields_are_assumed(tmp_path: Path) -> None:
    model = saved("ViTForImageClassification", tmp_path)
    (tmp_path / "config.json").unlink()
    found = opened(tmp_path / "flax_model.msgpack", heads=3)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert {one.field for one in found.assumptions} == {"image_size", "activation", "norm_epsilon", "pooling"}


def test_under_params_and_in_safetensors(tmp_path: Path) -> None:
    """As trainers nest them, and as the Flax classes wrote safetensors files: names joined with "."."""
    model = saved("ViTForImageClassification", tmp_path)
    tree = serialization.msgpack_restore((tmp_path / "flax_model.msgpack").read_bytes())
    state = {"step": 3, "params": tree, "opt_state": {"0": {"mu": tree, "nu": tree}}}
    (tmp_path / "state.msgpack").write_bytes(serialization.msgpack_serialize(state))
    flat = {".".join(keys): array for keys, array in flattened(tree)}
    save_file(flat, tmp_path / "flax_model.safetensors")
    for name in ("state.msgpack", "flax_model.safetensors"):
        found = opened(tmp_path / name, heads=3)
        with torch.no_grad():
            expected = model(nchw(images(found.config.model)))
        assert largest_difference(found, expected) <= parity.FLOAT64_BOUND, name
    assert any("model found under 'params'" in note for note in opened(tmp_path / "state.msgpack").notes)


def flattened(tree: dict[str, Any], keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], np.ndarray]]:
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    for key, value in tree.items():
        found += flattened(value, (*keys, key)) if isinstance(value, dict) else [((*keys, key), value)]
    return found


def test_a_kernel_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    tree = serialization.msgpack_restore((tmp_path / "flax_model.msgpack").read_bytes())
    tree["classifier"]["kernel"] = np.zeros((7, 5))
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(InputError, match=r"classifier\.weight expected \[5, 24\] found \[5, 7\]") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_another_model_type_is_refused_by_its_name(tmp_path: Path) -> None:
    saved("ViTForImageClassification", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "yolos"}))
    with pytest.raises(InputError, match=r"config\.json states model_type 'yolos', which cannot be read"):
        opened(tmp_path)
