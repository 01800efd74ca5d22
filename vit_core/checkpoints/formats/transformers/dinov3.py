"""The config of transformers' DINOv3ViT, and the values that it can express.

It supports only DINOv3's rotary positions: config.json states their base and the random changes in training. The bias
of keys is optional. Its classes compute the angles in float32 for every type of the model. Source:
huggingface/transformers, src/transformers/models/dinov3_vit.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.allowed_values import ANY, Values
from vit_core.checkpoints.formats.transformers.config_json import GATES, Tower
from vit_core.config import ViTConfig
from vit_core.rope import Rope

_ROPE = {"rope_theta": "base", "pos_embed_shift": "shift", "pos_embed_jitter": "jitter", "pos_embed_rescale": "rescale"}
"""Key of config.json -> field of Rope."""
_DEFAULTS = {"rope_theta": 100.0, "pos_embed_rescale": 2.0}
"""Defaults of its config class."""
_PARTS = ("query", "key", "value")


class DINOv3Tower(Tower):
    """Finds the config of a DINOv3ViTModel or DINOv3ViTBackbone."""

    def sizes(self) -> dict[str, Any]:
        names, shapes = self.names, self.shapes
        biases = {f"{part}_bias": f"{names.layers}0.attention.{part[0]}_proj.bias" in shapes for part in _PARTS}
        if biases["query_bias"] != biases["value_bias"]:
            self.cannot_say("a bias on only one of queries and values")
        if biases["key_bias"] and not biases["query_bias"]:
            self.cannot_say("a bias on keys but not on queries")
        proj, mlp = (names.in_block(f"{end}.bias")[0] in shapes for end in ("attn.proj", "mlp.fc2"))
        if proj != mlp:
            self.cannot_say("a bias on only one of the attention's projection and the MLP (proj_bias, mlp_bias)")
        registers = self.shape(names.of("reg_token"), 3)[1]
        if not registers:
            self.left_out.append(r"(^|\.)register_tokens$")
        key_bias = biases["key_bias"] or not biases["query_bias"]
        return {**super().sizes(), "registers": registers, "key_bias": key_bias, "proj_bias": proj}

    def expected(self, found: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        patch, bias = found["patch_size"], found["qkv_bias"]
        return {
            "hidden_size": (found["width"],),
            "num_hidden_layers": (found["depth"],),
            "num_channels": (found["channels"],),
            "patch_size": (list(patch), *patch[: patch[0] == patch[1]]),
            "intermediate_size": (found["mlp_dim"],),
            "use_gated_mlp": (found["mlp"] == "swiglu",),
            "num_register_tokens": (found["registers"],),
            "query_bias": (bias,),
            "value_bias": (bias,),
            "key_bias": (bias and found["key_bias"],),
            "proj_bias": (found["proj_bias"],),
            "mlp_bias": (found["proj_bias"],),
        }

    def ends(self) -> dict[str, Any]:
        return {"num_classes": 0, "position_embedding": "none"}

    def positions(self) -> dict[str, Any]:
        said = {**_DEFAULTS, **self.said}
        rope = {field: said.get(key) for key, field in _ROPE.items()}
        if not self.top and "rope" not in self.fields:
            why = "transformers' default for dinov3_vit, because there is no config.json"
            self.assumptions.append(Assumption("rope", Rope(**rope), why))
        return {"rope": rope}

    def heads(self, found: Mapping[str, Any]) -> Any:
        if not self.top and found["width"] == 4096 and "heads" not in self.fields:
            self.assumptions.append(Assumption("heads", 32, "as in DINOv3's 7B", "--set heads=N for another number"))
            return 32
        return super().heads(found)

    def image_size(self, found: Mapping[str, Any]) -> tuple[int, int]:
        return self.any_size(
            found["patch_size"], "the released models' 14x14 patches, because rotary positions fit every size"
        )


def allowed_values(model: ViTConfig) -> dict[str, Values]:
    """Field -> allowed values, for the fields in which DINOv3ViT differs from the plain ViT."""
    either = (True, False)
    return {
        "num_classes": (0,),
        "position_embedding": ("none",),
        "class_token_position": (False,),
        "rope": (rope_there(model),),
        "registers": ANY,
        "mlp": ("mlp", "swiglu"),
        "layer_scale": (1.0,) if model.layer_scale is None else ANY,
        "qkv_bias": either,
        "key_bias": either,
        "proj_bias": either,
    }


def rope_there(model: ViTConfig) -> Rope:
    """The rotary positions that the class can compute: the model's values for fields that config.json has, the class's
    for others."""
    rope = model.rope or Rope()
    return Rope(**{field: getattr(rope, field) for field in _ROPE.values()})


def config_fields(model: ViTConfig) -> dict[str, Any]:
    """The fields of config.json for this family, in addition to those of every tower."""
    rope = model.rope or Rope()
    gated, bias = model.mlp == "swiglu", model.qkv_bias
    return {
        "intermediate_size": model.mlp_dim,
        "use_gated_mlp": gated,
        **({"hidden_act": GATES[0]} if gated else {}),
        "num_register_tokens": model.registers,
        "layerscale_value": model.layer_scale,
        "query_bias": bias,
        "key_bias": bias and model.key_bias,
        "value_bias": bias,
        "proj_bias": model.proj_bias,
        "mlp_bias": model.proj_bias,
        **{key: getattr(rope, field) for key, field in _ROPE.items()},
    }
