"""Fields of the config of a whole training run."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vit_core.config import ViTConfig
from vit_core.lora import Lora
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.preprocess import Preprocessing
from vit_core.schema import Flag, NonNegative, Positive, Rate, Schema
from vit_train.config.data import Above0, Augmentation, Data
from vit_train.config.distillation import Distillation
from vit_train.config.evaluation import Loss
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


class RunFields(Schema):
    """The fields of `TrainConfig`, which checks that they fit together."""

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
