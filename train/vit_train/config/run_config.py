"""Config of a whole training run: which fields fit together, and what follows from them."""

from collections.abc import Mapping
from math import log
from typing import Self

from pydantic import model_validator

from vit_core import flops
from vit_core.checkpoints import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.lora import trained_with, with_adapter_rows
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.naflex import check_model
from vit_core.parameters import Parameter, parameters
from vit_train.config.changeable import FREE_MODEL_FIELDS
from vit_train.config.evaluation import EvaluationOptions
from vit_train.config.run_fields import RunFields


class TrainConfig(RunFields):
    """A training run, or a segment of one. Batch i is a function of the config and i alone.

    If a resumed run is changed, it continues with the next example, and the learning rate is that of a run which had
    the new values from its start, at the same number of examples. Therefore the lengths of the schedule (warm-up,
    cooldown, timescale) count batches of the run's first batch size.
    """

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        self._check_length()
        if self.masked is not None:
            self._check_masked(self.masked)
        elif not self.model.num_classes:
            raise ValueError("model.num_classes: 0 leaves nothing to train toward")
        if self.attention == "fused" and (self.dtype == "float64" or self.model.attention_dropout):
            raise ValueError("attention: fused is not for dtype float64 or model.attention_dropout; leave it out")
        if self.reduce_dtype and self.dtype == "float64":
            raise ValueError(f"reduce_dtype: {self.reduce_dtype} is for dtype float32; float64 is summed in float64")
        self._check_batch()
        self._check_distillation()
        epsilon = self.optimizer.resolved().epsilon
        if self.optimizer.name == "adafactor" and epsilon and epsilon > 1e-12:
            raise ValueError(
                f"optimizer.epsilon: {epsilon:g} would drown the squared gradients that Adafactor adds it to; expected "
                "at most 1e-12, or none for big_vision's 1e-30"
            )
        self._check_images()
        if "balanced" in self.class_weights and len(self.class_weights) > 1:
            raise ValueError("class_weights: expected one number for each class, or balanced alone")
        self.factors()
        return self

    def _check_length(self) -> None:
        schedule, length = self.schedule, self._on_schedule(self.steps)
        if schedule.warmup_steps + schedule.cooldown_steps >= length:
            raise ValueError(
                f"schedule: {schedule.warmup_steps} steps of warm-up and {schedule.cooldown_steps} of cooldown leave "
                f"nothing of {length:g} steps; set more steps, or fewer of warm-up"
            )

    def _check_batch(self) -> None:
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation: {self.accumulation} does not divide batch_size {self.batch_size}")
        if self.augmentation.mixes and self.batch_size // self.accumulation % 2:
            raise ValueError(
                f"batch_size: {self.batch_size // self.accumulation} examples taken at once cannot be paired; mixup "
                "and CutMix need an even number"
            )

    def _check_distillation(self) -> None:
        if self.loss == "sigmoid" and self.distillation.teacher and self.distillation.kind != "features":
            raise ValueError(
                f"distillation.kind: '{self.distillation.kind}' compares classes of which an image has one; use "
                "'features' with loss 'sigmoid'"
            )
        if self.distillation.teacher and (self.distillation.kind, self.model.distillation) == ("features", "head"):
            raise ValueError(
                "distillation.kind: 'features' does not train the distillation token's head; use model.distillation "
                "'token' or 'none', or kind 'hard' or 'logits'"
            )

    def _check_images(self) -> None:
        if self.augmentation.colors and (self.model.channels not in (1, 3) or self.preprocessing.bit_depth != 8):
            raise ValueError(
                f"augmentation: rand_augment, auto_augment, three_augment and color_jitter are for images of 1 or 3 "
                f"channels of 8 bits; found {self.model.channels} of {self.preprocessing.bit_depth}"
            )
        if self.augmentation.repeats > 1 and self.sampling == "balanced":
            raise ValueError(
                "augmentation.repeats: is for sampling 'shuffled'; balanced sampling repeats images anyway"
            )

    @model_validator(mode="after")
    def _check_patch_sizes(self) -> Self:
        (H, W), sizes = self.model.image_size, self.patch_sizes
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"patch_sizes: {sizes} has a size twice; each is drawn as often as any other")
        for size in sizes:
            if H % size or W % size:
                possible = [side for side in range(2, min(H, W) + 1) if H % side == W % side == 0]
                raise ValueError(
                    f"patch_sizes: {size} does not divide image_size {self.model.image_size}; these do: {possible}"
                )
            try:
                self.model.kernel_of((size, size))
            except InputError as error:
                raise ValueError(f"patch_sizes: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_reduced_decode(self) -> Self:
        how = self.preprocessing
        if self.augmentation.reduced_decode and (how.exif_rotation or how.channels != 3 or how.bit_depth != 8):
            raise ValueError(
                "augmentation.reduced_decode: is for RGB images of 8 bits without exif_rotation; set it to false"
            )
        return self

    @model_validator(mode="after")
    def _check_any_aspect(self) -> Self:
        if self.preprocessing.max_patches is None:
            if self.sequence_lengths:
                raise ValueError("sequence_lengths: are for images of any aspect; set preprocessing.max_patches too")
            return self
        try:
            check_model(self.model)
        except InputError as error:
            raise ValueError(f"preprocessing.max_patches: {error}") from None
        if len(set(self.sequence_lengths)) < len(self.sequence_lengths):
            raise ValueError(f"sequence_lengths: {self.sequence_lengths} has a length twice")
        for name, off, on in (
            ("patch_sizes", "leave them out", self.patch_sizes),
            ("augmentation.mixup and cutmix", "set both to 0", self.augmentation.mixes),
            ("augmentation.random_crop", "set it to false", self.augmentation.random_crop),
            ("distillation.teacher", "leave it out", self.distillation.teacher),
        ):
            if on:
                raise ValueError(f"{name}: for images of one size, not for preprocessing.max_patches; {off}")
        return self

    @property
    def networks(self) -> tuple[ViTConfig, ...]:
        """The model at each size that training draws, each as often as any other; else the model alone. For images of
        any aspect, one row of patches stands for a sequence of that length."""
        if self.preprocessing.max_patches is not None:
            (P, Q), lengths = self.model.patch_size, self.sequence_lengths or (self.preprocessing.max_patches,)
            return tuple(self.model.replace(image_size=(P, length * Q)) for length in lengths)
        return tuple(self.model.replace(patch_size=size) for size in self.patch_sizes) or (self.model,)

    @property
    def longest(self) -> ViTConfig:
        """The one of `networks` with the most tokens, which needs the most memory."""
        return max(self.networks, key=lambda network: network.tokens)

    @property
    def forward_flops(self) -> dict[str, float]:
        """FLOPs of the forward pass of a training image by module, the mean over `networks`."""
        counts = [flops.in_training(network, self.masked) for network in self.networks]
        return {name: sum(count[name] for count in counts) / len(counts) for name in counts[0]}

    def _check_masked(self, mae: MaskedAutoencoder) -> None:
        mae.check(self.model)
        if self.augmentation.mixes:
            raise ValueError(
                "augmentation.mixup, augmentation.cutmix: mae.mask_ratio uses no classes; set --augmentation.mixup 0 "
                "--augmentation.cutmix 0"
            )
        if self.class_weights:
            raise ValueError("class_weights: weigh classes, and mae.mask_ratio uses none; leave them out")
        for name, on in (
            ("patch_sizes", self.patch_sizes),
            ("preprocessing.max_patches", self.preprocessing.max_patches),
            ("lora.rank", self.lora.rank),
            ("distillation.teacher", self.distillation.teacher),
        ):
            if on:
                raise ValueError(f"{name}: not for a masked autoencoder (mae.mask_ratio); leave out either")

    @property
    def masked(self) -> MaskedAutoencoder | None:
        """How the model is pretrained as a masked autoencoder; None where it is trained toward classes."""
        return self.mae if self.mae.mask_ratio else None

    @property
    def table(self) -> Mapping[str, Parameter]:
        """The rows of all that the run's network consists of: the model's parameter table with a decoder's rows, then
        its adapters'."""
        return with_adapter_rows(parameters(self.model, self.masked), self.model, self.lora)

    def factors(self) -> dict[str, float]:
        """Factor on the learning rate of each parameter that is trained, by canonical name.

        Raises InputError if nothing is left to train, or a pattern of optimizer.frozen matches nothing.
        """
        factors = self.optimizer.factors(self.table)
        trained = {name: factor for name, factor in factors.items() if trained_with(self.lora, name)}
        if not trained:
            raise InputError(
                f"optimizer.frozen: {', '.join(self.optimizer.frozen)} leaves no adapter and no head to train"
            )
        return trained

    def fitted(self, weights: Checkpoint) -> Checkpoint:
        """The weights under this run's model config. Raises InputError unless both compute the same network."""
        self.check_network(weights.config.model, weights.origin)
        return weights.with_config(weights.config.replace(model=self.model))

    def check_network(self, model: ViTConfig, origin: str) -> None:
        """Raises InputError, which names the origin, unless a model computes the same network as this run's."""
        ours, theirs = (
            each.model_dump() | {"rope": each.rope and each.rope.trained.model_dump()} for each in (self.model, model)
        )
        differing = [name for name in ours if ours[name] != theirs[name] and name not in FREE_MODEL_FIELDS]
        if differing:
            found = ", ".join(f"{name} is {ours[name]} here and {theirs[name]} there" for name in differing)
            raise InputError(f"model: not that of {origin}: {found}")

    def check_batch_shards(self, shards: int) -> None:
        """Raises InputError unless each part of a batch can be divided into `shards` shards of whole pairs."""
        parts = shards * self.accumulation * (2 if self.augmentation.mixes else 1)
        if self.batch_size % parts:
            why = f"{shards} devices x {self.accumulation} parts (accumulation)"
            paired = " in pairs (mixup, CutMix)" if self.augmentation.mixes else ""
            raise InputError(
                f"batch_size: {self.batch_size} cannot be shared by {why}{paired}; make it a multiple of {parts}"
            )

    @property
    def loss_limit(self) -> float:
        """The loss above which it counts as exploded."""
        if self.masked is not None:
            return self.explosion  # the mean square of normalized pixels is about 1
        classes = self.model.num_classes
        return self.explosion * (log(classes + 1) if self.loss == "softmax" else classes * log(2))

    @property
    def evaluation(self) -> EvaluationOptions:
        """How this run evaluates its weights."""
        return EvaluationOptions(
            preprocessing=self.preprocessing,
            batch_size=self.evaluation_batch,
            loss=self.loss,
            allow_undecodable=self.allow_undecodable,
            threads=self.threads,
            workers=self.workers,
        )

    def learning_rate(self, step: int) -> float:
        """Learning rate at `step` (from 0), before a layer's factor."""
        return self.optimizer.learning_rate * self.schedule_fraction(step)

    def schedule_fraction(self, step: int) -> float:
        """Learning rate at `step` (from 0) as a fraction of its peak."""
        return self.schedule.fraction(self._on_schedule(step), self._on_schedule(self.steps))

    def average_decay(self, step: int) -> float:
        """What the moving average keeps of itself after the update at `step` (from 0); 0 where there is none."""
        return min(self.ema or 0.0, (1 + step) / (10 + step) if self.ema_warmup else 1.0)

    def examples_before(self, step: int) -> int:
        """Number of the run's first example in batch `step` (from 0)."""
        before = self.continues
        return step * self.batch_size if before is None else before.examples + (step - before.step) * self.batch_size

    def _on_schedule(self, step: int) -> float:
        """A step as the schedule counts them: in batches of the run's first size."""
        return step if self.continues is None else self.examples_before(step) / self.continues.first_batch
