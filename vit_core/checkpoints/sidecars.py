"""Reads the JSON files beside the weights in a folder of another project: configs of the model and of its images."""

import json
from typing import Any

from vit_core.checkpoints.adapter_folder import ADAPTER_CONFIG, has_adapters
from vit_core.checkpoints.containers import Container, readable
from vit_core.checkpoints.formats.vit.folder import CONFIG, WEIGHTS
from vit_core.storage import Location

OPEN_CLIP_CONFIG = "open_clip_config.json"
PREPROCESSOR_CONFIG, PROCESSOR_CONFIG = "preprocessor_config.json", "processor_config.json"
_OF_FOLDERS = tuple(
    f"{name}{end}" for name in (WEIGHTS, "pytorch_model.bin", "flax_model.msgpack") for end in ("", ".index.json")
)
"""Names of weights files that libraries write together with a config.json in the same folder."""
_LONGEST_JSON = 2**24
"""Maximum size in bytes of a JSON file that is read."""


def read_sidecars(path: Location, container: Container) -> tuple[tuple[dict[str, Any], dict[str, Any]], list[str]]:
    """config.json and the image processor's config in the folder of the weights, and notes. If the path is a file, they
    are read only if the file has one of the names in _OF_FOLDERS."""
    if container.of_keras:  # its metadata are these files
        return ({}, {}), []
    if path.is_dir():
        # In a cache of the Hub this is the folder of the snapshot.
        folder = container.path if container.path.is_dir() else container.path.parent
        notes = list[str]()
    elif path.name in _OF_FOLDERS and (path.parent / CONFIG).is_file():
        folder, notes = path.parent, [f"config: from {CONFIG} beside the file"]
    else:
        return ({}, {}), []
    if path.is_dir() and has_adapters(folder):
        step = f"--base {container.path} applies them"
        notes.append(f"left out: the adapters of {ADAPTER_CONFIG}, which is beside the weights; {step}")
    config, preprocessor = read_json(folder / CONFIG), read_json(folder / PREPROCESSOR_CONFIG)
    if not preprocessor:
        processor = read_json(folder / PROCESSOR_CONFIG).get("image_processor")
        preprocessor = processor if isinstance(processor, dict) else {}
    return (config, preprocessor), notes


def read_open_clip_config(path: Location, container: Container) -> dict[str, Any]:
    """The fields of open_clip_config.json beside open_clip's weights, or in a folder without a config.json; else
    empty."""
    folder = path if path.is_dir() else path.parent
    named = container.path.name.startswith("open_clip")
    if named or (path.is_dir() and not (folder / CONFIG).is_file()):
        return read_json(folder / OPEN_CLIP_CONFIG)
    return {}


def read_json(path: Location) -> dict[str, Any]:
    """The fields of a JSON object in a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    with readable(path, "JSON"):
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError(f"more than {_LONGEST_JSON:,} bytes")
        fields = json.loads(path.read_bytes())  # json detects UTF-8, UTF-16 and UTF-32
    return fields if isinstance(fields, dict) else {}
