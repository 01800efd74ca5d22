"""`vit inspect`"""

import json as json_text
import warnings
from typing import Annotated

from cyclopts import Parameter

from vit_cli import console
from vit_cli.option_types import AS_RECORDED, Place, ReadingOptions
from vit_cli.reports.inspection import print_description, print_suspicious
from vit_core.checkpoints import inspection


def inspect(
    source: Place,
    /,
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
    reading: ReadingOptions = AS_RECORDED,
) -> int:
    """Show what a checkpoint of any format contains.

    Prints the format, how images are prepared, the model's config, the number of parameters of each module, their
    types, and values that look wrong: parameters that are not finite, are all zeros or have outliers.

    Examples:
        vit inspect ViT-B_16.npz
        vit inspect runs/cifar10 --json

    Args:
        source: Checkpoint file or folder of any format, training run or saved step; also an address in a store or in
            the Hub (hf://USER/MODEL).
        json: Print one JSON object instead of tables.
        reading: How the checkpoint is opened.
    """
    checkpoint = reading.open(source)
    found = inspection.description(checkpoint)
    if not json:
        print_description(found, checkpoint.config)
    with warnings.catch_warnings(action="ignore"), console.progress(shown=not json) as bar:  # the notes have them
        task = bar.add_task("reading every array", total=len(checkpoint.arrays), note="")
        lines = []
        for line in inspection.scan(checkpoint):
            lines += [line] if line else []
            bar.advance(task)
    if json:
        print(json_text.dumps({**found, "suspicious": lines}, indent=2))
    else:
        print_suspicious(lines)
    return 0
