"""The config of transformers' SigLIP 2 for images of any aspect ratio (NaFlex), and the values that it can express.

It differs from SigLIP in the patch projection, a Linear over flattened patches of any grid, and in the positions, which
are resampled from a square table for each image. For images of the table's grid the two are equal; for batches of other
images see vit_core.naflex. (SigLIP 2 for a fixed size has the model type of SigLIP.) Source: huggingface/transformers,
src/transformers/models/siglip2.
"""

from collections.abc import Mapping
from math import isqrt, prod
from typing import Any

from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.transformers.config_json import Tower, shown
from vit_core.checkpoints.formats.transformers.names import FAMILIES
from vit_core.config import ViTConfig
from vit_core.errors import InputError


class Siglip2Tower(Tower):
    """Finds the config of a Siglip2VisionModel, alone, with a classifier or with a text tower."""

    def patches(self) -> tuple[int, int, tuple[int, int]]:
        name = self.names.of("patch_embed.proj.weight")
        width, values = self.shape(name, 2)
        channels = self.fields.get("channels", self.said.get("num_channels", 3))
        patch = self.fields.get("patch_size", self.said.get("patch_size"))
        if patch is None:
            patch = isqrt(values // channels) if type(channels) is int and channels > 0 else None
            if patch and "patch_size" not in self.fields:
                why = f"for square patches of {channels} channels"
                self.assumptions.append(Assumption("patch_size", (patch, patch), why, "--set patch_size=HEIGHTxWIDTH"))
        sides = (patch, patch) if isinstance(patch, int) else tuple(patch or ())
        fits = len(sides) == 2 and all(type(one) is int and one > 0 for one in (channels, *sides))
        if not fits or prod(sides) * channels != values:
            raise InputError(
                f"{self.where}: {name} expects {values} values of a patch, not those of patch_size {shown(patch)} and "
                f"{shown(channels)} channels; use --set patch_size=HEIGHTxWIDTH and --set channels=N"
            )
        return width, channels, (sides[0], sides[1])

    def image_size(self, found: Mapping[str, Any]) -> tuple[int, int]:
        rows, patch = self.shape(self.names.of("pos_embed"), 2)[0], found["patch_size"]
        side = isqrt(rows)
        if side * side != rows:
            raise InputError(f"{self.where}: {rows} positions do not form a square grid, which Siglip2 needs")
        if (said := self.said.get("num_patches", rows)) != rows:
            self.disagree("num_patches", said, rows)
        return side * patch[0], side * patch[1]


def allowed_values(model: ViTConfig) -> dict[str, Values]:
    """Field -> allowed values, for the fields in which SigLIP and SigLIP 2 differ from the plain ViT."""
    without: dict[str, Values] = {"class_token": (False,), "class_token_position": (False,)}
    if model.num_classes and model.pooling != "map":
        return {**without, "pooling": ("gap",)}
    return {**without, "pooling": ("map", "gap"), "num_classes": (0,)}


def kept_out_by(model: ViTConfig) -> list[str]:
    """The fields of a model that SigLIP's classes cannot express."""
    plain = plain_vit_with(model, activation=ANY, norm_epsilon=ANY, **allowed_values(model))
    return [name for name, values in plain.items() if values != ANY and getattr(model, name) not in values]


def check_resampling(model: ViTConfig, where: object) -> None:
    """Raises InputError if a model resamples positions by another method than the class, which would change the outputs
    for nearly every image. (For a model of one image size, where nothing is resampled, other code adds a note.)"""
    there = FAMILIES["siglip2_vision_model"].resampling
    if model.position_resampling != there:
        raise InputError(
            f"{where}: transformers' Siglip2 cannot express position_resampling '{model.position_resampling}' (it has "
            f"'{there}'), by which positions of each image are computed; --method {there} changes the model's"
        )
