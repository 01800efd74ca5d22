"""Ctrl-C ends `vit` at any time with one line and exit status 130.

Python's own handler raises KeyboardInterrupt between any two bytecodes. This prints a traceback while modules are
imported, and is lost if an exception cannot propagate: in a destructor, in a callback from C, in an exit handler.
"""

import os
import signal
import sys
import threading
from types import FrameType

STATUS = 128 + signal.SIGINT
GRACE_SECONDS = 5.0
"""Time for a command to clean up after Ctrl-C (temporary files, worker processes) before the process is ended."""


class Interrupts:
    """The handler of SIGINT for one run of `vit`; it stores whether a signal was received."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.received = False
        self.unwinding_helps = False
        """Whether a command is running, so that KeyboardInterrupt lets it clean up."""

    def install(self) -> None:
        """Handles SIGINT from now on. Does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            os._exit(STATUS)  # a forked worker: the parent process prints the line
        if self.received or not self.unwinding_helps:
            leave_now()
        self.received = True
        sys.unraisablehook = self._report_unraisable
        timer = threading.Timer(GRACE_SECONDS, leave_now)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def _report_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Prints no traceback if the interrupt cannot propagate; the timer then ends the command."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)


def leave_now() -> None:
    """Ends the process at once, without cleaning up."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    os.write(2, f"{show_cursor}vit: interrupted\n".encode())
    os._exit(STATUS)
