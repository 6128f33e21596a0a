"""What a run will take, told before it begins: memory of a worker, size of the results, time."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.environment import cores
from batch_explain.engine.features import FEATURES
from batch_explain.errors import BatchExplainError, OptionError
from batch_explain.options import REASONS, RunOptions
from batch_explain.storage.parquet_files import READ_BYTES
from batch_explain.storage.tables import TableSpec
from batch_explain.summary.sample import MAX_CELLS
from batch_explain.summary.sketches import MAX_FEATURES
from batch_explain.summary.tally import MAX_QUANTILE_SERIES, SERIES_BYTES

# A batch is made smaller than --batch-rows where its importances would take more memory than this.
MAX_BATCH_BYTES = 48 << 20
# A partition is made smaller where its parts' footers would take more than this until they are closed (then as much
# again), but not below so many rows: each batch is a row group, of which each column has a place.
_FOOTER_BYTES, _CHUNK_BYTES, _FEWEST_OF_A_PARTITION = 48 << 20, 800, 1_000  # of all; of a place; rows
_FEWEST_ROWS = 100  # of a batch: below it, a run would take for ever
_KEPT_FREE = 0.85  # of the limit: what is not foreseen, and what the allocator keeps
_TEXT_BYTES = 64  # of a value in the featurizer
_CELL_BYTES = 40  # of a number of the sample, while it is collected and written
_REASON_BYTES = 150  # of one reason, while it is found and written
TIMED_ROWS, _TIMED_SECONDS = 256, 2.0
_OVERHEAD = 1.3  # reading, writing and statistics, of the time to explain


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Parameters
    ----------
    worker_bytes : int
        Peak resident memory of a worker process.
    output_bytes : int
        Size of all tables, before compression.
    seconds : float or None
        From when the workers are ready to their end, with one task a core; None where it was not measured.
    """

    worker_bytes: int
    output_bytes: int
    seconds: float | None = None


def batch_rows(options: RunOptions, artifacts: Artifacts) -> int:
    """Rows of a batch: ``--batch-rows``, or fewer where rows are wide or memory is limited.

    Raises
    ------
    OptionError
        If ``--memory-limit`` is too small for any batch.
    """
    most_reasons = 0
    if REASONS in (options.outputs or ()):
        outputs = 1 if options.reasons_for == "predicted" else artifacts.explainer.n_outputs
        most_reasons = outputs * min(options.top_k, len(artifacts.explainer.used))
    row = row_bytes(artifacts, options.outputs or (), most_reasons)
    most = min(options.batch_rows, max(1, MAX_BATCH_BYTES // (artifacts.row_bytes + _REASON_BYTES * most_reasons)))
    if options.memory_limit is None:
        return most
    base = base_bytes() + summary_bytes(artifacts)
    left = int(options.memory_limit * _KEPT_FREE) - base
    fewest = min(most, _FEWEST_ROWS)
    if left < fewest * row:
        needed = (base + fewest * row) / _KEPT_FREE
        raise OptionError(
            f"--memory-limit is {options.memory_limit / 1e6:,.0f} MB, but a worker needs {needed / 1e6:,.0f} MB: the "
            f"libraries, the model and the explainer take {base / 1e6:,.0f} MB before the first row "
            "(measured in this process, with whatever else it holds). Give it more, or make --table-memory smaller."
        )
    tasks = (options.workers or cores()) if options.scheduler == "threads" else 1
    return min(most, max(1, left // row // tasks))


def rows_by_footers(options: RunOptions, artifacts: Artifacts, of_a_batch: int) -> int:
    """Rows of a partition by default, at most: of so many batches that the footers of its parts fit into memory."""
    batches = _FOOTER_BYTES // (_CHUNK_BYTES * max(1, _columns_written(options, artifacts)))
    return max(_FEWEST_OF_A_PARTITION, of_a_batch * max(1, batches))


def _columns_written(options: RunOptions, artifacts: Artifacts) -> int:
    """Columns of all wide tables, without their ids."""
    explainer = artifacts.explainer
    widths = {
        "engineered": explainer.n_outputs * len(artifacts.written),
        "raw": explainer.n_outputs * len(explainer.raw_features or ()),
        FEATURES: len(artifacts.features),
    }
    return sum(widths.get(table, 0) for table in artifacts.tables(options.outputs))


def summary_bytes(artifacts: Artifacts) -> int:
    """What a partition's summary takes: counts for quantiles, but for cohorts, its sketches and part of the sample."""
    explainer = artifacts.explainer
    series = explainer.n_outputs * (len(explainer.used) + len(explainer.raw_features or ()))
    counted = min(series, MAX_QUANTILE_SERIES) + min(len(artifacts.columns), MAX_FEATURES)
    return SERIES_BYTES * counted + _CELL_BYTES * MAX_CELLS


def row_bytes(artifacts: Artifacts, tables: Iterable[str], reasons: int) -> int:
    """What a row of a batch takes: read, featurized, explained, with so many reasons, and written to these tables."""
    features = 16 * len(artifacts.features) if FEATURES in tables else 0
    raw = sum(_TEXT_BYTES if c.dtype is None or c.dtype.kind == "O" else 16 for c in artifacts.columns)
    return raw + features + _REASON_BYTES * reasons + artifacts.row_bytes


def base_bytes() -> int:
    """What a worker takes before its first row: as much as this process, which has loaded the same, and reading."""
    return int(psutil.Process().memory_info().rss) + READ_BYTES


def estimate(
    artifacts: Artifacts,
    tables: dict[str, tuple[TableSpec, ...]],
    *,
    rows: int,
    of_a_batch: int,
    row_seconds: float | None,
    reasons: int = 0,
) -> Estimate:
    """Estimate a run of so many rows, in batches of so many.

    ``row_seconds`` are of all workers together, ``reasons`` the most that a row can have.
    """
    values = sum(
        _width(field.type) * (reasons if level == REASONS else 1)
        for level, specs in tables.items()
        for spec in specs
        for field in spec.schema
    )
    return Estimate(
        worker_bytes=base_bytes()
        + summary_bytes(artifacts)
        + min(rows, of_a_batch) * row_bytes(artifacts, tables, reasons),
        output_bytes=rows * values,
        seconds=None if row_seconds is None else _OVERHEAD * rows * row_seconds,
    )


def time_of_a_row(explain: Callable[[int], object], most: int) -> float | None:
    """Seconds that a row of a batch takes, without what a batch of one row takes as well.

    ``explain(n)`` explains the first ``n`` rows, of at most ``most``; slow explainers are asked for a few. None where a
    row is refused.
    """
    with suppress(BatchExplainError):
        explain(1)  # warm
        one = _timed(explain, 1)
        rows = int(min(most, TIMED_ROWS, max(2, _TIMED_SECONDS / one)))
        return max(0.0, _timed(explain, rows) - one) / (rows - 1)
    return None


def _timed(explain: Callable[[int], object], rows: int) -> float:
    began = time.perf_counter()
    explain(rows)
    return time.perf_counter() - began


def _width(kind: pa.DataType) -> int:
    with suppress(ValueError):
        return int(kind.bit_width) // 8
    return 16  # text
