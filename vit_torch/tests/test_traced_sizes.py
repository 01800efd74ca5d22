"""torch.compile and torch.export of a model whose image size is a symbol: the outputs are those of the eager model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import vit_torch
from vit_core import ViTConfig

MODEL = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_dim=16, num_classes=3)
BOUND = 1e-12
"""float64; the positions are resampled one axis at a time instead of in one product, which reorders its sums."""
SIZES = ((16, 12), (8, 8), (20, 24))
"""Height and width; the second is the config's own, where no method changes the positions."""


class AnySize(nn.Module):
    """The model for images of any size."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.model = vit_torch.from_seed(config, 0, dtype="float64").eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x_BCHW: Tensor) -> Any:
        return self.model(x_BCHW, interpolate=True)


def assert_equal_outputs(traced: Callable[[Tensor], Tensor], eager: AnySize) -> None:
    for height, width in SIZES:
        x_BCHW = torch.rand(2, 3, height, width, dtype=torch.float64)
        expected = eager(x_BCHW)
        assert (traced(x_BCHW) - expected).abs().max() <= BOUND * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"position_resampling": "dinov2"}, {"position_embedding": "sincos2d_mae"}])
def test_compiled_without_a_break(fields: dict[str, Any]) -> None:
    model = AnySize(MODEL.replace(**fields))
    with torch.no_grad():
        assert_equal_outputs(torch.compile(model, fullgraph=True, dynamic=True, backend="eager"), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"position_resampling": "dinov2"},
        {"position_resampling": "bicubic_antialias", "pooling": "map", "class_token": False},
        {"position_resampling": "zoom_linear", "registers": 2, "class_token_position": True},
        {"position_embedding": "sincos2d_big_vision"},
    ],
)
def test_exported_with_dynamic_height_and_width(fields: dict[str, Any]) -> None:
    model = AnySize(MODEL.replace(**fields)).eval()
    sizes = {"x_BCHW": {2: 4 * Dim("h", min=2, max=64), 3: 4 * Dim("w", min=2, max=64)}}
    with torch.no_grad():
        example = torch.rand(2, 3, *SIZES[0], dtype=torch.float64)
        assert_equal_outputs(torch.export.export(model, (example,), dynamic_shapes=sizes).module(), model)
