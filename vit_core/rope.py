"""Rotary positions (RoPE): the schema of its published variants. vit_core/rotations.py computes their angles.

The queries and keys of a patch token at coordinates (y, x) are rotated pair of values by pair of values, by angles that
are sums of coordinate times frequency. Variants differ in the coordinates, the frequencies, and the values that form a
pair:

    variant                  coordinates                     frequencies          pairs
    DINOv3, LingBot          centered, in [-1, 1] * 2 pi     base^-(i / (K / 4))  value i with i + K / 2
    EVA-02                   grid, scaled to a reference     likewise             neighbours
    Perception Encoder (PE)  grid, x before y, from 1 on     likewise             neighbours
    rope-vit axial           grid, x before y                likewise             neighbours
    rope-vit mixed           grid, x before y                learned              neighbours
    ViT-5                    grid                            likewise             neighbours

Tokens before the patches (class token, registers) are not rotated: their angle is zero, so that cos 1 and sin 0 leave
them unchanged, bit for bit. Only ViT-5 rotates its registers, which are on a separate grid. K is the width of a head.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vit_core.schema import Positive, Real, Schema


class Rope(Schema):
    """Rotary positions in two dimensions (RoFormer, arXiv:2104.09864; for ViTs arXiv:2403.13298). The defaults are
    DINOv3's (arXiv:2508.10104)."""

    frequencies: Literal["axial", "mixed"] = "axial"
    """"axial": half of a head's pairs rotate with y, half with x, by fixed frequencies. "mixed": learned frequencies
    for both, in every block and head (rope-vit)."""
    coordinates: Literal["centered", "grid"] = "centered"
    """"centered": the centers of the patches, from -1 to 1 across the image, times 2 pi. "grid": 0, 1, 2, ..."""
    normalize: Literal["separate", "min", "max"] = "separate"
    """Centered coordinates: each axis divided by its own side, or both by the shorter or the longer side."""
    offset: Real = 0.0
    """Added to the patch numbers 0, 1, 2, ... of both axes."""
    reference: tuple[Positive, Positive] | None = None
    """Grid coordinates are scaled as if the grid had these sides (EVA-02's and PE's pretraining grid), or not."""
    axes: Literal["yx", "xy"] = "yx"
    """The axis whose pairs come first."""
    base: Annotated[Real, Field(gt=0.0)] = 100.0
    """Longest period (of fixed frequencies, and of the initial values of learned ones)."""
    pairs: Literal["halves", "neighbours"] = "halves"
    """Which values of a head are rotated together: i and i + K / 2 ("rotate half"), or 2 i and 2 i + 1."""
    periods: Literal["float64", "float32", "bfloat16"] = "float64"
    """Type to which fixed periods are rounded. Meta's DINOv3 was trained with bfloat16."""
    register_base: Annotated[Real, Field(gt=0.0)] | None = None
    """Longest period of register tokens, which are then on a separate square grid with coordinates 0, 1, ... (ViT-5,
    arXiv:2602.08071); none: they are not rotated."""
    shift: Annotated[Real, Field(ge=0.0)] | None = None
    """Training: both coordinates are moved by amounts drawn from [-shift, shift]."""
    jitter: Annotated[Real, Field(ge=1.0)] | None = None
    """Training: each coordinate is scaled by a factor drawn log-uniformly from [1 / jitter, jitter]."""
    rescale: Annotated[Real, Field(ge=1.0)] | None = None
    """Training: both coordinates are scaled by one factor drawn log-uniformly from [1 / rescale, rescale]."""

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.coordinates == "grid" and self.normalize != "separate":
            raise ValueError("normalize: grid coordinates are not normalized; leave it 'separate'")
        if self.coordinates == "centered" and self.reference:
            raise ValueError("reference: centered coordinates need none; leave it out, or set coordinates 'grid'")
        if self.frequencies == "mixed" and self.coordinates == "centered":
            raise ValueError("frequencies: 'mixed' needs coordinates 'grid'")
        if self.frequencies == "mixed" and self.pairs == "halves":
            raise ValueError("frequencies: 'mixed' needs pairs 'neighbours'")
        if self.frequencies == "mixed" and self.periods != "float64":
            raise ValueError("periods: learned frequencies are not rounded; leave it 'float64'")
        if self.frequencies == "mixed" and self.register_base is not None:
            raise ValueError("register_base: learned frequencies have none for registers; leave it out")
        return self

    def __str__(self) -> str:
        """The name of a published variant, or the fields that are not the defaults, as in JSON."""
        name = next((name for name, fields in PUBLISHED.items() if Rope(**fields) == self), None)
        return name or json.dumps(self.model_dump(exclude_defaults=True), separators=(",", ":"))

    @property
    def is_augmented(self) -> bool:
        """Whether training draws new coordinates at each step."""
        return self != self.trained

    @property
    def trained(self) -> Self:
        """The same positions without the random changes of training: those that a trained network computes."""
        return self.replace(shift=None, jitter=None, rescale=None)


PUBLISHED: dict[str, dict[str, Any]] = {
    "dinov3": {},
    "eva02": {"coordinates": "grid", "base": 10_000.0, "pairs": "neighbours", "reference": (16, 16)},
    "pe": {"coordinates": "grid", "base": 10_000.0, "pairs": "neighbours", "axes": "xy", "offset": 1.0},
    "axial": {"coordinates": "grid", "base": 100.0, "pairs": "neighbours", "axes": "xy"},
    "mixed": {"coordinates": "grid", "base": 10.0, "pairs": "neighbours", "axes": "xy", "frequencies": "mixed"},
    "vit5": {"coordinates": "grid", "base": 10_000.0, "pairs": "neighbours", "register_base": 100.0},
}
"""Name -> fields of a published variant: DINOv3, EVA-02, the Perception Encoder, rope-vit's axial and mixed, ViT-5."""
