"""What Google's ViTs compute: by timm, whose loader reads their .npz files, and by the published Flax modules' plan
(google-research/vision_transformer, big_vision) in NumPy's float64. Arrays keep the names and layouts of the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from timm.models.vision_transformer import VisionTransformer

import vit_jax
import vit_torch
from parity_tests.formats.google_files import GOOGLE, LINEN, Arrays
from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint


def images(shape: tuple[int, ...] = (2, 12, 12, 3), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def in_torch(opened: Checkpoint | Path, x_BHWC: np.ndarray, **how: Any) -> np.ndarray:
    model = vit_torch.load(opened, **how)
    with torch.no_grad():
        return model(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).numpy()


def in_jax(opened: Checkpoint | Path, x_BHWC: np.ndarray, **how: Any) -> np.ndarray:
    return np.asarray(nnx.jit(lambda model, x: model(x))(vit_jax.load(opened, **how), jnp.asarray(x_BHWC)))


def in_timm(path: Path, x_BHWC: np.ndarray, **options: Any) -> np.ndarray:
    return by(timm_from(path, **options), x_BHWC)


def by(model: VisionTransformer, x_BHWC: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).numpy()


def timm_from(path: Path, dtype: torch.dtype = torch.float64, **options: Any) -> VisionTransformer:
    """timm's model with the values from its own loader of .npz files; every parameter is NaN before."""
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5}
    model = VisionTransformer(**{**sizes, "num_classes": 5, "act_layer": "gelu_tanh", **options}).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.load_pretrained(str(path))
    assert not any(parameter.isnan().any() for parameter in model.parameters())
    return model


def assert_equal(ours: np.ndarray, theirs: np.ndarray, bound: float = parity.FLOAT64_BOUND) -> None:
    assert ours.shape == theirs.shape
    assert parity.difference(ours, theirs)[1] <= bound


def forward(
    p: Arrays, x_BHWC: np.ndarray, *, pool: str, parts: tuple[str, ...] = LINEN, positions: str | None = None
) -> np.ndarray:
    """Logits (without a head: what it would read); positions: name of the table, none: big_vision's sincos2d."""
    x = _stem(p, x_BHWC) if "conv_root/kernel" in p else x_BHWC
    x = _convolve(x, p["embedding/kernel"], p["embedding/kernel"].shape[0], same=False) + p["embedding/bias"]
    (b, h, w, d), cls = x.shape, p.get("cls")
    x = x.reshape(b, h * w, d)
    if positions != GOOGLE:
        x = x + (_sincos2d(h, w, d) if positions is None else p[positions])
    if cls is not None:
        x = np.concatenate([np.repeat(cls, b, axis=0), x], axis=1)
    if positions == GOOGLE:
        x = x + p[positions]
    for i in range(sum(name.endswith(f"{parts[2]}/scale") and "encoderblock_" in name for name in p)):
        norm1, attention, norm2, mlp = (f"Transformer/encoderblock_{i}/{part}" for part in parts)
        y = _layer_norm(p, norm1, x)
        x = x + _attention(p, attention, y, y)
        x = x + _mlp(p, mlp, _layer_norm(p, norm2, x))
    x = _layer_norm(p, "Transformer/encoder_norm", x)
    if pool == "map":
        x = _attention(p, f"MAPHead_0/{LINEN[1]}", np.repeat(p["MAPHead_0/probe"], b, axis=0), x)
        x = x + _mlp(p, f"MAPHead_0/{LINEN[3]}", _layer_norm(p, "MAPHead_0/LayerNorm_0", x))
    x = x.mean(axis=1) if pool == "gap" else x[:, 0]
    x = np.tanh(_dense(p, "pre_logits", x)) if "pre_logits/kernel" in p else x
    return _dense(p, "head", x) if "head/kernel" in p else x


def _dense(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def _layer_norm(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def _mlp(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    x = _dense(p, f"{name}/Dense_0", x)
    x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return _dense(p, f"{name}/Dense_1", x)


def _attention(p: Arrays, name: str, asking: np.ndarray, asked: np.ndarray) -> np.ndarray:
    def heads(part: str, x: np.ndarray) -> np.ndarray:
        return np.einsum("bnd,dhk->bnhk", x, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"]

    query = heads("query", asking)
    scores = np.exp(np.einsum("bnhk,bmhk->bhnm", query, heads("key", asked)) / np.sqrt(query.shape[-1]))
    x = np.einsum("bhnm,bmhk->bnhk", scores / scores.sum(axis=-1, keepdims=True), heads("value", asked))
    return np.einsum("bnhk,hkd->bnd", x, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]


def _sincos2d(h: int, w: int, d: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    omega = 1 / 10_000 ** (np.arange(d // 4) / (d // 4 - 1))
    y, x = np.outer(y.flatten(), omega), np.outer(x.flatten(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def _stem(p: Arrays, x: np.ndarray) -> np.ndarray:
    x = np.maximum(_group_norm(p, "gn_root", _std_convolve(p, "conv_root", x, 2)), 0)
    x = _windows(x, 3, 2, fill=-np.inf).max(axis=(-2, -1))
    for block, unit in _units(p):
        name, stride = f"block{block}/unit{unit}", 2 if block > 1 and unit == 1 else 1
        y = np.maximum(_group_norm(p, f"{name}/gn1", _std_convolve(p, f"{name}/conv1", x, 1)), 0)
        y = np.maximum(_group_norm(p, f"{name}/gn2", _std_convolve(p, f"{name}/conv2", y, stride)), 0)
        y = _group_norm(p, f"{name}/gn3", _std_convolve(p, f"{name}/conv3", y, 1))
        if unit == 1:
            x = _group_norm(p, f"{name}/gn_proj", _std_convolve(p, f"{name}/conv_proj", x, stride))
        x = np.maximum(x + y, 0)
    return x


def _units(p: Arrays) -> Iterator[tuple[int, int]]:
    block = unit = 1
    while f"block{block}/unit1/conv1/kernel" in p:
        yield block, unit
        there = f"block{block}/unit{unit + 1}/conv1/kernel" in p
        block, unit = (block, unit + 1) if there else (block + 1, 1)


def _std_convolve(p: Arrays, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    kernel = p[f"{name}/kernel"]
    kernel = kernel - kernel.mean(axis=(0, 1, 2))
    return _convolve(x, kernel / (kernel.std(axis=(0, 1, 2)) + 1e-5), stride, same=True)


def _group_norm(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    grouped = x.reshape(*x.shape[:3], 32, -1)
    grouped = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
    grouped = grouped / np.sqrt((grouped**2).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)
    return grouped.reshape(x.shape) * p[f"{name}/scale"] + p[f"{name}/bias"]


def _convolve(x: np.ndarray, kernel_HWIO: np.ndarray, stride: int, same: bool) -> np.ndarray:
    windows = _windows(x, kernel_HWIO.shape[0], stride, fill=0.0 if same else None)
    return np.einsum("bhwiyx,yxio->bhwo", windows, kernel_HWIO, optimize=True)


def _windows(x: np.ndarray, size: int, stride: int, fill: float | None) -> np.ndarray:
    """[B, h, w, C, size, size]; fill: padded as XLA's SAME, the odd row below, the odd column right."""
    if fill is not None:
        totals = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
        pads = [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)]
        x = np.pad(x, pads, constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
