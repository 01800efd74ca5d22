"""Names of a schema's fields, nested ones written with dots ("optimizer.beta1")."""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any, TypeVar

from vit_core.errors import unknown_name
from vit_core.schema import Schema

Config = TypeVar("Config", bound=Schema)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def field_value(schema: Schema, name: str) -> Any:
    """The value of a field by its dotted name."""
    return reduce(getattr, name.split("."), schema)


def changed_fields(schema: Schema, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that have another value than their default, and of those that have no default."""
    values = dict(schema)
    for name, field in type(schema).model_fields.items():
        if isinstance(values[name], Schema):
            yield from changed_fields(values[name], f"{prefix}{name}.")
        elif field.is_required() or values[name] != field.get_default(call_default_factory=True, validated_data=values):
            yield f"{prefix}{name}"


def with_fields(schema: Config, values: Mapping[str, Any]) -> Config:
    """A copy with other values of some fields, by dotted name. Raises InputError for a name that is no field."""
    changes: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    for section in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        if not isinstance(inner := getattr(schema, section, None), Schema):
            raise unknown_name("section of the config", section, type(schema).model_fields)
        nested = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{section}.")}
        changes[section] = with_fields(inner, nested)
    return schema.replace(**changes) if changes else schema


def leaf_fields(schema: type[Schema], prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of a schema and of the schemas in it."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Schema):
            yield from leaf_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
