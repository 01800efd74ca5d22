"""Compares an exported program with the model: on random images, and on a data set, from image file to label."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_cli.exported_files import Runner
from vit_core import parity
from vit_core.checkpoints import Checkpoint
from vit_core.deployment import Deployment, Precision
from vit_core.errors import InputError
from vit_core.image_batches import Images
from vit_core.pixels import Pixels
from vit_core.planes import Planes
from vit_core.preprocess import MODES, DecodedImage, decode, normalize, pixels_of, resize_image

if TYPE_CHECKING:
    from vit_train.data.sources import Split
    from vit_train.display import Display
    from vit_train.engine import Predictor

BOUNDS: dict[Precision, float | None] = {
    "float32": parity.FLOAT32_BOUND,
    "float16": parity.FLOAT32_BOUND * 2**13,
    "int8": None,
}
"""Largest difference of the outputs, relative to their scale. float16 has 13 bits less than float32, so the number of
roundings in the bound of float32 gives a bound 2**13 times as large. Rounding to 8 bits has no such bound."""
SIZES = ((0.75, 1.5), (2.0, 1.25), (1.0, 1.0))
"""Sizes of random images of any size, as multiples of the model's."""
CHUNK = 50
"""Number of images of a data set in a batch, if the program accepts any number and all images have one size."""


@dataclass(frozen=True)
class RandomImages:
    """The difference between a program and its twin on random images of one size."""

    shape: tuple[int, ...]
    """Shape of the program's input."""
    relative: float
    """max|file - twin| / max|twin|."""
    bound: float | None

    @property
    def ok(self) -> bool:
        """Whether the difference is within the bound; without a bound, whether it is finite."""
        return self.relative <= self.bound if self.bound is not None else bool(np.isfinite(self.relative))


@dataclass
class OnData:
    """Predictions of a program and of its twin on the same images."""

    title: str
    twin: list[np.ndarray] = field(default_factory=list)
    """Outputs [B, outputs] of each batch."""
    file: list[np.ndarray] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    """For each image the output of its class; empty if images may have several classes."""
    sets: list[np.ndarray] = field(default_factory=list)
    """For each image which outputs its classes are, bool [outputs]; empty if images have one class each."""
    seconds: dict[str, float] = field(default_factory=lambda: {"twin": 0.0, "file": 0.0})
    """Seconds of all batches except the first, from decoded images to outputs."""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(map(len, self.twin))

    @property
    def changed(self) -> int:
        """Number of images whose predicted class differs from the twin's."""
        return int((np.concatenate(self.twin).argmax(-1) != np.concatenate(self.file).argmax(-1)).sum())

    @property
    def decisions_changed(self) -> int:
        """Number of decisions on one class of one image (whether its logit is above 0) that differ from the twin's."""
        return int(((np.concatenate(self.twin) > 0) != (np.concatenate(self.file) > 0)).sum())

    @property
    def relative(self) -> float:
        """max|file - twin| / max|twin|."""
        return parity.difference(np.concatenate(self.file), np.concatenate(self.twin))[1]

    @property
    def largest(self) -> float:
        """max|file - twin|, in terms of the outputs."""
        return parity.difference(np.concatenate(self.file), np.concatenate(self.twin))[0]

    @property
    def margins(self) -> np.ndarray:
        """For each image the difference between the twin's two largest outputs, ascending."""
        ordered = np.sort(np.concatenate(self.twin), axis=-1)
        return np.sort(ordered[:, -1] - ordered[:, -2])

    @property
    def decision_margins(self) -> np.ndarray:
        """For each decision on a class the distance of the twin's output from 0, ascending."""
        return np.sort(np.abs(np.concatenate(self.twin)), axis=None)

    def accuracy(self, which: str) -> float:
        """Top-1 accuracy of "twin" or "file"; mean average precision, if images may have several classes (nan if they
        have none)."""
        outputs_NO = np.concatenate(self.twin if which == "twin" else self.file)
        if not self.sets:
            return float((outputs_NO.argmax(-1) == self.wanted).mean())
        from vit_train.classification import average_precision

        each_O = average_precision(np.stack(self.sets), outputs_NO)
        return float(each_O[~np.isnan(each_O)].mean()) if not np.isnan(each_O).all() else float("nan")


def on_random_images(checkpoint: Checkpoint, deployment: Deployment, program: Runner) -> list[RandomImages]:
    """Compares a program with the float32 model of its framework; with several sizes if the program accepts any."""
    twin = _twin(checkpoint, deployment)
    rng, found = np.random.default_rng(0), []
    for batch, size in zip((1, 3, 2), _sizes(deployment), strict=False):
        images = [_random_image(rng, deployment, size) for _ in range(deployment.batch or batch)]
        if deployment.input == "image":
            pixels_BHWC = np.stack([resize_image(image, deployment.preprocessing) for image in images])
            inputs = np.stack([deployment.input_of(image) for image in images])
        else:
            pixels_BHWC = np.stack([pixels_of(image) for image in images])
            inputs = np.ascontiguousarray(deployment.input_of_pixels(pixels_BHWC))
        expected_BC = twin(normalize(pixels_BHWC, deployment.preprocessing))
        _, relative = parity.difference(program(inputs), expected_BC)
        found.append(RandomImages(inputs.shape, relative, BOUNDS[deployment.precision]))
    return found


def on_data(
    twin: "Predictor",
    deployment: Deployment,
    program: Runner,
    split: "Split",
    outputs: Sequence[int],
    count: int,
    display: "Display",
) -> OnData:
    """Predictions of a program and its twin for `count` images of a split, evenly spaced, from the files' bytes.

    outputs: class of the split -> output of the model. Images that cannot be read are named and left out. Raises
    InputError if none can be read.
    """
    from vit_train.predictions import readable_batches

    alone = deployment.input == "image" or deployment.any_size
    found, size = OnData(split.title), deployment.batch or (1 if alone else CHUNK)

    def decoded(example: Any) -> DecodedImage:
        return decode(example["image"], deployment.preprocessing)

    for readable in readable_batches(split, count, size, decoded, "from file to label", display):
        labels = [label for _, _, label in readable]
        if split.multilabel:
            found.sets += [_set_of(label, outputs, deployment.model.num_classes) for label in labels]
        else:
            found.wanted += [outputs[int(label)] for label in labels]
        _add(found, twin, deployment, program, [image for _, image, _ in readable], size)
    return found


def _set_of(classes: Sequence[int], outputs: Sequence[int], count: int) -> np.ndarray:
    """bool [count]: which outputs of the model are an image's classes."""
    has_O = np.zeros(count, bool)
    has_O[[outputs[int(number)] for number in classes]] = True
    return has_O


def _add(
    found: OnData,
    twin: "Predictor",
    deployment: Deployment,
    program: Runner,
    images: Sequence[DecodedImage],
    size: int,
) -> None:
    """Adds the predictions for some images; a fixed batch is filled up with its last image."""
    padded = [*images, *[images[-1]] * (size - len(images))] if deployment.batch else images
    begin = time.perf_counter()
    made = Images(deployment.preprocessing, len(padded))
    for row, image in enumerate(padded):
        made[row] = pixels_HWC = resize_image(image, deployment.preprocessing)
        if deployment.framework == "torch" and deployment.any_size:
            _check_two_patches(pixels_HWC, deployment)
    of_twin = twin.predict(made.batch())[: len(images)]
    middle = time.perf_counter()
    of_file = _run(program, [deployment.input_of(image) for image in padded])[: len(images)]
    end = time.perf_counter()
    if found.twin:  # the first batch includes compiling
        found.seconds["twin"] += middle - begin
        found.seconds["file"] += end - middle
    found.twin.append(of_twin)
    found.file.append(of_file)


def _check_two_patches(pixels_HWC: np.ndarray, deployment: Deployment) -> None:
    (height, width, _), patch = pixels_HWC.shape, deployment.model.patch_size
    if height < 2 * patch[0] or width < 2 * patch[1]:
        raise InputError(
            f"--data: an image becomes {height}x{width}, and {deployment.target} does not support a side of one patch "
            f"({patch[0]}x{patch[1]}); use images of other shapes, or --to jax-export"
        )


def _run(program: Runner, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The outputs for images; several images in one batch must have the same size."""
    return program(np.ascontiguousarray(np.stack(inputs)))


def _twin(checkpoint: Checkpoint, deployment: Deployment) -> Runner:
    """The float32 model of the deployment's framework, from normalized images [B, H, W, C]."""
    if deployment.framework == "torch":
        import vit_torch

        in_torch = vit_torch.load(checkpoint, dtype="float32")
        return lambda x_BHWC: vit_torch.predict(in_torch, x_BHWC, interpolate=deployment.any_size)
    import vit_jax

    in_jax = vit_jax.load(checkpoint, dtype="float32")
    return lambda x_BHWC: vit_jax.predict(in_jax, x_BHWC, interpolate=deployment.any_size)


def _sizes(deployment: Deployment) -> list[tuple[int, int]]:
    """Sizes of the random images."""
    (height, width), (P, Q) = deployment.model.image_size, deployment.model.patch_size
    if deployment.input != "image" and not deployment.any_size:
        return [(height, width)] * (1 if deployment.batch else 2)
    P, Q, least = (P, Q, 2) if deployment.any_size else (1, 1, 1)
    return [(max(round(height * y / P), least) * P, max(round(width * x / Q), least) * Q) for y, x in SIZES]


def _random_image(rng: np.random.Generator, deployment: Deployment, size: tuple[int, int]) -> DecodedImage:
    preprocessing = deployment.preprocessing
    pixels_HWC = rng.integers(
        0, np.iinfo(preprocessing.pixel_type).max, (*size, preprocessing.channels), preprocessing.pixel_type, True
    )
    if preprocessing.bit_depth == 8 and preprocessing.channels in MODES:
        return Pixels(pixels_HWC)
    return Planes.of(pixels_HWC, preprocessing.bit_depth)
