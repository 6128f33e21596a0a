"""Conditions of ``--filter`` against what files hold: types, folders' keys, row groups' statistics, rows."""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batch_explain.errors import OptionError
from batch_explain.filters import Condition, Filter, Literal
from batch_explain.storage.hive import Keys, scalar_of

_COMPARE: dict[str, Callable[..., Any]] = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


def check_types(where: Filter, schema: pa.Schema, keys: Mapping[str, pa.DataType], path: str) -> None:
    """Refuse a filter that a file's columns, and its folders' keys, cannot be compared by.

    Raises
    ------
    OptionError
        If a column is not there, or of another type than what it is compared with.
    """
    for condition in where.conditions:
        name = condition.column
        if name in keys:
            kind = keys[name]
        elif (places := schema.get_all_field_indices(name)) and len(places) == 1:
            kind = schema.field(places[0]).type
        else:
            why = f"is there {len(places)} times" if places else "is not there"
            raise OptionError(
                f"--filter compares the column '{name}', which {why} in {path}. It has "
                f"{', '.join(map(repr, [*schema.names[:10], *keys]))}{' …' * (len(schema.names) > 10)}."
            )
        for value in condition.values:
            _scalar(condition, value, kind)


def key_may_hold(where: Filter, keys: Keys, types: Mapping[str, pa.DataType]) -> bool:
    """Whether a file's keys leave it any row."""
    held = {key: pa.repeat(scalar_of(value, types[key]), 1) for key, value in keys}
    return all(_mask(each, held[each.column])[0] for each in where.conditions if each.column in held)


def rows_that_hold(where: Filter, table: pa.Table) -> np.ndarray:
    """Positions of the rows for which all conditions are true; null, and NaN, compare as not true."""
    found = np.full(table.num_rows, True)
    for condition in where.conditions:
        found &= _mask(condition, table[condition.column])
    return np.flatnonzero(found)


def groups_without(where: Filter, stream: BinaryIO, schema: pa.Schema) -> tuple[int, ...]:
    """Row groups of a parquet file whose statistics say that no row is wanted; none where they do not tell."""
    try:
        expression = _expression(where, schema)
        fragment = ds.ParquetFileFormat().make_fragment(pa.PythonFile(stream, mode="r"))
        kept = {group.id for piece in fragment.split_by_row_group(expression) for group in piece.row_groups}
        return tuple(group for group in range(fragment.num_row_groups) if group not in kept)
    except (pa.ArrowException, TypeError, OptionError):  # of types that have no comparison, as the rows will say
        return ()


def _expression(where: Filter, schema: pa.Schema) -> pc.Expression:
    found = pc.scalar(True)
    for condition in where.conditions:
        kind = schema.field(condition.column).type
        if not (pa.types.is_dictionary(kind) or pa.types.is_decimal(kind)):
            found = found & _holds(condition, pc.field(condition.column), kind)
    return found


def _mask(condition: Condition, values: Any) -> np.ndarray:
    """Where a condition is true of a column's values."""
    values = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if str(values.type) == "string_view":  # most kernels lack views
        values = values.cast(pa.string())
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    true = _holds(condition, values, values.type)
    if condition.values and pa.types.is_floating(values.type):
        true = pc.and_(true, pc.invert(pc.is_nan(values)))
    return np.asarray(pc.fill_null(true, False).to_numpy(), dtype=bool)


def _holds(condition: Condition, operand: Any, kind: pa.DataType) -> Any:
    """A condition of an array's values, or of a field as an expression."""
    if condition.operator == "is null":
        return pc.is_null(operand)
    if condition.operator == "is not null":
        return pc.is_valid(operand)
    if pa.types.is_null(kind):
        return pc.is_valid(operand)
    if condition.operator == "in":
        scalars = [scalar for value in condition.values if (scalar := _scalar(condition, value, kind)[0]) is not None]
        if isinstance(operand, pc.Expression):  # of which older pyarrow takes is_in for anything
            return functools.reduce(operator.or_, [operand == scalar for scalar in scalars], pc.scalar(False))
        return pc.is_in(operand, value_set=pa.array([scalar.as_py() for scalar in scalars], kind))
    scalar, compare = _scalar(condition, condition.values[0], kind)
    if scalar is None:  # a whole number that a fraction is compared with
        return pc.is_valid(operand) if compare == "!=" else pc.is_null(pc.is_null(operand))
    return _COMPARE[compare](operand, scalar)


def _scalar(condition: Condition, value: Literal, kind: pa.DataType) -> tuple[pa.Scalar | None, str]:
    """A value in the column's type, and the operator; None where no value of that type is equal to it."""
    compare = condition.operator
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    kind = pa.string() if str(kind) == "string_view" else kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_null(kind):
        return None, compare
    if pa.types.is_integer(kind) and number:
        if isinstance(value, float) and not value.is_integer():
            below = compare in (">", ">=")
            compare = {">": ">", ">=": ">", "<": "<", "<=": "<"}.get(compare, compare)
            if compare not in ("<", ">"):
                return None, compare
            value = math.floor(value) if below else math.ceil(value)
        try:
            return pa.scalar(int(value), kind), compare
        except (pa.ArrowInvalid, OverflowError):
            raise OptionError(
                f"--filter compares '{condition.column}' with {value}, which its type, {kind}, cannot hold. Leave the "
                "condition out, or write another number."
            ) from None
    if (pa.types.is_floating(kind) or pa.types.is_decimal(kind)) and number:
        return pa.scalar(float(value), pa.float64() if pa.types.is_decimal(kind) else kind), compare
    if pa.types.is_boolean(kind) and isinstance(value, bool) and compare in ("=", "!=", "in"):
        return pa.scalar(value), compare
    if (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and isinstance(value, str):
        return pa.scalar(value, kind), compare
    if (pa.types.is_timestamp(kind) or pa.types.is_date(kind)) and isinstance(value, str):
        return _moment(condition, value, kind), compare
    needs = {"bool": "true or false, by = or !="}.get(str(kind), "a number")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        needs = "a text, in single quotes"
    elif pa.types.is_temporal(kind):
        needs = "a date or time in single quotes, such as '2024-12-31' or '2024-12-31 23:59:59'"
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
        needs = "nothing: columns of this type have no comparison but is null"
    shown = f"'{value}'" if isinstance(value, str) else str(value).lower()
    raise OptionError(
        f"--filter compares '{condition.column}', whose type is {kind}, with {shown} by {compare}. It can be compared "
        f"with {needs}."
    )


def _moment(condition: Condition, text: str, kind: pa.DataType) -> pa.Scalar:
    """A date or time; where the column has a zone, in UTC."""
    try:
        plain = pa.array([text]).cast(pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else pa.timestamp("ns"))
        moment = plain.cast(kind) if pa.types.is_date(kind) else plain.cast(pa.int64()).cast(kind)
        if pa.types.is_date(kind) and moment.cast(plain.type) != plain:
            raise pa.ArrowInvalid("a time of the day")
    except pa.ArrowInvalid:
        raise OptionError(
            f"--filter compares '{condition.column}', whose type is {kind}, with '{text}', which is none. Write it as "
            "'2024-12-31' or '2024-12-31 23:59:59', no finer than the column."
        ) from None
    return moment[0]
