"""The JSON files of the `vit bench` commands that measure once (those of `model` and `program` are continued)."""

import json
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from vit_cli.option_types import OptionalTarget
from vit_core.storage import Location, check_new_file, json_report, staged_files

JsonFile = Annotated[OptionalTarget, Parameter(metavar="FILE")]
"""The option --json."""
WRITTEN = json_report("a file of vit bench", "command", "settings", "machine", "results")
"""The files that --json replaces."""


def check_results_file(file: Location | None) -> None:
    """Raises InputError, before anything is measured, if the file of --json cannot be written."""
    if file is not None:
        check_new_file(file, "--json", WRITTEN)


def write_results(file: Location | None, command: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Replaces the file of --json, if there is one: all figures, each by its name in the code, with the machine.

    command: the name after `vit bench`. settings: its options. results: values of JSON and dataclasses of them.
    """
    if file is None:
        return
    from vit_cli.benchmarks.machine import this_machine  # starts both frameworks

    machine = this_machine().model_dump(mode="json")
    report = {"command": f"vit bench {command}", "settings": settings, "machine": machine, "results": results}
    with staged_files(file.parent, (file.name,)) as stage:
        (stage / file.name).write_text(json.dumps(report, indent=1, default=asdict) + "\n")
