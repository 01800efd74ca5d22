"""google-research/big_vision's ViTs: SigLIP's image towers, the ViT-S/16 baselines, FlexiViT, NaFlex (SigLIP 2).

FlexiViT's files are those of the plain ViT, because it resizes the patch kernel when the model runs. The class token is
added after the positions, so that it has no position. Pooling is by a class token ("tok"), the mean ("gap"), attention
("map") or the first patch ("0"); no array distinguishes the last from the mean. Sine-cosine positions are not stored
either.
"""

from collections.abc import Mapping
from math import isqrt, prod

from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.any_aspect import assumed_preprocessing
from vit_core.checkpoints.formats.example_models import SIGLIP
from vit_core.checkpoints.formats.google import naflex
from vit_core.checkpoints.formats.google.names import DETERMINED, FIRST, PATCHES, PIXELS, Naming, Tree, rules, untold
from vit_core.checkpoints.formats.interface import Fields, Format, Reading, Source, Writer, Writing, assume_image_size
from vit_core.checkpoints.formats.rules import write_by_rules
from vit_core.config import ViTConfig

_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")
"""Name of the table now, and before 2022; the old table has a row for the class token."""
_WRITTEN = "params/"
"""Prefix of the names in files that are written."""
_POOLING = frozenset({"pooling"})
"""Fields that the arrays show, unless they are assumed."""
_PUBLISHED = (224, 224)
"""Image size of the published files without a table."""


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the names of patches and blocks. (The google format, which has them too, is tried
    before.)"""
    return PATCHES in source.arrays and any(name.startswith("Transformer/encoderblock") for name in source.arrays)


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes and the defaults of big_vision's code."""
    if naflex.is_naflex(source):
        return _read_naflex(source, fields)
    tree = Tree.of(source, *_POSITIONS)
    found, assumed = tree.fields(), tuple[Assumption, ...]()
    if "MAPHead_0/probe" in tree:
        found["pooling"] = "map"
    elif not found["class_token"] and "pooling" not in fields:
        assumed = (Assumption("pooling", "gap", "which has the same arrays as pooling=first", FIRST),)
    if tree.naming.positions in tree:
        positions = tree.shape(tree.naming.positions, "1 positions features")[1]
        own = found["class_token"] and _has_own_position(positions, found["patch_size"], fields)
        found["class_token_position"] = own
        found["image_size"], square = assume_image_size(positions - own, found["patch_size"], fields, source.path)
        assumed = (*square, *assumed)
    else:
        found |= {"position_embedding": "sincos2d_big_vision", "image_size": _PUBLISHED}
        why = "that of the published files without positions"
        assumed = (*(Assumption(name, found[name], why) for name in ("image_size", "position_embedding")), *assumed)
        assumed = tuple(one for one in assumed if one.field not in fields)
    model = ViTConfig.parse({**found, **fields}, str(source.path))
    named = rules(model, tree.naming)
    stated = _POOLING - {one.field for one in assumed}
    return Reading(
        CheckpointConfig(model=model), named, tree.arrays, notes=(PIXELS,), assumptions=assumed, stated=stated
    )


def _read_naflex(source: Source, fields: Fields) -> Reading:
    (h, w), tree = naflex.grid_of(source), Tree.of(naflex.as_images(source, fields), naflex.POSITIONS)
    found = tree.fields()
    rows, columns = found["patch_size"]
    found |= {"image_size": (h * rows, w * columns), "position_resampling": naflex.RESAMPLING}
    found |= {"class_token_position": False, "pooling": "map" if "MAPHead_0/probe" in tree else "gap"}
    model = ViTConfig.parse({**found, **fields}, str(source.path))
    made, note = assumed_preprocessing(model)
    config = CheckpointConfig(model=model, preprocessing=made)
    return Reading(config, rules(model, tree.naming), tree.arrays, notes=(note,), stated=_POOLING | {"image_size"})


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that big_vision can express: a class token only if pooling uses it, and without a
    position."""
    return plain_vit_with(
        model,
        class_token=(model.pooling not in ("gap", "map", "first"),),
        class_token_position=(False,),
        position_embedding=("learned", "sincos2d_big_vision"),
        pooling=("cls", "gap", "map", "first"),
        representation=ANY,
        activation=("gelu_tanh",),
        norm_epsilon=(1e-6,),
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The parameters as in a train state, with separate arrays for each layer."""
    model = checkpoint.config.model
    arrays = write_by_rules(rules(model, Naming(_POSITIONS[0], _WRITTEN)), model, checkpoint.arrays)
    if naflex.holds(checkpoint.config):
        arrays = naflex.write_arrays(arrays, model, _WRITTEN, checkpoint.origin)
        return Writing(arrays, notes=("written for big_vision's NaFlex", *untold(checkpoint.config, naflex.RESAMPLING)))
    notes = untold(checkpoint.config)
    if model.pooling == "first":
        notes.append("pooling: no array distinguishes 'first' from the mean; read the file with --set pooling=first")
    return Writing(arrays, notes=tuple(notes))


def _has_own_position(positions: int, patch: tuple[int, int], fields: Fields) -> bool:
    """Whether there is one position more than the grid has; the grid is assumed square unless the image size is
    known."""
    if "image_size" in fields:
        size, _ = assume_image_size(0, patch, fields, "")
        return positions == prod(side // length for side, length in zip(size, patch, strict=True)) + 1
    return isqrt(positions) ** 2 != positions and isqrt(positions - 1) ** 2 == positions - 1


FORMAT = Format(
    "big_vision",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(PATCHES,),
    determined=DETERMINED - {"pooling"},
    writer=Writer((".npz",), allowed_values, write_checkpoint),
    examples={
        "attention pooling": SIGLIP,
        "mean": {"pooling": "gap", "class_token": False},
        "class token, sin-cos positions": {"position_embedding": "sincos2d_big_vision"},
        "NaFlex": {**SIGLIP, "position_resampling": naflex.RESAMPLING, "max_patches": 16},
    },
)
