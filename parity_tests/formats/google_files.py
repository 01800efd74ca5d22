"""Files of Google's ViTs without our code: the arrays that the published Flax modules name, saved by NumPy alone.

After google-research/vision_transformer and big_vision; what must hold of such files whoever reads them is here too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_core import ViTConfig, variants
from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers import Container
from vit_core.checkpoints.containers.container import nested
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.rules import read_by_rules
from vit_core.checkpoints.opening import find_source, read_source, recognized_format
from vit_core.errors import InputError
from vit_core.parameters import parameters

PRE_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
GOOGLE, BIG_VISION = "Transformer/posembed_input/pos_embedding", "pos_embedding"
Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, np.ndarray]


def file_shapes(
    *,
    width: int = 24,
    depth: int = 2,
    heads: int = 3,
    mlp: int = 36,
    kernel: tuple[int, int] = (4, 4),
    channels: int = 3,
    grid: int = 9,
    classes: int = 5,
    rep: int = 0,
    pool: str = "tok",
    parts: tuple[str, ...] = PRE_LINEN,
    positions: str | None = GOOGLE,
    layers: tuple[int, ...] | None = None,
    root: int = 64,
    norm: tuple[int, ...] = (),
) -> Shapes:
    """Name -> shape of one model. positions: the name of its table, if any. layers, root: of a hybrid's ResNet, whose
    GroupNorms have `norm` before their channels."""
    made: Shapes = {} if layers is None else _stem_shapes(layers, root, channels, norm)
    into = channels if layers is None else root * 4 * 2 ** (len(layers) - 1) if layers else root
    made |= {"embedding/kernel": (*kernel, into, width), "embedding/bias": (width,)}
    made |= {"cls": (1, 1, width)} if pool == "tok" else {}
    if positions is not None:
        made[positions] = (1, grid + (pool == "tok" and positions != BIG_VISION), width)
    for i in range(depth):
        made |= _block_shapes(f"Transformer/encoderblock_{i}/", parts, width, heads, mlp)
    made |= _norm_shapes("Transformer/encoder_norm", width)
    if pool == "map":
        made["MAPHead_0/probe"] = (1, 1, width)
        made |= _block_shapes("MAPHead_0/", ("", LINEN[1], "LayerNorm_0", LINEN[3]), width, heads, mlp)
    made |= _dense_shapes("pre_logits", (width,), (rep,)) if rep else {}
    made |= _dense_shapes("head", (rep or width,), (classes,)) if classes else {}
    return made


def _block_shapes(p: str, parts: tuple[str, ...], width: int, heads: int, mlp: int) -> Shapes:
    norm1, attention, norm2, mlp_block = parts
    made = _norm_shapes(f"{p}{norm1}", width) if norm1 else {}
    for name in ("query", "key", "value"):
        made |= _dense_shapes(f"{p}{attention}/{name}", (width,), (heads, width // heads))
    made |= _dense_shapes(f"{p}{attention}/out", (heads, width // heads), (width,))
    made |= _norm_shapes(f"{p}{norm2}", width)
    made |= _dense_shapes(f"{p}{mlp_block}/Dense_0", (width,), (mlp,))
    return made | _dense_shapes(f"{p}{mlp_block}/Dense_1", (mlp,), (width,))


def _stem_shapes(layers: tuple[int, ...], root: int, channels: int, norm: tuple[int, ...]) -> Shapes:
    made: Shapes = {"conv_root/kernel": (7, 7, channels, root), **_norm_shapes("gn_root", root, norm)}
    into = root
    for block, units in enumerate(layers):
        inner, out = root * 2**block, 4 * root * 2**block
        for unit in range(units):
            p = f"block{block + 1}/unit{unit + 1}/"
            sizes = {"1": (1, into, inner), "2": (3, inner, inner), "3": (1, inner, out)}
            sizes |= {"_proj": (1, into, out)} if unit == 0 else {}
            for which, (size, a, b) in sizes.items():
                made |= {f"{p}conv{which}/kernel": (size, size, a, b), **_norm_shapes(f"{p}gn{which}", b, norm)}
            into = out
    return made


def _norm_shapes(name: str, width: int, before: tuple[int, ...] = ()) -> Shapes:
    return {f"{name}/scale": (*before, width), f"{name}/bias": (*before, width)}


def _dense_shapes(name: str, into: tuple[int, ...], out: tuple[int, ...]) -> Shapes:
    return {f"{name}/kernel": (*into, *out), f"{name}/bias": out}


def random_arrays(shapes: Shapes, seed: int = 0, dtype: Any = np.float64) -> Arrays:
    """Random values of which each affects outputs: scales near 1, and kernels that keep the scale of their inputs."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        sample = rng.standard_normal(shape)
        if name.endswith("kernel"):
            out = shape[-2:] if name.split("/")[-2] in ("query", "key", "value") else shape[-1:]
            sample /= np.sqrt(sample.size / np.prod(out))
        made[name] = (1 + 0.3 * sample if name.endswith("scale") else 0.5 * sample).astype(dtype)
    return made


def prefixed(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The same under other names."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def stacked(arrays: Arrays, depth: int) -> Arrays:
    """As a scan over the layers keeps them."""
    made = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in [name for name in arrays if "encoderblock_0/" in name]:
        layers = [arrays[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(depth)]
        made[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    return made


def save(path: Path, arrays: Arrays) -> Path:
    """By NumPy alone, as Google's code does."""
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def in_file(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert {name: (array.shape, array.dtype) for name, array in a.items()} == {
        name: (array.shape, array.dtype) for name, array in b.items()
    }
    assert all(array.tobytes() == b[name].tobytes() for name, array in a.items())


def source_of(entries: Mapping[str, LazyArray], name: str = "file.npz") -> Source:
    """The input of a format for a file with these names: the model in it, without its prefix."""
    path = Path(name)
    container = Container(path, "npz", nested(entries), separator="/")
    return find_source(container, None, Source(path, container.arrays))


def published(shapes: Shapes) -> Source:
    """A file of these shapes whose values must not be read, so that full-size models take no memory."""

    def read() -> np.ndarray:
        raise AssertionError("read")

    entries = {name: LazyArray(shape, "float32", read) for name, shape in shapes.items()}
    return source_of(entries, "published.npz")


def full_size(spelled: str, **file: Any) -> Shapes:
    """Shapes of a published architecture; the number after the slash is the kernel size of its patch projection."""
    name, _, kernel = spelled.partition("/")
    sizes = variants.VARIANTS[name]
    geometry = {"width": sizes["width"], "depth": sizes["depth"], "heads": sizes["heads"], "mlp": sizes["mlp_dim"]}
    return file_shapes(**{**geometry, "kernel": (int(kernel), int(kernel)), "classes": 1000, **file})


def config_and_use(lineage: Any, shapes: Shapes) -> ViTConfig:
    """The config read from shapes, all of which fit it, and every one of which has its place."""
    source = published(shapes)
    assert recognized_format(source) is lineage.FORMAT
    reading = lineage.FORMAT.read(source, {})
    model = reading.config.model
    assert read_by_rules(reading.rules, model, reading.arrays, "").shapes == {
        name: row.shape for name, row in parameters(model).items()
    }
    assert {name for one in reading.rules for name in one.theirs} == set(reading.arrays)
    return model


def fault(lineage: Any, entries: dict[str, LazyArray]) -> str:
    """The one line that refuses these arrays."""
    with pytest.raises(InputError) as refusal:
        read_source(lineage.FORMAT, source_of(entries), {})
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("file.npz: ")
    return str(refusal.value)
