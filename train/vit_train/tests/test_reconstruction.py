"""How masked autoencoders are evaluated and drawn: the loss of held-out images, and images that are completed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_core.errors import InputError
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.preprocess import Preprocessing, normalize
from vit_train.config import Augmentation, TrainConfig
from vit_train.data.batches import evaluation_pixels
from vit_train.engines.torch.engine import TorchEngine
from vit_train.loop import batches_for
from vit_train.reconstruction import evaluation_order, reconstruction_loss, reconstructions, unlabelled_batch
from vit_train.reconstruction_figures import titles_of
from vit_train.run import Run
from vit_train.tests.small_run import CONFIG, MODEL, quadrants, run_in, save_step, train_steps

MASKED = CONFIG.replace(
    model=MODEL.replace(num_classes=0, patch_size=2),
    mae=MaskedAutoencoder(mask_ratio=0.75, decoder_width=16, decoder_depth=1, decoder_heads=2),
    augmentation=Augmentation(),
    preprocessing=Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.1,)),
)


def losses_of(engine: Any, config: TrainConfig, pixels_BHWC: np.ndarray) -> np.ndarray:
    order_BN = evaluation_order(config.model, config.seed, range(len(pixels_BHWC)))
    found: np.ndarray = engine.losses(unlabelled_batch(pixels_BHWC, order_BN))
    return found


def test_the_loss_is_the_mean_over_the_readable_images_whatever_the_batches() -> None:
    engine, split = TorchEngine(MASKED), quadrants(30)
    pixels_BHWC = np.stack([evaluation_pixels(example, MASKED.preprocessing) for example in split.examples])
    expected = losses_of(engine, MASKED, pixels_BHWC)
    # A float32 sum over 192 hidden pixels, whose order depends on the batch: 192 roundings of 2**-24 at most.
    close = {"rtol": 192 * 2**-24}
    np.testing.assert_allclose(reconstruction_loss(engine, split), expected.mean(), **close)
    split.examples[7] = {"image": b"", "label": 0}  # type: ignore[index]
    with pytest.raises(InputError, match=r"quadrants\[7\]: .*cannot"):
        reconstruction_loss(engine, split)
    lenient = TorchEngine(MASKED.replace(allow_undecodable=True, evaluation_batch=7))
    np.testing.assert_allclose(reconstruction_loss(lenient, split), np.delete(expected, 7).mean(), **close)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("framework", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_completed_images_have_the_loss_of_the_engine(framework: Any, normalized: bool, tmp_path: Path) -> None:
    config = MASKED.replace(mae=MASKED.mae.replace(normalize_target=normalized))
    engine = TorchEngine(config)
    # Of little contrast, so that nothing is cut off at black or white.
    pixels_BHWC = np.random.default_rng(0).integers(100, 150, (4, 8, 8, 1), np.uint8)
    run = Run(tmp_path, run_in(tmp_path, config).request.replace(labels=None))
    with pytest.raises(InputError, match="no saved step of a masked autoencoder"):
        reconstructions(tmp_path, config, pixels_BHWC, framework)
    save_step(run, train_steps(engine, batches_for(engine, quadrants()), 0, 2), 2)
    x_BHWC, expected = normalize(pixels_BHWC, config.preprocessing), losses_of(engine, config, pixels_BHWC)
    order_BN = evaluation_order(config.model, config.seed, range(4))
    for i, found in enumerate(reconstructions(tmp_path, config, pixels_BHWC, framework)):
        np.testing.assert_allclose(found.original_HWC, pixels_BHWC[i] / 255)
        seen = np.zeros(16, bool)
        seen[order_BN[i, :4]] = True
        seen_HWC = np.kron(seen.reshape(4, 4), np.ones((2, 2)))[..., None] > 0
        assert (found.visible_HWC[~seen_HWC] == 0.5).all()
        for image_HWC in (found.visible_HWC, found.completed_HWC):
            np.testing.assert_allclose(image_HWC[seen_HWC], found.original_HWC[seen_HWC], atol=2**-22)
        error_HWC = (found.completed_HWC - 0.5) / 0.1 - x_BHWC[i]
        if normalized:
            patches_hPwQ = x_BHWC[i, ..., 0].reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(4, 4, 4)
            deviation_hw = np.sqrt(patches_hPwQ.var(axis=-1, ddof=1) + 1e-6)
            error_HWC = error_HWC / np.kron(deviation_hw, np.ones((2, 2)))[..., None]
        assert (found.means_HWC is not None) == normalized
        if found.means_HWC is not None:
            means_hw = pixels_BHWC[i, ..., 0].reshape(4, 2, 4, 2).mean(axis=(1, 3)) / 255
            means_HWC = np.kron(means_hw, np.ones((2, 2)))[..., None]
            # As above, and one rounding for each of the 4 values of a patch.
            np.testing.assert_allclose(
                found.means_HWC, np.where(seen_HWC, found.original_HWC, means_HWC), atol=4 * 2**-22
            )
        assert titles_of(found).get("means_HWC") == ("true mean only" if normalized else None)
        assert ("true\nmean and deviation" in titles_of(found)["completed_HWC"]) == normalized
        assert 0 < found.completed_HWC.min() < found.completed_HWC.max() < 1
        # float32 models, whose predictions differ by 1e-5 of their scale (parity.FLOAT32_BOUND) at most.
        np.testing.assert_allclose(np.square(error_HWC[~seen_HWC]).mean(), expected[i], rtol=1e-4)
