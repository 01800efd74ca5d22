"""ViT-5's files in the layout of its authors' code (wangf3014/ViT-5), read and written.

No package has their classes. The files are built here by their names, and the reference is a forward pass in NumPy that
was written from what their code computes: registers after the patches, rotations of real numbers, frequencies from the
file. Theirs are powers in float32; with powers in float64 the comparison is exact.
"""

from argparse import Namespace
from math import isqrt, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

import vit_torch
from parity_tests.formats.foreign import assert_same_bits, assumed, images, largest_difference, opened
from vit_cli.application import run
from vit_core import ViTConfig, open_checkpoint, parity, save_checkpoint, variant
from vit_core.errors import InputError

WIDTH, DEPTH, HEADS, HIDDEN, SIDE = 48, 2, 3, 64, 4
State = dict[str, torch.Tensor]


def state_of(registers: int = 4, side: int = SIDE, norm_bias: bool = False, **shapes: Any) -> State:
    """What torch.save is given of their vit_models: random float32 values, and the buffers of both rotations."""
    generator = torch.Generator().manual_seed(registers)
    sizes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, side * side, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "head.weight": (5, WIDTH), "head.bias": (5,),
    }  # fmt: skip
    for i in range(DEPTH):
        block = {
            "norm1.weight": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,), "attn.q_norm.weight": (16,), "attn.k_norm.weight": (16,), "gamma_1": (WIDTH,),
            "gamma_2": (WIDTH,), "norm2.weight": (WIDTH,), "mlp.fc1.weight": (HIDDEN, WIDTH), "mlp.fc1.bias": (HIDDEN,),
            "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        sizes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    if registers:
        sizes["reg_token"] = (1, registers, WIDTH)
    if norm_bias:
        sizes |= {name.replace("weight", "bias"): (WIDTH,) for name in sizes if "norm1" in name}
    state = {name: torch.randn(shape, generator=generator) for name, shape in sizes.items()}
    state = {name: x / sqrt(x[0].numel()) if name.endswith("weight") and x.ndim > 1 else x for name, x in state.items()}
    for i in range(DEPTH):
        state[f"blocks.{i}.attn.rope.freqs"] = frequencies(10_000.0)
        if registers:
            state[f"blocks.{i}.attn.rope_reg.freqs"] = frequencies(100.0)
    return state


def frequencies(base: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The frequencies for heads of 16 values: each coordinate turns four pairs."""
    return 1.0 / base ** (torch.arange(0, 8, 2, dtype=dtype) / 8)


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    normed: np.ndarray = weight * (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6))
    return normed


def turned(x_NTK: np.ndarray, freqs_F: np.ndarray) -> np.ndarray:
    """Values of tokens on a square grid, row by row: the first half of a head's pairs turns with the row, the second
    with the column."""
    side, out = isqrt(len(x_NTK)), np.empty_like(x_NTK)
    for n, (row, column) in enumerate(np.ndindex(side, side)):
        angles = np.concatenate([row * freqs_F, column * freqs_F])
        even, odd = x_NTK[n, :, 0::2], x_NTK[n, :, 1::2]
        out[n, :, 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        out[n, :, 1::2] = odd * np.cos(angles) + even * np.sin(angles)
    return out


def logits_of(state: State, image_HWC: np.ndarray) -> np.ndarray:
    p = {name: x.double().numpy() for name, x in state.items()}
    side, registers = image_HWC.shape[0] // 16, p.get("reg_token", np.zeros((1, 0, WIDTH)))[0]
    patches = [image_HWC[16 * i : 16 * i + 16, 16 * j : 16 * j + 16] for i, j in np.ndindex(side, side)]
    kernel_DCPQ = p["patch_embed.proj.weight"]
    x_ND = np.stack([np.einsum("dcpq,pqc->d", kernel_DCPQ, one) for one in patches]) + p["patch_embed.proj.bias"]
    x_ND = np.concatenate([p["cls_token"][0], x_ND + p["pos_embed"][0], registers])
    first_register = 1 + side * side
    for i in range(DEPTH):
        b = {name.removeprefix(f"blocks.{i}."): x for name, x in p.items() if name.startswith(f"blocks.{i}.")}
        qkv_N3TK = (rms(x_ND, b["norm1.weight"]) @ b["attn.qkv.weight"].T).reshape(len(x_ND), 3, HEADS, 16)
        q_NTK, k_NTK = (rms(qkv_N3TK[:, j], b[f"attn.{name}_norm.weight"]) for j, name in enumerate("qk"))
        for z_NTK in (q_NTK, k_NTK):
            z_NTK[1:first_register] = turned(z_NTK[1:first_register], b["attn.rope.freqs"])
            if len(registers):
                z_NTK[first_register:] = turned(z_NTK[first_register:], b["attn.rope_reg.freqs"])
        weights_TNM = softmax(np.einsum("ntk,mtk->tnm", q_NTK * 16**-0.5, k_NTK), axis=-1)
        out_ND = np.einsum("tnm,mtk->ntk", weights_TNM, qkv_N3TK[:, 2]).reshape(x_ND.shape)
        x_ND = x_ND + b["gamma_1"] * (out_ND @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        hidden_NF = rms(x_ND, b["norm2.weight"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        hidden_NF = 0.5 * hidden_NF * (1 + erf(hidden_NF / sqrt(2)))
        x_ND = x_ND + b["gamma_2"] * (hidden_NF @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    logits: np.ndarray = rms(x_ND, p["norm.weight"])[0] @ p["head.weight"].T + p["head.bias"]
    return logits


def exact(state: State) -> State:
    """With the frequencies in float64."""
    bases = {"rope.freqs": 10_000.0, "rope_reg.freqs": 100.0}
    return {
        name: next((frequencies(base, torch.float64) for end, base in bases.items() if name.endswith(f".{end}")), x)
        for name, x in state.items()
    }


def training_file(path: Path, state: State) -> Path:
    """As their main.py keeps it; the published files' weights are under one of its keys."""
    torch.save({"model": state, "epoch": 799, "args": Namespace(model="vit5_small", input_size=64)}, path)
    return path


EXPECTED = variant("vit5-S/16", 64, 5).replace(
    width=WIDTH, depth=DEPTH, heads=HEADS, mlp_dim=HIDDEN, layer_scale=1.0, position_resampling="bicubic"
)


@pytest.mark.parametrize("registers", [4, 9, 0])
def test_read(registers: int, tmp_path: Path) -> None:
    """The config of the published variant, and the outputs of the forward pass: exact with exact frequencies. With
    theirs an angle, of at most 4 here, is off by 4 * 2**-24, which is below the roundings of a model in float32. (The
    other twin computes the same: `parity_tests/test_vit5.py`.)"""
    state = state_of(registers)
    found = opened(training_file(tmp_path / "checkpoint.pth", state))
    assert found.format == "vit5"
    rope = EXPECTED.rope if registers else {**EXPECTED.rope.model_dump(), "register_base": None}  # type: ignore[union-attr]
    assert found.config.model == ViTConfig(**{**EXPECTED.model_dump(), "registers": registers, "rope": rope})
    assert set(assumed(found)) <= {"image_size"}
    x_BHWC = images(found.config.model)
    logits_BC, of_float32_BC = (
        torch.from_numpy(np.stack([logits_of(one, x_HWC) for x_HWC in x_BHWC])) for one in (exact(state), state)
    )
    assert largest_difference(found, logits_BC) <= parity.FLOAT64_BOUND
    assert parity.FLOAT64_BOUND < largest_difference(found, of_float32_BC) <= parity.FLOAT32_BOUND


@pytest.mark.parametrize("change", ["order", "base", "registers not rotated"])
def test_another_rotation_is_red(change: str, tmp_path: Path) -> None:
    state, wrong = state_of(), exact(state_of())
    if change == "order":
        wrong["pos_embed"] = wrong["pos_embed"].unflatten(1, (SIDE, SIDE)).transpose(1, 2).flatten(1, 2)
    else:
        rotation = "rope" if change == "base" else "rope_reg"
        for i in range(DEPTH):
            wrong[f"blocks.{i}.attn.{rotation}.freqs"] = frequencies(50.0) * (change == "base")
    found = opened(training_file(tmp_path / "checkpoint.pth", state))
    logits_BC = np.stack([logits_of(wrong, x_HWC) for x_HWC in images(found.config.model)])
    assert largest_difference(found, torch.from_numpy(logits_BC)) > 1e-6


def test_written(tmp_path: Path) -> None:
    """Each array of theirs comes back, its bits too but for the last one of the frequencies' powers."""
    state = state_of()
    found = opened(training_file(tmp_path / "theirs.pth", state))
    notes = save_checkpoint(tmp_path / "again.pth", found, format="vit5")
    assert any(note.startswith("opens in wangf3014/ViT-5: vit_models(img_size=64") for note in notes)
    written = torch.load(tmp_path / "again.pth", weights_only=True)
    assert written.keys() == state.keys()
    for name, x in state.items():
        torch.testing.assert_close(written[name], x, rtol=2.0**-23 if name.endswith("freqs") else 0, atol=0)
    again = open_checkpoint(tmp_path / "again.pth")
    assert again.config.model == found.config.model
    assert_same_bits(again.arrays, found.arrays)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = training_file(tmp_path / "theirs.pth", state_of())
    assert run(["convert", str(path), str(tmp_path / "ours")]) == 0
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--to", "vit5"]) == 0
    assert capsys.readouterr().out.count("read back: largest difference 0.0e+00") == 2


def broken(name: str) -> State:
    state = state_of(norm_bias=name == "two kinds of norms")
    last = f"blocks.{DEPTH - 1}.attn.rope.freqs"
    if name == "no powers":
        state[last] = torch.tensor([1.0, 0.5, 0.4, 0.1])
    elif name == "two bases":
        state[last] = frequencies(500.0)
    elif name == "heads":
        state["blocks.0.attn.rope.freqs"] = torch.ones(5)
    return state


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no powers", "blocks.1.attn.rope.freqs (1, 0.5, 0.4, 0.1, ...) are not powers base^(-i / 4) of one base"),
        ("two bases", "rope.freqs of its blocks have bases [500.0, 10000.0]; expected one"),
        ("heads", "blocks.0.attn.rope.freqs has 5 values, for heads of 20, but 48 is not a multiple of it"),
        ("two kinds of norms", "RMSNorm for queries and keys and LayerNorm elsewhere"),
    ],
)
def test_what_the_schema_cannot_say(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        opened(training_file(tmp_path / "theirs.pth", broken(name)))
    assert message in str(error.value)


def test_without_the_frequencies_it_is_asked(tmp_path: Path) -> None:
    """They are buffers, which a file may lack; rotary models of timm have the same names then."""
    state = {name: x for name, x in state_of().items() if not name.endswith("freqs")}
    with pytest.raises(InputError, match="use --set rope=vit5 \\(most likely, by the names\\), dinov3"):
        opened(training_file(tmp_path / "theirs.pth", state))
    found = opened(training_file(tmp_path / "theirs.pth", state), rope="vit5", position_resampling="bicubic")
    assert found.config.model == EXPECTED


def test_what_their_code_cannot_hold(tmp_path: Path) -> None:
    found = opened(training_file(tmp_path / "theirs.pth", state_of()))
    for change, message in (
        ({"activation": "quick_gelu"}, "vit5 cannot express activation quick_gelu (it has gelu)"),
        ({"rope": "axial"}, "rope.axes xy (it has yx)"),
        ({"image_size": (32, 128)}, "image_size 32x128; ViT-5's code accepts only squares"),
    ):
        with pytest.raises(InputError) as error:
            save_checkpoint(tmp_path / "x.pth", found.with_model(**change), format="vit5")
        assert message in str(error.value)
    assert not (tmp_path / "x.pth").exists()


def test_another_networks_frequencies_are_not_taken(tmp_path: Path) -> None:
    """rotary-embedding-torch names those of a rotation along one axis alike; half as many heads would fit them."""
    state = vit_torch.from_seed(variant("mu/8", image_size=32, num_classes=5, activation="gelu"), 0).state_dict()
    rotary = {"blocks.0.attn.rope.freqs": 10_000 ** -(torch.arange(8) / 8)}
    torch.save({**state, **rotary}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.rope\.freqs"):
        open_checkpoint(tmp_path / "a.pth")
    path = training_file(tmp_path / "own.pth", state_of())
    with pytest.raises(InputError, match=r"which are those of .* heads in ViT-5; heads 1 does not fit them"):
        open_checkpoint(path, format="vit5", fields={"heads": 1})
