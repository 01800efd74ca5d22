"""The figures of `vit show` for a checkpoint, an image and a data set, with their explanations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vit_cli.console import say
from vit_cli.twins import Framework
from vit_core import attention_maps
from vit_core.checkpoints import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing, normalize
from vit_core.storage import Location
from vit_train import attention_figures, figures, prediction_figures, reconstruction, reconstruction_figures
from vit_train.data.batches import evaluation_pixels
from vit_train.data.sources import Split
from vit_train.display import Display
from vit_train.metrics import METRICS
from vit_train.predictions import Predictions, readable_among, spread_over
from vit_train.run import RUN, read_request

DISTANCE_IMAGES = 128
"""Number of images over which attention distances are averaged, as in arXiv:2010.11929."""
COMPLETED = 8
"""Number of images that a masked autoencoder completes."""
WORST, PAIRS, IMAGES_OF_A_PAIR = 24, 6, 4


@dataclass(frozen=True)
class Figure:
    """A figure to draw."""

    file: str
    title: str
    text: str
    """Text that explains the figure, and how to read it."""
    draw: Callable[[Path], object]
    """Function that writes a PNG file."""


@dataclass(frozen=True)
class Shown:
    """The checkpoint, image, run and data set that are shown."""

    checkpoint: Checkpoint
    preprocessing: Preprocessing
    framework: Framework
    display: Display
    image: tuple[str, np.ndarray] | None = None
    """Name and pixels [H, W, C] of the image whose attention is drawn."""
    run: Location | None = None
    """The folder of the training run."""
    split: Split | None = None
    """Images of a data set."""
    predictions: Predictions | None = None
    """Predictions for images of the split, if each has one class."""

    def figures(self) -> Iterator[Figure]:
        """All figures that can be drawn; prints the others with the reasons."""
        if self.run is not None and (self.run / METRICS).is_file():
            yield self._curves(self.run)
            yield from self._reconstructions(self.run)
        yield from self._of_predictions()
        yield from self._of_weights()
        if self.image is None:
            say("not drawn: attention; give an IMAGE, or --data")
            return
        yield from self._of_attention(*self.image)

    def _curves(self, run: Location) -> Figure:
        return Figure(
            "curves.png",
            "Training",
            "Loss and learning rate by step, and the accuracy at each evaluation.",
            lambda path: figures.training_curves([(run.name, run / METRICS)], path),
        )

    def _reconstructions(self, run: Location) -> Iterator[Figure]:
        """Images as the run's masked autoencoder completes them, if it trains one."""
        config = read_request(run).config if (run / RUN).is_file() else None
        if config is None or config.masked is None:
            return
        if self.split is not None:
            ids = spread_over(self.split, COMPLETED)
            if not (pixels := list(self._pixels(self.split, ids, config.preprocessing))):
                say(f"not drawn: completed images; none of {len(ids)} images can be read")
                return
        elif self.image is not None and self.image[1].shape[:2] == config.model.image_size:
            pixels = [self.image[1]]
        else:
            say("not drawn: completed images; give an IMAGE, or --data")
            return
        try:
            completed = reconstruction.reconstructions(run, config, np.stack(pixels), self.framework)
        except InputError as error:
            say(f"not drawn: completed images; {error}")
            return
        added = (
            " Each hidden patch has its true mean and deviation, which the decoder does not predict; the last image of "
            "each has the true means alone, so that the difference is what the decoder adds."
        )
        yield Figure(
            "completed.png",
            "Completed images",
            f"Images; the {1 - config.mae.mask_ratio:.0%} of their patches that the encoder sees; and these patches "
            f"with the decoder's predictions of the others.{added if config.mae.normalize_target else ''}",
            lambda path: reconstruction_figures.completed_images(completed, path),
        )

    def _of_weights(self) -> Iterator[Figure]:
        model, arrays = self.checkpoint.config.model, self.checkpoint.arrays
        if model.stem_layers is None:
            yield Figure(
                "patch_filters.png",
                "Patch filters",
                "The first 28 principal components of the filters of the patch embedding, each on its own scale. "
                "A trained model has smooth patterns of low frequency; noise indicates too little training.",
                lambda path: figures.patch_filters(
                    [("principal components", arrays["patch_embed.proj.weight"].astype(np.float32))], path
                ),
            )
        else:
            say("not drawn: patch filters; a ResNet precedes the patches of this model")
        if model.position_embedding == "learned":
            pos_ND = arrays["pos_embed"][0, model.prefix_positions :].astype(np.float32)
            yield Figure(
                "position_similarity.png",
                "Position embeddings",
                "Each tile is at the position of its patch in the image, and shows the cosine similarity of its "
                "position embedding to those of all patches. Near patches become similar in training, often also those "
                "of one row or column.",
                lambda path: figures.position_similarity([("position embeddings", pos_ND, model.grid)], path),
            )
        else:
            say(f"not drawn: position similarity; its positions are not learned ({model.position_embedding})")

    def _of_attention(self, name: str, pixels_HWC: np.ndarray) -> Iterator[Figure]:
        model = self._model_at(pixels_HWC)
        of_image = [weights_1TNN[0] for weights_1TNN in self._attention(pixels_HWC)]
        query = attention_figures.query_token(model)[1]
        yield Figure(
            "attention.png",
            "Attention by head and layer",
            f"Of {name}: how much {query} attends to each patch, with a row for each layer and a column for each head, "
            "each map on its own scale.",
            lambda path: attention_figures.attention_by_head(model, pixels_HWC, of_image, path),
        )
        yield Figure(
            "rollout.png",
            "Attention rollout",
            f"Of {name}: attention multiplied through all layers, with half of each token carried past each layer "
            "(arXiv:2005.00928). It shows which patches can have contributed, not why.",
            lambda path: attention_figures.attention_rollout(model, pixels_HWC, of_image, path),
        )
        distances_LT, images = self._distances(model, of_image)
        yield Figure(
            "attention_distance.png",
            "Mean attention distance",
            "Mean distance of the patches that each head attends to, weighted by attention. In arXiv:2010.11929, "
            "figures 7 and 11, some heads of the first layers attend to near patches and others to far ones, and those "
            "of the last layers to far ones.",
            lambda path: attention_figures.attention_distance(distances_LT, images, path),
        )
        if model.registers:
            yield Figure(
                "registers.png",
                "Registers",
                f"Of {name}: the attention of each register in the last layer (mean over heads), and by layer the "
                "share of all tokens' attention to registers.",
                lambda path: attention_figures.register_attention(model, of_image, path),
            )

    def _of_predictions(self) -> Iterator[Figure]:
        if (predictions := self.predictions) is None or self.split is None:
            return
        report = predictions.report
        images = f"{len(predictions.ids_N):,} of {len(self.split):,} images of {self.split.title}"
        matrix = report.confusion_matrix
        assert matrix is not None
        columns = [*self.split.labels, "other"][: matrix.shape[1]]
        yield Figure(
            "confusion_matrix.png",
            "Confusion matrix",
            f"{images}: how often each class (row) was predicted as which (column). Accuracy "
            f"{(predictions.predictions_N == predictions.classes_N).mean():.2%}, macro F1 {report.macro_f1:.2%}.",
            lambda path: prediction_figures.confusion_matrix(matrix, self.split.labels, columns, path),  # type: ignore[union-attr]
        )
        calibration = predictions.calibration
        yield Figure(
            "reliability.png",
            "Calibration",
            f"{images}: how often predictions of each confidence are correct. Points below the line are correct less "
            "often than their probability says. The expected calibration error is "
            f"{calibration.expected_error:.2%}.",
            lambda path: prediction_figures.reliability(calibration, path),
        )
        if not (worst := predictions.worst(WORST)):
            say("not drawn: worst and confused images; all predictions are correct")
            return
        yield Figure(
            "worst.png",
            "Worst images",
            f"{images}: wrong predictions with the largest loss, worst first: the class, the prediction and its "
            "probability. Labels that are wrong are often among them.",
            lambda path: prediction_figures.predicted_images(worst, path),
        )
        yield Figure(
            "confused.png",
            "Most confused classes",
            f"{images}: the {PAIRS} pairs of class and prediction that occur most often, the most frequent first, with "
            f"up to {IMAGES_OF_A_PAIR} images each.",
            lambda path: prediction_figures.predicted_images(predictions.confused(PAIRS, IMAGES_OF_A_PAIR), path),
        )

    @cached_property
    def _twin(self) -> Callable[[np.ndarray], list[np.ndarray]]:
        """The attention weights of each layer for normalized images."""
        any_size = self.preprocessing.max_patches is not None
        if self.framework == "torch":
            import vit_torch

            in_torch = vit_torch.load(self.checkpoint, dtype="float32")
            return lambda x_BHWC: vit_torch.attention_weights(in_torch, x_BHWC, interpolate=any_size)
        import vit_jax

        in_jax = vit_jax.load(self.checkpoint, dtype="float32")
        return lambda x_BHWC: vit_jax.attention_weights(in_jax, x_BHWC, interpolate=any_size)

    def _model_at(self, pixels_HWC: np.ndarray) -> ViTConfig:
        """The model's config for an image; with max_patches, the size varies between images."""
        return self.checkpoint.config.model.replace(image_size=pixels_HWC.shape[:2])

    def _attention(self, pixels_HWC: np.ndarray) -> list[np.ndarray]:
        return self._twin(normalize(pixels_HWC[None], self.preprocessing))

    def _pixels(self, split: Split, ids: np.ndarray, preprocessing: Preprocessing) -> Iterator[np.ndarray]:
        """The pixels of images of the split, without those that cannot be read."""
        read = partial(evaluation_pixels, preprocessing=preprocessing)
        found = readable_among(split, ids, read, named=self.predictions is None)
        return (pixels_HWC for _, pixels_HWC, _ in found)

    def _distances(self, model: ViTConfig, of_image: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
        """Mean attention distance [layers, heads], and the number of images: those of the split, or the one image."""
        if self.split is None:
            return _distances_of(model, of_image), 1
        ids, total = spread_over(self.split, DISTANCE_IMAGES), np.zeros(())
        with self.display.task("attention", len(ids)) as task:
            done = 0
            for pixels_HWC in self._pixels(self.split, ids, self.preprocessing):
                weights_LTNN = [weights_1TNN[0] for weights_1TNN in self._attention(pixels_HWC)]
                total = total + _distances_of(self._model_at(pixels_HWC), weights_LTNN)
                done += 1
                task.update(done, self.split.title)
        return total / done, done


def _distances_of(model: ViTConfig, weights_LTNN: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(
        [
            attention_maps.attention_distances(weights_TNN, model.grid, model.patch_size, model.prefix_tokens)
            for weights_TNN in weights_LTNN
        ]
    )
