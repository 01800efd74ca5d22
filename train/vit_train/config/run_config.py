"""Config of a whole training run."""

from collections.abc import Mapping
from math import log
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from vit_core import flops
from vit_core.checkpoints import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.lora import Lora, trained_with, with_adapter_rows
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.naflex import check_model
from vit_core.parameters import Parameter, parameters
from vit_core.preprocess import Preprocessing
from vit_core.schema import Flag, NonNegative, Positive, Rate, Schema
from vit_train.config.changeable import FREE_MODEL_FIELDS
from vit_train.config.data import Above0, Augmentation, Data
from vit_train.config.distillation import Distillation
from vit_train.config.evaluation import EvaluationOptions, Loss
from vit_train.config.mesh import Mesh
from vit_train.config.optimization import Optimizer, Schedule

ClassWeights = tuple[Above0 | Literal["balanced"], ...]
"""Weights of classes in the loss: a number for each, or ("balanced",), or none: ()."""


class Continued(Schema):
    """The progress of a run before the segment with this config, which began when the run was resumed."""

    step: NonNegative
    """Number of updates before the segment."""
    examples: NonNegative
    """Number of examples used, each counted as often as it was used."""
    first_batch: Positive
    """Batch size of the run's first segment."""


class TrainConfig(Schema):
    """A training run, or a segment of one. Batch i is a function of the config and i alone.

    If a resumed run is changed, it continues with the next example, and the learning rate is that of a run which had
    the new values from its start, at the same number of examples. Therefore the lengths of the schedule (warm-up,
    cooldown, timescale) count batches of the run's first batch size.
    """

    model: ViTConfig
    mae: MaskedAutoencoder = MaskedAutoencoder()
    data: Data = Data(name="digits")
    preprocessing: Preprocessing = Field(
        default_factory=lambda data: Preprocessing(image_size=data["model"].image_size, channels=data["model"].channels)
    )
    """How images become arrays, in training and later in evaluation. Its image size, channels and patch size are always
    the model's. With max_patches the run trains on images of any aspect."""
    augmentation: Augmentation = Augmentation()
    lora: Lora = Lora()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Loss = "softmax"
    """Softmax: cross entropy. Sigmoid: binary cross entropy, summed over classes. Both: mean over examples."""
    distillation: Distillation = Distillation()
    label_smoothing: Rate = 0.0
    """Targets become (1 - s) target + s / classes."""
    class_weights: Annotated[
        ClassWeights, BeforeValidator(lambda given: (given,) if given == "balanced" else given)
    ] = ()
    """Factors of the loss of an example by its class (for several classes, their mean); the sum over a batch is divided
    by its number of examples. A number for each class; or balanced: labels / (classes * labels of this class), whose
    mean over the training split is 1. Evaluation uses no weights."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Shuffled: each training example once in an epoch. Balanced: drawn with replacement, each class equally often."""
    patch_sizes: tuple[Positive, ...] = ()
    """FlexiViT (arXiv:2212.08013): sides of square patches in pixels; one is drawn for each batch with equal
    probability, and the patch kernel and the positions are resized to it in the step. The model is evaluated and saved
    with its own patch_size. (): only that size."""
    sequence_lengths: tuple[Positive, ...] = ()
    """With preprocessing.max_patches: numbers of patches; one is drawn for each batch with equal probability, in place
    of max_patches (NaFlex). Evaluation uses max_patches. (): only that number."""
    steps: Positive
    """Updates of the weights in the whole run."""
    batch_size: Positive
    """Examples of one update, over all devices and processes."""
    continues: Continued | None = None
    """The run's progress before this config, if the run was changed when it was resumed."""
    accumulation: Positive = 1
    """Number of parts of a batch that are computed one after the other, to save memory; their gradients are summed."""
    mesh: Mesh = Mesh()
    scan: Flag | None = None
    """JAX: run the layers by jax.lax.scan, which compiles one layer instead of all. None: yes, except on GPUs."""
    attention: Literal["plain", "fused"] | None = None
    """JAX: plain, XLA's own; fused, with --compute-dtype bfloat16 a kernel that stores no matrix of weights: cuDNN's on
    GPUs, and for more than 1,024 tokens splash attention on TPUs. None: fused on GPUs. (PyTorch: fused.)"""
    compile: Flag | None = None
    """PyTorch: torch.compile for the blocks, a CUDA graph for the step. None: yes on CUDA. (JAX always compiles.)"""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again; none: no product; dots: all but products with weights; full: each
    block."""
    ema: Rate | None = None
    """Keep a moving average of the weights: after each step, average <- ema average + (1 - ema) weights."""
    ema_warmup: Flag = False
    """Average over fewer steps at first: min(ema, (1 + t) / (10 + t)) in place of ema at step t (from 0), which is
    about the last tenth of a short run. Without it, the average after n steps contains the initial weights with the
    share ema^n."""
    seed: NonNegative = 0
    """Seed of all random numbers: new weights, the order of the data, augmentation, stochastic depth."""
    head: Literal["matched", "new"] = "matched"
    """What fine-tuning does with the checkpoint's head. Matched: rows of classes with the same name in the data set are
    kept, rows of other classes are new. New: all rows are new."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of parameters and optimizer state."""
    compute_dtype: Literal["bfloat16", "float32"] | None = None
    """Type of the forward and backward pass; none: `dtype`."""
    reduce_dtype: Literal["bfloat16", "float32"] | None = None
    """Type in which gradients are sent and summed between devices that share a batch; bfloat16 sends half as much.
    None: `dtype` in PyTorch; the compiler's choice in JAX, which is `compute_dtype` for matrices."""
    log_every: Positive = 10
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: NonNegative = 0
    """Steps between two evaluations; 0: only at the end."""
    save_every: NonNegative = 0
    """Steps between two saved steps; 0: only at the end (or when a signal stops the run)."""
    keep: Positive = 2
    """Number of newest saved steps that are kept."""
    keep_every: NonNegative = 0
    """Also keep saved steps at multiples of this number; 0: none."""
    keep_best: NonNegative = 0
    """Also keep this number of the best evaluated steps (see evaluate_every): by top-1, by mAP if images may have
    several classes, or by the loss of a masked autoencoder."""
    evaluation_batch: Positive = 100
    """Batch size of evaluation."""
    threads: Positive = 2
    """Number of threads that make batches, in each worker."""
    workers: NonNegative = 0
    """Number of processes that make batches; 0: only threads of the training process."""
    image_cache: NonNegative = 1024
    """Memory for decoded training images, in MiB for each process that makes batches. A set that would not fit is
    decoded in every epoch instead. 0: no memory."""
    image_cache_folder: str | None = None
    """Keep the decoded images in files in this folder instead, up to image_cache MiB for a set. All processes on a
    machine and later runs share them; a set whose files have changed is decoded again. Use a local disk."""
    allow_undecodable: Flag = False
    """Skip images that cannot be read in evaluation, instead of stopping."""
    undecodable_limit: NonNegative = 100
    """Number of unreadable training images (skipped: weight 0) in each process above which the run stops."""
    skippable: NonNegative = 0
    """Number of updates in a run that are skipped because their loss or gradient is not finite or has exploded; at the
    next one the run stops."""
    explosion: Above0 = 100.0
    """A loss of more than this many times the loss of all-zero logits has exploded."""
    fingerprints: Flag = False
    """Log a hash of each batch, to compare runs."""
    profile: NonNegative = 0
    """Number of steps, after the first five, to record in a file for TensorBoard, XProf or Perfetto; 0: none."""
    tensorboard: Flag = True
    """Write TensorBoard events in addition to metrics.jsonl."""
    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Services that get the same numbers: wandb (Weights & Biases), mlflow, or both. Their files are in the run's
    folder, and nothing is sent unless WANDB_MODE=online or MLFLOW_TRACKING_URI is set."""

    @model_validator(mode="before")
    @classmethod
    def _preprocess_for_the_model(cls, data: Any) -> Any:
        """Sets the image size and channels of the preprocessing to those of the model."""
        if isinstance(data, dict) and data.get("preprocessing") is None:
            return {name: value for name, value in data.items() if name != "preprocessing"}
        if not isinstance(data, dict) or not isinstance(data["preprocessing"], Preprocessing | dict):
            return data
        model, preprocessing = data.get("model"), data["preprocessing"]
        model = model if isinstance(model, ViTConfig) else ViTConfig(**model) if isinstance(model, dict) else None
        if model is None:
            return data
        if isinstance(preprocessing, Preprocessing):
            preprocessing = preprocessing.model_dump()
        # A value that is the same for every channel stays so, however many channels there are.
        each = {name: tuple(preprocessing.get(name) or ()) for name in ("mean", "std")}
        same = {name: values[:1] * model.channels for name, values in each.items() if len(set(values)) == 1}
        size = {"image_size": model.image_size, "channels": model.channels, "patch_size": None}
        if preprocessing.get("max_patches") is not None:
            size["patch_size"] = model.patch_size
        return {**data, "preprocessing": {**preprocessing, **same, **size}}

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        schedule, length = self.schedule, self._on_schedule(self.steps)
        if schedule.warmup_steps + schedule.cooldown_steps >= length:
            raise ValueError(
                f"schedule: {schedule.warmup_steps} steps of warm-up and {schedule.cooldown_steps} of cooldown leave "
                f"nothing of {length:g} steps; set more steps, or fewer of warm-up"
            )
        if self.masked is not None:
            self._check_masked(self.masked)
        elif not self.model.num_classes:
            raise ValueError("model.num_classes: 0 leaves nothing to train towards")
        if self.attention == "fused" and (self.dtype == "float64" or self.model.attention_dropout):
            raise ValueError("attention: fused is not for dtype float64 or model.attention_dropout; leave it out")
        if self.reduce_dtype and self.dtype == "float64":
            raise ValueError(f"reduce_dtype: {self.reduce_dtype} is for dtype float32; float64 is summed in float64")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation: {self.accumulation} does not divide batch_size {self.batch_size}")
        if self.augmentation.mixes and self.batch_size // self.accumulation % 2:
            raise ValueError(
                f"batch_size: {self.batch_size // self.accumulation} examples taken at once cannot be paired; mixup "
                "and CutMix need an even number"
            )
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
        epsilon = self.optimizer.resolved().epsilon
        if self.optimizer.name == "adafactor" and epsilon and epsilon > 1e-12:
            raise ValueError(
                f"optimizer.epsilon: {epsilon:g} would drown the squared gradients that Adafactor adds it to; expected "
                "at most 1e-12, or none for big_vision's 1e-30"
            )
        if self.augmentation.colors and (self.model.channels not in (1, 3) or self.preprocessing.bit_depth != 8):
            raise ValueError(
                f"augmentation: rand_augment, auto_augment, three_augment and color_jitter are for images of 1 or 3 "
                f"channels of 8 bits; found {self.model.channels} of {self.preprocessing.bit_depth}"
            )
        if self.augmentation.repeats > 1 and self.sampling == "balanced":
            raise ValueError(
                "augmentation.repeats: is for sampling 'shuffled'; balanced sampling repeats images anyway"
            )
        if "balanced" in self.class_weights and len(self.class_weights) > 1:
            raise ValueError("class_weights: expected one number for each class, or balanced alone")
        self.factors()
        return self

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
            raise ValueError("augmentation.mixup, augmentation.cutmix: set both to 0; mae.mask_ratio uses no classes")
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
        """How the model is pretrained as a masked autoencoder; None where it is trained towards classes."""
        return self.mae if self.mae.mask_ratio else None

    @property
    def table(self) -> Mapping[str, Parameter]:
        """The rows of all that the run's network consists of: the model's parameter table with a decoder's rows, then
        its adapters'."""
        return with_adapter_rows(parameters(self.model, self.masked), self.model, self.lora)

    def factors(self) -> dict[str, float]:
        """Factor on the learning rate of each parameter that is trained, by canonical name.

        InputError where nothing is left to train, or a pattern of optimizer.frozen matches nothing.
        """
        factors = self.optimizer.factors(self.table)
        trained = {name: factor for name, factor in factors.items() if trained_with(self.lora, name)}
        if not trained:
            raise InputError(
                f"optimizer.frozen: {', '.join(self.optimizer.frozen)} leaves no adapter and no head to train"
            )
        return trained

    def fitted(self, weights: Checkpoint) -> Checkpoint:
        """The weights under this run's model config. InputError unless both compute the same network."""
        self.check_network(weights.config.model, weights.origin)
        return weights.with_config(weights.config.replace(model=self.model))

    def check_network(self, model: ViTConfig, origin: str) -> None:
        """InputError, naming the origin, unless a model computes the same network as this run's."""
        ours, theirs = (
            each.model_dump() | {"rope": each.rope and each.rope.trained.model_dump()} for each in (self.model, model)
        )
        differing = [name for name in ours if ours[name] != theirs[name] and name not in FREE_MODEL_FIELDS]
        if differing:
            found = ", ".join(f"{name} is {ours[name]} here and {theirs[name]} there" for name in differing)
            raise InputError(f"model: not that of {origin}: {found}")

    def check_batch_shards(self, shards: int) -> None:
        """InputError unless each part of a batch can be divided into `shards` shards of whole pairs."""
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
            return self.explosion  # the mean square of normalised pixels is about 1
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
