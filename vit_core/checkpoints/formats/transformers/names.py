"""Names of arrays in Hugging Face transformers' image towers: seven kinds, each in an old and a new version.

Files have the names of old versions, and current versions still write them. The modules of transformers 5 have other
names in memory, which a state dict saved by hand contains. Both are read; the names of files are written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.formats.rules import Rule, rule
from vit_core.config import ViTConfig
from vit_core.parameters import parameters
from vit_core.position_embeddings import Method


@dataclass(frozen=True)
class Family:
    """A model_type of config.json: the names of its arrays, and the defaults of its config class."""

    kind: Literal["vit", "dinov2", "dinov3", "beit", "internvl", "clip", "aimv2"]
    prefix: str
    """Prefix of the tower's names in classes that have other parts too."""
    activation: str = "gelu"
    epsilon: float = 1e-6
    resampling: Method = "bicubic"
    """How the class resamples positions. The default is bicubic with A = -0.75, without antialiasing."""
    heads: int = 12
    """Default of its config class."""


FAMILIES = {
    "vit": Family("vit", "vit.", epsilon=1e-12),
    "deit": Family("vit", "deit.", epsilon=1e-12),
    "vit_mae": Family("vit", "vit.", epsilon=1e-12),
    "vit_msn": Family("vit", "vit."),
    "ijepa": Family("vit", "ijepa.", epsilon=1e-12),
    "dinov2": Family("dinov2", "dinov2."),
    "dinov2_with_registers": Family("dinov2", "dinov2_with_registers.", resampling="bicubic_antialias"),
    "dinov3_vit": Family("dinov3", "", epsilon=1e-5, heads=6),
    "beit": Family("beit", "beit.", epsilon=1e-12),
    "data2vec-vision": Family("beit", "data2vec_vision.", epsilon=1e-12),
    "internvl_vision": Family("internvl", "", heads=16),
    "siglip_vision_model": Family("clip", "vision_model.", "gelu_pytorch_tanh"),
    "siglip2_vision_model": Family("clip", "vision_model.", "gelu_pytorch_tanh", resampling="bilinear_antialias"),
    "clip_vision_model": Family("clip", "vision_model.", "quick_gelu", 1e-5),
    "aimv2_vision_model": Family("aimv2", "vision_model.", "silu", 1e-5, heads=8),
}
TOWER_OF = {
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
    "aimv2": "aimv2_vision_model",
    "altclip_vision_model": "clip_vision_model",
    **{
        f"{name}{end}": "clip_vision_model"
        for name in ("chinese_clip", "clipseg", "metaclip_2")
        for end in ("", "_vision_model")
    },
}
"""Model type of a model with two towers, or of a tower equal to CLIP's -> model type of the image tower."""
PATCHES = (
    *("patch_embeddings.projection.weight", "patch_embedding.weight", "embeddings.patch_embeddings.weight"),
    "embeddings.patch_embed.weight",
)
"""Ends of the names of the patch projection's weight, in all families."""

_Theirs = Mapping[str, str | tuple[str, ...]]
_VIT = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "norm": "layernorm",
    "pre_logits.fc": "pooler.dense",
}
_BEIT = {**_VIT, "fc_norm": "pooler.layernorm"}
_DINOV3 = {
    "patch_embed.proj": "embeddings.patch_embeddings",
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "norm": "norm",
}
_CLIP = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm_pre": "pre_layrnorm",  # (sic)
    "norm": "post_layernorm",
    "attn_pool.latent": "head.probe",
    "attn_pool.proj": "head.attention.out_proj",
    "attn_pool.norm": "head.layernorm",
    "attn_pool.mlp.fc1": "head.mlp.fc1",
    "attn_pool.mlp.fc2": "head.mlp.fc2",
}
_AIMV2 = {
    "patch_embed.proj": "embeddings.patch_embed",
    "patch_embed.norm": "embeddings.rms_norm",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm": "rms_norm",
    "attn_pool.latent": "head.cls_token",
    "attn_pool.q": "head.q_proj",
    "attn_pool.proj": "head.output_proj",
    "attn_pool.norm": "head.norm",
    "attn_pool.mlp.fc1": "head.mlp.fc1",
    "attn_pool.mlp.fc2": "head.mlp.fc2",
}
_TOWERS: Mapping[str, Mapping[str, str]] = {
    "vit": _VIT,
    "dinov2": _VIT,
    "dinov3": _DINOV3,
    "beit": _BEIT,
    "internvl": _VIT,
    "clip": _CLIP,
    "aimv2": _AIMV2,
}
_SHARED_BIAS = {"files": "encoder.relative_position_bias", "memory": "shared_position_bias"}
_LAYOUTS = {"embeddings.class_embedding": "width", "embeddings.position_embedding.weight": "positions width"}
_PATCH_MATRIX = "width (patch_height patch_width channels)"
"""Axes of Siglip2's patch projection, which is a Linear over flattened patches."""

_SCALED = {
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_LAMBDAS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "ls1.gamma": "lambda_1",
    "ls2.gamma": "lambda_2",
}
_NORMS: Mapping[str, _Theirs] = {
    "vit": {"norm1": "layernorm_before", "norm2": "layernorm_after"},
    "dinov2": _SCALED,
    "dinov3": _SCALED,
    "beit": _LAMBDAS,
    "internvl": _LAMBDAS,
    "clip": {"norm1": "layer_norm1", "norm2": "layer_norm2"},
    "aimv2": {"norm1": "rms_norm1", "norm2": "rms_norm2"},
}
_ATTENTION: Mapping[str, _Theirs] = {
    "files": {
        "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.q_bias": "attention.attention.query.bias",
        "attn.v_bias": "attention.attention.value.bias",
        "attn.rel_pos": "attention.attention.relative_position_bias",
        "attn.proj": "attention.output.dense",
    },
    "memory": {
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.q_bias": "attention.q_proj.bias",
        "attn.v_bias": "attention.v_proj.bias",
        "attn.rel_pos": "relative_position_bias",
        "attn.proj": "attention.o_proj",
    },
    "internvl": {
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.proj": "attention.projection_layer",
    },
    "aimv2": {
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.proj": "attention.out_proj",
    },
    "clip": {
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.out_proj",
    },
}
_DENSE = {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
_MLPS: Mapping[str, _Theirs] = {
    "mlp": {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
    "dinov3": {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"},
    "vit, files": _DENSE,
    "beit, files": _DENSE,
    "aimv2": {"mlp.fc1": ("ffn.gate_proj", "ffn.up_proj"), "mlp.fc2": "ffn.down_proj"},
    "gated, files": {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"},
    "gated, memory": {"mlp.fc1": ("mlp.gate_proj", "mlp.up_proj"), "mlp.fc2": "mlp.down_proj"},
}


@dataclass(frozen=True)
class Names:
    """The names of arrays in one file."""

    model_type: str
    prefixed: bool
    """Whether the tower's names have its prefix."""
    gated: bool = False
    """Whether its MLPs are gated."""
    age: Literal["files", "memory"] = "files"

    @classmethod
    def found(cls, model_type: str, names: Mapping[str, object]) -> "Names":
        """The names that a file has. names: its arrays."""

        def any_ends(*ends: str) -> bool:
            return any(name.endswith(ends) for name in names)

        prefixed = any(name.startswith(FAMILIES[model_type].prefix) for name in names)
        if FAMILIES[model_type].kind == "dinov3":
            in_memory = any(name.startswith("model.") for name in names)
            gated = any_ends(".mlp.gate_proj.weight")
            return cls(model_type, prefixed, gated, "memory" if in_memory else "files")
        if FAMILIES[model_type].kind == "aimv2":
            return cls(model_type, prefixed, gated=True)
        gated = any_ends(".mlp.weights_in.weight", ".mlp.gate_proj.weight")
        return cls(model_type, prefixed, gated, "memory" if any_ends(".attention.q_proj.weight") else "files")

    @property
    def kind(self) -> str:
        return FAMILIES[self.model_type].kind

    @property
    def prefix(self) -> str:
        return FAMILIES[self.model_type].prefix if self.prefixed else ""

    @property
    def layers(self) -> str:
        """The prefix of the names of all blocks, up to the number."""
        if self.kind in ("clip", "aimv2"):
            return f"{self.prefix}encoder.layers."
        if self.kind == "dinov3":
            return "model.layer." if self.age == "memory" else "layer."
        if self.kind in ("vit", "beit") and self.age == "memory":
            return f"{self.prefix}layers."
        return f"{self.prefix}encoder.layer."

    @property
    def block(self) -> _Theirs:
        """Our name within a block -> transformers' name or names."""
        # Files of DINOv3 have the names in memory, because it was added after them.
        age = "memory" if self.kind == "dinov3" else self.age
        attention = _ATTENTION.get(self.kind, _ATTENTION[age])
        mlp = _MLPS.get(f"{self.kind}, {age}", _MLPS.get(self.kind, _MLPS["mlp"]))
        gated = self.gated and self.kind != "aimv2"  # its MLPs are always gated
        return {**_NORMS[self.kind], **attention, **(_MLPS[f"gated, {age}"] if gated else mlp)}

    def of(self, ours: str) -> str:
        """The name of a parameter outside the blocks and the head."""
        theirs, leaf = _look_up(_TOWERS[self.kind], ours)
        return f"{self.prefix}{theirs}{leaf}"

    def in_block(self, ours: str, layer: int | str = 0) -> tuple[str, ...]:
        """The names of the arrays that form one parameter of a block."""
        theirs, leaf = _look_up(self.block, ours)
        parts = (theirs,) if isinstance(theirs, str) else theirs
        return tuple(f"{self.layers}{layer}.{part}{leaf}" for part in parts)

    def shared_bias(self, leaf: str) -> str:
        """The name of an array of the relative bias that all blocks share."""
        return f"{self.prefix}{_SHARED_BIAS[self.age]}.{leaf}"

    def rules(self, model: ViTConfig) -> list[Rule]:
        """A rule for every parameter of a model."""
        rows = list(parameters(model))
        if self.kind == "clip":
            rows = [name for name in rows if not name.startswith("attn_pool.kv.")]  # in the rule of q
        return [self._rule(name, model) for name in rows]

    def _rule(self, ours: str, model: ViTConfig) -> Rule:
        stem, _, leaf = ours.rpartition(".")
        if stem == "attn_pool.q" and self.kind == "clip":  # as in torch's MultiheadAttention
            return rule((ours, f"attn_pool.kv.{leaf}"), f"{self.prefix}head.attention.in_proj_{leaf}")
        if stem == "attn_pool.kv":
            return rule(ours, tuple(f"{self.prefix}head.{part}_proj.{leaf}" for part in "kv"))
        if stem == "shared_rel_pos":
            return rule(ours, self.shared_bias(leaf))
        if ours.startswith("blocks."):
            _, layer, within = ours.split(".", 2)
            return rule(ours, self.in_block(within, layer))
        if stem == "head_dist":
            return rule(ours, f"distillation_classifier.{leaf}")
        if stem == "head" and model.distillation == "head":
            return rule(ours, f"cls_classifier.{leaf}")
        if stem == "head":
            projected = self.model_type in ("clip_vision_model", "aimv2_vision_model")
            return rule(ours, f"{'visual_projection' if projected else 'classifier'}.{leaf}")
        theirs = self.of(ours)
        if ours == "patch_embed.proj.weight" and self.model_type == "siglip2_vision_model":
            return rule(ours, theirs, _PATCH_MATRIX)
        return rule(ours, theirs, _LAYOUTS.get(theirs.removeprefix(self.prefix)))


def _look_up(names: _Theirs, ours: str) -> tuple[str | tuple[str, ...], str]:
    """Their name or names, and the end of ours that is added to each: ".weight", ".bias" or nothing."""
    stem, dot, leaf = (ours, "", "") if ours in names else ours.rpartition(".")
    return names[stem], dot + leaf


def with_own_prefix(arrays: LazyArrays, own: str) -> LazyArrays:
    """The arrays with the prefix of the model's family, if a class of the user's has the model under the prefix of
    another family (a Dinov2Model as `self.vit`)."""
    patches = next((name for name in arrays if name.endswith(PATCHES)), "")
    found = next((one.prefix for one in FAMILIES.values() if one.prefix and patches.startswith(one.prefix)), own)
    if found == own:
        return arrays
    return LazyArrays(
        {own + name.removeprefix(found) if name.startswith(found) else name: x for name, x in arrays.entries.items()}
    )


def with_one_prefix(arrays: LazyArrays) -> LazyArrays:
    """The arrays with the prefix "vit." for layers too, because transformers 5 omits it for layers in files of
    ViTMSN."""
    layers = "encoder.layer."
    if not any(name.startswith("vit.") for name in arrays) or not any(name.startswith(layers) for name in arrays):
        return arrays
    return LazyArrays(
        {f"vit.{name}" if name.startswith(layers) else name: entry for name, entry in arrays.entries.items()}
    )
