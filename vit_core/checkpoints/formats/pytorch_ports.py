"""The formats of two early ports of google-research/vision_transformer to PyTorch, whose fine-tuned files are common:
jeonsworld/ViT-pytorch (models/modeling.py) and lukemelas/PyTorch-Pretrained-ViT (the package pytorch-pretrained-vit).

Both compute the network of the paper: exact GELU, epsilon 1e-6, class token. Both resample positions by
scipy.ndimage.zoom, as Google's code did. Their arrays do not show the heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import Values, plain_vit_with
from vit_core.checkpoints.formats.example_models import GELU
from vit_core.checkpoints.formats.google.names import RESAMPLING
from vit_core.checkpoints.formats.interface import (
    FROM_ARRAYS,
    Fields,
    Format,
    Reading,
    Source,
    Writer,
    Writing,
    assume_heads,
    assume_image_size,
    axes_of,
    layers_of,
    not_carried,
)
from vit_core.checkpoints.formats.linear_head import with_linear_head
from vit_core.checkpoints.formats.rules import Rule, renamed, rule, write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_DETERMINED = FROM_ARRAYS | {"class_token_position", "pooling", "activation", "norm_epsilon", "position_resampling"}


@dataclass(frozen=True)
class Port:
    """The names of one port."""

    layers: str
    """The prefix before a block's number."""
    names: Mapping[str, str]
    """Ours -> theirs, without the last part; for `attn.qkv`, the three layers are separated by spaces."""
    refused: Mapping[str, str]
    """Prefix of arrays -> what they belong to, which ViTConfig cannot express, and what to do."""

    def recognizes(self, source: Source) -> bool:
        """Whether the arrays have the names of its positions and of its first layer."""
        first = renamed("blocks.0.norm1.weight", self.names, self.layers)
        return self.names["pos_embed"] in source.arrays and first in source.arrays

    def read(self, source: Source, fields: Fields) -> Reading:
        """Finds the config and the rules, from the shapes. Raises InputError for what ViTConfig cannot express."""
        where, shapes = source.path, source.arrays.shapes
        for prefix, what in self.refused.items():
            if name := next((name for name in shapes if name.startswith(prefix)), None):
                raise InputError(f"{where}: {name} {what}")
        width, channels, height, across = axes_of(shapes, f"{self.names['patch_embed.proj']}.weight", 4, where)
        mlp_dim, _ = axes_of(shapes, renamed("blocks.0.mlp.fc1.weight", self.names, self.layers), 2, where)
        _, positions, _ = axes_of(shapes, self.names["pos_embed"], 3, where)
        depth, class_token = layers_of(shapes, self.layers), self.names["cls_token"] in shapes
        if not class_token:
            raise InputError(f"{where}: {self.names['cls_token']} is missing; expected the model with a class token")
        heads, heads_assumed = assume_heads(width, depth, mlp_dim, fields)
        image_size, size_assumed = assume_image_size(positions - 1, (height, across), fields, where)
        arrays, notes, used = with_linear_head(source.arrays, source, width, self.names["head"])
        found = {
            "image_size": image_size,
            "patch_size": (height, across),
            "channels": channels,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "num_classes": arrays.shapes.get(f"{self.names['head']}.weight", (0,))[0],
            "activation": "gelu",
            "norm_epsilon": 1e-6,
            "position_resampling": RESAMPLING,
        }
        model = ViTConfig.parse({**found, **fields}, str(where))
        return Reading(
            CheckpointConfig(model=model),
            self.rules(model),
            arrays,
            notes=tuple(notes),
            assumptions=(*size_assumed, *heads_assumed),
            used=used,
        )

    def rules(self, model: ViTConfig) -> list[Rule]:
        """A rule for every parameter; queries, keys and values are separate layers."""
        return [rule(name, self.foreign(name)) for name in parameters(model)]

    def foreign(self, name: str) -> str | tuple[str, ...]:
        """The foreign name of a parameter, or three for queries, keys and values."""
        if ".attn.qkv." not in name:
            return renamed(name, self.names, self.layers)
        layer, leaf = name.split(".")[1], name.rpartition(".")[2]
        return tuple(f"{self.layers}{layer}.{part}.{leaf}" for part in self.names["attn.qkv"].split())

    def write(self, checkpoint: Checkpoint) -> Writing:
        """The arrays under its names."""
        model, notes = checkpoint.config.model, not_carried(checkpoint, RESAMPLING)
        if not model.num_classes:
            head = self.names["head"]
            notes = (f"it has no head: set model.{head} = torch.nn.Identity() before loading", *notes)
        return Writing(write_by_rules(self.rules(model), model, checkpoint.arrays), notes=notes)


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that both ports can express."""
    return plain_vit_with(model, activation=("gelu",), norm_epsilon=(1e-6,))


_JEONSWORLD = Port(
    layers="transformer.encoder.layer.",
    names={
        "patch_embed.proj": "transformer.embeddings.patch_embeddings",
        "cls_token": "transformer.embeddings.cls_token",
        "pos_embed": "transformer.embeddings.position_embeddings",
        "norm1": "attention_norm",
        "attn.qkv": "attn.query attn.key attn.value",
        "attn.proj": "attn.out",
        "norm2": "ffn_norm",
        "mlp.fc1": "ffn.fc1",
        "mlp.fc2": "ffn.fc2",
        "norm": "transformer.encoder.encoder_norm",
        "head": "head",
    },
    refused={
        "transformer.embeddings.hybrid_model.": "belongs to a hybrid's ResNet, which cannot be read from this port; "
        "Google's .npz files of its pretrained hybrids can",
        "transformer.encoder.part_": "belongs to TransFG, which selects tokens in its last layer; ViTConfig cannot "
        "express it",
    },
)
_LUKEMELAS = Port(
    layers="transformer.blocks.",
    names={
        "patch_embed.proj": "patch_embedding",
        "cls_token": "class_token",
        "pos_embed": "positional_embedding.pos_embedding",
        "norm1": "norm1",
        "attn.qkv": "attn.proj_q attn.proj_k attn.proj_v",
        "attn.proj": "proj",
        "norm2": "norm2",
        "mlp.fc1": "pwff.fc1",
        "mlp.fc2": "pwff.fc2",
        "norm": "norm",
        "head": "fc",
    },
    refused={
        "pre_logits.": "belongs to a layer that pytorch-pretrained-vit leaves out by default and otherwise computes "
        "before the final norm, unlike the paper; give Google's .npz file of the same model, or remove pre_logits"
    },
)


def _format(name: str, port: Port, anchor: str) -> Format:
    return Format(
        name,
        recognizes=port.recognizes,
        read=port.read,
        anchors=(anchor,),
        determined=_DETERMINED,
        writer=Writer((".pth", ".safetensors"), allowed_values, port.write),
        examples={"class token": GELU},
    )


JEONSWORLD = _format("jeonsworld", _JEONSWORLD, r"transformer\.embeddings\.patch_embeddings\.weight")
LUKEMELAS = _format("lukemelas", _LUKEMELAS, r"positional_embedding\.pos_embedding")
