"""Converts what training scripts store in a checkpoint with the weights to the form of a hub folder's config.json.

timm's train.py saves `arch` (the architecture's name) and `args` (its options, an argparse.Namespace). Lightning saves
the constructor's arguments as `hyper_parameters`, which often include the architecture's name. Other scripts save their
whole configuration under another key, or `model_name` beside the weights. Source: huggingface/pytorch-image-models,
train.py and timm/utils/checkpoint_saver.py.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

from vit_core.checkpoints.formats.activation_names import activation_named
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.known_keys import unknown_keys
from vit_core.checkpoints.formats.stated_mappings import stated_mappings
from vit_core.checkpoints.formats.timm import architectures
from vit_core.checkpoints.formats.timm.config_json import POOLING, pooling_by_name
from vit_core.checkpoints.formats.timm.known_keys import MODEL_ARGS, OTHER_SCRIPTS, TRAIN_OPTIONS
from vit_core.errors import InputError, one_line

_ARCHITECTURE = re.compile(
    r"(?:(?:vit|deit|eva|beit|aimv2|flexivit|naflexvit|samvit)(?:v?\d*)_\w+|test_vit\w*)(?:\.\w+)?"
)
"""Names of architectures in timm that have the arrays of a Vision Transformer."""
_OTHERS = re.compile(r"(?:vit|deit)(?:_conv)?_[a-z]+(?:_[0-9]+|_patch[0-9]+(?:_LS)?)?")
"""Similar names of other projects: DINO's and MoCo's vit_small, MAE's vit_base_patch16, torchvision's vit_b_16."""
_ARCHITECTURE_KEYS = ("arch", "architecture", "model_name", "model", "backbone", "backbone_name", "timm_model")
_ADDRESS = re.compile(r"(?:hf[-_]hub:)?timm/")
"""What timm.create_model accepts before the name of an architecture: where its weights are."""
_MODEL_ARGS = {
    "gp": "global_pool",
    "img_size": "img_size",
    "in_chans": "in_chans",
    "drop": "drop_rate",
    "drop_path": "drop_path_rate",
}
"""Option of train.py -> argument of timm.create_model."""
_PRETRAINED = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
"""Options of train.py about the images."""


def hub_config(source: Source) -> dict[str, Any]:
    """What a training script states in the file, in the form of a hub folder's config.json; empty if no architecture is
    named."""
    args, name = _options(source.facts.get("args")), source.facts.get("arch")
    if not _is_architecture(name):
        hyper_parameters = _options(source.facts.get("hyper_parameters"))
        args, name = {**hyper_parameters, **args}, None
    name = name or _architecture_in(args)
    if name is None and (found := _named_elsewhere(source)) is not None:
        path, key, options = found
        name, args = options[key], {**args, **(options if path else {})}
    if name is None:
        return {}
    name = _without_address(name)
    keywords = args.get("model_kwargs")
    given = keywords.items() if isinstance(keywords, Mapping) else ()
    model_args = {key: value for key, value in given if value is not None}  # as in timm.create_model
    model_args |= {theirs: args[key] for key, theirs in _MODEL_ARGS.items() if args.get(key) not in (None, "")}
    if model_args.get("global_pool", "") not in ("", *POOLING):  # training_facts.py refuses it
        del model_args["global_pool"]
    elif "gp" in args and "global_pool" not in model_args:  # train.py passed none
        pooling = pooling_by_name(name.partition(".")[0])
        model_args["global_pool"] = next(theirs for theirs, ours in POOLING.items() if ours == pooling)
    if (activation := activation_named(args.get("act_layer"))) is not None:
        model_args.setdefault("act_layer", activation)
    pretrained = {key: args[key] for key in _PRETRAINED if args.get(key) not in (None, "")}
    if isinstance(size := args.get("input_size"), list | tuple) and len(size) == 3:
        pretrained["input_size"] = list(size)
    return {"architecture": name.partition(".")[0], "model_args": model_args, "pretrained_cfg": pretrained}


@contextmanager
def place_in_errors(source: Source) -> Iterator[None]:
    """Names the place in the file instead of config.json, in an InputError about what `hub_config` found there."""
    try:
        yield
    except InputError as error:
        if not hub_config(source):
            raise
        found = _named_elsewhere(source)
        usual = next((name for name in ("args", "hyper_parameters") if _options(source.facts.get(name))), "arch")
        place = one_line(found[0][0] if found and found[0] else usual)
        raise type(error)(str(error).replace("config.json: ", f"{place}: ", 1)) from None


def notes_about(source: Source) -> list[str]:
    """Notes on an architecture that is unknown or named in an unusual place, and on unknown options if one is known."""
    if not (config := hub_config(source)):
        return _unknown_architectures(source)
    notes = []
    if (found := _named_elsewhere(source)) is not None:
        where = one_line(": ".join([*found[0], found[1]]))
        notes.append(f"architecture {config['architecture']}: named by {where}")
    for name in ("args", "hyper_parameters"):
        if options := _options(source.facts.get(name)):
            notes += unknown_keys(name, options, TRAIN_OPTIONS | OTHER_SCRIPTS)
            if isinstance(keywords := options.get("model_kwargs"), Mapping):
                notes += unknown_keys(f"{name}: model_kwargs", keywords, MODEL_ARGS)
    return notes


def used_facts(source: Source) -> frozenset[str]:
    """The keys of `Source.facts` that `hub_config` reads."""
    if not hub_config(source):
        return frozenset()
    used = {"arch", "args", "hyper_parameters"}
    if (found := _named_elsewhere(source)) is not None:
        path, key, _ = found
        used = used - {path[0]} if path else used | {key}  # most of a whole configuration is not read
    return frozenset(used)


def _options(value: object) -> dict[str, Any]:
    """The options in a mapping or in the stand-in for an argparse.Namespace; empty for anything else."""
    attributes = getattr(value, "attributes", value)
    return {str(key): item for key, item in attributes.items()} if isinstance(attributes, Mapping) else {}


def _architecture_in(options: Mapping[str, Any]) -> str | None:
    return next((options[key] for key in _ARCHITECTURE_KEYS if _is_architecture(options.get(key))), None)


def _named_elsewhere(source: Source) -> tuple[tuple[str, ...], str, dict[str, Any]] | None:
    """The outermost mapping outside the weights that names an architecture: the keys that lead to it, the key of the
    name, and its options. None if train.py or Lightning names it in the usual place, or mappings at one level name
    different ones."""
    usual = (_options(source.facts.get(name)) for name in ("args", "hyper_parameters"))
    if _is_architecture(source.facts.get("arch")) or any(map(_architecture_in, usual)):
        return None
    found = list[tuple[tuple[str, ...], str, dict[str, Any]]]()
    for path, values in stated_mappings(source.facts):
        keys = (*_ARCHITECTURE_KEYS, "name") if path else _ARCHITECTURE_KEYS
        found += [(path, key, _options(values)) for key in keys if _is_architecture(values.get(key))]
    outermost = [one for one in found if len(one[0]) == len(found[0][0])]
    return found[0] if len({_without_address(options[key]) for _, key, options in outermost}) == 1 else None


def _is_architecture(name: object) -> TypeGuard[str]:
    return _is_like_architecture(name) and architectures.is_known(_without_address(name))


def _is_like_architecture(name: object) -> TypeGuard[str]:
    if not isinstance(name, str):
        return False
    bare = _without_address(name)
    return bool(_ARCHITECTURE.fullmatch(bare)) and not _OTHERS.fullmatch(bare)


def _without_address(name: str) -> str:
    """The name of an architecture, with its tag, without the address of its weights in the Hugging Face Hub."""
    match = _ADDRESS.match(name)
    return name[match.end() :] if match else name


def _unknown_architectures(source: Source) -> list[str]:
    """A note on each name that looks like one of timm's, but is not."""
    names = (values.get(key) for _, values in stated_mappings(source.facts) for key in _ARCHITECTURE_KEYS)
    unknown = dict.fromkeys(name for name in names if _is_like_architecture(name) and not _is_architecture(name))
    return [f"architecture {one_line(name)[:60]} is unknown: timm has none of this name" for name in unknown]
