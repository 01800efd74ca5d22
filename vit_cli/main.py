"""The entry point of the `vit` command. It imports almost nothing, so that Ctrl-C is handled from the start."""

import sys

from vit_cli.interrupts import Interrupts


def main() -> None:
    """Runs `vit` with the words of sys.argv and ends the process.

    Exit status: 0 on success; 1 if a comparison fails; 2, with one line, on bad input; 128 + a signal's number.
    """
    interrupts = Interrupts()
    interrupts.install()
    from vit_cli.application import run

    sys.exit(run(sys.argv[1:], interrupts))
