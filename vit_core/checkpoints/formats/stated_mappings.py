"""Finds the mappings outside the arrays of a file in which training scripts describe the model and its images."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

_DEPTH = 4
"""Number of levels of nested mappings that are searched."""
OTHERS = re.compile(
    r"text|txt|language|teacher|student|decoder|predictor|head|neck|fusion|pool|probe|adapter|former|loss|optim|sched"
    r"|state_dict",
    re.IGNORECASE,
)
"""Names of mappings that are not about the image model."""
_LONGEST_JSON = 2**20


def stated_mappings(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping that is searched, with the keys that lead to it; the outermost first."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), values)]
    for _ in range(_DEPTH):
        yield from level
        inner = [((*path, str(name)), _inside(value)) for path, above in level for name, value in above.items()]
        level = [(path, found) for path, found in inner if not OTHERS.search(path[-1]) and 0 < len(found) < 10_000]


def _inside(value: Any) -> Mapping[str, Any]:
    """The values in a mapping, in the stand-in for an argparse.Namespace, or in a text in JSON; empty for anything
    else."""
    if isinstance(value, str) and value.startswith("{") and len(value) < _LONGEST_JSON:
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    inner = getattr(value, "attributes", value)
    return inner if isinstance(inner, Mapping) else {}
