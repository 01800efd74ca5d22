"""Paddle's Linear keeps its weight as [inputs, outputs]: PaddleClas's ViT and DeiT have timm's names and such weights.

Lineage: PaddlePaddle/PaddleClas, ppcls/arch/backbone/model_zoo/vision_transformer.py and its
distilled one.
"""

import re

from vit_core.arrays import LazyArray, LazyArrays, contiguous

NOTE = "weights of layers: transposed, as Paddle keeps them (inputs before outputs)"
_WIDENING = re.compile(r"blocks\.\d+\.(attn\.qkv|mlp\.fc1)\.weight")
"""Layers that have other numbers of outputs than of inputs, or may have."""


def is_transposed(arrays: LazyArrays) -> bool:
    """Whether the layers of all blocks have their inputs first, as the three outputs for each input of `qkv` show."""
    shapes = arrays.shapes
    width = (*shapes.get("patch_embed.proj.weight", ()), 0)[0]
    widening = {name: shape for name, shape in shapes.items() if _WIDENING.fullmatch(name)}
    queries = [shape for name, shape in widening.items() if name.endswith("qkv.weight")]
    biased = (shapes.get(name.replace("weight", "bias"), shape[-1:]) == shape[-1:] for name, shape in widening.items())
    return bool(width and queries) and all(shape == (width, 3 * width) for shape in queries) and all(biased)


def as_in_pytorch(arrays: LazyArrays) -> LazyArrays:
    """The same arrays with the weights of Linears as [outputs, inputs]."""
    return LazyArrays({name: _as_in_pytorch(name, entry) for name, entry in arrays.entries.items()})


def _as_in_pytorch(name: str, entry: LazyArray) -> LazyArray:
    if len(entry.shape) != 2 or not name.endswith(".weight"):
        return entry
    return entry.then(lambda weight: contiguous(weight.T), entry.shape[::-1], entry.dtype)
