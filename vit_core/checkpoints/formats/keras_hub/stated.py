"""What a preset or an archive of keras_hub states in its config files, and whether it fits the arrays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_core.checkpoints.containers.keras import CONFIGS
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.keras_hub.families import Family
from vit_core.errors import InputError, one_line

CONFIG, TASK, PREPROCESSOR, CONVERTER = CONFIGS
_UNIMPORTANT = ("name", "trainable", "dtype", "dropout_rate", "attention_dropout", "drop_path_rate")
"""Keys that do not change the outputs of a trained model."""
_KNOWN = frozenset(
    (*_UNIMPORTANT, "image_shape", "patch_size", "num_layers", "num_heads", "hidden_dim", "apply_layernorm")
    + ("use_class_token", "use_patch_bias", "use_mha_bias", "use_mlp_bias")
    + ("layer_scale_init_value", "num_register_tokens", "use_mask_token", "use_swiglu_ffn", "position_embedding_shape")
    + ("antialias_in_interpolation", "hidden_activation", "use_gated_mlp", "use_query_bias", "use_key_bias")
    + ("use_value_bias", "use_proj_bias", "rope_theta", "intermediate_activation", "intermediate_output_index")
)
"""Keys of all families that are read, or that do not change the last outputs: apply_layernorm and
intermediate_output_index are about those of blocks."""


TASK_KEYS = frozenset(
    ("name", "trainable", "dtype", "backbone", "preprocessor", "num_classes", "pooling", "intermediate_dim")
    + ("activation", "dropout")
)
"""The known keys of a classifier's config."""


def known_keys(family: Family) -> frozenset[str]:
    """The known keys of a backbone's config."""
    return _KNOWN | {family.mlp_key, family.epsilon_key or family.mlp_key}


@dataclass(frozen=True)
class Stated:
    """The arguments of the classes of a saved model; empty for what is not stated."""

    where: object
    backbone: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    converter: Mapping[str, Any] = field(default_factory=dict)
    """Those of the image converter."""

    def check(self, expected: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises InputError for a key of the backbone whose value does not fit the arrays. expected: key -> its
        possible values."""
        for key, values in expected.items():
            if key in self.backbone and self.backbone[key] not in values:
                raise InputError(
                    f"{self.where}: {CONFIG}: {key} is {shown(self.backbone[key])}, but the arrays are those of "
                    f"{shown(values[0])}; use the files of one model"
                )


def stated(source: Source, family: Family) -> Stated:
    """Reads the configs of a source. Raises InputError for a class whose code is not known, and if two files differ."""
    objects = {name: _object(source, name) for name in CONFIGS}
    config, task = objects[CONFIG], objects[TASK]
    if config and config.get("class_name") == family.classifier:  # an archive has the config of the whole model
        task, config = config, _inner(source, config, CONFIG, "backbone")
    if config and config.get("class_name") == family.whole:
        config = _inner(source, config, CONFIG, "vision_encoder")
    _check_class(source, CONFIG, config, family.name)
    if task:
        _check_class(source, TASK, task, family.classifier or f"none, because there is no classifier of {family.name}")
        _check_same(source, config, _inner(source, task, TASK, "backbone"))
    preprocessor = _inner(source, task, TASK, "preprocessor") or objects[PREPROCESSOR]
    converter = _inner(source, preprocessor, PREPROCESSOR, "image_converter") or objects[CONVERTER]
    return Stated(source.path, *(_arguments(source, one) for one in (config, task, converter)))


def shown(value: object) -> str:
    """A value of a config file, for messages."""
    return one_line(json.dumps(value, default=str))[:60]


def _object(source: Source, name: str) -> Mapping[str, Any]:
    """The object in a config file; empty if there is no such file."""
    text = source.keras.get(name)
    if text is None:
        return {}
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("config", {}), dict):
        raise InputError(f"{source.path}: {name} is not the config of a class of Keras (class_name, config)")
    return value


def _arguments(source: Source, config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("config") or {}


def _inner(source: Source, config: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    """The config of a class that is an argument of another class; empty if there is none."""
    inner = (config.get("config") or {}).get(key) or {}
    if not isinstance(inner, dict) or not isinstance(inner.get("config", {}), dict):
        raise InputError(f"{source.path}: {name}: {key} is {shown(inner)}, expected the config of a class of Keras")
    return inner


def _check_class(source: Source, name: str, config: Mapping[str, Any], expected: str) -> None:
    found = config.get("class_name")
    if config and (
        found != expected or not str(config.get("registered_name")).startswith(("keras_hub>", "keras_nlp>"))
    ):
        raise InputError(
            f"{source.path}: {name}: class {shown(config.get('registered_name') or found)}, expected keras_hub's "
            f"{expected}; save the backbone alone with save_to_preset"
        )


def _check_same(source: Source, config: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises InputError if two files state different backbones."""
    one, two = ({k: v for k, v in _arguments(source, c).items() if k not in _UNIMPORTANT} for c in (config, other))
    if one and two and (different := [key for key in one if key in two and one[key] != two[key]]):
        raise InputError(
            f"{source.path}: {CONFIG} and {TASK} state different values of {', '.join(different)}; use the files of "
            "one model"
        )
