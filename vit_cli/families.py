"""The families of Vision Transformers that `vit formats --families` shows, and which of them a config belongs to."""

from collections.abc import Callable
from dataclasses import dataclass

from vit_core.checkpoints import CheckpointConfig
from vit_core.checkpoints.formats.any_aspect import is_any_aspect
from vit_core.config import ViTConfig
from vit_core.rope import Rope


@dataclass(frozen=True)
class Family:
    """Models that differ from the plain ViT in the same way."""

    name: str
    fields: str
    """The fields of the config that identify the family, as text."""
    has: Callable[[CheckpointConfig], bool]
    """Whether a config belongs to the family; the first family that matches is used."""
    also_read: str = ""
    """A format that is only read."""
    reference: str = ""
    """The reference of the tests if no library has such a model: a forward pass in NumPy."""


def family_of(config: CheckpointConfig) -> Family | None:
    """The family that a config belongs to; None for a plain ViT and the older models that are similar to it."""
    return next((family for family in FAMILIES if family.has(config)), None)


def _rotary(has: Callable[[Rope], bool]) -> Callable[[CheckpointConfig], bool]:
    return lambda config: config.model.rope is not None and has(config.model.rope)


def _model(has: Callable[[ViTConfig], bool]) -> Callable[[CheckpointConfig], bool]:
    return lambda config: has(config.model)


FAMILIES = (
    Family("SigLIP 2, NaFlex", "preprocessing.max_patches", is_any_aspect, "timm"),
    Family("DINOv3", "rope: dinov3", _rotary(lambda rope: rope.coordinates == "centered")),
    Family("EVA-02", "rope: eva02", _rotary(lambda rope: rope.reference is not None)),
    Family("Perception Encoder", "rope: pe", _rotary(lambda rope: rope.offset == 1.0)),
    Family("rope-vit", "rope: axial, mixed", _rotary(lambda rope: rope.axes == "xy")),
    Family("ViT-5", "rope: vit5", _rotary(lambda rope: True), "", "NumPy"),
    Family("BEiT, relpos", "relative_bias", _model(lambda model: model.relative_bias != "none")),
    Family("AIMv2", "norm, embed_norm", _model(lambda model: model.norm == "rms_norm" and model.embed_norm)),
    Family("parallel blocks", "parallel", _model(lambda model: model.parallel)),
    Family("norms after branches", "branch_norm", _model(lambda model: model.branch_norm == "after")),
)
"""The families, in the order in which they are tried; ViT-5's rotation matches only after the others."""
