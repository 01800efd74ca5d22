"""SIGINT and SIGTERM as a wish to stop, which long tasks look at between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

StopSignal = Callable[[], int | None]
"""Gives the number of the signal that arrived, or None."""


class StoppedBySignal(Exception):
    """A task that ended before its time because a signal had arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        """The signal; programs exit with 128 + number."""


def never() -> int | None:
    """A StopSignal of a task that no signal stops."""
    return None


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Within the context, SIGINT and SIGTERM are only noted, to be asked for; a second signal is handled as before."""
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note_signal(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, note_signal)
        yield lambda: arrived[0] if arrived else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
