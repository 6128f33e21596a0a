"""Proof that a run's folder holds what the run wrote, and that its values can be computed again."""

import hashlib
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan
from batch_explain.engine.quarantine import QUARANTINE
from batch_explain.engine.recompute import Recomputed, Share, explain_again, stored_options
from batch_explain.engine.series import SeriesColumns, SeriesPartition
from batch_explain.errors import BatchExplainError, IntegrityError, InterruptedRunError, OptionError, mask_secrets
from batch_explain.options import REASONS, RunOptions
from batch_explain.results import is_finished
from batch_explain.storage.atomic import FileRecord, json_bytes, sha256_of
from batch_explain.storage.attempts import ATTEMPTS_FOLDER
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import LOCK_FILE
from batch_explain.storage.output import PLAN_FILE, RUN_ID_FILE
from batch_explain.storage.parquet_files import open_parquet, read_parquet
from batch_explain.storage.receipts import Receipt, partial_path, read_receipt, receipt_path
from batch_explain.storage.tables import TableSpec, part_path
from batch_explain.summary.partials import merge_partials
from batch_explain.summary.sketches import SKETCHES_PATH, sketches_table
from batch_explain.summary.tables import (
    ANALYSIS_PATH,
    SAMPLE_PATH,
    analysis_json,
    summary_json,
    summary_path,
    summary_tables,
)

RUN_FILE, SUCCESS_FILE = "run.json", "_SUCCESS"

_THREADS = 8
_WRITTEN_AT_THE_END = re.compile(
    r"feature_map\.parquet|report\.html|summary/((engineered|raw|cohorts)\.(parquet|json)|(sample|sketches)\.parquet"
    r"|(analysis|drift)\.json)"
)
_WORKING_FILES = (LOCK_FILE, f"{ATTEMPTS_FOLDER}/")  # a killed process leaves them, and nobody reads them

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Parameters
    ----------
    file : str
        Relative to the run's folder; or a file of the input, or an artifact.
    wrong : str
        What is wrong with it, as a sentence without the file's name.
    cure : str
        What to do.
    """

    file: str
    wrong: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file} {self.wrong}. {self.cure}."


@dataclass(frozen=True)
class Verification:
    """What was checked in a run's folder, and what is wrong with it.

    Parameters
    ----------
    output : str
    finished : bool
        Whether the run has ended well; only what is done is checked of another one.
    partitions, planned_partitions : int
        Partitions that have a receipt, and all.
    files, bytes : int
        Files that were read from beginning to end, and their size.
    rows : int
        Rows that the receipts account for.
    problems : tuple of Problem
    recomputed : Recomputed or None
    seconds : float
    """

    output: str
    finished: bool
    partitions: int
    planned_partitions: int
    files: int
    bytes: int
    rows: int
    problems: tuple[Problem, ...]
    recomputed: Recomputed | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; an unfinished run may be all right."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """Of the command line: 0, or that of a damaged or an unfinished run."""
        if self.problems:
            return IntegrityError.exit_code
        return 0 if self.finished else InterruptedRunError.exit_code

    def to_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return {"ok": self.ok, **asdict(self)}


def verify(
    path: str | os.PathLike[str],
    *,
    recompute: str | int | None = None,
    seed: int | None = None,
    trust: Iterable[str] = (),
) -> Verification:
    """Check a run's folder against what the run recorded, and some of its values against the model itself.

    Nothing is written. Every file is read and its checksum compared; receipts, plan, ``run.json`` and the parts' own
    footers must agree with each other.

    Parameters
    ----------
    path : str or path
        The run's output folder.
    recompute : str or int, optional
        So many rows, or such a share of them (``0.1%``), are explained again and compared with the stored tables. It
        needs the input and the artifacts in the places where the run read them.
    seed : int, optional
        Chooses the rows; another one each time if left out.
    trust : iterable of str
        Names that the model's and explainer's pickles may use, as in the run. Those that the folder records are not
        believed: who wrote the folder could have written any.

    Returns
    -------
    Verification
        With all that is wrong: nothing of it is raised.

    Raises
    ------
    OptionError
        If there is no run, or ``recompute`` is no number or share.
    """
    started = time.perf_counter()
    share = None if recompute is None else Share.of(recompute)
    output = Location(os.fspath(path))
    try:
        if not any(output.join(name).exists() for name in (SUCCESS_FILE, PLAN_FILE, RUN_FILE)):
            raise OptionError(f"There is no run in {output}. Pass the output folder of a run.")
        checker = _Checker(output)
        checker.check()
    except OSError as error:
        raise OptionError(
            f"The run in {output} cannot be read: {error}. Check the place and its permissions."
        ) from error
    recomputed = None
    if share is not None and checker.plan is not None:
        seed = secrets.randbelow(2**32) if seed is None else seed
        recomputed = explain_again(
            output, checker.plan_json, checker.sound_receipts, share, seed, RunOptions.trusted(trust), checker.report
        )
    return Verification(
        output=str(output),
        finished=checker.finished,
        partitions=len(checker.receipts),
        planned_partitions=len(checker.plan.partitions) if checker.plan else 0,
        files=len(checker.read),
        bytes=sum(checker.read.values()),
        rows=sum(receipt.rows_in for receipt in checker.receipts.values()),
        problems=tuple(dict.fromkeys(checker.problems)),
        recomputed=recomputed,
        seconds=round(time.perf_counter() - started, 3),
    )


class _Checker:
    """One pass over a run's folder.

    Parameters
    ----------
    output : Location

    Attributes
    ----------
    problems : list of Problem
    finished : bool
    info : dict or None
        ``run.json``; None where there is none that can be trusted.
    plan : Plan or None
        None where it cannot be trusted. It knows the input's files but not their place.
    receipts : dict
        Partition -> receipt that was read.
    read : dict
        Files that were read whole -> bytes.
    """

    def __init__(self, output: Location) -> None:
        self.output = output
        self.problems: list[Problem] = []
        self.finished = is_finished(output)
        self.info: dict[str, Any] | None = None
        self.plan: Plan | None = None
        self.plan_json: dict[str, Any] = {}
        self.receipts: dict[int, Receipt] = {}
        self.read: dict[str, int] = {}
        self._listed: dict[str, FileRecord] = {}
        self._blamed: set[str] = set()

    def check(self) -> None:
        """Do all checks that need the folder alone."""
        if self.finished:
            self._check_success()
        self._check_files(self._listed.values())
        self._read_plan()
        if self.plan is not None:
            self._check_receipts(self.plan)
            self._check_parts(self.plan)
            self._check_rows(self.plan)
            self._check_summaries(self.plan)
        self._check_names()

    @property
    def sound_receipts(self) -> list[Receipt]:
        """Receipts with nothing wrong about them or their parts, in partition order."""
        return [
            receipt
            for receipt in self.receipts.values()
            if all(map(self.is_sound, [receipt_path(receipt.index), *(file.path for file in receipt.files)]))
        ]

    def report(self, file: str, wrong: str, cure: str | None = None) -> None:
        """Note what is wrong with a file, once; the cure follows from which file it is."""
        if file not in self._blamed:
            self._blamed.add(file)
            self.problems.append(Problem(mask_secrets(file), mask_secrets(wrong), cure or self._cure(file)))

    def is_sound(self, file: str) -> bool:
        """Whether nothing is wrong with a file so far."""
        return file not in self._blamed

    def _cure(self, file: str) -> str:
        if file == PLAN_FILE:
            return "Restore it, or start anew with --overwrite"
        success = f"{SUCCESS_FILE} and " if self.finished else ""
        if re.search(r"/part-\d+\.(parquet|arrow|json)$", file):
            return f"Restore it, or remove {success}it and go on with --resume, which does its partition again"
        first = f"remove {SUCCESS_FILE} and " if self.finished else ""
        return f"Restore it, or {first}go on with --resume, which writes it again"

    def _check_success(self) -> None:
        """``_SUCCESS`` names ``run.json``, which lists all other files; both as this program writes them."""
        success = self.output.join(SUCCESS_FILE).read_bytes()
        self.read[SUCCESS_FILE] = len(success)
        try:
            content = self.output.join(RUN_FILE).read_bytes()
        except FileNotFoundError:
            self.report(RUN_FILE, "is missing")
            return
        self.read[RUN_FILE] = len(content)
        if success != json_bytes({"run.json": hashlib.sha256(content).hexdigest()}):
            named = re.fullmatch(r'\{\n "run\.json": "[0-9a-f]{64}"\n\}\n', success.decode("utf-8", "replace"))
            if named is None:
                self.report(SUCCESS_FILE, "is not what a run writes: it was changed", self._cure(RUN_FILE))
            else:
                self.report(RUN_FILE, f"is not the one that {SUCCESS_FILE} names: one of the two was changed")
            return
        try:
            info = json.loads(content)
            if json_bytes(info) != content:
                self.report(RUN_FILE, "is not in the form that a run writes: it was edited")
            self._listed = {entry["path"]: FileRecord(**entry) for entry in info["files"]}
            self.info = info
        except (ValueError, KeyError, TypeError) as error:
            self.report(RUN_FILE, f"cannot be understood ({type(error).__name__}: {error})")

    def _check_files(self, records: Iterable[FileRecord]) -> None:
        """Read files from beginning to end, and compare what was recorded of them."""
        for record, wrong in _in_threads(self._compare, [r for r in records if r.path not in self.read]):
            self.read[record.path] = 0 if wrong else record.bytes
            if wrong:
                self.report(record.path, wrong)

    def _compare(self, record: FileRecord) -> str | None:
        place = self.output.join(record.path)
        try:
            size = int(place.fs.size(place.path))
            if size != record.bytes:
                return f"has {size} bytes instead of {record.bytes}"
            if sha256_of(place) != record.sha256:
                return "has another content than the run wrote (its checksum differs)"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error})"
        return None

    def _read_plan(self) -> None:
        if not self.is_sound(PLAN_FILE):
            return
        try:
            self.plan_json = json.loads(self.output.join(PLAN_FILE).read_bytes())
            # the input's place is of no matter here, and may be out of reach
            here = self.output.url
            options = stored_options(self.plan_json, self.output)
            self.plan = Plan.from_json(
                self.plan_json, replace(options, input=here, history=None if options.history is None else here)
            )
        except FileNotFoundError:
            self.report(PLAN_FILE, "is missing")
            return
        except (BatchExplainError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
            self.report(PLAN_FILE, f"cannot be understood ({type(error).__name__}: {error})")
            return
        if self.info is not None and PLAN_FILE not in self._listed:
            self.report(PLAN_FILE, f"is not listed in {RUN_FILE}")
        try:
            if self.output.join(RUN_ID_FILE).read_bytes() != self.plan.run_id.encode():
                self.report(RUN_ID_FILE, "names another run than the plan")
        except FileNotFoundError:
            self.report(RUN_ID_FILE, "is missing")

    def _check_receipts(self, plan: Plan) -> None:
        """Read all receipts, then what they name."""
        for partition, found in _in_threads(self._read_receipt, plan.partitions):
            path = receipt_path(partition.index)
            if isinstance(found, str):
                self.report(path, found)
            elif found is not None:
                self.receipts[partition.index] = found
            elif self.finished:
                self.report(path, "is missing")
        tables = [spec.folder for specs in plan.tables.values() for spec in specs]
        for index, receipt in self.receipts.items():
            if wrong := _contradiction(receipt, plan, plan.partition(index), tables):
                self.report(receipt_path(index), wrong)
        named = [record for r in self.receipts.values() for record in (*r.files, r.partial)]
        if self.info is None:
            self._check_files(named)
            return
        for record in named:
            if self._listed.get(record.path) != record:
                self.report(record.path, f"has other records in its receipt and in {RUN_FILE}")
        for index in self.receipts:
            if receipt_path(index) not in self._listed:
                self.report(receipt_path(index), f"is not listed in {RUN_FILE}")

    def _read_receipt(self, partition: Partition) -> Receipt | str | None:
        """The receipt; None where there is none; text where it is wrong."""
        if not self.is_sound(receipt_path(partition.index)):
            return None
        try:
            return read_receipt(self.output, partition.index)
        except (BatchExplainError, OSError, ValueError, LookupError, TypeError) as error:
            return f"cannot be understood ({type(error).__name__}: {error})"

    def _check_parts(self, plan: Plan) -> None:
        """The footers of parts: rows, columns and what a reader of a single part needs."""
        specs = {spec.folder: _as_stored(spec) for specs in plan.tables.values() for spec in specs}
        parts: list[tuple[str, int, pa.Schema | None]] = []
        for receipt in self.receipts.values():
            for record in receipt.files:
                folder = str(PurePosixPath(record.path).parent)
                rows = receipt.lines if folder in specs else receipt.rows_quarantined
                if folder == REASONS:
                    rows = sum(receipt.statistics["lines_of_reasons"])
                if self.is_sound(record.path) and self.is_sound(receipt_path(receipt.index)):
                    parts.append((record.path, rows, specs.get(folder)))
        for part, wrong in _in_threads(self._check_footer, parts):
            if wrong:
                self.report(part[0], wrong)

    def _check_footer(self, part: tuple[str, int, pa.Schema | None]) -> str | None:
        path, rows, schema = part
        try:
            with self.output.join(path).open_arrow() as stream:
                parquet = open_parquet(stream)
                found, found_rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            return f"cannot be read as parquet ({type(error).__name__}: {error})"
        if found_rows != rows:
            return f"holds {found_rows} rows instead of {rows}"
        if schema is not None and not found.equals(schema):
            return "has other columns than the plan says"
        if schema is not None and not found.equals(schema, check_metadata=True):
            return "has other metadata (task, classes, expected value, features) than the plan says"
        return None

    def _check_rows(self, plan: Plan) -> None:
        """Rows add up: for each input file, and in all."""
        if plan.series is None:
            self._check_cuts(plan)
        else:
            self._check_series(plan, plan.series)
        if self.info is None or len(self.receipts) < len(plan.partitions):
            return
        expected = {
            "input": sum(file.rows for file in plan.files),
            "planned": plan.rows,
            "explained": sum(receipt.rows_explained for receipt in self.receipts.values()),
            "quarantined": sum(receipt.rows_quarantined for receipt in self.receipts.values()),
        }
        if plan.options.filter is not None:
            expected["left_out"] = sum(file.rows_skipped for file in plan.files) + sum(
                receipt.rows_left_out for receipt in self.receipts.values()
            )
        if plan.series is not None:
            expected["lines"] = sum(receipt.lines for receipt in self.receipts.values())
            expected["context"] = sum(plan.series.context.values())
        found = {"quarantined": 0, **self.info.get("rows", {})}
        for name, rows in expected.items():
            if found.get(name) != rows:
                self.report(RUN_FILE, f"says that {found.get(name)} rows were {name}; plan and receipts say {rows}")
        if self.info.get("partitions") != len(plan.partitions):
            said = self.info.get("partitions")
            self.report(RUN_FILE, f"says that there are {said} partitions; the plan has {len(plan.partitions)}")
        if self.info.get("tables") != {level: [s.folder for s in specs] for level, specs in plan.tables.items()}:
            self.report(RUN_FILE, "names other tables than the plan")

    def _check_cuts(self, plan: Plan) -> None:
        """Each file is cut into partitions without gaps, but for the row groups that a filter skips."""
        cuts = [partition for partition in plan.partitions if isinstance(partition, FilePartition)]
        parts = {path: list(cut) for path, cut in groupby(cuts, key=lambda partition: partition.file.path)}
        for file in plan.files:
            stop, cut, begins = 0, 0, dict[int, int]()
            for first, groups in file.stretches:
                begins[first], stop = stop, first + sum(groups)
            stop = 0
            for partition in parts.get(file.path, []):
                if stop not in (partition.start, begins.get(partition.start)):
                    self.report(PLAN_FILE, f"leaves out or repeats rows of {file.path} before row {partition.start}")
                stop = partition.stop
                cut += partition.rows
            if plan.options.limit is None and cut != file.rows - file.rows_skipped:
                self.report(PLAN_FILE, f"cuts {cut} of the {file.rows} rows of {file.path} into partitions")

    def _check_series(self, plan: Plan, columns: SeriesColumns) -> None:
        """Each series is in one partition, and these have all rows of each file but those with a known target."""
        cuts = [partition for partition in plan.partitions if isinstance(partition, SeriesPartition)]
        for key, times in Counter(key for partition in cuts for key, _ in partition.series).items():
            if times > 1:
                self.report(PLAN_FILE, f"has the series {key} in {times} partitions")
        rows = Counter[str](columns.context)
        for partition in cuts:
            if sum(piece.rows for piece in partition.input) != partition.rows:
                self.report(PLAN_FILE, f"counts the rows of partition {partition.index} in two ways")
            for piece in partition.input:
                rows[piece.file.path] += piece.rows
        for file in plan.files:
            if plan.options.limit is None and rows[file.path] != file.rows:
                self.report(PLAN_FILE, f"divides {rows[file.path]} of the {file.rows} rows of {file.path} into series")

    def _check_summaries(self, plan: Plan) -> None:
        """The global summaries are what the partitions' own add up to."""
        if self.info is None or len(self.receipts) < len(plan.partitions):
            return
        if not all(
            self.is_sound(partial_path(index)) and self.is_sound(receipt_path(index)) for index in self.receipts
        ):
            return
        try:
            features = {level: self.info["features"][level] for level in plan.levels}
            zero = set(self.info["features"]["identically_zero"])
            used = [at for at, name in enumerate(self.info["features"]["engineered"]) if name not in zero]
            outputs = self.info["outputs"] or [None]
            layout = plan.layout(len(features.get("raw") or ()), len(outputs))
            statistics, sketched, sample = merge_partials(
                self.output, self.receipts.values(), layout, plan.sketches, plan.sampling
            )
            computed = {**features, "engineered": [self.info["features"]["engineered"][at] for at in used]}
            sketches = sketches_table(layout, statistics, plan.sketches, sketched, features=computed, outputs=outputs)
            tables = summary_tables(
                layout,
                statistics,
                rows=sum(receipt.lines for receipt in self.receipts.values()),
                features=features,
                used=np.array(used, dtype=np.int64),
                outputs=outputs,
            )
            analysis = json_bytes(analysis_json(tables, self.info["expected_values"]))
        except (BatchExplainError, OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            self.report(RUN_FILE, f"and the partial summaries do not fit together ({type(error).__name__}: {error})")
            return
        self._check_summary(ANALYSIS_PATH, analysis)
        for name, table in tables.items():
            self._check_summary(summary_path(name, "parquet"), table)
            self._check_summary(summary_path(name, "json"), json_bytes(summary_json(name, table)))
        self._check_summary(SKETCHES_PATH, sketches)
        if sample is not None:
            self._check_summary(SAMPLE_PATH, sample)

    def _check_summary(self, path: str, expected: pa.Table | bytes) -> None:
        if not self.is_sound(path):
            return
        try:
            place = self.output.join(path)
            if isinstance(expected, bytes):
                right = place.read_bytes() == expected
            else:
                # as it comes back from a file: parquet has no form for some types
                right = _as_parquet(read_parquet(place)) == _as_parquet(expected)
        except (OSError, pa.ArrowException):
            right = False
        if not right:
            self.report(path, "is not what the partitions' own summaries add up to")

    def _check_names(self) -> None:
        """Files that no run of this kind writes; hidden ones are nobody's results."""
        root = self.output.path.rstrip("/") + "/"
        for path in sorted(str(found).removeprefix(root) for found in self.output.fs.find(self.output.path)):
            hidden = any(part.startswith(".") for part in path.split("/"))
            if not hidden and not path.startswith(_WORKING_FILES) and not self._is_expected(path):
                self.report(path, "is there, but no run wrote it", "Move it away: readers may take it for data")

    def _is_expected(self, path: str) -> bool:
        if path in (SUCCESS_FILE, RUN_FILE):
            return True
        if self.info is not None:
            return path in self._listed
        if path in (PLAN_FILE, RUN_ID_FILE) or _WRITTEN_AT_THE_END.fullmatch(path):
            return True
        # of an unfinished run: whatever a partition may write, with or without its receipt
        return self.plan is None or not self.plan.partitions or path in self._names_of_partitions

    @cached_property
    def _names_of_partitions(self) -> set[str]:
        assert self.plan is not None
        folders = [spec.folder for specs in self.plan.tables.values() for spec in specs] + [QUARANTINE]
        return {
            name
            for index in (partition.index for partition in self.plan.partitions)
            for name in (
                receipt_path(index),
                partial_path(index),
                *(part_path(folder, index) for folder in folders),
            )
        }


def _as_parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return bytes(buffer.getvalue())


def _as_stored(spec: TableSpec) -> pa.Schema:
    """A table's schema as it comes back from a file: parquet has no form for some types."""
    buffer = pa.BufferOutputStream()
    pq.ParquetWriter(buffer, spec.schema).close()
    return pq.read_schema(pa.BufferReader(buffer.getvalue()))


def _contradiction(receipt: Receipt, plan: Plan, partition: Partition, tables: Sequence[str]) -> str | None:
    """What a receipt says against the plan or against itself."""
    if receipt.index != partition.index:
        return f"is the receipt of partition {receipt.index}"
    if receipt.run_id != plan.run_id:
        return "belongs to another run"
    if receipt.rows_in != partition.rows:
        return f"says that {receipt.rows_in} rows were read of the partition's {partition.rows}"
    if receipt.rows_in != receipt.rows_explained + receipt.rows_quarantined + receipt.rows_left_out:
        return (
            f"does not add up: {receipt.rows_in} rows were read, {receipt.rows_explained} explained, "
            f"{receipt.rows_quarantined} quarantined, {receipt.rows_left_out} left out"
        )
    if receipt.rows_left_out and plan.options.filter is None:
        return f"says that {receipt.rows_left_out} rows were left out, and there is no filter"
    lines, batches = receipt.statistics.get("lines_of_reasons"), partition.batches(plan.batch_rows)
    if receipt.rows_left_out:
        batches = -(-(receipt.rows_in - receipt.rows_left_out) // plan.batch_rows)
    if receipt.rows_explained and not (isinstance(lines, list) and [type(each) for each in lines] == [int] * batches):
        return "does not say how many reasons each batch has"
    if plan.series is None and receipt.lines != receipt.rows_explained:
        return f"says that there are {receipt.lines} lines of {receipt.rows_explained} rows"
    found = Counter(record.path for record in receipt.files)
    folders = [*tables, *([QUARANTINE] if receipt.rows_quarantined else [])]
    expected = Counter(part_path(folder, partition.index) for folder in folders)
    if found != expected or receipt.partial.path != partial_path(partition.index):
        return f"names other files than {', '.join(sorted(expected))}"
    return None


def _in_threads(work: Callable[[_Item], _Answer], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Answer]]:
    """Each item with its answer, in order; what has not begun is dropped when the caller stops."""
    items = list(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from zip(items, pool.map(work, items), strict=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
