"""What `vit pretrain`, `finetune`, `evaluate` and `compare` do, beneath the command line."""

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_core import display
from vit_core.checkpoint import FINISHED, Checkpoint, Provenance, open_checkpoint
from vit_core.display import say
from vit_core.errors import InputError

from . import figures, preflight
from .config import Data, Optimizer, TrainConfig
from .loop import Accuracy, Fitted, batches_for, evaluate, fit
from .metrics import METRICS
from .processes import Processes, alone, leaving
from .run import MakeEngine, Request, Run
from .sources import Split, open_split

Framework = Literal["jax", "torch"]


@dataclass(frozen=True)
class Launch:
    """Who trains, and among which processes."""

    framework: Framework = "jax"
    distributed: str | None = None
    """processes_jax.join's."""
    preflight: bool = False
    """Check everything, train nothing."""

    def join(self) -> Processes:
        """Brings the processes of the run together."""
        if self.framework == "jax":
            return importlib.import_module(".processes_jax", __package__).join(self.distributed)
        return importlib.import_module(".processes_torch", __package__).join()


def engine_of(framework: Framework, config: TrainConfig) -> MakeEngine:
    """The engine's class; imports its framework, and lets JAX have float64 where the config asks for it."""
    module = importlib.import_module(f".engine_{framework}", __package__)
    if framework == "jax" and config.dtype == "float64":
        module.jax.config.update("jax_enable_x64", True)
    return module.JaxEngine if framework == "jax" else module.TorchEngine


def pretrain(config: TrainConfig, out: Path, launch: Launch) -> Fitted:
    """Trains from new weights in the folder `out`, or goes on there."""
    training, evaluation = open_splits(config)
    return train("pretrain", config, None, training, evaluation, out, launch)


def finetune(config: TrainConfig, init: Path, out: Path, launch: Launch) -> Fitted:
    """Trains from a checkpoint, its positions resampled and its head replaced where the config or the labels differ."""
    training, evaluation = open_splits(config)
    weights, config, changes = adapted(open_checkpoint(init), config, training.labels)
    return train("finetune", config, weights, training, evaluation, out, launch, str(init), changes)


def adapted(
    weights: Checkpoint, config: TrainConfig, labels: tuple[str, ...] | None
) -> tuple[Checkpoint, TrainConfig, list[str]]:
    """The checkpoint at the config's resolution, with a head for these labels; the config with so many classes; and
    what was changed, for people."""
    before, changes = weights.config, []
    if labels is not None:
        config = config.replace(model=config.model.replace(num_classes=len(labels)))
        same = before.labels == labels or (before.labels is None and before.model.num_classes == len(labels))
        if not same:
            start = f"bias {config.model.head_bias_init:g}" if config.model.head_bias_init else "zero-initialised"
            changes.append(f"a new head, {start}: {before.model.num_classes} classes before, {len(labels)} now")
            weights = weights.with_head(len(labels))
    size, method = config.model.image_size, config.model.position_resampling
    if size != before.model.image_size:
        weights = weights.adapt(image_size=size, position_embedding_method=method)
        how = f"by {method}" if config.model.position_embedding == "learned" else "computed anew"
        changes.append(f"image size {_by(before.model.image_size)} -> {_by(size)}, position embeddings {how}")
    return weights, config, changes


def open_splits(config: TrainConfig) -> tuple[Split, Split]:
    """The config's training and evaluation splits. InputError where their labels do not fit the model or each other."""
    training, evaluation = open_split(config.data, "train"), open_split(config.data, "eval")
    if training.labels != evaluation.labels:
        raise InputError(f"{evaluation.title}: its labels are not those of {training.title}")
    return training, evaluation


def train(
    stage: str,
    config: TrainConfig,
    weights: Checkpoint | None,
    training: Split,
    evaluation: Split,
    out: Path,
    launch: Launch,
    init: str | None = None,
    changes: Sequence[str] = (),
) -> Fitted:
    """One stage in its folder, from where it was left; says what it did and where things are."""
    if len(training.labels) != config.model.num_classes:
        raise InputError(
            f"model.num_classes: {config.model.num_classes}, but {training.title} has {len(training.labels)} classes; "
            f"set --model.num-classes {len(training.labels)}"
        )
    provenance = weights.config.provenance if weights else Provenance()
    examples = training.fingerprint(), evaluation.fingerprint()
    request = Request(config=config, init=init, labels=training.labels, provenance=provenance, examples=examples)
    run = Run(out, request)
    # Of several processes, one holds the folder.
    processes = launch.join()
    with leaving(processes), alone(out) if processes.index == 0 else nullcontext():
        preflight.agree(processes, run)
        run.compare()
        if run.finished:
            say(f"{out}: this run is finished; its checkpoint is {out / FINISHED}")
            return Fitted(config.steps)
        with display.working(f"starting {launch.framework}"):
            engine, start = run.start(engine_of(launch.framework, config), weights)
        batches = batches_for(engine, training)
        chief = engine.process == 0
        if processes.count > 1 or launch.preflight:
            preflight.report(processes, engine, batches)
        if launch.preflight:
            return Fitted(start)
        if chief:
            run.write()
            for line in [f"{out}: going on after step {start} of {config.steps}"] if start else changes:
                say(line)
        fitted = fit(engine, run, batches, evaluation, start=start, title=stage)
        if chief:
            report(run, fitted)
    return fitted


def report(run: Run, fitted: Fitted) -> None:
    """Says how a run ended, and draws its curves."""
    if fitted.signal is not None:
        say(f"stopped after step {fitted.step}, saved in {fitted.folders[0]}; the same command goes on from there")
        return
    drawn = figures.training_curves([(run.folder.name, run.folder / METRICS)], run.folder / "curves.png")
    rows = [("weights", fitted.accuracy), ("moving average", fitted.average)]
    accuracies(f"evaluation after {fitted.step} steps", [(name, found) for name, found in rows if found])
    for what, path in [*(("checkpoint", folder) for folder in fitted.folders), ("curves", drawn)]:
        say(f"{what:11}{path}")


def evaluate_checkpoint(
    path: Path,
    data: Data,
    framework: Framework,
    *,
    split: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_undecodable: bool = False,
) -> Accuracy:
    """Accuracy of a checkpoint on a data set, by the preprocessing that the checkpoint carries."""
    weights = open_checkpoint(path).adapt(image_size=image_size)
    untrained = [done for done in weights.config.provenance.position_resampling if not done.trained_since]
    if untrained:
        say(
            f"warning: positions resampled from a {_by(untrained[0].source)} grid to {_by(untrained[-1].target)} and "
            "not trained since: expect less than after fine-tuning at this size"
        )
    examples = open_split(data.replace(eval_split=split) if split else data, "eval")
    model, labels = weights.config.model, weights.config.labels
    if model.num_classes != len(examples.labels):
        raise InputError(
            f"{path}: has {model.num_classes} classes, {examples.title} has {len(examples.labels)}; fine-tune it there"
        )
    if labels is not None and labels != examples.labels:
        say(f"warning: labels of {examples.title} are named otherwise than the checkpoint's, or stand in another order")
    if weights.config.preprocessing is None:
        say("warning: the checkpoint does not say how its images were made; taking the default preprocessing")
    config = TrainConfig(
        model=model,
        preprocessing=weights.config.preprocessing,
        optimizer=Optimizer(name="sgd", momentum=0.0),  # keeps nothing
        compute_dtype=compute_dtype,
        evaluation_batch=batch_size,
        allow_undecodable=allow_undecodable,
        steps=1,
        batch_size=1,
    )
    Launch(framework).join()
    engine = engine_of(framework, config)(config, weights)
    found = evaluate(engine, examples, shown=True)
    if engine.process == 0:
        accuracies(f"{path} on {examples.title}, {framework}", [("weights", found)])
        if found.total < len(examples):
            say(f"left out, because they cannot be read: {len(examples) - found.total} of {len(examples)} images")
    return found


def accuracies(title: str, found: Sequence[tuple[str, Accuracy]]) -> None:
    """Prints accuracies as a table."""
    rows = []
    for name, accuracy in found:
        low, high = accuracy.interval
        interval = f"{low:.2%} - {high:.2%}"
        rows.append(
            (name, f"{accuracy.top1:.2%}", interval, f"{accuracy.top5:.2%}", f"{accuracy.loss:.4f}", accuracy.total)
        )
    display.table(title, ("", "top-1", "95 % interval", "top-5", "loss", "images"), rows)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
