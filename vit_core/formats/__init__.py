"""Checkpoints of every format: recognised by content, read into canonical arrays, written for whoever opens them next.

format         what it is
vit            our checkpoint folder, training run or step (Orbax's too)
timm           state dicts of timm's vit_* models, and the folders its hub makes
transformers   folders of ViT, DeiT, ViTMAE, Dinov2, SigLIP and CLIP vision towers
torchvision    state dicts of vit_b_16 ... vit_h_14
meta           DINO, DINOv2, MAE and DeiT as Meta released them
google         google-research/vision_transformer .npz
big_vision     google-research/big_vision .npz
lucidrains     lucidrains/vit-pytorch state dicts
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np

from vit_core import checkpoint as own
from vit_core.arrays import LazyArrays
from vit_core.checkpoint import Checkpoint, CheckpointConfig, checked, checkpoint_of, save_checkpoint, staging
from vit_core.containers import Container, open_container, readable, write_npz, write_safetensors
from vit_core.errors import InputError, some, unknown_name
from vit_core.formats import (
    big_vision,
    google,
    lucidrains,
    meta,
    orbax,
    rules,
    timm,
    torchvision,
    transformers,
    widening,
)
from vit_core.formats.lineage import Fields, Lineage, Source, Writing, Written, left_behind
from vit_core.places import Stored

_MODULES = (transformers, meta, timm, torchvision, lucidrains, google, big_vision)
LINEAGES: dict[str, Lineage] = {module.NAME: cast(Lineage, module) for module in _MODULES}
"""In the order in which they are asked whether a source is theirs."""
FORMATS = ("vit", *LINEAGES)
TARGETS = ("vit", *(name for name, lineage in LINEAGES.items() if hasattr(lineage, "write")))
"""The formats that are written."""
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""Endings that nobody gives a folder."""
_LONGEST_JSON = 2**24
_PREPROCESSOR = "preprocessor_config.json"


def open_any(path: Path, format: str | None, fields: Fields) -> Checkpoint:
    """vit_core.open_checkpoint."""
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    path = checkpoint_of(path)
    if orbax.is_step(path):
        return _open_orbax(path)
    if format == "vit" or (format is None and _is_own(path)):
        if fields:
            raise InputError(f"{path}: its own config says {', '.join(fields)}; edit {own.CONFIG} instead of --set")
        return own.open_folder(path)
    source = _source(path)
    lineage = LINEAGES[format] if format else _recognised(source)
    return _read(lineage, source, fields)


def _open_orbax(path: Path) -> Checkpoint:
    config = CheckpointConfig.parse(orbax.metadata(path), f"{path / orbax.MANIFEST}: metadata")
    return Checkpoint(path, config, checked(path, orbax.parameters_of(path, config.model)))


def _is_own(path: Path) -> bool:
    """Whether it is a checkpoint folder of ours, or its weights, or nothing at all. A store has no others."""
    if (
        isinstance(path, Stored)
        or not path.exists()
        or (path.is_dir() and "format_version" in _json(path / own.CONFIG))
    ):
        return True
    weights = path / own.WEIGHTS if path.is_dir() else path
    if not weights.exists() and path.is_dir():
        return not any(path.glob("*.*"))
    try:
        container = open_container(weights)
    except InputError:
        return False
    return "format_version" in container.metadata.get("config", "")


def _source(path: Path) -> Source:
    opened: Container = open_container(path)
    folder = path if path.is_dir() else None
    config = _json(folder / "config.json") if folder else {}
    preprocessor = _json(folder / _PREPROCESSOR) if folder else {}
    return Source(path, opened.arrays, config, preprocessor, opened.notes)


def _json(path: Path) -> dict[str, Any]:
    """An object's fields; none where there is no such file."""
    if not path.is_file():
        return {}
    with readable(path, "JSON"):
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError("too long")
        fields = json.loads(path.read_text())
    return fields if isinstance(fields, dict) else {}


def _recognised(source: Source) -> Lineage:
    for lineage in LINEAGES.values():
        if lineage.recognises(source):
            return lineage
    some = ", ".join(list(source.arrays)[:3]) or "none"
    raise InputError(
        f"{source.path}: its arrays ({some}, ...) are those of no Vision Transformer known here; "
        f"expected one of {', '.join(FORMATS)}"
    )


def _read(lineage: Lineage, source: Source, fields: Fields) -> Checkpoint:
    with readable(source.path, f"a checkpoint of {lineage.NAME}"):
        reading = lineage.read(source, fields)
    named = {name for rule in reading.rules for name in rule.theirs}
    rest = [name for name in reading.arrays if name not in named]
    left = [name for name in rest if re.search(reading.left_out, name)]
    if unexpected := [name for name in rest if name not in left]:
        raise InputError(
            f"{source.path}: arrays with no place in {lineage.NAME}'s model as read: {some(unexpected)}; "
            "nothing is dropped in silence"
        )
    arrays = rules.read(reading.rules, reading.config.model, reading.arrays, source.path)
    notes = [*source.notes, *reading.notes, *([f"left out: {some(left)}"] if left else [])]
    provenance = reading.config.provenance.replace(source=source.path.name, source_format=lineage.NAME)
    config = reading.config.replace(provenance=provenance)
    return Checkpoint(
        source.path, config, _with_warnings(source.path, checked(source.path, arrays)), tuple(notes), lineage.NAME
    )


def _with_warnings(path: Path, arrays: LazyArrays) -> LazyArrays:
    """The released files of models pretrained on ImageNet-21k may have a head of zeros, which says nothing."""
    if "head.weight" not in arrays:
        return arrays

    def warned(head: np.ndarray) -> np.ndarray:
        if not head.any():
            warnings.warn(f"{path}: the head is all zeros; put a new one in its place (num_classes)", stacklevel=2)
        return head

    entry = arrays.entries["head.weight"]
    return LazyArrays({**arrays.entries, "head.weight": entry.then(warned, entry.shape, entry.dtype)})


def expressed(checkpoint: Checkpoint, format: str, allow_lossy: bool = False) -> tuple[Checkpoint, list[str]]:
    """The same model under a config that a format of TARGETS can hold, and notes of what was filled in.

    Raises InputError for what it cannot hold, with the reason; with allow_lossy less often (and notes say so).
    """
    if format not in TARGETS:
        raise unknown_name("format to write", format, TARGETS)
    if format == "vit":
        return checkpoint, []
    allowed = cast(Written, LINEAGES[format]).holds(checkpoint.config.model)
    return widening.express(checkpoint, allowed, format, allow_lossy)


def save_as(path: Path, checkpoint: Checkpoint, format: str = "vit", allow_lossy: bool = False) -> list[str]:
    """Writes a checkpoint in a format of TARGETS; gives notes of what was filled in (`expressed`) or is not carried.

    A name that ends in .safetensors, .pth or .npz is written as such a file where the format knows it; any other is a
    folder. What stands there is replaced, or stays whole if writing fails. Raises InputError for what the format cannot
    hold, with the reason, before anything is written.
    """
    checkpoint, notes = expressed(checkpoint, format, allow_lossy)
    containers = ("folder",) if format == "vit" else cast(Written, LINEAGES[format]).CONTAINERS
    suffix = Path(path.name).suffix
    container = suffix if suffix in containers else containers[0]
    if suffix != container and (container != "folder" or suffix in _FILES):
        kinds = ["a folder" if kind == "folder" else f"a {kind} file" for kind in containers]
        raise InputError(f"{path}: {format} is written as {' or '.join(kinds)}; give it such a name")
    if format == "vit":
        save_checkpoint(path, checkpoint.config, checkpoint.arrays)
        return notes
    writing = cast(Written, LINEAGES[format]).write(checkpoint)
    _write(path, container, writing)
    return [
        *notes,
        *writing.notes,
        *(left_behind(checkpoint.config) if writing.texts and container != "folder" else ()),
    ]


def _write(path: Path, container: str, writing: Writing) -> None:
    if container == "folder":
        with staging(path, (own.WEIGHTS, *writing.texts)) as stage:
            write_safetensors(stage / own.WEIGHTS, writing.arrays, {"format": "pt"})
            for name, text in writing.texts.items():
                (stage / name).write_text(text)
        if _PREPROCESSOR not in writing.texts:  # one that is there belongs to the model that was
            (path / _PREPROCESSOR).unlink(missing_ok=True)
        return
    with staging(path.parent, (path.name,)) as stage:
        if container == ".npz":
            write_npz(stage / path.name, writing.arrays)
        elif container == ".safetensors":
            write_safetensors(stage / path.name, writing.arrays, {"format": "pt"})
        else:
            from vit_core import pth

            pth.write(stage / path.name, writing.arrays)
