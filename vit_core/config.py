"""The one schema both twins are built from: every choice that changes what the network computes is a field here."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from vit_core.position_embeddings import Method, SincosFormula
from vit_core.schema import Flag, Positive, Rate, Real, Schema

_SIDE = {"type": "integer", "minimum": 1}
Size = Annotated[
    tuple[Positive, Positive],
    BeforeValidator(lambda size: (size, size) if type(size) is int else size),
    WithJsonSchema({"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}),
]
"""(height, width) in pixels; an int means square."""


class ViTConfig(Schema):
    """A Vision Transformer (arXiv:2010.11929), with the choices its descendants made.

    Defaults are the paper's. Nothing is left to a framework's own default: the activation, the LayerNorm epsilon and
    the conventions about positions all stand here, because those are what ports get wrong.
    """

    image_size: Size
    """Input height and width in pixels; multiples of the patch."""
    patch_size: Size
    """Patch height and width in pixels."""
    channels: Positive = 3
    """Input channels."""
    width: Positive
    """Token width D."""
    depth: Annotated[Positive, Field(le=4096)]
    """Number of blocks L."""
    heads: Positive
    """Attention heads H."""
    head_dim: Positive | None = None
    """Width K of one head; none: width / heads."""
    mlp_dim: Positive
    """Hidden width M of the MLPs."""
    num_classes: Annotated[int, Field(ge=0, le=2**24, strict=True)]
    """Outputs of the head; 0: no head, and the pooled features are the output."""
    pooling: Literal["cls", "gap", "map"] = "cls"
    """Class token; mean of the patch tokens; attention pooling over them (MAP, arXiv:2106.04560)."""
    class_token: Flag = True
    """Whether a class token stands before the patch tokens."""
    class_token_position: Flag = True
    """Whether the class token has a learned position; by default wherever it can (a class token, learned positions)."""
    position_embedding: Literal["learned", "sincos2d_big_vision", "sincos2d_mae", "none"] = "learned"
    """Learned: resampled at another resolution. Sin-cos: big_vision's or MAE's formula, computed anew at each."""
    position_resampling: Method = "bilinear_antialias"
    """How learned positions go to another resolution, unless told otherwise."""
    final_norm: Literal["before_pooling", "after_pooling"] = "before_pooling"
    """Where the last LayerNorm stands (after pooling: timm's fc_norm)."""
    representation: Positive | None = None
    """Width of a Linear + tanh before the head (the paper's pretraining head), or none."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """The tanh approximation (Google's checkpoints) or the exact GELU (timm's, HF's)."""
    norm_epsilon: Annotated[Real, Field(gt=0.0)] = 1e-6
    """LayerNorm's epsilon."""
    qkv_bias: Flag = True
    """Bias on queries, keys and values."""
    layer_scale: Real | None = None
    """Initial value of LayerScale (arXiv:2103.17239), or none."""
    dropout: Rate = 0.0
    """Dropout after the positions, the attention projection and both MLP layers."""
    attention_dropout: Rate = 0.0
    """Dropout of attention weights."""
    stochastic_depth: Rate = 0.0
    """Drop rate of the last block's branches, growing linearly from 0 at the first (arXiv:1603.09382)."""
    head_bias_init: Real = 0.0
    """Initial value of the head's bias (-10 with a sigmoid loss over many classes)."""
    patch_embedding: Literal["conv", "unfold"] = "conv"
    """Patches by convolution, or by unfolding and a matrix product: same weights, same result."""

    @model_validator(mode="before")
    @classmethod
    def _position_wherever_it_can(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("class_token_position") is None:
            can = data.get("class_token", True) and data.get("position_embedding", "learned") == "learned"
            data = {**data, "class_token_position": bool(can)}
        return data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, image, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True):
            if image % patch:
                near = max(round(image / patch), 1) * patch
                raise ValueError(
                    f"image_size: {name} {image} is not a multiple of patch_size {patch}; the nearest is {near}"
                )
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}; change one, or set head_dim")
        if self.pooling == "map" and self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}, which pooling 'map' needs")
        if self.pooling == "cls" and not self.class_token:
            raise ValueError("pooling: 'cls' needs class_token true; use 'gap' or 'map' without one")
        if self.class_token_position and not (self.class_token and self.position_embedding == "learned"):
            raise ValueError("class_token_position: true needs class_token true and position_embedding 'learned'")
        if self.position_embedding.startswith("sincos2d") and (self.width % 4 or self.width < 8):
            raise ValueError(f"width: {self.width} is not a multiple of 4 from 8 on, which sincos2d positions need")
        if self.representation and not self.num_classes:
            raise ValueError("representation: a layer before the head needs a head; set num_classes above 0")
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; class_token_position follows where it can no longer be true."""
        new = {**self.model_dump(), **changes}
        if "class_token_position" not in changes and not (
            new["class_token"] and new["position_embedding"] == "learned"
        ):
            changes["class_token_position"] = False
        return super().replace(**changes)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def attention_dim(self) -> int:
        """Width K of one attention head."""
        return self.head_dim or self.width // self.heads

    @property
    def tokens(self) -> int:
        """Sequence length N: patches and the class token."""
        return self.grid[0] * self.grid[1] + self.class_token

    @property
    def positions(self) -> int:
        """Rows of a learned position table."""
        return self.grid[0] * self.grid[1] + self.class_token_position

    @property
    def sincos_formula(self) -> SincosFormula:
        """Whose formula computed positions follow."""
        return "mae" if self.position_embedding == "sincos2d_mae" else "big_vision"

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic-depth rate of each block."""
        return tuple(self.stochastic_depth * i / max(self.depth - 1, 1) for i in range(self.depth))
