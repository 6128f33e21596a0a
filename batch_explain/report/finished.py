"""The report of a run that is finished, made again, outside its folder."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from batch_explain.errors import IntegrityError, InterruptedRunError, OutputRefusedError
from batch_explain.report.page import MARK, report_html
from batch_explain.storage.atomic import write_bytes
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import read_parquet
from batch_explain.summary.tables import DRIFT_PATH, SAMPLE_PATH, summary_path

_HEAD = 4_000  # bytes of a report, in which it says what it is


def read_summaries(run: Location) -> tuple[dict[str, pa.Table], pa.Table | None]:
    """The summaries that a run has, and its sample."""
    tables = {}
    for name in ("raw", "engineered", "cohorts"):
        table = _read(run.join(summary_path(name, "parquet")))
        if table is not None:
            tables[name] = table
    return tables, _read(run.join(SAMPLE_PATH))


def _read(place: Location) -> pa.Table | None:
    return read_parquet(place) if place.exists() else None


def write_report(run: Location, info: Mapping[str, Any], target: Location) -> None:
    """Write the report of a finished run.

    Parameters
    ----------
    run : Location
    info : mapping
        Its ``run.json``.
    target : Location
        A file. One that is there already is replaced if it is a report.

    Raises
    ------
    OutputRefusedError
        If the target lies in the run's folder, or is anything but a report.
    IntegrityError
        If the run's summaries cannot be read.
    InterruptedRunError
        If it cannot be written.
    """
    if run.contains(target):
        raise OutputRefusedError(
            f"The report {target} would lie in the run's own folder, which holds what the run wrote and nothing else. "
            "Choose a place outside it."
        )
    if target.exists() and not _is_report(target):
        raise OutputRefusedError(f"There is something at {target} that is not a report. Choose another place for it.")
    try:
        tables, sample = read_summaries(run)
        drift = json.loads(run.join(DRIFT_PATH).read_bytes()) if info.get("drift") else None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise IntegrityError(
            f"The summaries of the run in {run} cannot be read: {error}. Ask batch-explain verify."
        ) from error
    page = report_html(info, tables, sample, drift=drift)
    try:
        write_bytes(target.parent, target.name, page)
    except OSError as error:
        raise InterruptedRunError(f"The report could not be written: {error}. Check {target}.") from error


def _is_report(target: Location) -> bool:
    if not target.fs.isfile(target.path):
        return False
    with target.open() as stream:
        return MARK in stream.read(_HEAD)
