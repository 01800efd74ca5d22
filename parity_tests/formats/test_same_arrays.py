"""Towers of transformers that have the arrays of another: the same outputs, a typed assumption, or a refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import vit_torch
from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, opened, randomized, save
from vit_core import open_checkpoint, parity
from vit_core.checkpoints import inspection
from vit_core.errors import InputError

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 4,
}
FLOAT32 = 1e-5
"""Both classes compute something in float32 whatever the model is in: Phi-4 its softmax, Cosmos its positions."""


def built(name: str, **options: Any) -> Any:
    kind = getattr(hf, name)
    return randomized(kind._from_config(kind.config_class(**options), attn_implementation="eager"))


def test_phi_4_has_siglips_tower(tmp_path: Path) -> None:
    """By its own attention; with torch's, its class computes a causal one where no patch is masked."""
    model = built("Phi4MultimodalVisionModel", **SIZES, image_size=12)
    found = opened(save(tmp_path / "file.pth", model.state_dict()), heads=3)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model))).pooler_output
    assert largest_difference(found, expected) < FLOAT32


def test_cosmos_has_siglip_2s_tower(tmp_path: Path) -> None:
    """Its patches come in blocks of 2x2, in which order its mean does not show."""
    model = built("Cosmos3EdgeVisionModel", **SIZES, num_patches=16)
    found = opened(save(tmp_path / "file.pth", model.state_dict()), heads=3)
    assert "model_type" not in assumed(found)
    x_BHWC = images(found.config.model)[:1]
    blocks = torch.from_numpy(x_BHWC[0]).reshape(2, 2, 4, 2, 2, 4, 3).permute(0, 3, 1, 4, 2, 5, 6).reshape(16, -1)
    with torch.no_grad():
        expected = model(blocks, torch.tensor([[1, 4, 4]])).last_hidden_state.mean(0, keepdim=True).numpy()
    ours = vit_torch.predict(vit_torch.load(found, dtype="float64"), x_BHWC)
    assert parity.difference(ours, expected)[1] < FLOAT32


@pytest.mark.parametrize(
    ("name", "options", "model_type"),
    [
        ("SiglipVisionModel", {"image_size": 12}, "siglip_vision_model"),
        ("PaddleOCRVisionModel", {"image_size": 12}, "siglip_vision_model"),
        ("Dinov2Model", {"image_size": 12}, "dinov2"),
        ("RfDetrDinov2Backbone", {"image_size": 12, "num_windows": 1}, "dinov2"),
    ],
)
def test_of_two_networks_the_one_taken_is_said(
    name: str, options: dict[str, Any], model_type: str, tmp_path: Path
) -> None:
    state = built(name, **SIZES, **options).state_dict()
    (said,) = [
        one for one in opened(save(tmp_path / "file.pth", state), heads=3).assumptions if one.field == "model_type"
    ]
    assert said.value == model_type
    assert "has the same arrays" in said.why
    assert "config.json" in said.alternatives
    shown = inspection.description(open_checkpoint(tmp_path / "file.pth", fields={"heads": 3}))["assumptions"]
    assert json.loads(json.dumps(shown)) == shown
    assert {"field": "model_type", "value": model_type, "why": said.why, "alternatives": said.alternatives} in shown


def test_the_warning_names_the_other_way_to_decide(tmp_path: Path) -> None:
    """model_type is no field that can be stated."""
    path = save(tmp_path / "file.pth", built("Dinov2Model", **SIZES, image_size=12).state_dict())
    with pytest.warns(UserWarning, match="assumed: ") as warned:
        vit_torch.load(path, fields={"heads": 3})
    settable, _, decided = str(warned[0].message).partition("; set others with fields=; ")
    assert "norm_epsilon=" in settable
    assert "model_type" not in settable
    assert decided.startswith("model_type: dinov2, by its names; RF-DETR")
    assert decided.endswith("give the folder with its config.json, which shows which it is")


@pytest.mark.parametrize(
    ("tower", "beside"),
    [
        ("backbone.backbone.", "backbone.projector.projector_layer.conv1.conv.weight"),
        ("backbone.0.encoder.encoder.", "backbone.0.projector.stages.0.0.cv1.conv.weight"),
    ],
)
def test_what_stands_beside_a_tower_may_decide(tower: str, beside: str, tmp_path: Path) -> None:
    """As transformers saves RF-DETR, and as its own project does."""
    backbone = built("RfDetrDinov2Backbone", **SIZES, image_size=12, num_windows=1).state_dict()
    state = {f"{tower}{name}": x for name, x in backbone.items()}
    state[beside] = torch.ones(2, 2, 1, 1)
    with pytest.raises(InputError, match="attention within windows, as in RF-DETR, which ViTConfig cannot express"):
        opened(save(tmp_path / "file.pth", state), heads=3)
