"""Random rows of a run, explained again from its input and artifacts, and compared with what it stored."""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import ceil
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetFile  # noqa: TID251 - the type
from threadpoolctl import threadpool_limits

from batch_explain.engine.artifacts import Artifacts, name_outputs
from batch_explain.engine.explaining import Context, Explained, batches_of, explain_batch
from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan, artifact_digests, changed_versions, versions
from batch_explain.engine.quarantine import QUARANTINE
from batch_explain.engine.reason_lines import reason_lines
from batch_explain.engine.recompute_reasons import one_line_a_row, rows_of_lines
from batch_explain.engine.rows import Rows
from batch_explain.engine.task import ids_of, write_batch
from batch_explain.errors import BadDataError, BatchExplainError, OptionError
from batch_explain.options import REASONS, RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import open_parquet, read_parquet
from batch_explain.storage.receipts import Receipt
from batch_explain.storage.tables import SOURCE_IDS, PartWriter, part_path

# |difference| <= tolerance x max(1, the row's largest |value|)
PREDICTION_TOLERANCE = 1e-12
IMPORTANCE_TOLERANCE = {"float64": 1e-9, "float32": 1e-6}


@dataclass(frozen=True)
class Recomputed:
    """What was computed again.

    Parameters
    ----------
    rows : int
        Rows compared with the stored ones.
    seed : int
        Of their choice.
    other_versions : tuple of str
        Packages that have another version here than when the run was planned.
    """

    rows: int
    seed: int
    other_versions: tuple[str, ...]


class Report(Protocol):
    """Takes what is wrong with a file."""

    def __call__(self, file: str, wrong: str, cure: str | None = None) -> None:
        """Note it: a sentence without the file's name, and what to do (None: what its name suggests)."""


@dataclass(frozen=True)
class Share:
    """How many rows to compute again: a number, or a share of all."""

    rows: int | None
    percent: Fraction | None

    @classmethod
    def of(cls, value: str | int) -> "Share":
        """Parse ``100`` or ``0.1%``; raises OptionError."""
        text = str(value).replace("_", "").strip()
        if re.fullmatch(r"\d+", text, re.ASCII) and int(text):
            return cls(int(text), None)
        if re.fullmatch(r"\d+(\.\d+)?%", text, re.ASCII) and 0 < Fraction(text[:-1]) <= 100:
            return cls(None, Fraction(text[:-1]))
        raise OptionError(f"--recompute is '{value}'. Use a number of rows such as 100, or a share such as 0.1%.")

    def among(self, rows: int) -> int:
        """How many that are of so many rows; at least one of any."""
        wanted = self.rows if self.percent is None else ceil(rows * self.percent / 100)
        return min(rows, wanted or 0)


class _Recalculated(PartWriter):
    """Takes what a task would write, instead of writing it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(Location(plan.options.output), (), 0, None)
        self._specs = {spec.folder: spec for specs in plan.tables.values() for spec in specs}
        self.tables: dict[str, pa.Table] = {}

    def write(self, folder: str, columns: list[pa.Array]) -> None:
        """Keep a table's rows."""
        self.tables[folder] = pa.Table.from_arrays(columns, schema=self._specs[folder].schema)


def explain_again(
    output: Location,
    plan_json: dict[str, Any],
    receipts: Sequence[Receipt],
    share: Share,
    seed: int,
    trust: tuple[str, ...],
    report: Report,
) -> Recomputed | None:
    """Explain random rows again and compare them with the stored ones.

    Parameters
    ----------
    output : Location
        The run's folder.
    plan_json : dict
        Its stored plan.
    receipts : sequence of Receipt
        Of the partitions to take rows from, in their order: their parts are what the run wrote.
    share : Share
    seed : int
    trust : tuple of str
        Names that the pickles may use, beside what is on the list.
    report : Report
        Takes what differs, or why it could not be found out.

    Returns
    -------
    Recomputed or None
        None where no row could be computed.
    """
    chosen = _choose(receipts, share, seed)
    context = _context(output, plan_json, trust, report) if chosen else None
    if chosen and context is None:
        return None
    compared = 0
    with threadpool_limits(1):
        for receipt, numbers in chosen:
            assert context is not None
            partition = context.plan.partition(receipt.index)
            try:
                lines = receipt.statistics["lines_of_reasons"]
                bad = bad_rows(output, receipt)
                compare = _compare_partition if isinstance(partition, FilePartition) else _compare_series
                compared += compare(output, context, partition, bad, numbers, lines, report)
            except (BatchExplainError, OSError, MemoryError) as error:
                wrong = f"could not be explained again ({_sentence(error)})"
                report(partition.paths[0], wrong, "Restore the input that the run read")
    return Recomputed(compared, seed, tuple(changed_versions(plan_json["versions"], versions())))


def _choose(receipts: Sequence[Receipt], share: Share, seed: int) -> list[tuple[Receipt, np.ndarray]]:
    """Partitions, with the numbers of the chosen lines among those that they explained, in order."""
    total = sum(receipt.lines for receipt in receipts)
    drawn = np.array(sorted(random.Random(seed).sample(range(total), share.among(total))), dtype=np.int64)
    chosen, before = [], 0
    for receipt in receipts:
        low, high = np.searchsorted(drawn, [before, before + receipt.lines])
        if high > low:
            chosen.append((receipt, drawn[low:high] - before))
        before += receipt.lines
    return chosen


def explained_rows(rows: Rows, bad: set[tuple[str, int]]) -> np.ndarray:
    """Positions among rows that were read of those that a partition's parts hold: the ones not in quarantine."""
    if not bad:
        return np.arange(len(rows))
    places = zip(rows.source()[0].to_pylist(), rows.numbers.tolist(), strict=True)
    return np.array([at for at, place in enumerate(places) if place not in bad], dtype=np.int64)


def _context(output: Location, plan_json: dict[str, Any], trust: tuple[str, ...], report: Report) -> Context | None:
    """The run's artifacts, loaded as a worker loads them."""
    try:
        options = replace(stored_options(plan_json, output), trust=trust)
        plan = Plan.from_json(plan_json, options)
        found = artifact_digests(options)
        if changed := [name for name, digest in plan.artifacts.items() if found.get(name) != digest]:
            for name in changed:
                own = {"model": options.model, "background": options.background}
                own["explainer"] = options.explainer or options.model
                place = own.get(name, options.feature_map)
                report(str(place), f"is another {name} than the run's", "Restore it to compute rows again")
            return None
        artifacts = Artifacts.load(options)
    except (BatchExplainError, OSError) as error:
        masked = any("***" in str(plan_json["options"].get(name)) for name in ("input", "model", "explainer"))
        report(
            "The input or an artifact",
            f"cannot be loaded ({_sentence(error)})",
            "Its address held credentials, which a run does not store: give them in the environment, in the run too"
            if masked
            else "Restore it",
        )
        return None
    artifacts.explainer.take_learned(plan.learned)
    return Context(plan, name_outputs(artifacts))


def _compare_partition(
    output: Location,
    context: Context,
    partition: Partition,
    bad: set[tuple[str, int]],
    numbers: np.ndarray,
    lines: Sequence[int],
    report: Report,
) -> int:
    """Compare chosen rows of a partition with what is stored of them; the number of rows.

    Parameters
    ----------
    output : Location
    context : Context
    partition : Partition
    bad : set of (str, int)
        Files and positions of its rows that are in quarantine.
    numbers : ndarray of int
        Which of the others to compare.
    lines : sequence of int
        Reasons of each batch.
    report : Report
    """
    plan, compared, before = context.plan, 0, 0
    differ: dict[str, _Difference] = {}
    with _parts(output, plan, partition) as stored:
        stops = np.cumsum(lines)
        for batch, start, stop in zip(batches_of(plan, partition), stops - lines, stops, strict=False):
            if before > numbers[-1]:
                break
            kept = explained_rows(batch, bad)
            here = numbers[(numbers >= before) & (numbers < before + len(kept))]
            if len(here):
                read = _read_lines(stored, here, np.arange(start, stop))
                good = batch if len(kept) == len(batch) else batch.take(kept)
                for folder, found in _compare_batch(context, good, here - before, read).items():
                    differ[folder] = differ[folder].and_then(found) if folder in differ else found
                compared += len(here)
            before += len(kept)
    _report(differ, partition, len(numbers), report)
    return compared


def _compare_series(
    output: Location,
    context: Context,
    partition: Partition,
    bad: set[tuple[str, int]],
    numbers: np.ndarray,
    lines: Sequence[int],
    report: Report,
) -> int:
    """The same of whole series, which are computed in their batches: alone, a row has no history."""
    plan, compared, before = context.plan, 0, 0
    differ: dict[str, _Difference] = {}
    with _parts(output, plan, partition) as stored:
        stops = np.cumsum(lines)
        for batch, start, stop in zip(batches_of(plan, partition), stops - lines, stops, strict=False):
            kept = explained_rows(batch, bad)
            if not len(kept):
                continue
            again = explain_batch(context, batch if len(kept) == len(batch) else batch.take(kept))
            here = numbers[(numbers >= before) & (numbers < before + len(again.lines))]
            read = _read_lines(stored, here, np.arange(start, stop))
            for folder, found in _compare_explained(context, again, here - before, read).items():
                differ[folder] = differ[folder].and_then(found) if folder in differ else found
            compared += len(here)
            before += len(again.lines)
    _report(differ, partition, len(numbers), report)
    return compared


@contextmanager
def _parts(output: Location, plan: Plan, partition: Partition) -> Iterator[dict[str, ParquetFile]]:
    """A partition's parts, opened, by their tables' folders."""
    with ExitStack() as stack:
        yield {
            spec.folder: open_parquet(
                stack.enter_context(output.join(part_path(spec.folder, partition.index)).open_arrow())
            )
            for specs in plan.tables.values()
            for spec in specs
        }


def _read_lines(stored: dict[str, ParquetFile], chosen: np.ndarray, reasons: np.ndarray) -> dict[str, pa.Table]:
    """Chosen lines of each table, and a batch's of the reasons."""
    return {
        folder: _rows_of_part(parquet, reasons if folder == REASONS else chosen) for folder, parquet in stored.items()
    }


def bad_rows(output: Location, receipt: Receipt) -> set[tuple[str, int]]:
    """Files and positions of a partition's rows in quarantine."""
    if not receipt.rows_quarantined:
        return set()
    table = read_parquet(output.join(part_path(QUARANTINE, receipt.index)), ["source_file", "source_row"])
    return set(zip(table["source_file"].to_pylist(), table["source_row"].to_pylist(), strict=True))


def _report(differ: dict[str, "_Difference"], partition: Partition, compared: int, report: Report) -> None:
    for folder, found in differ.items():
        report(
            part_path(folder, partition.index),
            f"does not hold what the model and the explainer give: of {compared} rows that were computed again, "
            f"{found.rows} differ, the first in {found.first}",
        )


@dataclass(frozen=True)
class _Difference:
    """How many rows of a table differ, and where the first of them does."""

    rows: int
    first: str

    def and_then(self, later: "_Difference") -> "_Difference":
        return replace(self, rows=self.rows + later.rows)


def _compare_batch(
    context: Context, rows: Rows, chosen: np.ndarray, stored: dict[str, pa.Table]
) -> dict[str, _Difference]:
    """Compare chosen rows of a batch, computed alone; and by the whole batch, which some models depend on."""
    wrong: dict[str, _Difference] = {}
    alone = context.artifacts.explainer.kind != "opaque"
    everything = np.arange(len(rows))
    for positions in ([chosen] if alone else []) + [everything]:
        try:
            again = explain_batch(context, rows.take(positions))
        except BadDataError:
            if positions is everything:
                raise
            continue
        mine = np.searchsorted(positions, chosen)
        wrong = _compare_explained(context, again, mine, stored, rows, chosen)
        if not wrong:
            break
    return wrong


def _compare_explained(
    context: Context,
    again: Explained,
    mine: np.ndarray,
    stored: dict[str, pa.Table],
    rows: Rows | None = None,
    chosen: np.ndarray | None = None,
) -> dict[str, _Difference]:
    """Compare what was computed with what is stored.

    ``mine`` are the chosen ones of the computed lines. ``rows`` is the batch that the stored reasons are of, and
    ``chosen`` the chosen ones of its rows; None: all of it was computed.
    """
    rows, chosen = again.lines if rows is None else rows, mine if chosen is None else chosen
    computed, of_rows = _tables_of(context, again)
    wrong = {}
    for folder, found in stored.items():
        if folder == REASONS:
            pair = _reasons_of_rows(context, rows, found, chosen, computed[folder], of_rows, mine)
        else:
            pair = found, computed[folder].take(pa.array(mine))
        if difference := _difference(context.plan, folder, *pair, [rows.place(at) for at in chosen]):
            wrong[folder] = difference
    return wrong


def _reasons_of_rows(
    context: Context,
    rows: Rows,
    stored: pa.Table,
    chosen: np.ndarray,
    computed: pa.Table,
    of_rows: np.ndarray,
    mine: np.ndarray,
) -> tuple[pa.Table, pa.Table]:
    """Stored and computed reasons of the chosen rows, a line for each row.

    ``stored`` are all of the batch, ``computed`` those of the rows that were computed: ``of_rows`` is the row of each
    line, and ``mine`` are the chosen ones among these rows.
    """
    reasons, outputs = context.plan.reasons, context.artifacts.labels or ()
    assert reasons is not None
    if stored.num_rows == computed.num_rows:  # of the whole batch
        where = of_rows
    else:
        where = rows_of_lines(reasons, stored, ids_of(context.plan, rows), outputs)
    return (
        one_line_a_row(reasons, stored, where, chosen, outputs),
        one_line_a_row(reasons, computed, of_rows, mine, outputs),
    )


def _tables_of(context: Context, again: Explained) -> tuple[dict[str, pa.Table], np.ndarray]:
    """What a task would write; and which row each line of the reasons belongs to."""
    recalculated, batch = _Recalculated(context.plan), again.batch
    assert batch is not None
    write_batch(recalculated, context, again.lines, batch)
    reasons = context.plan.reasons
    if reasons is None:
        return recalculated.tables, np.array([])
    return recalculated.tables, reason_lines(reasons, batch, again.lines.table, context.artifacts).rows


def _rows_of_part(parquet: ParquetFile, positions: np.ndarray) -> pa.Table:
    """Rows of a part by their positions, in order; only the row groups that hold some are read."""
    pieces, before = [parquet.schema_arrow.empty_table()], 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        inside = positions[(positions >= before) & (positions < before + rows)] - before
        if len(inside):
            pieces.append(parquet.read_row_group(group, use_threads=False).take(pa.array(inside)))
        before += rows
    return pa.concat_tables(pieces)


def _difference(
    plan: Plan, folder: str, stored: pa.Table, computed: pa.Table, places: Sequence[str]
) -> _Difference | None:
    """Where a stored table differs from the computed one beyond the tolerance."""
    ids = plan.ids or tuple(field.name for field in SOURCE_IDS)
    exact = folder in ("predictions", "features")
    tolerance = PREDICTION_TOLERANCE if exact else IMPORTANCE_TOLERANCE[plan.options.dtype]
    numbers = [f.name for f in computed.schema if pa.types.is_floating(f.type) and f.name not in ids]
    scale = np.ones(computed.num_rows)
    for name in numbers:
        scale = np.fmax(scale, np.abs(_numbers(computed[name])))
    unequal = np.zeros(computed.num_rows, dtype=bool)
    example: tuple[int, str] | None = None
    for name in computed.column_names:
        if name in numbers:
            found, expected = _numbers(stored[name]), _numbers(computed[name])
            with np.errstate(invalid="ignore"):
                close = (found == expected) | (np.abs(found - expected) <= tolerance * scale)
            here = ~(close | (np.isnan(found) & np.isnan(expected)))
        else:
            pairs = zip(stored[name].to_pylist(), computed[name].to_pylist(), strict=True)
            here = np.array([repr(found) != repr(expected) for found, expected in pairs], dtype=bool)
        if here.any() and (example is None or int(here.argmax()) < example[0]):
            example = int(here.argmax()), name
        unequal |= here
    if example is None:
        return None
    at, name = example
    was, now = stored[name][at].as_py(), computed[name][at].as_py()
    return _Difference(int(unequal.sum()), f"column '{name}' ({was!r} is stored, {now!r} computed) in {places[at]}")


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def stored_options(plan: dict[str, Any], output: Location) -> RunOptions:
    """The options of a stored plan, for computing in this process; those that this program does not know are left out.

    Raises
    ------
    OptionError
        If one of them has a value that cannot be.
    """
    known = {field.name for field in fields(RunOptions)}
    values = {name: _as_tuples(value) for name, value in plan["options"].items() if name in known}
    return RunOptions(
        **{**values, "output": output.url, "scheduler": "sync", "workers": None, "overwrite": False, "resume": False}
    )


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value


def _sentence(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).rstrip(".")
