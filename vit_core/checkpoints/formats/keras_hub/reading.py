"""Finds the config of a Vision Transformer of keras_hub, from the arrays and the config files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt, prod
from typing import Any

from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.interface import Fields, Source, assume_heads, axes_of, square_grid
from vit_core.checkpoints.formats.keras_hub.biases import Biases, find_biases
from vit_core.checkpoints.formats.keras_hub.families import CLIP, DINOV2, DINOV3, SIGLIP, Family, in_block
from vit_core.checkpoints.formats.keras_hub.stated import CONFIG, Stated, shown
from vit_core.checkpoints.formats.keras_hub.tokens import Tokens, find_tokens
from vit_core.errors import InputError
from vit_core.rope import Rope

_GATES = {"silu": "silu", "swish": "silu"}
"""Keras's names of the activation of a gate that ViTConfig has."""
_ACTIVATIONS = {"gelu": "gelu", "gelu_approximate": "gelu_tanh", "quick_gelu": "quick_gelu"}
"""Keras's and keras_hub's names of activations -> ours."""
_UNSHOWN_SIDE = 14
"""Patches along a side of DINOv3's released models, because rotary positions fit every size."""


@dataclass
class Search:
    """Finds the fields of a backbone, and collects assumptions and notes."""

    source: Source
    family: Family
    said: Stated
    given: Fields
    """Fields that the user gives."""
    assumptions: list[Assumption] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def backbone(self) -> tuple[dict[str, Any], Tokens, Biases]:
        """The fields of the backbone, its tokens and its biases. Raises InputError for a model that ViTConfig cannot
        express, and if the config does not fit the arrays."""
        family, shapes = self.family, self.source.arrays.shapes
        height, across, channels, width = self._shape(family.anchor, 4)
        patch, depth = (height, across), 1
        while f"{family.block_name(depth)}/{family.layers['norm1']}/vars/0" in shapes:
            depth += 1
        gate = f"{family.block}/{in_block(family, True)['mlp.fc1'].split()[0]}/vars/0"
        gated = in_block(family, True) != family.layers and gate in shapes
        mlp_dim = self._shape(f"{family.block}/{in_block(family, gated)['mlp.fc2']}/vars/0", 2)[0]
        tokens = find_tokens(self.source, family, self.said, self.given)
        biases = find_biases(self.source, family, depth, gated=gated)
        self.notes += [*tokens.notes, *biases.notes]
        found: dict[str, Any] = {
            "patch_size": patch,
            "channels": channels,
            "width": width,
            "depth": depth,
            "mlp": "swiglu" if gated else "mlp",
            "mlp_dim": mlp_dim,
            "patch_bias": f"{family.anchor.removesuffix('0')}1" in shapes,
            **tokens.fields,
            **biases.fields,
        }
        found |= self._heads(width, depth, mlp_dim) | self._of_family(gated) | self._activation(gated)
        found["image_size"] = self._image_size(patch, channels, tokens)
        self.said.check(expected(family, found, tokens, biases))
        return found, tokens, biases

    def _shape(self, name: str, axes: int) -> tuple[int, ...]:
        return axes_of(self.source.arrays.shapes, name, axes, self.source.path)

    def _assume(self, name: str, value: Any, why: str) -> Any:
        """The value of a field that only the class's defaults show, unless the user gives it."""
        if name not in self.given:
            self.assumptions.append(Assumption(name, value, why))
        return value

    def _heads(self, width: int, depth: int, mlp_dim: int) -> dict[str, Any]:
        query = f"{self.family.parts(0)[0]}/vars/0"
        if self.family is not DINOV3:
            _, heads, size = self._shape(query, 3)
            return {"heads": heads, "head_dim": None if heads * size == width else size}
        if "num_heads" in self.said.backbone:
            return {"heads": self.said.backbone["num_heads"]}
        heads, assumed = assume_heads(width, depth, mlp_dim, self.given)
        self.assumptions += assumed
        return {"heads": heads}

    def _of_family(self, gated: bool) -> dict[str, Any]:
        """The epsilon, and what only DINOv2 and DINOv3 have."""
        family, said = self.family, self.said.backbone
        why = f"the default of {family.name}, because there is no {CONFIG}"
        found: dict[str, Any] = {"norm_epsilon": family.epsilon}
        if family.epsilon_key in said:
            found["norm_epsilon"] = said[str(family.epsilon_key)]
        elif family.epsilon_key:
            self._assume("norm_epsilon", family.epsilon, why)
        if family in (DINOV2, DINOV3):
            found["layer_scale"] = said.get("layer_scale_init_value", 1.0)
        if family is DINOV2:
            antialias = said.get("antialias_in_interpolation", False)
            found["position_resampling"] = "bicubic_antialias" if antialias else "bicubic"
        epsilon = self.given.get("norm_epsilon", found["norm_epsilon"])
        if family is SIGLIP and epsilon != family.epsilon:
            raise InputError(
                f"{self.source.path}: layer_norm_epsilon is {shown(epsilon)}, but that of the last norm is always "
                f"{family.epsilon}; ViTConfig cannot express two"
            )
        if family is CLIP:
            found["pre_norm"] = True
        if family is DINOV3:
            found["rope"] = {"base": said.get("rope_theta", 100.0)}
            if "rope_theta" not in said:
                self._assume("rope", Rope(), why)
        return found

    def _activation(self, gated: bool) -> dict[str, Any]:
        """The activation of the MLPs. Raises InputError for one that ViTConfig does not have."""
        key = "hidden_activation" if self.family is DINOV3 else "intermediate_activation"
        names = _GATES if gated else _ACTIVATIONS
        if self.family.activation is None:
            return {"activation": "gelu"}
        name = self.said.backbone.get(key, next(iter(_GATES)) if gated else self.family.activation)
        if not isinstance(name, str) or name not in names:
            raise InputError(
                f"{self.source.path}: {CONFIG}: {key} is {shown(name)} {'with' if gated else 'without'} a gate, where "
                f"ViTConfig has only {', '.join(names)}"
            )
        if key not in self.said.backbone:
            value = ("mlp", "swiglu") if gated else ("activation", names[name])
            self._assume(*value, f"the default of {self.family.name}, because there is no {CONFIG}")
        return {"activation": "gelu" if gated else names[name]}

    def _image_size(self, patch: tuple[int, int], channels: int, tokens: Tokens) -> tuple[int, int]:
        """The size of images that whole patches cover: stated, given, or assumed."""
        image = self.given.get("image_size") or self._stated_image(channels)
        if image is not None:
            height, width = (image, image) if isinstance(image, int) else image
            size = (height // patch[0] * patch[0], width // patch[1] * patch[1])
            if size != (height, width):
                self.notes.append(f"image_size: {size[0]}x{size[1]}, the part of {height}x{width} that patches cover")
            if tokens.patch_positions not in (None, prod(size) // prod(patch)):
                raise InputError(
                    f"{self.source.path}: {tokens.patch_positions} positions do not fit images of {height}x{width} "
                    f"pixels and patches of {patch[0]}x{patch[1]}; use the files of one model"
                )
            return size
        count = _UNSHOWN_SIDE**2 if tokens.patch_positions is None else tokens.patch_positions
        side = isqrt(max(count, 0))
        if not side or side * side != count:
            raise InputError(
                f"{self.source.path}: {count} positions do not form a square grid; use --set image_size=HEIGHTxWIDTH"
            )
        square = (side * patch[0], side * patch[1])
        self.assumptions.append(square_grid(square, (side, side)))
        return square

    def _stated_image(self, channels: int) -> tuple[int, int] | None:
        """Height and width of `image_shape`, whose channels are last, or first as in models with that data format. None
        if they are not stated. Raises InputError for a shape that does not fit the arrays."""
        shape = self.said.backbone.get("image_shape")
        if shape is None:
            return None
        if isinstance(shape, list) and len(shape) == 3:
            for count, sides in ((shape[2], shape[:2]), (shape[0], shape[1:])):
                if count == channels and all(type(side) is int and side > 0 for side in sides):
                    return sides[0], sides[1]
                if count == channels and None in sides and self.family is DINOV3:
                    return None
        raise InputError(
            f"{self.source.path}: {CONFIG}: image_shape is {shown(shape)}, expected [height, width, {channels}]"
        )


def expected(family: Family, found: Mapping[str, Any], tokens: Tokens, biases: Biases) -> dict[str, tuple[Any, ...]]:
    """Keys of the backbone's config -> the values that fit the arrays."""
    patch, there = found["patch_size"], list(biases.there.values())
    queries, output, mlp = there[:3], there[3], there[4:]
    gated, mlp_dim = found["mlp"] == "swiglu", found["mlp_dim"]
    registers = found.get("registers", 0)
    values: dict[str, tuple[Any, ...]] = {
        "patch_size": (list(patch), *patch[: patch[0] == patch[1]]),
        "num_layers": (found["depth"],),
        "num_heads": (found["heads"],),
        "hidden_dim": (found["width"],),
        family.mlp_key: (mlp_dim,),
        "use_class_token": (found.get("class_token", True),),
        "use_patch_bias": (found["patch_bias"],),
        "use_mha_bias": (all([*queries, output]),),
        "use_mlp_bias": (all(mlp),),
        **{f"use_{part}_bias": (bias,) for part, bias in zip(("query", "key", "value"), queries, strict=True)},
        "use_proj_bias": (output,),
        "num_register_tokens": (registers,),
        "use_mask_token": (tokens.has_mask,),
        "use_swiglu_ffn": (gated,),
        "use_gated_mlp": (gated,),
    }
    if family is DINOV2 and gated:  # SwiGLU's width is two thirds of the stated one, in whole eights
        values[family.mlp_key] = tuple(x for x in range(1, 2 * mlp_dim + 1) if gate_width(x) == mlp_dim)
    return values


def gate_width(intermediate_dim: int) -> int:
    """The width of DINOv2's MLP with a gate, as its class computes it."""
    return (int(intermediate_dim * 2 / 3) + 7) // 8 * 8
