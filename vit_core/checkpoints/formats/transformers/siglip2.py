"""transformers' SigLIP 2 for images of any aspect (NaFlex): what its files and its config.json say, and can hold.

It is SigLIP with a patch projection that is a Linear over patches cut before, of any grid, and with positions that
are resampled from a square table for each image. On images of the table's own grid the two are one model; batches of
any aspect are vit_core.naflex. (SigLIP 2 for a fixed size is SigLIP to transformers.)
Lineage: huggingface/transformers, src/transformers/models/siglip2.
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
    """A Siglip2VisionModel, alone, with a classifier or beside a text tower, while its config is being found."""

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
                f"{self.where}: {name} reads {values} values of a patch, which patch_size {shown(patch)} and "
                f"{shown(channels)} channels do not give; use --set patch_size=HEIGHTxWIDTH and --set channels=N"
            )
        return width, channels, (sides[0], sides[1])

    def image_size(self, found: Mapping[str, Any]) -> tuple[int, int]:
        rows, patch = self.shape(self.names.of("pos_embed"), 2)[0], found["patch_size"]
        side = isqrt(rows)
        if side * side != rows:
            raise InputError(f"{self.where}: {rows} positions form no square grid, from which Siglip2 resamples")
        if (said := self.said.get("num_patches", rows)) != rows:
            self.disagree("num_patches", said, rows)
        return side * patch[0], side * patch[1]


def allowed_values(model: ViTConfig) -> dict[str, Values]:
    """Values of the fields in which SigLIP, of either kind, is no plain ViT: with a classifier, or without."""
    without: dict[str, Values] = {"class_token": (False,), "class_token_position": (False,)}
    if model.num_classes and model.pooling != "map":
        return {**without, "pooling": ("gap",)}
    return {**without, "pooling": ("map", "gap"), "num_classes": (0,)}


def kept_out_by(model: ViTConfig) -> list[str]:
    """The fields in which a model is none that its classes hold."""
    plain = plain_vit_with(model, activation=ANY, norm_epsilon=ANY, **allowed_values(model))
    return [name for name, values in plain.items() if values != ANY and getattr(model, name) not in values]


def check_resampling(model: ViTConfig, where: object) -> None:
    """Raises InputError for a model whose positions are resampled in another way than its class does, for nearly each
    image. (Of a model for one size, where nothing is resampled, this is a note.)"""
    there = FAMILIES["siglip2_vision_model"].resampling
    if model.position_resampling != there:
        raise InputError(
            f"{where}: transformers' Siglip2 cannot hold position_resampling '{model.position_resampling}' (there: "
            f"'{there}'), by which it places the patches of each image; --method {there} changes the model's"
        )
