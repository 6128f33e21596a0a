"""What an online endpoint's ``/swagger.json`` says of requests and answers."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from batch_explain.teachers.columns import Column

if TYPE_CHECKING:
    from batch_explain.integrations.online import Scorer

_TYPES: dict[str, dict[str, Any]] = {
    "f": {"type": "number", "format": "double"},
    "i": {"type": "integer", "format": "int64"},
    "u": {"type": "integer", "format": "int64"},
    "b": {"type": "boolean"},
    "M": {"type": "string", "format": "date-time"},
    "O": {"type": "string"},
}
_NUMBER = {"type": "number", "format": "double", "x-nullable": True}


def request_schema(scorer: "Scorer") -> dict[str, Any]:
    """Schema of a request's rows, which OpenAPI 2 and 3 both read; ``example`` holds some."""
    columns = scorer.artifacts.columns
    return {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {column.name: _of_column(column, scorer) for column in columns},
            "required": [column.name for column in columns],
        },
        "example": scorer.example,
    }


def answer_schema(scorer: "Scorer") -> dict[str, Any]:
    """Schema of an answer; ``example`` is the answer to the request's, where the model takes that."""
    text, numbers = {"type": "string"}, _list(_NUMBER)
    importances = _list(numbers) if scorer.artifacts.labels is None else _list(_list(numbers))
    label = text if scorer.artifacts.task != "regression" else _NUMBER
    properties = {
        "predictions": {**_list(label), "x-nullable": True},
        "classes": _list(text),
        "probabilities": _list(numbers),
        "engineered_local_importance_values": importances,
        "raw_local_importance_values": {**importances, "x-nullable": True},
        "engineered_features": _list(text),
        "raw_features": {**_list(text), "x-nullable": True},
        "outputs": {**_list(text), "x-nullable": True},
        "expected_values": numbers,
        "margins": _list(numbers),
        "reasons": _list(_list({"type": "object", "properties": {"feature": text, "importance": _NUMBER}})),
    }
    example: dict[str, Any] = {}
    with suppress(Exception):  # what is made up need not be what the model takes
        example = scorer.score(scorer.example)
    return {"type": "object", "properties": properties, "example": example}


def describe(run: Callable[..., Any], parameter: str, scorer: "Scorer") -> None:
    """Register the schemas of a scoring script's ``run``, which the server asks for after ``init``.

    The decorators are called, and what they return is left: around ``run`` they would have the server refuse a bare
    list of records, which the SDK's own examples send.
    """
    from inference_schema.parameter_types.abstract_parameter_type import AbstractParameterType
    from inference_schema.schema_decorators import input_schema, output_schema

    class Described(AbstractParameterType):  # type: ignore[misc]
        def __init__(self, schema: dict[str, Any]) -> None:
            super().__init__(schema["example"])
            self._schema = schema

        def deserialize_input(self, input_data: Any) -> Any:
            return input_data

        def input_to_swagger(self) -> dict[str, Any]:
            return self._schema

        def supported_versions(self) -> list[str]:
            return ["2.0", "3.0", "3.1"]

    input_schema(parameter, Described(request_schema(scorer)), convert_to_provided_type=False)(run)
    output_schema(Described(answer_schema(scorer)))(run)


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _of_column(column: Column, scorer: "Scorer") -> dict[str, Any]:
    if column.dtype is not None:
        return {**_TYPES[column.dtype.kind], "x-nullable": True}
    return dict(_NUMBER) if scorer.artifacts.takes_engineered else {"description": "as the model was trained on it"}
