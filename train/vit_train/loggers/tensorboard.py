"""TensorBoard: events in the run's folder."""

from collections.abc import Mapping

from vit_train.loggers.interface import LoggedRun

EVENTS = "tensorboard"
"""Name of the folder of the events, in the run's folder."""


class TensorBoard:
    """Writes TensorBoard events. TensorBoard itself ignores events of earlier processes after the saved step."""

    def __init__(self, run: LoggedRun) -> None:
        from tensorboardX import SummaryWriter  # slow: it imports PyTorch where that is installed

        self._start = run.start
        # The suffix distinguishes files made in the same second; TensorBoard ignores events of earlier files from the
        # purge step on.
        self._events = SummaryWriter(
            str(run.folder / EVENTS), purge_step=run.start + 1, filename_suffix=f".{run.start}"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the curves at a step, unless an earlier process wrote this step."""
        if step > self._start:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes the file of events complete."""
        self._events.flush()

    def close(self, complete: bool) -> None:
        """Closes the file of events."""
        self._events.close()
