"""The ResNet before the patches of Google's hybrids in PyTorch. Read it beside vit_jax/stem.py.

Both follow vit_jax/models_resnet.py of google-research/vision_transformer: norms after the convolutions, which have no
bias and standardized weights, and padding as TensorFlow's "SAME". Names are those of timm's ResNetV2.
Images are NCHW here; I and O are the channels into and out of a convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor as Array
from torch import nn

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


WEIGHT_EPSILON = 1e-5
"""Added to the standard deviation of weights (timm adds 1e-8 to their variance)."""
NORM_EPSILON = 1e-6
"""Epsilon of GroupNorm, independent of norm_epsilon (timm's is 1e-5)."""


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=NORM_EPSILON)


class StdConv(nn.Module):
    """A convolution with weights of mean 0 and variance 1 for each output (arXiv:1903.10520)."""

    def __init__(self, into: int, out: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.weight = nn.Parameter(torch.zeros((out, into, size, size)))

    def forward(self, x_BIHW: Array) -> Array:
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        weight_OIHW = standardized(self.weight.to(precise)).to(x_BIHW.dtype)
        return F.conv2d(same(x_BIHW, self.size, self.stride), weight_OIHW, stride=self.stride)


def standardized(weight_OIHW: Array) -> Array:
    weight_OIHW = weight_OIHW - weight_OIHW.mean(dim=(1, 2, 3), keepdim=True)
    return weight_OIHW / (weight_OIHW.std(dim=(1, 2, 3), correction=0, keepdim=True) + WEIGHT_EPSILON)


def same(x_BIHW: Array, size: int, stride: int, value: float = 0.0) -> Array:
    """Padded as TensorFlow and XLA do: as many outputs as strides fit, the odd row below and the odd column right."""
    rows, columns = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x_BIHW.shape[2:])
    return F.pad(x_BIHW, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=value)


class Root(nn.Module):
    """The root: images to feature maps with a quarter of their height and width."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.conv = StdConv(config.channels, config.stem_width, 7, stride=2)
        self.norm = group_norm(config.stem_width)

    def forward(self, x_BCHW: Array) -> Array:
        x_BOHW = F.relu(self.norm(self.conv(x_BCHW)))
        return F.max_pool2d(same(x_BOHW, 3, 2, value=-torch.inf), 3, stride=2)


class Downsample(nn.Module):
    """The shortcut of a stage's first unit: a convolution of size 1 to the unit's channels and stride, and its norm."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = StdConv(into, out, 1, stride)
        self.norm = group_norm(out)

    def forward(self, x_BIHW: Array) -> Array:
        return self.norm(self.conv(x_BIHW))


class Unit(nn.Module):
    """A bottleneck; the first of each stage changes the number of channels, and the shortcut with it."""

    def __init__(self, into: int, inner: int, stride: int, first: bool) -> None:
        super().__init__()
        self.downsample = Downsample(into, 4 * inner, stride) if first else nn.Identity()
        self.conv1 = StdConv(into, inner, 1)
        self.norm1 = group_norm(inner)
        self.conv2 = StdConv(inner, inner, 3, stride)
        self.norm2 = group_norm(inner)
        self.conv3 = StdConv(inner, 4 * inner, 1)
        self.norm3 = group_norm(4 * inner)

    def forward(self, x_BIHW: Array) -> Array:
        y_BOHW = F.relu(self.norm1(self.conv1(x_BIHW)))
        y_BOHW = F.relu(self.norm2(self.conv2(y_BOHW)))
        y_BOHW = self.norm3(self.conv3(y_BOHW))
        return F.relu(self.downsample(x_BIHW) + y_BOHW)


class Stage(nn.Module):
    """Bottleneck units on maps of one size; the first one has the stride (ResNet, arXiv:1512.03385, section 4.1)."""

    def __init__(self, units: int, into: int, inner: int, stride: int) -> None:
        super().__init__()
        first = Unit(into, inner, stride, first=True)
        self.blocks = nn.ModuleList([first] + [Unit(4 * inner, inner, 1, first=False) for _ in range(units - 1)])

    def forward(self, x_BIHW: Array) -> Array:
        for block in self.blocks:
            x_BIHW = block(x_BIHW)
        return x_BIHW


class ResNet(nn.Module):
    """Root and stages; each stage has twice the channels of the one before, on maps half as high and wide."""

    def __init__(self, config: ViTConfig, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Root(config)
        width, stages = config.stem_width, []
        for i, units in enumerate(layers):
            into, stride = (width, 1) if i == 0 else (4 * width * 2 ** (i - 1), 2)
            stages.append(Stage(units, into, width * 2**i, stride))
        self.stages = nn.ModuleList(stages)

    def forward(self, x_BCHW: Array) -> Array:
        x_BOHW = self.stem(x_BCHW)
        for stage in self.stages:
            x_BOHW = stage(x_BOHW)
        return x_BOHW


def backbone(config: ViTConfig) -> nn.Module:
    """The ResNet before the patch projection, or the identity."""
    if config.stem_layers is None:
        return nn.Identity()
    return ResNet(config, config.stem_layers) if config.stem_layers else Root(config)
