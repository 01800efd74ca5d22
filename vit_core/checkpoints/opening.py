"""Opens a checkpoint of any format: location -> container -> format -> canonical parameters."""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.adapter_folder import (
    ADAPTER_CONFIG,
    apply_adapters,
    has_adapters,
    is_adapter_folder,
    read_adapters,
)
from vit_core.checkpoints.candidates import (
    CLASS_WEIGHTS,
    COUNTERS,
    arrays_beside,
    check_read,
    choice_notes,
    choose_candidate,
    facts_beside,
    find_candidates,
    flattened,
    joint_beside,
    keys_beside,
    modules_of,
    modules_of_pickle,
    shared_beside,
)
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.containers import Container, open_container, readable
from vit_core.checkpoints.containers.container import nested
from vit_core.checkpoints.decoder import Decoder, decoder_rows
from vit_core.checkpoints.formats import paddle
from vit_core.checkpoints.formats.interface import Fields, Format, Reading, Source
from vit_core.checkpoints.formats.linear_head import AFTER_BACKBONE
from vit_core.checkpoints.formats.other_networks import (
    advice_about,
    check_deepspeed,
    check_positions,
    check_quantized,
    unrecognized,
)
from vit_core.checkpoints.formats.registry import FOREIGN_FORMATS, FORMATS, foreign_format
from vit_core.checkpoints.formats.rules import read_by_rules
from vit_core.checkpoints.formats.vit import step
from vit_core.checkpoints.formats.vit.folder import CONFIG, WEIGHTS, open_folder
from vit_core.checkpoints.image_facts import without_image_constants
from vit_core.checkpoints.module_checks import check_modules
from vit_core.checkpoints.run_folder import checkpoint_in
from vit_core.checkpoints.sidecars import read_json, read_open_clip_config, read_sidecars
from vit_core.checkpoints.training_facts import read_with_facts
from vit_core.checkpoints.value_checks import with_value_checks, with_zero_head_warning
from vit_core.config import TRAINING_ONLY, ViTConfig
from vit_core.errors import InputError, abbreviate, one_line
from vit_core.field_text import field_text
from vit_core.position_embeddings import is_mae_table
from vit_core.storage import Location, location

_KEYS_OF_LIBRARIES = ("model_type", "architectures", "architecture", "model_args", "pretrained_cfg")
"""Keys of config.json in folders of transformers and timm. A config.json without them has the arguments of a class of
the user's own, as huggingface_hub's PyTorchModelHubMixin writes them."""
_SHARD = re.compile(r".*-[0-9]{5}-of-([0-9]{5})\.\w+")
"""Name of one of several files of a checkpoint. Some trainers name whole checkpoints like this too: epoch of epochs."""


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Mapping[str, Any] | None = None,
    part: str | None = None,
    base: str | os.PathLike[str] | Checkpoint | None = None,
) -> Checkpoint:
    """Opens a checkpoint file or folder, a training run or a saved step. Arrays are read when they are used.

    path: on this machine, in a store (gs://, s3://) or in the Hub (hf://USER/MODEL). format: one of `registry.FORMATS`,
    for a file whose format is not recognized. fields: values of ViTConfig fields that a file of another project does
    not contain (`{"heads": 6}`). part: the model to open if a file contains several, named by its keys and prefix in
    the file ("state_dict"). base: for a folder of adapters (peft's), the checkpoint that the adapters belong to; by
    default the one that the folder names. The result is the base with the adapters merged into its weights. Every name
    and shape is checked. Raises InputError for a checkpoint that is missing, damaged, of an unknown format, or
    incompatible with these arguments.
    """
    opened, fields = checkpoint_in(location(path)), fields or {}
    if is_adapter_folder(opened) or (base is not None and has_adapters(opened)):
        _refuse_choices(opened, format, fields)
        return _open_adapters(opened, base)
    if base is not None and opened.exists():
        raise InputError(f"{opened}: not a folder of adapters (it has no {ADAPTER_CONFIG}); leave out the base")
    if step.is_orbax_step(opened):
        _refuse_choices(opened, format, fields)
        return _open_step(opened)
    chosen = None if format in (None, "vit") else foreign_format(str(format))
    container = None if format == "vit" else _foreign_container(opened)
    if container is None:
        if opened.is_file() or (opened / WEIGHTS).is_file():
            _refuse_choices(opened, format, fields)
        return open_folder(opened)
    source = _source_of(opened, container, part)
    with _named_as_shard(opened):
        return read_source(chosen or recognized_format(source), source, fields)


def open_with_warning(
    path: str | os.PathLike[str] | Checkpoint,
    format: str | None,
    fields: Mapping[str, Any] | None,
    part: str | None,
    base: str | os.PathLike[str] | Checkpoint | None = None,
) -> Checkpoint:
    """`open_checkpoint` for use from Python: a warning names the config fields that were assumed. A `Checkpoint` is
    returned unchanged."""
    if isinstance(path, Checkpoint):
        return path
    checkpoint = open_checkpoint(path, format=format, fields=fields, part=part, base=base)
    fields_of_model = [one for one in checkpoint.assumptions if one.field in ViTConfig.model_fields]
    assumed = ", ".join(field_text(one.field, one.value) for one in fields_of_model)
    said = [f"not in the file, assumed: {assumed}; set others with fields="] if assumed else []
    said += [str(one) for one in checkpoint.assumptions if one not in fields_of_model]
    if said:
        warnings.warn(f"{checkpoint.origin}: {'; '.join(said)}", stacklevel=3)
    return checkpoint


def _open_adapters(
    path: Location, base: str | os.PathLike[str] | Checkpoint | None, above: tuple[Location, ...] = ()
) -> Checkpoint:
    """The base with the adapters of a folder merged into it. above: the folders of adapters that name this one as their
    base."""
    adapters = read_adapters(path)
    if base is None:
        named = adapters.base
        if named is None or not location(named).exists():
            where = f"the base that it names, {named}, does not exist" if named else "it names no base"
            how = "give the checkpoint that they belong to (--base CHECKPOINT; in Python base=...)"
            raise InputError(f"{path}: contains only adapters, and {where}; {how}")
        base = named
    if not isinstance(base, Checkpoint):
        below, above = location(base), (*above, path)
        if below in above:
            raise InputError(f"{path}: its base {base} is a folder of adapters that names this folder as its base")
        base = _open_adapters(below, None, above) if is_adapter_folder(below) else open_checkpoint(below)
    return apply_adapters(adapters, base)


def _refuse_choices(path: Location, format: str | None, fields: Fields) -> None:
    """Raises InputError for options that have no use for a checkpoint in our own format."""
    if format not in (None, "vit"):
        raise InputError(f"{path}: a checkpoint in this project's own format; leave out --from {format}")
    if fields:
        raise InputError(f"{path}: its own config has {', '.join(fields)}; edit {CONFIG} instead of --set")


def _open_step(path: Location) -> Checkpoint:
    config = CheckpointConfig.parse(step.step_config(path), f"{path / step.MANIFEST}: metadata")
    return Checkpoint(config, with_value_checks(path, step.step_parameters(path, config.model)), str(path))


def _foreign_container(path: Location) -> Container | None:
    """The opened weights at a path. None for a checkpoint in our own format, a missing path and an empty folder."""
    if not path.exists() or (path.is_dir() and "format_version" in read_json(path / CONFIG)):
        return None
    if path.is_dir() and not (path / WEIGHTS).exists() and not any(path.iterdir()):
        return None
    container = open_container(path)
    return None if "format_version" in container.metadata.get("config", "") else container


def _source_of(path: Location, container: Container, part: str | None) -> Source:
    (config, preprocessor), notes = read_sidecars(path, container)
    open_clip_config = read_open_clip_config(path, container)
    if open_clip_config and container.path.name.startswith("open_clip"):
        config = preprocessor = {}  # these files belong to other weights in the folder
    of_library = not config.keys().isdisjoint(_KEYS_OF_LIBRARIES)
    facts = {} if of_library or not config else {CONFIG: config}
    own = {} if facts else config
    source = Source(path, container.arrays, own, preprocessor, open_clip_config, facts=facts, notes=tuple(notes))
    return find_source(container, part, source)


def find_source(container: Container, part: str | None, source: Source) -> Source:
    """The source with the arrays of one model of a container: the first one, or the one that `part` names.

    If no model is found, the source has all arrays of the container. Raises InputError for an unknown `part`.
    """
    anchors = [anchor for format in FOREIGN_FORMATS.values() for anchor in format.anchors]
    candidates = find_candidates(container.tree, container.separator, anchors)
    if not candidates:  # PyTorch's names in nested mappings, as in a tree of JAX arrays, or joined by "/"
        names = {name.replace("/", "."): entry for name, entry in flattened(container.tree, ".").items()}
        candidates = find_candidates(names, ".", anchors, joined=True)
    if not candidates and container.separator == ".":  # a PyTorch file, or a flat mapping, with names like Flax's
        names = {name.replace(".", "/"): entry for name, entry in flattened(container.tree, ".").items()}
        candidates = find_candidates(nested(names), "/", anchors, joined=True)
    notes = (*container.notes, *source.notes)
    if not candidates:
        return dataclasses.replace(source, notes=notes)
    chosen = choose_candidate(candidates, part, source.path)
    check_read(container, chosen, candidates, source.path)
    arrays, constants = without_image_constants(chosen.arrays)
    within = {f"{chosen.prefix}{name}": entry for name, entry in constants.items()}
    beside = LazyArrays({**arrays_beside(chosen, candidates).entries, **within})
    if paddle.is_transposed(arrays):
        arrays, beside, notes = paddle.as_in_pytorch(arrays), paddle.as_in_pytorch(beside), (*notes, paddle.NOTE)
    keras, metadata = (container.metadata, {}) if container.of_keras else ({}, container.metadata)
    return dataclasses.replace(
        source,
        arrays=arrays,
        keras=keras,
        facts={**source.facts, **metadata, **facts_beside(container.tree, chosen)},
        modules=modules_of_pickle(container.tree, chosen),
        keys=chosen.keys,
        prefix=chosen.prefix_parts,
        beside=beside,
        shared=shared_beside(chosen, candidates, beside),
        normalizing=frozenset(without_image_constants(beside)[1]),
        joint=joint_beside(chosen, candidates, beside),
        keys_beside=tuple(keys_beside(chosen, candidates, container.tree)),
        notes=(*notes, *choice_notes(chosen, candidates)),
    )


def recognized_format(source: Source) -> Format:
    """The format of a source, recognized by its content. Raises InputError if no format matches."""
    check_deepspeed(source)
    check_quantized(source)
    check_positions(source)
    for format in FOREIGN_FORMATS.values():
        if format.recognizes(source):
            return format
    raise unrecognized(source, FORMATS)


def read_source(format: Format, source: Source, fields: Fields) -> Checkpoint:
    """Converts a source of another project to a checkpoint. Each of its arrays is either used, or named in a note as
    left out; for any other array, and for a missing one, InputError is raised."""
    source = dataclasses.replace(source, num_classes=fields.get("num_classes"))
    with _named_as_in_file(source):
        with readable(source.path, f"a checkpoint of {format.name}"):
            reading = read_with_facts(format.read, source, fields)
        of_modules = check_modules(source, reading, fields)
        decoder, of_decoder = _decoder(source, reading)
        if decoder is None:
            reading = dataclasses.replace(reading, decoder=None)
        left_out = _left_out(format, source, reading, without_head=fields.get("num_classes") == 0)
        arrays = read_by_rules(reading.rules, reading.config.model, reading.arrays, source.path)
    arrays = with_zero_head_warning(source.path, with_value_checks(source.path, arrays))
    assumptions = (*reading.assumptions, *_unsaid(format, reading, fields))
    left = [f"left out: {abbreviate(left_out)}"] if left_out else []
    notes = (*map(str, assumptions), *source.notes, *reading.notes, *of_modules, *left, *of_decoder)
    provenance = reading.config.provenance.replace(source=source.path.name, source_format=format.name)
    config = reading.config.replace(provenance=provenance)
    return Checkpoint(config, arrays, str(source.path), format.name, notes, assumptions, decoder)


def _decoder(source: Source, reading: Reading) -> tuple[Decoder | None, list[str]]:
    """The decoder of a masked autoencoder, and notes. None if there is no decoder, or one that our model cannot
    express: then only the encoder is read."""
    if (there := reading.decoder) is None:
        return None, []
    model, positions = reading.config.model, reading.arrays.entries.get(there.positions)
    try:
        rows = decoder_rows(model, there.mae)
        arrays = read_by_rules(there.rules, model, reading.arrays, source.path, rows)
    except InputError as error:
        return None, [f"the decoder is left out: {str(error).removeprefix(f'{source.path}: ')}"]
    expected = 1, 1 + prod(model.grid), there.mae.decoder_width
    if positions is None or positions.shape != expected or not is_mae_table(positions.read(), model.grid, 1):
        return None, [f"the decoder is left out: {there.positions} is not MAE's table of sines and cosines"]
    notes = [
        f"the file also has the decoder of a masked autoencoder ({len(arrays)} arrays), which only pretraining uses"
    ]
    if "decoder_heads" not in there.stated:
        notes.append(f"decoder_heads: {there.mae.decoder_heads}, assumed, as in the code of MAE's authors")
    return Decoder(there.mae, with_value_checks(source.path, arrays), there.stated), notes


@contextmanager
def _named_as_shard(path: Location) -> Iterator[None]:
    """Adds to an InputError about a file named like a shard the advice to open the folder of all shards."""
    try:
        yield
    except InputError as error:
        shard = _SHARD.fullmatch(path.name)
        if not shard or int(shard[1]) < 2 or not path.is_file():
            raise
        step = f"if this is one of {int(shard[1])} shards, as the name suggests, give the folder that contains them"
        raise type(error)(f"{error}; {step}") from None


@contextmanager
def _named_as_in_file(source: Source) -> Iterator[None]:
    """Adds to an InputError the keys and the prefix of the model in the file, because the names of arrays in messages
    do not include them."""
    try:
        yield
    except InputError as error:
        where, text = f"{source.path}: ", str(error)
        inside = "/".join((*source.keys, *source.prefix))
        if not inside or not text.startswith(where):
            raise
        raise type(error)(f"{where}in '{one_line(inside)}': {text.removeprefix(where)}") from None


def _left_out(format: Format, source: Source, reading: Reading, *, without_head: bool) -> list[str]:
    """The names of arrays and keys that are left out. Raises InputError for an array that is neither used nor known to
    be unnecessary."""
    used = {name for rule in reading.rules for name in rule.theirs}
    if reading.decoder is not None:
        used |= {reading.decoder.positions, *(name for rule in reading.decoder.rules for name in rule.theirs)}
    unused = [name for name in reading.arrays if name not in used]
    of_head = [name for name in unused if AFTER_BACKBONE.match(name)]
    shapes = {name: reading.arrays.entries[name].shape for name in unused}
    left_out = [
        name
        for name, shape in shapes.items()
        if re.search(reading.left_out, name)
        or COUNTERS.fullmatch(name)
        or (CLASS_WEIGHTS.fullmatch(name) and len(shape) == 1)
        or (without_head and name in of_head)
        or 0 in shape  # the tokens of a model that has none: no values are lost
    ]
    if unexpected := [name for name in unused if name not in left_out]:
        advice = advice_about(unexpected) or "arrays are left out only if they are known to be unnecessary"
        if set(unexpected) <= set(of_head):
            advice = "use --set num_classes=0 to leave this head out"
        raise InputError(
            f"{source.path}: arrays that {format.name}'s model does not use: {abbreviate(unexpected)}; {advice}"
        )
    modules = tuple(f"{module}." for module in reading.used)
    beside = [name for name in source.beside if name not in reading.used and not name.startswith(modules)]
    keys = [name for name in source.keys_beside if name not in reading.used]
    return [*left_out, *keys, *modules_of(beside, source.prefix)]


def _unsaid(format: Format, reading: Reading, fields: Fields) -> list[Assumption]:
    """An assumption for each field of the config that neither the format, nor the file, nor the user determines, so
    that every assumed value is reported."""
    said = format.determined | reading.stated | set(fields) | {one.field for one in reading.assumptions}
    model = reading.config.model
    return [
        Assumption(name, getattr(model, name), f"the usual value in {format.name}")
        for name in type(model).model_fields
        if name not in said and name not in TRAINING_ONLY
    ]
