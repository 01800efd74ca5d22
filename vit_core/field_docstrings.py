"""The docstrings below the fields of a schema, read from its source when they are asked for.

pydantic's use_attribute_docstrings reads them when each class is made, although most commands never print one.
"""

import ast
import inspect
import textwrap
from contextlib import suppress
from functools import cache
from itertools import pairwise

from pydantic import BaseModel


@cache
def field_docstrings(schema: type[BaseModel]) -> dict[str, str]:
    """Field -> its docstring, also of the classes that a schema is based on.

    Without the fields that have none, and without those of a class whose source is not there.
    """
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            with suppress(OSError, TypeError):  # installed without its source, or made by a program
                found |= _in_source(textwrap.dedent(inspect.getsource(base)))
    return {name: text for name, text in found.items() if name in schema.model_fields}


def _in_source(text: str) -> dict[str, str]:
    (definition,) = ast.parse(text).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
