"""The mappings that a file has beside its arrays, in which training scripts state what the model and its images are."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

_DEPTH = 4
"""Levels of mappings in which names are looked for."""
_OTHERS = re.compile(
    r"text|txt|language|teacher|student|decoder|predictor|head|neck|fusion|pool|probe|adapter|former|loss|optim|sched"
    r"|state_dict",
    re.IGNORECASE,
)
"""Names of mappings about something else than the image model."""
_LONGEST_JSON = 2**20


def stated_mappings(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping in which names are looked for, with the keys that lead to it; the outermost first."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), values)]
    for _ in range(_DEPTH):
        yield from level
        inner = [((*path, str(name)), _inside(value)) for path, above in level for name, value in above.items()]
        level = [(path, found) for path, found in inner if not _OTHERS.search(path[-1]) and 0 < len(found) < 10_000]


def _inside(value: Any) -> Mapping[str, Any]:
    """The values that a value holds: a mapping, the stand-in for an argparse.Namespace, a text in JSON."""
    if isinstance(value, str) and value.startswith("{") and len(value) < _LONGEST_JSON:
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    inner = getattr(value, "attributes", value)
    return inner if isinstance(inner, Mapping) else {}
