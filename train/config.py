"""What a training run is: one typed, validated config that both engines follow."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import log, prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vit_core.checkpoint import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError, unknown_name
from vit_core.parameters import Parameter, parameters
from vit_core.preprocess import Preprocessing
from vit_core.schema import Flag, NonNegative, Positive, Rate, Real, Schema

Magnitude = Annotated[Real, Field(ge=0.0)]
Fraction = Annotated[Real, Field(ge=0.0, le=1.0)]
Above0 = Annotated[Real, Field(gt=0.0)]
Devices = Annotated[int, Field(ge=-1, le=2**24, strict=True)]


class Data(Schema):
    """Where examples come from."""

    name: str
    """"digits" (embedded); a folder, written with a slash ("./photos": class folders, or a prepared set); or the name
    of a tensorflow-datasets set ("cifar10", "cifar10:3.0.2")."""
    directory: str | None = None
    """Where tensorflow-datasets sets are prepared (default: its own, ~/tensorflow_datasets)."""
    train_split: str | None = None
    """Default "train"; tensorflow-datasets' slices are understood ("train[:98%]")."""
    eval_split: str | None = None
    """Default: the one there is of test, validation and val; else `held_out` of a folder's images."""
    held_out: Fraction = 0.1
    """Share of each class of a folder without splits that is kept for evaluation, drawn by `split_seed`."""
    split_seed: NonNegative = 0


class Augmentation(Schema):
    """Random changes of a training image, drawn on the host."""

    crop_area: tuple[Fraction, Fraction] | None = None
    """Random resized crop (arXiv:1409.4842) of so much of the image; none: the evaluation transform."""
    crop_ratio: tuple[Above0, Above0] = (3 / 4, 4 / 3)
    """Width over height of the crop."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    rotation: Magnitude = 0.0
    """Largest angle, degrees."""
    shift: Fraction = 0.0
    """Largest shift, as a fraction of each side."""
    mixup: Magnitude = 0.0
    """Mixup's alpha: weights from Beta(alpha, alpha) (arXiv:1710.09412); 0: off."""
    cutmix: Magnitude = 0.0
    """CutMix's alpha (arXiv:1905.04899); 0: off. With both on, each pair of examples draws one of them, evenly."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, pair in (("crop_area", self.crop_area), ("crop_ratio", self.crop_ratio)):
            if pair and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}: expected 0 < smallest <= largest, found {pair}")
        return self

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed with their partners."""
        return self.mixup > 0 or self.cutmix > 0


class Schedule(Schema):
    """The learning rate as a fraction of its peak, in float64, the same for both engines."""

    name: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    """After the warm-up: half a cosine, a line, the peak, big_vision's sqrt(timescale / (timescale + steps since))."""
    warmup_steps: NonNegative = 0
    """Steps of linear growth, from peak / warmup_steps."""
    cooldown_steps: NonNegative = 0
    """Last steps of a constant or rsqrt schedule, on a line towards `final`."""
    timescale: Positive = 10_000
    """Of rsqrt, in steps."""
    final: Fraction = 0.0
    """Fraction of the peak that cosine, linear and cooldown head for: where the step after the last would be."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.cooldown_steps and self.name in ("cosine", "linear"):
            raise ValueError(f"cooldown_steps: {self.name} ends at `final` without one; for constant and rsqrt")
        return self

    def fraction(self, step: int, steps: int) -> float:
        """Of step 0, 1, ... in a run of so many."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        since, until = step - self.warmup_steps, steps - self.warmup_steps
        if self.name == "cosine":
            return self.final + (1 - self.final) * float(0.5 * (1 + np.cos(np.pi * since / until)))
        if self.name == "linear":
            return self.final + (1 - self.final) * (1 - since / until)
        left = min((steps - step) / (self.cooldown_steps + 1), 1.0)
        since = min(since, until - self.cooldown_steps - 1)
        level = 1.0 if self.name == "constant" else float(np.sqrt(self.timescale / (self.timescale + since)))
        return self.final + (level - self.final) * left if self.cooldown_steps else level


class Optimizer(Schema):
    """How gradients g become updates of parameters p; lr is the step's learning rate (times the layer's factor).

    adamw: p <- p - lr (m / (sqrt(v) + epsilon)), m and v bias-corrected (arXiv:1711.05101).
    lion: p <- p - lr sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g (arXiv:2302.06675).
    sgd: b <- momentum b + g; p <- p - lr b.
    adafactor: big_vision's (arXiv:2106.04560, section 3.4): u = g / sqrt(v), v = beta v + (1 - beta)(g g + epsilon)
        with beta = min(beta2, 1 - t^-0.8) at step t = 1, 2, ..., of matrices only the means over rows and columns;
        b <- momentum b + (1 - momentum) u; p <- p - lr b. Matrices with a side below 32 are not factored.
    lamb: Adam's update u + weight_decay p, times |p| / |u + weight_decay p| of the tensor (1 where either is zero)
        (arXiv:1904.00962).
    Adafactor and LAMB take a tensor for the matrix (or matrices: queries, keys and values apart) its row in the
    parameter table says it is. Clipping comes first, on all gradients together.
    """

    name: Literal["adamw", "lion", "sgd", "adafactor", "lamb"] = "adamw"
    learning_rate: Magnitude = 1e-3
    """Peak of the schedule."""
    weight_decay: Magnitude = 0.0
    """Of the parameters whose row in the table says so; see `decay`."""
    decay: Literal["decoupled", "independent", "coupled"] = "decoupled"
    """Decoupled: p loses lr weight_decay p (torch, optax; LAMB: inside its norm). Independent: the schedule's fraction
    times weight_decay p, whatever the peak and the layer (big_vision). Coupled: added to the gradient before momentum;
    SGD only."""
    beta1: Rate = 0.9
    """AdamW's, LAMB's and Lion's."""
    beta2: Rate | None = None
    """AdamW's, LAMB's (default 0.999) and Lion's (0.99); Adafactor's cap (0.999)."""
    epsilon: Above0 | None = None
    """AdamW's (default 1e-8) and LAMB's (1e-6), of the root; Adafactor's (1e-30), of the squared gradients."""
    momentum: Rate = 0.9
    """SGD's and Adafactor's; 0: none."""
    moment_dtype: Literal["bfloat16"] | None = None
    """Of the first moment or momentum, between steps; none: the parameters'. (Second moments stay: 0.999 v in bfloat16
    rounds back to v.)"""
    clip_norm: Above0 | None = None
    """Gradients are scaled by c / max(norm, c), norm over all of them."""
    layer_decay: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """The learning rate of depth d is times layer_decay^(depth + 1 - d): embeddings 0, blocks 1 ..., head depth + 1
    (arXiv:2106.08254)."""
    frozen: tuple[str, ...] = ()
    """Patterns of parameter names that stay as they are ("patch_embed.*", "blocks.[0-5].*")."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.decay == "coupled" and self.name != "sgd":
            raise ValueError(f"decay: 'coupled' is for name 'sgd', not '{self.name}'")
        if self.decay == "independent" and self.name == "lamb":
            raise ValueError("decay: LAMB's stands inside its norm; only 'decoupled' is for name 'lamb'")
        return self

    def resolved(self) -> Self:
        """With the numbers that none stands for."""
        beta2, epsilon = DEFAULTS.get(self.name, (0.999, 1e-8))
        return self.replace(
            beta2=beta2 if self.beta2 is None else self.beta2, epsilon=epsilon if self.epsilon is None else self.epsilon
        )

    @property
    def decays_inside(self) -> bool:
        """Whether weight decay goes through the optimizer like a gradient, or is taken off beside it."""
        return self.name == "lamb" or self.decay == "coupled"

    def factors(self, rows: Mapping[str, Parameter]) -> dict[str, float]:
        """Factor on the learning rate of each parameter that is trained, by canonical name; the frozen are left out.

        InputError for a pattern that matches nothing, or where nothing is left to train.
        """
        for pattern in self.frozen:
            if not any(fnmatchcase(name, pattern) for name in rows):
                raise unknown_name("parameter pattern in optimizer.frozen", pattern, rows)
        last = max(row.depth for row in rows.values())
        factors = {
            name: self.layer_decay ** (last - row.depth)
            for name, row in rows.items()
            if not any(fnmatchcase(name, pattern) for pattern in self.frozen)
        }
        if not factors:
            raise InputError(f"optimizer.frozen: {', '.join(self.frozen)} leaves nothing to train")
        return factors


FACTORED_FROM = 32
"""Adafactor factors matrices whose sides are both at least this long, as in big_vision."""

DEFAULTS = {"lion": (0.99, 1e-8), "lamb": (0.999, 1e-6), "adafactor": (0.999, 1e-30)}
"""beta2 and epsilon of the optimizers that differ from Adam's."""

NOT_THE_NETWORK = {
    "dropout",
    "attention_dropout",
    "stochastic_depth",
    "head_bias_init",
    "patch_embedding",
    "position_resampling",
}
"""Fields of a model that a run may choose anew for given weights."""

NOT_THE_RUN = {
    "init", "data.name", "data.directory", "log_every", "evaluate_every", "save_every", "keep", "keep_every",
    "keep_best", "evaluation_batch", "threads", "workers", "fingerprints", "tensorboard",
    "mesh.data", "mesh.fsdp", "mesh.tensor", "scan", "remat", "skippable", "explosion",
    "allow_undecodable", "undecodable_limit",
}  # fmt: skip
"""What changes none of a run's weights (but by rounding), and so may change when it goes on. (Its data may move, not
change.)"""


class Mesh(Schema):
    """How the devices of all processes share a run. One of the axes may be -1: the devices that the others leave."""

    data: Devices = -1
    """Each has a part of the batch."""
    fsdp: Devices = 1
    """Each has a part of the batch, and of every matrix and its statistics (arXiv:1910.02054, stage 3): a slice of
    model.width, which it must divide."""
    tensor: Devices = 1
    """Each has some heads and some hidden units (arXiv:1909.08053): it must divide model.heads and model.mlp_dim."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if 0 in self.axes.values():
            raise ValueError("mesh: 0 devices along an axis; expected 1 or more, or -1 for those that are left")
        if list(self.axes.values()).count(-1) > 1:
            raise ValueError(f"mesh: {self}: only one axis may be -1")
        return self

    def __str__(self) -> str:
        return " x ".join(f"{name} {size}" for name, size in self.axes.items())

    @property
    def axes(self) -> dict[str, int]:
        """Size by name, the outermost first."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    def over(self, devices: int, model: ViTConfig) -> Self:
        """With the -1 worked out. InputError where the devices, or the model, cannot be shared so."""
        fixed = prod(size for size in self.axes.values() if size != -1)
        rest = [name for name, size in self.axes.items() if size == -1]
        if devices % fixed or not (rest or devices == fixed):
            raise InputError(
                f"mesh: {self} needs {'a multiple of ' * bool(rest)}{fixed} devices, there are {devices}; change "
                "mesh.data, mesh.fsdp or mesh.tensor"
            )
        full = self.replace(**dict.fromkeys(rest, devices // fixed))
        for axis, lengths in {"fsdp": ("width",), "tensor": ("heads", "mlp_dim")}.items():
            for name in lengths:
                if (length := getattr(model, name)) % full.axes[axis]:
                    raise InputError(f"mesh.{axis}: {full.axes[axis]} does not divide model.{name} {length}")
        return full


class TrainConfig(Schema):
    """A run. Batch i is a function of (seed, i) and nothing else."""

    model: ViTConfig
    data: Data = Data(name="digits")
    preprocessing: Preprocessing = Field(
        default_factory=lambda data: Preprocessing(image_size=data["model"].image_size, channels=data["model"].channels)
    )
    """How images become arrays, here and later in evaluation. Its image size and channels are always the model's."""
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross entropy over classes; sigmoid: summed over classes, then the mean over examples."""
    label_smoothing: Rate = 0.0
    """Targets become (1 - s) target + s / classes."""
    steps: Positive
    """Updates in the whole run."""
    batch_size: Positive
    """Examples of one update, over all devices and processes."""
    accumulation: Positive = 1
    """Parts a batch is taken in, one after the other, to save memory; their gradients are summed."""
    mesh: Mesh = Mesh()
    scan: Flag = True
    """JAX: keep the layers stacked and run them by jax.lax.scan, which compiles one layer instead of all."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again to save memory: nothing; all but products with weights; each block."""
    ema: Rate | None = None
    """Keep a moving average of the weights: after each step, average <- ema average + (1 - ema) weights."""
    seed: NonNegative = 0
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and optimizer state."""
    compute_dtype: Literal["bfloat16", "float32"] | None = None
    """Of the forward and backward pass; none: `dtype`."""
    log_every: Positive = 10
    """Steps."""
    evaluate_every: NonNegative = 0
    """Steps; 0: only at the end."""
    save_every: NonNegative = 0
    """Steps; 0: only at the end (or at an interrupt)."""
    keep: Positive = 2
    """Saved steps that are kept: the newest,"""
    keep_every: NonNegative = 0
    """and those at multiples of this (0: none),"""
    keep_best: NonNegative = 0
    """and so many with the best top-1 (of those evaluated: see evaluate_every)."""
    evaluation_batch: Positive = 100
    """Examples."""
    threads: Positive = 2
    """Threads that make batches, in each worker."""
    workers: NonNegative = 0
    """Processes that make batches; 0: only threads of this one."""
    allow_undecodable: Flag = False
    """Leave images out of evaluation that cannot be read, instead of stopping."""
    undecodable_limit: NonNegative = 100
    """Training examples that may be unreadable (they count nothing) before the run stops; of each process."""
    skippable: NonNegative = 0
    """Updates that may be left out in a run, because their loss or gradient is not finite or has exploded, before it
    stops."""
    explosion: Above0 = 100.0
    """A loss of so many times that of logits that are all zero has exploded."""
    fingerprints: Flag = False
    """Log a hash of each batch, to compare runs."""
    tensorboard: Flag = True
    """Write TensorBoard events beside the JSON lines."""

    @model_validator(mode="before")
    @classmethod
    def _pixels_follow_the_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preprocessing") is None:
            return {name: value for name, value in data.items() if name != "preprocessing"}
        if not isinstance(data, dict) or not isinstance(data["preprocessing"], Preprocessing | dict):
            return data
        model, pixels = data.get("model"), data["preprocessing"]
        model = model if isinstance(model, ViTConfig) else ViTConfig(**model) if isinstance(model, dict) else None
        if model is None:
            return data
        size = {"image_size": model.image_size, "channels": model.channels}
        if isinstance(pixels, Preprocessing):
            return {**data, "preprocessing": pixels.replace(**size)}
        return {**data, "preprocessing": {**pixels, **size}}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        schedule = self.schedule
        if schedule.warmup_steps + schedule.cooldown_steps >= self.steps:
            raise ValueError(
                f"schedule: {schedule.warmup_steps} steps of warm-up and {schedule.cooldown_steps} of cooldown leave "
                f"nothing of {self.steps} steps"
            )
        if not self.model.num_classes:
            raise ValueError("model.num_classes: 0 leaves nothing to train towards")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation: {self.accumulation} does not divide batch_size {self.batch_size}")
        if self.augmentation.mixes and self.batch_size // self.accumulation % 2:
            raise ValueError(
                f"batch_size: {self.batch_size // self.accumulation} examples taken at once cannot be paired; mixup "
                "and CutMix need an even number"
            )
        epsilon = self.optimizer.resolved().epsilon
        if self.optimizer.name == "adafactor" and epsilon and epsilon > 1e-12:
            raise ValueError(
                f"optimizer.epsilon: {epsilon:g} would drown the squared gradients that Adafactor adds it to; expected "
                "at most 1e-12, or none for big_vision's 1e-30"
            )
        self.optimizer.factors(parameters(self.model))
        return self

    def fitted(self, weights: Checkpoint) -> Checkpoint:
        """The weights under this run's model config. InputError unless both compute the same network."""
        ours, theirs = self.model.model_dump(), weights.config.model.model_dump()
        differing = [name for name in ours if ours[name] != theirs[name] and name not in NOT_THE_NETWORK]
        if differing:
            found = ", ".join(f"{name} is {ours[name]} here and {theirs[name]} there" for name in differing)
            raise InputError(f"model: not that of checkpoint {weights.path}: {found}")
        return weights.with_config(weights.config.replace(model=self.model))

    def check_shares(self, shares: int) -> None:
        """InputError unless so many devices can share each part of a batch, pairs together."""
        parts = shares * self.accumulation * (2 if self.augmentation.mixes else 1)
        if self.batch_size % parts:
            why = f"{shares} devices x {self.accumulation} parts (accumulation)"
            paired = " in pairs (mixup, CutMix)" if self.augmentation.mixes else ""
            raise InputError(
                f"batch_size: {self.batch_size} cannot be shared by {why}{paired}; make it a multiple of {parts}"
            )

    @property
    def loss_limit(self) -> float:
        """A loss beyond it has exploded."""
        classes = self.model.num_classes
        return self.explosion * (log(classes + 1) if self.loss == "softmax" else classes * log(2))

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ..., before a layer's factor."""
        return self.optimizer.learning_rate * self.schedule.fraction(step, self.steps)
