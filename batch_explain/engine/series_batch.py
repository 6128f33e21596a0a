"""A batch of whole series, explained: its rows become lines, one for each origin."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts, Batch
from batch_explain.engine.quarantine import BY_MODEL_OF_SERIES, short
from batch_explain.engine.rows import Rows
from batch_explain.engine.series import SeriesRows, place_of_history
from batch_explain.errors import BadDataError
from batch_explain.explainers.base import as_matrix
from batch_explain.teachers.columns import BadValueError, count_padded, to_frame
from batch_explain.teachers.forecasting import ForecastingTeacher, Lines


@dataclass(frozen=True)
class SeriesBatch:
    """What became of a batch of series.

    Parameters
    ----------
    batch : Batch or None
        One line for each row and origin; None where there is none.
    lines : Rows
        The row of each line, with its origin as a column.
    rows : int
        Rows that have lines.
    bad : list of (int, str)
        Positions of the others, and why each has none.
    """

    batch: Batch | None
    lines: Rows
    rows: int
    bad: list[tuple[int, str]]


def explain_good_series(
    artifacts: Artifacts,
    rows: SeriesRows,
    model_columns: Callable[[pa.Table], pa.Table],
    *,
    levels: tuple[str, ...],
    origin: str | None,
    allowed: int,
) -> SeriesBatch:
    """Explain the rows of whole series that can be.

    Parameters
    ----------
    artifacts : Artifacts
    rows : SeriesRows
    model_columns : callable
        From a table of the files' columns to one of the model's.
    levels : tuple of str
        The importances wanted.
    origin : str or None
        The column that says of which origin a line is.
    allowed : int
        Stop when more rows than so many are bad.

    Raises
    ------
    BadDataError
        If a row of history has a value that the model cannot take.
    """
    teacher = artifacts.teacher
    assert isinstance(teacher, ForecastingTeacher)
    table = model_columns(rows.table)
    past = _history(artifacts, rows, model_columns)
    kept, bad = np.arange(table.num_rows), list[tuple[int, str]]()
    while True:
        try:
            frame, imputed = to_frame(table.take(pa.array(kept)) if bad else table, artifacts.columns)
            break
        except BadValueError as error:
            bad.append((int(kept[error.row]), f"column '{error.column}' {error.reason}"))
            kept = np.delete(kept, error.row)
            if len(bad) > allowed:
                return SeriesBatch(None, rows.take(kept[:0]), 0, bad)
    lines = teacher.featurize_series(frame, past, rows.targets)
    for at, why in lines.refused.items():
        bad.append((int(kept[at]), why if isinstance(why, str) else f"{BY_MODEL_OF_SERIES}{short(why)}"))
    bad.sort()
    of_lines = kept[lines.rows]
    placed: Rows = rows.take(of_lines)
    if origin is not None and lines.origins is not None:
        placed = replace(placed, table=placed.table.append_column(origin, pa.array(lines.origins)))
    if not len(of_lines):
        return SeriesBatch(None, placed, 0, bad)
    counted = {column.name: count_padded(table[column.name], column) for column in artifacts.columns}
    batch = _explained(artifacts, teacher, lines, levels)
    batch = replace(batch, imputed=imputed, padded={name: count for name, count in counted.items() if count})
    return SeriesBatch(batch, placed, len(np.unique(of_lines)), bad)


def _explained(artifacts: Artifacts, teacher: ForecastingTeacher, lines: Lines, levels: tuple[str, ...]) -> Batch:
    matrix = as_matrix(lines.features)
    predictions = teacher.predict(lines.features)
    artifacts.explainer.learn(matrix[:1])
    found = artifacts.explainer.explain_used(matrix, values="engineered" in levels, raw="raw" in levels)
    return Batch(matrix, found.values, found.raw, found.margins, predictions, {}, {})


def _history(artifacts: Artifacts, rows: SeriesRows, model_columns: Callable[[pa.Table], pa.Table]) -> pd.DataFrame:
    try:
        frame, _ = to_frame(model_columns(rows.history), artifacts.columns)
    except BadValueError as error:
        raise BadDataError(
            f"Column '{error.column}' {error.reason} in {place_of_history(rows, error.row)}, whose target is known. "
            "Mend or remove the row."
        ) from error
    return frame
