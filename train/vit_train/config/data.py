"""Config of a run's data: where examples come from and how training images are changed at random."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vit_core.schema import Count, Flag, NonNegative, Positive, Real, Schema

Magnitude = Annotated[Real, Field(ge=0.0)]
Fraction = Annotated[Real, Field(ge=0.0, le=1.0)]
Above0 = Annotated[Real, Field(gt=0.0)]
Hue = Annotated[Real, Field(ge=0.0, le=0.5)]


class Data(Schema):
    """Where examples come from."""

    name: str
    """"digits" (embedded); a folder, written with a slash ("./photos": class folders, a prepared set, what Hugging Face
    `datasets` saved, or shards); a table ("labels.csv"); a .parquet or .tar file, or a pattern ("./shards/*.tar"); or
    the name of a tensorflow-datasets set ("cifar10", "cifar10:3.0.2"). The data must be on this machine: copy or mount
    data in stores."""
    directory: str | None = None
    """Folder in which tensorflow-datasets sets are prepared (default: ~/tensorflow_datasets), and in which images of
    parquet files are unpacked (default: ~/.cache/vit-parity)."""
    train_split: str | None = None
    """Default "train"; slices are written as in tensorflow-datasets ("train[:98%]")."""
    eval_split: str | None = None
    """Default: a validation split (validation, val, valid, dev) if there is one, otherwise test; `vit evaluate` prefers
    test. Without such splits, the fraction `held_out` of the images."""
    labelled: Flag = True
    """Whether images have classes. False, for mae.mask_ratio: a folder may contain images in any subfolders, or in one
    folder for each split; labels of other sources are ignored."""
    held_out: Fraction = 0.1
    """Fraction of each class that is kept for evaluation in data without splits, drawn by `split_seed`."""
    split_seed: NonNegative = 0
    """Seed of that draw."""
    group: str | None = None
    """Column of a table, or field of the JSON in shards: images with the same value are held out together or not at
    all, and intervals do not count them as independent."""
    image_column: str | None = None
    """Column of the paths or images (default: path, image, file or a similar name); in shards the extension of the
    images."""
    label_column: str | None = None
    """Column of the labels (default: label, class, category or a similar name); in shards the extension or JSON
    field."""
    label_separator: str | None = None
    """Separator of several labels in one cell, such as ";"; every image may then have any number of classes
    (multi-label)."""
    label_columns: tuple[str, ...] = ()
    """Columns of a table with 1 or 0 for each image, one for each class, instead of a column of labels: multi-label."""
    split_column: str | None = None
    """Column with the split of each image (default: split, if there is one)."""

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.label_columns and (self.label_separator is not None or self.label_column is not None):
            raise ValueError("label_columns: there is a column for each class, so no label_column or label_separator")
        if self.label_separator == "":
            raise ValueError("label_separator: expected one character or more")
        return self


class RandAugment(Schema):
    """RandAugment (arXiv:1909.13719): a number of random operations on each image, with a common magnitude."""

    layers: Count = 0
    """Number of operations on each image; 0: off."""
    operations: Literal["timm", "timm_increasing", "big_vision"] = "timm_increasing"
    """The set of operations and their scale of magnitudes: timm's, timm's with strengths that always grow with the
    magnitude (its `inc1`), or big_vision's."""
    magnitude: Magnitude = 9.0
    """Common magnitude of the operations, on a scale where 10 is AutoAugment's largest."""
    deviation: Magnitude = 0.0
    """Standard deviation of the magnitude, which is normally distributed (timm's `mstd`)."""
    limit: Magnitude = 10.0
    """Largest magnitude, after the deviation; a larger magnitude counts as this one (timm's `mmax`)."""
    probability: Fraction = 0.5
    """Probability that a chosen operation is applied."""


class Augmentation(Schema):
    """Random changes of a training image, drawn on the host."""

    crop_area: tuple[Fraction, Fraction] | None = None
    """Random resized crop (arXiv:1409.4842): smallest and largest fraction of the image's area; none: the evaluation
    transform."""
    crop_ratio: tuple[Above0, Above0] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of the crop; with preprocessing.max_patches relative to the image's."""
    reduced_decode: Flag = False
    """With crop_area: decodes a JPEG file at 1/2, 1/4 or 1/8 of its size, if its crop is then at least as large as the
    training image. Faster for photographs of several megapixels; other pixels than those of the whole image, in
    training only. Images are then decoded again in each epoch, without `image_cache`."""
    random_crop: Flag = False
    """Without crop_area: the evaluation transform with a crop at a random position (big_vision's resize_small and
    random_crop; with crop_padding 4, DeiT III's simple random crop, and the usual one for CIFAR)."""
    crop_padding: Count = 0
    """Pixels added at each side, mirrored at the border, before that crop."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    rotation: Magnitude = 0.0
    """Largest angle, degrees."""
    shift: Fraction = 0.0
    """Largest shift, as a fraction of each side."""
    rand_augment: RandAugment = RandAugment()
    auto_augment: Literal["cifar10", "imagenet"] | None = None
    """AutoAugment (arXiv:1805.09501): the policy for CIFAR-10 or for ImageNet, in place of RandAugment; as in
    torchvision."""
    three_augment: Flag = False
    """3-Augment (DeiT III, arXiv:2204.07118): gray, solarized from level 128 on, or blurred, a third of images each."""
    color_jitter: tuple[Magnitude, Magnitude, Magnitude, Hue] = (0.0, 0.0, 0.0, 0.0)
    """Largest changes of brightness, contrast, saturation and hue, in random order: factors from [1 - x, 1 + x], and a
    shift of up to x of the circle of hues; torchvision's ColorJitter."""
    erasing: Fraction = 0.0
    """Probability that a rectangle is erased (arXiv:1708.04896), of 2 % to 1/3 of the area."""
    erasing_fill: Literal["mean", "noise"] = "mean"
    """The fill of a rectangle: the mean of the preprocessing (timm's `const`), or normal noise with its mean and
    standard deviation, rounded to pixels (timm's `pixel`)."""
    repeats: Positive = 1
    """Repeated augmentation (arXiv:1902.05509): number of copies of each image among 256 examples, each changed
    differently. An epoch has as many examples as before, so this many times fewer images."""
    mixup: Magnitude = 0.0
    """Mixup's alpha: weights from Beta(alpha, alpha) (arXiv:1710.09412); 0: off."""
    cutmix: Magnitude = 0.0
    """CutMix's alpha (arXiv:1905.04899); 0: off. With both on, each pair of examples draws one of them with equal
    probability."""
    mix_probability: Fraction = 1.0
    """Probability that a pair of examples is mixed, if Mixup or CutMix is on (timm's `mixup_prob`, which applies to a
    whole batch)."""
    mixed_targets: Literal["shares", "all"] = "shares"
    """Targets of a mixture: each image's target times its share; or all classes of both images, in full (DeiT III with
    its binary cross entropy; arXiv:2110.00476)."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name, pair in (("crop_area", self.crop_area), ("crop_ratio", self.crop_ratio)):
            if pair and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}: expected 0 < smallest <= largest, found {pair}")
        if self.crop_area and self.random_crop:
            raise ValueError(
                "random_crop: crop_area makes a crop of random size; set crop_area none, or random_crop false"
            )
        if self.reduced_decode and not self.crop_area:
            raise ValueError("reduced_decode: is for random crops; set crop_area, or reduced_decode false")
        if self.crop_padding and not self.random_crop:
            raise ValueError("crop_padding: is for random_crop; set it, or leave the padding out")
        if self.auto_augment and self.rand_augment.layers:
            raise ValueError("auto_augment: RandAugment is on too; set rand_augment.layers 0, or auto_augment none")
        return self

    @property
    def colors(self) -> bool:
        """Whether an operation on colors is on, which needs 8-bit images of 1 or 3 channels."""
        operations = self.auto_augment is not None or self.rand_augment.layers > 0
        return operations or self.three_augment or any(self.color_jitter)

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed in pairs (Mixup or CutMix is on)."""
        return self.mixup > 0 or self.cutmix > 0
