"""The config of transformers' AIMv2, and the values that it can express.

Its norms are RMSNorms, computed in float32 for every type of the model; all MLPs are gated. A pooling head attends with
a learned query that is not projected, and has no MLP: this equals the attention pooling of ViTConfig with an identity
as the projection and zeros as the MLP. Models for native resolution have MAE's sine-cosine positions. Source:
huggingface/transformers, src/transformers/models/aimv2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays, convert
from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.allowed_values import ANY, Values
from vit_core.checkpoints.formats.transformers.config_json import Tower
from vit_core.config import ViTConfig

_QUERY = "head.cls_token"
_NOTE = "attention pooling: an identity for the query and zeros for the MLP, which AIMv2's head does not have"


class Aimv2Tower(Tower):
    """Finds the config of an Aimv2VisionModel, alone or with a text tower."""

    epsilon_key = "rms_norm_eps"

    def sizes(self) -> dict[str, Any]:
        qkv_bias, mlp_bias = (self.names.in_block(f"{end}.bias")[0] in self.shapes for end in ("attn.proj", "mlp.fc2"))
        if qkv_bias != mlp_bias:
            self.cannot_say("a bias on only one of attention and MLP (qkv_bias, mlp_bias)")
        return {**super().sizes(), "proj_bias": mlp_bias, "norm": "rms_norm", "embed_norm": True}

    def expected(self, found: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        native = self.names.of("pos_embed") not in self.shapes
        head = self.names.prefix + _QUERY in self.shapes
        mlp_bias = (found["proj_bias"],)
        return {**super().expected(found), "mlp_bias": mlp_bias, "is_native": (native,), "use_head": (head,)}

    def ends(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"class_token": False, "class_token_position": False}
        classes = self.classes().get("visual_projection", 0)
        if classes:
            fields["head_bias"] = False
        if self.names.prefix + _QUERY in self.shapes:
            self.notes.append(_NOTE)
            return {**fields, "pooling": "map", "pool_mlp_dim": 1, "num_classes": classes}
        if "pooling" not in self.fields:
            self.assumptions.append(Assumption("pooling", "gap", "because the file has no attention pooling"))
        return {**fields, "pooling": "gap", "num_classes": classes}

    def positions(self) -> dict[str, Any]:
        learned = self.names.of("pos_embed") in self.shapes
        return {**super().positions(), "position_embedding": "learned" if learned else "sincos2d_mae"}

    def image_size(self, found: Mapping[str, Any]) -> tuple[int, int]:
        if self.names.of("pos_embed") in self.shapes:
            return super().image_size(found)
        return self.any_size(
            found["patch_size"], "the smallest released size, because sine-cosine positions fit every size"
        )


def with_pooling(arrays: LazyArrays, prefix: str) -> LazyArrays:
    """The arrays with the parameters of ViTConfig's attention pooling that AIMv2's head does not have, if it has a
    head."""
    head = f"{prefix}head."
    if f"{prefix}{_QUERY}" not in arrays:
        return arrays
    query = arrays.entries[f"{prefix}{_QUERY}"]
    width, dtype = query.shape[-1] if query.shape else 0, query.dtype
    made: dict[str, LazyArray] = {}

    def add(name: str, shape: tuple[int, ...], value: np.ndarray | float) -> None:
        made[head + name] = LazyArray(shape, dtype, lambda: convert(np.broadcast_to(value, shape), dtype))

    made[f"{head}q_proj.weight"] = LazyArray((width, width), dtype, lambda: convert(np.eye(width), dtype))
    for part in "qkv":
        if f"{head}{part}_proj.bias" not in arrays:
            add(f"{part}_proj.bias", (width,), 0.0)
    add("norm.weight", (width,), 1.0)
    for name, shape in (("fc1", (1, width)), ("fc2", (width, 1))):
        add(f"mlp.{name}.weight", shape, 0.0)
        add(f"mlp.{name}.bias", shape[:1], 0.0)
    return LazyArrays({**arrays.entries, **made})


def allowed_values(model: ViTConfig) -> dict[str, Values]:
    """Field -> allowed values, for the fields in which AIMv2 differs from the plain ViT."""
    sincos = model.position_embedding == "sincos2d_mae"
    return {
        "class_token": (False,),
        "class_token_position": (False,),
        "pooling": ("gap",),
        "num_classes": (0,),
        "position_embedding": ("sincos2d_mae",) if sincos else ("learned",),
        "norm": ("rms_norm",),
        "embed_norm": (True,),
        "mlp": ("swiglu",),
        "qkv_bias": (model.proj_bias,),
        "proj_bias": (model.qkv_bias, True),
        "activation": ANY,
    }


def config_fields(model: ViTConfig) -> dict[str, Any]:
    """The fields of config.json for this family, in addition to those of every tower."""
    return {
        "intermediate_size": model.mlp_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "qkv_bias": model.qkv_bias,
        "mlp_bias": model.proj_bias,
        "use_head": False,
        "is_native": model.position_embedding == "sincos2d_mae",
    }
