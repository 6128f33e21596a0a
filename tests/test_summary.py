"""Global summaries: equal to pandas over the full tables, and mergeable in any grouping."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batch_explain as bx
from batch_explain.summary.moments import Moments
from batch_explain.summary.quantiles import (
    ABSOLUTE_PERCENTS,
    LARGEST,
    PERCENTS,
    RELATIVE_ERROR,
    SMALLEST,
    Buckets,
    Counter,
    NumpyCounter,
    counter,
    values_of,
)
from batch_explain.summary.tables import summary_tables
from batch_explain.summary.tally import Layout, Statistics, Tally
from tests.comparing import frame_of
from tests.conftest import Small

# values are drawn slowly where the machine is busy
_some = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


def assert_equal_pandas(summary: pd.DataFrame, table: pd.DataFrame) -> None:
    """``table`` holds one output's importances."""
    by_feature = summary.set_index("feature")
    for feature in table:
        values, row = table[feature], by_feature.loc[feature]
        scale = max(1.0, values.abs().max())
        assert row["count"] == len(values)
        assert row["min"] == values.min()
        assert row["max"] == values.max()
        assert row["share_positive"] == (values > 0).mean()
        for name, expected in (("mean_abs", values.abs().mean()), ("mean", values.mean()), ("std", values.std())):
            if len(values) > 1 or name != "std":
                assert row[name] == pytest.approx(expected, abs=1e-12 * scale), (feature, name)
        for column, percent, of in [(f"p{p:02d}", p, values) for p in PERCENTS] + [
            (f"abs_p{p:02d}", p, values.abs()) for p in ABSOLUTE_PERCENTS
        ]:
            expected = of.quantile(percent / 100, interpolation="lower")
            assert abs(row[column] - expected) <= RELATIVE_ERROR * abs(expected) * (1 + 1e-9) + SMALLEST
    ranked = summary.sort_values("rank")
    assert ranked["rank"].tolist() == list(range(1, len(summary) + 1))
    assert (ranked.mean_abs.diff().dropna() <= 0).all()


def test_summaries_are_pandas_over_all_rows(small: Small, tmp_path: Path) -> None:
    source = small.write(tmp_path / "rows.parquet", row_group_size=300)
    run = bx.explain_dataset(
        input=source,
        model=small.model,
        explainer=small.explainer,
        output=tmp_path / "out",
        scheduler="sync",
        partition_rows=300,
        batch_rows=70,
    )
    for level in ("engineered", "raw"):
        table = frame_of(run, level).drop(columns=["source_file", "source_row"])
        assert_equal_pandas(run.summary(level), table)
        content = json.loads((tmp_path / f"out/summary/{level}.json").read_bytes())
        assert content["features"] == pq.read_table(tmp_path / f"out/summary/{level}.parquet").to_pylist()


def table_of(values: np.ndarray, cuts: list[int], names: list[str]) -> pd.DataFrame:
    """The summary of values of shape (feature, row), added up piece by piece."""
    layout = Layout.of((), {"raw": len(names)}, 1)
    statistics = Statistics.empty(layout)
    for start, stop in pairwise([0, *cuts, values.shape[1]]):
        tally = Tally(layout)
        tally.add({"raw": values[None, :, start:stop]}, {})
        statistics = statistics.merge(tally.statistics())
    return summary_tables(
        layout, statistics, rows=values.shape[1], features={"raw": names}, used=np.array([]), outputs=[None]
    )["raw"].to_pandas()


@_some
@given(st.lists(st.tuples(_values, _values), min_size=1, max_size=40), st.data())
def test_merging_in_any_grouping_is_pandas(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    frame = pd.DataFrame(rows, columns=["a", "b"])
    assert_equal_pandas(table_of(np.array(rows).T, cuts, ["a", "b"]), frame)


@_some
@given(st.lists(st.lists(_values, min_size=3, max_size=3), max_size=10))
def test_partials_survive_storage(rows: list[list[float]]) -> None:
    moments = Moments.of(np.array(rows).reshape(len(rows), 3).T)
    again = Moments.from_table(moments.to_table())
    for name in ("count", "mean", "m2", "absolute", "minimum", "maximum", "positive"):
        np.testing.assert_array_equal(getattr(again, name), getattr(moments, name))


def test_features_that_are_zero_everywhere_are_summarised_as_zero() -> None:
    layout = Layout.of((), {"engineered": 1}, 1)
    tally = Tally(layout)
    tally.add({"engineered": np.array([[[1.0, -3.0]]])}, {})
    summary = summary_tables(
        layout,
        tally.statistics(),
        rows=2,
        features={"engineered": list("abcd")},
        used=np.array([2]),
        outputs=[None],
    )["engineered"].to_pandas()
    assert summary.feature.tolist() == ["c", "a", "b", "d"]
    assert (summary["count"] == 2).all()
    numbers = summary.columns.difference(["output", "feature", "rank", "count"])
    assert (summary.loc[summary.feature != "c", numbers] == 0).all(axis=None)
    assert (summary.loc[summary.feature == "c", ["min", "max", "p01", "p99"]] == [-3, 1, -3, -3]).all(axis=None)


_importances = st.one_of(
    st.just(0.0),
    st.floats(-1e12, 1e12, allow_nan=False),
    st.tuples(st.floats(-38, 80), st.sampled_from([-1, 1])).map(lambda pair: pair[1] * 2.0 ** pair[0]),
)


@_some
@given(st.lists(_importances, min_size=1, max_size=60), st.sampled_from([counter, NumpyCounter]))
def test_quantiles_are_numpys_within_the_stated_error(values: list[float], count: Callable[[int], Counter]) -> None:
    one = np.zeros(1, np.int64)
    counted = count(1)
    counted.add(np.array([values]), 0, one, one)
    buckets = Buckets(*counted.sparse())
    for found, percents, of in (
        (buckets.quantiles(1, PERCENTS), PERCENTS, np.array(values)),
        (buckets.absolute().quantiles(1, ABSOLUTE_PERCENTS), ABSOLUTE_PERCENTS, np.abs(values)),
    ):
        # numpy's own way to find the rank rounds: 0.29 * 100 is below 29
        expected = np.sort(of)[[percent * (len(of) - 1) // 100 for percent in percents]]
        assert (np.abs(found[:, 0] - expected) <= RELATIVE_ERROR * np.abs(expected) * (1 + 1e-9) + SMALLEST).all()


def test_what_is_too_small_or_too_large_for_a_bucket_and_what_is_no_number() -> None:
    values = np.array([[SMALLEST, np.nextafter(SMALLEST, 0), -0.0, LARGEST * 4, -np.inf, np.inf, np.nan, 5e-324]])
    zero = np.zeros(1, np.int64)
    found = []
    for counted in (counter(1), NumpyCounter(1)):
        counted.add(values, 0, zero, zero)
        found.append(counted.sparse())
    np.testing.assert_array_equal(found[0], found[1])
    codes, counts = found[0]
    assert counts.sum() == 8
    assert dict(zip(values_of(codes).round(30).tolist(), counts.tolist(), strict=True))[0.0] == 3


@_some
@given(
    st.lists(st.tuples(st.integers(0, 2), _importances), max_size=60),
    st.permutations(range(4)),
    st.data(),
)
def test_buckets_merge_in_any_order_and_grouping(
    rows: list[tuple[int, float]], order: list[int], data: st.DataObject
) -> None:
    """Of both counters, with rows in groups, to the same codes and counts as counting all at once."""
    rows = sorted(rows, key=lambda row: row[0])
    pieces = [[row for at, row in enumerate(rows) if at % 4 == part] for part in range(4)]

    def count(of: list[tuple[int, float]], counted: Counter) -> Buckets:
        groups, starts = np.unique([group for group, _ in of], return_index=True)
        values = np.array([[value for _, value in of], [-value for _, value in of]]).reshape(2, len(of))
        counted.add(values, 1, groups.astype(np.int64), starts.astype(np.int64))
        return Buckets(*counted.sparse())

    whole = count(rows, NumpyCounter(7))
    parts = [count(pieces[part], data.draw(st.sampled_from([counter, NumpyCounter]))(7)) for part in order]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[3].merge(parts[1].merge(parts[0]).merge(parts[2]))
    for found in (left, right):
        np.testing.assert_array_equal(found.codes, whole.codes)
        np.testing.assert_array_equal(found.counts, whole.counts)
