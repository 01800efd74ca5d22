"""The values of each field of ViTConfig that a format can express. Every field must be listed: no value is allowed by
default."""

from typing import Any, Literal, TypeAlias

from vit_core.config import ViTConfig

ANY: Literal["any"] = "any"
"""The format can express every value of the field, or the field does not change the outputs of a trained model."""
Values: TypeAlias = tuple[Any, ...] | Literal["any"]
"""The values of one field that a format can express, the preferred one first; or ANY."""


def plain_vit_with(
    model: ViTConfig, *, activation: Values, norm_epsilon: Values, **exceptions: Values
) -> dict[str, Values]:
    """Field of ViTConfig -> its allowed values: those of the plain ViT (arXiv:2010.11929), except for the given fields.

    The activation and the epsilon have no common value, so each format gives its own. Raises TypeError for a name that
    is not a field.
    """
    values: dict[str, Values] = {
        # Every format shows these by the shapes of its arrays, or by arguments of its code.
        **dict.fromkeys(("image_size", "patch_size", "channels", "width", "depth", "heads", "mlp_dim"), ANY),
        "num_classes": ANY,
        # These do not change the outputs of a trained model.
        **dict.fromkeys(("dropout", "attention_dropout", "stochastic_depth", "head_bias_init"), ANY),
        "patch_embedding": ANY,
        # Used only at another resolution; formats with another method add a note.
        "position_resampling": ANY,
        "class_token": (True,),
        "position_embedding": ("learned",),  # before the fields that only learned positions have
        "class_token_position": (True,),
        "distillation": ("none",),
        "registers": (0,),
        "pre_norm": (False,),
        "qk_norm": (False,),
        "mlp": ("mlp",),
        "pooling": ("cls",),
        "final_norm": ("before_pooling",),
        "representation": (None,),
        "layer_scale": (None,),
        "qkv_bias": (True,),
        "proj_bias": (True,),
        "patch_bias": (True,),
        "head_bias": (True,),
        "patch_norms": (False,),
        "embed_norm": (False,),
        "rope": (None,),
        "relative_bias": ("none",),
        "relative_bias_shared": (False,),
        "relative_bias_dim": ANY,  # read with relative_bias 'mlp' only
        "parallel": (False,),
        "norm": ("layer_norm",),
        "branch_norm": ("before",),
        "key_bias": (True,),
        "attention_norm": (False,),
        "mlp_norm": (False,),
        "pool_heads": (None, model.heads),
        "pool_mlp_dim": (None, model.mlp_dim),
        "pool_prefix": (False,),
        "stem_layers": (None,),
        "stem_width": ANY,  # read by models with a stem only
        "head_dim": (None,) if model.width % model.heads else (None, model.width // model.heads),
        "activation": activation,
        "norm_epsilon": norm_epsilon,
    }
    if unknown := sorted(set(exceptions) - set(values)):
        raise TypeError(f"no fields of ViTConfig, or fields without a plain value: {', '.join(unknown)}")
    return {**values, **exceptions}
