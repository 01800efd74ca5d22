"""Names of arrays in the .npz files of Google's two code bases, and the fields that their shapes show.

vision_transformer and big_vision write the same tree of Flax modules, with slashes in the names. Its layouts are those
of the JAX twin, so the rules are the parameter table with other names. `Naming` describes the variants: files from
before Flax's Linen number the four parts of a block consecutively, later files by class; a scan over the layers stacks
them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Source, layers_of
from vit_core.checkpoints.formats.rules import Rule
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.storage import Location

PRE_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
PIXELS = "preprocessing: none in the file; images ranged from -1 to 1 (mean = std = 0.5), their resizing is unknown"
RESAMPLING = "zoom_linear"
"""How both code bases resample positions."""
FIRST = "--set pooling=first for that"
PATCHES = "embedding/kernel"
"""Name of the patch projection."""
DETERMINED = FROM_ARRAYS | {
    "heads",
    "activation",
    "norm_epsilon",
    "position_resampling",
    "class_token_position",
    "pooling",
}
"""Fields that the arrays of both code bases determine, or that have only one value in the code."""
_STACK = "Transformer/encoderblock"
_SCENIC_HEAD = "output_projection/"
_MOST_LAYERS = 4096


@dataclass(frozen=True)
class Naming:
    """The variant of names in a file."""

    positions: str
    """Name of the table of learned positions."""
    prefix: str = ""
    """Prefix of every name in a file that is written."""
    parts: tuple[str, str, str, str] = LINEN
    """Names of the parts of a block."""
    stacked: bool = False
    """Whether an array stacks a parameter of all blocks. `encoderblock[3]` is then layer 3 of it."""
    wide_norms: bool = False
    """Whether the scales of GroupNorms have the shape [1, 1, 1, channels], as in Flax before 0.3.6."""

    def block(self, layer: int) -> str:
        """Prefix of the names of a block's parts."""
        return f"{_STACK}[{layer}]" if self.stacked else f"{_STACK}_{layer}"


@dataclass(frozen=True)
class Tree:
    """The arrays of a file, with stacked ones separated by layer, and their names."""

    where: Location
    arrays: LazyArrays
    naming: Naming
    depth: int

    @classmethod
    def of(cls, source: Source, *positions: str) -> "Tree":
        """The tree of a file. positions: possible names of its table. Raises InputError if the arrays are
        incomplete."""
        arrays, stack = _with_head(source.arrays), _STACK
        if PATCHES not in arrays:
            raise InputError(f"{source.path}: missing {PATCHES}")
        stacked = any(name.startswith(f"{stack}/") for name in arrays)
        if stacked:
            arrays, depth = _layer_by_layer(source.path, arrays, stack)
        else:
            depth = layers_of(arrays.entries, f"{stack}_")
        naming = Naming(
            next((name for name in positions if name in arrays), positions[0]),
            "",
            PRE_LINEN if any(name.startswith(f"{stack}_0/{PRE_LINEN[3]}/") for name in arrays) else LINEN,
            stacked,
            "gn_root/scale" in arrays and len(arrays.entries["gn_root/scale"].shape) == 4,
        )
        return cls(source.path, arrays, naming, depth)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def shape(self, name: str, axes: str) -> tuple[int, ...]:
        """The shape of an array. axes: names of its axes, for messages. Raises InputError if it is missing or has
        another number of axes."""
        expected = axes.split()
        if name not in self.arrays:
            raise InputError(f"{self.where}: missing {name} [{', '.join(expected)}]")
        shape = self.arrays.entries[name].shape
        if len(shape) != len(expected):
            raise InputError(f"{self.where}: {name} expected [{', '.join(expected)}] found {list(shape)}")
        return shape

    def fields(self) -> dict[str, Any]:
        """Fields of the config that the shapes show, and those with one value in both code bases."""
        block, attention, mlp = self.naming.block(0), self.naming.parts[1], self.naming.parts[3]
        patch_height, patch_width, channels, width = self.shape("embedding/kernel", "height width channels features")
        _, heads, head_dim = self.shape(f"{block}/{attention}/query/kernel", "features heads head_dim")
        return {
            "patch_size": (patch_height, patch_width),
            "channels": channels,
            "width": width,
            "depth": self.depth,
            "heads": heads,
            "head_dim": None if heads * head_dim == width else head_dim,
            "mlp_dim": self.shape(f"{block}/{mlp}/Dense_0/kernel", "features hidden")[1],
            "num_classes": self._outputs("head"),
            "representation": self._outputs("pre_logits") or None,
            "class_token": "cls" in self,
            "pooling": "cls" if "cls" in self else "gap",
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-6,
            "position_resampling": RESAMPLING,
        }

    def _outputs(self, layer: str) -> int:
        """The number of outputs of a layer after the blocks; 0 if there is no such layer."""
        return self.shape(f"{layer}/kernel", "features outputs")[1] if f"{layer}/kernel" in self else 0


def rules(model: ViTConfig, naming: Naming, more: Mapping[str, str] | None = None) -> list[Rule]:
    """A rule for every row of the parameter table. more: modules that only some files have (ours -> theirs)."""
    modules = {**_modules(model, naming), **(more or {})}
    return flax_rules(model, modules, "Google's", prefix=naming.prefix, wide_norms=naming.wide_norms)


def flax_rules(
    model: ViTConfig, modules: Mapping[str, str], whose: str, *, prefix: str = "", wide_norms: bool = False
) -> list[Rule]:
    """A rule for every row of the table in a tree of Flax modules, whose layouts are those of the JAX twin.

    modules: our modules (and parameters outside modules) -> theirs; several names, separated by spaces, if together
    they are one of ours. whose: the project, for messages. Raises InputError for a row without a module in `modules`.
    """
    made = []
    for row in parameters(model).values():
        module, _, leaf = row.jax_name.rpartition(".")
        if leaf not in ("kernel", "scale", "bias"):
            module, leaf = row.name, ""
        if module not in modules:
            raise InputError(f"{whose} files have no {row.name}; leave out the field that adds it")
        layout = f"1 1 1 {row.jax}" if wide_norms and row.jax == "stem_out" else row.jax
        theirs = (f"{prefix}{name}/{leaf}".rstrip("/") for name in modules[module].split())
        made.append(Rule((row.name,), tuple(theirs), layout))
    return made


def untold(config: CheckpointConfig, resampling: str = RESAMPLING) -> list[str]:
    """Notes on values that such a file cannot store. resampling: how the code that reads it resamples positions."""
    model, seen, notes = config.model, config.preprocessing, []
    if model.grid[0] != model.grid[1]:
        size = f"{model.image_size[0]}x{model.image_size[1]}"
        notes.append(f"image_size: {size} is not in the file; read it with --set image_size={size}")
    if model.position_embedding == "learned" and model.position_resampling != resampling:
        notes.append(f"position_resampling: {model.position_resampling} is not in the file; its code uses {resampling}")
    if seen:
        other = {*seen.mean, *seen.std} != {0.5}
        shown = f", not mean {list(seen.mean)} and std {list(seen.std)}" if other else ""
        notes.append(f"preprocessing: not in the file; its code expects images from -1 to 1{shown}")
    if config.labels:
        notes.append("labels: not in the file")
    return notes


def _modules(model: ViTConfig, naming: Naming) -> dict[str, str]:
    """Our modules (and parameters outside modules) -> theirs; several names, separated by spaces, if together they are
    one of ours."""
    modules = {
        "patch_embed.proj": "embedding",
        "cls_token": "cls",
        "pos_embed": naming.positions,
        "norm": "Transformer/encoder_norm",
        "pre_logits.fc": "pre_logits",
        "head": "head",
        "attn_pool.latent": "MAPHead_0/probe",
        "attn_pool.norm": "MAPHead_0/LayerNorm_0",
        **_attention("attn_pool", f"MAPHead_0/{LINEN[1]}", {"q": ("query",), "kv": ("key", "value")}),
        **_mlp("attn_pool", f"MAPHead_0/{LINEN[3]}"),
    }
    norm1, attention, norm2, mlp = naming.parts
    for i in range(model.depth):
        ours, theirs = f"blocks.{i}", naming.block(i)
        modules |= {f"{ours}.norm1": f"{theirs}/{norm1}", f"{ours}.norm2": f"{theirs}/{norm2}"}
        modules |= _attention(f"{ours}.attn", f"{theirs}/{attention}", {"qkv": ("query", "key", "value")})
        modules |= _mlp(ours, f"{theirs}/{mlp}")
    return modules


def _attention(ours: str, theirs: str, projections: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    all_of = {**projections, "proj": ("out",)}
    return {f"{ours}.{name}": " ".join(f"{theirs}/{part}" for part in parts) for name, parts in all_of.items()}


def _mlp(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.mlp.fc{i + 1}": f"{theirs}/Dense_{i}" for i in range(2)}


def _with_head(arrays: LazyArrays) -> LazyArrays:
    """The arrays with Scenic's name of the head changed to google-research's. Other names in Scenic's ViT
    (scenic/projects/baselines/vit.py) are the same."""
    if f"{_SCENIC_HEAD}kernel" not in arrays or "head/kernel" in arrays:
        return arrays
    renamed = (re.sub(f"^{_SCENIC_HEAD}", "head/", name) for name in arrays)
    return LazyArrays(dict(zip(renamed, arrays.entries.values(), strict=True)))


def _layer_by_layer(where: Location, arrays: LazyArrays, stack: str) -> tuple[LazyArrays, int]:
    """The arrays with an entry for each layer of the stacked arrays, and the number of layers. (Files are
    memory-mapped, so that a layer is read without the others.)"""
    first = f"{stack}/LayerNorm_0/scale"
    if first not in arrays:
        raise InputError(f"{where}: missing {first} [layers, features]")
    (depth,) = arrays.entries[first].shape[:1] or (0,)
    if not 1 <= depth <= _MOST_LAYERS:
        raise InputError(f"{where}: {first} has {depth} layers, expected 1 to {_MOST_LAYERS}")
    apart: dict[str, LazyArray] = {}
    for name, entry in arrays.entries.items():
        if not name.startswith(f"{stack}/"):
            apart[name] = entry
        elif entry.shape[:1] != (depth,):
            raise InputError(
                f"{where}: {name} has shape {list(entry.shape)}, expected {depth} layers along the first axis"
            )
        else:
            for i in range(depth):
                one = LazyArray(entry.shape[1:], entry.dtype, partial(_layer, entry, i))
                apart[f"{stack}[{i}]{name.removeprefix(stack)}"] = one
    return LazyArrays(apart), depth


def _layer(stacked: LazyArray, i: int) -> np.ndarray:
    return stacked.read()[i]
