"""The summaries as people and programs read them: tables, JSON, and the form of Clarify's ``analysis.json``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.summary.quantiles import ABSOLUTE_PERCENTS, PERCENTS, RELATIVE_ERROR, SMALLEST
from batch_explain.summary.tally import Block, Layout, Statistics

COHORTS = "cohorts"
SAMPLE_PATH, ANALYSIS_PATH = "summary/sample.parquet", "summary/analysis.json"
DRIFT_PATH = "summary/drift.json"


def summary_path(name: str, form: str) -> str:
    """Where a summary (``engineered``, ``raw``, ``cohorts``) lies, relative to the run's folder."""
    return f"summary/{name}.{form}"


def summary_tables(
    layout: Layout,
    statistics: Statistics,
    *,
    rows: int,
    features: Mapping[str, Sequence[str]],
    used: np.ndarray,
    outputs: Sequence[str | None],
) -> dict[str, pa.Table]:
    """The global summaries.

    Parameters
    ----------
    layout : Layout
    statistics : Statistics
    rows : int
        How many were explained.
    features : mapping
        Level (``engineered``, ``raw``) -> names of its features.
    used : ndarray of int
        Positions of the engineered features that statistics are about; the others are 0 in every row.
    outputs : sequence of (str or None)
        Labels; None alone for a single output.

    Returns
    -------
    dict
        Level -> one row for each output and feature, by output and then rank: ``output`` (null for a single one),
        ``feature``, ``rank`` (1 = largest mean |importance|; ties in feature order), ``count``, ``mean_abs``,
        ``mean``, ``std`` (n - 1), ``min``, ``max``, ``share_positive``, ``p01`` … ``p99`` and ``abs_p50``, ``abs_p95``
        (see :mod:`batch_explain.summary.quantiles`). Null where there are too few rows. ``cohorts``, where there are
        some -> the same for each ``cohort``, ``group`` (null: rows without a value) and ``level``; without groups that
        have no rows and engineered features that are 0 in every row.
    """
    tables, cohorts = {}, []
    for block in layout.blocks:
        names = features[block.level]
        if block.cohort is None:
            positions = used if block.level == "engineered" else np.arange(len(names))
            tables[block.level] = _block_table(block, statistics, rows, names, positions, outputs)
        else:
            if block.level == "engineered":
                names = [names[at] for at in used]
            cohorts.append(_cohort_table(block, statistics, names, outputs))
    if cohorts:
        tables[COHORTS] = pa.concat_tables(cohorts)
    return tables


def summary_json(name: str, table: pa.Table) -> dict[str, Any]:
    """A summary as JSON has it."""
    note = {"quantiles": {"relative_error": RELATIVE_ERROR, "counted_as_zero_below": SMALLEST}}
    if name == COHORTS:
        return {**note, "groups": table.to_pylist()}
    return {"level": name, **note, "features": table.to_pylist()}


def analysis_json(tables: Mapping[str, pa.Table], expected_values: Sequence[float | None]) -> dict[str, Any]:
    """Mean |importance| of each feature, in the layout of SageMaker Clarify's ``analysis.json``.

    Of the raw features, where there is a feature map. A single output is called ``label0``, as Clarify does.
    """
    table = tables["raw"] if "raw" in tables else tables["engineered"]
    labels: dict[str | None, dict[str, Any]] = {}
    for output, feature, value in zip(*(table[c].to_pylist() for c in ("output", "feature", "mean_abs")), strict=True):
        labels.setdefault(output, {})[feature] = value
    found = {
        "label0" if output is None else output: {"global_shap_values": values, "expected_value": expected}
        for (output, values), expected in zip(labels.items(), expected_values, strict=False)
    }
    return {"version": "1.0", "explanations": {"kernel_shap": found}}


def _cohort_table(
    block: Block, statistics: Statistics, names: Sequence[str], outputs: Sequence[str | None]
) -> pa.Table:
    assert block.cohort is not None
    size = block.outputs * block.features
    pieces = []
    for number, label in enumerate(block.cohort.labels):
        start = block.start + number * size
        rows = int(statistics.moments.count[start]) if size else 0
        if not rows:
            continue
        one = Block(None, block.level, start, 1, block.outputs, block.features, block.quantiles)
        table = _block_table(one, statistics, rows, names, np.arange(len(names)), outputs)
        for at, (name, value) in enumerate((("cohort", block.cohort.name), ("group", label))):
            table = table.add_column(at, name, pa.array([value] * table.num_rows, pa.string()))
        pieces.append(table.add_column(3, "level", pa.array([block.level] * table.num_rows, pa.string())))
    return pa.concat_tables(pieces) if pieces else _COHORT_SCHEMA.empty_table()


def _block_table(
    block: Block,
    statistics: Statistics,
    n: int,
    features: Sequence[str],
    positions: np.ndarray,
    outputs: Sequence[str | None],
) -> pa.Table:
    """The statistics of a block of one group of n rows; ``positions``: of its features among all, the others are 0."""
    moments = statistics.moments.of_series(block.start, block.stop)
    shape = (block.outputs, block.features)
    columns: dict[str, np.ndarray] = {
        "mean_abs": moments.absolute / max(n, 1),
        "mean": moments.mean,
        "std": np.sqrt(moments.m2 / max(n - 1, 1)),
        "min": moments.minimum,
        "max": moments.maximum,
        "share_positive": moments.positive / max(n, 1),
    }
    columns.update(_quantiles(block, statistics, moments.minimum, moments.maximum))
    whole = {}
    for name, values in columns.items():
        known = n > (1 if name == "std" else 0) and (block.quantiles or not name.startswith(("p", "abs_")))
        spread = np.full((block.outputs, len(features)), 0.0 if known else np.nan)
        if known:
            spread[:, positions] = values.reshape(shape)
        whole[name] = spread
    order = np.argsort(-np.nan_to_num(whole["mean_abs"]), axis=1, kind="stable")
    rows = order.shape[1]
    table: dict[str, pa.Array] = {
        "output": pa.array([label for label in outputs for _ in range(rows)], pa.string()),
        "feature": pa.array([features[i] for line in order for i in line], pa.string()),
        "rank": pa.array(np.tile(np.arange(1, rows + 1), len(outputs)), pa.int64()),
        "count": pa.array(np.full(order.size, n), pa.int64()),
    }
    for name, values in whole.items():
        ranked = np.take_along_axis(values, order, axis=1).ravel()
        table[name] = pa.array(ranked, from_pandas=True, type=pa.float64())
    return pa.table(table)


def _quantiles(block: Block, statistics: Statistics, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
    """Quantiles of a block's series, never beyond the smallest and the largest value, which are known."""
    size = block.stop - block.start
    buckets = statistics.buckets.of_series(block.start, block.stop) if block.quantiles else None
    blank = np.full((len(PERCENTS), size), np.nan), np.full((len(ABSOLUTE_PERCENTS), size), np.nan)
    plain = buckets.quantiles(size, PERCENTS) if buckets else blank[0]
    absolute = buckets.absolute().quantiles(size, ABSOLUTE_PERCENTS) if buckets else blank[1]
    found = {f"p{percent:02d}": np.clip(line, low, high) for percent, line in zip(PERCENTS, plain, strict=True)}
    most = np.maximum(np.abs(low), np.abs(high))
    found.update(
        {
            f"abs_p{percent:02d}": np.minimum(line, most)
            for percent, line in zip(ABSOLUTE_PERCENTS, absolute, strict=True)
        }
    )
    return found


def _schema(columns: Iterable[str]) -> pa.Schema:
    kinds = {"rank": pa.int64(), "count": pa.int64()}
    texts = ("cohort", "group", "output", "level", "feature")
    return pa.schema([(name, pa.string() if name in texts else kinds.get(name, pa.float64())) for name in columns])


_COHORT_SCHEMA = _schema([
    "cohort", "group", "output", "level", "feature", "rank", "count", "mean_abs", "mean", "std", "min", "max",
    "share_positive", *(f"p{percent:02d}" for percent in PERCENTS),
    *(f"abs_p{percent:02d}" for percent in ABSOLUTE_PERCENTS),
])  # fmt: skip
