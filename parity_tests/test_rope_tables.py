"""Tables of rotary positions that PyTorch keeps on its device: when they are kept, and that results do not depend on
it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vit_torch
from vit_core import ViTConfig
from vit_torch.rope import kept_tables

MODEL = ViTConfig(
    image_size=16,
    patch_size=4,
    width=16,
    depth=1,
    heads=2,
    mlp_dim=16,
    num_classes=3,
    rope="dinov3",
    position_embedding="none",
)


@pytest.fixture(autouse=True)
def empty() -> None:
    kept_tables.cache_clear()


def test_they_are_made_once_for_a_grid_and_type() -> None:
    model, x_BCHW = vit_torch.from_seed(MODEL, 0), torch.randn(2, 3, 16, 16)
    first = model(x_BCHW)
    assert torch.equal(model(x_BCHW), first)
    assert kept_tables.cache_info()[:2] == (1, 1)
    model(torch.randn(2, 3, 16, 24), interpolate=True)
    model.double()(x_BCHW)
    assert kept_tables.cache_info()[:2] == (1, 3)


def test_training_uses_what_evaluation_made() -> None:
    model, x_BCHW = vit_torch.from_seed(MODEL, 0), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        model(x_BCHW)
    model(x_BCHW).sum().backward()
    assert kept_tables.cache_info().hits == 1
    assert model.blocks[0].attn.qkv.weight.grad is not None


@pytest.mark.slow
def test_what_stands_for_a_value_is_not_kept() -> None:
    """In tracing, in torch.compile and on fake tensors."""
    model, x_BCHW = vit_torch.from_seed(MODEL, 0).eval(), torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (x_BCHW,)).module()
    compiled = torch.compile(model, backend="eager")(x_BCHW)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x_BCHW))
    assert kept_tables.cache_info().currsize == 0
    expected = model(x_BCHW)
    torch.testing.assert_close(exported(x_BCHW), expected)
    torch.testing.assert_close(compiled, expected)
