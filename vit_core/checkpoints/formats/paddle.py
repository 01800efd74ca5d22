"""Converts weights of Paddle, whose Linear has the shape [inputs, outputs]. PaddleClas's ViT and DeiT have timm's
names.

Source: PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/vision_transformer.py and its distilled one.
"""

import re

from vit_core.arrays import LazyArray, LazyArrays, contiguous

NOTE = "weights of layers: transposed, because Paddle stores them as [inputs, outputs]"
_WIDENING = re.compile(r"blocks\.\d+\.(attn\.qkv|mlp\.fc1)\.weight")
"""Weights of layers that usually have more outputs than inputs."""


def is_transposed(arrays: LazyArrays) -> bool:
    """Whether the weights have the shape [inputs, outputs], which `qkv` shows because it has three times more outputs
    than inputs."""
    shapes = arrays.shapes
    width = (*shapes.get("patch_embed.proj.weight", ()), 0)[0]
    widening = {name: shape for name, shape in shapes.items() if _WIDENING.fullmatch(name)}
    queries = [shape for name, shape in widening.items() if name.endswith("qkv.weight")]
    biased = (shapes.get(name.replace("weight", "bias"), shape[-1:]) == shape[-1:] for name, shape in widening.items())
    return bool(width and queries) and all(shape == (width, 3 * width) for shape in queries) and all(biased)


def as_in_pytorch(arrays: LazyArrays) -> LazyArrays:
    """The same arrays, with the weights of Linears as [outputs, inputs]."""
    return LazyArrays({name: _as_in_pytorch(name, entry) for name, entry in arrays.entries.items()})


def _as_in_pytorch(name: str, entry: LazyArray) -> LazyArray:
    if len(entry.shape) != 2 or not name.endswith(".weight"):
        return entry
    return entry.then(lambda weight: contiguous(weight.T), entry.shape[::-1], entry.dtype)
