"""The format of keras_hub: presets, `.keras` archives and `.weights.h5` files of its Vision Transformers.

A preset is a folder with the config and the weights of a backbone, and perhaps those of a classifier and of an image
converter. Source: keras-team/keras-hub, keras_hub/src/models.
"""

import re

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, CheckpointConfig
from vit_core.checkpoints.formats.example_models import CLIP, DINOV2, DINOV3, GATED_DINOV2, GELU, SIGLIP
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Fields, Format, Reading, Source, Writer
from vit_core.checkpoints.formats.keras_hub.families import FAMILIES, Family, rules
from vit_core.checkpoints.formats.keras_hub.head import find_head
from vit_core.checkpoints.formats.keras_hub.image_converter import read_preprocessing
from vit_core.checkpoints.formats.keras_hub.reading import Search
from vit_core.checkpoints.formats.keras_hub.stated import CONFIG, TASK, TASK_KEYS, known_keys, stated
from vit_core.checkpoints.formats.keras_hub.writing import allowed_values, write_checkpoint
from vit_core.checkpoints.formats.known_keys import unknown_keys
from vit_core.config import ViTConfig
from vit_core.errors import InputError, abbreviate

_LEFT_OUT = r"(^|/)(optimizer|preprocessor|loss_tracker|compile_metrics)/|/seed_generator/vars/0$|(^|/)_metrics/"
"""Arrays of training that Keras saves with a model."""


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the name of the patches of one of its families."""
    return _family(source) is not None


def _family(source: Source) -> Family | None:
    return next((family for family in FAMILIES if family.anchor in source.arrays), None)


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the arrays and the config files. Raises InputError for a model that
    ViTConfig cannot express, and for files that do not fit each other."""
    family, where = _family(source), source.path
    if family is None:
        family = FAMILIES[0]  # its missing arrays are named
    _check_types(source)
    said = stated(source, family)
    search = Search(source, family, said, fields)
    found, tokens, biases = search.backbone()
    head = find_head(source, family, said, fields, class_token=found.get("class_token", True))
    assumptions = list(search.assumptions)
    if head.layers and family.classifier and not said.task and "pooling" not in fields:
        why = "the default of keras_hub's classifiers, because there is no task.json"
        assumptions.append(Assumption("pooling", head.fields["pooling"], why))
    model = ViTConfig.parse({**found, **head.fields, **fields}, str(where))
    preprocessing, notes = read_preprocessing(said.converter, model, where)
    config = CheckpointConfig(model=model, preprocessing=preprocessing, probabilities=head.probabilities)
    unknown = unknown_keys(CONFIG, said.backbone, known_keys(family)) + unknown_keys(TASK, said.task, TASK_KEYS)
    left_out = [rf"^{re.escape(name)}$" for name in tokens.left_out]
    unused_task = [] if head.layers else [r"^task/"]
    return Reading(
        config,
        rules(family, model, tokens.names, head.layers),
        LazyArrays({**source.arrays.entries, **head.arrays, **biases.zeros, **tokens.arrays}),
        "|".join([_LEFT_OUT, *left_out, *unused_task]),
        (*search.notes, *head.notes, *notes, *unknown),
        tuple(assumptions),
        frozenset(found) | {"pooling"} | ({"position_resampling"} if "pos_embed" not in tokens.names else set()),
        frozenset(head.arrays),
    )


def _check_types(source: Source) -> None:
    """Raises InputError for quantized weights, whose scales are arrays beside them."""
    quantized = [name for name, entry in source.arrays.entries.items() if entry.dtype in ("int8", "uint8")]
    if quantized:
        raise InputError(
            f"{source.path}: quantized weights cannot be read ({abbreviate(quantized, most=3)}); save the model before "
            "quantization"
        )


FORMAT = Format(
    "keras_hub",
    recognizes=recognizes_source,
    read=read_source,
    anchors=tuple(re.escape(family.anchor) for family in FAMILIES),
    determined=FROM_ARRAYS | {"class_token_position"},
    writer=Writer(("folder",), allowed_values, write_checkpoint),
    examples={
        "ViT": GELU,
        "ViT, mean, representation": {"pooling": "gap", "pool_prefix": True, "representation": 48, **GELU},
        "ViT, mean, no class token": {"pooling": "gap", "class_token": False, "patch_bias": False, **GELU},
        "DeiT": {"distillation": "token", **GELU},
        "DINOv2": {**DINOV2, "num_classes": 0},
        "DINOv2 with registers, gated MLP": {**GATED_DINOV2, "num_classes": 0},
        "DINOv3": DINOV3,
        "DINOv3, gated MLP": {**DINOV3, "mlp": "swiglu", "registers": 4},
        "image tower of SigLIP": {**SIGLIP, "num_classes": 0},
        "image tower of CLIP": {**CLIP, "num_classes": 0},
    },
)
