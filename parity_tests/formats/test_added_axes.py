"""Arrays of timm's names in another form: tokens and positions without axes of length 1, LayerNorm without biases."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint

SIZES: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 1, "num_classes": 5}


def assert_same(found: Checkpoint, model: nn.Module) -> None:
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("key", ["", "model"], ids=["timm", "meta"])
def test_tokens_and_positions_without_axes_of_one(key: str, tmp_path: Path) -> None:
    model = randomized(VisionTransformer(**SIZES, reg_tokens=0 if key else 3))
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (24,), "reg_token": (3, 24), "pos_embed": (-1, 24)}
    state = {name: x.reshape(shapes.get(name, x.shape)) for name, x in model.state_dict().items()}
    torch.save({key: state} if key else state, tmp_path / "x.pth")
    assert_same(opened(tmp_path / "x.pth"), model)


def test_norms_without_biases(tmp_path: Path) -> None:
    """They are RMSNorm's, or those of LayerNorm(bias=False): which one is assumed, and can be set."""
    norm = partial(nn.LayerNorm, eps=1e-6, bias=False)
    model = randomized(VisionTransformer(**SIZES, norm_layer=norm, qk_norm=True, global_pool="avg"))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    assert assumed(opened(tmp_path / "x.pth"))["norm"] == "rms_norm"
    assert_same(opened(tmp_path / "x.pth", norm="layer_norm"), model)
    torch.save(model, tmp_path / "x.pth")
    assert_same(opened(tmp_path / "x.pth"), model)
