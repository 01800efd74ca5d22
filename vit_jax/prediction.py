"""`vit_jax.pipeline`: makes a classifier of images from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from vit_jax.checkpoint import load
from vit_jax.on_devices import OnDevices

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
    devices: Sequence[jax.Device] | None = None,
    threads: int | None = None,
    format: str | None = None,
    fields: Mapping[str, Any] | None = None,
    part: str | None = None,
) -> Pipeline:
    """A classifier of images with a checkpoint's weights: `pipeline("runs/folder")("photo.jpg").label`.

    path: a checkpoint file or folder of any format, a training run or a saved step, local or in a store.
    top_k: number of classes in each prediction; None: all. batch_size: the largest number of images in a batch; a
    shorter list is computed in a smaller batch. labels: names of the outputs, for a checkpoint without them, or to
    replace its own. preprocessing: fields of `vit_core.preprocess.Preprocessing` that replace the checkpoint's.
    image_size: resample the positions for another (height, width). dtype: type of the weights and the computation.
    devices: by default all of this process.
    threads: number of threads that decode images; None: one for each processor, at most 8.
    format, fields, part: as for `vit_core.open_checkpoint`.
    Raises InputError for a checkpoint that is missing, damaged or does not fit these arguments, and for one without a
    head or without labels.
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
