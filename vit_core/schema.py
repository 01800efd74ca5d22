"""The base class of every schema in this project: frozen, no unknown keys, errors in one line."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from vit_core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

Flag = Annotated[bool, Field(strict=True)]
"""true or false; nothing is converted to it."""
Positive = Annotated[int, Field(ge=1, le=2**24, strict=True)]
"""A count of at least 1; the upper limit refuses absurd values of a damaged file."""
Count = Annotated[int, Field(ge=0, le=2**24, strict=True)]
"""A count of at least 0."""
NonNegative = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
"""A probability."""
Real = Annotated[float, Field(strict=True)]


class Schema(BaseModel):
    """A frozen pydantic model whose constructor raises InputError: all faults and the nearest known key in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InputError(one_line(error, type(self))) from None

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """An instance from untrusted data (parsed JSON). Raises InputError that begins with `where`, its origin."""
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected an object of {cls.__name__} fields, found {type(data).__name__}")
        try:
            return cls(**data)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: "CoreSchema", handler: "GetJsonSchemaHandler"
    ) -> "JsonSchemaValue":
        """The JSON schema, with the docstrings below the fields as their descriptions."""
        from vit_core.field_docstrings import field_docstrings

        json_schema = handler(core_schema)
        properties = handler.resolve_ref_schema(json_schema).get("properties", {})
        for name, text in field_docstrings(cls).items():
            properties[name].setdefault("description", text)
        return json_schema

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated as a whole again."""
        return type(self)(**{**self.model_dump(), **changes})


def one_line(error: ValidationError, schema: type[BaseModel]) -> str:
    """All faults of a pydantic error in one line, with the nearest known key for an unknown one."""
    faults = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"] if not _is_branch(part))
        if fault["type"] == "extra_forbidden":
            faults.append(str(unknown_name("key", path, schema.model_fields)))
        else:
            message = expectation(fault)
            value = repr(fault["input"])
            shown = value if len(value) <= 60 else value[:60] + "..."
            found = f", found {shown}" if path and not isinstance(fault["input"], dict) else ""
            faults.append((f"{path}: " if path else "") + message + found)
    return "; ".join(dict.fromkeys(faults)).replace("\n", " ")


def expectation(fault: ErrorDetails) -> str:
    """The expected value, as text for a message: "expected 1 or more"."""
    limits = {name: _number_text(limit) for name, limit in fault.get("ctx", {}).items()}
    match fault["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return "expected an integer"
        case "float_parsing" | "float_type":
            return "expected a number"
        case "finite_number":
            return "expected a finite number"
        case "bool_parsing" | "bool_type":
            return "expected true or false"
        case "string_type":
            return "expected text"
        case "missing":
            return "missing"
        case "greater_than_equal":
            return f"expected {limits['ge']} or more"
        case "greater_than":
            return f"expected more than {limits['gt']}"
        case "less_than_equal":
            return f"expected at most {limits['le']}"
        case "less_than":
            return f"expected less than {limits['lt']}"
        case _:
            return fault["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")


def _number_text(limit: object) -> str:
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)


def _is_branch(part: object) -> bool:
    """Whether a part of an error's location names a branch of a union, by pydantic's wording, not a field."""
    return isinstance(part, str) and ("[" in part or part in ("int", "str", "float", "none"))
