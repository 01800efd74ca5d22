"""`--profile`: some steps of a run in a file that TensorBoard, XProf or Perfetto opens."""

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from vit_core.storage import Location, is_local
from vit_train.engine import Engine

logger = logging.getLogger("vit")

FOLDER = "profile"
"""Name of the folder of the profiles, in the run's folder."""
FIRST = 5
"""Number of steps before the profiled ones; they compile, and fill memory and queues."""


class Profile:
    """Profiles `engine.config.profile` of the steps from `start` to `end` in process 0, and logs the path.

    As a context: a profile that has begun is written when training ends or an error is raised. The profile of a run in
    a store is in a temporary folder of this machine.
    """

    def __init__(self, engine: Engine, run: Location, start: int, end: int) -> None:
        self.engine, self.run, self.recording = engine, run, ExitStack()
        self.folder: Path | None = None
        wanted = engine.config.profile if engine.process == 0 else 0
        self.first = max(min(start + FIRST, end - wanted), start)
        self.last = min(self.first + wanted, end) if wanted else 0

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def before_step(self, step: int) -> None:
        """Begins to record where step number `step` (from 0) is the first."""
        if self.last and step == self.first:
            self.folder = self.run / FOLDER if is_local(self.run) else Path(tempfile.mkdtemp(prefix="vit-profile-"))
            self.recording.enter_context(self.engine.profiled(self.folder))

    def ends_after(self, step: int) -> bool:
        """Whether step number `step` (from 1) is the last that is recorded: `stop` has to follow, once the devices have
        finished it."""
        return self.folder is not None and step == self.last

    def stop(self) -> None:
        """Writes what was recorded."""
        if self.folder is not None:
            folder, self.folder = self.folder, None
            self.recording.close()
            opened = self.engine.profile_opened_by
            logger.info("profile of steps %d to %d: %s; open with %s", self.first + 1, self.last, folder, opened)
