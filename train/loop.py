"""The one training loop: data, step, log, evaluate, save, stop. Two engines serve it with the same few verbs."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest

from vit_core import display
from vit_core.errors import InputError

from .data import Batch, Batches, EvaluationBatches, fingerprint, stream
from .measured import Measured
from .metrics import METRICS, Metrics
from .run import Engine, Run
from .sources import Split


@dataclass(frozen=True)
class Accuracy:
    """Of a split: how many of `total` had their label first, or among the first five, and the mean cross entropy."""

    correct: int
    correct5: int
    total: int
    loss: float

    @property
    def top1(self) -> float:
        return self.correct / self.total

    @property
    def top5(self) -> float:
        return self.correct5 / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the top-1."""
        interval = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return interval.low, interval.high


@dataclass(frozen=True)
class Fitted:
    """How a run ended: after the config's last step, or before it by a signal."""

    step: int
    signal: int | None = None
    accuracy: Accuracy | None = None
    average: Accuracy | None = None
    """Of the moving average of the weights, where one is kept."""
    folders: tuple[Path, ...] = ()
    """Checkpoints; the saved step, where a signal ended it."""


def batches_for(engine: Engine, split: Split) -> Batches:
    """The batches of an engine's run: the rows that its process makes. InputError where they cannot be shared so."""
    engine.config.check_shares(engine.shares)
    return Batches(split, engine.config, engine.rows(engine.config.batch_size))


def fit(
    engine: Engine, run: Run, batches: Batches, evaluation: Split, *, start: int = 0, title: str = "train"
) -> Fitted:
    """Trains from step `start` to the config's last, evaluates, saves; only process 0 writes and shows anything.

    SIGINT and SIGTERM end it after the step under way, which is saved. InputError for a loss or gradient that is not
    finite (the state before it is saved), and for more unreadable images than the config allows.
    """
    with Metrics(run.folder, start, engine.config.tensorboard, written=engine.process == 0) as metrics:
        step, ended_by = train(engine, run, batches, evaluation, metrics, start, title)
        if ended_by is not None:
            return Fitted(step, ended_by, folders=(run.step_folder(step),))
        folders = run.finish(engine, step)
        accuracy, average = judge(engine, evaluation, step, metrics)
    return Fitted(step, None, accuracy, average, folders)


def train(
    engine: Engine, run: Run, batches: Batches, evaluation: Split, metrics: Metrics, start: int, title: str
) -> tuple[int, int | None]:
    """The steps themselves. Gives how many are done, and the signal that ended them early, if one did."""
    config, step, ending = engine.config, start, start == engine.config.steps
    watch, clock = Watch(engine, run, batches, metrics), Clock(config.batch_size)
    made = stream(batches, slice(start, config.steps), config.threads, config.workers)
    with display.progress(shown=engine.process == 0) as bar, stopping() as stopped, watch:
        task = bar.add_task(f"{title} ({engine.name})", total=config.steps, completed=start, note="starting")
        while not ending:
            with clock.waiting():
                batch = next(made)
            measured = engine.train_step(batch, step, stopped() is not None)
            step += 1
            watch.see(step, batch, measured)
            # Of several processes each must end after the same step: when all have seen it in a step's result.
            ending = step == config.steps or (watch.told if engine.processes > 1 else stopped() is not None)
            if step % config.log_every == 0 or ending:
                watch.check()
                line = clock.line() | described(engine, step, measured, batch)
                metrics.write(step, **line)
                bar.update(task, note=note(line))
            bar.update(task, completed=step)
            with clock.paused():
                if ending or (config.save_every and step % config.save_every == 0):
                    watch.check()
                    metrics.flush()
                    run.save(engine, step)
                if ending:
                    run.saved(engine)
                if not ending and config.evaluate_every and step % config.evaluate_every == 0:
                    judge(engine, evaluation, step, metrics)
        # Another process may have been told to stop, and this one not.
        return step, (stopped() or signal.SIGTERM) if step < config.steps else None


def judge(engine: Engine, split: Split, step: int, metrics: Metrics) -> tuple[Accuracy, Accuracy | None]:
    """Evaluates the weights, and their moving average where one is kept; logs both."""
    accuracy = evaluate(engine, split)
    average = evaluate(engine, split, averaged=True) if engine.config.ema is not None else None
    line = {"evaluation_loss": accuracy.loss, "top1": accuracy.top1, "top5": accuracy.top5}
    metrics.write(step, **line, **({"top1_ema": average.top1} if average else {}))
    metrics.flush()
    return accuracy, average


def evaluate(engine: Engine, split: Split, *, averaged: bool = False, shown: bool = False) -> Accuracy:
    """Accuracy over a split, each example once; processes share the work.

    InputError for an image that cannot be read, unless the config allows it, and for a label that is no class.
    """
    config = engine.config
    size = -(-config.evaluation_batch // engine.shares) * engine.shares
    rows = engine.rows(size)
    batches = EvaluationBatches(split, config.preprocessing, size, config.allow_undecodable, rows)
    sums = np.zeros(4)
    with display.progress(shown=shown and engine.process == 0) as bar:
        task = bar.add_task(f"evaluate ({engine.name})", total=len(batches), note=split.title)
        for batch in stream(batches, slice(None), config.threads, config.workers):
            logits_BC = engine.logits(batch.images_BHWC, averaged)[batch.counts_B].astype(np.float64)
            labels_B = batch.labels_B[batch.counts_B]
            first_B5 = np.argsort(-logits_BC, axis=-1, kind="stable")[:, :5]
            hits_B5 = first_B5 == labels_B[:, None]
            loss = cross_entropy(logits_BC, labels_B, config.loss)
            sums += hits_B5[:, 0].sum(), hits_B5.sum(), len(labels_B), loss
            bar.advance(task)
    correct, correct5, total, loss = engine.total(sums if engine.primary else 0 * sums)
    if not total:
        raise InputError(f"{split.title}: no image there can be read")
    return Accuracy(int(correct), int(correct5), int(total), loss / total)


def cross_entropy(logits_BC: np.ndarray, labels_B: np.ndarray, kind: str) -> float:
    """The loss of training, summed over examples, without label smoothing; float64."""
    if kind == "softmax":
        return -float(np.take_along_axis(log_softmax(logits_BC, axis=-1), labels_B[:, None], axis=-1).sum())
    signs_BC = np.where(np.arange(logits_BC.shape[1]) == labels_B[:, None], -1, 1)
    return float(np.logaddexp(0, signs_BC * logits_BC).sum())


class Watch:
    """Looks at each step's result one step later, so that the device need not wait, and at its unreadable images.

    As a context: bad input that stops the run leaves what was trained until then saved.
    """

    def __init__(self, engine: Engine, run: Run, batches: Batches, metrics: Metrics) -> None:
        self.engine, self.run, self.metrics = engine, run, metrics
        self.batches, self.split = batches, batches.split
        self.step, self.failed, self.skipped = 0, False, engine.skipped
        self.told = False
        """Whether a process was told to stop, as far as has been looked."""
        self.pending: Measured | None = None
        self.undecodable: dict[int, str] = {}

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, *_: object) -> None:
        # Of several processes, the others may not know, and would wait for each other.
        if kind is InputError and self.step and self.engine.processes == 1:
            self.check()
            if not self.failed:
                self.run.save(self.engine, self.step)
                self.run.saved(self.engine)

    def see(self, step: int, batch: Batch, measured: Measured) -> None:
        """After step number `step`, from 1."""
        self.check()
        self.step, self.pending = step, measured
        for i in batch.ids_B[batch.weights_B == 0]:
            if int(i) not in self.undecodable:
                self.undecodable[int(i)] = self.split.name(int(i))
                display.say(f"step {step}: cannot read {self.undecodable[int(i)]}; it counts nothing")
        if len(self.undecodable) > self.engine.config.undecodable_limit:
            raise InputError(
                f"step {step}: {len(self.undecodable)} images of {self.split.title} cannot be read (the first: "
                f"{next(iter(self.undecodable.values()))}); mend or remove them, or raise undecodable_limit"
            )

    def check(self) -> None:
        """InputError where the last step seen could not be taken, unless the config lets so many be left out; the
        engine has kept the state before it."""
        if self.pending is None:
            return
        measured, self.pending = self.pending, None
        self.told = int(measured.stop) > 0
        config = self.engine.config
        if not (wrong := measured.wrong(self.engine.trained, config.loss_limit)):
            return
        examples = [self.split.name(int(i)) for i in self.batches.ids(self.step - 1)]
        gradients = [name for name in wrong if name != "loss"]
        exploded = f" has exploded (limit {config.loss_limit:.4g})" if np.isfinite(float(measured.loss)) else ""
        loss = f"loss {float(measured.loss):.4g}{exploded if 'loss' in wrong else ''}"
        which = f"{loss}, gradients of {shortened(gradients)} not finite" if gradients else loss
        self.skipped += 1
        if self.skipped <= config.skippable:
            self.metrics.write(self.step, left_out=wrong, examples=examples)
            display.say(f"step {self.step}: {which}; left out ({self.skipped} of {config.skippable} that may be)")
            return
        self.failed = True
        self.run.save(self.engine, self.step - 1)
        self.run.saved(self.engine)
        self.metrics.write(self.step, not_finite=wrong, examples=examples)
        raise InputError(
            f"step {self.step}: {which}; examples {shortened(examples)} (all in {METRICS}); the state before is saved "
            f"in {self.run.folder}; mend the data, or go on from there with a lower learning rate (vit finetune --init)"
        )


class Clock:
    """Speed, and the share of time that training waited for data, between two log lines."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.begin, self.steps = batch_size, time.perf_counter(), 0
        self.since, self.waited = self.begin, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, training waits for a batch."""
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, nothing is trained: saving, evaluating."""
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def line(self) -> dict[str, Any]:
        now = time.perf_counter()
        passed = now - self.since
        line = {
            "images_per_second": round(self.batch_size * self.steps / passed, 2),
            "data_wait": round(self.waited / passed, 4),
            "seconds": round(now - self.begin, 3),
        }
        self.since, self.waited, self.steps = now, 0.0, 0
        return line


def described(engine: Engine, step: int, measured: Measured, batch: Batch) -> dict[str, Any]:
    """What the log says of the step that was just the run's number `step`."""
    prints = {}
    if engine.config.fingerprints:
        digests_B = np.zeros(engine.config.batch_size, np.uint64)
        if engine.primary:
            digests_B[engine.rows(len(digests_B))] = batch.digests()
        prints["fingerprint"] = fingerprint(engine.total(digests_B))
    return {
        "loss": float(measured.loss),
        "gradient_norm": measured.gradient_norm,
        "learning_rate": engine.config.learning_rate(step - 1),
        "engine": engine.name,
        **prints,
    }


def note(line: dict[str, Any]) -> str:
    """A log line in the progress bar."""
    return (
        f"loss {line['loss']:.3f}  lr {line['learning_rate']:.1e}  {line['images_per_second']:.0f} images/s  "
        f"data {line['data_wait']:.0%}"
    )


@contextmanager
def stopping() -> Iterator[Callable[[], int | None]]:
    """Within it SIGINT and SIGTERM are noted, and what it gives says which came; a second one acts as ever."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, handle)
        yield lambda: came[0] if came else None
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def shortened(names: list[str], count: int = 4) -> str:
    """The first of them, and how many more."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
