"""The decoder in Meta's files of masked autoencoders (facebookresearch/mae, `mae_pretrain_*_full.pth` and files of
main_pretrain.py). Its blocks are of the same kind as the encoder's, under other names."""

from collections.abc import Mapping
from typing import Any

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.decoder import decoder_rows
from vit_core.checkpoints.formats.interface import DecoderReading, Source, layers_of
from vit_core.checkpoints.formats.rules import rule
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.parameters import DECODER

_POSITIONS, _EMBED, _HIDDEN = "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.mlp.fc1.weight"
_HEADS = 16
"""Heads of every decoder in models_mae.py. They are assumed, because no array shows them."""
_ARGS = {"mask_ratio": "mask_ratio", "normalize_target": "norm_pix_loss"}
"""Fields of MaskedAutoencoder -> options of main_pretrain.py, which its files contain."""


def read_decoder(source: Source, arrays: LazyArrays, model: ViTConfig) -> DecoderReading | None:
    """How to read the decoder; None if there is none, or its sizes are invalid for our decoder."""
    shapes = arrays.shapes
    if any(len(shapes.get(name, ())) != 2 for name in (_EMBED, _HIDDEN)) or _POSITIONS not in arrays:
        return None
    sizes = {
        "decoder_width": shapes[_EMBED][0],
        "decoder_depth": layers_of(shapes, "decoder_blocks."),
        "decoder_mlp_dim": shapes[_HIDDEN][0],
        "decoder_heads": _HEADS,
    }
    said = getattr(source.facts.get("args"), "attributes", source.facts.get("args"))
    args = {ours: said[theirs] for ours, theirs in _ARGS.items() if isinstance(said, Mapping) and theirs in said}
    fields: dict[str, Any] = {**sizes, **args}
    try:
        mae = MaskedAutoencoder.parse(fields, f"{source.path}: as a decoder of Meta's")
        rules = [rule(ours, _name(ours.removeprefix(DECODER))) for ours in decoder_rows(model, mae)]
    except InputError:
        return None
    return DecoderReading(mae, rules, _POSITIONS, frozenset(fields) - {"decoder_heads"})


def _name(ours: str) -> str:
    return ours if ours == "mask_token" else f"decoder_{ours}"
