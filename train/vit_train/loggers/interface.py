"""The interface between a run and a service that shows its curves."""

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
        """Adds values to the curves at a step (from 1; steps never decrease).

        A run that resumes first repeats everything logged up to its saved step, and then logs later steps again. Values
        that the service already has are skipped. Raises LoggerError if the service fails, OSError if a file cannot be
        written.
        """

    def flush(self) -> None:
        """Writes everything logged so far to the files, so that they can be copied."""

    def close(self, complete: bool) -> None:
        """Ends logging in this process. complete: whether the run ended without an error."""


@dataclass(frozen=True)
class LoggedRun:
    """The run for which a logger is opened."""

    run: Location
    """The run's folder."""
    folder: Path
    """Folder on this machine where the run's files are written: the run's folder, unless that is in a store."""
    start: int
    """The saved step from which it resumes; 0 for a new run."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Dotted name of a field of the run's config -> its value."""

    @property
    def name(self) -> str:
        """The run's name in the service."""
        return self.run.name


class LoggerError(InputError):
    """A service cannot be used; the message is one line. A run that has begun continues without the service."""


@contextmanager
def one_line_errors(service: str) -> Iterator[None]:
    """Raises every exception of a service's library as a LoggerError that names the service."""
    try:
        yield
    except LoggerError:
        raise
    except Exception as error:
        raise LoggerError(f"{service}: {one_line(shortened(str(error))) or type(error).__name__}") from None
