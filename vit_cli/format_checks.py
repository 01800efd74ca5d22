"""Small random models written in each format, opened by the library that the format belongs to, and read back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import vit_torch
from vit_cli.families import family_of
from vit_core import parity
from vit_core.arrays import LazyArrays
from vit_core.checkpoints import Checkpoint, CheckpointConfig, open_checkpoint, save_checkpoint
from vit_core.checkpoints.comparison import trace_twins
from vit_core.checkpoints.containers import open_container
from vit_core.checkpoints.formats.example_models import VIT5, example
from vit_core.checkpoints.formats.registry import FOREIGN_FORMATS, WRITERS
from vit_core.checkpoints.verification import Difference, difference, different, outputs_of, probes
from vit_core.config import ViTConfig
from vit_torch.references import bound_of, reference

_OWN_EXAMPLES: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers, gated MLP, LayerScale": {
        "registers": 4, "mlp": "swiglu", "mlp_dim": 96, "layer_scale": 1.0, "activation": "gelu"
    },
    "RMSNorm, rotated registers (ViT-5)": VIT5,
}  # fmt: skip


@dataclass(frozen=True)
class FormatCheck:
    """The results for one model in one format."""

    format: str
    model: str
    config: CheckpointConfig
    same_bits: bool
    """Whether all arrays and the config are the same, bit for bit, when the file is read back."""
    same_file: bool
    """Whether writing the checkpoint again after reading it gives the same arrays."""
    difference: Difference | None
    """Difference from the outputs of the format's own library, in float64; None if no library has such a model."""
    twins: parity.Report | None
    """Differences of every stage and gradient between the JAX and the PyTorch model, if requested."""

    @property
    def ok(self) -> bool:
        compared = (self.difference, self.twins)
        return self.same_bits and self.same_file and all(each is None or each.ok for each in compared)


def examples() -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Format that is written -> description of a model -> its fields that differ from those of the plain model."""
    return {"vit": _OWN_EXAMPLES} | {name: FOREIGN_FORMATS[name].examples for name in WRITERS}


def read_only_formats() -> list[str]:
    """The formats that are not written."""
    return [name for name in FOREIGN_FORMATS if name not in WRITERS]


def of_families() -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """The examples that belong to a family."""
    return {
        format: {what: fields for what, fields in models.items() if family_of(example(fields)) is not None}
        for format, models in examples().items()
    }


def checks(
    chosen: Mapping[str, Mapping[str, Mapping[str, Any]]], twins: Sequence[Any] = (), seed: int = 0
) -> Iterator[FormatCheck]:
    """One check for each example, as soon as it is complete. twins: both packages, if they are compared too."""
    for format, models in chosen.items():
        for what, fields in models.items():
            with TemporaryDirectory() as folder:
                yield _check(format, what, example(fields), Path(folder), twins, seed)


def _check(
    format: str, what: str, config: CheckpointConfig, folder: Path, twins: Sequence[Any], seed: int
) -> FormatCheck:
    model = config.model
    checkpoint = Checkpoint(config, LazyArrays.of(parity.randomized(model, seed)).as_type("float32"))
    container = "folder" if format == "vit" else WRITERS[format].containers[0]
    suffix = "" if container == "folder" else container
    first, second = folder / f"first{suffix}", folder / f"second{suffix}"
    save_checkpoint(first, checkpoint, format=format)
    missing = different(model, open_checkpoint(first, format=format).config.model)
    opened = open_checkpoint(first, format=format, fields=missing)
    save_checkpoint(second, opened, format=format)
    same_config = not different(model, opened.config.model)
    return FormatCheck(
        format,
        what,
        config,
        same_config and _same(opened.arrays, checkpoint.arrays),
        _same(open_container(second).arrays, open_container(first).arrays),
        _against_library(first, format, checkpoint),
        parity.compare(*trace_twins(checkpoint, twins, "float64", seed)) if twins else None,
    )


def _same(a: LazyArrays, b: LazyArrays) -> bool:
    return a.shapes == b.shapes and all(a[name].tobytes() == b[name].tobytes() for name in a)


def _against_library(path: Path, format: str, checkpoint: Checkpoint) -> Difference | None:
    """The largest difference among the batches."""
    batches, model = probes(checkpoint.config), checkpoint.config.model
    theirs = outputs_by_library(path, format, model, batches)
    if theirs is None:
        return None
    ours, bound = outputs_of(vit_torch, checkpoint, batches), bound_of(format, model)
    found = [difference(format, their_BC, our_BC, bound) for their_BC, our_BC in zip(theirs, ours, strict=True)]
    return max(found, key=lambda one: one.relative)


def outputs_by_library(
    path: Path, format: str, model: ViTConfig, batches: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """The outputs of the format's own library for batches of images x_BHWC, in float64; None if it has no such
    model."""
    theirs = reference(path, format, model)
    return None if theirs is None else [theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy() for x in batches]
