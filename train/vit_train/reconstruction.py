"""How well a masked autoencoder predicts the hidden patches of images that it was not trained on."""

from collections.abc import Sequence

import numpy as np

from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.masked_autoencoder import draw_order
from vit_core.masks import PATCH_ORDER
from vit_train.data.batches import Batch, EvaluationBatches, stream
from vit_train.data.draws import generators
from vit_train.data.sources import Split
from vit_train.display import SILENT, Display
from vit_train.engine import Trainer
from vit_train.evaluation import signal_in_any_process
from vit_train.signals import StoppedBySignal, StopSignal, never

ORDER_STREAM = 5
"""Number of this kind of random draws, beside those of vit_train.data.batches."""


def evaluation_order(model: ViTConfig, seed: int, ids: Sequence[int]) -> np.ndarray:
    """The order of the patches of examples of an evaluation split, int32 [examples, patches]: the same at every
    evaluation, whatever the batches."""
    return np.concatenate([draw_order(model, 1, rng) for rng in generators(seed, ORDER_STREAM, ids)])


def reconstruction_loss(engine: Trainer, split: Split, *, stop: StopSignal = never, display: Display = SILENT) -> float:
    """The mean loss of training over the images of a split, each once; processes share the work.

    Raises InputError for an image that cannot be read, unless the run's config allows it, and where none can;
    StoppedBySignal, in every process, when `stop` gives a signal in one.
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
