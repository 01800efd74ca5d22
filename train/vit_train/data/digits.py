"""The handwritten digits that come with scikit-learn (1,797 images of 8 x 8 pixels, from UCI) as an ArrayRecord set."""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

HELD_OUT_EVERY = 5
"""Every fifth image is held out for evaluation."""


class Digits(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # it has no types
    """The tensorflow-datasets builder; neither TensorFlow nor a download is needed."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {"train": self._generate_examples(held_out=False), "test": self._generate_examples(held_out=True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # slow to import, and needed only once

        digits = load_digits()
        for i, (levels_HW, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (i % HELD_OUT_EVERY == 0) == held_out:
                png = io.BytesIO()
                Image.fromarray(np.round(levels_HW * 255 / 16).astype(np.uint8)).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": int(label)}


def prepare(directory: Path) -> tuple[Sequence[Any], Sequence[Any], tuple[str, ...]]:
    """Prepares the set if it is missing; returns its train and test splits (not decoded) and the labels' names."""
    builder = tfds.builder_from_directory(str(prepare_set(directory)))
    undecoded = {"image": tfds.decode.SkipDecoding()}
    train, test = (builder.as_data_source(split, decoders=undecoded) for split in ("train", "test"))
    return train, test, tuple(builder.info.features["label"].names)


def prepare_set(directory: Path) -> Path:
    """Prepares the set in a directory if it is missing; returns the set's folder."""
    tfds.disable_progress_bar()
    builder = Digits(data_dir=str(directory), file_format="array_record")
    with redirect_stdout(io.StringIO()), suppress(FileExistsError):  # its output reports a download
        builder.download_and_prepare()  # moves the complete set there; FileExistsError: another process has done so
    return Path(builder.data_dir)
