"""Reports keys of a config file that are not read here and might change the model."""

from collections.abc import Collection, Mapping
from typing import Any

from vit_core.errors import abbreviate


def unknown_keys(file: str, fields: Mapping[str, Any], known: Collection[str], changed: str = "model") -> list[str]:
    """A list with one note on the keys of `fields` that are not in `known`; empty if all are known.

    file: the place of the keys, for the note ("config.json: pretrained_cfg"). known: keys that are read, or that cannot
    change the model. changed: what an unknown key might change. Keys with an empty value (null, an empty object, list
    or text) are ignored.
    """
    unknown = [str(key)[:60] for key, value in fields.items() if key not in known and not _is_empty(value)]
    return [f"{file}: unknown keys, which may change the {changed}: {abbreviate(unknown)}"] if unknown else []


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, dict | list | tuple | str) and not value)
