"""The training loop for both engines: data, step, log, evaluate, save, stop."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_core.storage import Location
from vit_train.config import flatten
from vit_train.data.batches import Batch, Batches, fingerprint
from vit_train.data.sources import Split
from vit_train.data.streams import stream
from vit_train.display import SILENT, Display, Task
from vit_train.engine import Engine, Trainer
from vit_train.evaluation import DEFAULT_SIGNAL, Accuracy, evaluate, signal_in_any_process
from vit_train.metrics import Metrics
from vit_train.profiling import Profile
from vit_train.reconstruction import reconstruction_loss
from vit_train.run import Run
from vit_train.signals import StoppedBySignal, StopSignal, stop_signals
from vit_train.step_monitor import StepMonitor
from vit_train.step_result import StepResult
from vit_train.throughput import Throughput

logger = logging.getLogger("vit")


@dataclass(frozen=True)
class FitResult:
    """How training ended: after the config's last step, or earlier by a signal."""

    step: int
    signal: int | None = None
    """Number of the signal that ended training or evaluation early."""
    accuracy: Accuracy | None = None
    """Accuracy of the weights after the last step."""
    average: Accuracy | None = None
    """Accuracy of the moving average of the weights, if there is one."""
    folders: tuple[Location, ...] = ()
    """The finished checkpoints; if a signal ended training before its last step, the saved step."""
    reconstruction: float | None = None
    """Mean loss of a masked autoencoder on the evaluation split, after the last step; it has no accuracy."""


def batches_for(engine: Trainer, split: Split) -> Batches:
    """The batches of an engine's run, with the rows of its process.

    Raises InputError if the devices cannot share the batches, or if a batch is larger than the split.
    """
    engine.config.check_batch_shards(engine.batch_shards)
    return Batches(split, engine.config, engine.rows(engine.config.batch_size))


def fit(
    engine: Engine,
    run: Run,
    batches: Batches,
    evaluation: Split,
    *,
    start: int = 0,
    until: int | None = None,
    title: str = "train",
    display: Display = SILENT,
) -> FitResult:
    """Trains from step `start` to the config's last step, writes the checkpoint and evaluates; only process 0 writes
    files and shows progress. `until`: an earlier last step, at which a segment of the run ends; it is saved, without a
    checkpoint or an evaluation.

    SIGINT and SIGTERM end training after the step in progress, which is saved, and evaluation after the batch in
    progress. Raises InputError for a loss or gradient that is not finite (the state before it is saved), and for more
    unreadable images than the config allows.
    """
    display = display if engine.process == 0 else SILENT
    config = engine.config
    loggers = (*(["tensorboard"] if config.tensorboard else []), *config.loggers)
    metrics = Metrics(run.folder, start, loggers, flatten(config.model_dump(mode="json")), written=engine.process == 0)
    with metrics, stop_signals() as stop:
        end = config.steps if until is None else until
        loop = _Loop(engine, run, batches, evaluation, metrics, stop, display)
        step = loop.train(start, end, title)
        if step < end:
            # The signal may have been sent to another process.
            return FitResult(step, stop() or DEFAULT_SIGNAL, folders=(run.step_folder(step),))
        if end < config.steps:
            return FitResult(step, signal_in_any_process(engine, stop()), folders=(run.step_folder(step),))
        folders = run.finish(engine, step)
        try:
            if config.masked is not None:
                return FitResult(step, folders=folders, reconstruction=loop.evaluate_reconstruction(step))
            accuracy, average = loop.evaluate(step)
        except StoppedBySignal as stopped:
            return FitResult(step, stopped.number, folders=folders)
    return FitResult(step, None, accuracy, average, folders)


@dataclass(frozen=True)
class _Loop:
    """The objects that every step of a run uses."""

    engine: Engine
    run: Run
    batches: Batches
    evaluation: Split
    metrics: Metrics
    stop: StopSignal
    display: Display

    def train(self, start: int, end: int, title: str) -> int:
        """Trains, saves and evaluates from step `start` to `end`; returns the number of steps done."""
        engine, config, stop = self.engine, self.engine.config, self.stop
        monitor = StepMonitor(engine, self.run, self.batches, self.metrics)
        throughput = Throughput(config, engine.peak_flops, engine.teacher_flops)
        made = stream(self.batches, slice(start, end), config.threads, config.workers)
        step, ending, profile = start, start == end, Profile(engine, self.run.folder, start, end)
        sizes: set[str] = set()
        with self.display.task(f"{title} ({engine.name})", config.steps, start) as task, monitor, profile:
            while not ending:
                with throughput.waiting():
                    batch = next(made)
                monitor.before_step(step + 1, batch)
                profile.before_step(step)
                if len(config.networks) > 1 and batch.size not in sizes:
                    sizes.add(batch.size)
                    task.update(step, f"first step with {batch.size} ({len(sizes)} of {len(config.networks)} sizes)")
                result = engine.train_step(batch, step, stop() is not None)
                step += 1
                monitor.after_step(step, batch, result)
                # Several processes end after the same step, when a result shows all of them that one has to stop.
                stopping = monitor.stop_requested if engine.processes > 1 else stop() is not None
                ending = step == end or stopping
                if ending or step % config.log_every == 0:
                    monitor.check()
                    self._log(step, batch, result, throughput, task)
                if profile.ends_after(step):
                    monitor.check()
                    with throughput.paused():
                        profile.stop()
                task.update(step)
                with throughput.paused():
                    ending = self._save_and_evaluate(step, ending, monitor)
        return step

    def evaluate(self, step: int) -> tuple[Accuracy, Accuracy | None]:
        """Evaluates the weights and, if there is one, their moving average; logs both. Raises StoppedBySignal."""
        engine, options = self.engine, self.engine.config.evaluation
        accuracy = evaluate(engine, self.evaluation, options, stop=self.stop, display=self.display)
        average = None
        if engine.average is not None:
            average = evaluate(engine.average, self.evaluation, options, stop=self.stop, display=self.display)
        values: dict[str, Any] = {"evaluation_loss": accuracy.loss, **accuracy.values}
        if not accuracy.multilabel:
            values["top1_interval"] = accuracy.interval
            values |= {} if accuracy.groups is None else {"top1_interval_from": str(accuracy.groups)}
        if average is not None:
            name, value = next(iter(average.values.items()))
            values[f"{name}_ema"] = value
        self.metrics.write(step, **values)
        self.metrics.upload()
        return accuracy, average

    def evaluate_reconstruction(self, step: int) -> float:
        """The mean loss of a masked autoencoder on the evaluation split; logs it. Raises StoppedBySignal."""
        loss = reconstruction_loss(self.engine, self.evaluation, stop=self.stop, display=self.display)
        self.metrics.write(step, evaluation_loss=loss)
        self.metrics.upload()
        return loss

    def _save_and_evaluate(self, step: int, ending: bool, monitor: StepMonitor) -> bool:
        """Saves and evaluates if this is due after this step; returns whether training ends with it."""
        config = self.engine.config
        if ending or _is_due(step, config.save_every):
            self._save(step, monitor)
        if not ending and _is_due(step, config.evaluate_every):
            try:
                if config.masked is not None:
                    self._report(f"step {step}: evaluation loss {self.evaluate_reconstruction(step):.4f}")
                else:
                    self._report(f"step {step}: {_in_words(*self.evaluate(step))}")
            except StoppedBySignal:
                ending = True
                self._save(step, monitor)
        if ending:
            self.run.wait_until_saved(self.engine)
        return ending

    def _report(self, line: str) -> None:
        if self.engine.process == 0:
            logger.info("%s", line)

    def _save(self, step: int, monitor: StepMonitor) -> None:
        monitor.check()
        self.metrics.upload()
        self.run.save(self.engine, step)

    def _log(self, step: int, batch: Batch, result: StepResult, throughput: Throughput, task: Task) -> None:
        """Writes a line of the log for step number `step` (from 1), and shows some of its values."""
        engine = self.engine
        values: dict[str, Any] = {
            **throughput.values(),
            "loss": float(result.loss),
            "gradient_norm": result.gradient_norm,
            "learning_rate": engine.config.learning_rate(step - 1),
            "engine": engine.name,
        }
        if engine.config.fingerprints:
            values["fingerprint"] = _batch_fingerprint(engine, batch)
        self.metrics.write(step, **values)
        throughput.mention_wait(values["data_wait"], engine.hardware)
        task.update(
            step,
            f"loss {values['loss']:.3f}  lr {values['learning_rate']:.1e}  {values['images_per_second']:.0f} images/s  "
            f"data {values['data_wait']:.0%}  MFU {values['mfu']:.0%}",
        )


def _batch_fingerprint(engine: Engine, batch: Batch) -> str:
    """The fingerprint of the whole batch, whose rows are made by several processes."""
    digests_B = np.zeros(engine.config.batch_size, np.uint64)
    if engine.primary:
        digests_B[engine.rows(len(digests_B))] = batch.digests()
    return fingerprint(engine.total(digests_B))


def _in_words(accuracy: Accuracy, average: Accuracy | None) -> str:
    """What an evaluation in the middle of training found: "top-1 44.44%, moving average 42.22%, loss 1.0771"."""
    (name, value), *_ = accuracy.values.items()
    words = [f"{'mean AP' if accuracy.multilabel else 'top-1'} {value:.2%}"]
    words += [] if average is None else [f"moving average {average.values[name]:.2%}"]
    return ", ".join([*words, f"evaluation loss {accuracy.loss:.4f}"])


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
