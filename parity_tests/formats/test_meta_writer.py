"""DINO's and DINOv2's own .pth files, written here and opened by timm's model and its loader of DINOv2's names.

Meta's code is on no index; the names are compared with the layouts spelled out in meta_layouts, which follow that code.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from parity_tests.formats.foreign import SMALL, images, largest_difference, nchw, opened
from parity_tests.formats.meta_layouts import layout
from parity_tests.twins import checkpoint
from vit_core import parity
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.formats.meta_writer import dinov2_arguments, opened_by
from vit_core.checkpoints.saving import express_for
from vit_core.errors import InputError

TINY: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
FEATURES = SMALL.replace(num_classes=0, norm_epsilon=1e-6)
MODELS: dict[str, dict[str, Any]] = {
    "DINO": {},
    "DINO without biases of queries": {"qkv_bias": False},
    "DINOv2": {"layer_scale": 0.1},
    "DINOv2 with registers": {"layer_scale": 0.1, "registers": 4},
    "DINOv2, gated": {"layer_scale": 0.1, "registers": 4, "mlp": "swiglu"},
}


def in_timm(state: dict[str, Tensor], fields: dict[str, Any]) -> Any:
    """timm's model of a backbone, filled by its own loader."""
    gated = fields.get("mlp") == "swiglu"
    options: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if gated else {}
    model = VisionTransformer(
        **TINY,
        mlp_ratio=80 / 24 if gated else 40 / 24,
        qkv_bias=fields.get("qkv_bias", True),
        init_values=fields.get("layer_scale"),
        reg_tokens=fields.get("registers", 0),
        no_embed_class="registers" in fields,
        **options,
    )
    model.double().eval().load_state_dict(checkpoint_filter_fn(dict(state), model))
    return model


def names_of(weights: Checkpoint) -> dict[str, tuple[int, ...]]:
    """By the layout of Meta's code."""
    model = weights.config.model
    shapes = layout(
        24,
        2,
        model.mlp_dim,
        4,
        10,
        registers=model.registers,
        swiglu=model.mlp == "swiglu",
        scale=model.layer_scale is not None,
    )
    if model.layer_scale is not None:
        shapes["mask_token"] = (1, 24)
    return {name: shape for name, shape in shapes.items() if model.qkv_bias or not name.endswith("qkv.bias")}


@pytest.mark.parametrize("name", MODELS)
def test_a_backbone(name: str, tmp_path: Path) -> None:
    weights = checkpoint(FEATURES.replace(**MODELS[name]))
    notes = save_checkpoint(tmp_path / "a.pth", weights, format="meta")
    assert notes[0].startswith(
        f"opens in facebookresearch/{'dino: ' if name.startswith('DINO ') or name == 'DINO' else 'dinov2: '}"
    )
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert {key: tuple(x.shape) for key, x in state.items()} == names_of(weights)
    with torch.no_grad():
        expected = in_timm(state, MODELS[name])(nchw(images(weights.config.model)))
    assert largest_difference(weights, expected) <= parity.FLOAT64_BOUND
    found = opened(tmp_path / "a.pth", heads=3)
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert found.format == ("timm" if name.startswith("DINO ") or name == "DINO" else "meta")


@pytest.mark.parametrize("pooling", ["cls", "gap", "cls_gap"])
def test_a_head_becomes_dinov2s_linear_classifier(pooling: str, tmp_path: Path) -> None:
    """It reads class token and mean: zeros for what the head did not read, and LayerScale of ones."""
    weights = checkpoint(SMALL.replace(norm_epsilon=1e-6, pooling=pooling))
    notes = save_checkpoint(tmp_path / "a.pth", weights, format="meta")
    assert "layer_scale: ones" in notes
    assert any("_LinearClassifierWrapper(backbone, torch.nn.Linear(48, 5))" in note for note in notes)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    backbone = {key.removeprefix("backbone."): x for key, x in state.items() if key.startswith("backbone.")}
    model = in_timm(backbone, {"layer_scale": 1.0})
    with torch.no_grad():
        tokens = model.forward_features(nchw(images(weights.config.model)))
        both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        expected = both @ state["linear_head.weight"].T + state["linear_head.bias"]
    assert largest_difference(weights, expected) <= parity.FLOAT64_BOUND
    assert largest_difference(opened(tmp_path / "a.pth", heads=3), expected) <= parity.FLOAT64_BOUND


def test_the_entry_of_the_hub_is_named(tmp_path: Path) -> None:
    giant = {"width": 1536, "depth": 40, "heads": 24, "mlp_dim": 4096, "mlp": "swiglu", "layer_scale": 1.0}
    model = FEATURES.replace(image_size=518, patch_size=14, registers=4, **giant)
    assert "(torch.hub: dinov2_vitg14_reg, pretrained=False)" in opened_by(model, True)
    arguments = dinov2_arguments(model)
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    assert (int(hidden * 2 / 3) + 7) // 8 * 8 == 4096  # what SwiGLUFFNFused makes of it
    assert "torch.hub" not in opened_by(model.replace(image_size=224), True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image_size": (8, 12)}, "image_size 8x12"),
        ({"image_size": (12, 12), "patch_size": (4, 2)}, "patch_size 4x2"),
        ({"activation": "gelu_tanh"}, "meta cannot express activation gelu_tanh"),
        ({"norm_epsilon": 1e-5}, "meta cannot express norm_epsilon 1e-05"),
        ({"pooling": "gap"}, "meta cannot express .*pooling gap"),
        ({"pre_norm": True}, "meta cannot express pre_norm true"),
        ({"class_token": False, "pooling": "map"}, "meta cannot express class_token false"),
        ({"mlp": "swiglu", "mlp_dim": 36}, "mlp_dim 36; DINOv2's gated MLPs need a multiple of 8"),
        ({"distillation": "token"}, "meta cannot express distillation token"),
    ],
    ids=str,
)
def test_what_their_code_does_not_compute_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    weights = checkpoint(FEATURES.replace(**fields))
    with pytest.raises(InputError, match=reason) as error:
        express_for(weights, "meta")
    assert "\n" not in str(error.value)
