"""`vit_torch.pipeline`: from a checkpoint to what names the classes of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vit_torch.checkpoint import load
from vit_torch.on_devices import OnDevices

if TYPE_CHECKING:
    from vit_core.checkpoints import Checkpoint
    from vit_core.pipeline import Pipeline
    from vit_core.preprocess import Preprocessing


def pipeline(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    top_k: int | None = 5,
    batch_size: int = 32,
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: Any = "float32",
    devices: Sequence[str | torch.device] | None = None,
    threads: int | None = None,
    format: str | None = None,
    fields: Mapping[str, Any] | None = None,
    part: str | None = None,
) -> Pipeline:
    """Names the classes of images by a checkpoint: `pipeline("runs/folder")("photo.jpg").label`.

    path: a checkpoint file or folder of any format, a training run or a saved step, local or in a store.
    top_k: classes of each prediction; None: all. batch_size: images at once; fewer are computed as fewer.
    labels: names of the outputs, where the checkpoint has none, or to use instead of its own.
    preprocessing: fields of `vit_core.preprocess.Preprocessing` to use instead of the checkpoint's.
    image_size: resample the positions for another (height, width). dtype: of the computation.
    devices: by default all CUDA devices, without any the processor.
    threads: that decode images; None: one for each processor, at most 8.
    format, fields, part: as for `vit_core.open_checkpoint`.
    Raises InputError for a missing, damaged or unfitting checkpoint, and for one without a head or labels.
    """
    from vit_core.checkpoints.opening import open_with_warning
    from vit_core.pipeline import Pipeline

    checkpoint = open_with_warning(path, format, fields, part).adapt(image_size=image_size)

    def on_devices(made: Preprocessing) -> OnDevices:
        return OnDevices(load(checkpoint, dtype=dtype), made, devices=devices)

    return Pipeline(
        checkpoint,
        on_devices,
        top_k=top_k,
        batch_size=batch_size,
        labels=labels,
        preprocessing=preprocessing,
        threads=threads,
    )
