"""Rotary positions on the device of the model: another one than the tables' is told by tensors without values."""

import pytest
import torch

from vit_core import ViTConfig
from vit_torch.rope import positions

MODEL = ViTConfig(
    image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_dim=16, num_classes=2, rope={"jitter": 2.0},
    position_embedding="none",
)  # fmt: skip


@pytest.mark.parametrize("rope", [MODEL.rope, "mixed"], ids=["fixed", "mixed"])
@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_everything_is_on_the_device_of_the_model(rope: object, change: bool, traced: bool) -> None:
    augmentation_22 = torch.ones(2, 2, device="meta") if change else None
    found = positions(MODEL.replace(rope=rope), (2, 2), torch.zeros((), device="meta"), augmentation_22, traced)
    assert found
    assert all(table.is_meta and table.dtype == torch.float32 for table in found.values())
