"""Rows of a partition, read batch by batch and explained; bad ones found."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts, Batch
from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan
from batch_explain.engine.quarantine import (
    NOT_THE_ROWS,
    BadRow,
    explain_good_rows,
    first_refused,
    row_as_json,
    short,
    without_value,
)
from batch_explain.engine.rows import Rows
from batch_explain.engine.series import SeriesPartition, SeriesRows, read_series
from batch_explain.engine.series_batch import explain_good_series
from batch_explain.errors import BadDataError
from batch_explain.storage.reading import read_rows
from batch_explain.summary.tally import Layout
from batch_explain.teachers.columns import BadValueError

_GO_ON = "Mend or remove the row, or pass --max-bad-rows to go on without."


@dataclass(frozen=True)
class Context:
    """What a worker process holds: the plan, the loaded artifacts, and a flag that has its tasks stop."""

    plan: Plan
    artifacts: Artifacts
    loaded_at: float = field(default_factory=time.time)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def layout(self) -> Layout:
        """What is summarised."""
        explainer = self.artifacts.explainer
        return self.plan.layout(len(explainer.raw_features or ()), explainer.n_outputs)


@dataclass(frozen=True)
class Explained:
    """What became of the rows of a batch.

    Parameters
    ----------
    batch : Batch or None
        None where no row could be explained.
    lines : Rows
        The row of each line of the batch: a line for each row but in forecasting, where a row has one for each origin.
    rows : int
        Rows that were explained.
    bad : list of BadRow
        The others.
    """

    batch: Batch | None
    lines: Rows
    rows: int
    bad: list[BadRow]


def batches_of(plan: Plan, partition: Partition) -> Iterator[Rows]:
    """Rows of a partition in batches, with hive keys added; of forecasting, whole series with their history."""
    names = input_columns(plan)
    if isinstance(partition, SeriesPartition):
        assert plan.series is not None
        of_history = list(plan.model_columns)
        yield from read_series(partition, plan.series, names, of_history, plan.hive, plan.batch_rows)
        return
    assert isinstance(partition, FilePartition)
    for table, positions in read_rows(
        partition.file,
        start=partition.start,
        stop=partition.stop,
        columns=names,
        batch_rows=plan.batch_rows,
        keys=plan.hive,
    ):
        yield Rows(table, partition.file.path, positions)


def input_columns(plan: Plan) -> list[str]:
    """File columns that are read: the model's, then ids and cohorts that are not among them."""
    cohorts = [cohort.name for cohort in plan.cohorts if not cohort.predicted]
    made = set() if plan.series is None else set(plan.series.keys)
    return [name for name in dict.fromkeys([*plan.model_columns, *plan.ids, *cohorts]) if name not in made]


def model_columns(context: Context, table: pa.Table) -> pa.Table:
    """The columns that the model needs, by its names."""
    names = [column.name for column in context.artifacts.columns]
    return table.select(context.plan.model_columns).rename_columns(names)


def explain_batch(context: Context, rows: Rows) -> Explained:
    """Explain a batch; a value that the model cannot take is named by file, row and column.

    Raises
    ------
    BadDataError
        If any row cannot be explained.
    """
    if isinstance(rows, SeriesRows):
        found = _explain_good_series(context, rows, 0)
        if found.bad:
            bad = found.bad[0]
            raise BadDataError(f"Row {bad.row} of {bad.path} cannot be explained: {bad.reason}. {_GO_ON}")
        return found
    explain, table = _explainer(context), model_columns(context, rows.table)
    try:
        return Explained(explain(table), rows, len(rows), [])
    except NOT_THE_ROWS:
        raise
    except BadValueError as error:
        raise BadDataError(f"Column '{error.column}' {error.reason} in {rows.place(error.row)}. {_GO_ON}") from error
    except Exception as error:
        # models refuse rows with exceptions of any type; the first guilty row makes the message useful
        row, reason = first_refused(explain, table, error)
        raise _refused(reason, rows, row) from error


def explain_good(context: Context, rows: Rows, allowed: int | None) -> Explained:
    """Explain the rows of a batch that can be, where so many others may be left out; None: where none may."""
    if allowed is None:
        return explain_batch(context, rows)
    if isinstance(rows, SeriesRows):
        return _explain_good_series(context, rows, allowed)
    try:
        batch, kept, bad = explain_good_rows(_explainer(context), model_columns(context, rows.table), allowed)
    except NOT_THE_ROWS:
        raise
    except Exception as error:
        raise _refused(error, rows) from error
    lines = rows.take(kept) if bad else rows
    return Explained(batch, lines, len(kept) if batch is not None else 0, _bad_rows(context, rows, bad))


def _explain_good_series(context: Context, rows: SeriesRows, allowed: int) -> Explained:
    plan = context.plan
    assert plan.series is not None
    found = explain_good_series(
        context.artifacts,
        rows,
        functools.partial(model_columns, context),
        levels=plan.levels,
        origin=plan.series.origin,
        allowed=allowed,
    )
    return Explained(found.batch, found.lines, found.rows, _bad_rows(context, rows, found.bad))


def _bad_rows(context: Context, rows: Rows, bad: list[tuple[int, str]]) -> list[BadRow]:
    if context.plan.options.no_row_values:
        return [BadRow(rows.path(at), int(rows.numbers[at]), without_value(why), None) for at, why in bad]
    return [BadRow(rows.path(at), int(rows.numbers[at]), why, row_as_json(rows.table, at)) for at, why in bad]


def _explainer(context: Context) -> Callable[[pa.Table], Batch]:
    plan = context.plan
    return functools.partial(context.artifacts.explain, levels=plan.levels, sparse=plan.sparse_rows)


def _refused(reason: Exception, rows: Rows, guilty: int | None = None) -> BadDataError:
    where = rows.span() if guilty is None else rows.place(guilty)
    alone = f" {_GO_ON}" if guilty is not None else ""
    return BadDataError(f"The model cannot take {where}: {short(reason)}.{alone}")
