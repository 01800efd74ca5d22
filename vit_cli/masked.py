"""Opens checkpoints of masked autoencoders with their decoders, and checks written ones."""

import importlib
from importlib.util import find_spec

import numpy as np

from vit_cli import console
from vit_cli.option_types import AS_RECORDED, Reading
from vit_cli.twins import installed_twin, twin
from vit_core import parity
from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.checkpoints.formats.expressing import Expressed
from vit_core.checkpoints.verification import difference
from vit_core.masked_autoencoder import MaskedAutoencoder, draw_order
from vit_core.storage import Location, is_local


def open_with_decoder(source: Location, reading: Reading) -> Checkpoint:
    """Opens a checkpoint with its decoder, if it has one, and with MAE's fixed positions if its table has their values;
    prints how it was read. Only the saved steps of a run have the decoder, so the newest step is opened."""
    from vit_train.masked_steps import masked_step

    if reading == AS_RECORDED and (step := masked_step(source)) is not None:
        console.say(f"{step.origin}: a saved step, with its decoder")
        return step
    return reading.open_and_report(source).with_fixed_positions()


def compare_decoders(target: Location, expressed: Expressed) -> bool:
    """Compares the pixels predicted by the files in transformers' format with those of the checkpoint; prints the
    difference, and returns whether it is within the bounds."""
    checkpoint, written = expressed.checkpoint, open_checkpoint(target).with_fixed_positions()
    if (framework := installed_twin()) is None:
        console.say("not run: neither PyTorch nor JAX is installed")
        return True
    model = checkpoint.config.model
    x_BHWC, order_BN = parity.probe(model, 0)[0], draw_order(model, 2, np.random.default_rng(0))
    twin(framework)  # float64 from here on
    with console.working("running both sides"):
        before_BNP = _predicted(framework, checkpoint, x_BHWC, order_BN)
        differences = [difference("read back", _predicted(framework, written, x_BHWC, order_BN), before_BNP)]
        if framework == "torch" and is_local(target) and find_spec("transformers") is not None:
            from vit_torch.references.transformers import masked_predictions

            theirs_BNP = masked_predictions(target, x_BHWC, order_BN, _mae(checkpoint).mask_ratio)
            # transformers' position tables have the stored type, ours the type of the computation.
            bound = parity.FLOAT64_BOUND if checkpoint.dtype == "float64" else parity.FLOAT32_BOUND
            differences.append(difference("transformers itself", theirs_BNP, before_BNP, bound))
    for each in differences:
        console.say(str(each))
    return all(each.ok for each in differences)


def _predicted(framework: str, checkpoint: Checkpoint, x_BHWC: np.ndarray, order_BN: np.ndarray) -> np.ndarray:
    """The predicted pixels of all patches [B, N, P], in float64."""
    assert checkpoint.decoder is not None, "it was written with one"
    package = importlib.import_module(f"vit_{framework}.masked_autoencoder")
    arrays = {**checkpoint.arrays.entries, **checkpoint.decoder.arrays.entries}
    values = {name: array.read().astype(np.float64) for name, array in arrays.items()}
    model = package.from_arrays(checkpoint.config.model, _mae(checkpoint), values)
    return np.asarray(package.reconstructed(model, x_BHWC, order_BN))


def _mae(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """The masked autoencoder's settings; half of the patches are hidden if the checkpoint's model hides none."""
    assert checkpoint.decoder is not None
    mae = checkpoint.decoder.mae
    return mae if mae.mask_ratio else mae.replace(mask_ratio=0.5)
