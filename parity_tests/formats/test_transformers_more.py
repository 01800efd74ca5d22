"""transformers' I-JEPA, ViTMSN, TimmWrapper and DINOv2 without registers, opened here.

Outputs are compared with those of its own classes in float64.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.layers.mlp import SwiGLUPacked

from parity_tests.formats.foreign import images, largest_difference, nchw, opened, randomized, save
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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "IJepaForImageClassification": ("IJepaConfig", {"num_labels": 5}),
    "IJepaModel": ("IJepaConfig", {}),
    "ViTMSNForImageClassification": ("ViTMSNConfig", {"num_labels": 5}),
    "ViTMSNModel": ("ViTMSNConfig", {"layer_norm_eps": 1e-3}),
    "Dinov2WithRegistersForImageClassification": (  # its array of registers has no values
        "Dinov2WithRegistersConfig",
        {"num_register_tokens": 0, "num_labels": 5},
    ),
}


def saved(name: str, folder: Path) -> Any:
    config_class, options = MODELS[name]
    config = getattr(transformers, config_class)(**HF, **options)
    config._attn_implementation = "sdpa"
    model: Any = randomized(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


def expected_of(name: str, model: Any, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Logits; features as the classifier of the same family takes them."""
    with torch.no_grad():
        out = model(pixel_values=x_BCHW)
    if name.endswith("ForImageClassification"):
        logits: torch.Tensor = out.logits
        return logits
    tokens: torch.Tensor = out.last_hidden_state
    return tokens.mean(dim=1) if name == "IJepaModel" else tokens[:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_a_folder(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    found = opened(tmp_path)
    assert largest_difference(found, expected_of(name, model, nchw(images(found.config.model)))) <= parity.FLOAT64_BOUND
    assert [one.field for one in found.assumptions] == (["pooling"] if name == "IJepaModel" else [])


@pytest.mark.parametrize("name", ["IJepaForImageClassification", "IJepaModel"])
def test_a_state_dict_of_i_jepa_without_its_config(name: str, tmp_path: Path) -> None:
    """There is no class token, so it is I-JEPA; the fields of its config are assumed."""
    model = saved(name, tmp_path / "folder")
    path = save(tmp_path / "jepa.pth", load_file(tmp_path / "folder" / "model.safetensors"))
    found = opened(path, heads=3)
    assert largest_difference(found, expected_of(name, model, nchw(images(found.config.model)))) <= parity.FLOAT64_BOUND
    assert {one.field for one in found.assumptions} >= {"image_size", "activation", "norm_epsilon"}


def test_a_state_dict_of_vit_msn_without_its_config(tmp_path: Path) -> None:
    """Its arrays are those of ViT, whose epsilon is another one: said, and set."""
    model = saved("ViTMSNForImageClassification", tmp_path / "folder")
    path = save(tmp_path / "msn.pth", load_file(tmp_path / "folder" / "model.safetensors"))
    assert any(one.field == "norm_epsilon" and one.value == 1e-12 for one in opened(path).assumptions)
    found = opened(path, heads=3, norm_epsilon=1e-6)
    x_BCHW = nchw(images(found.config.model))
    assert largest_difference(found, expected_of("ViTMSNForImageClassification", model, x_BCHW)) <= parity.FLOAT64_BOUND


def test_vit_msn_with_the_names_of_transformers_4(tmp_path: Path) -> None:
    """Version 5 leaves the prefix out before the layers, which version 4 and the released files have."""
    model = saved("ViTMSNForImageClassification", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    older = {f"vit.{name}" if name.startswith("encoder.") else name: x for name, x in state.items()}
    assert older.keys() != state.keys()
    save(tmp_path / "model.safetensors", older)
    found = opened(tmp_path)
    x_BCHW = nchw(images(found.config.model))
    assert largest_difference(found, expected_of("ViTMSNForImageClassification", model, x_BCHW)) <= parity.FLOAT64_BOUND


TIMM: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


def wrapper_config(architecture: str, **options: Any) -> Any:
    build: Any = transformers.TimmWrapperConfig
    return build(architecture=architecture, model_args=TIMM, **options)


@pytest.mark.parametrize(
    "architecture", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_gap_224"]
)
@pytest.mark.parametrize("labels", [None, ["a", "b", "c", "d", "e"]])
def test_timm_wrapper(architecture: str, labels: list[str] | None, tmp_path: Path) -> None:
    """transformers' folder around a model of timm opens as timm's; LABEL_0, ... are no names."""
    options: dict[str, Any] = {"num_labels": 5} if labels is None else {"id2label": dict(enumerate(labels))}
    config = wrapper_config(architecture, **options)
    model: Any = randomized(transformers.TimmWrapperForImageClassification(config))
    model.save_pretrained(tmp_path)
    found = opened(tmp_path)
    with torch.no_grad():
        expected = model(pixel_values=nchw(images(found.config.model))).logits
    assert found.format == "timm"
    assert found.config.labels == (None if labels is None else tuple(labels))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def test_timm_wrapper_of_another_architecture_is_refused(tmp_path: Path) -> None:
    config = wrapper_config("vit_dwee_patch16_reg1_gap_256", num_labels=5)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has differential attention"):
        opened(tmp_path)


def test_a_folder_of_timm_that_returns_every_token(tmp_path: Path) -> None:
    """Virchow2 and others have global_pool "": opened with a note, and pooling as an assumption."""
    args = {**TIMM, "reg_tokens": 4, "init_values": 1e-5, "num_classes": 0, "global_pool": "", "mlp_ratio": 5.5}
    args |= {"dynamic_img_size": True, "act_layer": "silu"}
    layers: Any = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    model = randomized(timm.create_model("vit_tiny_patch16_224", **{**args, **layers}))
    save(tmp_path / "model.safetensors", model.state_dict())
    stated = {"architecture": "vit_huge_patch14_224", "global_pool": "", "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    found = opened(tmp_path)
    with torch.no_grad():
        tokens = model(nchw(images(found.config.model)))
    assert any("global_pool: the file states ''" in note for note in found.notes)
    assert [one.value for one in found.assumptions if one.field == "pooling"] == ["cls"]
    assert largest_difference(found, tokens[:, 0]) <= parity.FLOAT64_BOUND
    both = opened(tmp_path, pooling="cls_gap")
    assert largest_difference(both, torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1)) <= parity.FLOAT64_BOUND
