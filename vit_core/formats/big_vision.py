"""google-research/big_vision's plain ViT: SigLIP's image towers, the ViT-S/16 baselines, FlexiViT at its own size.

Its class token is put before the patches after the positions were added, so that it has none of its own; pooling is by
a class token ("tok"), the mean ("gap"), attention ("map") or the first patch ("0"), and no array tells the last from
the mean. Sin-cos positions are in no file either.
"""

from collections.abc import Mapping
from math import isqrt, prod
from typing import Any

from vit_core.checkpoint import Checkpoint, CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.formats.google_names import PIXELS, Naming, Tree, prefix_of, rules, untold
from vit_core.formats.lineage import Fields, Reading, Source, Writing, image_of
from vit_core.formats.rules import write as written
from vit_core.formats.widening import fixed

NAME = "big_vision"
CONTAINERS = (".npz",)
_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")
"""Where the table is, and was before 2022, then with a row for the class token."""
_PUBLISHED = (224, 224)
"""Image size of the published files without a table."""


def recognises(source: Source) -> bool:
    """By patches and blocks; google's are asked for before."""
    prefix = prefix_of(source.arrays)
    return prefix is not None and any(name.startswith(f"{prefix}Transformer/encoderblock") for name in source.arrays)


def read(source: Source, fields: Fields) -> Reading:
    """From the shapes, and what no shape tells as their defaults have it."""
    tree = Tree.of(source, *_POSITIONS)
    found, notes = tree.fields(), [PIXELS]
    if "MAPHead_0/probe" in tree:
        found["pooling"] = "map"
    elif not found["class_token"] and "pooling" not in fields:
        notes.append("pooling: gap; no array tells it from the first token, --set pooling=first for that")
    if tree.naming.positions in tree:
        positions = tree.shape(tree.naming.positions, "1 positions features")[1]
        own = found["class_token"] and _has_own_position(positions, found["patch_size"], fields)
        found["class_token_position"] = own
        found["image_size"] = image_of(positions - own, found["patch_size"], fields, source.path)
    else:
        found |= {"position_embedding": "sincos2d_big_vision", "image_size": _PUBLISHED}
        if "image_size" not in fields:
            notes.append(
                "image_size: 224x224, as of the published files without a table; --set image_size=HEIGHTxWIDTH"
            )
    model = ViTConfig.parse({**found, **fields}, str(source.path))
    return Reading(CheckpointConfig(model=model), rules(model, tree.naming), tree.arrays, tree.left_out, tuple(notes))


def holds(model: ViTConfig) -> Mapping[str, tuple[Any, ...]]:
    """A class token if and only if it is what pooling takes, and never with a position."""
    return fixed(
        model,
        class_token=(model.pooling not in ("gap", "map", "first"),),
        class_token_position=(False,),
        position_embedding=("learned", "sincos2d_big_vision"),
        pooling=("cls", "gap", "map", "first"),
        representation=None,
        activation=("gelu_tanh",),
        norm_epsilon=(1e-6,),
    )


def write(checkpoint: Checkpoint) -> Writing:
    """The parameters of a train state, no layers stacked."""
    model = checkpoint.config.model
    arrays = written(rules(model, Naming(_POSITIONS[0], "params/")), model, checkpoint.arrays)
    notes = untold(checkpoint.config)
    if model.pooling == "first":
        notes.append("pooling: no array tells 'first' from the mean; read it with --set pooling=first")
    return Writing(arrays, notes=tuple(notes))


def _has_own_position(positions: int, patch: tuple[int, int], fields: Fields) -> bool:
    """Whether there is one more than the grid's, which is a square unless the image size is known."""
    if "image_size" in fields:
        size = image_of(0, patch, fields, "")
        return positions == prod(side // length for side, length in zip(size, patch, strict=True)) + 1
    return isqrt(positions) ** 2 != positions and isqrt(positions - 1) ** 2 == positions - 1
