"""What a run needs of a service that shows its curves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vit_core.errors import InputError, one_line, shortened
from vit_core.storage import Location


class Logger(Protocol):
    """A service that shows the curves of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the curves at a step (from 1; none before an earlier one).

        A run that resumes repeats here all that it had logged up to its saved step, and then logs some steps again that
        came after it: what the service has already, this skips. LoggerError where the service fails, OSError where a
        file cannot be written.
        """

    def flush(self) -> None:
        """Makes files complete up to here, so that they can be copied."""

    def close(self, complete: bool) -> None:
        """Ends logging in this process. complete: whether the run ended without an error."""


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is opened for."""

    run: Location
    """The run's folder."""
    folder: Path
    """Where its files are written on this machine: the same folder, unless that is in a store."""
    start: int
    """The saved step at which it resumes; 0: it begins."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Dotted name of a field of the run's config -> its value."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.run.name


class LoggerError(InputError):
    """A service that cannot be used, in one line. Where a run has begun already, it goes on without the service."""


@contextmanager
def one_line_errors(service: str) -> Iterator[None]:
    """Raises whatever a service's library raises as a LoggerError that names the service."""
    try:
        yield
    except LoggerError:
        raise
    except Exception as error:
        raise LoggerError(f"{service}: {one_line(shortened(str(error))) or type(error).__name__}") from None
