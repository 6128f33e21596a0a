"""Rows and files that cannot be explained: found one by one, kept with their reason, counted against their limits."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from batch_explain.engine.plan import Plan
from batch_explain.errors import BadDataError, BatchExplainError
from batch_explain.storage.atomic import FileRecord
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt
from batch_explain.storage.tables import SOURCE_IDS, part_path, write_table
from batch_explain.teachers.columns import BadValueError

_Answer = TypeVar("_Answer")

QUARANTINE = "quarantine"
SCHEMA = pa.schema([*SOURCE_IDS, ("reason", pa.string()), ("row", pa.string())])
_SHOWN_REASONS = 5
NOT_THE_ROWS = (BatchExplainError, OSError, MemoryError)  # what says nothing about the rows
_BY_MODEL = "the model cannot take it: "
BY_MODEL_OF_SERIES = "the model cannot take its series: "


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be explained.

    Parameters
    ----------
    path : str
        Its file.
    row : int
        Its position in the file.
    reason : str
    content : str or None
        Its columns as a JSON object; None with ``--no-row-values``, or where the file cannot be read.
    """

    path: str
    row: int
    reason: str
    content: str | None


def explain_good_rows(
    explain: Callable[[pa.Table], _Answer], table: pa.Table, allowed: int
) -> tuple[_Answer | None, np.ndarray, list[tuple[int, str]]]:
    """Explain a batch without the rows that cannot be explained.

    Parameters
    ----------
    explain : callable
    table : pyarrow.Table
        The model's columns.
    allowed : int
        Stop when more rows than so many are bad.

    Returns
    -------
    batch : Batch or None
        None where no row is left.
    kept : ndarray of int
        Positions of its rows in the table.
    bad : list of (int, str)
        Positions of the others, and why each was refused.

    Raises
    ------
    Exception
        What the model says of rows that it refuses only together.
    """
    kept, bad = np.arange(table.num_rows), list[tuple[int, str]]()
    batch = None
    while len(kept) and len(bad) <= allowed:
        rest = table.take(kept) if bad else table
        try:
            batch = explain(rest)
            break
        except BadValueError as error:
            at, reason = error.row, f"column '{error.column}' {error.reason}"
        except NOT_THE_ROWS:
            raise
        except Exception as error:  # models refuse rows with exceptions of any type
            guilty, refused = first_refused(explain, rest, error)
            if guilty is None:
                raise
            at, reason = guilty, f"{_BY_MODEL}{short(refused)}"
        bad.append((int(kept[at]), reason))
        kept = np.delete(kept, at)
    return batch, kept, bad


def first_refused(
    explain: Callable[[pa.Table], Any], table: pa.Table, error: Exception
) -> tuple[int | None, Exception]:
    """Bisect to the first row that is refused alone; None where only several rows together are."""
    low, high = 0, table.num_rows
    while high - low > 1:
        middle = (low + high) // 2
        try:
            explain(table.slice(low, middle - low))
        except NOT_THE_ROWS:
            raise
        except Exception as refused:  # the same exceptions that made the whole batch fail
            error, high = refused, middle
        else:
            low = middle
    try:
        explain(table.slice(low, 1))
    except NOT_THE_ROWS:
        raise
    except Exception as refused:
        return low, refused
    return None, error


def row_as_json(table: pa.Table, position: int) -> str:
    """One row as a JSON object; what JSON has no form for stands as text."""
    content = {name: _json_value(table[name][position]) for name in table.column_names}
    return json.dumps(content, ensure_ascii=False, default=str)


def write_quarantine(output: Location, index: int, rows: Sequence[BadRow]) -> FileRecord:
    """Write a partition's bad rows, in the order of the input."""
    ordered = sorted(rows, key=lambda row: (row.path, row.row))
    table = pa.table(
        [
            pa.array([row.path for row in ordered], pa.string()),
            pa.array([row.row for row in ordered], pa.int64()),
            pa.array([row.reason for row in ordered], pa.string()),
            pa.array([row.content for row in ordered], pa.string()),
        ],
        schema=SCHEMA,
    )
    return write_table(output, part_path(QUARANTINE, index), table)


def without_value(reason: str) -> str:
    """A reason without the row's own value."""
    for begins in (_BY_MODEL, BY_MODEL_OF_SERIES):
        if reason.startswith(begins):
            return reason.split(": ", 2)[1].join([begins, ""])
    if not reason.startswith("column "):
        return re.sub(r" \([^()]*\)", "", reason)
    return re.sub(r"(?<=' is )('.*'|\".*\"|-?[\d.]+(e[+-]?\d+)?)(?=,|$)", "…", reason)


def forget_quarantine(output: Location, index: int) -> None:
    """Remove the bad rows that an earlier attempt at a partition found, which this one did not."""
    place = output.join(part_path(QUARANTINE, index))
    with suppress(FileNotFoundError):
        place.fs.rm_file(place.path)


def kinds(reasons: Iterable[str]) -> dict[str, int]:
    """How many rows there are of each kind of reason: the values in them left out."""
    return by_count(Counter(map(without_value, reasons)))


def by_count(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Limits:
    """Bad rows and files of a run so far, against ``--max-bad-rows`` and ``--max-bad-files``."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._reasons: Counter[str] = Counter()
        self._files = {file.path for file in plan.files if file.problem is not None}

    def add(self, receipt: Receipt) -> None:
        """Count a partition's.

        Raises
        ------
        BadDataError
            If there are now more than the run allows.
        """
        options, output = self._plan.options, Location(self._plan.options.output)
        if receipt.statistics["unreadable"] is not None:
            self._files.add(self._plan.partition(receipt.index).paths[0])
            if len(self._files) > options.max_bad_files:
                raise BadDataError(
                    f"{len(self._files)} files cannot be read, more than --max-bad-files ({options.max_bad_files}) "
                    f"allows: {', '.join(sorted(self._files)[:_SHOWN_REASONS])}. Write them again and start anew with "
                    "--overwrite, or allow more and go on with --resume."
                )
            return
        self._reasons.update(receipt.statistics["reasons"])
        if sum(self._reasons.values()) > options.bad_rows_allowed(self._plan.rows):
            raise too_many(self._plan, self._reasons, output)


def too_many(plan: Plan, reasons: dict[str, int], output: Location) -> BadDataError:
    """The error of a run with more bad rows than it allows."""
    found = [f"{count:,} × {reason}" for reason, count in by_count(reasons).items()]
    listed = "; ".join(found[:_SHOWN_REASONS])
    more = f"; and {len(found) - _SHOWN_REASONS} other reasons" if len(found) > _SHOWN_REASONS else ""
    return BadDataError(
        f"{sum(reasons.values()):,} rows or more cannot be explained, which is more than --max-bad-rows "
        f"({plan.options.max_bad_rows}) allows: {listed}{more}. They are in {output.join(QUARANTINE)}. Mend them and "
        "start anew with --overwrite, or allow more and go on with --resume: what is done is kept."
    )


def short(error: Any) -> str:
    """An exception's type and the first line that says something."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip() not in ("", "DataException:")), "")
    return f"{type(error).__name__}: {text.removeprefix('Message: ')}"[:400].rstrip(": .")


def _json_value(scalar: pa.Scalar) -> Any:
    try:
        value = scalar.as_py()
    except (OverflowError, ValueError):  # a time that Python has no form for
        value = str(scalar.cast(pa.int64()).as_py()) if pa.types.is_temporal(scalar.type) else str(scalar)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
