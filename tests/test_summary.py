"""Global summaries: equal to pandas over the full tables, and mergeable in any grouping."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batch_explain as bx
from batch_explain.summary.moments import Moments, summary_table
from tests.comparing import frame_of
from tests.conftest import Small

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
            assert row[name] == pytest.approx(expected, abs=1e-12 * scale), (feature, name)
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


@given(st.lists(st.tuples(_values, _values), min_size=1, max_size=40), st.data())
def test_merging_in_any_grouping_is_pandas(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    values = np.array(rows).T[None]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    merged = Moments.empty(1, 2)
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        merged = merged.merge(Moments.of(values[:, :, start:stop]))
    frame = pd.DataFrame(rows, columns=["a", "b"])
    summary = summary_table(merged, [None], ["a", "b"]).to_pandas().set_index("feature")
    for name in frame:
        scale = max(1.0, frame[name].abs().max())
        assert summary.loc[name, "mean"] == pytest.approx(frame[name].mean(), abs=1e-12 * scale)
        assert summary.loc[name, "mean_abs"] == pytest.approx(frame[name].abs().mean(), abs=1e-12 * scale)
        if len(rows) > 1:
            assert summary.loc[name, "std"] == pytest.approx(frame[name].std(), abs=1e-9 * scale)
        assert summary.loc[name, "max"] == frame[name].max()


@given(st.lists(st.lists(_values, min_size=3, max_size=3), max_size=10))
def test_partials_survive_storage(rows: list[list[float]]) -> None:
    moments = Moments.of(np.array(rows).reshape(len(rows), 3).T[None])
    again = Moments.from_table(moments.to_table(), 1, 3)
    assert again.count == moments.count
    for name in ("mean", "m2", "absolute", "minimum", "maximum", "positive"):
        np.testing.assert_array_equal(getattr(again, name), getattr(moments, name))


def test_features_that_are_zero_everywhere_are_summarised_as_zero() -> None:
    some = Moments.of(np.array([[[1.0, -3.0]]]))
    summary = summary_table(some.spread(np.array([2]), 4), [None], list("abcd")).to_pandas()
    assert summary.feature.tolist() == ["c", "a", "b", "d"]
    zeros = summary[summary.feature != "c"]
    assert (zeros[["mean_abs", "mean", "std", "min", "max", "share_positive"]] == 0).all(axis=None)
    assert (summary["count"] == 2).all()
