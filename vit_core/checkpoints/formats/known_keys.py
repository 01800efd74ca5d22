"""Reports keys of a sidecar file that nothing here reads and that might change the model."""

from collections.abc import Collection, Mapping
from typing import Any

from vit_core.errors import abbreviate


def unknown_keys(file: str, fields: Mapping[str, Any], known: Collection[str], changed: str = "model") -> list[str]:
    """One note with the keys of `fields` that are not in `known`; none where all are known.

    file: what the keys are from, for people ("config.json: pretrained_cfg"). known: keys that are read, or that cannot
    change the model. changed: what an unknown key might change. A key without a value (null, an empty object, list or
    text) changes nothing.
    """
    unknown = [str(key)[:60] for key, value in fields.items() if key not in known and not _is_empty(value)]
    return [f"{file}: keys unknown here, which may change the {changed}: {abbreviate(unknown)}"] if unknown else []


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, dict | list | tuple | str) and not value)
