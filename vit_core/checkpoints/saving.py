"""Writes a checkpoint in any format: checkpoint -> config that the format can express -> arrays and texts -> files."""

import os
from pathlib import Path

from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.containers import write_hdf5, write_npz, write_pth, write_safetensors
from vit_core.checkpoints.decoder import decoder_rows
from vit_core.checkpoints.formats.expressing import Expressed, express
from vit_core.checkpoints.formats.interface import Writer, Writing, not_in_state_dict
from vit_core.checkpoints.formats.registry import MASKED_WRITERS, TARGETS, WRITERS
from vit_core.checkpoints.formats.vit.folder import CONFIG, WEIGHTS, write_folder
from vit_core.checkpoints.overwriting import check_target, remove_replaced
from vit_core.errors import InputError, unknown_name
from vit_core.storage import Location, staged_files, writable_location

_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""A target with one of these extensions is meant to be a file, not a folder."""


def express_for(checkpoint: Checkpoint, format: str, allow_lossy: bool = False, *, decoder: bool = False) -> Expressed:
    """The same model with a config that a format of `TARGETS` can express, and notes on the values that were added.

    decoder: keep the decoder of a masked autoencoder; without it, the decoder is left out.

    allow_lossy: accept changes of the config that change the logits slightly, and add a note for each. Raises
    InputError, with the reason, if the format cannot express the model.
    """
    if format not in TARGETS:
        raise unknown_name("format to write", format, TARGETS)
    if decoder:
        writer, checkpoint = _masked_writer(checkpoint, format), checkpoint.with_fixed_positions()
        return express(checkpoint, writer.allowed_values(checkpoint.config.model), format, allow_lossy)
    if format == "vit":
        return Expressed(checkpoint)
    return express(checkpoint, WRITERS[format].allowed_values(checkpoint.config.model), format, allow_lossy)


def save_checkpoint(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    format: str = "vit",
    allow_lossy: bool = False,
    overwrite: bool = False,
    decoder: bool = False,
) -> tuple[str, ...]:
    """Writes a checkpoint in a format of `TARGETS`. Returns notes on values that were added, and on contents of the
    checkpoint that the format cannot store.

    path: on this machine or in a store (gs://, s3://). A name that ends in .safetensors, .pth or .npz becomes such a
    file if the format allows it; any other name becomes a folder. An existing checkpoint of the same format is
    replaced; it stays unchanged if writing fails. Anything else is replaced only with `overwrite`. allow_lossy: accept
    another activation or epsilon if the outputs differ only slightly. decoder: write the decoder of a masked
    autoencoder too (transformers' ViTMAEForPreTraining). Raises InputError, before anything is written, for a model
    that the format cannot express and for a target that must not be replaced.
    """
    target = writable_location(path)
    expressed = express_for(checkpoint, format, allow_lossy, decoder=decoder)
    container = _container(target, format)
    replaced = check_target(target, format, overwrite)
    if format == "vit":
        write_folder(target, expressed.checkpoint)
        remove_replaced(replaced, (WEIGHTS, CONFIG))
        return expressed.notes
    writing = (MASKED_WRITERS if decoder else WRITERS)[format].write(expressed.checkpoint)
    if container == "folder":
        _write_folder(target, writing)
        remove_replaced(replaced, (*_weights_of(writing), *writing.texts))
        return (*expressed.notes, *writing.notes)
    with staged_files(target.parent, (target.name,)) as stage:
        _write_file(stage / target.name, container, writing)
    lost = not_in_state_dict(expressed.checkpoint.config) if writing.texts else ()
    return (*expressed.notes, *writing.notes, *lost)


def _masked_writer(checkpoint: Checkpoint, format: str) -> Writer:
    """The writer of a checkpoint with its decoder. Raises InputError if the checkpoint has no decoder that fits, or the
    format cannot store one."""
    if checkpoint.decoder is None:
        raise InputError(
            f"{checkpoint.origin}: has no decoder of a masked autoencoder; leave out --decoder (in Python decoder=True)"
        )
    model, mae = checkpoint.config.model, checkpoint.decoder.mae
    if checkpoint.decoder.arrays.shapes != {name: row.shape for name, row in decoder_rows(model, mae).items()}:
        raise InputError(f"{checkpoint.origin}: its decoder is for another patch or image size; leave out --decoder")
    if format not in MASKED_WRITERS:
        where = "; a run keeps it in its saved steps, RUN/steps" if format == "vit" else ""
        those = ", ".join(MASKED_WRITERS)
        raise InputError(f"{format} cannot store the decoder of a masked autoencoder{where}; formats that can: {those}")
    return MASKED_WRITERS[format]


def _container(target: Location, format: str) -> str:
    """The kind of target that a name asks for: "folder" or the extension of a file. Raises InputError if the format is
    not written as such a kind."""
    containers = ("folder",) if format == "vit" else WRITERS[format].containers
    container = target.suffix if target.suffix in containers else containers[0]
    if target.suffix != container and (container != "folder" or target.suffix in _FILE_SUFFIXES):
        kinds = ["a folder" if kind == "folder" else f"a {kind} file" for kind in containers]
        raise InputError(f"{target}: {format} is written as {' or '.join(kinds)}; choose a name of that kind")
    return container


def _weights_of(writing: Writing) -> tuple[str, ...]:
    """The names of the files of weights in a folder."""
    return tuple(writing.hdf5) or (WEIGHTS,)


def _write_folder(target: Location, writing: Writing) -> None:
    with staged_files(target, (*_weights_of(writing), *writing.texts)) as stage:
        for name, arrays in writing.hdf5.items():
            write_hdf5(stage / name, arrays)
        if not writing.hdf5:
            write_safetensors(stage / WEIGHTS, writing.arrays, {"format": "pt"})
        for name, text in writing.texts.items():
            (stage / name).write_text(text)


def _write_file(file: Path, container: str, writing: Writing) -> None:
    match container:
        case ".npz":
            write_npz(file, writing.arrays)
        case ".safetensors":
            write_safetensors(file, writing.arrays, {"format": "pt"})
        case _:
            write_pth(file, writing.arrays)
