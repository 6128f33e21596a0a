"""The rows of a request: from JSON to columns, refused in one paragraph where they are not what the model takes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.engine.schema import column_problem, require, some_of
from batch_explain.errors import BadDataError, InputError
from batch_explain.storage.dataset import InputFile
from batch_explain.teachers.columns import Column

FORMS = (
    'a list of records ([{"age": 41, …}, …]), columns ({"age": [41, …], …}), or pandas\' split form ({"columns": '
    '["age", …], "data": [[41, …], …]}), each alone or as "data" or "input_data" of an object'
)
_HERE = "the request"
_WRAPPERS = ("data", "input_data")
_SPLIT = {"columns", "data", "index"}
_NUMBERS = {int, float, type(None)}
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Rows:
    """Rows of a request.

    Parameters
    ----------
    columns : dict
        The columns that the model needs -> a value for each row, as JSON has them.
    count : int
        Number of rows.
    """

    columns: dict[str, list[Any]]
    count: int

    def numbers(self) -> np.ndarray | None:
        """All values as numbers, shape (row, column), null as NaN; None where some are not (or exceed a double)."""
        values = list(self.columns.values())
        if not all(set(map(type, column)) <= _NUMBERS for column in values):
            return None
        try:
            found = np.array(values, dtype=np.float64).T
        except OverflowError:
            return None
        return None if np.isinf(found).any() else found

    def table(self, columns: Sequence[Column], *, engineered: bool, numeric: bool) -> pa.Table:
        """The same as the engine reads it from a file.

        Parameters
        ----------
        columns : sequence of Column
            What the model needs.
        engineered : bool
            Whether these are engineered features.
        numeric : bool
            Whether the model takes numbers alone: a column of nulls is one of numbers that are missing.

        Raises
        ------
        InputError
            If a column has values of several types, or of one that cannot become what the model was trained on.
        BadDataError
            If a value has no form there.
        """
        arrays = {name: _array(name, values) for name, values in self.columns.items()}
        if numeric:
            arrays = {name: a.cast(pa.float64()) if pa.types.is_null(a.type) else a for name, a in arrays.items()}
        found = [(column.name, column_problem(column, arrays[column.name].type, engineered=engineered))
                 for column in columns]  # fmt: skip
        if problems := [f"'{name}' {problem}" for name, problem in found if problem]:
            raise InputError(
                f"{len(problems)} column{'s' * (len(problems) > 1)} of {_HERE} cannot become what the model was "
                f"trained on: {'; '.join(problems[:8])}{'; …' * (len(problems) > 8)}. Write the trained types: "
                "numbers, true or false, texts, and dates and times as texts in ISO 8601."
            )
        return pa.table(arrays)


def parse(text: str | bytes) -> Any:
    """Read JSON, and nothing that is not JSON.

    Raises
    ------
    InputError
        If it is none, or an object has two values of one name.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except ValueError as error:
        raise InputError(f"{_HERE.capitalize()} is not JSON: {str(error)[:200]}. Send {FORMS}.") from error
    except RecursionError as error:
        raise InputError(f"{_HERE.capitalize()} is nested too deeply. Send {FORMS}.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"An object of {_HERE} has '{twice}' twice. Which one is meant cannot be known: send it once.")
    return found


def _refuse_constant(name: str) -> Any:
    raise InputError(
        f"{_HERE.capitalize()} holds {name}, which JSON does not have. Write null where there is no value."
    )


def rows_of(data: Any, names: Sequence[str], *, cure: str) -> Rows:
    """Take a request's rows apart.

    Parameters
    ----------
    data : object
        As JSON has it; see :data:`FORMS`.
    names : sequence of str
        The columns that the model needs. Others are left out, as a run leaves out other columns of its files.
    cure : str
        What to do where one is missing.

    Raises
    ------
    InputError
        If it has another form, no rows, or lacks a column.
    """
    data = _unwrapped(data, set(names))
    if isinstance(data, list):
        rows = _of_records(data, names, cure)
    elif isinstance(data, dict) and _is_split(data, set(names)):
        rows = _of_split(data, names, cure)
    elif isinstance(data, dict):
        rows = _of_columns(data, names, cure)
    else:
        raise InputError(f"{_HERE.capitalize()} is {_kind(data)}. Send {FORMS}.")
    if not rows.count:
        raise InputError(f"{_HERE.capitalize()} has no rows. Send {FORMS}.")
    return rows


def _unwrapped(data: Any, names: set[str]) -> Any:
    while isinstance(data, dict) and not _is_split(data, names):
        wrapper = next((name for name in _WRAPPERS if name in data and name not in names), None)
        if wrapper is None:
            break
        if beside := [name for name in data if name != wrapper]:
            raise InputError(
                f"{_HERE.capitalize()} has {some_of(beside)} beside '{wrapper}', which mean nothing here. Leave them "
                "out."
            )
        data = data[wrapper]
    return data


def _is_split(data: dict[str, Any], names: set[str]) -> bool:
    return {"columns", "data"} <= data.keys() <= _SPLIT and not names & _SPLIT


def _of_records(records: list[Any], names: Sequence[str], cure: str) -> Rows:
    try:
        return Rows({name: [record[name] for record in records] for name in names}, len(records))
    except (KeyError, TypeError, IndexError):
        pass
    for at, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(
                f"Record {at} of {_HERE} (counted from 0) is {_kind(record)}, not an object. Send {FORMS}."
            )
    _require(dict.fromkeys(name for record in records for name in record), names, cure)
    name = next(name for name in names if any(name not in record for record in records))
    at = next(at for at, record in enumerate(records) if name not in record)
    raise InputError(
        f"Record {at} of {_HERE} (counted from 0) lacks '{name}', which others have. Write null where there is no "
        "value."
    )


def _of_split(data: Mapping[str, Any], names: Sequence[str], cure: str) -> Rows:
    columns, lines = data["columns"], data["data"]
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise InputError(f"'columns' of {_HERE} is no list of names. Send {FORMS}.")
    if not isinstance(lines, list):
        raise InputError(f"'data' of {_HERE} is {_kind(lines)}, not a list of rows. Send {FORMS}.")
    _require(columns, names, cure)
    for at, line in enumerate(lines):
        if not isinstance(line, list) or len(line) != len(columns):
            what = f"has {len(line)} values" if isinstance(line, list) else f"is {_kind(line)}"
            raise InputError(f"Row {at} of {_HERE} (counted from 0) {what}, for {len(columns)} columns. Send {FORMS}.")
    places = [columns.index(name) for name in names]
    return Rows({name: [line[at] for line in lines] for name, at in zip(names, places, strict=True)}, len(lines))


def _of_columns(data: Mapping[str, Any], names: Sequence[str], cure: str) -> Rows:
    _require(list(data), names, cure)
    found = {name: data[name] for name in names}
    if all(isinstance(values, dict) for values in found.values()):  # pandas' to_json: {column: {index: value}}
        index = {tuple(values) for values in found.values()}
        if len(index) > 1:
            raise InputError(f"The columns of {_HERE} do not have the same index. Send {FORMS}.")
        found = {name: list(values.values()) for name, values in found.items()}
    for name, values in found.items():
        if not isinstance(values, list):
            raise InputError(f"The column '{name}' of {_HERE} is {_kind(values)}, not a list. Send {FORMS}.")
    counts = {len(values): name for name, values in found.items()}
    if len(counts) > 1:
        (one, here), (other, there), *_ = counts.items()
        raise InputError(
            f"The columns of {_HERE} have different lengths: '{here}' has {one} values, '{there}' {other}."
        )
    return Rows(found, next(iter(counts)))


def _require(have: Sequence[str] | Mapping[str, Any], names: Sequence[str], cure: str) -> None:
    schema = pa.schema([(name, pa.null()) for name in have if _is_text(name)])
    file = InputFile(path=_HERE, url="", bytes=0, rows=0, row_groups=(), fingerprint="", schema=schema)
    require([file], names, {}, what="column that the model needs", cure=cure)


def _array(name: str, values: list[Any]) -> pa.Array:
    """A column; its type is that of its values."""
    try:
        array = pa.array(values)
    except OverflowError:  # JavaScript writes 1e20 as an integer
        floats = [float(v) if type(v) is int and abs(v) < 1 << 1023 else v for v in values]
        wrong = next((at for at, v in enumerate(values) if type(v) is int and floats[at] != v), None)
        if wrong is not None or not {float, type(None)} >= set(map(type, floats)):
            raise BadDataError(
                f"Column '{name}' of {_HERE} has a whole number in row {wrong or 0} (counted from 0) that neither 64 "
                "bits nor a double can hold. Send it as a text, if it is a name and no number."
            ) from None
        array = pa.array(floats)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(
            _mixed(name, values) or f"Column '{name}' of {_HERE} cannot be read: {str(error)[:200]}"
        ) from None
    if pa.types.is_floating(array.type):
        infinite = np.isinf(array.to_numpy(zero_copy_only=False))
        if infinite.any():
            raise BadDataError(
                f"Column '{name}' of {_HERE} has a number in row {int(infinite.argmax())} (counted from 0) that is too "
                "large for a double. Send a smaller one, or null where there is no value."
            )
    return array


def _mixed(name: str, values: list[Any]) -> str | None:
    """What a column of several types, or of broken text, is called."""
    kinds: dict[str, int] = {}
    for at, value in enumerate(values):
        if isinstance(value, str) and not _is_text(value):
            return f"Column '{name}' of {_HERE} has a text in row {at} (counted from 0) that is no Unicode. Send UTF-8."
        if value is not None:
            kinds.setdefault(_kind(value), at)
    if len(kinds) < 2:
        return None
    (one, here), (other, there), *_ = kinds.items()
    return (
        f"Column '{name}' of {_HERE} has {one} in row {here} and {other} in row {there} (counted from 0). A column has "
        "one type: send what the model was trained on."
    )


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
