"""Masked autoencoders in files: transformers' ViTMAEForPreTraining in both directions, and Meta's with the decoder.

transformers' loss is compared with that of both twins in parity_tests/test_masked_autoencoder.py, from files that are
written here.
"""

import json
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from vit_core import Checkpoint, CheckpointConfig, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.decoder import Decoder
from vit_core.errors import InputError
from vit_core.masked_autoencoder import MaskedAutoencoder, order_of
from vit_core.masks import PATCH_ORDER
from vit_core.parameters import DECODER
from vit_torch import masked_autoencoder

SIZES = {
    "image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 16, "decoder_intermediate_size": 20, "norm_pix_loss": True, "mask_ratio": 0.7,
}  # fmt: skip


def theirs(dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """transformers' model with random values, and positions by its own function, which it leaves at zero in new models:
    with the halves exchanged, as it says."""
    torch.manual_seed(0)
    model = hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**{**SIZES, **fields})).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for table_1ND in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        width = table_1ND.shape[2]
        table_ND = build_2d_sinusoidal_position_embedding(4, 4, width, cls_token=True, dtype=torch.float64)
        table_1ND.data = torch.cat([table_ND[:, width // 2 :], table_ND[:, : width // 2]], -1)[None].to(dtype)
    return model


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False, "num_channels": 1, "norm_pix_loss": False}], ids=str)
def test_transformers_files_are_read_and_written_with_equal_bits(fields: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(**fields)
    model.save_pretrained(tmp_path / "theirs")
    opened = open_checkpoint(tmp_path / "theirs")
    assert any("the file also has the decoder of a masked autoencoder" in note for note in opened.notes)
    save_checkpoint(tmp_path / "ours", opened, format="transformers", decoder=True)
    again, info = hf.ViTMAEForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    ours, before = again.config.to_dict(), model.config.to_dict()
    assert {key: ours[key] for key in before if key not in ("_name_or_path", "architectures")} == {
        key: before[key] for key in before if key not in ("_name_or_path", "architectures")
    }


def test_the_files_of_transformers_4_are_read_too(tmp_path: Path) -> None:
    """Its names of the decoder's blocks, which are written here; 5 writes others."""
    model = theirs()
    model.save_pretrained(tmp_path / "5")
    save_checkpoint(tmp_path / "4", open_checkpoint(tmp_path / "5"), format="transformers", decoder=True)
    names = (
        load_file(tmp_path / "4" / "model.safetensors").keys(),
        load_file(tmp_path / "5" / "model.safetensors").keys(),
    )
    assert "decoder.decoder_layers.1.attention.attention.query.weight" in names[0] - names[1]
    assert "decoder.decoder_encoder.layer.1.attention.attention.query.weight" in names[1] - names[0]
    both = [open_checkpoint(tmp_path / version).decoder for version in ("4", "5")]
    assert both[0] is not None
    assert both[1] is not None
    assert all((both[0].arrays[name] == both[1].arrays[name]).all() for name in both[0].arrays)


def test_without_being_asked_the_encoder_alone_is_written(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path / "mae")
    save_checkpoint(tmp_path / "vit", open_checkpoint(tmp_path / "mae"), format="transformers")
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["model_type"] == "vit"
    assert not any(name.startswith("decoder.") for name in load_file(tmp_path / "vit" / "model.safetensors"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"decoder.decoder_pos_embed": np.zeros((1, 17, 32), np.float32)}, "decoder_pos_embed is not MAE's table"),
        ({"decoder.decoder_embed.bias": np.zeros(31, np.float32)}, r"decoder_embed\.bias expected \[32\] found \[31\]"),
    ],
)
def test_a_decoder_that_is_no_such_decoder_is_left_out(change: dict[str, np.ndarray], why: str, tmp_path: Path) -> None:
    """Zeros are what transformers 5 leaves in a new model's table of positions, and in one that is trained from it."""
    theirs().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), **change}, file, {"format": "pt"})
    opened = open_checkpoint(tmp_path)
    assert opened.decoder is None
    assert any(re.search(f"the decoder is left out: .*{why}", note) for note in opened.notes)
    assert any(note.startswith("left out: decoder.decoder_embed.bias") for note in opened.notes)
    with pytest.raises(InputError, match="has no decoder of a masked autoencoder"):
        save_checkpoint(tmp_path / "out", opened, format="transformers", decoder=True)


def ours(mae: MaskedAutoencoder | None = None, **fields: Any) -> Checkpoint:
    """A small masked autoencoder with random values, in float64."""
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 1, "heads": 3, "mlp_dim": 40}
    fields = {**sizes, "num_classes": 0, "position_embedding": "sincos2d_mae", "activation": "gelu", **fields}
    mae = mae or MaskedAutoencoder(mask_ratio=0.7, decoder_width=16, decoder_depth=1, decoder_heads=2)
    model = ViTConfig(**fields)
    arrays = parity.randomized(model, 0, mae)
    decoder = {name: arrays.pop(name) for name in list(arrays) if name.startswith(DECODER)}
    encoder = Checkpoint.of(CheckpointConfig(model=model), arrays)
    return replace(encoder, decoder=Decoder(mae, LazyArrays.of(decoder)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding": "learned"}, r"position_embedding learned \(it has sincos2d_mae\)"),
        ({"position_embedding": "sincos2d_big_vision"}, "position_embedding sincos2d_big_vision"),
        ({"class_token": False, "pooling": "gap"}, r"class_token false \(it has true\), pooling gap"),
        ({"registers": 2}, r"registers 2 \(it has 0\)"),
        ({"mlp": "swiglu"}, r"mlp swiglu \(it has mlp\)"),
        ({"layer_scale": 0.1}, "layer_scale 0.1"),
        ({"image_size": (16, 32)}, "accepts only squares, found image_size 16x32"),
    ],
)
def test_what_their_class_cannot_hold_is_refused_by_field(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        save_checkpoint(tmp_path / "out", ours(**fields), format="transformers", decoder=True)
    assert not (tmp_path / "out").exists()


def test_a_decoder_for_patches_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its decoder is for another patch or image size"):
        save_checkpoint(tmp_path / "out", ours().adapt(patch_size=8), format="transformers", decoder=True)


def test_other_formats_have_no_decoder(tmp_path: Path) -> None:
    for format in ("timm", "vit"):
        with pytest.raises(InputError, match=f"{format} cannot store the decoder .*; formats that can: transformers"):
            save_checkpoint(tmp_path / "out", ours(), format=format, decoder=True)


META = {
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layernorm": "norm",
    "vit.layers": "blocks",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.": "",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
}
"""transformers' names, in memory, -> those of facebookresearch/mae's models_mae.py."""


def as_meta(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of transformers' with Meta's names."""
    made = {}
    for name, tensor in state.items():
        for a, b in META.items():
            name = name.replace(a, b)
        if "q_proj" in name:
            parts = [tensor, *(state[_of(name, kind)] for kind in "kv")]
            made[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            made[name] = tensor
    return made


def _of(name: str, kind: str) -> str:
    back = {"decoder_blocks": "decoder.decoder_layers", "blocks": "vit.layers"}
    first = next(ours for ours in back if name.startswith(ours))
    return name.replace(first, back[first], 1).replace("q_proj", f"{kind}_proj")


@pytest.mark.parametrize("args", [None, Namespace(norm_pix_loss=True, mask_ratio=0.7)], ids=["weights", "with args"])
def test_metas_files_have_the_decoder_and_its_loss(args: Namespace | None, tmp_path: Path) -> None:
    model = theirs(torch.float64, layer_norm_eps=1e-6)
    torch.save({"model": as_meta(model.state_dict()), **({"args": args} if args else {})}, tmp_path / "mae.pth")
    opened = open_checkpoint(tmp_path / "mae.pth", fields={"heads": 3}).with_fixed_positions()
    assert opened.config.model.position_embedding == "sincos2d_mae"
    assert opened.decoder is not None
    assert ("mask_ratio" in opened.decoder.stated) == (args is not None)
    assert "decoder_heads" not in opened.decoder.stated
    assert "decoder_heads: 16, assumed, as in the code of MAE's authors" in opened.notes
    mae = opened.decoder.mae if args else opened.decoder.mae.replace(mask_ratio=0.7, normalize_target=True)
    entries = {**opened.arrays.entries, **opened.decoder.arrays.entries}
    twin = masked_autoencoder.from_arrays(opened.config.model, mae, {name: x.read() for name, x in entries.items()})
    rng = np.random.default_rng(1)
    x_BCHW, noise_BN = torch.tensor(rng.uniform(-1, 1, (3, 3, 16, 16))), rng.random((3, 16))
    expected = model(x_BCHW, noise=torch.tensor(noise_BN)).loss.detach().numpy()
    found = twin(x_BCHW, {PATCH_ORDER: torch.tensor(order_of(noise_BN))}).mean().detach().numpy()
    assert parity.difference(found, expected)[1] < parity.FLOAT64_BOUND
