"""The Vision Transformers of keras_hub: the names of their arrays in Keras's files, and rules for every parameter.

Keras names an array by the attributes that lead to it, and by its number in its layer: a kernel or a scale is "vars/0",
a bias "vars/1". Equal layers in a list are numbered from the second one on ("block", "block_1"). Source: keras-team/
keras-hub, keras_hub/src/models/{vit,deit,dinov2,dinov3,siglip,clip}.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vit_core.checkpoints.formats.rules import Rule
from vit_core.config import ViTConfig
from vit_core.parameters import Parameter, parameters

PARTS = ("query_dense", "key_dense", "value_dense")
"""The layers that make queries, keys and values."""
_NUMBERS = {"weight": 0, "bias": 1}


@dataclass(frozen=True)
class Family:
    """One of keras_hub's backbones, or the image tower of one."""

    name: str
    """The name of its class, such as ViTBackbone."""
    prefix: str
    """The name of its layers in files: "vi_t" for ViTEncoder."""
    embeddings: str
    """The layer with the tokens and positions."""
    patches: str
    """The convolution in it."""
    block: str
    """The first block."""
    norm: str
    """The last norm."""
    attention: str
    """The layer with queries, keys and values in a block."""
    layers: Mapping[str, str]
    """Our other layers in a block -> theirs; two names for a gate and the layer that it multiplies."""
    mlp_key: str
    """The key of the config with the width of the MLP."""
    epsilon_key: str | None = None
    """The key with the epsilon; None if it is always 1e-6."""
    epsilon: float = 1e-6
    """The default of the epsilon."""
    classifier: str | None = None
    """The name of the class with a head, if there is one."""
    whole: str | None = None
    """The name of the class of an image tower together with its text tower."""
    activation: str | None = None
    """Keras's name of the default activation, if the config states it."""
    outer: Mapping[str, str] = field(default_factory=dict)
    """Our layers outside the blocks that only this family has -> theirs."""

    @property
    def anchor(self) -> str:
        """The kernel of the patches, which every model has once."""
        return f"{self.embeddings}/{self.patches}/vars/0"

    @property
    def in_whole_model(self) -> str:
        """The name of the backbone as a layer of its classifier."""
        return f"{self.prefix}_backbone"

    def block_name(self, layer: int) -> str:
        """The name of a block."""
        return f"{self.block}_{layer}" if layer else self.block

    def parts(self, layer: int) -> list[str]:
        """The names of the layers of queries, keys and values in a block."""
        return [f"{self.block_name(layer)}/{self.attention}/{part}" for part in PARTS]


_VIT, _DEIT = ("layers/vi_t_encoder", "layers/dei_t_encoder")
_NORMS = {"norm1": "layer_norm_1", "norm2": "layer_norm_2"}
_DINO = {"norm1": "norm1", "norm2": "norm2", "ls1": "layer_scale1", "ls2": "layer_scale2"}
VIT = Family(
    "ViTBackbone",
    "vi_t",
    "layers/vi_t_patching_and_embedding",
    "patch_embedding",
    f"{_VIT}/encoder_layers/vi_t_encoder_block",
    f"{_VIT}/layer_norm",
    "mha",
    {**_NORMS, "mlp.fc1": "mlp/dense_1", "mlp.fc2": "mlp/dense_2"},
    mlp_key="mlp_dim",
    epsilon_key="layer_norm_epsilon",
    classifier="ViTImageClassifier",
)
DEIT = Family(
    "DeiTBackbone",
    "dei_t",
    "layers/dei_t_embeddings",
    "patch_embedding",
    f"{_DEIT}/encoder_layers/dei_t_encoder_block",
    f"{_DEIT}/layer_norm",
    "mha",
    {**_NORMS, "mlp.fc1": "mlp/dense", "mlp.fc2": "output_layer/dense"},
    mlp_key="intermediate_dim",
    epsilon_key="layer_norm_epsilon",
    classifier="DeiTImageClassifier",
)
DINOV2 = Family(
    "DINOV2Backbone",
    "dinov2",
    "layers/dinov2_embedding",
    "patch_embeddings/projection",
    "layers/dinov2_encoder/layers/dinov2_layer",
    "layers/layer_normalization",
    "attention/attention",
    {**_DINO, "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"},
    mlp_key="intermediate_dim",
)
DINOV3 = Family(
    "DINOV3Backbone",
    "dinov3",
    "layers/dinov3_embedding",
    "patch_embeddings/projection",
    "layers/dinov3_encoder/layers/dinov3_layer",
    "layers/layer_normalization",
    "attention",
    {**_DINO, "mlp.fc1": "mlp/up_proj", "mlp.fc2": "mlp/down_proj"},
    mlp_key="intermediate_dim",
    epsilon_key="layer_norm_eps",
    epsilon=1e-5,
    activation="gelu",
)
_POOL = "layers/sig_lip_multi_head_attention_pooling"
SIGLIP = Family(
    "SigLIPVisionEncoder",
    "sig_lip",
    "layers/sig_lip_vision_embedding",
    "patch_embedding",
    "layers/sig_lip_encoder_layer",
    "layers/layer_normalization",
    "self_attn",
    {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"},
    mlp_key="intermediate_dim",
    epsilon_key="layer_norm_epsilon",
    whole="SigLIPBackbone",
    activation="gelu_approximate",
    outer={
        "attn_pool.q": f"{_POOL}/attention/query_dense",
        "attn_pool.kv": f"{_POOL}/attention/key_dense {_POOL}/attention/value_dense",
        "attn_pool.proj": f"{_POOL}/attention/output_dense",
        "attn_pool.norm": f"{_POOL}/layer_norm",
        "attn_pool.mlp.fc1": f"{_POOL}/mlp/fc1",
        "attn_pool.mlp.fc2": f"{_POOL}/mlp/fc2",
    },
)
CLIP = Family(
    "CLIPVisionEncoder",
    "clip",
    "layers/clip_vision_embedding",
    "patch_embedding",
    "layers/clip_encoder_layer",
    "layers/layer_normalization_1",
    "attention",
    {**_NORMS, "mlp.fc1": "dense_1", "mlp.fc2": "dense_2"},
    mlp_key="intermediate_dim",
    epsilon=1e-5,
    whole="CLIPBackbone",
    activation="quick_gelu",
    outer={"norm_pre": "layers/layer_normalization"},
)
PROBE = f"{_POOL}/vars/0"
"""The query of SigLIP's pooling."""
FAMILIES = (VIT, DEIT, DINOV2, DINOV3, SIGLIP, CLIP)
_GATED = {
    DINOV2.name: {"mlp.fc1": "mlp/weights_in", "mlp.fc2": "mlp/weights_out"},
    DINOV3.name: {"mlp.fc1": "mlp/gate_proj mlp/up_proj"},
}
"""Family -> the names of the layers of an MLP with a gate."""


def rules(family: Family, model: ViTConfig, tokens: Mapping[str, str], heads: Mapping[str, str]) -> list[Rule]:
    """A rule for every parameter. tokens: our tokens and positions -> the names of their arrays. heads: our layers
    after the last norm -> theirs."""
    made = []
    for row in parameters(model).values():
        names = (tokens[row.name],) if row.name in tokens else _names(family, model, row, heads)
        made.append(Rule((row.name,), names, _layout(family, row, len(names))))
    return made


def in_block(family: Family, gated: bool) -> dict[str, str]:
    """Our layers in a block, except the attention's -> theirs."""
    return {**family.layers, **(_GATED.get(family.name, {}) if gated else {})}


def _names(family: Family, model: ViTConfig, row: Parameter, heads: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the arrays that are together a parameter."""
    layer, _, leaf = row.name.rpartition(".")
    variable = f"vars/{_NUMBERS.get(leaf, 0)}"
    if not layer.startswith("blocks."):
        outer = {"patch_embed.proj": f"{family.embeddings}/{family.patches}", "norm": family.norm}
        return tuple(f"{one}/{variable}" for one in {**outer, **family.outer, **heads}[layer].split())
    _, number, inner = layer.split(".", 2)
    block = family.block_name(int(number))
    if inner.startswith("attn"):
        all_parts = dict(zip(("q", "k", "v"), family.parts(int(number)), strict=True))
        if leaf in ("q_bias", "v_bias"):
            return (f"{all_parts[leaf[0]]}/vars/1",)
        output = f"{block}/{family.attention}/output_dense"
        return tuple(f"{one}/{variable}" for one in (all_parts.values() if inner == "attn.qkv" else (output,)))
    theirs = in_block(family, model.mlp == "swiglu")[inner]
    return tuple(f"{block}/{one}/{variable}" for one in theirs.split())


def _layout(family: Family, row: Parameter, arrays: int) -> str:
    """The axes of the arrays of a parameter."""
    layout = row.jax
    if family is DINOV3:  # its heads are one axis of a Dense layer
        layout = layout.replace("heads head_dim", "(heads head_dim)").replace("((", "(").replace("))", ")")
    if family in (VIT, SIGLIP, CLIP) and row.name == "pos_embed":
        return "positions width"
    if family is CLIP and row.name == "cls_token":
        return "width"
    return layout.replace("gate mlp", "(gate mlp)") if arrays == 1 else layout
