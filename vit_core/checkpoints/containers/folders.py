"""Chooses the weights that are opened in a folder, and describes folders without weights for messages."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from vit_core.checkpoints.containers import dcp, keras, orbax
from vit_core.errors import InputError, abbreviate
from vit_core.storage import Location

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Names that libraries give to a folder's weights. If a folder has several, the first in this order is read."""
_EXTENSIONS = (
    *(".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar", ".msgpack", ".index.json"),
    *(".weights.h5", ".weights.json", ".keras"),
)
_NO_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|spiece|tokenizer|merges|events"
    r"|(bf16_)?zero_pp_rank_)[\w.-]*"
)
"""Names, with the same extensions, of other files that training scripts save beside the weights."""
_ANOTHER_MODEL = re.compile(r"(model|pytorch_model)_\d+\.(safetensors|bin)")
"""Names that accelerate's save_state gives to the second model and later ones."""
_SHARD = re.compile(r"((?:open_clip_)?(?:pytorch_)?model|flax_model)-[0-9]{5}-of-[0-9]{5}(\.\w+)")
_MOST_NAMES = 10_000


@dataclass(frozen=True)
class Found:
    """What is opened for a folder: a file in it, or the folder itself."""

    path: Location
    """A file of weights, or a folder that is a checkpoint itself."""
    reader: str
    """ "file", "orbax", "dcp" or "keras" (a preset of keras_hub)."""
    notes: tuple[str, ...] = ()


def find_weights(folder: Location) -> Found:
    """Finds the weights in a folder. Raises InputError if it has none, or several files of weights without one of the
    names in WEIGHTS."""
    names = _names(folder)
    if cached := _snapshot(folder, names):
        inner = find_weights(cached)
        return Found(inner.path, inner.reader, (f"read snapshot {cached.name[:12]} of a hub cache", *inner.notes))
    if dcp.METADATA in names and any(name.endswith(".distcp") for name in names):
        return Found(folder, "dcp")
    if orbax.is_orbax_item(folder, names):
        return Found(folder, "orbax")
    for name in WEIGHTS:
        if name in names and (folder / name).is_file():
            others = sorted(one for one in names if _ANOTHER_MODEL.fullmatch(one))
            note = f"read {name}; to open another model of the folder, give its file: {abbreviate(others, most=3)}"
            return Found(folder / name, "file", (note,) if others else ())
    if _is_preset(names):
        return Found(folder, "keras")
    candidates = sorted(name for name in names if _looks_like_weights(name) and (folder / name).is_file())
    if len(candidates) == 1:
        return Found(folder / candidates[0], "file")
    if candidates and all(shards := [_SHARD.fullmatch(name) for name in candidates]):
        index = next(f"{shard[1]}{shard[2]}.index.json" for shard in shards if shard)
        raise InputError(f"{folder}: has {len(shards)} shards without their index; add the file {index}")
    if candidates:
        raise InputError(
            f"{folder}: not a checkpoint folder (it has no {WEIGHTS[0]} or similar file); give one of its files: "
            f"{abbreviate(candidates, most=5)}"
        )
    return _found_below(folder, names)


def describe_folder(folder: Location) -> str:
    """A description of a folder, with its article, for messages. Kinds of folders that cannot be read are described
    too."""
    names = _names(folder)
    if _is_cache(names):
        return "a repository in a hub cache"
    if dcp.METADATA in names and any(name.endswith(".distcp") for name in names):
        return "a folder of torch.distributed.checkpoint (DCP)"
    if orbax.is_orbax_item(folder, names):
        return "an Orbax checkpoint"
    usual = next((name for name in WEIGHTS if name in names), None)
    if usual is None and _is_preset(names):
        return "a preset of keras_hub"
    candidates = sorted(name for name in names if _looks_like_weights(name))
    if usual or candidates:
        return f"a folder with {usual or abbreviate(candidates, most=3)}"
    items = [name for name in sorted(names) if _is_item(folder, name)]
    if items:
        return f"a folder with Orbax checkpoints ({abbreviate(items, most=3)})"
    return _unread(names) or _foreign_file(names) or ("a folder without weights" if names else "an empty folder")


def _names(folder: Location) -> set[str]:
    try:
        paths: Iterator[Location] = iter(folder.iterdir())
        return {path.name for path in islice(paths, _MOST_NAMES)}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None


def _looks_like_weights(name: str) -> bool:
    return name.endswith(_EXTENSIONS) and not _NO_WEIGHTS.match(name) and not name.startswith(".")


def _is_preset(names: Iterable[str]) -> bool:
    """Whether a folder has the weights of a preset of keras_hub."""
    return keras.WEIGHTS in names or keras.INDEX in names


def _is_cache(names: Iterable[str]) -> bool:
    return {"snapshots", "refs"} <= set(names) or {"snapshots", "blobs"} <= set(names)


def _snapshot(folder: Location, names: set[str]) -> Location | None:
    """The newest snapshot of a repository in a hub cache (models--OWNER--NAME); None for another folder."""
    if not _is_cache(names):
        return None
    snapshots = folder / "snapshots"
    commits = sorted(_names(snapshots))
    main = folder / "refs" / "main"
    if main.is_file() and main.stat().st_size <= 200 and (commit := main.read_text().strip()) in commits:
        return snapshots / commit
    if len(commits) == 1:
        return snapshots / commits[0]
    choice = (
        f"give one of {abbreviate([f'snapshots/{c}' for c in commits], most=5)}" if commits else "download it again"
    )
    raise InputError(f"{folder}: a hub cache without the snapshot of refs/main; {choice}")


def _is_item(folder: Location, name: str) -> bool:
    path = folder / name
    return "." not in name and path.is_dir() and orbax.is_orbax_item(path, _names(path))


def _found_below(folder: Location, names: set[str]) -> Found:
    """Finds weights in a subfolder, if it is clear which one to open. Otherwise raises InputError that describes the
    folder."""
    items = [name for name in sorted(names)[:200] if _is_item(folder, name)]
    usual = [name for name in ("default", "params", "state") if name in items]
    if usual or len(items) == 1:
        name = (usual or items)[0]
        others = [item for item in items if item != name]
        note = f"read item '{name}'" + (f"; left out: {abbreviate(others, most=3)}" if others else "")
        return Found(folder / name, "orbax", (note,))
    if {"data.pkl", "data", "version"} <= names:
        step = "give that file, or pack this folder (not only its contents) as a zip file without compression"
        raise InputError(f"{folder}: the unpacked contents of a .pth file; {step}")
    if {"run.json", "metrics.jsonl"} & names and not {"checkpoint", "steps"} & names:
        raise InputError(f"{folder}: a training run without a saved step; `vit resume {folder}` continues it")
    inner = [name for name in sorted(names)[:200] if _may_open(folder / name)]
    if known := _unread(names) or ("" if inner else _foreign_file(names)):
        raise InputError(
            f"{folder}: {known}, which cannot be read; load it with its library and save its arrays as .npz"
        )
    found = f"found {abbreviate(sorted(names), most=5)}" if names else "it is empty"
    choice = f"give one of the folders in it: {abbreviate(inner, most=5)}" if inner else found
    raise InputError(f"{folder}: not a checkpoint folder (it has no {WEIGHTS[0]} or similar file); {choice}")


def _may_open(path: Location) -> bool:
    """Whether a path is a folder with weights, or a finished training run, which opens as its checkpoint
    (run_folder.py). False for a folder that cannot be read."""
    try:
        return path.is_dir() and ((path / "checkpoint" / WEIGHTS[0]).is_file() or _has_weights(path))
    except (InputError, OSError):
        return False


def _has_weights(folder: Location) -> bool:
    names = _names(folder)
    is_checkpoint = orbax.is_orbax_item(folder, names) or _is_cache(names) or dcp.METADATA in names
    return is_checkpoint or any(map(_looks_like_weights, names)) or any(_is_item(folder, n) for n in sorted(names)[:20])


def _unread(names: set[str]) -> str:
    """The kind of a folder, with its article, if it is known but cannot be read; else empty."""
    if "saved_model.pb" in names:
        return "a TensorFlow SavedModel"
    if any(re.search(r"\.data-\d{5}-of-\d{5}$", name) for name in names):
        return "a TensorFlow checkpoint"
    if any(name.startswith("zero_pp_rank_") for name in names):
        return "a DeepSpeed ZeRO checkpoint in parts (zero_to_fp32.py joins them)"
    if "Manifest.json" in names:
        return "a Core ML package"
    return ""


def _foreign_file(names: set[str]) -> str:
    """A description of a folder with a file of weights whose kind is known but cannot be read; else empty."""
    for end, kind in (
        (".h5", "weights of Keras or TensorFlow"),
        (".keras", "a Keras model"),
        (".onnx", "an ONNX model"),
    ):
        if found := next((name for name in sorted(names) if name.endswith(end)), None):
            return f"a folder with {kind} ({found})"
    return ""
