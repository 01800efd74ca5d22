"""Finds transformers' config within a file of weights: of a pickled model, or beside a state dict."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.stated_mappings import stated_mappings
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


def with_config_of_file(source: Source) -> tuple[Source, frozenset[str], list[str]]:
    """The source with the config that its file contains, as if it were a config.json; the key of the file under which
    the config is; and a note. Unchanged if the source has a config.json, and if no config in the file is about a model
    of this width."""
    if source.config:
        return source, frozenset(), []
    width = next((array.shape[0] for name, array in source.arrays.entries.items() if name.endswith(PATCHES)), None)
    found = [(path, config) for path, config in _configs(source.facts) if config.get("hidden_size", width) == width]
    known = [one for one in found if one[1]["model_type"] in FAMILIES or one[1]["model_type"] in TOWER_OF]
    for path, config in known or [one for one in found if "hidden_size" in one[1]]:
        where = ": ".join(path)
        note = f"config: that of transformers under '{where}', used like a config.json"
        return replace(source, config=config), frozenset(path[:1]), [note]
    return source, frozenset(), []


@contextmanager
def named_as_in_file(is_in_file: bool) -> Iterator[None]:
    """Lets an InputError about a config.json name the config in the file, if it is there."""
    try:
        yield
    except InputError as error:
        if not is_in_file:
            raise
        raise type(error)(str(error).replace("config.json states", "the config in it states")) from None


def _configs(facts: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every config of transformers among the values that a file states, with the keys that lead to it."""
    for path, values in stated_mappings(facts):
        for name, value in values.items():
            kind, fields = getattr(value, "kind", ""), getattr(value, "attributes", value)
            if isinstance(fields, str) and fields.startswith("{"):
                with suppress(ValueError, RecursionError):
                    fields = json.loads(fields)
            if not isinstance(fields, Mapping):
                continue
            config = {str(key): x for key, x in fields.items() if not str(key).startswith("_")}
            if kind.startswith("transformers.models.") and kind.endswith("Config"):
                config.setdefault("model_type", _CLASSES.get(kind.rpartition(".")[2], kind.split(".")[2]))
            elif "transformers_version" not in config:
                continue
            if isinstance(config.get("model_type"), str):
                yield (*path, str(name)), config
