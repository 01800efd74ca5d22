"""The schema from which both twins are built: every choice that changes what the network computes is a field here."""

from math import isqrt, prod
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from vit_core.errors import InputError, unknown_name
from vit_core.position_embeddings import Method, SincosFormula
from vit_core.rope import PUBLISHED, Rope
from vit_core.schema import Count, Flag, Positive, Rate, Real, Schema

_SIDE = {"type": "integer", "minimum": 1}
Size = Annotated[
    tuple[Positive, Positive],
    BeforeValidator(lambda size: (size, size) if type(size) is int else size),
    WithJsonSchema({"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}),
]
"""(height, width) in pixels; an int means square."""


def _published_rope(rope: Any) -> Any:
    if isinstance(rope, str):
        if rope not in PUBLISHED:
            raise ValueError(str(unknown_name("published variant", rope, PUBLISHED)))
        return PUBLISHED[rope]
    return rope


def is_square(count: int) -> bool:
    """Whether `count` tokens fill a square grid."""
    return count > 0 and isqrt(count) ** 2 == count


Layers = Annotated[Positive, Field(le=4096)]
"""A number of layers; the limit refuses absurd values of a damaged file."""


class ViTConfig(Schema):
    """A Vision Transformer (arXiv:2010.11929), with the variations of later models.

    Defaults are the paper's. No default of a framework is used: the activation, the epsilon of the norms and the
    position conventions are fields, because ports often differ in them. Impossible combinations raise InputError.
    """

    image_size: Size
    """Input height and width in pixels; multiples of the patch."""
    patch_size: Size
    """Patch height and width in pixels."""
    channels: Positive = 3
    """Input channels."""
    width: Positive
    """Token width D."""
    depth: Layers
    """Number of blocks."""
    heads: Positive
    """Attention heads T."""
    head_dim: Positive | None = None
    """Width K of one head; none: width / heads."""
    mlp_dim: Positive
    """Hidden width F of the MLPs (of each half, if the MLP is gated)."""
    num_classes: Count
    """Outputs of the head; 0: no head, and the output is what the head would get as its input."""
    pooling: Literal["cls", "gap", "map", "cls_gap", "first"] = "cls"
    """Class token; mean of the patch tokens; attention pooling over them (MAP, arXiv:2106.04560); class token and mean
    side by side (DINOv2's linear heads); the first token of a model without class token (big_vision's pool_type
    "0")."""
    class_token: Flag = True
    """Whether a class token precedes the patch tokens."""
    class_token_position: Flag = True
    """Whether the class token (and the distillation token) has a learned position; by default true where possible (a
    class token and learned positions)."""
    distillation: Literal["none", "token", "head"] = "none"
    """DeiT's second token (arXiv:2012.12877). "head": it has a separate head, and the logits are the mean of both
    heads."""
    registers: Count = 0
    """Number of register tokens (arXiv:2309.16588) before the patch tokens; they have no positions."""
    position_embedding: Literal["learned", "sincos2d_big_vision", "sincos2d_mae", "none"] = "learned"
    """Learned positions are resampled at another resolution; sin-cos positions (formula of big_vision or MAE) are
    computed."""
    rope: Annotated[Rope | None, BeforeValidator(_published_rope)] = None
    """Rotary positions, which rotate queries and keys: the fields of vit_core.rope.Rope, or the name of a published
    variant (dinov3, eva02, pe, axial, mixed, vit5); none: no rotation."""
    relative_bias: Literal["none", "table", "mlp"] = "none"
    """A bias of the attention scores that depends on the displacement between two patches: a learned table (BEiT), or
    the output of a small network (timm's vit_relpos)."""
    relative_bias_shared: Flag = False
    """Whether all blocks share one relative bias; otherwise each block has its own."""
    relative_bias_dim: Positive = 512
    """Hidden width of the network of relative_bias 'mlp'."""
    position_resampling: Method = "bilinear_antialias"
    """Default method that resamples learned positions to another resolution."""
    final_norm: Literal["before_pooling", "after_pooling", "none"] = "before_pooling"
    """Position of the last norm (after pooling: timm's fc_norm), if there is one."""
    representation: Positive | None = None
    """Width of a Linear + tanh before the head (the paper's pretraining head, BERT's and HF's pooler), or none."""
    pool_heads: Positive | None = None
    """Attention heads of pooling 'map'; none: as in the blocks."""
    pool_mlp_dim: Positive | None = None
    """Hidden width of the MLP of pooling 'map'; none: as in the blocks."""
    pool_prefix: Flag = False
    """Whether pooling 'gap' and 'map' include the tokens before the patches."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Type of every norm: LayerNorm, or RMSNorm (arXiv:1910.07467), which subtracts no mean and has no bias."""
    branch_norm: Literal["before", "after"] = "before"
    """Whether norms are applied to the inputs of attention and MLP, or to their outputs before these are added
    (EVA-02's enormous; Swin v2's res-post-norm)."""
    parallel: Flag = False
    """Whether attention and MLP of a block get the same normed tokens, and both outputs are added at once (ViT-22B,
    arXiv:2302.05442)."""
    pre_norm: Flag = False
    """An additional norm before the blocks (CLIP)."""
    mlp: Literal["mlp", "swiglu"] = "mlp"
    """The blocks' MLP: two layers, or gated by SiLU (arXiv:2002.05202; DINOv2's giant)."""
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    """The tanh approximation (Google's checkpoints), the exact GELU (timm's, HF's) or x * sigmoid(1.702 x) (CLIP's)."""
    norm_epsilon: Annotated[Real, Field(gt=0.0)] = 1e-6
    """Epsilon of the norms."""
    qkv_bias: Flag = True
    """Bias on queries, keys and values."""
    key_bias: Flag = True
    """Whether keys have this bias too (BEiT, EVA and some DINOv3 models have none on keys)."""
    qk_norm: Flag = False
    """Norms over each head's queries and keys (arXiv:2302.05442)."""
    attention_norm: Flag = False
    """A norm of the attention's concatenated heads, before their projection (EVA-02-CLIP, BEiT-3)."""
    mlp_norm: Flag = False
    """A norm before the last layer of the MLP (NormFormer, arXiv:2110.09456; EVA-02, BEiT-3)."""
    proj_bias: Flag = True
    """Bias on the blocks' attention projection and both layers of their MLP."""
    head_bias: Flag = True
    """Bias on the head."""
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
    patch_bias: Flag = True
    """Bias on the patch projection."""
    patch_norms: Flag = False
    """Norms before and after the patch projection (lucidrains' vit-pytorch); patches are then unfolded."""
    embed_norm: Flag = False
    """A single norm after the patch projection, before the positions are added (AIMv2)."""
    stem_layers: tuple[Layers, ...] | None = None
    """Units in each stage of a ResNet before the patch projection ((3, 4, 9): Google's R50+B/16; (): only a root)."""
    stem_width: Positive = 64
    """Channels of that ResNet's root."""

    @model_validator(mode="before")
    @classmethod
    def _default_class_token_position(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("class_token_position") is None:
            can = data.get("class_token", True) and data.get("position_embedding", "learned") == "learned"
            data = {**data, "class_token_position": bool(can)}
        return data

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        for name, image, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True):
            if image % patch:
                near = max(round(image / patch), 1) * patch
                raise ValueError(
                    f"image_size: {name} {image} is not a multiple of patch_size {patch}; the nearest is {near}"
                )
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}; change one, or set head_dim")
        if self.rope is not None and self.head_width % 4:
            near = max(round(self.head_width / 4), 1) * 4
            raise ValueError(f"rope: heads of width {self.head_width} are not a multiple of 4; set head_dim {near}")
        if self.rope is not None and self.rope.register_base is not None and not is_square(self.registers):
            raise ValueError(f"rope.register_base: {self.registers} registers do not form a square grid; use 4")
        if self.relative_bias == "table" and self.prefix_tokens > self.class_token:
            raise ValueError("relative_bias: 'table' has values for patches and a class token only; set registers 0")
        if self.relative_bias == "none" and self.relative_bias_shared:
            raise ValueError("relative_bias_shared: true needs relative_bias 'table' or 'mlp'")
        if self.parallel and self.branch_norm == "after":
            raise ValueError("parallel: true has one norm before both branches; set branch_norm 'before'")
        if not self.qkv_bias and not self.key_bias:
            raise ValueError("key_bias: false needs qkv_bias true; leave key_bias out where there is no bias at all")
        if self.qk_norm and self.head_width == 1:
            raise ValueError(
                "qk_norm: a norm over heads of width 1 leaves nothing; set head_dim above 1, or fewer heads"
            )
        if self.patch_norms and prod(self.patch_kernel) * self.stem_channels == 1:
            raise ValueError("patch_norms: a norm over patches of one value leaves nothing; set patch_size above 1")
        if self.patch_norms and self.embed_norm:
            raise ValueError("embed_norm: true is one of the two norms of patch_norms; set one of them false")
        if self.pooling == "map" and self.width % self.pooling_heads:
            name = "pool_heads" if self.pool_heads else "heads"
            raise ValueError(
                f"{name}: {self.pooling_heads} does not divide width {self.width}, which pooling 'map' needs"
            )
        if self.position_embedding.startswith("sincos2d") and (self.width % 4 or self.width < 8):
            raise ValueError(f"width: {self.width} is not a multiple of 4 from 8 on, which sincos2d positions need")
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.pooling in ("cls", "cls_gap") and not self.class_token:
            raise ValueError(
                f"pooling: '{self.pooling}' needs class_token true; use 'gap', 'map' or 'first' without one"
            )
        if self.pooling == "first" and self.class_token:
            raise ValueError("pooling: 'first' is the class token where there is one; use 'cls', or class_token false")
        if self.pooling != "map" and (self.pool_heads or self.pool_mlp_dim):
            raise ValueError("pool_heads, pool_mlp_dim: only pooling 'map' has attention and an MLP; leave them out")
        if self.pool_prefix and self.pooling not in ("gap", "map"):
            raise ValueError("pool_prefix: true needs pooling 'gap' or 'map'")
        if self.pooling == "cls_gap" and self.final_norm == "after_pooling":
            raise ValueError("pooling: 'cls_gap' gives twice the width; set final_norm 'before_pooling'")
        if self.class_token_position and not (self.class_token and self.position_embedding == "learned"):
            raise ValueError("class_token_position: true needs class_token true and position_embedding 'learned'")
        if self.distillation != "none" and self.pooling != "cls":
            raise ValueError(f"distillation: '{self.distillation}' needs pooling 'cls'; set it, or distillation 'none'")
        if self.distillation == "head" and self.final_norm == "after_pooling":
            raise ValueError("distillation: 'head' reads two normed tokens; set final_norm 'before_pooling'")
        if self.distillation == "head" and self.representation:
            raise ValueError("distillation: 'head' has no hidden layer for its token; leave out representation")
        return self

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.stem_layers is None:
            return self
        if self.stem_width % 32:
            near = max(round(self.stem_width / 32), 1) * 32
            raise ValueError(f"stem_width: {self.stem_width} is not a multiple of its 32 groups; the nearest is {near}")
        if any(patch % self.stem_stride for patch in self.patch_size):
            raise ValueError(
                f"patch_size: {self.patch_size} is not a multiple of the stem's stride {self.stem_stride}; change one, "
                "or leave out stages of stem_layers"
            )
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; class_token_position becomes false if it can no longer be true. InputError
        for an impossible config."""
        new = {**self.model_dump(), **changes}
        if "class_token_position" not in changes and not (
            new["class_token"] and new["position_embedding"] == "learned"
        ):
            changes["class_token_position"] = False
        return super().replace(**changes)

    def with_classes(self, num_classes: int) -> Self:
        """A copy with another number of classes; 0 removes the head and its hidden layer, the representation."""
        return self.replace(num_classes=num_classes, representation=self.representation if num_classes else None)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def head_width(self) -> int:
        """Width K of one head."""
        return self.head_dim or self.width // self.heads

    @property
    def relative_bias_per_block(self) -> bool:
        """Whether each block has its own relative bias."""
        return self.relative_bias != "none" and not self.relative_bias_shared

    @property
    def pooling_heads(self) -> int:
        """Attention heads of pooling 'map'."""
        return self.pool_heads or self.heads

    @property
    def pooling_mlp_dim(self) -> int:
        """Hidden width of the MLP of pooling 'map'."""
        return self.pool_mlp_dim or self.mlp_dim

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.class_token + (self.distillation != "none") + self.registers

    @property
    def prefix_positions(self) -> int:
        """Rows of a learned position table before those of the grid: for the class token and the distillation token."""
        return self.class_token_position * (1 + (self.distillation != "none"))

    @property
    def tokens(self) -> int:
        """Sequence length N."""
        return self.prefix_tokens + prod(self.grid)

    @property
    def positions(self) -> int:
        """Rows of a learned position table."""
        return self.prefix_positions + prod(self.grid)

    @property
    def pooled(self) -> int:
        """Width of the pooled features."""
        return self.width * (2 if self.pooling == "cls_gap" else 1)

    @property
    def features(self) -> int:
        """Width of the head's input."""
        return self.representation or self.pooled

    @property
    def stem_stride(self) -> int:
        """Pixels between two of the stem's outputs: 4 after the root, doubled by every stage after the first."""
        return 1 if self.stem_layers is None else 4 * 2 ** max(len(self.stem_layers) - 1, 0)

    @property
    def stem_channels(self) -> int:
        """Input channels of the patch projection: the images', or those of the stem's last stage."""
        if self.stem_layers is None:
            return self.channels
        return self.stem_width * (4 * 2 ** (len(self.stem_layers) - 1) if self.stem_layers else 1)

    @property
    def patch_kernel(self) -> tuple[int, int]:
        """Height and width of the patch projection's kernel: the patch size in outputs of the stem."""
        return self.patch_size[0] // self.stem_stride, self.patch_size[1] // self.stem_stride

    def kernel_of(self, patch_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the patch projection's kernel, resized for another patch size. Raises InputError for a
        size that the model cannot have."""
        if self.patch_norms:
            raise InputError("patch_size: a norm of whole patches (patch_norms) cannot be resized")
        if min(patch_size) < 1 or any(patch % self.stem_stride for patch in patch_size):
            raise InputError(f"patch_size: {patch_size} is not a multiple of the stem's stride {self.stem_stride}")
        return patch_size[0] // self.stem_stride, patch_size[1] // self.stem_stride

    @property
    def sincos_formula(self) -> SincosFormula:
        """The formula of computed (sine-cosine) positions."""
        return "mae" if self.position_embedding == "sincos2d_mae" else "big_vision"

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic-depth rate of each block."""
        return tuple(self.stochastic_depth * i / max(self.depth - 1, 1) for i in range(self.depth))


TRAINING_ONLY = ("dropout", "attention_dropout", "stochastic_depth", "head_bias_init", "patch_embedding")
"""Fields that do not change the output of a trained model."""
