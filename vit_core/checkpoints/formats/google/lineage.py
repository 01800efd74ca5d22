"""The .npz files of google-research/vision_transformer, including "How to train your ViT?", SAM and hybrid models.

Released files have names from before Flax's Linen. Files are written with these names too, because timm's loader reads
no others and the project's code converts them. Files that its current code saves have Linen's names.
"""

from collections.abc import Mapping
from functools import partial
from itertools import count, takewhile
from typing import Any

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.google.names import (
    DETERMINED,
    FIRST,
    PATCHES,
    PIXELS,
    PRE_LINEN,
    Naming,
    Tree,
    rules,
    untold,
)
from vit_core.checkpoints.formats.interface import (
    Fields,
    Format,
    Reading,
    Source,
    Writer,
    Writing,
    assume_image_size,
    layers_of,
)
from vit_core.checkpoints.formats.rules import write_by_rules
from vit_core.config import ViTConfig

POSITIONS = "Transformer/posembed_input/pos_embedding"
_UNIT = {
    "downsample.conv": "conv_proj",
    "downsample.norm": "gn_proj",
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"norm{i}": f"gn{i}" for i in (1, 2, 3)},
}
"""Our modules of a bottleneck in the ResNet -> theirs."""


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the name of its position table."""
    return PATCHES in source.arrays and POSITIONS in source.arrays


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes. A class token, if there is one, has the first position."""
    tree = Tree.of(source, POSITIONS)
    found = {**tree.fields(), **_stem_fields(tree)}
    positions = tree.shape(POSITIONS, "1 positions features")[1]
    patches = positions - found["class_token"]
    found["image_size"], assumed = assume_image_size(patches, found["patch_size"], fields, source.path)
    if not found["class_token"] and "pooling" not in fields:  # Scenic's code has other poolings
        assumed = (*assumed, Assumption("pooling", "gap", "which has the same arrays as pooling=first", FIRST))
    model = ViTConfig.parse({**found, **fields}, str(source.path))
    named = rules(model, tree.naming, _stem_names(model))
    return Reading(CheckpointConfig(model=model), named, tree.arrays, notes=(PIXELS,), assumptions=assumed)


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that the project's code can express: a class token only if pooling uses it."""
    token = {"cls": True, "gap": False}.get(model.pooling, model.class_token)
    return plain_vit_with(
        model,
        class_token=(token,),
        class_token_position=(token,),
        pooling=("cls", "gap"),
        representation=ANY,
        stem_layers=ANY,
        activation=("gelu_tanh",),
        norm_epsilon=(1e-6,),
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The arrays under the names and with the shapes of the released files. bfloat16 becomes float32, which is exact,
    because their code does not support bfloat16."""
    model = checkpoint.config.model
    named = rules(model, Naming(POSITIONS, parts=PRE_LINEN, wide_norms=True), _stem_names(model))
    arrays = write_by_rules(named, model, checkpoint.arrays).entries
    known = {
        name: entry.then(partial(convert, dtype="float32"), entry.shape, "float32")
        for name, entry in arrays.items()
        if entry.dtype == "bfloat16"
    }
    notes = ["bfloat16: written as float32, because the project's code does not read bfloat16"] if known else []
    return Writing(LazyArrays({**arrays, **known}), notes=(*untold(checkpoint.config), *notes))


def _stem_fields(tree: Tree) -> dict[str, Any]:
    """Fields of the ResNet before the patches, from the names of its units; patch_size is then kernel times stride."""
    if "conv_root/kernel" not in tree:
        return {}
    _, _, channels, width = tree.shape("conv_root/kernel", "height width channels features")
    blocks = (f"{tree.naming.prefix}block{i}/unit" for i in count(1))
    layers = tuple(takewhile(bool, (max(layers_of(tree.arrays.entries, block) - 1, 0) for block in blocks)))
    stride = 4 * 2 ** max(len(layers) - 1, 0)
    kernel = tree.shape("embedding/kernel", "height width channels features")[:2]
    return {
        "stem_layers": layers,
        "stem_width": width,
        "channels": channels,
        "patch_size": (kernel[0] * stride, kernel[1] * stride),
    }


def _stem_names(model: ViTConfig) -> dict[str, str]:
    if model.stem_layers is None:
        return {}
    ours = "patch_embed.backbone."
    root = f"{ours}stem." if model.stem_layers else ours
    names = {f"{root}conv": "conv_root", f"{root}norm": "gn_root"}
    for stage, units in enumerate(model.stem_layers):
        for i in range(units):
            unit, theirs = f"{ours}stages.{stage}.blocks.{i}.", f"block{stage + 1}/unit{i + 1}/"
            names |= {f"{unit}{name}": f"{theirs}{other}" for name, other in _UNIT.items()}
    return names


FORMAT = Format(
    "google",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(PATCHES,),
    determined=DETERMINED,
    writer=Writer((".npz",), allowed_values, write_checkpoint),
    examples={
        "class token": {},
        "mean": {"pooling": "gap", "class_token": False},
        "representation layer": {"representation": 48},
        "hybrid (R26)": {"stem_layers": (1, 1), "stem_width": 32, "image_size": 32, "patch_size": 16},
    },
)
