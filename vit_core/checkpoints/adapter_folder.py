"""Folders that contain only low-rank adapters, in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

A folder that a run wrote has two more things, which peft ignores: the `config.json` of the whole network, and in the
header of the weights file a digest of the base, so that another base is refused. The path of the base is recorded, so
that the folder can be opened without naming the base. Folders that peft wrote, for `vit_torch.ViT`, for a timm model
with the same names or for a transformers model, can be opened too.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import Any

import numpy as np

from vit_core.arrays import DTYPES, LazyArrays, as_dtype
from vit_core.checkpoints.adapter_names import CLASSIFIER, Place, places_in, without_text_tower
from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig, weights_digest
from vit_core.checkpoints.containers import open_container, open_safetensors, readable, write_safetensors
from vit_core.checkpoints.containers.folders import WEIGHTS
from vit_core.checkpoints.formats.expressing import at_least_float32
from vit_core.checkpoints.value_checks import with_value_checks
from vit_core.errors import InputError, abbreviate
from vit_core.lora import TARGETS, Lora, is_adapter, merged, pair_of
from vit_core.parameters import parameters
from vit_core.storage import Location, staged_files

ADAPTER_CONFIG, ADAPTER_WEIGHTS, NETWORK_CONFIG = "adapter_config.json", "adapter_model.safetensors", "config.json"
_PICKLED_WEIGHTS = "adapter_model.bin"
"""Of peft before 0.7, or with safe_serialization=False."""
_MERGE = "merge it into its base in peft (merge_and_unload), save the merged model, and give that"
PREFIX = "base_model.model."
"""Prefix that peft adds to every name."""
DIGEST = "base_digest"
"""Key in the header of the weights file: a digest of the base without its heads."""
_OTHER_FORMULAS = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "layer_replication", "kasa_config",
    "arrow_config", "monteclora_config", "velora_config", "alora_invocation_tokens", "target_parameters",
    "trainable_token_indices",
)  # fmt: skip
"""Fields of peft's LoraConfig; if one is set, the adapted layer does not compute W x + scale B A x."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Initializations of peft that do not change the base (as PiSSA, OLoRA, CorDA and LoftQ do)."""
_LAYERS = re.compile(r"\^?(?:\\?[\w.]|\\d\+|\|)*\$?")
"""The accepted patterns of layer names: regular expressions that always match in bounded time."""
_LONGEST_JSON = 2**24
"""Maximum size in bytes of a JSON file that is read."""


@dataclass(frozen=True)
class Adapters:
    """The contents of a folder of adapters. Arrays are read when they are used."""

    origin: str
    fields: Mapping[str, Any]
    """The fields of adapter_config.json (peft's LoraConfig)."""
    arrays: LazyArrays
    """Name -> array in the layout on disk: matrices of adapters, and parameters that were trained without adapters."""
    network: CheckpointConfig | None
    """The config of the whole network, if the folder has one."""
    base_digest: str | None
    """The digest of the base, if the folder has one."""

    @property
    def base(self) -> str | None:
        """The recorded path of the base."""
        name = self.fields.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def modules(self) -> list[str]:
        """Names of the layers that have an adapter."""
        return [name.removesuffix(".lora_A.weight") for name in self.arrays if name.endswith(".lora_A.weight")]

    def scale(self, module: str) -> float:
        """The factor of B A x in a layer, from its rank and alpha."""
        rank = self.arrays.entries[pair_of(module).down].shape[0]
        alphas = self.fields.get("alpha_pattern") or {}
        matching = (alphas[key] for key in alphas if re.fullmatch(rf"(.*\.)?({key})", module))
        alpha: float = next(matching, self.fields.get("lora_alpha", 8))
        return alpha / (sqrt(rank) if self.fields.get("use_rslora") else rank)


def has_adapters(path: Location) -> bool:
    """Whether a folder contains adapters."""
    return path.is_dir() and (path / ADAPTER_CONFIG).is_file()


def is_adapter_folder(path: Location) -> bool:
    """Whether a folder contains adapters and no whole checkpoint."""
    return has_adapters(path) and not any((path / name).exists() for name in WEIGHTS)


def write_adapters(
    path: Location, arrays: Mapping[str, np.ndarray], lora: Lora, network: CheckpointConfig, base: str | None
) -> None:
    """Writes the adapters of a network, and its heads, as a folder in peft's format. An existing folder of adapters is
    replaced; it stays unchanged if writing fails.

    arrays: parameters of the network and matrices of its adapters, not merged. network: the config of the whole
    network. base: the path of the base, which is recorded.
    """
    heads = [name for name in parameters(network.model) if _is_head(name)]
    own = {f"{PREFIX}{name}": arrays[name] for name in arrays if is_adapter(name) or name in heads}
    layers = "|".join(re.escape(TARGETS[target]) for target in lora.targets)
    fields = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.root,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf"blocks\.\d+\.({layers})",
        "modules_to_save": sorted({name.partition(".")[0] for name in heads}) or None,
    }
    header = {"format": "pt", DIGEST: _digest(arrays)}
    with staged_files(path, (ADAPTER_WEIGHTS, ADAPTER_CONFIG, NETWORK_CONFIG)) as stage:
        write_safetensors(stage / ADAPTER_WEIGHTS, LazyArrays.of(own), header)
        (stage / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        (stage / NETWORK_CONFIG).write_text(network.to_json()[0])


def read_adapters(path: Location) -> Adapters:
    """Opens a folder of adapters; no array is read yet. Raises InputError for a damaged folder, and for adapters that
    do not compute W x + scale B A x."""
    fields = _read_fields(path / ADAPTER_CONFIG)
    if (kind := fields.get("peft_type")) != "LORA":
        raise InputError(f"{path / ADAPTER_CONFIG}: peft_type is {str(kind)[:40]!r}; only LORA can be read; {_MERGE}")
    others = [name for name in _OTHER_FORMULAS if fields.get(name)]
    others += ["bias"] if fields.get("bias", "none") != "none" else []
    if others:
        raise InputError(f"{path / ADAPTER_CONFIG}: {', '.join(others)}: not supported; {_MERGE}")
    _check_scales(path / ADAPTER_CONFIG, fields)
    pickled = (path / _PICKLED_WEIGHTS).is_file() and not (path / ADAPTER_WEIGHTS).exists()
    container = open_container(path / _PICKLED_WEIGHTS) if pickled else open_safetensors(path / ADAPTER_WEIGHTS)
    arrays = LazyArrays({name.removeprefix(PREFIX): entry for name, entry in container.arrays.entries.items()})
    _check_axes(path / ADAPTER_WEIGHTS, arrays)
    network = None
    if (path / NETWORK_CONFIG).is_file() and "format_version" in (found := _read_fields(path / NETWORK_CONFIG)):
        network, _ = CheckpointConfig.from_json(json.dumps(found), str(path / NETWORK_CONFIG))
    checked = with_value_checks(path / ADAPTER_WEIGHTS, arrays)
    return Adapters(str(path), fields, checked, network, container.metadata.get(DIGEST))


def _check_scales(where: Location, fields: Mapping[str, Any]) -> None:
    """Raises InputError for invalid alphas, and for initializations with which peft also changes the base."""
    if (start := fields.get("init_lora_weights", True)) not in (True, False, None, *_PLAIN_STARTS):
        raise InputError(
            f"{where}: init_lora_weights {str(start)[:40]!r} also changes the base; convert it to plain LoRA in peft "
            "(path_initial_model_for_weight_conversion), or merge the adapters there"
        )
    patterns = fields.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_LAYERS.fullmatch(key) for key in patterns):
        raise InputError(f"{where}: alpha_pattern: expected names of layers, each with its alpha")
    for alpha in (fields.get("lora_alpha", 8), *patterns.values()):
        if type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
            raise InputError(f"{where}: an alpha is {str(alpha)[:40]!r}; expected a number greater than 0")


def _check_axes(where: Location, arrays: LazyArrays) -> None:
    """Raises InputError if there are no adapters, and for adapters and heads with fewer than two axes or an empty
    one."""
    if not any(is_adapter(name) for name in arrays):
        raise InputError(f"{where}: contains no adapters (lora_A, lora_B)")
    for name, shape in arrays.shapes.items():
        needed = 2 if is_adapter(name) or name in ("head.weight", CLASSIFIER) else 0
        if len(shape) < needed or (needed and 0 in shape):
            raise InputError(
                f"{where}: {name} has the shape {list(shape)}; expected {needed} axes or more, none of length 0"
            )


def apply_adapters(adapters: Adapters, base: Checkpoint) -> Checkpoint:
    """Returns the base with the adapters merged into its weights, and with the parameters that were trained without
    adapters.

    If the folder has the whole network's config, the base is first resampled to its image and patch size, and its
    weights are compared with those that the adapters were trained with. Raises InputError if they do not fit.
    """
    adapters, places, notes = _in_our_names(adapters, base)
    base = _prepared(adapters, base, of_transformers=bool(places))
    rows, entries, rounded = parameters(base.config.model), dict(base.arrays.entries), False
    for module in adapters.modules:
        weight, pair = f"{module}.weight", pair_of(module)
        place = places.get(weight) or (Place(weight, 0, rows[weight].shape[0]) if weight in rows else None)
        down, up = (adapters.arrays.entries.get(name) for name in (pair.down, pair.up))
        if place is None or place.parameter not in rows or down is None or up is None:
            what = f"{pair.up} is missing" if place is not None else f"the base has no {weight}"
            raise InputError(
                f"{adapters.origin}: {pair.down}: {what}; check that this is the base that they were trained with"
            )
        whole, rank = rows[place.parameter].shape, down.shape[0]
        shape = (place.stop - place.first, *whole[1:])
        expected = (rank, *shape[1:]), (shape[0], rank)
        if (down.shape, up.shape[:2]) != expected or prod(up.shape[2:]) != 1:
            found = f"{list(down.shape)} and {list(up.shape)}"
            raise InputError(
                f"{adapters.origin}: {module}: matrices of {found} do not fit the base's weight of {list(shape)}"
            )
        dtype = at_least_float32(entries[place.parameter].dtype)  # a sum in bfloat16 would lose most of the adapter
        rounded |= dtype == "float32"
        add = partial(_with_adapter, down.read, up.read, adapters.scale(module), place, DTYPES[dtype])
        entries[place.parameter] = entries[place.parameter].then(add, whole, dtype)
    for name in (name for name in adapters.arrays if not is_adapter(name)):
        if name not in rows or adapters.arrays.entries[name].shape != rows[name].shape:
            raise InputError(f"{adapters.origin}: {name}: the base has no parameter of this name and shape")
        entries[name] = adapters.arrays.entries[name]
    notes = [*notes, *(["adapters: merged into the weights, which are rounded to float32"] if rounded else [])]
    base = dataclasses.replace(base, notes=(*base.notes, *notes))
    return dataclasses.replace(
        base, config=adapters.network or base.config, arrays=LazyArrays(entries), origin=adapters.origin
    )


def _in_our_names(adapters: Adapters, base: Checkpoint) -> tuple[Adapters, Mapping[str, Place], list[str]]:
    """The adapters with our names for parameters that were trained without adapters; for the names of a transformers
    class, the place of each in the parameter table (otherwise an empty mapping); and notes."""
    arrays, model = without_text_tower(adapters.arrays), base.config.model
    if (head := arrays.entries.get(CLASSIFIER)) is not None:
        model = model.replace(num_classes=head.shape[0], head_bias=CLASSIFIER.replace("weight", "bias") in arrays)
    if not (places := places_in(model, arrays)):
        return adapters, places, []
    notes = ["left out: adapters of text_model"] if len(arrays) < len(adapters.arrays) else []
    whole = parameters(model)
    ours = {
        name: place.parameter
        for name, place in places.items()
        if place.stop - place.first == whole[place.parameter].shape[0]
    }
    renamed = {name if is_adapter(name) else ours.get(name, name): entry for name, entry in arrays.entries.items()}
    return dataclasses.replace(adapters, arrays=LazyArrays(renamed)), places, notes


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The digest of a base without its heads, because the network has its own heads."""
    return weights_digest(
        LazyArrays.of(arrays).select(name for name in arrays if not is_adapter(name) and not _is_head(name))
    )


def _prepared(adapters: Adapters, base: Checkpoint, *, of_transformers: bool) -> Checkpoint:
    """The base with the image size, patch size and number of classes of the network that the adapters were trained in.
    The pooler of a transformers model is removed, because its classes with a classifier have none."""
    head = adapters.arrays.entries.get("head.weight")
    if head is not None and of_transformers and base.config.model.representation:
        base = base.with_head(0)
    if head is not None and head.shape[0] != base.config.model.num_classes:
        base = base.with_head(head.shape[0])
    if adapters.network is None:
        return base
    model = adapters.network.model
    if base.config.model.representation and not model.representation:
        base = base.with_head(0).with_head(model.num_classes)
    base = base.adapt(
        image_size=model.image_size, patch_size=model.patch_size, position_embedding_method=model.position_resampling
    )
    base = base.adapt(dtype=as_dtype(next(iter(adapters.arrays.entries.values())).dtype))
    if base.arrays.shapes != {name: row.shape for name, row in parameters(model).items()}:
        names = [name for name, row in parameters(model).items() if base.arrays.shapes.get(name) != row.shape]
        raise InputError(f"{adapters.origin}: not adapters of {base.origin}, whose shapes differ: {abbreviate(names)}")
    if adapters.base_digest is not None and _digest(base.arrays) != adapters.base_digest:
        raise InputError(
            f"{adapters.origin}: were trained with other weights than those of {base.origin}; give their base"
        )
    return base


def _with_adapter(
    read_down: Any, read_up: Any, scale: float, place: Place, dtype: np.dtype, weight: np.ndarray
) -> np.ndarray:
    """The weight, in a type that represents all its values, with an adapter merged into the rows of `place`. A
    convolution kernel is treated as a matrix [outputs, inputs]."""
    whole, outputs = weight.astype(dtype), place.stop - place.first
    part, down, up = whole[place.first : place.stop], read_down(), read_up()
    changed = merged(part.reshape(outputs, -1), down.reshape(len(down), -1), up.reshape(outputs, -1), scale)
    whole[place.first : place.stop] = changed.reshape(part.shape)
    return whole


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "head_dist."))


def _read_fields(path: Location) -> dict[str, Any]:
    with readable(path, "JSON"):
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError(f"more than {_LONGEST_JSON:,} bytes")
        fields = json.loads(path.read_text())
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected an object of fields, found {type(fields).__name__}")
    return fields
