"""Finds the tokens and positions of a Vision Transformer of keras_hub.

They are variables of one layer, which have numbers instead of names. The numbers depend on which of them the model has,
and the shapes show that, but for one case.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.formats.interface import Fields, Source, axes_of
from vit_core.checkpoints.formats.keras_hub.families import CLIP, DEIT, DINOV2, PROBE, SIGLIP, VIT, Family
from vit_core.checkpoints.formats.keras_hub.stated import Stated
from vit_core.errors import InputError, abbreviate


@dataclass(frozen=True)
class Tokens:
    """The tokens and positions of a model."""

    names: Mapping[str, str]
    """Our tokens and positions -> the names of their arrays."""
    fields: Mapping[str, Any]
    """Those of ViTConfig."""
    patch_positions: int | None = None
    """Positions of patches; None without learned positions."""
    has_mask: bool = False
    """Whether there is a mask token, which only pretraining uses."""
    left_out: tuple[str, ...] = ()
    """Names of arrays that are not part of our model: the mask token, and positions for another image size."""
    notes: tuple[str, ...] = ()
    arrays: Mapping[str, LazyArray] = field(default_factory=dict)
    """Arrays that replace those of the file."""


def find_tokens(source: Source, family: Family, said: Stated, given: Fields) -> Tokens:
    """Finds them by the shapes, and for DINOv2 and DINOv3 also by the config. Raises InputError if arrays are missing
    or if it is unknown what they are."""
    if family in (VIT, SIGLIP, CLIP):
        return _of_vit(source, family)
    if family is DEIT:
        names = {"cls_token": 0, "dist_token": 1, "pos_embed": 2}
        named = {ours: _variable(family, number) for ours, number in names.items()}
        rows = axes_of(source.arrays.shapes, named["pos_embed"], 3, source.path)[1]
        return Tokens(named, {"distillation": "token"}, rows - 2)
    return _of_dino(source, family, said, given)


def _variable(family: Family, number: int) -> str:
    return f"{family.embeddings}/vars/{number}"


def _of_vit(source: Source, family: Family) -> Tokens:
    """SigLIP and CLIP also have the numbers of the positions, which are no parameters."""
    names = {"cls_token": _variable(family, 0), "pos_embed": f"{family.embeddings}/position_embedding/vars/0"}
    has_class = names["cls_token"] in source.arrays and family is not SIGLIP
    rows = axes_of(source.arrays.shapes, names["pos_embed"], 2, source.path)[0]
    fields: dict[str, Any] = {"class_token": has_class, "class_token_position": has_class}
    if family is VIT:
        return Tokens(names, fields, rows - has_class)
    names, numbers = {**names, "attn_pool.latent": PROBE}, _variable(family, int(has_class))
    chosen, notes = _chosen_rows(source, names["pos_embed"], numbers)
    return Tokens(names, fields, rows - has_class, left_out=(numbers,), notes=notes, arrays=chosen)


def _chosen_rows(source: Source, table: str, numbers: str) -> tuple[dict[str, LazyArray], tuple[str, ...]]:
    """The table of positions with the rows that `position_ids` choose, if these are not 0, 1, 2, ...; and a note. (The
    class of CLIP sets all of them to 0, unless it loads others.)"""
    entry, rows = source.arrays.entries[table], source.arrays.shapes[table][0]
    if numbers not in source.arrays or source.arrays.shapes[numbers] != (1, rows):
        raise InputError(f"{source.path}: {numbers} is missing or has another shape than [1, {rows}] (position_ids)")
    chosen = source.arrays[numbers][0].astype(np.int64)
    if not np.all((chosen >= 0) & (chosen < rows)):
        raise InputError(f"{source.path}: {numbers} has numbers outside of the {rows} positions (position_ids)")
    if np.array_equal(chosen, np.arange(rows)):
        return {}, ()
    note = f"positions: rows {abbreviate(list(map(str, chosen)), most=4)} of the table, as position_ids state"
    return {table: entry.then(lambda table_ND: table_ND[chosen], entry.shape, entry.dtype)}, (note,)


def _of_dino(source: Source, family: Family, said: Stated, given: Fields) -> Tokens:
    """The class token, then perhaps a mask token and perhaps registers; in DINOv2, then the positions for the image
    size and those of the pretraining."""
    shapes = source.arrays.shapes
    variables = [name for number in range(6) if (name := _variable(family, number)) in shapes]
    learned = 2 * (family is DINOV2)
    between = variables[1 : len(variables) - learned]
    masks = _masks(source, family, [shapes[name] for name in between], said, given)
    names = {"cls_token": _variable(family, 0), **dict(zip(["reg_token"], between[masks:], strict=False))}
    registers = axes_of(shapes, names["reg_token"], 3, source.path)[1] if "reg_token" in names else 0
    left_out, fields = between[:masks], {"registers": registers, "class_token_position": bool(learned)}
    if not learned:
        return Tokens(names, {**fields, "position_embedding": "none"}, None, bool(masks), tuple(left_out))
    if len(variables) < 3:
        raise InputError(f"{source.path}: {family.embeddings} has {len(variables)} arrays, expected at least 3")
    used, other, notes = _positions(variables[-2], variables[-1], shapes, said)
    rows = axes_of(shapes, used, 3, source.path)[1]
    return Tokens({**names, "pos_embed": used}, fields, rows - 1, bool(masks), (*left_out, other), notes)


def _masks(source: Source, family: Family, between: list[tuple[int, ...]], said: Stated, given: Fields) -> int:
    """The number of mask tokens, 0 or 1, of which registers may follow. A DINOv3 with one of both has an array of the
    same shape for either. Raises InputError if nothing says which it is."""
    if len(between) != 1 or len(between[0]) == 2:  # DINOv2's mask token has two axes
        return min(len(between), 1)
    if family is DINOV2 or between[0][1] != 1:
        return 0
    registers = said.backbone.get("num_register_tokens", given.get("registers"))
    if registers not in (0, 1):
        raise InputError(
            f"{source.path}: one token of DINOv3 may be a mask token or a register; use --set registers=0 or 1"
        )
    return 1 - int(registers)


def _positions(
    resampled: str, table: str, shapes: Mapping[str, tuple[int, ...]], said: Stated
) -> tuple[str, str, tuple[str, ...]]:
    """DINOv2's positions that are used, those that are left out, and a note.

    Keras computes the positions for `image_shape` from the table when it loads a file, with another filter in each of
    its backends. The file also has them as they were when it was saved, which are used here.
    """
    image, own = said.backbone.get("image_shape"), said.backbone.get("position_embedding_shape")
    if image == own if image and own else shapes[resampled] == shapes[table]:
        return table, resampled, ()
    note = f"positions: those for image_shape, as saved; the table for {own or 'another size'} is left out"
    return resampled, table, (note,)
