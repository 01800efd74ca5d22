"""The decoder in transformers' ViTMAEForPreTraining, a masked autoencoder whose encoder is a ViT.

The tables of positions of encoder and decoder contain MAE's sine-cosine formula; they are stored in files but not
trained. The predicted values of a patch have the same order as here.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.decoder import decoder_rows
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.expressing import at_least_float32
from vit_core.checkpoints.formats.interface import DecoderReading, Source, Writing, layers_of
from vit_core.checkpoints.formats.rules import Rule, rule, write_by_rules
from vit_core.checkpoints.formats.transformers.config_json import ACTIVATIONS
from vit_core.checkpoints.formats.transformers.image_processors import preprocessor_texts
from vit_core.checkpoints.formats.transformers.names import Names
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.parameters import DECODER
from vit_core.position_embeddings import sincos2d

_LAYERS = "decoder.decoder_layers."
"""Prefix of the names of the decoder's blocks. transformers 5 writes _LAYERS_5 and loads both."""
_LAYERS_5 = "decoder.decoder_encoder.layer."
_POSITIONS = "decoder.decoder_pos_embed"
_ENDS = {
    "embed": "decoder.decoder_embed",
    "mask_token": "decoder.mask_token",
    "norm": "decoder.decoder_norm",
    "pred": "decoder.decoder_pred",
}
_KEYS = {
    "mask_ratio": "mask_ratio",
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "decoder_mlp_dim": "decoder_intermediate_size",
    "normalize_target": "norm_pix_loss",
}
"""Fields of MaskedAutoencoder -> keys of config.json."""


def read_decoder(source: Source, arrays: LazyArrays, names: Names, model: ViTConfig) -> DecoderReading | None:
    """How to read the decoder. None if there is none, or config.json states a decoder that MaskedAutoencoder cannot
    express."""
    if names.model_type != "vit_mae" or _POSITIONS not in arrays:
        return None
    fields = {ours: source.config[theirs] for ours, theirs in _KEYS.items() if theirs in source.config}
    layers = next((each for each in (_LAYERS, _LAYERS_5) if layers_of(arrays.shapes, each)), _LAYERS)
    try:
        mae = MaskedAutoencoder.parse(fields, f"{source.path}: config.json of {names.model_type}")
        rules = _rules(model, mae, names, layers)
    except InputError:
        return None
    return DecoderReading(mae, rules, _POSITIONS, frozenset(fields))


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that ViTMAEForPreTraining allows for its encoder, which has no head. Raises InputError for
    images or patches that are not square."""
    for field in ("image_size", "patch_size"):
        height, width = getattr(model, field)
        if height != width:
            found = f"{field} {height}x{width}"
            raise InputError(f"--to transformers: its ViTMAEForPreTraining accepts only squares, found {found}")
    return plain_vit_with(
        model,
        activation=tuple(dict.fromkeys(ACTIVATIONS.values())),
        norm_epsilon=ANY,
        num_classes=(0,),
        position_embedding=("sincos2d_mae",),
        class_token_position=ANY,  # used only with learned positions
        qkv_bias=(True, False),
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The arrays under the names of transformers 4, which transformers 5 reads too, config.json and
    preprocessor_config.json."""
    assert checkpoint.decoder is not None
    config, model, mae = checkpoint.config, checkpoint.config.model, checkpoint.decoder.mae
    names, inner, dtype = Names("vit_mae", prefixed=True), mae.decoder(model), checkpoint.dtype
    rows = decoder_rows(model, mae)
    arrays = write_by_rules(names.rules(model), model, checkpoint.arrays)
    decoder = write_by_rules(_rules(model, mae, names, _LAYERS), model, checkpoint.decoder.arrays, rows)
    arrays = LazyArrays({**arrays.entries, **decoder.entries})
    for name, width in ((names.of("pos_embed"), model.width), (_POSITIONS, inner.width)):
        table_1ND = np.pad(sincos2d(model.grid, width, "mae"), [(1, 0), (0, 0)])[None]
        arrays = arrays.with_array(name, convert(table_1ND, at_least_float32(dtype)))
    texts, notes = preprocessor_texts(config.preprocessing)
    text = json.dumps(_config(model, mae, inner, dtype), indent=2) + "\n"
    return Writing(arrays, {"config.json": text, **texts}, tuple(notes))


def _rules(model: ViTConfig, mae: MaskedAutoencoder, names: Names, layers: str) -> list[Rule]:
    """A rule for every parameter of the decoder. layers: prefix of the names of its blocks."""
    return [_rule(ours, names, layers) for ours in decoder_rows(model, mae)]


def _rule(ours: str, names: Names, layers: str) -> Rule:
    inside = ours.removeprefix(DECODER)
    if inside.startswith("blocks."):
        _, layer, within = inside.split(".", 2)
        return rule(ours, tuple(layers + name.removeprefix(names.layers) for name in names.in_block(within, layer)))
    stem, dot, leaf = (inside, "", "") if inside in _ENDS else inside.rpartition(".")
    return rule(ours, f"{_ENDS[stem]}{dot}{leaf}")


def _config(model: ViTConfig, mae: MaskedAutoencoder, inner: ViTConfig, dtype: str) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": activations[model.activation],
        "layer_norm_eps": model.norm_epsilon,
        "image_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "num_channels": model.channels,
        "qkv_bias": model.qkv_bias,
        **{theirs: getattr(mae, ours) for ours, theirs in _KEYS.items()},
        "decoder_intermediate_size": inner.mlp_dim,
        "torch_dtype": dtype,
    }
