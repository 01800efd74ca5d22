"""Checks the results of training steps, and counts the images that could not be read."""

import logging
from types import TracebackType

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_train.data.batches import Batch, Batches
from vit_train.engine import Engine
from vit_train.metrics import METRICS, Metrics
from vit_train.run import Run
from vit_train.step_result import StepResult

logger = logging.getLogger("vit")


class StepMonitor:
    """Checks the images of each step before it, and its result one step later, so that no host waits for a device.

    As a context: if bad input stops the run, the current state is saved.
    """

    def __init__(self, engine: Engine, run: Run, batches: Batches, metrics: Metrics) -> None:
        self.engine, self.run, self.metrics = engine, run, metrics
        self.batches, self.split = batches, batches.split
        self.step, self.failed, self.skipped = 0, False, engine.skipped
        self.stop_requested = False
        """Whether a process wants to stop, in the last step that was checked."""
        self.unchecked: StepResult | None = None
        self.without_images = False
        """Whether this process could read none of its images of the step that is unchecked."""
        self.undecodable: dict[int, str] = {}

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # With several processes the others may not know of the error, and would wait in the save for this one.
        if kind is InputError and self.step and self.engine.processes == 1:
            self.check()
            if not self.failed:
                self._save(self.step)

    def before_step(self, step: int, batch: Batch) -> None:
        """Raises InputError if no image of the batch of step number `step` (from 1) can be read, because the update
        would have no effect. With several processes, none knows the images of the others, so `check` detects this."""
        if self.engine.processes == 1 and not batch.weights_B.any():
            raise self._no_images(step)

    def after_step(self, step: int, batch: Batch, result: StepResult) -> None:
        """Checks the step before, and the images of step number `step` (from 1). Raises InputError as `check` does,
        and if more images are unreadable than the config allows."""
        self.check()
        self.step, self.unchecked = step, result
        self.without_images = not batch.weights_B.any()
        for i in batch.ids_B[batch.weights_B == 0]:
            if int(i) not in self.undecodable:
                self.undecodable[int(i)] = self.split.name(int(i))
                logger.info("step %d: cannot read %s; skipped (weight 0)", step, self.undecodable[int(i)])
        if len(self.undecodable) > self.engine.config.undecodable_limit:
            raise InputError(
                f"step {step}: {len(self.undecodable)} images of {self.split.title} cannot be read (the first: "
                f"{next(iter(self.undecodable.values()))}); fix or remove them, or raise undecodable_limit"
            )

    def check(self) -> None:
        """Raises InputError if the last step had no valid update and no more updates may be skipped; the engine has
        kept the state before it, which is saved."""
        if self.unchecked is None:
            return
        result, self.unchecked = self.unchecked, None
        self.stop_requested = int(result.stop_requests) > 0
        if self.without_images and float(result.loss) == 0 == result.gradient_norm:  # so it is in all processes
            raise self._no_images(self.step)
        if not (invalid := result.invalid(self.engine.trained, self.engine.config.loss_limit)):
            return
        examples = [self.split.name(int(i)) for i in self.batches.ids(self.step - 1)]
        what = self._described(result, invalid)
        self.skipped += 1
        if self.skipped <= self.engine.skippable:
            self.metrics.write(self.step, left_out=invalid, examples=examples)
            logger.info(
                "step %d: %s; update skipped (%d of at most %d)", self.step, what, self.skipped, self.engine.skippable
            )
            return
        self.failed = True
        self._save(self.step - 1)
        self.metrics.write(self.step, not_finite=invalid, examples=examples)
        raise InputError(
            f"step {self.step}: {what}; examples {abbreviate(examples, most=4)} (all in {METRICS}); the state before "
            f"is saved in {self.run.folder}; fix the data, or continue from there with a lower learning rate (vit "
            "finetune --init)"
        )

    def _no_images(self, step: int) -> InputError:
        """The error for an update without images."""
        names = [self.split.name(int(i)) for i in self.batches.ids(step - 1)]
        return InputError(
            f"step {step}: none of the {len(names)} images of its batch can be read ({abbreviate(names, most=4)}); fix "
            "or remove them: an update without images trains nothing"
        )

    def _described(self, result: StepResult, invalid: list[str]) -> str:
        """The reason why an update is invalid, as text."""
        gradients, loss = [name for name in invalid if name != "loss"], float(result.loss)
        text = f"loss {loss:.4g}"
        if "loss" in invalid and np.isfinite(loss):
            text += f" has exploded (limit {self.engine.config.loss_limit:.4g})"
        return f"{text}, gradients of {abbreviate(gradients, most=4)} not finite" if gradients else text

    def _save(self, step: int) -> None:
        self.run.save(self.engine, step)
        self.run.wait_until_saved(self.engine)
