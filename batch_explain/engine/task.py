"""One partition = one task, idempotent: read, featurize once, predict, explain, derive raw, write, receipt."""

import contextlib
import ctypes
import functools
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from threadpoolctl import ThreadpoolController

from batch_explain.engine.additivity import check_additivity
from batch_explain.engine.artifacts import Batch
from batch_explain.engine.explaining import Context, batches_of, explain_good, model_columns
from batch_explain.engine.features import FEATURES, feature_arrays, needed
from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan
from batch_explain.engine.quarantine import BadRow, forget_quarantine, kinds, too_many, write_quarantine
from batch_explain.engine.reason_lines import reason_lines
from batch_explain.engine.rows import Rows
from batch_explain.engine.sketches import count_sketches
from batch_explain.errors import IntegrityError, InterruptedRunError, StoppedError, UnreadableFileError
from batch_explain.options import REASONS
from batch_explain.storage.atomic import FileRecord
from batch_explain.storage.attempts import attempt
from batch_explain.storage.filesystems import Location
from batch_explain.storage.output import RUN_ID_FILE
from batch_explain.storage.ranges import let_go
from batch_explain.storage.receipts import Receipt, valid_receipt, write_receipt
from batch_explain.storage.tables import PartWriter, TableSpec
from batch_explain.summary import fidelity
from batch_explain.summary.partials import Partial, write_partial
from batch_explain.summary.sample import Pieces, Sampling, sample_rows
from batch_explain.summary.sketches import SketchCounts, SketchTally
from batch_explain.summary.tally import Statistics, Tally

_READINGS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@dataclass
class _Tally:
    """What a partition adds up from its batches."""

    read: int = 0
    rows: int = 0
    lines: int = 0
    summed: Tally | None = None
    sketched: SketchTally | None = None
    sampled: Pieces = field(default_factory=Pieces)
    followed: fidelity.Fidelity | None = None
    residual: float | None = None
    checked: int = 0
    imputed: dict[str, int] = field(default_factory=dict)
    padded: dict[str, int] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    left_out: int = 0
    reasons: list[int] = field(default_factory=list)
    unreadable: str | None = None


def run_partition(context: Context, partition: Partition) -> Receipt:
    """Explain one partition and write its parts, its partial summary and, last, its receipt.

    Where a valid receipt is there already (of an attempt whose answer was lost), that is the answer.

    Raises
    ------
    BadDataError
        If rows cannot be explained; the message names file, row and column.
    IntegrityError
        If importances do not add up to the margin.
    InterruptedRunError
        If reading or writing fails, or it takes longer than ``--task-timeout``.
    """
    plan = context.plan
    output = Location(plan.options.output)
    try:
        if (done := valid_receipt(output, partition.index, plan.run_id)) is not None:
            return done
        _still_ours(output, plan)
        with attempt(output, partition.index):
            return _within(plan.options.task_timeout, partition, lambda: _work(context, partition, output))
    except (OSError, MemoryError) as error:
        raise InterruptedRunError(
            f"{partition.name} could not be finished: {type(error).__name__}: {error}. Free space or memory, "
            f"check {output}, and go on with --resume."
        ) from error


def _work(context: Context, partition: Partition, output: Location) -> Receipt:
    started = time.perf_counter()
    _keep_freed_memory()
    plan = context.plan
    with _native_libraries(len(sys.modules)).limit(limits=1, user_api="openmp"):
        tally, files = _explain_and_write(context, partition, output)
    if tally.bad:
        files.append(write_quarantine(output, partition.index, tally.bad))
    else:
        forget_quarantine(output, partition.index)
    partial = write_partial(output, partition.index, _partial(context, tally))
    receipt = Receipt(
        index=partition.index,
        run_id=plan.run_id,
        rows_in=tally.read + tally.left_out,
        rows_explained=tally.rows,
        rows_quarantined=len(tally.bad),
        rows_left_out=tally.left_out,
        lines=tally.lines,
        files=tuple(files),
        partial=partial,
        statistics={
            "fidelity": fidelity.to_json(tally.followed),
            "additivity_residual": tally.residual,
            "additivity_rows": tally.checked,
            "imputed": tally.imputed,
            "padded": tally.padded,
            "reasons": kinds(row.reason for row in tally.bad),
            "bad_rows": dict(Counter(row.path for row in tally.bad)),
            "unreadable": tally.unreadable,
            "lines_of_reasons": tally.reasons,  # of each batch
        },
        worker={
            "host": platform.node(),
            "pid": os.getpid(),
            "treeshap": context.artifacts.explainer.treeshap,
            "artifacts_loaded_at": context.loaded_at,
            "seconds": round(time.perf_counter() - started, 4),
            "peak_rss_bytes": peak_rss_bytes(),
        },
    )
    # another attempt may have come first: its receipt is as good, and may be listed in run.json already
    if (done := valid_receipt(output, partition.index, plan.run_id)) is not None:
        return done
    write_receipt(output, receipt)
    return receipt


def _explain_and_write(context: Context, partition: Partition, output: Location) -> tuple[_Tally, list[FileRecord]]:
    """Write a partition's parts; without rows, where its file cannot be read and may be left out."""
    for _ in range(_READINGS):  # a storage that fails once is no damaged file
        try:
            return _write_parts(context, partition, output)
        except UnreadableFileError as error:
            if not context.plan.options.max_bad_files or not isinstance(partition, FilePartition):
                raise  # what else the file holds of a series is not known
            reason = str(error)
    assert isinstance(partition, FilePartition)
    path = partition.file.path
    bad = [BadRow(path, row, reason, None) for row in range(partition.start, partition.stop)]
    with _part_writer(context.plan, partition, output) as writer:
        return _Tally(read=partition.rows, bad=bad, unreadable=reason), writer.commit()


def _write_parts(context: Context, partition: Partition, output: Location) -> tuple[_Tally, list[FileRecord]]:
    plan, tally = context.plan, _Tally()
    allowed = plan.options.bad_rows_allowed(plan.rows)
    with _part_writer(plan, partition, output) as writer:
        for rows in batches_of(plan, partition):
            if context.stopping.is_set():
                raise StoppedError(f"{partition.name} were given up, because the run stops.")
            tally.read += len(rows)
            left = None if not allowed else allowed - len(tally.bad)
            found = explain_good(context, rows, left)
            tally.bad += found.bad
            if len(tally.bad) > allowed:
                # beside what is done: the run ends here, and its user wants to see them
                write_quarantine(output, partition.index, tally.bad)
                raise too_many(plan, kinds(row.reason for row in tally.bad), output)
            if found.batch is not None:
                _check_format(context, found.batch, partition)
                tally.rows += found.rows
                _count(tally, context, found.lines, found.batch)
                tally.reasons.append(write_batch(writer, context, found.lines, found.batch))
            else:
                tally.reasons.append(0)
        if plan.options.filter is not None:  # the reader came by all rows, or raised
            tally.left_out = partition.rows - tally.read
        if tally.rows + len(tally.bad) + tally.left_out != partition.rows:
            raise IntegrityError(
                f"{partition.name} gave {tally.rows} rows instead of {partition.rows}. The file was changed "
                "during the run: start the run again with --overwrite."
            )
        _still_ours(output, plan)
        return tally, writer.commit()


def _part_writer(plan: Plan, partition: Partition, output: Location) -> PartWriter:
    tables = [spec for specs in plan.tables.values() for spec in specs]
    return PartWriter(output, tables, partition.index, plan.options.pyarrow_compression)


def _within(seconds: float | None, partition: Partition, work: Callable[[], Receipt]) -> Receipt:
    """Do the work, and give up on it after so many seconds."""
    if seconds is None:
        return work()
    answer: futures.Future[Receipt] = futures.Future()

    def do() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)
        finally:
            let_go(mine=True)  # this thread reads no more

    # a daemon: a task that hangs for ever must not keep the process
    threading.Thread(target=do, name=f"partition {partition.index}", daemon=True).start()
    try:
        return answer.result(seconds)
    except futures.TimeoutError:
        if answer.done():
            raise
        raise InterruptedRunError(
            f"{partition.name} took longer than --task-timeout ({seconds:g} s). Look whether storage or the model "
            "hangs on them (or on others that they wait for), and go on with --resume, with a longer --task-timeout if "
            "it was only slow."
        ) from None


@functools.lru_cache(maxsize=1)
def _native_libraries(_modules: int) -> ThreadpoolController:
    """The thread pools of this process; looked for again only when more modules are there: it takes 20 ms."""
    return ThreadpoolController()


@functools.lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Have glibc keep a batch's arrays for the next one: to take them anew from the system costs 1 to 2 µs a row.

    Dask starts its workers with settings that give everything back at once.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)


def _still_ours(output: Location, plan: Plan) -> None:
    """A task that outlived its run (a signal, a lost client) must not write into the next one."""
    found = None
    with contextlib.suppress(FileNotFoundError):
        found = output.join(RUN_ID_FILE).read_bytes()
    if found != plan.run_id.encode():
        raise InterruptedRunError(f"Another run has taken the output {output}. Give each run its own output.")


def _check_format(context: Context, batch: Batch, partition: Partition) -> None:
    """A features table says once for all rows whether they were sparse, where that makes a difference."""
    plan, explainer = context.plan, context.artifacts.explainer
    differs = sp.issparse(batch.matrix) != plan.sparse_rows
    if FEATURES in plan.tables and differs and explainer.depends_on_format:
        raise InterruptedRunError(
            f"{partition.name}: the model's featurizer makes sparse rows of some batches and dense ones of "
            "others, for which this explainer has different importances, so the features table could not say how to "
            "explain them again. Leave 'features' out of --outputs."
        )


def _count(tally: _Tally, context: Context, rows: Rows, batch: Batch) -> None:
    """Add a batch up; ``rows`` are those of its lines."""
    artifacts = context.artifacts
    tally.lines += batch.margins.shape[1]
    _summarise(tally, context, rows.table, batch)
    _sketch(tally, context, rows.table, batch)
    _sample(tally, context, rows, batch)
    for total, counts in ((tally.imputed, batch.imputed), (tally.padded, batch.padded)):
        for column, count in counts.items():
            total[column] = total.get(column, 0) + count
    if batch.predictions is not None:
        followed = fidelity.fidelity_of(
            batch.margins,
            batch.predictions.prediction,
            link=artifacts.link,
            labels=artifacts.surrogate_labels,
            probabilities=batch.predictions.probabilities,
        )
        tally.followed = fidelity.merge(tally.followed, followed)
    check = check_additivity(artifacts.explainer, batch, check_all=context.plan.options.check == "all")
    tally.checked += check.rows
    tally.residual = check.larger_than(tally.residual)
    if artifacts.explainer.additive and check.violated:
        raise IntegrityError(
            f"The importances of {rows.place(check.worst_row)} miss the surrogate's margin by {check.largest:.3g} "
            f"(output {check.worst_output}; allowed {check.allowed:g}). The explainer is damaged, or its trees have "
            "counts that do not fit: make the explainer again."
        )


def _summarise(tally: _Tally, context: Context, table: pa.Table, batch: Batch) -> None:
    plan = context.plan
    if tally.summed is None:
        tally.summed = Tally(context.layout)
    values = {"engineered": batch.engineered, "raw": batch.raw}
    codes = {}
    for cohort in plan.cohorts:
        column = _predicted(batch) if cohort.predicted else table[cohort.name]
        codes[cohort.name] = cohort.codes(column)
    tally.summed.add({level: found for level, found in values.items() if found is not None}, codes)


def _predicted(batch: Batch) -> pa.Array | None:
    if batch.predictions is None:
        return None
    labels = batch.predictions.prediction
    return _prediction(labels, pa.string()) if labels.dtype.kind in "OUS" else pa.array(labels)


def _sketch(tally: _Tally, context: Context, table: pa.Table, batch: Batch) -> None:
    sketches = context.plan.sketches
    if tally.sketched is None:
        tally.sketched = SketchTally(sketches)
    rows = model_columns(context, table)
    count_sketches(tally.sketched, sketches, context.artifacts, rows, batch, _predicted(batch))


def _sample(tally: _Tally, context: Context, rows: Rows, batch: Batch) -> None:
    plan, explainer = context.plan, context.artifacts.explainer
    chosen, numbers = _chosen(plan.sampling, rows)
    if not len(chosen):
        return
    sampled = rows.take(chosen)
    here = sampled.table
    columns: dict[str, pa.Array] = {name: here[name] for name in plan.ids}
    columns.update(zip(("source_file", "source_row"), sampled.source(), strict=True))
    for spec in plan.tables.get("predictions", ()):
        arrays = _predictions(batch, spec)
        columns.update({name: array.take(pa.array(chosen)) for name, array in arrays.items()})
    if not plan.options.no_row_values:
        named = model_columns(context, here)
        columns.update({f"value.{name}": named[name] for name in named.column_names})
    names = {
        "engineered": [explainer.engineered_features[at] for at in explainer.used],
        "raw": list(explainer.raw_features or ()),
    }
    importances = {
        level: (names[level], values[:, :, chosen])
        for level, values in (("engineered", batch.engineered), ("raw", batch.raw))
        if values is not None
    }
    tally.sampled.add(sample_rows(numbers, context.artifacts.labels or [None], columns, importances))


def _chosen(sampling: Sampling, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the lines in the sample, and the numbers by which their rows were chosen."""
    if isinstance(rows.paths, str):
        return sampling.choose(rows.paths, rows.numbers)
    paths = rows.paths.dictionary_encode()
    found = []
    for code, path in enumerate(paths.dictionary.to_pylist()):
        of_file = np.flatnonzero(paths.indices.to_numpy() == code)
        chosen, numbers = sampling.choose(path, rows.numbers[of_file])
        found.append((of_file[chosen], numbers))
    positions, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(positions)
    return positions[order], numbers[order]


def _partial(context: Context, tally: _Tally) -> Partial:
    statistics = Statistics.empty(context.layout) if tally.summed is None else tally.summed.statistics()
    sketches = SketchCounts.empty(context.plan.sketches) if tally.sketched is None else tally.sketched.counts()
    sampled = tally.sampled.tables()  # of one schema: a partition is of one file
    return Partial(statistics, sketches, sampled[0] if sampled else None)


def write_batch(writer: PartWriter, context: Context, rows: Rows, batch: Batch) -> int:
    """Write a batch to all tables; ``rows`` are those of its lines. The number of its reasons."""
    plan, table, lines = context.plan, rows.table, 0
    ids = ids_of(plan, rows)
    for level, specs in plan.tables.items():
        if level == "predictions":
            writer.write(specs[0].folder, [*ids, *_predictions(batch, specs[0]).values()])
            continue
        if level == FEATURES:
            writer.write(level, [*ids, *feature_arrays(batch.matrix, needed(plan.used))])
            continue
        if level == REASONS:
            assert plan.reasons is not None
            reasons = reason_lines(plan.reasons, batch, table, context.artifacts)
            of_rows = pa.array(reasons.rows)
            writer.write(level, [*(array.take(of_rows) for array in ids), *reasons.columns])
            lines = len(reasons.rows)
            continue
        values = batch.engineered if level == "engineered" else batch.raw
        assert values is not None
        position = plan.position_of_written(level, values.shape[1])
        stored = np.float32 if plan.options.dtype == "float32" else np.float64
        zeros = pa.array(np.zeros(table.num_rows, dtype=stored))
        for output, spec in enumerate(specs):
            arrays = [zeros if at < 0 else pa.array(values[output, at].astype(stored, copy=False)) for at in position]
            writer.write(spec.folder, [*ids, *arrays])
    return lines


def ids_of(plan: Plan, rows: Rows) -> list[pa.Array]:
    """Ids of rows, or of lines, as every table has them."""
    if not plan.ids:
        return rows.source()
    arrays = []
    for name in plan.ids:
        array = rows.table[name].combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        arrays.append(array.dictionary_decode() if pa.types.is_dictionary(array.type) else array)
    return arrays


def _predictions(batch: Batch, spec: TableSpec) -> dict[str, pa.Array]:
    """The columns of the predictions table, without the ids."""
    assert batch.predictions is not None
    found = batch.predictions
    columns = [_prediction(found.prediction, spec.schema.field("prediction").type)]
    if found.probabilities is not None:
        columns += [pa.array(np.ascontiguousarray(column)) for column in found.probabilities.T]
    return dict(zip(spec.schema.names[-len(columns) :], columns, strict=True))


def _prediction(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    plain = values.tolist() if values.dtype == object or values.dtype.kind in "US" else values
    if pa.types.is_string(kind):
        return pa.array([str(value) for value in plain], kind)
    return pa.array(plain).cast(kind)


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far; None where the system does not tell.

    On Linux not by ``getrusage``, whose peak a process takes over from the one that started it.
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
