"""The ResNet before the patches of Google's hybrids in Flax NNX. Read it beside vit_torch/stem.py.

Both follow vit_jax/models_resnet.py of google-research/vision_transformer: norms after the convolutions, which have no
bias and standardized weights, and padding as TensorFlow's "SAME". Names are those of timm's ResNetV2.
Images are NHWC here; I and O are the channels into and out of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_jax.layers import identity

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

WEIGHT_EPSILON = 1e-5
"""Added to the standard deviation of weights (timm adds 1e-8 to their variance)."""
NORM_EPSILON = 1e-6
"""Epsilon of GroupNorm, independent of norm_epsilon (timm's is 1e-5)."""


def group_norm(channels: int) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=32, epsilon=NORM_EPSILON, use_fast_variance=False, rngs=nnx.Rngs(0))


class StdConv(nnx.Module):
    """A convolution with weights of mean 0 and variance 1 for each output (arXiv:1903.10520)."""

    def __init__(self, into: int, out: int, size: int, stride: int = 1) -> None:
        self.size, self.stride = size, stride
        self.kernel = nnx.Param(jnp.zeros((size, size, into, out)))

    def __call__(self, x_BHWI: Array) -> Array:
        precise = jnp.promote_types(self.kernel.dtype, jnp.float32)
        kernel_HWIO = standardized(self.kernel[...].astype(precise)).astype(x_BHWI.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x_BHWI, kernel_HWIO, (self.stride, self.stride), "SAME", dimension_numbers=layout
        )


def standardized(kernel_HWIO: Array) -> Array:
    kernel_HWIO = kernel_HWIO - kernel_HWIO.mean(axis=(0, 1, 2), keepdims=True)
    return kernel_HWIO / (kernel_HWIO.std(axis=(0, 1, 2), keepdims=True) + WEIGHT_EPSILON)


class Root(nnx.Module):
    """The root: images to feature maps with a quarter of their height and width."""

    def __init__(self, config: ViTConfig) -> None:
        self.conv = StdConv(config.channels, config.stem_width, 7, stride=2)
        self.norm = group_norm(config.stem_width)

    def __call__(self, x_BHWC: Array) -> Array:
        x_BHWO = jax.nn.relu(self.norm(self.conv(x_BHWC)))
        return nnx.max_pool(x_BHWO, (3, 3), strides=(2, 2), padding="SAME")


class Downsample(nnx.Module):
    """The shortcut of a stage's first unit: a convolution of size 1 to the unit's channels and stride, and its norm."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        self.conv = StdConv(into, out, 1, stride)
        self.norm = group_norm(out)

    def __call__(self, x_BHWI: Array) -> Array:
        return self.norm(self.conv(x_BHWI))


class Unit(nnx.Module):
    """A bottleneck; the first of each stage changes the number of channels, and the shortcut with it."""

    def __init__(self, into: int, inner: int, stride: int, first: bool) -> None:
        self.downsample = Downsample(into, 4 * inner, stride) if first else identity
        self.conv1 = StdConv(into, inner, 1)
        self.norm1 = group_norm(inner)
        self.conv2 = StdConv(inner, inner, 3, stride)
        self.norm2 = group_norm(inner)
        self.conv3 = StdConv(inner, 4 * inner, 1)
        self.norm3 = group_norm(4 * inner)

    def __call__(self, x_BHWI: Array) -> Array:
        y_BHWO = jax.nn.relu(self.norm1(self.conv1(x_BHWI)))
        y_BHWO = jax.nn.relu(self.norm2(self.conv2(y_BHWO)))
        y_BHWO = self.norm3(self.conv3(y_BHWO))
        return jax.nn.relu(self.downsample(x_BHWI) + y_BHWO)


class Stage(nnx.Module):
    """Bottleneck units on maps of one size; the first one has the stride (ResNet, arXiv:1512.03385, section 4.1)."""

    def __init__(self, units: int, into: int, inner: int, stride: int) -> None:
        first = Unit(into, inner, stride, first=True)
        self.blocks = nnx.List([first] + [Unit(4 * inner, inner, 1, first=False) for _ in range(units - 1)])

    def __call__(self, x_BHWI: Array) -> Array:
        for block in self.blocks:
            x_BHWI = block(x_BHWI)
        return x_BHWI


class ResNet(nnx.Module):
    """Root and stages; each stage has twice the channels of the one before, on maps half as high and wide."""

    def __init__(self, config: ViTConfig, layers: tuple[int, ...]) -> None:
        self.stem = Root(config)
        width, stages = config.stem_width, []
        for i, units in enumerate(layers):
            into, stride = (width, 1) if i == 0 else (4 * width * 2 ** (i - 1), 2)
            stages.append(Stage(units, into, width * 2**i, stride))
        self.stages = nnx.List(stages)

    def __call__(self, x_BHWC: Array) -> Array:
        x_BHWO = self.stem(x_BHWC)
        for stage in self.stages:
            x_BHWO = stage(x_BHWO)
        return x_BHWO


def backbone(config: ViTConfig) -> Callable[[Array], Array]:
    """The ResNet before the patch projection, or the identity."""
    if config.stem_layers is None:
        return identity
    return ResNet(config, config.stem_layers) if config.stem_layers else Root(config)
