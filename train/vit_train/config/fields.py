"""Names of a schema's fields, nested ones written with dots ("optimizer.beta1")."""

from collections.abc import Iterator, Mapping
from typing import Any

from vit_core.schema import Schema


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def leaf_fields(schema: type[Schema], prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of a schema and of the schemas in it."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Schema):
            yield from leaf_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
