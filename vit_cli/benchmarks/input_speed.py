"""`vit bench input`: speed at which one core makes training images from JPEG files and from a small set, compared with
torchvision."""

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from vit_cli.benchmarks.generated_jpegs import SIZE, jpegs
from vit_cli.requirements import missing
from vit_core import ViTConfig
from vit_core.preprocess import Preprocessing, decode
from vit_train.config import Augmentation, TrainConfig
from vit_train.data.augmentation import DRAWS, augmented, smallest_decoded
from vit_train.data.batches import Batches
from vit_train.data.draws import peek
from vit_train.data.sources import Split
from vit_train.recipes import load

OURS, REDUCED = "ours", "ours, reduced_decode"
PILLOW, TENSORS = "torchvision on PIL", "torchvision on tensors"
CROP_AREA = 0.08, 1.0
SMALL_SET, SMALL_BATCHES = 50_000, 8
"""Number of images of the small set (like CIFAR-10), and number of its batches in a round."""

Filter = Literal["bilinear", "bicubic"]
"""Filter of a resize, with antialiasing."""

Prepare = Callable[[bytes], object]
"""Function from a JPEG file to a training image [224, 224, 3] in 8 bits."""
Transforms: TypeAlias = tuple[Any, Any]
"""torchvision's transforms of a Pillow image, and of a batch of images and labels."""


def measure(interpolation: Filter, images: int, rounds: int, size: tuple[int, int] = SIZE) -> dict[str, list[float]]:
    """For each way of preparing images from JPEG files: its name, and images/s in each round. size: width and height of
    the files, pixels."""
    files = jpegs(images, size)
    ways = {name: partial(_prepare_all, prepare, files) for name, prepare in prepared_by(interpolation).items()}
    return _in_turns(ways, images, rounds)


def measure_small(rounds: int) -> dict[str, list[float]]:
    """The same for batches of a set like CIFAR-10, whose decoded images are in memory: crop, flip and mixup."""
    config = TrainConfig(
        model=ViTConfig(
            image_size=32, patch_size=4, width=192, depth=9, heads=3, mlp_dim=768, num_classes=10, stochastic_depth=0.1
        ),
        augmentation=Augmentation(crop_area=(0.4, 1.0), flip=0.5, mixup=0.2),
        steps=1_000_000,
        batch_size=256,
    )
    return _measure_batches(config, _crop_and_flip, rounds)


def measure_recipe(rounds: int) -> dict[str, list[float]]:
    """The same with the augmentation of the recipe `cifar10`: mirrored crop, flip, RandAugment, erasing, Mixup or
    CutMix."""
    return _measure_batches(load("cifar10", "pretrain"), _as_the_recipe, rounds)


def _measure_batches(config: TrainConfig, theirs: Callable[[], Transforms], rounds: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (256, 32, 32, 3), np.uint8)
    files = [_png(image_HWC) for image_HWC in images_NHWC]
    examples = [{"image": files[i % len(files)], "label": i % 10} for i in range(SMALL_SET)]
    batches = Batches(Split(examples, tuple("0123456789"), "generated"), config)
    for step in range(-(-SMALL_SET // config.batch_size)):
        batches[step]  # decodes every image once
    steps = iter(range(config.steps))
    ways: dict[str, Callable[[], object]] = {OURS: lambda: [batches[next(steps)] for _ in range(SMALL_BATCHES)]}
    if not missing(("torch", "torchvision")):
        ways[PILLOW] = partial(_torchvision_batches, images_NHWC[: config.batch_size], *theirs())
    return _in_turns(ways, SMALL_BATCHES * config.batch_size, rounds)


def _in_turns(ways: Mapping[str, Callable[[], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images per processor second of each way in each round (other programs change it less than wall time). All ways
    take turns in a round, in one thread."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if i:  # the first round includes work that is done once
                speeds[name].append(images / (time.process_time() - start))
    return speeds


def times_pillow(speeds: Mapping[str, Sequence[float]], name: str) -> float | None:
    """Speed relative to torchvision on PIL: the median over the rounds. None if that was not measured."""
    if PILLOW not in speeds:
        return None
    return statistics.median(ours / theirs for ours, theirs in zip(speeds[name], speeds[PILLOW], strict=True))


def prepared_by(interpolation: Filter) -> dict[str, Prepare]:
    """The compared functions by name; torchvision's only if it is installed."""
    preprocessing = Preprocessing(image_size=224, interpolation=interpolation)
    augmentation, rng = Augmentation(crop_area=CROP_AREA, flip=0.5), np.random.default_rng(0)

    def reduced(file: bytes) -> object:  # as vit_train.data.batches
        draws = peek(rng, DRAWS)
        image = decode(file, preprocessing, lambda h, w: smallest_decoded(h, w, preprocessing, augmentation, draws))
        return augmented(image, preprocessing, augmentation, rng)

    ways: dict[str, Prepare] = {
        OURS: lambda file: augmented(decode(file, preprocessing), preprocessing, augmentation, rng),
        REDUCED: reduced,
    }
    return ways if missing(("torch", "torchvision")) else ways | _torchvision(interpolation)


def _torchvision(interpolation: Filter) -> dict[str, Prepare]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode, v2

    torch.set_num_threads(1)
    crop = v2.RandomResizedCrop(224, scale=CROP_AREA, interpolation=InterpolationMode(interpolation), antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def on_tensors(file: bytes) -> object:
        return transform(decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB))

    return {
        PILLOW: lambda file: np.asarray(transform(Image.open(io.BytesIO(file)).convert("RGB"))),
        TENSORS: on_tensors,
    }


def _crop_and_flip() -> Transforms:
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(32, scale=(0.4, 1.0), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]), v2.MixUp(num_classes=10)


def _as_the_recipe() -> Transforms:
    """torchvision's transforms with as many changes as the recipe's: each of RandAugment's two operations is applied
    with probability 0.5."""
    from torchvision.transforms import InterpolationMode, v2

    operation = v2.RandAugment(1, interpolation=InterpolationMode.BICUBIC)
    crop, erasing = v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomErasing(0.25)
    changes = [crop, v2.RandomHorizontalFlip(), *[v2.RandomApply([operation], 0.5)] * 2, v2.PILToTensor(), erasing]
    mix = v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])
    return v2.Compose(changes), v2.RandomApply([mix], 0.5)


def _torchvision_batches(images_BHWC: np.ndarray, transform: Any, mix: Any) -> None:
    """Makes `SMALL_BATCHES` batches as torchvision's users do for CIFAR-10: image by image, then mixed."""
    import torch

    for _ in range(SMALL_BATCHES):
        images_BCHW = torch.stack([transform(Image.fromarray(image_HWC)) for image_HWC in images_BHWC])
        mix(images_BCHW.float(), torch.arange(len(images_BHWC)) % 10)


def _prepare_all(prepare: Prepare, files: Sequence[bytes]) -> None:
    for file in files:
        prepare(file)


def _png(image_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG", compress_level=0)
    return file.getvalue()
