"""Against torchvision, which attends by nn.MultiheadAttention: everything computed agrees, through a map of names.

Every parameter is random, nothing is downloaded. The bound is parity.FLOAT64_BOUND on every stage, the logits and every
gradient.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

import vit_torch
from parity_tests.twins import assert_one_model, checkpoint
from vit_core import ViTConfig, parity, variants
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.parameters import count, parameters

SMALL = ViTConfig(
    image_size=12,
    patch_size=4,
    width=24,
    depth=2,
    heads=4,
    mlp_dim=40,
    num_classes=5,
    activation="gelu",
    position_resampling="bicubic_align_corners",
)

FIELDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "representation": {"representation": 16},
    "epsilon": {"norm_epsilon": 1e-3},
    "odd heads": {"heads": 3},
    "depth 1": {"depth": 1},
    "depth 5": {"depth": 5},
}

NAMES = {
    "patch_embed.proj.": "conv_proj.",
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "blocks.": "encoder.layers.encoder_layer_",
    ".norm1.": ".ln_1.",
    ".attn.qkv.": ".self_attention.in_proj_",
    ".attn.proj.": ".self_attention.out_proj.",
    ".norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.3.",
    "norm.": "encoder.ln.",
    "pre_logits.fc.": "heads.pre_logits.",
    "head.": "heads.head.",
}


def their_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def their_state(weights: Checkpoint) -> "OrderedDict[str, torch.Tensor]":
    return OrderedDict((their_name(name), torch.from_numpy(array)) for name, array in weights.arrays.items())


def their_model(config: ViTConfig, state: "OrderedDict[str, torch.Tensor]") -> VisionTransformer:
    model = VisionTransformer(
        image_size=config.image_size[0],
        patch_size=config.patch_size[0],
        num_layers=config.depth,
        num_heads=config.heads,
        hidden_dim=config.width,
        mlp_dim=config.mlp_dim,
        num_classes=config.num_classes,
        representation_size=config.representation,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_epsilon),
    ).double()
    model.load_state_dict(state, strict=True)
    return model.eval()


def their_trace(
    model: VisionTransformer, config: ViTConfig, x_BHWC: np.ndarray, probe_BC: np.ndarray
) -> dict[str, np.ndarray]:
    """What vit_torch.trace gives, by torchvision's code alone: the output as in training, the stages as in use (where
    nn.MultiheadAttention takes its fast path), the attention weights as it gives them on demand."""
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)
    stages: dict[str, torch.Tensor] = {"output": model(x_BCHW)}
    (stages["output"] * torch.from_numpy(probe_BC)).sum().backward()
    found = dict(model.named_parameters())
    stages |= {f"grad.{name}": found[their_name(name)].grad for name in parameters(config)}

    def keep(name: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        stages[name] = output

    model.encoder.dropout.register_forward_hook(partial(keep, "embed"))
    for i, layer in enumerate(model.encoder.layers):
        layer.ln_1.register_forward_hook(partial(keep, f"blocks.{i}.attn"))
        layer.register_forward_hook(partial(keep, f"blocks.{i}"))
    model.encoder.ln.register_forward_hook(partial(keep, "norm"))
    with torch.no_grad():
        stages["logits"] = model(x_BCHW)
        for i, layer in enumerate(model.encoder.layers):
            x_BND = stages[f"blocks.{i}.attn"]
            _, stages[f"blocks.{i}.attn"] = layer.self_attention(x_BND, x_BND, x_BND, average_attn_weights=False)
    stages["pool"] = stages["norm"][:, 0]
    return {name: tensor.detach().numpy() for name, tensor in stages.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_everything_agrees(name: str) -> None:
    config = SMALL.replace(**FIELDS[name])
    weights, images = checkpoint(config), parity.probe(config, 1)
    theirs = their_trace(their_model(config, their_state(weights)), config, *images)
    assert_one_model(parity.compare(vit_torch.trace(vit_torch.load(weights), *images), theirs))


@pytest.mark.parametrize("size", [8, 20, 28])
def test_positions_resampled_at_load(size: int) -> None:
    weights, config = checkpoint(SMALL), SMALL.replace(image_size=size)
    images = parity.probe(config, 1)
    state = interpolate_embeddings(size, SMALL.patch_size[0], their_state(weights))
    ours, theirs = vit_torch.load(weights, image_size=size), their_trace(their_model(config, state), config, *images)
    assert_one_model(parity.compare(vit_torch.trace(ours, *images), theirs))


@pytest.mark.parametrize(
    ("variant", "image_size", "expected"),
    [
        ("B/16", 224, 86_567_656),
        ("B/16", 384, 86_859_496),
        ("B/32", 224, 88_224_232),
        ("L/16", 224, 304_326_632),
        ("L/16", 512, 305_174_504),
        ("L/32", 224, 306_535_400),
        ("H/14", 224, 632_045_800),
        ("H/14", 518, 633_470_440),
    ],
)
def test_published_counts(variant: str, image_size: int, expected: int) -> None:
    """As torchvision's weights say of themselves."""
    weights = torchvision.models.get_model_weights(f"vit_{variant.replace('/', '_').lower()}")
    counts = [w.meta["num_params"] for w in weights if w.meta["min_size"] == (image_size, image_size)]
    config = variants.variant(variant, image_size=image_size, num_classes=1000)
    assert counts
    assert set(counts) == {count(config)} == {expected}
