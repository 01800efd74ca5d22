"""Against Hugging Face transformers: its classifier with our random weights, through the names its files have.

Nothing is downloaded: a folder is written and `from_pretrained` opens it. (In memory transformers 5 has other names,
and maps the files' to them itself.) The bound is parity.FLOAT64_BOUND where a test does not derive another.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import ViTForImageClassification

import vit_torch
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.parameters import parameters

SMALL = ViTConfig(
    image_size=16,
    patch_size=4,
    width=24,
    depth=2,
    heads=3,
    mlp_dim=40,
    num_classes=5,
    activation="gelu",
    norm_epsilon=1e-12,
    position_resampling="bicubic",
)

FIELDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tanh gelu": {"activation": "gelu_tanh"},
    "no qkv bias": {"qkv_bias": False},
    "epsilon": {"norm_epsilon": 1e-3},
    "image not square": {"image_size": (8, 12)},
    "patch not square": {"patch_size": (4, 2)},
    "one channel": {"channels": 1},
    "depth 3": {"depth": 3},
    "no head": {"num_classes": 0},
}

NAMES = {
    "patch_embed.proj": ["vit.embeddings.patch_embeddings.projection"],
    "cls_token": ["vit.embeddings.cls_token"],
    "pos_embed": ["vit.embeddings.position_embeddings"],
    "norm1": ["layernorm_before"],
    "attn.qkv": [f"attention.attention.{part}" for part in ("query", "key", "value")],
    "attn.proj": ["attention.output.dense"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
    "norm": ["vit.layernorm"],
    "head": ["classifier"],
}


def their_names(name: str) -> list[str]:
    """The names in transformers' files of what one parameter of ours holds, in the order of its first axis."""
    prefix = ""
    if name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        prefix = f"vit.encoder.layer.{layer}."
    stem, dot, leaf = (name, "", "") if name in NAMES else name.rpartition(".")
    return [prefix + theirs + dot + leaf for theirs in NAMES[stem]]


def their_model(
    config: ViTConfig, arrays: Mapping[str, np.ndarray], folder: Path, attention: str = "sdpa"
) -> ViTForImageClassification:
    """transformers' model of a folder written here, in float64; every name in the file was used, and none missed."""
    height, width = config.patch_size
    transformers.ViTConfig(
        image_size=config.image_size,
        patch_size=height if height == width else (height, width),
        num_channels=config.channels,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_dim,
        num_labels=config.num_classes,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[config.activation],
        layer_norm_eps=config.norm_epsilon,
        qkv_bias=config.qkv_bias,
    ).save_pretrained(folder)
    file = {}
    for name, array in arrays.items():
        theirs = their_names(name)
        file |= zip(theirs, map(np.ascontiguousarray, np.split(array, len(theirs))), strict=True)
    save_file(file, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = ViTForImageClassification.from_pretrained(
        folder, dtype=torch.float64, attn_implementation=attention, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def their_gradients(model: ViTForImageClassification, config: ViTConfig, folder: Path) -> dict[str, np.ndarray]:
    """By our names, through transformers' own way to files: what it saves are the gradients."""
    for parameter in model.parameters():
        parameter.data = parameter.grad
    model.save_pretrained(folder)
    file = load_file(folder / "model.safetensors")
    return {name: np.concatenate([file[theirs] for theirs in their_names(name)]) for name in parameters(config)}


@pytest.mark.parametrize("name", FIELDS)
def test_logits_and_gradients(name: str, tmp_path: Path) -> None:
    config = SMALL.replace(**FIELDS[name])
    weights, (x_BHWC, probe_BC) = checkpoint(config), parity.probe(config, 1)
    theirs = their_model(config, weights.arrays, tmp_path)
    ours = vit_torch.trace(vit_torch.load(weights), x_BHWC, probe_BC)
    logits_BC = theirs(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).logits
    assert parity.difference(ours["output"], logits_BC.detach().numpy())[1] <= parity.FLOAT64_BOUND
    (logits_BC * torch.from_numpy(probe_BC)).sum().backward()
    for row, gradient in their_gradients(theirs, config, tmp_path / "gradients").items():
        assert parity.difference(ours[f"grad.{row}"], gradient)[1] <= parity.FLOAT64_BOUND, row


@pytest.mark.parametrize("size", [(12, 20), (24, 8), (28, 28), (8, 32)], ids=str)
def test_another_resolution(size: tuple[int, int], tmp_path: Path) -> None:
    """(8, 32) has as many patches as (16, 16)."""
    weights, (x_BHWC, _) = checkpoint(SMALL), parity.probe(SMALL, 1, image_size=size)
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = their_model(SMALL, weights.arrays, tmp_path)(x_BCHW, interpolate_pos_encoding=True).logits.numpy()
        at_run_time = vit_torch.load(weights)(x_BCHW, interpolate=True).numpy()
        at_load = vit_torch.load(weights, image_size=size)(x_BCHW).numpy()
    assert parity.difference(at_run_time, theirs)[1] <= parity.FLOAT64_BOUND
    assert parity.difference(at_load, theirs)[1] <= parity.FLOAT64_BOUND


def test_hidden_states(tmp_path: Path) -> None:
    weights, (x_BHWC, probe_BC) = checkpoint(SMALL), parity.probe(SMALL, 1)
    theirs = their_model(SMALL, weights.arrays, tmp_path)
    ours = vit_torch.trace(vit_torch.load(weights), x_BHWC, probe_BC)
    with torch.no_grad():
        states = theirs(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    for name, state in zip(["embed", "blocks.0", "blocks.1"], states, strict=True):
        assert parity.difference(ours[name], state.numpy())[1] <= parity.FLOAT64_BOUND, name


def test_attention_weights(tmp_path: Path) -> None:
    """Only transformers' eager attention gives them, by a float32 softmax; what enters the first block's is float64.

    With u = 2**-24, scores up to S and N tokens: S is rounded (S u), its distance from the maximum too (2 S u), exp is
    off by an ulp (2 u). The sum over N has the same error and N - 1 roundings, the division one: (6 S + N + 4) u.
    """
    weights, (x_BHWC, _) = checkpoint(SMALL), parity.probe(SMALL, 1)
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)
    ours, theirs = vit_torch.load(weights), their_model(SMALL, weights.arrays, tmp_path, attention="eager")
    with torch.no_grad():
        stages = ours.forward_intermediates(x_BCHW)
        q_BNTK, k_BMTK, _ = ours.blocks[0].attn.heads(ours.blocks[0].norm1(stages["embed"]))
        largest = (torch.einsum("bntk,bmtk->btnm", q_BNTK, k_BMTK) * SMALL.head_width**-0.5).abs().max()
        expected_BTNM = theirs(x_BCHW, output_attentions=True).attentions[0].numpy()
    bound = (6 * float(largest) + SMALL.tokens + 4) * 2.0**-24
    assert parity.difference(stages["blocks.0.attn"].numpy(), expected_BTNM)[1] <= bound
