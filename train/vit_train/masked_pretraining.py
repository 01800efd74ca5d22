"""Masked-autoencoder pretraining from a checkpoint: from its encoder, and from its decoder if it has one."""

import dataclasses

from vit_core.arrays import LazyArrays
from vit_core.checkpoints import Checkpoint
from vit_core.checkpoints.decoder import decoder_rows
from vit_core.storage import Location
from vit_train.config import TrainConfig
from vit_train.config.changeable import FREE_MODEL_FIELDS
from vit_train.data.checking import check_outside_data
from vit_train.data.sources import Split
from vit_train.stages import Launch, StageResult, adapted, train


def going_on_from(config: TrainConfig, init: Checkpoint, mask_ratio: float) -> TrainConfig:
    """The config of a recipe's pretraining from a checkpoint: with its network, its preprocessing and, if it has a
    decoder, the known settings of that.

    init: a checkpoint without a head. mask_ratio: used if the checkpoint does not state it.
    """
    free = {name: getattr(config.model, name) for name in FREE_MODEL_FIELDS - {"position_resampling"}}
    preprocessing = init.config.preprocessing or config.preprocessing
    preprocessing = preprocessing.replace(image_size=init.config.model.image_size, channels=init.config.model.channels)
    known = {} if init.decoder is None else {name: getattr(init.decoder.mae, name) for name in init.decoder.stated}
    known["mask_ratio"] = known.get("mask_ratio") or mask_ratio
    model = init.config.model.replace(**free)
    return config.replace(model=model, preprocessing=preprocessing, mae=config.mae.replace(**known))


def pretrain_from(
    config: TrainConfig, init: Checkpoint, out: Location, launch: Launch, splits: tuple[Split, Split]
) -> StageResult:
    """Trains a masked autoencoder from a checkpoint without a head, or resumes the run in the folder `out`.

    If the checkpoint has no decoder, or one of another size than the config's, a new decoder is made. Raises InputError
    for another network than the config's.
    """
    check_outside_data(out, config.data)
    weights, config, changes = adapted(init, config, None)
    rows, decoder = decoder_rows(config.model, config.mae), init.decoder
    if decoder is None:
        changes.append(f"a new decoder: {init.origin} has none")
    elif decoder.arrays.shapes != {name: row.shape for name, row in rows.items()} or _heads(config, init):
        changes.append(f"a new decoder, of another size than that of {init.origin}")
    else:
        weights = dataclasses.replace(weights, arrays=LazyArrays({**weights.arrays.entries, **decoder.arrays.entries}))
    return train("pretrain", config, weights, *splits, out, launch, init.origin, changes)


def _heads(config: TrainConfig, init: Checkpoint) -> bool:
    """Whether the decoder's number of heads, which no shape shows, differs between the config and the checkpoint."""
    if init.decoder is None or "decoder_heads" not in init.decoder.stated:
        return False
    return init.decoder.mae.decoder_heads != config.mae.decoder_heads
