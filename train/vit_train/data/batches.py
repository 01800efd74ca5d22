"""Makes batches of examples. Batch i is a pure function of (seed, i): order, augmentation, mixing and masks are drawn
here, on the host, from the global example index, independent of the engine and of the number of threads, workers and
processes. Engines only apply them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from vit_core import ViTConfig, masks
from vit_core.errors import InputError
from vit_core.image_batches import Images
from vit_core.jpeg import Smallest
from vit_core.masked_autoencoder import draw_order
from vit_core.naflex import PatchedImages
from vit_core.preprocess import Preprocessing, decode, resize_image
from vit_train.config import Loss, TrainConfig
from vit_train.data.augmentation import (
    DRAWS,
    Mix,
    augment_together,
    augmented,
    crops_only,
    draw_mixes,
    smallest_decoded,
)
from vit_train.data.classes import BalancedOrder, Occurrences, balanced_weights, check_classes, classes_of
from vit_train.data.decoded_images import Decoded, DecodedImages
from vit_train.data.draws import generators, peek, uniforms
from vit_train.data.mapped_images import MappedImages, cache_folder
from vit_train.data.repeats import RepeatedOrder
from vit_train.data.shuffled_order import ShuffledOrder
from vit_train.data.sources import Split
from vit_train.data.targets import smooth_targets, targets_with_a_share
from vit_train.data.threads import in_threads

MASKS_LIMIT = 2**30
"""Largest number of bytes of a batch's masks. (Masks of dropout are as large as the activations.)"""

SMALL = 64
"""Largest side in pixels of decoded images for which one thread makes a batch: several threads would wait for each
other, because Python takes more time than Pillow for such small images."""

IMAGE_STREAM, MASK_STREAM, MIX_STREAM, ORDER_STREAM, NETWORK_STREAM = 1, 2, 3, 5, 6  # 4: data.classes
"""Numbers of the kinds of random draws, so that the draws of an example, a step and a pair with the same number
differ."""

Array = Any
"""A NumPy array; in an engine an array of its framework."""


class Batch(NamedTuple):
    """The input of an engine for one step: a process's rows of the global batch."""

    images_BHWC: Array
    """uint8 or uint16; the engine normalizes them, then mixes them. Images of any aspect ratio are
    vit_core.naflex.PatchedImages on the host and Patches on the device."""
    targets_BC: Array
    """float32 from 0 to 1: share of each class, after smoothing and mixing."""
    weights_B: Array
    """float32: the factor of the example's loss: the weight of its class, or 1, mixed like the targets. 0: the example
    is skipped (it could not be read). The sum of the losses is divided by the number of examples that are not skipped,
    so that the mean gradient of the batches is the gradient over the whole split. With the sum of the weights as
    divisor this would not hold, and in a batch of one class the weights would have no effect."""
    own_share_B: Array
    """float32 weight of an image's own pixels; the rest comes from its partner, the other image of its pair
    (2k, 2k+1)."""
    boxes_B4: Array
    """int32 (top, left, bottom, right): inside, all pixels are the partner's (CutMix)."""
    masks: dict[str, Array]
    """Masks of dropout and stochastic depth, and a masked autoencoder's order of patches, by site (vit_core.masks)."""
    ids_B: Array
    """int64 index of each example in its split; it does not influence training."""
    patch_size: tuple[int, int] | None = None
    """Patch size of the batch, if the run draws it; otherwise the model's."""

    def digests(self) -> np.ndarray:
        """uint64 [B]: for each example a hash of everything that influences training."""
        B = len(self.weights_B)
        by_example = [masks.by_example(site, mask, B) for site, mask in sorted(self.masks.items())]
        digests, patch = [], b"" if self.patch_size is None else repr(self.patch_size).encode()
        images = self.images_BHWC if isinstance(self.images_BHWC, PatchedImages) else [self.images_BHWC]
        for example in zip(*images, *self[1:5], *by_example, strict=True):
            digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in example) + patch)
            digests.append(int.from_bytes(digest.digest()[:8], "little"))
        return np.array(digests, np.uint64)

    @property
    def size(self) -> str:
        """The drawn size on which the engine's program depends, as text for messages."""
        if isinstance(self.images_BHWC, PatchedImages):
            return f"{self.images_BHWC.patches_BNV.shape[1]} patches"
        return f"patches of {'x'.join(map(str, self.patch_size))}" if self.patch_size else ""

    def fingerprint(self) -> str:
        """A hash of all examples in their order."""
        return fingerprint(self.digests())


def fingerprint(digests_B: np.ndarray) -> str:
    """A hash of a batch, from the digests of its examples, which may come from several processes."""
    return hashlib.sha256(digests_B.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Batches:
    """A run's training batches by index: `Batches(split, config)[i]`; the split is shuffled again in each epoch.

    rows: the rows of each batch that are made here, in whole pairs (default: all). Raises InputError if a batch is
    larger than the split, and if its labels do not fit the config's loss or class weights.
    """

    split: Split
    config: TrainConfig
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = self.config.batch_size
        sites = masks.sites(self.config.longest, size).values()
        if (needed := 4 * sum(prod(site.shape) for site in sites)) > MASKS_LIMIT:
            raise InputError(
                f"model.dropout: the masks of a batch of {size} take {needed / 2**30:.1f} GiB, drawn on the host; "
                f"expected at most {MASKS_LIMIT / 2**30:.0f}; use stochastic_depth, whose masks are small"
            )
        if size > len(self.split):
            raise InputError(f"batch_size: {size} is more than the {len(self.split)} examples of {self.split.title}")
        if self.config.masked is None:
            check_loss(self.split, self.config.loss)
        if "balanced" in (self.config.sampling, *self.config.class_weights):
            _ = self.occurrences  # worker processes get a copy of this object; each would read the labels again
        _ = self.class_weights_C
        if self.config.image_cache_folder is not None:
            _ = self.decoded  # raises InputError for a folder that cannot be used
        if self.config.augmentation.repeats > 1:
            _ = self.order  # raises InputError if there are too few images

    @cached_property
    def order(self) -> ShuffledOrder | BalancedOrder | RepeatedOrder:
        """Index in the split of each example of the run."""
        if self.config.sampling == "balanced":
            return BalancedOrder(self.occurrences, self.config.seed)
        shuffled, repeats = ShuffledOrder(len(self.split), self.config.seed), self.config.augmentation.repeats
        return RepeatedOrder(shuffled, len(self.split), repeats) if repeats > 1 else shuffled

    @cached_property
    def class_weights_C(self) -> np.ndarray:
        """float64: the weight of each class in the loss."""
        given, classes = self.config.class_weights, len(self.split.labels)
        if given == ("balanced",):
            return balanced_weights(self.occurrences.counts_C)
        if given and len(given) != classes:
            raise InputError(
                f"class_weights: {len(given)} numbers for the {classes} classes of {self.split.title}; expected one "
                "for each, in the order of the classes, or balanced"
            )
        return np.array(given or [1.0] * classes, np.float64)

    @cached_property
    def occurrences(self) -> Occurrences:
        """Which examples have each class."""
        return Occurrences.of(self.split)

    @cached_property
    def decoded(self) -> DecodedImages | MappedImages:
        """Cache of decoded images; empty with reduced_decode, where the size of an image depends on its crop."""
        reduced = self.config.augmentation.reduced_decode
        folder, limit = self.config.image_cache_folder, 0 if reduced else self.config.image_cache * 2**20
        if folder is not None and limit:
            return MappedImages(cache_folder(folder), self.split, self.config.preprocessing, limit)
        return DecodedImages(len(self.split), limit)

    def ids(self, step: int) -> np.ndarray:
        """int64 [batch_size]: index in the split of each example of a batch, also of rows that other processes make."""
        first = self.config.examples_before(step)
        return self.order.take(np.arange(first, first + self.config.batch_size))

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)

    def make(self, step: int, threads: int = 1) -> Batch:
        """The batch of a step. threads: number of threads that make its images."""
        config, preprocessing = self.config, self.config.preprocessing
        rows = np.arange(config.batch_size) if self.rows is None else self.rows
        numbers = [config.examples_before(step) + int(row) for row in rows]
        ids_B = self.order.take(np.array(numbers))
        network = self.network(step)
        if preprocessing.max_patches is not None:
            preprocessing = preprocessing.replace(max_patches=prod(network.grid))
        images, readable_B = Images(preprocessing, len(numbers)), np.zeros(len(numbers), bool)
        classes_B = [classes_of(0)] * len(numbers)

        def make_images(chosen: range) -> None:
            part = slice(chosen.start, chosen.stop)
            if self._make_together(ids_B[part], numbers[part], classes_B, chosen, images):
                readable_B[part] = True
                return
            for row, rng in zip(chosen, generators(config.seed, IMAGE_STREAM, numbers[part]), strict=True):
                image, classes_B[row] = self._example(int(ids_B[row]), rng)
                if image is not None:
                    with suppress(InputError):  # its weight is 0, and the training loop reports it
                        images[row] = augmented(image, preprocessing, config.augmentation, rng)
                        readable_B[row] = True

        in_threads(make_images, len(numbers), 1 if self._is_small(int(ids_B[0])) else threads)
        weights_B = (self._weights(classes_B) * readable_B).astype(np.float32)
        targets_BC = smooth_targets(classes_B, config)
        targets_BC, weights_B, own_share_B, boxes_B4 = self._mix(numbers, targets_BC, weights_B)
        drawn = masks.draw(network, config.batch_size, np.random.default_rng([config.seed, MASK_STREAM, step]))
        if config.masked is not None:
            rng = np.random.default_rng([config.seed, ORDER_STREAM, step])
            drawn[masks.PATCH_ORDER] = draw_order(config.model, config.batch_size, rng)
        kept = {site: masks.rows_of(site, mask, rows) for site, mask in drawn.items()}
        patch_size = network.patch_size if config.patch_sizes else None
        return Batch(images.batch(), targets_BC, weights_B, own_share_B, boxes_B4, kept, ids_B, patch_size)

    def network(self, step: int) -> ViTConfig:
        """The model of a step: one of the config's `networks`, drawn for the whole batch."""
        networks = self.config.networks
        return networks[int(np.random.default_rng([self.config.seed, NETWORK_STREAM, step]).integers(len(networks)))]

    def _is_small(self, i: int) -> bool:
        """Whether example i is already decoded and small."""
        image = None if (found := self.decoded.get(i)) is None else found.image
        return image is not None and max(image.width, image.height) <= SMALL

    def _make_together(
        self, ids_B: np.ndarray, numbers: list[int], classes_B: list[np.ndarray], chosen: range, images: Images
    ) -> bool:
        """Sets the chosen rows and returns True, if their images are already decoded and only have to be cropped and
        flipped."""
        config = self.config
        if not crops_only(config.preprocessing, config.augmentation):
            return False
        kept = [found for i in ids_B.tolist() if (found := self.decoded.get(i)) is not None]
        decoded = [each.image for each in kept if each.image is not None]
        if len(decoded) < len(chosen):
            return False
        classes_B[chosen.start : chosen.stop] = [each.classes for each in kept]
        draws_BF = uniforms(config.seed, IMAGE_STREAM, numbers, DRAWS)
        result_BHWC = images.pixels_BHWC[chosen.start : chosen.stop]
        return augment_together(decoded, config.preprocessing, config.augmentation, draws_BF, result_BHWC)

    def _example(self, i: int, rng: np.random.Generator) -> Decoded:
        """Example i of the split; without an image if it cannot be read. rng: of its augmentation, not changed."""
        if (found := self.decoded.get(i)) is not None:
            return found
        image, classes = None, classes_of(0)
        with suppress(InputError):
            example = self.split.examples[i]
            classes = classes_of(example["label"])
            smallest = self._smallest(rng) if self.config.augmentation.reduced_decode else None
            image = decode(example["image"], self.config.preprocessing, smallest)
        check_classes(classes, self.split, i)
        found = Decoded(image, classes)
        self.decoded.keep(i, found)
        return found

    def _smallest(self, rng: np.random.Generator) -> Smallest:
        """The smallest size of an image that is enough for the crop that the generator will draw."""
        draws = peek(rng, DRAWS)
        preprocessing, augmentation = self.config.preprocessing, self.config.augmentation
        return lambda height, width: smallest_decoded(height, width, preprocessing, augmentation, draws)

    def _weights(self, classes_B: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [B]: the mean weight of each example's classes."""
        if not self.config.class_weights:
            return np.ones(len(classes_B))
        return np.array([self.class_weights_C[classes].mean() if len(classes) else 1.0 for classes in classes_B])

    def _mix(
        self, numbers: list[int], targets_BC: np.ndarray, weights_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Mixed targets and weights, and how the engine mixes the images; a pair with an unreadable image stays
        unmixed."""
        B, augmentation, size = len(numbers), self.config.augmentation, self.config.model.image_size
        if not augmentation.mixes:
            return targets_BC, weights_B, np.ones(B, np.float32), np.zeros((B, 4), np.int32)
        draws_P4 = uniforms(self.config.seed, MIX_STREAM, [number // 2 for number in numbers[::2]], 4)
        drawn = draw_mixes(augmentation, size, draws_P4)
        readable_P = (weights_B != 0).reshape(-1, 2).all(axis=1)
        mixes = [mix if readable else Mix() for mix, readable in zip(drawn, readable_P.tolist(), strict=True)]
        own_share_B = np.repeat(np.array([mix.weight for mix in mixes], np.float32), 2)
        boxes_B4 = np.repeat(np.array([mix.box for mix in mixes], np.int32), 2, axis=0)
        share_B = np.repeat(np.array([mix.share(size) for mix in mixes]), 2)
        own_B, others_B = share_B.astype(np.float32), (1 - share_B).astype(np.float32)
        partner_B = np.arange(B) ^ 1
        if augmentation.mixed_targets == "all":
            targets_BC = targets_with_a_share(targets_BC, targets_BC[partner_B], share_B[:, None])
        else:
            targets_BC = own_B[:, None] * targets_BC + others_B[:, None] * targets_BC[partner_B]
        if self.config.class_weights:  # own + others may be less than 1 in the last bit
            weights_B = own_B * weights_B + others_B * weights_B[partner_B]
        return targets_BC, weights_B, own_share_B, boxes_B4


class EvaluationBatch(NamedTuple):
    """Some examples of a split."""

    images_BHWC: np.ndarray | PatchedImages
    """uint8 or uint16, after the evaluation transform."""
    labels_B: np.ndarray
    """int64: class of each example; for a multilabel split bool [B, classes]: its classes. Zero where counts_B is
    false."""
    counts_B: np.ndarray
    """bool; false for padding, and for an image that could not be read."""
    ids_B: np.ndarray
    """int64 index of each example in the split; indices after its end are padding."""


@dataclass(frozen=True)
class EvaluationBatches:
    """A split's batches by index, each example once; the last batch is padded, and padding is not evaluated.

    rows: the rows of each batch that are made here (default: all).
    allow_undecodable: skip images that cannot be read, instead of raising InputError.
    """

    split: Split
    preprocessing: Preprocessing
    batch_size: int
    allow_undecodable: bool = False
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, i: int) -> EvaluationBatch:
        return self.make(i)

    def make(self, i: int, threads: int = 1) -> EvaluationBatch:
        """Batch i. threads: number of threads that make its images."""
        ids_B = i * self.batch_size + (np.arange(self.batch_size) if self.rows is None else self.rows)
        images = Images(self.preprocessing, len(ids_B))
        counts_B = ids_B < len(self.split)
        classes_B = [classes_of(())] * len(ids_B)

        def make_images(chosen: range) -> None:
            for row in chosen:
                try:
                    example = self.split.examples[int(ids_B[row])]
                    classes_B[row] = classes_of(example["label"])
                    images[row] = evaluation_pixels(example, self.preprocessing)
                except InputError as error:
                    if not self.allow_undecodable:
                        fault = self.split.fault(int(ids_B[row]), error)
                        raise InputError(f"{fault}; --allow-undecodable skips it") from None
                    counts_B[row] = False
                if counts_B[row]:
                    check_classes(classes_B[row], self.split, int(ids_B[row]))

        in_threads(make_images, int(counts_B.sum()), threads)  # padding is at the end
        return EvaluationBatch(images.batch(), self._labels(classes_B), counts_B, ids_B)

    def _labels(self, classes_B: Sequence[np.ndarray]) -> np.ndarray:
        if not self.split.multilabel:
            return np.array([classes[0] if len(classes) else 0 for classes in classes_B], np.int64)
        has_BC = np.zeros((len(classes_B), len(self.split.labels)), bool)
        for has_C, classes in zip(has_BC, classes_B, strict=True):
            has_C[classes] = True
        return has_BC


def evaluation_pixels(example: Mapping[str, Any], preprocessing: Preprocessing) -> np.ndarray:
    """uint8 or uint16 [H, W, C]: an example's image after the evaluation transform. Raises InputError if it cannot be
    read."""
    return resize_image(decode(example["image"], preprocessing), preprocessing)


def check_loss(split: Split, loss: Loss) -> None:
    """Raises InputError if the loss is the cross entropy of one class and examples have several."""
    if split.multilabel and loss != "sigmoid":
        raise InputError(f"loss: {loss} is for images of one class, but {split.title} is multi-label; use sigmoid")
