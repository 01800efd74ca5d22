"""`vit completion`"""

from typing import Annotated, Literal

from cyclopts import Parameter

Shell = Literal["bash", "zsh", "fish", "powershell"]


def completion(shell: Shell | None = None, /, *, install: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Print or install completion of commands and options for a shell.

    Examples:
        vit completion --install
        vit completion zsh > ~/.zfunc/_vit

    Args:
        shell: The shell (default: the one that runs now).
        install: Write the script to the folder where the shell looks for it, and add it to the shell's start-up file.
    """
    from cyclopts.completion.detect import ShellDetectionError

    from vit_cli.application import completing
    from vit_core.errors import InputError

    app = completing()
    try:
        if not install:
            print(app.generate_completion(shell=shell))
            return 0
        print(app.install_completion(shell=shell))
    except ShellDetectionError:
        raise InputError("vit completion: which shell? expected one of bash, zsh, fish, powershell") from None
    return 0
