"""Raw columns: from what stands in the file to what the model was trained on, exactly or not at all.

The Azure stack coerces in silence (text that is no number becomes NaN, 1.5 becomes 1, a null boolean becomes False)
or refuses a whole batch for one value. Here a value either becomes the trained type without loss, or it is named.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = {"bool", "integer", "float", "text", "null"}
_BECOMES: dict[str, set[str]] = {
    "integer": _NUMBER,
    "float": _NUMBER,
    "bool": {"bool", "null"},
    # integers are refused: AutoML would read epoch milliseconds as nanoseconds and say nothing
    "datetime": {"datetime", "date", "text", "null"},
    "text": {"text", "bool", "integer", "float", "date", "datetime", "null"},
}
_WEEK = 7 * 24 * 60 * 60  # seconds
_TRAINED_KINDS = {"i": "integer", "u": "integer", "f": "float", "b": "bool", "M": "datetime", "O": "text"}


@dataclass(frozen=True)
class Column:
    """A raw column as the model knows it.

    Parameters
    ----------
    name : str
        Its name in the model.
    dtype : numpy.dtype or None
        What it was trained on; None when the model does not say (then the file's own type is passed on).
    imputes_null : bool
        Whether an integer column's featurizer fills nulls by itself.
    categories : frozenset of str
        Those that the featurizer learned, in lower case; empty where it holds none.
    """

    name: str
    dtype: np.dtype[Any] | None = None
    imputes_null: bool = False
    categories: frozenset[str] = frozenset()


class BadValueError(Exception):
    """One value cannot become what the model was trained on.

    Parameters
    ----------
    column, reason : str
        Where, and why.
    row : int
        Position in the batch.
    """

    def __init__(self, column: str, row: int, reason: str) -> None:
        super().__init__(column, row, reason)
        self.column, self.row, self.reason = column, row, reason


def kind_of(arrow_type: pa.DataType) -> str:
    """Name the family of an Arrow type: bool, integer, float, text, datetime, date, null, or other."""
    tests = {
        "bool": pa.types.is_boolean,
        "integer": pa.types.is_integer,
        "float": lambda t: pa.types.is_floating(t) or pa.types.is_decimal(t),
        "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or _is_text_view(t),
        "datetime": pa.types.is_timestamp,
        "date": pa.types.is_date,
        "null": pa.types.is_null,
    }
    if pa.types.is_dictionary(arrow_type):
        return kind_of(arrow_type.value_type)
    return next((kind for kind, test in tests.items() if test(arrow_type)), "other")


def _is_text_view(arrow_type: pa.DataType) -> bool:
    return str(arrow_type) == "string_view"  # pyarrow 14 has no name for it


def type_problem(column: Column, arrow_type: pa.DataType) -> str | None:
    """Say why a file's type cannot become what the model was trained on; None when it can."""
    kind = kind_of(arrow_type)
    if kind == "other":
        return f"has type {arrow_type}, which no model column can take"
    if column.dtype is None or kind in _BECOMES[_TRAINED_KINDS[column.dtype.kind]]:
        return None
    hint = ""
    if column.dtype.kind == "M" and kind in ("integer", "float"):
        hint = " (numbers since an epoch would be misread: store it as a timestamp)"
    return f"has type {arrow_type}, but the model was trained on {column.dtype}{hint}"


def conversion_note(column: Column, arrow_type: pa.DataType) -> str | None:
    """Describe a conversion between families, for ``run.json``; None where there is none."""
    kind = kind_of(arrow_type)
    if column.dtype is None or kind in (_TRAINED_KINDS[column.dtype.kind], "null"):
        return None
    return f"column '{column.name}' has type {arrow_type} in the file and was read as {column.dtype}"


def count_padded(values: pa.ChunkedArray, column: Column) -> int:
    """Count texts that are a category which the model knows, but for surrounding blanks: it takes them for unknown."""
    if not column.categories:
        return 0
    counted = pc.value_counts(_flat(values))
    return sum(
        pair["counts"]
        for pair in counted.to_pylist()
        if isinstance(text := pair["values"], str)
        and text != text.strip()
        and text.lower() not in column.categories
        and text.strip().lower() in column.categories
    )


def to_frame(table: pa.Table, columns: Sequence[Column]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Convert a batch to the frame that the model expects.

    Parameters
    ----------
    table : pyarrow.Table
        The batch; its columns bear the model's names.
    columns : sequence of Column
        What the model expects, in its order.

    Returns
    -------
    frame : pandas.DataFrame
        Null is NaN in float columns, NaT in datetime columns, None in object columns.
    imputed : dict
        Column -> number of nulls in integer columns that the model's own imputer will fill.

    Raises
    ------
    BadValueError
        At the first value that cannot become the trained type.
    """
    data: dict[str, Any] = {}
    imputed: dict[str, int] = {}
    untyped = [column.name for column in columns if column.dtype is None]
    as_read = table.select(untyped).to_pandas() if untyped else None
    for column in columns:
        if column.dtype is None:
            data[column.name] = as_read[column.name]  # type: ignore[index]
            continue
        found = _CONVERTERS[column.dtype.kind](column, _flat(table[column.name]))
        if column.dtype.kind in "iu" and column.imputes_null and (missing := int(np.isnan(found).sum())):
            imputed[column.name] = missing
        data[column.name] = found
    return pd.DataFrame(data, copy=False), imputed  # naming the columns would cost as much again for few rows


def to_matrix(table: pa.Table, columns: Sequence[str], positions: np.ndarray, width: int) -> np.ndarray:
    """Build an engineered matrix from columns that hold the engineered features themselves.

    Parameters
    ----------
    table : pyarrow.Table
        The batch.
    columns : sequence of str
        The columns to take.
    positions : ndarray of int
        Where each of them stands in the matrix.
    width : int
        Columns of the matrix; those not named are 0.

    Returns
    -------
    ndarray, shape (row, width), float64
        Each column contiguous. Null is NaN; NaN and infinity are passed on.
    """
    # zeros that nobody touches take no memory; where all is written, they would only take time
    matrix = (np.zeros if len(positions) < width else np.empty)((width, table.num_rows))
    for name, position in zip(columns, positions, strict=True):
        values = table[name]
        if values.type == pa.float64():  # straight from the file's chunks
            start = 0
            for chunk in values.chunks:
                matrix[position, start : start + len(chunk)] = chunk.to_numpy(zero_copy_only=False)
                start += len(chunk)
        else:
            matrix[position] = _numbers(Column(name), _flat(values))
    return matrix.T


def as_numbers(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    """The numbers that the model reads of a column of numbers, in float64; NaN where there is none."""
    if column.dtype is None:
        return _numbers(column, _flat(values))
    return np.asarray(_CONVERTERS[column.dtype.kind](column, _flat(values)), dtype=np.float64)


def as_weeks(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    """The weeks since 1970-01-01 of a column of dates, whole numbers in float64; NaN where there is none."""
    flat = _flat(values)
    if kind_of(flat.type) == "text":
        flat = _moments_of_text(column, _trimmed(flat))
    seconds = flat.cast(pa.timestamp("s", getattr(flat.type, "tz", None)), safe=False).cast(pa.int64())
    return np.floor(np.asarray(seconds.cast(pa.float64()).to_numpy(zero_copy_only=False)) / _WEEK)


def _flat(values: pa.ChunkedArray) -> pa.Array:
    """One plain array of a column's chunks, dictionaries decoded."""
    array = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    return pa.array(array.to_pylist(), pa.string()) if _is_text_view(array.type) else array  # most kernels lack views


def _to_float(column: Column, values: pa.Array) -> np.ndarray:
    numbers = _numbers(column, values)
    assert column.dtype is not None
    with np.errstate(over="ignore"):  # too large for float32: infinite there
        exact = numbers.astype(column.dtype if column.dtype.kind == "f" else np.float64, copy=False)
    infinite = np.isinf(exact)
    if infinite.any():
        row = int(infinite.argmax())
        reason = "is infinite" if np.isinf(numbers[row]) else f"is {float(numbers[row])!r}, outside {column.dtype}"
        raise BadValueError(column.name, row, reason)
    return exact


def _to_integer(column: Column, values: pa.Array) -> np.ndarray:
    if values.null_count and not column.imputes_null:
        row = int(pc.is_null(values).to_numpy(zero_copy_only=False).argmax())
        raise BadValueError(
            column.name,
            row,
            f"is null, but the model was trained on {column.dtype} without nulls and does not impute it",
        )
    assert column.dtype is not None
    limits = np.iinfo(column.dtype)
    if not pa.types.is_integer(values.type):
        with contextlib.suppress(
            pa.ArrowInvalid, pa.ArrowNotImplementedError
        ):  # text and decimals beyond 2**53 stay exact
            values = _trimmed(values).cast(pa.int64())
    if pa.types.is_integer(values.type):
        try:
            exact = values.cast(pa.from_numpy_dtype(column.dtype))
        except pa.ArrowInvalid:
            whole = values.to_pylist()
            row = next(i for i, v in enumerate(whole) if v is not None and not limits.min <= v <= limits.max)
            raise BadValueError(column.name, row, f"is {whole[row]}, outside {column.dtype}") from None
        numbers: np.ndarray = exact.to_numpy(zero_copy_only=False)
    else:
        numbers = _whole(column, _numbers(column, values))
        missing = np.isnan(numbers)
        if missing.any() and not column.imputes_null:
            raise BadValueError(column.name, int(missing.argmax()), "is NaN in an integer column")
    return numbers.astype(np.float64 if column.imputes_null else column.dtype)


def _whole(column: Column, numbers: np.ndarray) -> np.ndarray:
    """The same numbers, if each is NaN or a whole one that the trained type holds."""
    assert column.dtype is not None
    limits = np.iinfo(column.dtype)
    for wrong, reason in (
        (np.isinf(numbers), "is infinite"),
        (~np.isnan(numbers) & (numbers != np.floor(numbers)), "is {}, but the model was trained on {}"),
        ((numbers < float(limits.min)) | (numbers >= float(limits.max) + 1), "is {}, outside {}"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise BadValueError(column.name, row, reason.format(float(numbers[row]), column.dtype))
    return numbers


def _numbers(column: Column, values: pa.Array) -> np.ndarray:
    """Numbers as float64, null as NaN; text is read as numbers."""
    values = _trimmed(values)
    if kind_of(values.type) == "text":
        try:
            values = values.cast(pa.float64())
        except pa.ArrowInvalid:
            row, text = next((i, v) for i, v in enumerate(values.to_pylist()) if v is not None and not _is_number(v))
            raise BadValueError(column.name, row, f"is {text!r}, not a number") from None
    elif pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _trimmed(values: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(values) if kind_of(values.type) == "text" else values


def _is_number(text: str) -> bool:
    try:
        pa.array([text]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _to_bool(column: Column, values: pa.Array) -> np.ndarray:
    if values.null_count:
        row = int(pc.is_null(values).to_numpy(zero_copy_only=False).argmax())
        raise BadValueError(column.name, row, "is null, but the model was trained on booleans without nulls")
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=bool)


def _to_datetime(column: Column, values: pa.Array) -> np.ndarray:
    if kind_of(values.type) == "text":
        values = _moments_of_text(column, _trimmed(values))
    try:
        moments = values.cast(pa.timestamp("ns", getattr(values.type, "tz", None)))
    except pa.ArrowInvalid:
        bound = np.iinfo(np.int64).max // 10**9
        seconds = values.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).to_pylist()
        row = next(i for i, second in enumerate(seconds) if second is not None and not -bound <= second < bound)
        raise BadValueError(
            column.name, row, "is outside the years 1678 to 2262, which is all that pandas can hold"
        ) from None
    return np.asarray(moments.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False))


def _moments_of_text(column: Column, texts: pa.Array) -> pa.Array:
    """ISO 8601 only: '01/02/2020' is January to some and February to others, and pandas guesses value by value."""
    texts = pa.array(texts.to_pylist(), pa.string())  # pyarrow 17's if_else corrupts slices of text
    zoned = pc.match_substring_regex(pc.fill_null(texts, ""), r"(?i)[T ].*\d(z|[+-]\d\d(:?\d\d)?)$")
    for unit in ("ns", "us"):  # microseconds reach beyond the years that nanoseconds can hold
        with contextlib.suppress(pa.ArrowInvalid):
            plain = pc.if_else(zoned, None, texts).cast(pa.timestamp(unit))
            utc = pc.if_else(zoned, texts, None).cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit))
            return pc.coalesce(plain, utc)
    if len(texts) == 1:
        reason = f"is {texts[0].as_py()!r}, not a date or time as ISO 8601 writes it (2020-12-31 23:59:59)"
        raise BadValueError(column.name, 0, reason)
    # halves, down to the first guilty value
    middle = len(texts) // 2
    _moments_of_text(column, texts.slice(0, middle))
    try:
        return _moments_of_text(column, texts.slice(middle))
    except BadValueError as error:
        raise BadValueError(column.name, middle + error.row, error.reason) from None


def _to_text(column: Column, values: pa.Array) -> np.ndarray:
    return np.asarray(values.to_pandas(integer_object_nulls=True).astype(object).to_numpy())


_CONVERTERS = {
    "f": _to_float,
    "i": _to_integer,
    "u": _to_integer,
    "b": _to_bool,
    "M": _to_datetime,
    "O": _to_text,
}
