"""Refuses models whose patches overlap, as the image size and the stride that a file states show.

TransReID, AST and others take patches of P pixels every s < P pixels: an image of S pixels has (S - P) / s + 1 of them
in a row. The arrays are those of a model without overlap for larger images.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vit_core.config import ViTConfig
from vit_core.errors import InputError

Pair = tuple[int, int]
_STRIDES = ("stride_size", "patch_stride", "stride")
"""Names that scripts give to the stride of patches. The last may also be that of something else."""


def check_overlap(
    model: ViTConfig, mappings: Iterable[tuple[tuple[str, ...], Mapping[Any, Any]]], size: Pair | None, where: object
) -> None:
    """Raises InputError if the stated values are those of a model with patches that overlap.

    model: that of the arrays without overlap. mappings: what the file states. size: the stated image size, if it does
    not fit the positions.
    """
    said = [(name, stride) for _, values in mappings for name in _STRIDES if (stride := _pair(values.get(name)))]
    patch = model.patch_size
    smaller = [(name, stride) for name, stride in said if stride != patch and max(stride) <= min(patch)]
    fitting = [stride for name, stride in smaller if (not size and name != "stride") or _fits(model, size, stride)]
    if size:
        between = [side - width for side, width in zip(size, patch, strict=True)]
        exact = [(step, step) for step in range(1, min(patch)) if not any(rest % step for rest in between)]
        fitting += [stride for stride in exact if _fits(model, size, stride)]
    if fitting:
        every = f"patches of {patch[0]}x{patch[1]} every {fitting[0][0]}x{fitting[0][1]} pixels"
        what = f"the positions fit the stated images of {size[0]}x{size[1]} with {every}" if size else f"states {every}"
        raise InputError(
            f"{where}: {what}; patches that overlap cannot be expressed by ViTConfig; if they do not overlap, use "
            f"--set image_size={model.image_size[0]}x{model.image_size[1]}"
        )


def _fits(model: ViTConfig, size: Pair | None, stride: Pair) -> bool:
    if size is None:
        return False
    sides = zip(size, model.patch_size, stride, strict=True)
    return tuple((side - patch) // step + 1 for side, patch, step in sides) == model.grid


def _pair(value: Any) -> Pair | None:
    sides = [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    return (sides[0], sides[1]) if len(sides) == 2 and all(type(x) is int and x > 0 for x in sides) else None
