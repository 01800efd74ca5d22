"""Types that every format of another project uses: `Source` for input, `Reading` and `Writing` for results.

A format is a module (or a folder) that ends with `FORMAT = Format(...)`, and one line in `registry.py`. Its arrays are
named by one list of rules (`rules.py`) for both directions.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt, nextafter
from typing import Any, Literal

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import Values
from vit_core.checkpoints.formats.rules import Rule
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.storage import Location
from vit_core.variants import VARIANTS

Fields = Mapping[str, Any]
"""Fields of ViTConfig that the user gives, because the file does not contain them."""


@dataclass(frozen=True)
class Source:
    """A model that was found in a foreign file or folder: its arrays, and everything else that is known about it."""

    path: Location
    arrays: LazyArrays
    """The arrays, under their names without the model's prefix in the file and without parts that wrapping modules
    added."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json beside the weights; empty if there is none."""
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json, or the image processor in processor_config.json; empty if there is none."""
    open_clip_config: Mapping[str, Any] = field(default_factory=dict)
    """open_clip_config.json beside weights of open_clip; empty if there is none."""
    keras: Mapping[str, str] = field(default_factory=dict)
    """Texts of Keras's config files by their names, and the names of layers by their groups; empty for other files."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Values in the same file that are not arrays, such as `arch` and `args`, which training scripts save."""
    modules: Mapping[str, Any] = field(default_factory=dict)
    """The classes and settings of the modules in a pickled model, such as "head.1.class"; empty for other files."""
    keys: tuple[str, ...] = ()
    """The keys of the file's tree under which the model was found."""
    prefix: tuple[str, ...] = ()
    """The parts of the prefix of all its names in the file."""
    beside: LazyArrays = field(default_factory=lambda: LazyArrays({}))
    """Arrays of the same mapping that are not part of a model, such as a separate head; unused ones are left out."""
    shared: frozenset[str] = frozenset()
    """Names in `beside` that may belong to another model in the file."""
    normalizing: frozenset[str] = frozenset()
    """Names in `beside` of a mean and a std with which a module normalizes images."""
    joint: frozenset[str] = frozenset()
    """Names in `beside` that may read the outputs of this model and of another one in the file."""
    num_classes: int | None = None
    """The number of classes that the user gives, which chooses one of several possible heads. 0: none of them."""
    keys_beside: tuple[str, ...] = ()
    """The other keys of the file's tree; unused ones are left out."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecoderReading:
    """How to read the decoder of a masked autoencoder."""

    mae: MaskedAutoencoder
    rules: Sequence[Rule]
    positions: str
    """The name of its table of positions. It must contain MAE's values, because our decoder computes them instead."""
    stated: frozenset[str]
    """The fields of `mae` that the file contains."""


@dataclass(frozen=True)
class Reading:
    """How to read a source: the config and the rules that a format has found."""

    config: CheckpointConfig
    rules: Sequence[Rule]
    arrays: LazyArrays
    """The arrays that the rules name."""
    left_out: str = r"(?!)"
    """A regular expression that matches the names of arrays that are not part of the model."""
    notes: tuple[str, ...] = ()
    """Messages for the user, in addition to the assumptions."""
    assumptions: tuple[Assumption, ...] = ()
    """Fields of the config that were assumed, not read."""
    stated: frozenset[str] = frozenset()
    """Fields that were read from files beside the weights, or from values in the same file."""
    used: frozenset[str] = frozenset()
    """Keys of `Source.facts`, and modules with a separate head, that the reading uses in addition to the model's
    arrays."""
    decoder: DecoderReading | None = None
    """The decoder of a masked autoencoder, if the file has one. A decoder that does not fit is left out."""
    by_name: frozenset[str] = frozenset()
    """Those of `stated` that only the name of an architecture gives: a value of their own in the file precedes it."""


@dataclass(frozen=True)
class Writing:
    """How to write a checkpoint."""

    arrays: LazyArrays
    texts: Mapping[str, str] = field(default_factory=dict)
    """File name -> contents, for a folder's other files."""
    notes: tuple[str, ...] = ()
    hdf5: Mapping[str, LazyArrays] = field(default_factory=dict)
    """File name -> arrays, for folders with HDF5 files instead of model.safetensors."""


@dataclass(frozen=True)
class Writer:
    """How a format is written."""

    containers: tuple[Literal["folder", ".safetensors", ".pth", ".npz"], ...]
    """The kinds of files in which it can be written; the first is the default."""
    allowed_values: Callable[[ViTConfig], Mapping[str, Values]]
    """Model -> the values that the format can express, for every field of ViTConfig. Raises InputError for a
    combination of fields that the format cannot express."""
    write: Callable[[Checkpoint], Writing]
    """Returns the arrays and files for a checkpoint that has only allowed values."""


@dataclass(frozen=True)
class Format:
    """A foreign checkpoint format."""

    name: str
    recognizes: Callable[[Source], bool]
    """Whether a source is of this format, by its content."""
    read: Callable[[Source, Fields], Reading]
    """Decides how to read a source. Raises InputError, with the reason, for a model that ViTConfig cannot express."""
    anchors: tuple[str, ...]
    """Regular expressions that match the end of exactly one array name in each model of this format. The text before
    the match is the model's prefix in the file."""
    determined: frozenset[str]
    """The fields of ViTConfig that the arrays determine, or that have only one value in the project's code."""
    writer: Writer | None = None
    """None: the format is read only."""
    masked_writer: Writer | None = None
    """How masked autoencoders are written, encoder and decoder. None: the format cannot store the decoder."""
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Short description of a model that the format can express -> the fields for example_models.example. `vit formats`
    writes, opens and reads back each example."""


FROM_ARRAYS = frozenset(
    ("patch_size", "channels", "width", "depth", "mlp_dim", "num_classes", "class_token", "distillation", "registers")
    + ("final_norm", "representation", "pre_norm", "mlp", "qkv_bias", "qk_norm", "proj_bias", "head_bias")
    + (
        "layer_scale",
        "patch_bias",
        "patch_norms",
        "embed_norm",
        "stem_layers",
        "stem_width",
        "position_embedding",
        "head_dim",
    )
    + ("rope", "norm", "branch_norm", "key_bias", "attention_norm", "mlp_norm")
    + ("relative_bias", "relative_bias_shared", "relative_bias_dim", "parallel")
    + ("pool_heads", "pool_mlp_dim", "pool_prefix")
)
"""The fields that names and shapes of arrays determine in every format."""


def assume_heads(width: int, depth: int, mlp_dim: int, fields: Fields) -> tuple[int, tuple[Assumption, ...]]:
    """The number of attention heads, which the shapes of arrays do not show: `fields["heads"]` if given; otherwise that
    of the published architecture with these sizes, or one head for each 64 of the width. Also returns the assumption,
    if the number was assumed."""
    if "heads" in fields:
        return fields["heads"], ()
    for name, sizes in VARIANTS.items():
        if (sizes["width"], sizes["depth"], sizes["mlp_dim"]) == (width, depth, mlp_dim):
            heads = sizes["heads"]
            return heads, (Assumption("heads", heads, f"as in ViT-{name}", "--set heads=N for another number"),)
    heads = max(width // 64, 1)
    why = "one for each 64 of the width"
    return heads, (Assumption("heads", heads, why, "--set heads=N for another number"),)


def assume_image_size(
    patches: int, patch_size: tuple[int, int], fields: Fields, where: object
) -> tuple[tuple[int, int], tuple[Assumption, ...]]:
    """The image size (height, width) for a square grid of patches, unless `fields` contains it; and the assumption.

    Raises InputError if the patches do not form a square grid.
    """
    if "image_size" in fields:
        size = fields["image_size"]
        return ((size, size) if isinstance(size, int) else tuple(size)), ()
    side = isqrt(patches)
    if side * side != patches or not patches:
        raise InputError(f"{where}: {patches} positions do not form a square grid; use --set image_size=HEIGHTxWIDTH")
    size = side * patch_size[0], side * patch_size[1]
    return size, (square_grid(size, (side, side)),)


def square_grid(image_size: tuple[int, int], grid: tuple[int, int], also: str = "") -> Assumption:
    """The assumption that a table of positions belongs to a square grid."""
    why = f"for a square grid of {grid[0]}x{grid[1]} patches{also}"
    return Assumption("image_size", image_size, why, "--set image_size=HEIGHTxWIDTH for another grid")


def axes_of(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int, where: object) -> tuple[int, ...]:
    """The shape of an array that must have this number of axes. Raises InputError if it is missing or has another
    number."""
    if len(shapes.get(name, ())) != axes:
        found = f"has shape {list(shapes[name])}" if name in shapes else "is missing"
        raise InputError(f"{where}: {name} {found}; expected an array of {axes} axes")
    return shapes[name]


def layers_of(names: Mapping[str, Any], prefix: str) -> int:
    """The number of layers: one more than the largest number after the prefix ("blocks.11.norm1": 12 layers)."""
    found = (re.match(r"[0-9]{1,4}(?![0-9])", name.removeprefix(prefix)) for name in names if name.startswith(prefix))
    return 1 + max((int(number[0]) for number in found if number), default=-1)


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio for which int(width * ratio), the formula in constructors of other projects, equals the hidden
    width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else nextafter(ratio, ratio + 1)


def call(function: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call in Python, for messages."""
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def not_in_state_dict(config: CheckpointConfig) -> tuple[str, ...]:
    """A note on the contents of a config that a file with only weights cannot store."""
    lost = [name for name in ("preprocessing", "labels") if getattr(config, name)]
    return (f"a state dict does not contain {' or '.join(lost)}",) if lost else ()


def not_carried(checkpoint: Checkpoint, resampling: str) -> tuple[str, ...]:
    """Notes on what a state dict does not contain. resampling: the method by which its project resamples positions."""
    model, notes = checkpoint.config.model, [*not_in_state_dict(checkpoint.config)]
    if model.position_embedding == "learned" and model.position_resampling != resampling:
        notes.append(f"position_resampling: {resampling} when read again, not {model.position_resampling}")
    return tuple(notes)
