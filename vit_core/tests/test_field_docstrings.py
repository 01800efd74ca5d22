"""The docstrings of a schema's fields, held to pydantic's own reading of them."""

from pydantic import BaseModel, ConfigDict

from vit_core.config import ViTConfig
from vit_core.field_docstrings import field_docstrings
from vit_core.preprocess import Preprocessing
from vit_core.schema import Schema


class Theirs(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    first: int = 1
    """One line."""
    second: int = 2
    third: int = 3
    """Two
    lines."""


class Derived(Theirs):
    third: int = 4
    """Another."""
    fourth: int = 5
    """Its own."""


def test_they_are_those_of_pydantic() -> None:
    for schema in (Theirs, Derived):
        descriptions = {name: field.description for name, field in schema.model_fields.items() if field.description}
        assert field_docstrings(schema) == descriptions
    assert field_docstrings(Derived)["third"] == "Another."


def test_the_json_schema_has_them() -> None:
    for schema in (ViTConfig, Preprocessing):
        properties, docstrings = schema.model_json_schema()["properties"], field_docstrings(schema)
        assert {name: properties[name]["description"] for name in docstrings} == docstrings
        assert len(docstrings) > 8


def test_a_class_without_source_has_none() -> None:
    made: dict[str, type[Schema]] = {}
    exec("class Made(Schema):\n    first: int = 1\n    'One line.'", {"Schema": Schema, "__name__": "made"}, made)
    assert field_docstrings(made["Made"]) == {}
    assert made["Made"].model_json_schema()["properties"]["first"]["default"] == 1
