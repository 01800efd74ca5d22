"""Finds transformers' config within a file of weights: of a pickled model, or beside a state dict."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vit_core.checkpoints.formats.interface import Reading, Source
from vit_core.checkpoints.formats.rules import read_by_rules
from vit_core.checkpoints.formats.stated_mappings import OTHERS, stated_mappings
from vit_core.checkpoints.formats.transformers.names import FAMILIES, PATCHES, TOWER_OF
from vit_core.errors import InputError

_CLASSES = {
    "ViTConfig": "vit",
    "DeiTConfig": "deit",
    "ViTMAEConfig": "vit_mae",
    "ViTMSNConfig": "vit_msn",
    "IJepaConfig": "ijepa",
    "Dinov2Config": "dinov2",
    "Dinov2WithRegistersConfig": "dinov2_with_registers",
    "DINOv3ViTConfig": "dinov3_vit",
    "BeitConfig": "beit",
    "Data2VecVisionConfig": "data2vec-vision",
    "InternVLVisionConfig": "internvl_vision",
    "SiglipVisionConfig": "siglip_vision_model",
    "SiglipConfig": "siglip",
    "Siglip2VisionConfig": "siglip2_vision_model",
    "Siglip2Config": "siglip2",
    "CLIPVisionConfig": "clip_vision_model",
    "CLIPConfig": "clip",
    "Aimv2VisionConfig": "aimv2_vision_model",
    "Aimv2Config": "aimv2",
}
"""Class of a pickled config -> its model_type, which is an attribute of the class and so not in the pickle."""
_CONTRADICTIONS = ("but the arrays show", "expected the arrays of", "do not form one model")
"""Parts of the errors about a config whose arrays are those of another model."""


def read_with_config_of_file(source: Source, read: Callable[[Source], Reading]) -> Reading:
    """A reading that uses the config that the file contains as if it were a config.json. If the source has a
    config.json, or no config in the file is about a model of this width, or the arrays contradict it, then without it.

    Raises InputError for what the config states and ViTConfig cannot express.
    """
    if source.config or (found := _config_of_file(source)) is None:
        return read(source)
    path, config = found
    note = f"config: that of transformers under '{': '.join(path)}', "
    try:
        reading = read(replace(source, config=config))
        read_by_rules(reading.rules, reading.config.model, reading.arrays, source.path)
        note += "used like a config.json"
    except InputError as error:
        text = str(error).replace("config.json states", "the config in it states")
        if not any(one in text for one in _CONTRADICTIONS):
            raise type(error)(text) from None
        reading = read(source)
        note += f"left out because the arrays contradict it ({text.removeprefix(f'{source.path}: ')})"
    return replace(reading, notes=(note, *reading.notes), used=reading.used | {path[0]})


def _config_of_file(source: Source) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """The config of transformers that is about the model of the source, with the keys that lead to it."""
    width = next((array.shape[0] for name, array in source.arrays.entries.items() if name.endswith(PATCHES)), None)
    found = [(path, config) for path, config in _configs(source.facts) if _width_of(config, width) == width]
    known = [one for one in found if one[1]["model_type"] in FAMILIES or one[1]["model_type"] in TOWER_OF]
    return next(iter(known or [one for one in found if "hidden_size" in one[1] and one[0][-1] == "config"]), None)


def _width_of(config: Mapping[str, Any], default: int | None) -> Any:
    """The width of the image tower that a config describes."""
    vision = config.get("vision_config")
    return (vision if isinstance(vision, Mapping) else config).get("hidden_size", default)


def _plain(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a config, and of the configs in it, which may be objects, without private ones."""
    values = {str(key): getattr(x, "attributes", x) for key, x in fields.items() if not str(key).startswith("_")}
    return {key: _plain(x) if isinstance(x, Mapping) else x for key, x in values.items()}


def _configs(facts: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every config of transformers among the values that a file states, with the keys that lead to it."""
    for path, values in stated_mappings(facts):
        for name, value in values.items():
            if OTHERS.search(str(name)):
                continue
            kind, fields = getattr(value, "kind", ""), getattr(value, "attributes", value)
            if isinstance(fields, str) and fields.startswith("{"):
                with suppress(ValueError, RecursionError):
                    fields = json.loads(fields)
            if not isinstance(fields, Mapping):
                continue
            config = _plain(fields)
            if kind.startswith("transformers.models.") and kind.endswith("Config"):
                config.setdefault("model_type", _CLASSES.get(kind.rpartition(".")[2], kind.split(".")[2]))
            elif "transformers_version" not in config:
                continue
            if isinstance(config.get("model_type"), str):
                yield (*path, str(name)), config
