"""Rules for replacing files by a new checkpoint: files of another kind are replaced only on request."""

from collections.abc import Collection
from fnmatch import fnmatch

from vit_core.checkpoints.opening import open_checkpoint
from vit_core.checkpoints.run_folder import FINISHED, STEPS
from vit_core.errors import InputError, abbreviate
from vit_core.storage import Location, is_local

_WEIGHTS = (
    "*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.npz", "*.msgpack", "*.h5", "*.keras", "*.onnx",
    "*.index.json",
)  # fmt: skip
"""Names of files that contain weights, or list files of weights."""
_PRESET = (
    "config.json", "model.weights.h5", "task.weights.h5", "task.json", "preprocessor.json", "image_converter.json",
    "metadata.json",
)  # fmt: skip
"""Names of the files of a preset of keras_hub."""
_CONFIGS = ("preprocessor_config.json", "processor_config.json", "open_clip_config.json", *_PRESET)
"""Names of files that describe the weights beside them."""
_RUN_FILES = ("run.json", STEPS)
"""Names of files in the folder of a training run."""


def check_target(path: Location, format: str, overwrite: bool) -> tuple[Location, ...]:
    """Checks that a checkpoint may be written at `path`; returns the files of the checkpoint that it replaces.

    The target may be a missing or empty folder, a missing file or a checkpoint of the same format. Anything else is
    replaced only with `overwrite`; the folder of a training run is never written to. After writing, the caller removes
    those of the returned files that it did not replace (`remove_replaced`), so that no old weights remain beside the
    new ones.

    Raises InputError that names the existing files.
    """
    if not path.exists():
        return ()
    if path.is_file():
        if not overwrite and _format_of(path) != format:
            raise InputError(
                f"{path}: exists and is not a {format} checkpoint; choose another name, or add --overwrite"
            )
        return (path,)
    names = sorted(entry.name for entry in path.iterdir())
    names = [name for name in names if not name.startswith(".")]
    if in_run := [name for name in names if name in _RUN_FILES]:
        raise InputError(f"{path}: is the folder of a training run (it has {in_run[0]}); choose another folder")
    there = [name for name in names if _is_part_of_a_checkpoint(name)]
    if not overwrite and names:
        _refuse_others(path, format, names, there)
    return tuple(path / name for name in there)


def remove_replaced(files: Collection[Location], written: Collection[str]) -> None:
    """Removes files of an earlier checkpoint, as `check_target` returns them, except those of the names `written`."""
    for file in files:
        if file.name not in written:
            file.unlink(missing_ok=True)


def check_outside_runs(path: Location) -> None:
    """Raises InputError for a target that a training run would read as its own saved step or finished checkpoint."""
    path = path.absolute() if is_local(path) else path
    for run, inside in ((path.parent, path.name), (path.parent.parent, path.parent.name)):
        is_own = inside == STEPS or (run == path.parent and inside.startswith(FINISHED))
        if is_own and (run / "run.json").is_file():
            raise InputError(f"{path}: belongs to the training run {run}; choose a folder outside of it")


def _refuse_others(path: Location, format: str, names: list[str], there: list[str]) -> None:
    """Raises InputError unless a folder contains one checkpoint of the format."""
    found = _format_of(path) if there else None
    if found != format:
        what = f"a {found} checkpoint" if found else f"other files ({abbreviate(names, most=3)})"
        raise InputError(
            f"{path}: contains {what}, not a {format} checkpoint; choose an empty or new folder, or add --overwrite"
        )
    own = _PRESET if format == "keras_hub" else ("model.safetensors", "config.json", "preprocessor_config.json")
    if beside := [name for name in there if name not in own]:
        raise InputError(
            f"{path}: {abbreviate(beside, most=3)} would remain beside the new weights; choose an empty or new folder, "
            "or add --overwrite, which removes it"
        )


def _is_part_of_a_checkpoint(name: str) -> bool:
    return name in _CONFIGS or any(fnmatch(name, pattern) for pattern in _WEIGHTS)


def _format_of(path: Location) -> str | None:
    """The format of the checkpoint at a path; None if there is no checkpoint that can be opened."""
    try:
        return open_checkpoint(path).format
    except InputError:
        return None
