"""Finds the ViTConfig of transformers' models from the shapes of arrays and from config.json.

Values in config.json are untrusted: each one that is used is compared with the shapes or validated by ViTConfig.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, NoReturn

from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.interface import Fields, Source, assume_heads, assume_image_size, layers_of
from vit_core.checkpoints.formats.transformers.names import FAMILIES, TOWER_OF, Names
from vit_core.errors import InputError, one_line

ACTIVATIONS = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "gelu_new": "gelu_tanh",
    "gelu_python": "gelu", "gelu_accurate": "gelu_tanh", "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
"""hidden_act -> our activation. If several have the same activation, the first is written."""
GATES = ("silu", "swish")
"""hidden_act of gated MLPs."""
_HEAD_OF = {
    "ForImageClassification": "classifier",
    "WithTeacher": "cls_classifier",
    "WithProjection": "visual_projection",
    "CLIPModel": "visual_projection",
    "MetaClip2Model": "visual_projection",
    "CLIPSegModel": "visual_projection",
    "Aimv2Model": "visual_projection",
}
"""End of the name of an architecture -> name of its head."""
CLASSIFIER = re.compile(
    r"(TF|Flax)?(ViT|DeiT|ViTMSN|IJepa|Dinov2|Dinov2WithRegisters|DINOv3ViT|Beit|Data2VecVision|CLIP|MetaClip2|Siglip2?"
    r")ForImageClassification(WithTeacher)?"
)
"""The classes of transformers whose head is called classifier. Those of other names are the user's own."""
_WINDOWS = "RF-DETR's backbone has the same arrays but attention within windows"
_LOOKALIKES = {
    "siglip_vision_model": "PaddleOCR-VL's image tower has the same arrays but rotary positions",
    "dinov2": _WINDOWS,
    "dinov2_with_registers": _WINDOWS,
}
"""Model type -> a network with the same arrays and other outputs. Only config.json distinguishes them."""
Shapes = Mapping[str, tuple[int, ...]]


def _said_of_tower(source: Source) -> Mapping[str, Any]:
    """The fields of config.json for the image tower. (CLIP's vision_config_dict overrides vision_config.)"""
    config = source.config
    said = config.get("vision_config_dict") or config.get("vision_config")
    if config.get("model_type") in TOWER_OF and said is not None:
        if not isinstance(said, dict):
            raise InputError(
                f"{source.path}: config.json states vision_config {shown(said)}; expected an object of fields"
            )
        return said
    return config


@dataclass
class Tower:
    """Finds the config of a file's image tower; subclasses override methods for other model types."""

    source: Source
    shapes: Shapes
    names: Names
    fields: Fields
    notes: list[str] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Regular expressions of names that are not part of the tower."""
    epsilon_key: ClassVar[str] = "layer_norm_eps"
    """The key of config.json that states the epsilon of the norms."""

    def __post_init__(self) -> None:
        self.where, self.top = self.source.path, self.source.config
        self.said = _said_of_tower(self.source)
        self.family = FAMILIES[self.names.model_type]
        architectures = self.top.get("architectures")
        self.architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
        self.own_class = "" if CLASSIFIER.fullmatch(self.architecture) else one_line(self.architecture)[:60]

    def config(self) -> dict[str, Any]:
        """The fields of ViTConfig, including those that the user gives."""
        found = self.sizes()
        self.agrees(found)
        found |= self.ends()
        found["heads"] = self.heads(found)
        found["activation"] = self.activation()
        found["norm_epsilon"] = self.said.get(self.epsilon_key, self.family.epsilon)
        found |= self.positions()
        if self.family.kind in ("dinov2", "dinov3"):
            found["layer_scale"] = self.said.get("layerscale_value", 1.0)
        if self.said.get("head_dim") is not None:  # transformers 5 uses it, although its config class has no such field
            found["head_dim"] = self.said["head_dim"]
        found["image_size"] = self.image_size(found)
        if not self.top:
            why = f"transformers' default for {self.names.model_type}, because there is no config.json"
            defaults = [Assumption(name, found[name], why) for name in ("activation", "norm_epsilon")]
            self.assumptions += [one for one in defaults if one.field not in self.fields]
            if others := _LOOKALIKES.get(self.names.model_type):
                how = (f"by its names; {others}", "give the folder with its config.json, which shows which it is")
                self.assumptions.append(Assumption("model_type", self.names.model_type, *how))
        if self.family.kind in FROM_SQUARE_GRIDS:
            size = self.fields.get("image_size", found["image_size"])
            size = (size, size) if isinstance(size, int) else size
            check_grid(size, found["patch_size"], self.where, FROM_SQUARE_GRIDS[self.family.kind])
        return {**found, **self.fields}

    def positions(self) -> dict[str, Any]:
        """The fields for how the class computes positions, also for images of another size."""
        return {"position_resampling": self.family.resampling}

    def sizes(self) -> dict[str, Any]:
        """The fields that the shapes determine."""
        names, gated = self.names, self.names.gated
        width, channels, patch = self.patches()
        fc1 = names.in_block("mlp.fc1.weight")
        hidden = self.shape(fc1[0], 2)[0]
        found = {
            "patch_size": patch,
            "channels": channels,
            "width": width,
            "depth": layers_of(self.shapes, names.layers),
            "mlp": "swiglu" if gated else "mlp",
            "mlp_dim": hidden // 2 if gated and len(fc1) == 1 else hidden,
            "qkv_bias": names.in_block("attn.qkv.bias")[0] in self.shapes,
        }
        if names.model_type == "dinov2_with_registers":
            found["registers"] = self.shape(names.of("reg_token"), 3)[1]
        return found

    def patches(self) -> tuple[int, int, tuple[int, int]]:
        """The token width, the channels, and (height, width) of patches."""
        width, channels, height, across = self.shape(self.names.of("patch_embed.proj.weight"), 4)
        return width, channels, (height, across)

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of an array. Raises InputError if it is missing or has another number of axes."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != axes:
            found = "is missing" if shape is None else f"has shape {list(shape)}, expected {axes} axes"
            raise InputError(
                f"{self.where}: {name} {found}; expected the arrays of transformers' {self.names.model_type}"
            )
        return shape

    def agrees(self, found: Mapping[str, Any]) -> None:
        """Raises InputError if sizes in config.json differ from the shapes."""
        for key, values in self.expected(found).items():
            if values and (said := self.said.get(key)) is not None and said not in values:
                self.disagree(key, said, values[-1])
        ratio = self.said.get("mlp_ratio") if self.family.kind == "dinov2" else None
        if ratio is not None:
            number = isinstance(ratio, int | float) and 0 < ratio < 2**24
            if not number or dinov2_mlp_dim(found["width"], ratio, self.names.gated) != found["mlp_dim"]:
                self.disagree("mlp_ratio", ratio, f"mlp_dim {found['mlp_dim']} for width {found['width']}")

    def expected(self, found: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Keys of config.json -> values that agree with the shapes; (): the family has no such key."""
        patch, kind = found["patch_size"], self.family.kind
        return {
            "hidden_size": (found["width"],),
            "num_hidden_layers": (found["depth"],),
            "num_channels": (found["channels"],),
            "patch_size": (list(patch), *patch[: patch[0] == patch[1]]),
            "qkv_bias": (found["qkv_bias"],) if kind != "clip" else (),
            "intermediate_size": (found["mlp_dim"],) if kind != "dinov2" else (),
            "use_swiglu_ffn": (found["mlp"] == "swiglu",) if kind == "dinov2" else (),
            "num_register_tokens": (found["registers"],) if "registers" in found else (),
        }

    def disagree(self, key: str, said: object, found: object) -> None:
        raise InputError(
            f"{self.where}: config.json states {key} {shown(said)}, but the arrays show {found}; "
            "give a config.json and weights of the same checkpoint"
        )

    def ends(self) -> dict[str, Any]:
        """The fields of the tokens before the patches and of the layers after the blocks."""
        classes = self.classes()
        fields: dict[str, Any]
        pooled = f"{self.names.prefix}pooler.dense.weight"
        match self.names.model_type:
            case "siglip_vision_model" | "siglip2_vision_model":
                return self.siglip(classes)
            case "clip_vision_model":
                if "classifier" in classes:
                    raise InputError(
                        f"{self.where}: CLIPForImageClassification computes the mean of tokens before their norm, "
                        "which ViTConfig cannot express; save only its vision_model"
                    )
                fields = {
                    "pre_norm": True,
                    "patch_bias": False,
                    "head_bias": not classes or "visual_projection.bias" in self.shapes,
                }
                return {**fields, "num_classes": classes.get("visual_projection", 0)}
            case "dinov2" | "dinov2_with_registers":
                of_one_token = self.shapes.get("classifier.weight", (0, 0))[1:] == (self.patches()[0],)
                beside = "classifier" in classes and not of_one_token
                beside |= self.architecture.endswith("ForImageClassification")
                return {"pooling": "cls_gap" if beside else "cls", "num_classes": classes.get("classifier", 0)}
            case "deit" if "cls_classifier" in classes or self.architecture.endswith("WithTeacher"):
                return {"distillation": "head", "num_classes": classes.get("cls_classifier", 0)}
            case "ijepa":
                return self.ijepa(classes)
        fields = {"distillation": "token"} if self.names.model_type == "deit" else {}
        if "classifier" in classes:
            self.left_out.append(r"(^|\.)pooler\.")  # the classifier does not use it
            if pooled in self.shapes and "representation" not in self.fields:
                other = f"--set representation={self.shape(pooled, 2)[0]} for a head that reads pooler_output"
                self.assumptions.append(Assumption("representation", None, "because the head reads the tokens", other))
        elif pooled in self.shapes:
            if self.said.get("pooler_act", "tanh") != "tanh":
                raise InputError(
                    f"{self.where}: config.json states pooler_act {shown(self.said['pooler_act'])}; supported: tanh"
                )
            fields["representation"] = self.shape(pooled, 2)[0]
        return {**fields, "num_classes": classes.get("classifier", 0)}

    def classes(self) -> dict[str, int]:
        """Head -> its number of outputs. Raises InputError if a required head is missing. If config.json states
        another number of labels, the head was replaced: `labels_of` leaves them out."""
        heads = sorted(set(_HEAD_OF.values()))
        found = {head: self.shape(f"{head}.weight", 2)[0] for head in heads if f"{head}.weight" in self.shapes}
        labels = self.top.get("id2label")
        for end, head in _HEAD_OF.items():
            if self.architecture.endswith(end) and labels != {} and self.fields.get("num_classes") != 0:
                self.shape(f"{head}.weight", 2)
        return found

    def siglip(self, classes: Mapping[str, int]) -> dict[str, Any]:
        fields: dict[str, Any] = {"class_token": False}
        if "classifier" in classes or self.architecture.endswith("ForImageClassification"):
            self.left_out.append(r"^vision_model\.head\.")  # the classifier uses the mean of the tokens instead
            return {**fields, "pooling": "gap", "num_classes": classes.get("classifier", 0)}
        there = self.names.of("attn_pool.latent") in self.shapes
        if there or (self.top and self.said.get("vision_use_head") is not False):
            return {**fields, "pooling": "map", "num_classes": 0}
        if "pooling" not in self.fields:
            self.assumptions.append(Assumption("pooling", "gap", "because the file has no attention pooling"))
        return {**fields, "pooling": "gap", "num_classes": 0}

    def ijepa(self, classes: Mapping[str, int]) -> dict[str, Any]:
        """The fields of I-JEPA: no class token; its classifier uses the mean of the tokens."""
        self.left_out.append(r"(^|\.)pooler\.")
        if "classifier" not in classes and "pooling" not in self.fields:
            why = "as in IJepaForImageClassification; IJepaModel returns all tokens"
            self.assumptions.append(Assumption("pooling", "gap", why))
        return {"class_token": False, "pooling": "gap", "num_classes": classes.get("classifier", 0)}

    def heads(self, found: Mapping[str, Any]) -> Any:
        if self.top:
            return self.said.get("num_attention_heads", self.family.heads)
        heads, assumed = assume_heads(found["width"], found["depth"], found["mlp_dim"], self.fields)
        self.assumptions += assumed
        return heads

    def activation(self) -> str | None:
        if self.names.gated and self.family.kind in ("dinov3", "aimv2"):
            return self.of_gate()
        said = self.said.get("hidden_act", self.family.activation)
        if "activation" in self.fields:
            return None
        if not isinstance(said, str) or said not in ACTIVATIONS:
            raise InputError(
                f"{self.where}: config.json states hidden_act {shown(said)}, which ViTConfig cannot express; "
                f"supported: {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[said]

    def of_gate(self) -> str:
        """`activation` of a gated MLP, which is not used. Raises InputError unless the gate's activation is SiLU."""
        said = self.said.get("hidden_act", GATES[0])
        if said not in GATES:
            raise InputError(
                f"{self.where}: config.json states hidden_act {shown(said)} for a gated MLP, which ViTConfig cannot "
                f"express; supported for gated MLPs: {', '.join(GATES)}"
            )
        return "gelu"

    def cannot_say(self, what: str) -> NoReturn:
        raise InputError(f"{self.where}: {what}, which ViTConfig cannot express")

    def image_size(self, found: Mapping[str, Any]) -> tuple[int, int]:
        """The image size in config.json, rounded down to whole patches, or one computed from the positions. Raises
        InputError if it does not fit the positions."""
        patch, table = found["patch_size"], self.names.of("pos_embed")
        rows = self.shape(table, 2 if table.endswith(".weight") else 3)[-2]
        patches = rows - (found.get("class_token", True) + (found.get("distillation", "none") != "none"))
        said = self.said_image_size
        if said is None:
            size, assumed = assume_image_size(patches, patch, self.fields, self.where)
            self.assumptions += assumed
            return size
        if prod(side // size for side, size in zip(said, patch, strict=True)) != patches:
            self.disagree("image_size", self.said["image_size"], f"{patches} positions for patches of {list(patch)}")
        return self.whole_patches(said, patch)

    def any_size(self, patch: tuple[int, int], why: str) -> tuple[int, int]:
        """For models whose arrays do not show the image size: the size in config.json, or an assumed one of 14x14
        patches. why: the reason for the assumption."""
        if (said := self.said_image_size) is not None:
            return self.whole_patches(said, patch)
        assumed = (14 * patch[0], 14 * patch[1])
        if "image_size" not in self.fields:
            self.assumptions.append(Assumption("image_size", assumed, why, "--set image_size=HEIGHTxWIDTH"))
        return assumed

    def whole_patches(self, said: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
        """The image size rounded down to whole patches, with a note if it is smaller."""
        height, width = (side // size * size for side, size in zip(said, patch, strict=True))
        if (height, width) != said:
            self.notes.append(f"image_size: {height}x{width}, the part of {said[0]}x{said[1]} that whole patches cover")
        return height, width

    @property
    def said_image_size(self) -> tuple[int, int] | None:
        """The (height, width) in config.json, in pixels; None if it states none, or the user gives one. Raises
        InputError for an invalid value."""
        said = self.said.get("image_size")
        sides = [said, said] if isinstance(said, int) else said
        if said is None or "image_size" in self.fields:
            return None
        if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
            return sides[0], sides[1]
        raise InputError(
            f"{self.where}: config.json states image_size {shown(said)}; expected pixels, or [height, width]"
        )


FROM_SQUARE_GRIDS = {"dinov2": "Dinov2", "beit": "Beit", "internvl": "InternVLVisionModel"}
"""Kind -> a class that, for images that are not square, treats positions as those of a square grid."""


def check_grid(image_size: tuple[int, int], patch_size: tuple[int, int], where: object, name: str = "Dinov2") -> None:
    """Raises InputError for sizes for which the class `name`, of FROM_SQUARE_GRIDS, computes wrong positions."""
    (height, width), (patch_height, patch_width) = image_size, patch_size
    if height != width and height // patch_height != width // patch_width:
        raise InputError(
            f"{where}: image_size {height}x{width} with patch_size {patch_height}x{patch_width}: transformers' {name} "
            "treats positions of an image that is not square as those of a square grid; resize to a square image first"
        )


def dinov2_mlp_dim(width: int, mlp_ratio: float, gated: bool) -> int:
    """Hidden width of Dinov2's MLPs: width * mlp_ratio; if gated, two thirds, rounded up to a multiple of 8."""
    hidden = int(width * mlp_ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def shown(value: object) -> str:
    """The text of any value of a file, at most about 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
