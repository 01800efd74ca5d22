"""Pretraining, fine-tuning and resuming a run: the work of the commands with these names."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from vit_core.checkpoints import Checkpoint, Provenance
from vit_core.checkpoints.run_folder import FINISHED, saved_steps
from vit_core.errors import InputError, abbreviate
from vit_core.labels import kept_outputs
from vit_core.preprocess import IMAGE_FIELDS, assumed_preprocessing
from vit_core.storage import Location, exclusive
from vit_train.config import Data, TrainConfig, with_fields
from vit_train.config.changeable import CHANGEABLE_IN_SEGMENTS, CHANGEABLE_ON_RESUME
from vit_train.data.batches import Batches
from vit_train.data.checking import check_outside_data
from vit_train.data.sources import Split, open_split
from vit_train.display import SILENT, Display
from vit_train.engine import Engine, Framework
from vit_train.frameworks import device_count, engine_class, join_processes
from vit_train.loop import FitResult, batches_for, fit
from vit_train.metrics import METRICS
from vit_train.preflight import check_agreement, check_data, check_options, check_space, preflight
from vit_train.processes import Processes, end_together
from vit_train.run import RUN, Request, Run, read_request
from vit_train.teachers import open_teacher

logger = logging.getLogger("vit")


@dataclass(frozen=True)
class Launch:
    """How a stage is executed."""

    framework: Framework = "jax"
    distributed: str | None = None
    """Address of the processes of a JAX run (engines.jax.processes.join)."""
    preflight: bool = False
    """Check everything, train nothing."""
    display: Display = SILENT


@dataclass(frozen=True)
class StageResult:
    """The result of a stage in this call. Only process 0 has written files."""

    fit: FitResult
    process: int
    """Number of this process, from 0."""
    curves: Location | None = None
    """The figure of the run's curves, if training was not stopped."""


def pretrain(
    config: TrainConfig, out: Location, launch: Launch, splits: tuple[Split, Split] | None = None
) -> StageResult:
    """Trains from new weights in the folder `out`, or resumes the run in it.

    splits: the training and evaluation examples, where the caller has opened them already.
    """
    check_outside_data(out, config.data)
    if config.lora.rank:
        raise InputError("lora.rank: adapters need trained weights; use vit finetune RECIPE --init CHECKPOINT")
    training, evaluation = splits or open_splits(config.data)
    return train("pretrain", config, None, training, evaluation, out, launch)


def finetune(
    config: TrainConfig, init: Checkpoint, out: Location, launch: Launch, splits: tuple[Split, Split] | None = None
) -> StageResult:
    """Trains from a checkpoint, with its positions resampled and its head replaced if the config or the labels differ;
    or resumes the run in the folder `out`.

    splits: the training and evaluation examples, where the caller has opened them already.
    """
    check_outside_data(out, config.data)
    if config.masked is not None:
        raise InputError("mae.mask_ratio: fine-tuning learns from labels; leave it 0, or use vit pretrain")
    training, evaluation = splits or open_splits(config.data)
    weights, config, changes = adapted(init, config, training.labels)
    if init.config.preprocessing is None:
        options = ", ".join(f"--preprocessing.{name.replace('_', '-')}" for name in IMAGE_FIELDS)
        changes.append(f"{assumed_preprocessing(config.preprocessing)}; set {options}")
    return train("finetune", config, weights, training, evaluation, out, launch, init.origin, changes)


def adapted(
    weights: Checkpoint, config: TrainConfig, labels: tuple[str, ...] | None
) -> tuple[Checkpoint, TrainConfig, list[str]]:
    """The checkpoint at the config's resolution with a head for these labels (rows of the same names are kept, unless
    the config asks for a new head), the config with this number of classes, and a text that describes the changes."""
    before, changes = weights.config, []
    if labels is not None:
        config = config.replace(model=config.model.replace(num_classes=len(labels)))
        weights, change = _with_head_for(weights, config, labels)
        changes += [change] if change else []
    size, patch, method = config.model.image_size, config.model.patch_size, config.model.position_resampling
    if (size, patch) != (before.model.image_size, before.model.patch_size):
        weights = weights.adapt(image_size=size, patch_size=patch, position_embedding_method=method)
    if patch != before.model.patch_size:
        changes.append(f"patch size {_by(before.model.patch_size)} -> {_by(patch)}, kernel resized as by FlexiViT")
    if size != before.model.image_size:
        learned = config.model.position_embedding == "learned"
        how = f"position embeddings by {method}" if learned else "position embeddings computed anew"
        if config.model.position_embedding == "none":
            how = "rotary positions computed anew" if config.model.rope else "which changes no position"
        changes.append(f"image size {_by(before.model.image_size)} -> {_by(size)}, {how}")
    return weights, config, changes


def _with_head_for(weights: Checkpoint, config: TrainConfig, labels: tuple[str, ...]) -> tuple[Checkpoint, str]:
    """The checkpoint with a head for these labels, and a text that describes the change; "" if nothing changed."""
    before, classes = weights.config.labels, weights.config.model.num_classes
    start = f"bias {config.model.head_bias_init:g}" if config.model.head_bias_init else "zero-initialized"
    if weights.config.model.representation and not config.model.representation:
        weights = weights.with_model(head_bias_init=config.model.head_bias_init).with_head(0).with_head(len(labels))
        return weights, f"a new head, {start}: {classes} classes before, {len(labels)} now; its hidden layer is removed"
    if config.head == "matched" and before == labels:
        return weights, ""
    if config.head == "matched" and before is None and classes == len(labels):
        return weights, "the head is kept: the checkpoint has no class names, so its output i is taken as class i"
    order = kept_outputs(before, labels) if config.head == "matched" else (None,) * len(labels)
    new = [label for label, output in zip(labels, order, strict=True) if output is None]
    weights = weights.with_model(head_bias_init=config.model.head_bias_init)
    if len(new) == len(labels):
        return weights.with_head(len(labels)), f"a new head, {start}: {classes} classes before, {len(labels)} now"
    adapted, dropped = weights.with_outputs(order), classes - (len(labels) - len(new))
    if not new and not dropped:
        return adapted, "the head is kept: its outputs are put in the order of the data set's classes, by name"
    same = len(labels) - len(new)
    kept = f"the head is kept for the {f'{same} classes' if same > 1 else 'one class'} of the same name"
    added = f"; {len(new)} new, {start} ({abbreviate(new, most=4)})" if new else ""
    return adapted, f"{kept}{added}{f'; {dropped} of the checkpoint are dropped' if dropped else ''}"


def open_splits(data: Data) -> tuple[Split, Split]:
    """The training and evaluation splits of a run's data. Raises InputError if their labels differ, or if only one is
    multi-label."""
    training, evaluation = open_split(data, "train"), open_split(data, "eval")
    if training.labels != evaluation.labels:
        raise InputError(f"{evaluation.title}: its labels are not those of {training.title}")
    if training.multilabel != evaluation.multilabel:
        several, one = (training, evaluation) if training.multilabel else (evaluation, training)
        raise InputError(f"{one.title}: each image has one label, and those of {several.title} any number of them")
    return training, evaluation


def resume(out: Location, fields: Mapping[str, Any], launch: Launch) -> StageResult:
    """Resumes the run in a folder with the config of its run.json.

    fields: other values from now on, by dotted name: those of CHANGEABLE_ON_RESUME, which do not affect the weights,
    and those of CHANGEABLE_IN_SEGMENTS, which begin a new segment of the run. Raises InputError for any other field,
    for a folder without a run, and for data that are not the run's.
    """
    there = read_request(out)
    for name in fields.keys() - CHANGEABLE_ON_RESUME - CHANGEABLE_IN_SEGMENTS:
        raise InputError(
            f"{name}: cannot change in a run; begin another one, with vit finetune --init {out}. What can: "
            f"{', '.join(sorted(CHANGEABLE_IN_SEGMENTS))}, and what changes no weights (vit resume --help)"
        )
    config = with_fields(there.config, {name: fields[name] for name in fields if name in CHANGEABLE_ON_RESUME})
    training, evaluation = open_splits(config.data)
    if there.init is not None and not saved_steps(out):
        raise InputError(f"{out}: has no saved step yet; repeat the command that began it, with --init {there.init}")
    request = there.replace(
        config=config,
        labels=training.labels if config.masked is None else None,
        examples=(training.fingerprint(), evaluation.fingerprint()),
        framework=launch.framework,
    )
    segment = {name: value for name, value in fields.items() if name in CHANGEABLE_IN_SEGMENTS}
    stage = "pretrain" if there.init is None or config.masked else "finetune"
    return _train(stage, Run(out, request), None, training, evaluation, launch, segment=segment)


def train(
    stage: str,
    config: TrainConfig,
    weights: Checkpoint | None,
    training: Split,
    evaluation: Split,
    out: Location,
    launch: Launch,
    init: str | None = None,
    changes: Sequence[str] = (),
) -> StageResult:
    """Trains a stage in its folder, from the step where it was stopped; logs what it did.

    Raises InputError if the folder contains another run or is used by another process, or if the processes of the run
    disagree.
    """
    if config.masked is None and not config.data.labelled:
        raise InputError("data.labelled: false leaves nothing to train toward; set mae.mask_ratio above 0 (0.75)")
    if config.masked is None and len(training.labels) != config.model.num_classes:
        raise InputError(
            f"model.num_classes: {config.model.num_classes}, but {training.title} has {len(training.labels)} classes; "
            f"set --model.num-classes {len(training.labels)}"
        )
    provenance = weights.config.provenance if weights else Provenance()
    examples = training.fingerprint(), evaluation.fingerprint()
    labels = training.labels if config.masked is None else None
    request = Request(
        config=config,
        init=init,
        labels=labels,
        provenance=provenance,
        examples=examples,
        framework=launch.framework,
    )
    return _train(stage, Run(out, request), weights, training, evaluation, launch, changes)


def _train(
    stage: str,
    run: Run,
    weights: Checkpoint | None,
    training: Split,
    evaluation: Split,
    launch: Launch,
    changes: Sequence[str] = (),
    segment: Mapping[str, Any] | None = None,
) -> StageResult:
    """Trains a run in its folder; `segment`: fields that it changes from its newest saved step on."""
    check_options(run)
    processes = join_processes(launch.framework, launch.distributed)
    # Of several processes, one locks the folder.
    with end_together(processes), exclusive(run.folder) if processes.index == 0 else nullcontext():
        run.request.config.mesh.over(device_count(launch.framework, processes), run.request.config.model)
        teacher, notes = open_teacher(run.request.config, training.labels)
        run, changed = run.taught_by(teacher).resumed().with_change(segment or {})
        check_agreement(processes, run)
        if run.finished:
            logger.info("%s: this run is finished; its checkpoint is %s", run.folder, run.folder / FINISHED)
            return StageResult(FitResult(run.request.steps), processes.index)
        _check_splits(processes, run, training, evaluation, launch.display)
        engine, batches, start = _start(run, weights, teacher, training, launch)
        first = engine.process == 0
        check_space(run.folder, engine)
        if processes.count > 1 or launch.preflight:
            report = preflight(processes, engine, batches)
            if first:
                launch.display.preflight(report)
        if launch.preflight:
            return StageResult(FitResult(start), processes.index)
        if first:
            run.write()
            resuming = [*changed, f"{run.folder}: resuming after step {start} of {run.request.steps}"]
            for line in resuming if start else (*changes, *notes, *changed):
                logger.info("%s", line)
        while True:
            until = run.request.end_of_segment(start)
            result = fit(
                engine, run, batches, evaluation, start=start, until=until, title=stage, display=launch.display
            )
            if result.signal is not None or result.step == run.request.steps:
                return StageResult(result, processes.index, _finish_stage(run, result) if first else None)
            del engine  # before the next segment's takes the same memory
            engine, batches, start = _start(run, weights, teacher, training, launch)


def _start(
    run: Run, weights: Checkpoint | None, teacher: Checkpoint | None, training: Split, launch: Launch
) -> tuple[Engine, Batches, int]:
    """An engine at the run's newest saved step, the batches of that step's segment, and the step."""
    with launch.display.working(f"starting {launch.framework}"):
        engine, start = run.start(engine_class(launch.framework, run.request.config.dtype), weights, teacher)
    return engine, batches_for(engine, training), start


def _check_splits(processes: Processes, run: Run, training: Split, evaluation: Split, display: Display) -> None:
    """Prepares the data for random access and, for a new run, checks them and logs what the user should know about
    them."""
    shown = display if processes.index == 0 else SILENT
    for split in (training, evaluation):
        split.make_ready(shown)
    if (run.folder / RUN).exists():
        return
    for note in dict.fromkeys((*training.notes, *evaluation.notes)) if processes.index == 0 else ():
        logger.info("%s", note)
    check_data(processes, training, evaluation, run.request.config, display)


def _finish_stage(run: Run, result: FitResult) -> Location | None:
    """Logs that a run was stopped, or else draws its curves and returns the figure."""
    if result.signal is not None:
        if result.step < run.request.steps:
            logger.info(
                "stopped after step %d, saved in %s; vit resume %s continues it",
                result.step,
                result.folders[0],
                run.folder,
            )
        else:
            logger.info("stopped in evaluation; the run is finished, its checkpoint is %s", result.folders[0])
        return None
    from vit_train import figures  # matplotlib takes a second to import

    return figures.training_curves([(run.folder.name, run.folder / METRICS)], run.folder / "curves.png")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
