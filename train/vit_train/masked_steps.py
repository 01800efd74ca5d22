"""The saved steps of masked autoencoders with their decoders, which our other checkpoints do not contain."""

import dataclasses

from vit_core.arrays import LazyArrays
from vit_core.checkpoints import Checkpoint
from vit_core.checkpoints.decoder import Decoder
from vit_core.checkpoints.run_folder import STEPS, saved_steps
from vit_core.parameters import DECODER
from vit_core.storage import Location
from vit_train.config import TrainConfig
from vit_train.run import RUN, read_request
from vit_train.step_folders import read_step


def masked_step(path: Location) -> Checkpoint | None:
    """A saved step of a masked autoencoder with its decoder, at the path of the step; for the path of a run, its newest
    step. None for any other path, and for a run without a saved step."""
    if path.parent.name == STEPS and (path.parent.parent / RUN).is_file():
        run, steps = path.parent.parent, [path]
    elif (path / RUN).is_file():
        run, steps = path, saved_steps(path)
    else:
        return None
    config = read_request(run).config
    return read_masked_step(steps[0], config) if config.masked is not None and steps else None


def read_masked_step(folder: Location, config: TrainConfig) -> Checkpoint:
    """The encoder and the decoder of a step. config: the config of its run, which trains a masked autoencoder. Raises
    DamagedError if the step is damaged."""
    checkpoint, _, statistics = read_step(folder, config)
    found = {name.removeprefix("params/"): statistics[name] for name in statistics if name.startswith("params/")}
    arrays = LazyArrays.of({name: array for name, array in found.items() if name.startswith(DECODER)})
    return dataclasses.replace(checkpoint, decoder=Decoder(config.mae, arrays))
