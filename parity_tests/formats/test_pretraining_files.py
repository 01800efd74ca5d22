"""Files of masked image modeling and of dual encoders: the encoder is read, what only pretraining uses is left out.

Outputs agree with those of the libraries to parity.FLOAT64_BOUND, 1e-12.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel, ViTConfig

from parity_tests.formats.foreign import images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.errors import InputError

SIZES: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
SHARED: dict[str, Any] = {"init_values": 0.1, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": False}


def assert_opens(path: Path, model: nn.Module, left_out: tuple[str, ...], **fields: Any) -> None:
    found = opened(path, **fields)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert f"left out: {', '.join(left_out)}" in found.notes


def test_beits_pretraining(tmp_path: Path) -> None:
    """As microsoft/unilm releases it: the head predicts visual words of hidden patches."""
    model = randomized(Beit(**SIZES, **SHARED, num_classes=0, global_pool="token"))
    head = {"mask_token": torch.ones(1, 1, 24), "lm_head.weight": torch.ones(30, 24), "lm_head.bias": torch.ones(30)}
    torch.save({"model": {**model.state_dict(), **head}}, tmp_path / "x.pth")
    assert_opens(tmp_path / "x.pth", model, ("mask_token", "lm_head.weight", "lm_head.bias"), heads=3, pooling="cls")


@pytest.mark.parametrize("shared", [False, True])
def test_simmim(shared: bool, tmp_path: Path) -> None:
    """As microsoft/SimMIM releases it, with one relative table for all layers, or with absolute positions."""
    options = SHARED if shared else {"init_values": 0.1, "use_rel_pos_bias": False, "use_abs_pos_emb": True}
    model = randomized(Beit(**SIZES, **options, num_classes=0, global_pool="token"))
    state = {f"encoder.{name}": x for name, x in model.state_dict().items()}
    decoder = {"decoder.0.weight": torch.ones(48, 24, 1, 1), "decoder.0.bias": torch.ones(48)}
    torch.save({"model": {**state, "encoder.mask_token": torch.ones(1, 1, 24), **decoder}}, tmp_path / "x.pth")
    assert_opens(tmp_path / "x.pth", model, ("mask_token", "decoder"), heads=3, pooling="cls")


def test_the_image_tower_of_a_dual_encoder(tmp_path: Path) -> None:
    """transformers' VisionTextDualEncoder: the output of the tower, before the projection that both towers have."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    towers = ViTConfig(**sizes, image_size=12, patch_size=4), BertConfig(**sizes, vocab_size=30)
    model = randomized(VisionTextDualEncoderModel(VisionTextDualEncoderConfig.from_vision_text_configs(*towers)))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=3)
    with torch.no_grad():
        expected = model.vision_model(nchw(images(found.config.model))).pooler_output
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def test_a_model_without_a_last_norm(tmp_path: Path) -> None:
    """Its arrays are those of a damaged file; the error states the choice."""
    model = randomized(VisionTransformer(**SIZES, num_classes=5, final_norm=False))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"missing norm.bias \[24\]; use --set final_norm=none for a model without"):
        opened(tmp_path / "x.pth", heads=3)
    found = opened(tmp_path / "x.pth", heads=3, final_norm="none")
    with torch.no_grad():
        assert (expected := model(nchw(images(found.config.model)))).shape == (len(expected), 5)
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
