"""This project's checkpoint folder: `config.json` and `model.safetensors`, with canonical names and PyTorch's layout.

The weights file is replaced atomically and has a copy of the config in its header, so that weights and config belong
together even if a save is interrupted. A stamp in both files distinguishes three cases: a `config.json` that a user
edited (it is used), one that an interrupted save did not replace yet (the header is used; it contains the stamp of the
config that it replaces), and one of another checkpoint (refused).
"""

import json
import re
from collections.abc import Mapping

from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.checkpoints.containers import Container, open_safetensors, write_safetensors
from vit_core.checkpoints.value_checks import with_value_checks
from vit_core.errors import InputError, abbreviate
from vit_core.parameters import Parameter, parameters
from vit_core.storage import Location, staged_files
from vit_core.variants import TIMM

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def open_folder(path: Location) -> Checkpoint:
    """Opens a checkpoint folder, or only its weights file. No parameter is read yet.

    Raises InputError if a file is missing or damaged, or the parameters do not fit the config.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise InputError(
            f"{path}: no such checkpoint; expected a run, a folder with {CONFIG} and {WEIGHTS}, weights such as "
            f".pth or .npz, or {_in_the_hub(path)}"
        )
    if not weights.is_file():
        found = "is not a file" if weights.exists() else "is missing"
        raise InputError(f"{weights}: {found}; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    container = open_safetensors(weights)
    config = _read_config(path, container)
    rows = parameters(config.model)
    if differences := _differences(rows, container.arrays.shapes):
        raise InputError(f"{weights}: parameters do not fit the config: {differences}")
    return Checkpoint(config, with_value_checks(weights, container.arrays.select(rows)), str(path))


def _in_the_hub(path: Location) -> str:
    """A phrase with the probable address in the Hugging Face Hub of a checkpoint that is not on this machine."""
    name = str(path)
    if re.fullmatch(TIMM, name):
        return f"timm's weights of this name: hf://timm/{name}{'' if '.' in name else '.TAG'}"
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not path.suffix and not path.parent.exists():
        return f"in the Hugging Face Hub hf://{name}"
    return "hf://OWNER/MODEL"


def write_folder(path: Location, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint folder, one parameter at a time. An existing one is replaced; it stays unchanged if writing
    fails.

    Raises InputError if the folder cannot be written, or the parameters do not fit the config.
    """
    rows = parameters(checkpoint.config.model)
    if differences := _differences(rows, checkpoint.arrays.shapes):
        raise InputError(f"{path}: these parameters do not fit the config: {differences}")
    text, _ = checkpoint.config.to_json()
    with staged_files(path, (WEIGHTS, CONFIG)) as stage:
        metadata = {"format": "pt", "config": text, "replaces": _stamp_in(path / CONFIG) or ""}
        write_safetensors(stage / WEIGHTS, checkpoint.arrays.select(rows), metadata)
        (stage / CONFIG).write_text(text)


def _read_config(path: Location, weights: Container) -> CheckpointConfig:
    header = weights.metadata.get("config")
    inside = CheckpointConfig.from_json(header, f"{weights.path} (header)") if header else None
    file = path / CONFIG
    if not path.is_dir() or not file.exists():
        if inside is None:
            raise InputError(f"{file if path.is_dir() else path}: no config; expected {CONFIG} beside {WEIGHTS}")
        return inside[0]
    if inside is not None and (stamp := _stamp_in(file)) not in (None, inside[1]):
        if stamp == weights.metadata.get("replaces"):
            return inside[0]  # a save was interrupted between the two files
        raise InputError(f"{file}: belongs to other weights than {weights.path.name} beside it; restore one of them")
    try:
        return CheckpointConfig.from_json(file.read_text(), str(file))[0]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


def _stamp_in(config: Location) -> str | None:
    """The stamp of a config.json; None if the file is missing, unreadable or has no stamp."""
    try:
        stamp = json.loads(config.read_text()).get("stamp")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return stamp if isinstance(stamp, str) else None


def _differences(rows: Mapping[str, Parameter], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Missing, unexpected and wrongly shaped parameters, with what was expected and found; "" if there are none."""
    missing = [f"{name} {list(row.shape)}" for name, row in rows.items() if name not in shapes]
    unexpected = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in rows]
    wrong_shape = [
        f"{name} expected {list(row.shape)} found {list(shapes[name])}"
        for name, row in rows.items()
        if name in shapes and shapes[name] != row.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    return "; ".join(f"{kind}: {abbreviate(names)}" for kind, names in kinds.items() if names)
