"""Every Arrow family against every trained dtype: what converts, to what, and which row is named where it cannot."""

import itertools
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_explain.teachers.columns import (
    BadValueError,
    Column,
    conversion_note,
    kind_of,
    to_frame,
    to_matrix,
    type_problem,
)

BIG = 2**53 + 1  # the first whole number that float64 does not hold
NOON = datetime(2020, 7, 1, 12)
ZONED = pa.timestamp("us", "Europe/Oslo")
TRAINED = ["int64", "float64", "bool", "datetime64[ns]", "object"]


def convert(values: Any, dtype: str | None, *, imputes_null: bool = False) -> tuple[pd.Series, dict[str, int]]:
    """One column through to_frame."""
    column = Column("c", None if dtype is None else np.dtype(dtype), imputes_null)
    frame, imputed = to_frame(pa.table({"c": values}), [column])
    return frame["c"], imputed


def same(found: list[Any], expected: list[Any]) -> bool:
    """Equal one by one, where any null is any null and 1 is not True."""
    return len(found) == len(expected) and all(
        pd.isna(a) if b is None else a == b and isinstance(a, bool) == isinstance(b, bool)
        for a, b in zip(found, expected, strict=True)
    )


FAMILIES = {
    pa.bool_(): "bool",
    pa.int8(): "integer",
    pa.int64(): "integer",
    pa.uint64(): "integer",
    pa.float16(): "float",
    pa.float64(): "float",
    pa.decimal128(9, 2): "float",
    pa.decimal256(50, 2): "float",
    pa.string(): "text",
    pa.large_string(): "text",
    pa.timestamp("ms"): "datetime",
    pa.timestamp("ns", "UTC"): "datetime",
    pa.date32(): "date",
    pa.date64(): "date",
    pa.null(): "null",
    pa.dictionary(pa.int32(), pa.string()): "text",
    pa.dictionary(pa.int8(), pa.int64()): "integer",
    pa.list_(pa.int64()): "other",
    pa.struct([("a", pa.int64())]): "other",
    pa.binary(): "other",
    pa.time64("us"): "other",
    pa.duration("s"): "other",
    pa.dictionary(pa.int32(), pa.binary()): "other",
}


@pytest.mark.parametrize(("arrow_type", "family"), list(FAMILIES.items()), ids=str)
def test_every_type_has_a_family(arrow_type: pa.DataType, family: str) -> None:
    assert kind_of(arrow_type) == family


NUMBERS = {"bool", "integer", "float", "text", "null"}
ACCEPTED = {
    "int64": NUMBERS,
    "uint8": NUMBERS,
    "float32": NUMBERS,
    "float64": NUMBERS,
    "bool": {"bool", "null"},
    "datetime64[ns]": {"datetime", "date", "text", "null"},
    "object": {"bool", "integer", "float", "text", "datetime", "date", "null"},
}


@pytest.mark.parametrize(("dtype", "arrow_type"), list(itertools.product(ACCEPTED, FAMILIES)), ids=str)
def test_which_families_can_become_what_was_trained(dtype: str, arrow_type: pa.DataType) -> None:
    problem = type_problem(Column("c", np.dtype(dtype)), arrow_type)
    assert (problem is None) == (FAMILIES[arrow_type] in ACCEPTED[dtype])
    if problem:
        assert str(arrow_type) in problem
        assert dtype in problem or FAMILIES[arrow_type] == "other"


def test_without_a_trained_type_all_but_nested_ones_pass() -> None:
    assert all((type_problem(Column("c"), kind) is None) == (family != "other") for kind, family in FAMILIES.items())


def test_numbers_for_dates_are_refused_with_the_reason() -> None:
    problem = type_problem(Column("c", np.dtype("datetime64[ns]")), pa.int64())
    assert problem is not None and "epoch" in problem and "timestamp" in problem


@pytest.mark.parametrize(
    ("arrow_type", "dtype", "noted"),
    [
        (pa.string(), "int64", True),
        (pa.bool_(), "float64", True),
        (pa.float64(), "int64", True),
        (pa.date32(), "datetime64[ns]", True),
        (pa.int8(), "int64", False),
        (pa.null(), "float64", False),
        (pa.dictionary(pa.int32(), pa.string()), "object", False),
        (pa.string(), None, False),
    ],
    ids=str,
)
def test_a_change_of_family_is_noted(arrow_type: pa.DataType, dtype: str | None, noted: bool) -> None:
    note = conversion_note(Column("c", None if dtype is None else np.dtype(dtype)), arrow_type)
    assert (note is not None) == noted
    if noted:
        assert note is not None and "'c'" in note and str(arrow_type) in note and str(dtype) in note


CONVERTS: dict[str, tuple[pa.Array, str, list[Any]]] = {
    # integers
    "int8_as_int64": (pa.array([1, -2], pa.int8()), "int64", [1, -2]),
    "int64_as_int8": (pa.array([127, -128]), "int8", [127, -128]),
    "uint64_as_int64": (pa.array([2**63 - 1], pa.uint64()), "int64", [2**63 - 1]),
    "uint64_as_uint64": (pa.array([2**64 - 1], pa.uint64()), "uint64", [2**64 - 1]),
    "beyond_2**53": (pa.array([BIG, -BIG]), "int64", [BIG, -BIG]),
    "whole_float_as_int": (pa.array([3.0, -0.0]), "int64", [3, 0]),
    "whole_half_as_int": (pa.array([np.float16(3)]), "int64", [3]),
    "whole_decimal_as_int": (pa.array([Decimal("2.00"), Decimal(BIG)]), "int64", [2, BIG]),
    "whole_decimal256_as_int": (pa.array([Decimal("2.00")], pa.decimal256(50, 2)), "int64", [2]),
    "text_as_int": (pa.array([" 1", "-2\t"]), "int64", [1, -2]),
    "text_beyond_2**53": (pa.array([str(BIG)]), "int64", [BIG]),
    "text_with_exponent_as_int": (pa.array(["1e3", "2.0"]), "int32", [1000, 2]),
    "bool_as_int": (pa.array([True, False]), "int64", [1, 0]),
    "dictionary_of_ints": (pa.array([7, 8, 7]).dictionary_encode(), "int64", [7, 8, 7]),
    "no_ints": (pa.array([], pa.int64()), "int64", []),
    "nothing_as_int": (pa.array([], pa.null()), "int64", []),
    # floats
    "float": (pa.array([1.5, None, float("nan")]), "float64", [1.5, None, None]),
    "half_as_float": (pa.array([np.float16(1.5), None]), "float64", [1.5, None]),
    "float_as_float32": (pa.array([1.5, None]), "float32", [1.5, None]),
    "int_as_float": (pa.array([1, None]), "float64", [1.0, None]),
    "uint64_as_float": (pa.array([2**64 - 1], pa.uint64()), "float64", [float(2**64 - 1)]),
    "decimal_as_float": (pa.array([Decimal("1.25"), None]), "float64", [1.25, None]),
    "bool_as_float": (pa.array([True, None, False]), "float64", [1.0, None, 0.0]),
    "text_as_float": (pa.array([" 1.5 ", "-1e3", None]), "float64", [1.5, -1000.0, None]),
    "large_text_as_float": (pa.array(["0.1"], pa.large_string()), "float64", [0.1]),
    "null_as_float": (pa.nulls(2), "float64", [None, None]),
    "dictionary_of_numbers_as_text": (pa.array(["1", None, "1"]).dictionary_encode(), "float64", [1.0, None, 1.0]),
    "null_inside_a_dictionary": (pa.DictionaryArray.from_arrays([0, 1], pa.array([1.5, None])), "float64", [1.5, None]),
    "no_floats": (pa.array([], pa.float32()), "float64", []),
    # booleans
    "bool": (pa.array([True, False]), "bool", [True, False]),
    "no_bools": (pa.array([], pa.bool_()), "bool", []),
    "nothing_as_bool": (pa.array([], pa.null()), "bool", []),
    # dates and times
    "timestamp_s": (pa.array([NOON, None], pa.timestamp("s")), "datetime64[ns]", [NOON, None]),
    "timestamp_us": (pa.array([NOON], pa.timestamp("us")), "datetime64[ns]", [NOON]),
    "timestamp_ns": (pa.array([1], pa.timestamp("ns")), "datetime64[ns]", [pd.Timestamp(1)]),
    "timestamp_with_zone_is_utc": (pa.array([NOON.replace(tzinfo=timezone.utc)], ZONED), "datetime64[ns]", [NOON]),
    "date32": (pa.array([date(2020, 7, 1), None]), "datetime64[ns]", [datetime(2020, 7, 1), None]),
    "date64": (pa.array([date(1969, 1, 1)], pa.date64()), "datetime64[ns]", [datetime(1969, 1, 1)]),
    "text_as_date": (pa.array(["2020-07-01", None]), "datetime64[ns]", [datetime(2020, 7, 1), None]),
    "text_of_mixed_precision": (
        pa.array(["2020-07-01", "2020-07-01 12:00", "2020-07-01T12:00:00.5", "2020-07-01T12:00:00Z"]),
        "datetime64[ns]",
        [datetime(2020, 7, 1), NOON, NOON.replace(microsecond=500_000), NOON],
    ),
    "slice_of_text_as_time": (
        pa.array(["", "2020-07-01", "2020-07-01T12:00:00Z", None]).slice(1),
        "datetime64[ns]",
        [datetime(2020, 7, 1), NOON, None],
    ),
    "text_as_time": (pa.array(["2020-07-01 12:00:00"]), "datetime64[ns]", [NOON]),
    "text_with_zone_as_time": (pa.array(["2020-07-01T14:00:00+02:00"]), "datetime64[ns]", [NOON]),
    "null_as_date": (pa.nulls(1), "datetime64[ns]", [None]),
    "no_dates": (pa.array([], pa.timestamp("ms", "UTC")), "datetime64[ns]", []),
    # text: values stay what they are, because the featurizer makes its own text of them
    "text": (pa.array(["a", "", None]), "object", ["a", "", None]),
    "large_text": (pa.array(["a", None], pa.large_string()), "object", ["a", None]),
    "dictionary_of_text": (pa.array(["b", "a", None, "b"]).dictionary_encode(), "object", ["b", "a", None, "b"]),
    "int_as_text_stays_whole": (pa.array([1, None]), "object", [1, None]),
    "int_beyond_2**53_as_text": (pa.array([BIG, None]), "object", [BIG, None]),
    "float_as_text": (pa.array([1.5, None]), "object", [1.5, None]),
    "bool_as_text": (pa.array([True, None]), "object", [True, None]),
    "date_as_text": (pa.array([date(2020, 7, 1), None]), "object", [date(2020, 7, 1), None]),
    "timestamp_as_text": (pa.array([NOON, None]), "object", [NOON, None]),
    "null_as_text": (pa.nulls(2), "object", [None, None]),
    "no_text": (pa.array([], pa.string()), "object", []),
}


@pytest.mark.parametrize(("values", "dtype", "expected"), list(CONVERTS.values()), ids=list(CONVERTS))
def test_converts_exactly(values: pa.Array, dtype: str, expected: list[Any]) -> None:
    found, imputed = convert(values, dtype)
    assert same(found.tolist(), expected), found.tolist()
    assert imputed == {}
    if dtype != "object":
        assert found.dtype == np.dtype(dtype)


@pytest.mark.parametrize(("values", "dtype", "expected"), list(CONVERTS.values()), ids=list(CONVERTS))
def test_chunks_do_not_matter(values: pa.Array, dtype: str, expected: list[Any]) -> None:
    """In a file each row group has its own chunk, and its own dictionary."""
    empty = values.slice(0, 0)
    chunks = pa.chunked_array([empty, *(values.slice(i, 1) for i in range(len(values))), empty])
    found, _ = convert(chunks, dtype)
    assert same(found.tolist(), expected), found.tolist()
    if dtype != "object":
        assert found.dtype == np.dtype(dtype)
    assert same(convert(pa.chunked_array([], values.type), dtype)[0].tolist(), [])


def test_chunks_with_different_dictionaries() -> None:
    chunks = [pa.array(words).dictionary_encode() for words in (["a", "b"], ["c", "a", None])]
    assert same(convert(pa.chunked_array(chunks), "object")[0].tolist(), ["a", "b", "c", "a", None])


def test_text_views_are_text() -> None:
    """Newer versions of pyarrow read them from files that were written from them."""
    if not hasattr(pa, "string_view"):
        pytest.skip("this pyarrow has no string_view")
    assert kind_of(pa.string_view()) == "text"
    view = pa.array(["1", None], pa.string_view())
    assert same(convert(view, "float64")[0].tolist(), [1.0, None])
    assert same(convert(view, "object")[0].tolist(), ["1", None])


REFUSED: dict[str, tuple[pa.Array, str, int, str]] = {
    # integers
    "null_in_int": (pa.array([1, 2, None]), "int64", 2, "is null"),
    "null_column_as_int": (pa.nulls(2), "int64", 0, "is null"),
    "nan_in_int": (pa.array([1.0, float("nan")]), "int64", 1, "is NaN"),
    "fraction_in_int": (pa.array([1.0, 1.5, 2.5]), "int64", 1, "is 1.5, but the model was trained on int64"),
    "decimal_fraction_in_int": (pa.array([Decimal("1.50")]), "int64", 0, "is 1.5"),
    "text_fraction_in_int": (pa.array(["1", "1.5"]), "int64", 1, "is 1.5"),
    "inf_in_int": (pa.array([1.0, float("-inf")]), "int64", 1, "is infinite"),
    "words_in_int": (pa.array(["1", "forty"]), "int64", 1, "is 'forty', not a number"),
    "empty_text_in_int": (pa.array(["1", ""]), "int64", 1, "is '', not a number"),
    "uint64_too_large": (pa.array([1, 2**63], pa.uint64()), "int64", 1, f"is {2**63}, outside int64"),
    "int_too_large": (pa.array([1, 128]), "int8", 1, "is 128, outside int8"),
    "int_below_zero": (pa.array([1, -1]), "uint32", 1, "is -1, outside uint32"),
    "float_too_large": (pa.array([1.0, 1e19]), "int64", 1, "is 1e+19, outside int64"),
    "float_2**63": (pa.array([2.0**63]), "int64", 0, "outside int64"),
    "float_too_large_for_uint8": (pa.array([255.0, 256.0]), "uint8", 1, "is 256, outside uint8"),
    "float_below_zero": (pa.array([-1.0]), "uint8", 0, "is -1, outside uint8"),
    "text_too_large": (pa.array(["300"]), "int8", 0, "is 300, outside int8"),
    # floats
    "inf": (pa.array([1.0, None, float("inf")]), "float64", 2, "is infinite"),
    "inf_as_text": (pa.array(["1", "-inf"]), "float64", 1, "is infinite"),
    "half_inf": (pa.array([np.float16("inf")]), "float64", 0, "is infinite"),
    "too_large_for_float32": (pa.array([1.0, 1e300]), "float32", 1, "is 1e+300, outside float32"),
    "words": (pa.array([None, "1", "n/a"]), "float64", 2, "is 'n/a', not a number"),
    "words_in_a_dictionary": (pa.array(["1", "n/a", "1"]).dictionary_encode(), "float64", 1, "is 'n/a', not a number"),
    "large_words": (pa.array(["x"], pa.large_string()), "float64", 0, "is 'x', not a number"),
    "decimal_comma": (pa.array(["1,5"]), "float64", 0, "is '1,5', not a number"),
    "hexadecimal": (pa.array(["0x10"]), "float64", 0, "is '0x10', not a number"),
    # booleans
    "null_in_bool": (pa.array([True, None]), "bool", 1, "is null"),
    "null_column_as_bool": (pa.nulls(1), "bool", 0, "is null"),
    # dates and times
    "no_date": (pa.array(["2020-07-01", "2020-07-02", "soon"]), "datetime64[ns]", 2, "is 'soon', not a date or time"),
    "no_such_day": (pa.array(["2020-07-01", "2020-02-30"]), "datetime64[ns]", 1, "is '2020-02-30', not a date or time"),
    "month_or_day": (
        pa.array(["2020-07-01", "01/02/2020"]),
        "datetime64[ns]",
        1,
        "is '01/02/2020', not a",
    ),
    "no_date_but_now": (pa.array(["2020-07-01", "now"]), "datetime64[ns]", 1, "is 'now', not a date or time"),
    "empty_date": (pa.array(["2020-07-01", ""]), "datetime64[ns]", 1, "is '', not a date or time"),
    "epoch_as_text": (pa.array(["2020-07-01", "1577836800000"]), "datetime64[ns]", 1, "is '1577836800000'"),
    "year_9999": (pa.array([None, NOON, datetime(9999, 1, 1)]), "datetime64[ns]", 2, "1678 to 2262"),
    "year_9999_with_zone": (pa.array([datetime(9999, 1, 1)], ZONED), "datetime64[ns]", 0, "1678 to 2262"),
    "date_year_1": (pa.array([date(2020, 1, 1), date(1, 1, 1)]), "datetime64[ns]", 1, "1678 to 2262"),
    "date64_year_9999": (pa.array([date(9999, 1, 1)], pa.date64()), "datetime64[ns]", 0, "1678 to 2262"),
    "year_of_no_calendar": (pa.array([0, 2**50]).cast(pa.timestamp("s")), "datetime64[ns]", 1, "1678 to 2262"),
}


@pytest.mark.parametrize(("values", "dtype", "row", "reason"), list(REFUSED.values()), ids=list(REFUSED))
def test_the_first_bad_row_is_named(values: pa.Array, dtype: str, row: int, reason: str) -> None:
    with pytest.raises(BadValueError) as caught:
        convert(values, dtype)
    assert (caught.value.column, caught.value.row) == ("c", row)
    assert reason in caught.value.reason
    assert "np." not in caught.value.reason  # not numpy's way of writing a number
    chunks = pa.chunked_array([values.slice(0, 1), values.slice(1)])
    with pytest.raises(BadValueError) as caught:
        convert(chunks, dtype)
    assert caught.value.row == row


class TestImputedIntegers:
    """Integer columns whose nulls the model fills by itself are handed over as float64."""

    @pytest.mark.parametrize(
        ("values", "expected", "nulls"),
        [
            (pa.array([1, None, 3, None]), [1.0, None, 3.0, None], 2),
            (pa.array([1, 3]), [1.0, 3.0], 0),
            (pa.array([1.0, None]), [1.0, None], 1),
            (pa.array([1.0, float("nan")]), [1.0, None], 1),
            (pa.array(["1", None]), [1.0, None], 1),
            (pa.array([Decimal("1.00"), None]), [1.0, None], 1),
            (pa.nulls(3), [None] * 3, 3),
            (pa.array([], pa.int64()), [], 0),
        ],
        ids=["int", "no_null", "float", "nan", "text", "decimal", "null", "empty"],
    )
    def test_nulls(self, values: pa.Array, expected: list[Any], nulls: int) -> None:
        found, imputed = convert(values, "int64", imputes_null=True)
        assert found.dtype == np.float64
        assert same(found.tolist(), expected)
        assert imputed == ({"c": nulls} if nulls else {})

    @pytest.mark.parametrize(
        ("values", "row", "reason"),
        [
            (pa.array([None, 1.5]), 1, "is 1.5"),
            (pa.array([None, "forty"]), 1, "is 'forty', not a number"),
            (pa.array([None, 128]), 1, "is 128, outside int8"),
            (pa.array([None, 128.0]), 1, "is 128, outside int8"),
            (pa.array([None, float("inf")]), 1, "is infinite"),
        ],
        ids=["fraction", "words", "int_too_large", "float_too_large", "inf"],
    )
    def test_what_is_no_null_must_fit_all_the_same(self, values: pa.Array, row: int, reason: str) -> None:
        with pytest.raises(BadValueError) as caught:
            convert(values, "int8", imputes_null=True)
        assert caught.value.row == row
        assert reason in caught.value.reason


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2]),
        pa.array([1.5, None]),
        pa.array([True, False]),
        pa.array(["a", "b"]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([NOON]),
    ],
    ids=lambda values: str(values.type),
)
def test_without_a_trained_type_pandas_decides(values: pa.Array) -> None:
    found, imputed = convert(values, None)
    pd.testing.assert_series_equal(found, pa.table({"c": values}).to_pandas()["c"])
    assert imputed == {}


def test_the_frame_has_the_models_columns_in_its_order() -> None:
    table = pa.table({"x": [1], "unused": ["?"], "y": ["2020-01-01"], "z": ["a"]})
    columns = [Column("z"), Column("y", np.dtype("datetime64[ns]")), Column("x", np.dtype("float64"))]
    frame, _ = to_frame(table, columns)
    assert list(frame) == ["z", "y", "x"]
    assert frame.iloc[0].tolist() == ["a", pd.Timestamp("2020-01-01"), 1.0]
    assert to_frame(table.slice(0, 0), columns)[0].shape == (0, 3)


def test_an_engineered_matrix_is_filled_by_position() -> None:
    table = pa.table({"b": pa.array([1, None]), "a": pa.array([True, False]), "n": pa.array([float("inf"), 0.5])})
    found = to_matrix(table, ["b", "a", "n"], np.array([3, 0, 2]), 5)
    np.testing.assert_array_equal(found, [[1, 0, np.inf, 1, 0], [0, 0, 0.5, np.nan, 0]])


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), dtype=st.sampled_from(["int8", "uint16", "int64"])
)
def test_integers_come_through_unchanged_or_the_first_misfit_is_named(values: list[int], dtype: str) -> None:
    limits = np.iinfo(dtype)
    misfit = next((i for i, value in enumerate(values) if not limits.min <= value <= limits.max), None)
    for array in (pa.array(values, pa.int64()), pa.array(list(map(str, values)))):
        if misfit is None:
            assert convert(array, dtype)[0].tolist() == values
        else:
            with pytest.raises(BadValueError) as caught:
                convert(array, dtype)
            assert caught.value.row == misfit


@settings(deadline=None)
@given(values=st.lists(st.floats(), min_size=1), dtype=st.sampled_from(["int8", "uint16", "int64"]))
def test_floats_become_the_same_whole_number_or_are_refused(values: list[float], dtype: str) -> None:
    limits = np.iinfo(dtype)
    fits = all(value.is_integer() and limits.min <= int(value) <= limits.max for value in values)
    if fits:
        assert convert(pa.array(values), dtype)[0].tolist() == values
    else:
        with pytest.raises(BadValueError):
            convert(pa.array(values), dtype)


@settings(deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.datetimes(datetime(1678, 1, 1), datetime(2262, 1, 1))), min_size=1))
def test_moments_come_through_unchanged(values: list[datetime | None]) -> None:
    utc = [value and value.replace(tzinfo=timezone.utc) for value in values]
    for array in (pa.array(values, pa.timestamp("us")), pa.array(utc, pa.timestamp("us", "Asia/Tokyo"))):
        found, _ = convert(array, "datetime64[ns]")
        assert same(found.tolist(), values)


@pytest.mark.parametrize("dtype", TRAINED)
def test_times_of_day_fit_nothing(dtype: str) -> None:
    assert type_problem(Column("c", np.dtype(dtype)), pa.array([time(1)]).type) is not None


def test_columns_that_are_not_there_take_no_memory() -> None:
    """A surrogate of a wide input may use a few of its columns, and batches are planned by these."""
    rows, width, process = 5_000, 20_000, psutil.Process()
    table = pa.table({"a": np.ones(rows), "b": np.ones(rows)})
    before = process.memory_info().rss
    found = to_matrix(table, ["a", "b"], np.array([7, 12_345]), width)
    assert process.memory_info().rss - before < 0.1 * found.nbytes
    assert found[:, [7, 12_345]].all() and not found[:, [0, 8, width - 1]].any()
