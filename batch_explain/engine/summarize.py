"""New cohorts of a finished run, from its own tables: nothing is explained again."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from batch_explain.engine.cohorts import decide_cohorts, refuse_two_meanings
from batch_explain.engine.environment import cores
from batch_explain.engine.explaining import batches_of
from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan, read_plan_json
from batch_explain.engine.recompute import bad_rows, explained_rows, stored_options
from batch_explain.engine.schema import some_of
from batch_explain.errors import InputError, IntegrityError, InterruptedRunError, OptionError, OutputRefusedError
from batch_explain.options import as_texts
from batch_explain.results import Run, open_run
from batch_explain.storage.atomic import sha256_of, write_json
from batch_explain.storage.dataset import InputFile, discover
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import open_parquet
from batch_explain.storage.receipts import Receipt, read_receipt
from batch_explain.storage.tables import TableSpec, part_path, write_table
from batch_explain.summary.cohorts import PREDICTED_CLASS, Asked, Cohort, by_class
from batch_explain.summary.tables import COHORTS, summary_json, summary_tables
from batch_explain.summary.tally import Layout, Statistics, Tally


@dataclass(frozen=True)
class _Work:
    """What is summarised of which run.

    ``in_input`` names the cohorts whose column is read from the run's input, because no table of the run has it.
    """

    run: Run
    plan: Plan
    cohorts: tuple[Cohort, ...]
    in_input: frozenset[str]
    layout: Layout

    @property
    def levels(self) -> dict[str, tuple[TableSpec, ...]]:
        return _importance_tables(self.plan)


def summarize(
    path: str | os.PathLike[str], *, cohort: str | Sequence[str], output: str | os.PathLike[str]
) -> pd.DataFrame:
    """Summarise a finished run by cohorts that it did not have.

    Parameters
    ----------
    path : str or path
        The run's output folder.
    cohort : str or sequence of str
        ``COLUMN``, ``COLUMN:18,30,50`` or ``COLUMN@4``; an id column, ``predicted class``, or a column of the run's
        input, which must then be where the run read it and unchanged.
    output : str or path
        A folder that is empty or does not exist, outside the run's: ``cohorts.parquet``, ``cohorts.json`` and
        ``summarize.json`` are written into it.

    Returns
    -------
    pandas.DataFrame
        As :meth:`batch_explain.results.Run.cohorts` has it: of the levels whose tables the run has written, with the
        precision that it has written them in.

    Raises
    ------
    OptionError, InputError, OutputRefusedError
        If there is no finished run, a column is in neither its ids nor its input, the input is gone or has changed, or
        the output is taken.
    IntegrityError
        If the run's files do not fit together.
    """
    run = open_run(path)
    asked = as_texts("cohort", cohort)
    if not asked:
        raise OptionError("--cohort is missing: name at least one column to summarise by.")
    target = _free(Location(os.fspath(output)), run)
    work, decisions = _plan(run, asked)
    with ThreadPoolExecutor(cores()) as pool:
        total = Tally(work.layout, whole_run=True)
        for found in pool.map(lambda partition: _of_partition(work, partition), work.plan.partitions):
            total.add_statistics(found)
    table = _table(work, total.statistics())
    try:
        files = [
            write_table(target, "cohorts.parquet", table),
            write_json(target, "cohorts.json", summary_json(COHORTS, table)),
        ]
        write_json(target, "summarize.json", {
            "run": str(run.location),
            "run_json_sha256": sha256_of(run.location.join("run.json")),
            "cohorts": [{"cohort": each.name, "groups": list(each.labels)} for each in work.cohorts],
            "decisions": decisions,
            "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in files],
        })  # fmt: skip
    except OSError as error:
        raise InterruptedRunError(f"The summaries could not be written: {error}. Check {target}.") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _free(target: Location, run: Run) -> Location:
    if run.location.contains(target):
        raise OutputRefusedError(
            f"The output {target} lies in the run's own folder, which holds what the run wrote and nothing else. "
            "Choose a place outside it."
        )
    if target.exists() and (not target.fs.isdir(target.path) or target.fs.ls(target.path, detail=False)):
        raise OutputRefusedError(f"The output {target} is there already and not an empty folder. Choose another place.")
    return target


def _plan(run: Run, asked: tuple[str, ...]) -> tuple[_Work, list[str]]:
    """Which groups there are, and where their column is read."""
    content = read_plan_json(run.location)
    options = stored_options(content, run.location)
    # the input's place is of no matter unless a column is read from it, and may be out of reach
    plan = Plan.from_json(content, replace(options, input=run.location.url))
    tables = _importance_tables(plan)
    if not tables:
        raise OptionError("The run wrote neither engineered nor raw importances: there is nothing to summarise.")
    of_ids = [text for text in asked if text not in (PREDICTED_CLASS, *_no_ids(asked, plan.ids))]
    of_input = _no_ids([text for text in asked if text != PREDICTED_CLASS], plan.ids)
    found: dict[str, Cohort] = {}
    decisions: list[str] = []
    if of_ids:
        folder = next(iter(tables.values()))[0].folder
        cohorts, notes = decide_cohorts(of_ids, discover(run.location.join(folder).url), {})
        found.update(zip(of_ids, cohorts, strict=True))
        decisions += notes
    if of_input:
        if content["series"] is not None:
            raise OptionError(
                f"The column of --cohort {some_of(of_input)} is not among the ids of the forecasting run, whose lines "
                "do not stand in the order of its input. Name an id column (such as "
                f"'{content['series']['keys'][-1]}'), or run again with --cohort."
            )
        plan = Plan.from_json(content, options)
        files = _unchanged(plan, of_input)
        cohorts, notes = decide_cohorts(of_input, files, plan.hive, options.limit)
        refuse_two_meanings(cohorts)
        found.update(zip(of_input, cohorts, strict=True))
        decisions += notes
    if PREDICTED_CLASS in asked:
        found[PREDICTED_CLASS] = _by_class(run)
    ordered = tuple(found[text] for text in asked)
    outputs = len(next(iter(tables.values())))
    sizes = {"engineered": len(plan.used), "raw": len(run.info["features"]["raw"] or ())}
    layout = Layout.of(ordered, {level: sizes[level] for level in tables}, outputs)
    columns = frozenset(found[text].name for text in of_input)
    return _Work(run, plan, ordered, columns, layout), decisions + layout.decisions()


def _no_ids(asked: Sequence[str], ids: Sequence[str]) -> list[str]:
    return [text for text in asked if Asked.parse(text, ids).column not in ids]


def _importance_tables(plan: Plan) -> dict[str, tuple[TableSpec, ...]]:
    return {level: plan.tables[level] for level in ("engineered", "raw") if level in plan.tables}


def _unchanged(plan: Plan, columns: Sequence[str]) -> list[InputFile]:
    """The run's input as it is now, if it is what the run read."""
    why = f"The column of --cohort {some_of(columns)} is not among the run's ids"
    try:
        files = discover(plan.options.input, plan.options.max_bad_files, plan.options.where)
    except (InputError, OSError) as error:
        raise InputError(
            f"{why}, so it must be read from the run's input, which is not there: {error} Restore it, or name an id "
            "column."
        ) from error
    now = {file.path: file.fingerprint for file in files}
    if changed := [file.path for file in plan.files if now.get(file.path) != file.fingerprint]:
        raise InputError(
            f"{why}, so it must be read from the run's input, of which {some_of(changed, 5)} "
            f"{'are' if len(changed) > 1 else 'is'} gone or changed since. Restore the input, or name an id column."
        )
    known = {file.path: file for file in plan.files}
    return [
        replace(file, schema=known[file.path].schema if known[file.path].format.types_are_inferred else file.schema)
        for file in files
        if file.problem is None and file.path in known
    ]


def _by_class(run: Run) -> Cohort:
    classes = run.info["classes"]
    cohort = None if classes is None or "predictions" not in run.info["tables"] else by_class(classes)
    if cohort is None:
        raise OptionError(
            f"--cohort '{PREDICTED_CLASS}' needs the predictions table of a classifier of few classes, which the run "
            "does not have. Name a column."
        )
    return cohort


def _of_partition(work: _Work, partition: Partition) -> Statistics:
    """A partition's statistics: batch by batch as the run wrote them, each of which is a row group of its parts."""
    receipt = read_receipt(work.run.location, partition.index)
    if receipt is None or receipt.run_id != work.plan.run_id:
        raise IntegrityError(f"Partition {partition.index} has no receipt of this run. Ask batch-explain verify.")
    tally = Tally(work.layout)
    if not receipt.rows_explained:
        return tally.statistics()
    try:
        return _tallied(work, partition, receipt, tally)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(
            f"The parts of partition {partition.index} cannot be read: {error}. Ask batch-explain verify."
        ) from error


def _tallied(work: _Work, partition: Partition, receipt: Receipt, tally: Tally) -> Statistics:
    plan, place = work.plan, work.run.location
    columns = _input_columns(work, partition, receipt)
    folders = [spec.folder for specs in work.levels.values() for spec in specs]
    if any(cohort.predicted for cohort in work.cohorts):
        folders.append("predictions")
    with ExitStack() as stack:
        parts = {
            folder: open_parquet(stack.enter_context(place.join(part_path(folder, partition.index)).open_arrow()))
            for folder in folders
        }
        start = 0
        for group in range(parts[folders[0]].num_row_groups):
            read = {folder: part.read_row_group(group, use_threads=False) for folder, part in parts.items()}
            rows = read[folders[0]].num_rows
            values = {
                level: np.stack([_importances(plan, level, spec, read[spec.folder]) for spec in specs])
                for level, specs in work.levels.items()
            }
            codes = {}
            for cohort in work.cohorts:
                if cohort.predicted:
                    column = read["predictions"]["prediction"]
                elif cohort.name in work.in_input:
                    assert columns is not None
                    column = columns[cohort.name].slice(start, rows)
                else:
                    column = read[folders[0]][cohort.name]
                codes[cohort.name] = cohort.codes(column)
            tally.add(values, codes)
            start += rows
    return tally.statistics()


def _importances(plan: Plan, level: str, spec: TableSpec, table: pa.Table) -> np.ndarray:
    """Values of the computed features, shape (feature, row)."""
    ids = len(plan.ids) or 2
    columns = [column.to_numpy() for column in table.columns[ids:]]
    if level == "engineered":
        columns = [columns[at] for at in np.searchsorted(plan.written, plan.used)]
    return np.array(columns, dtype=np.float64).reshape(len(columns), table.num_rows)


def _input_columns(work: _Work, partition: Partition, receipt: Receipt) -> pa.Table | None:
    """Cohorts' columns of the rows that were explained, read from the input."""
    cohorts = tuple(cohort for cohort in work.cohorts if cohort.name in work.in_input)
    if not cohorts:
        return None
    only = replace(work.plan, model_columns=(), ids=(), cohorts=cohorts)
    assert isinstance(partition, FilePartition)  # of series, cohorts are in the tables
    bad = bad_rows(work.run.location, receipt)
    read = ((rows.table, explained_rows(rows, bad)) for rows in batches_of(only, partition))
    return pa.concat_tables([table.take(pa.array(kept)) if bad else table for table, kept in read])


def _table(work: _Work, statistics: Statistics) -> pa.Table:
    info: dict[str, Any] = work.run.info
    return summary_tables(
        work.layout,
        statistics,
        rows=info["rows"]["explained"],
        features={level: info["features"][level] for level in work.levels},
        used=work.plan.used,
        outputs=info["outputs"] or [None],
    )[COHORTS]
