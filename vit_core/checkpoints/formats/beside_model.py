"""Decides whether a module beside a model in a file may take part in what the file's network computes.

A state dict has names and shapes only: a module of any name may be between a backbone and a head, or change the images
before the model or the logits after it.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.formats.interface import Source

Shape = tuple[int, ...]

COPIES = frozenset(
    ("ema", "swa", "averaged", "momentum", "teacher", "student", "target", "m", "k", "key", "txt", "text")
)
"""Words in the names of other models that do not read the images together with a model: its average, teacher or
student, and text towers. (ALBEF calls its average `visual_encoder_m`, MoCo `encoder_k`.)"""
_ASIDE = frozenset(
    ("ema", "swa", "averaged", "momentum", "teacher", "student", "queue")
    + ("loss", "losses", "criterion", "criterions", "criteria", "ce", "bce")
    + ("metric", "metrics", "acc", "accuracy", "auroc", "confmat")
    + ("optim", "optimizer", "optimizers", "opt", "scheduler", "schedulers")
    + ("val", "best", "threshold", "auc", "confusion", "prior", "priors", "focal", "mixup", "cutmix")
)
"""Words in the names of modules that training uses, but not inference."""
_POS_WEIGHT = frozenset(("pos", "weight"))
"""The words of BCEWithLogitsLoss's pos_weight. (`weight` alone is the name of most arrays.)"""
_OF_OUTPUTS = frozenset(("temperature", "temp", "tau", "t", "scale", "logit", "logits", "gain", "alpha", "ratio"))
"""Words in the names of single numbers that may change outputs. Others are settings of the training."""
_TOWER = ("visual", "trunk")
"""The last parts of the prefix of a timm model in open_clip, which has the text tower and a scale beside `visual`."""


def words_of(name: str) -> frozenset[str]:
    """The words of a name, in small letters: "lossFn.pos_weight1" has loss, fn, pos and weight."""
    return frozenset(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def is_aside(name: str, prefix: Sequence[str]) -> bool:
    """Whether the name of an array or module beside a model has a word of training, after the parts that it shares with
    the model's prefix."""
    parts = re.split(r"[./]", name)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(parts, prefix, strict=False))))
    words = words_of(".".join(parts[shared:]))
    return not words.isdisjoint(_ASIDE) or words >= _POS_WEIGHT


def taking_part(source: Source, without: Iterable[str], sizes: Collection[int]) -> dict[str, list[Shape]]:
    """The modules beside a model that may take part in its computation, and parameters that are in no module, each with
    the shapes of its arrays.

    Not among them are counters, the mean and the std of images, modules whose names contain a word of training, arrays
    none of whose axes is as long as one of `sizes`, and what is beside the image tower of open_clip. without: modules
    that are not considered.
    """
    inside = ".".join((*source.prefix[:-1], "")) if source.prefix[-2:] == _TOWER else ""
    prefixes = tuple(f"{module}." for module in without)
    found = dict[str, list[Shape]]()
    for name, array in source.beside.entries.items():
        is_known = (
            name in source.normalizing
            or name.startswith(prefixes)
            or "float" not in array.dtype
            or is_aside(name, source.prefix)
        )
        one = all(axis == 1 for axis in array.shape)
        fits = not words_of(name).isdisjoint(_OF_OUTPUTS) if one else not set(array.shape).isdisjoint(sizes)
        if fits and not is_known and name.startswith(inside):
            found.setdefault(name.rpartition(".")[0] or name, []).append(array.shape)
    return found


def sizes_of(arrays: LazyArrays) -> frozenset[int]:
    """The lengths of all axes of arrays."""
    return frozenset(axis for shape in arrays.shapes.values() for axis in shape)
