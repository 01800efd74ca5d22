"""Evaluates a masked autoencoder's predictions of hidden patches on images that it was not trained on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_core.checkpoints.run_folder import saved_steps
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.masked_autoencoder import TARGET_EPSILON, draw_order
from vit_core.masks import PATCH_ORDER
from vit_core.naflex import patchify
from vit_core.preprocess import normalize, offset_and_scale
from vit_core.storage import Location
from vit_train.config import TrainConfig
from vit_train.data.batches import Batch, EvaluationBatches
from vit_train.data.draws import generators
from vit_train.data.sources import Split
from vit_train.data.streams import stream
from vit_train.display import SILENT, Display
from vit_train.engine import Framework, Trainer
from vit_train.evaluation import signal_in_any_process
from vit_train.masked_steps import read_masked_step
from vit_train.signals import StoppedBySignal, StopSignal, never

ORDER_STREAM = 7
"""Number of this kind of random draws; the other kinds are in vit_train.data.batches."""


def evaluation_order(model: ViTConfig, seed: int, ids: Sequence[int]) -> np.ndarray:
    """The order of the patches of examples of an evaluation split, int32 [examples, patches]; the same in every
    evaluation, independent of the batches."""
    return np.concatenate([draw_order(model, 1, rng) for rng in generators(seed, ORDER_STREAM, ids)])


def reconstruction_loss(engine: Trainer, split: Split, *, stop: StopSignal = never, display: Display = SILENT) -> float:
    """The mean loss of training over the images of a split, each once; processes share the work.

    Raises InputError for an image that cannot be read, unless the run's config allows it, and if none can be read;
    StoppedBySignal, in every process, if `stop` returns a signal in one.
    """
    config, options = engine.config, engine.config.evaluation
    size = -(-options.batch_size // engine.batch_shards) * engine.batch_shards
    rows = engine.rows(size)
    batches = EvaluationBatches(split, options.preprocessing, size, options.allow_undecodable, rows)
    sums = np.zeros(2)
    shown = display if engine.process == 0 else SILENT
    with shown.task("evaluate", len(batches)) as task:
        for i, made in enumerate(stream(batches, slice(None), options.threads, options.workers)):
            if (number := signal_in_any_process(engine, stop())) is not None:
                raise StoppedBySignal(number)
            order = evaluation_order(config.model, config.seed, made.ids_B.tolist())
            losses_B = engine.losses(unlabelled_batch(made.images_BHWC, order))
            sums += losses_B[made.counts_B].sum(), made.counts_B.sum()
            task.update(i + 1, split.title)
    total, count = engine.total(sums if engine.primary else 0 * sums)
    if not count:
        raise InputError(f"{split.title}: none of its images can be read")
    return float(total / count)


def unlabelled_batch(images_BHWC: np.ndarray, order_BN: np.ndarray) -> Batch:
    """Images with the order of their patches, as an engine takes them."""
    B = len(images_BHWC)
    ones_B, boxes_B4 = np.ones(B, np.float32), np.zeros((B, 4), np.int32)
    targets_BC, ids_B = np.zeros((B, 0), np.float32), np.arange(B)
    return Batch(images_BHWC, targets_BC, ones_B, ones_B, boxes_B4, {PATCH_ORDER: order_BN}, ids_B)


class Reconstruction(NamedTuple):
    """An image, its visible part, and its completion by a masked autoencoder: pixels [H, W, C] from 0 to 1."""

    original_HWC: np.ndarray
    visible_HWC: np.ndarray
    """Gray where patches are hidden."""
    completed_HWC: np.ndarray
    """The image with the predicted hidden patches."""
    means_HWC: np.ndarray | None = None
    """The image with the true mean of each hidden patch in its place: what is shown without any prediction, because the
    run predicts normalized patches. None for a run that predicts pixels."""


def reconstructions(
    run: Location, config: TrainConfig, pixels_BHWC: np.ndarray, framework: Framework
) -> list[Reconstruction]:
    """Completions of images, uint8 or uint16, by the decoder in the newest saved step of a run.

    Raises InputError if the run has no saved step.
    If the run predicts normalized patches, the true mean and deviation of each hidden patch are used, because the
    decoder does not predict them; the images with the means alone are then returned too.
    """
    mae, model = config.masked, config.model
    if mae is None or not (steps := saved_steps(run)):
        raise InputError(f"{run}: has no saved step of a masked autoencoder")
    checkpoint = read_masked_step(steps[0], config)
    assert checkpoint.decoder is not None
    arrays = {**checkpoint.arrays.entries, **checkpoint.decoder.arrays.entries}
    x_BHWC = normalize(pixels_BHWC, config.preprocessing)
    order_BN = evaluation_order(model, config.seed, range(len(x_BHWC)))
    predict = _in_torch if framework == "torch" else _in_jax
    values = {name: array.read().astype(np.float32) for name, array in arrays.items()}
    predicted_BNV = predict(config, values, x_BHWC, order_BN)
    found = []
    for x_HWC, pixels_HWC, order_N, predicted_NV in zip(x_BHWC, pixels_BHWC, order_BN, predicted_BNV, strict=True):
        hidden_M, true_NV = order_N[mae.visible(model) :], patchify(x_HWC, model.patch_size)
        levels, means_HWC = float(np.iinfo(pixels_HWC.dtype).max), None
        if mae.normalize_target:
            mean_N1 = true_NV.mean(axis=1, keepdims=True)
            deviation_N1 = np.sqrt(true_NV.var(axis=1, ddof=1, keepdims=True) + TARGET_EPSILON)
            predicted_NV = predicted_NV * deviation_N1 + mean_N1
            means_HWC = _completed(config, true_NV, np.broadcast_to(mean_N1, true_NV.shape), hidden_M, levels)
        visible_NV = patchify(pixels_HWC / levels, model.patch_size)
        visible_NV[hidden_M] = 0.5
        completed_HWC = _completed(config, true_NV, predicted_NV, hidden_M, levels)
        found.append(Reconstruction(pixels_HWC / levels, _unpatchified(visible_NV, model), completed_HWC, means_HWC))
    return found


def _completed(
    config: TrainConfig, true_NV: np.ndarray, other_NV: np.ndarray, hidden_M: np.ndarray, levels: float
) -> np.ndarray:
    """Normalised patches, with other ones in the place of the hidden ones, as an image [H, W, C] from 0 to 1."""
    offset, scale = offset_and_scale(config.preprocessing)
    x_NV = true_NV.copy()
    x_NV[hidden_M] = other_NV[hidden_M]
    return np.clip((_unpatchified(x_NV, config.model) / scale + offset) / levels, 0, 1)


def _unpatchified(patches_NV: np.ndarray, model: ViTConfig) -> np.ndarray:
    """Patches put together to an image [H, W, C]."""
    (h, w), (P, Q) = model.grid, model.patch_size
    x_hwPQC = patches_NV.reshape(h, w, P, Q, model.channels)
    return x_hwPQC.transpose(0, 2, 1, 3, 4).reshape(*model.image_size, model.channels)


def _in_torch(
    config: TrainConfig, arrays: Mapping[str, np.ndarray], x_BHWC: np.ndarray, order_BN: np.ndarray
) -> np.ndarray:
    from vit_torch import masked_autoencoder

    return masked_autoencoder.reconstructed(
        masked_autoencoder.from_arrays(config.model, config.mae, arrays), x_BHWC, order_BN
    )


def _in_jax(
    config: TrainConfig, arrays: Mapping[str, np.ndarray], x_BHWC: np.ndarray, order_BN: np.ndarray
) -> np.ndarray:
    from vit_jax import masked_autoencoder

    return masked_autoencoder.reconstructed(
        masked_autoencoder.from_arrays(config.model, config.mae, arrays), x_BHWC, order_BN
    )
