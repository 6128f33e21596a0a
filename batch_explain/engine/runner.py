"""One run: plan, tasks, finalize."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy.sparse import issparse
from threadpoolctl import threadpool_limits

from batch_explain.engine.artifacts import Artifacts, Batch, name_outputs
from batch_explain.engine.baseline import check_baseline, check_compared, refuse_drift
from batch_explain.engine.delta_output import check_delta_tables
from batch_explain.engine.environment import cores
from batch_explain.engine.estimate import TIMED_ROWS, Estimate, estimate, time_of_a_row
from batch_explain.engine.executors import executor_for
from batch_explain.engine.explaining import Context, batches_of, explain_batch, explain_good
from batch_explain.engine.finalize import finalize
from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan, division_of, make_plan, read_plan_json, write_plan
from batch_explain.engine.quarantine import Limits
from batch_explain.engine.resume import finished, resumed
from batch_explain.engine.rows import Rows
from batch_explain.engine.schema import as_trained, check_filter
from batch_explain.engine.series import SeriesPartition, SeriesRows
from batch_explain.errors import BadDataError, InputError, InterruptedRunError, UnreadableFileError
from batch_explain.events import (
    ArtifactsLoaded,
    Event,
    Observer,
    PartitionDone,
    RunFinished,
    RunPlanned,
    RunResumed,
    WorkersReady,
)
from batch_explain.options import SCHEDULERS, RunOptions
from batch_explain.results import Run, is_finished, open_run
from batch_explain.storage.attempts import forget_attempts
from batch_explain.storage.dataset import InputFile, discover
from batch_explain.storage.delta import DeltaAddress, pinned
from batch_explain.storage.filesystems import Location
from batch_explain.storage.output import Claim, claim_output
from batch_explain.storage.ranges import let_go
from batch_explain.storage.reading import read_rows

if TYPE_CHECKING:
    from distributed import Client

_LOOKED_AT = 1_000  # rows of a file, in search of one that can be explained


def run(options: RunOptions, observers: Sequence[Observer] = (), client: "Client | None" = None) -> Run:
    """Explain a dataset as the options say; see :func:`batch_explain.explain_dataset`."""
    started = time.perf_counter()

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    output = Location(options.output)
    with reading_errors():
        try:
            prepared = prepare(options, emit)
        finally:
            let_go(mine=True)
        claim, plan, artifacts = prepared.claim, prepared.plan, prepared.artifacts
        planned = time.perf_counter()
        if claim.resumes and is_finished(output):
            found = open_run(options.output)
            check_compared(found, options)
            emit(RunFinished(plan.rows, time.perf_counter() - started, str(output)))
            refuse_drift(found, options.max_drift)
            return found
    with contextlib.ExitStack() as stack:
        # the engine owns the cores; OpenMP is held to one thread where tasks run, because its limit is a thread's own
        with threadpool_limits(1, user_api="blas"), executor_for(Context(plan, artifacts), client) as executor:
            executor.load()
            # only now, with the workers ready, is anything written or an earlier run removed
            lock = stack.enter_context(claim.take())
            with storage_errors(output):
                done = finished(plan) if claim.resumes else []
                forget_attempts(output)
                write_plan(plan)
            if claim.resumes:
                emit(RunResumed(len(done), sum(receipt.rows_in for receipt in done)))
            ready = time.perf_counter()
            emit(WorkersReady(options.scheduler, executor.workers, executor.dashboard))
            have = {receipt.index for receipt in done}
            limits = Limits(plan)
            for receipt in done:
                limits.add(receipt)
            for receipt in executor.run([part for part in plan.partitions if part.index not in have]):
                emit(PartitionDone(receipt.index, receipt.rows_in, receipt.worker["seconds"]))
                limits.add(receipt)
                lock.check()
            explained = time.perf_counter()
        timings = {**prepared.timings, "start_workers": ready - planned, "explain": explained - ready}
        with storage_errors(output):
            finalize(plan, artifacts, timings)
            emit(RunFinished(plan.rows, time.perf_counter() - started, str(output)))
            found = open_run(options.output)
    refuse_drift(found, options.max_drift)
    return found


@dataclass(frozen=True)
class Prepared:
    """A planned run of which nothing is written yet, and what loading and planning took, in seconds."""

    claim: Claim
    plan: Plan
    artifacts: Artifacts
    expected: Estimate
    timings: dict[str, float]


def prepare(options: RunOptions, emit: Observer) -> Prepared:
    """Plan a run, or one to be resumed, and estimate what it takes."""
    started = time.perf_counter()
    options = _pinned(options)
    left_out: list[str] = []
    files = discover(options.input, options.max_bad_files, options.where, left_out)
    claim = claim_output(options)
    artifacts = Artifacts.load(options)
    loaded = time.perf_counter()
    model = artifacts.teacher.kind if artifacts.teacher is not None else "no model"
    emit(ArtifactsLoaded(loaded - started, artifacts.explainer.description, model))
    plan, artifacts = plan_run(options, files, artifacts)
    if left_out:
        noted = f"{len(left_out)} of {len(left_out) + len(files)} files are not read: their folders' keys are left out"
        plan = replace(plan, decisions=(*plan.decisions, noted))
    check_baseline(plan, artifacts)
    if claim.resumes:
        plan = resumed(plan)
    check_delta_tables(plan)
    planned = time.perf_counter()
    expected = _estimate(plan, artifacts)
    where = str(Location(options.output))
    emit(RunPlanned(len(files), plan.rows, len(plan.partitions), where, **dataclasses.asdict(expected)))
    return Prepared(claim, plan, artifacts, expected, {"load": loaded - started, "plan": planned - loaded})


def _pinned(options: RunOptions) -> RunOptions:
    """Of a Delta table: with the version that is read, which is the stopped run's where that is resumed."""
    before, output = None, Location(options.output)
    if options.resume and DeltaAddress.parse(options.input) is not None:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # resumed() says what is wrong with it
            before = str(read_plan_json(output)["options"]["input"])
    return replace(options, input=pinned(options.input, before))


@contextlib.contextmanager
def reading_errors() -> Iterator[None]:
    """Tell of a file that could not be read before anything was written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The run could not be planned, because a file could not be read: {error}. Nothing was written: check the "
            "places of the input, the model and the explainer."
        ) from error


@contextlib.contextmanager
def storage_errors(output: Location) -> Iterator[None]:
    """Tell of the run's own files that could not be written or read."""
    try:
        yield
    except OSError as error:
        raise InterruptedRunError(
            f"The run's own files could not be written or read: {error}. Check {output}, and go on with --resume."
        ) from error


def plan_run(options: RunOptions, files: Sequence[InputFile], artifacts: Artifacts) -> tuple[Plan, Artifacts]:
    """Plan a run, with one row explained to prove that model, explainer and data fit together.

    The first row also tells what some explainers do not record: the number of their outputs, or the feature map of
    their ``transformations``.

    Returns
    -------
    plan : Plan
    artifacts : Artifacts
        With the outputs named.

    Raises
    ------
    InputError, OptionError, ArtifactError, BadDataError
        Whatever can be known before the work.
    """
    batch, predicted, sparse_rows = None, None, False
    files = as_trained(files, artifacts.columns, options.columns_map)
    check_filter(options, files)
    division = division_of(options, files, artifacts)
    if any(partition.rows for partition in division.partitions):
        batch = _first_explained(make_plan(options, files, artifacts, division, None), artifacts)
    if batch is not None:
        artifacts = name_outputs(artifacts)
        predicted = None if batch.predictions is None else batch.predictions.prediction
        sparse_rows = issparse(batch.matrix)
    elif artifacts.explainer.learns_from_rows:
        raise InputError(
            "The dataset has no rows to explain, and this kind of explainer does not record its features and outputs: "
            "they are learned from a first row. Pass a dataset with rows."
        )
    prediction = _prediction_type(artifacts, predicted)
    return make_plan(options, files, artifacts, division, prediction, sparse_rows=sparse_rows), artifacts


def _first_explained(look: Plan, artifacts: Artifacts) -> Batch | None:
    """The first row (or series) that can be explained; the first of all, unless bad rows or files are allowed.

    None where the filter takes no row.
    """
    context, options = Context(look, artifacts), look.options
    allowed = options.bad_rows_allowed(sum(file.rows for file in look.files))
    refused: BadDataError | None = None
    damaged: set[str] = set()
    for partition in _first_ones(look, allowed):
        if damaged.issuperset(partition.paths):
            continue
        try:
            rows = next(batches_of(look, partition))
            good = isinstance(rows, SeriesRows) and allowed  # of a series, some rows may be bad
            found = explain_good(context, rows, len(rows)) if good else explain_batch(context, rows)
            if found.batch is not None:
                return found.batch
            refused = BadDataError(f"{partition.name} cannot be explained: {found.bad[0].reason}.")
        except UnreadableFileError as error:
            if not options.max_bad_files:
                raise
            refused = error
            damaged.update(partition.paths)
        except BadDataError as error:
            if not allowed:
                raise
            refused = error
    if refused is None:
        return None
    raise refused


def _first_ones(look: Plan, allowed: int) -> Iterator[Partition]:
    """The first rows of each file, or the first series of each partition, one by one."""
    if look.series is not None:
        for partition in look.partitions:
            assert isinstance(partition, SeriesPartition)
            for number in range(min(len(partition.series), allowed + 1, _LOOKED_AT)):
                yield partition.only(number)
        return
    for file in look.files:
        for row in itertools.islice(_wanted_rows(look, file), min(allowed + 1, _LOOKED_AT)):
            yield FilePartition(0, file, row, row + 1)


def _wanted_rows(look: Plan, file: InputFile) -> Iterator[int]:
    """Positions of the rows of a file that the filter takes; only its columns are read."""
    try:
        for first, groups in file.stretches:
            stop = first + sum(groups)
            if file.where is None:
                yield from range(first, stop)
                continue
            for _, positions in read_rows(file, start=first, stop=stop, columns=[], batch_rows=look.batch_rows):
                yield from positions.tolist()
    except UnreadableFileError:
        if not look.options.max_bad_files:
            raise


def _estimate(plan: Plan, artifacts: Artifacts) -> Estimate:
    """What the run will take, by the time of its first rows."""
    part, tasks = plan.partitions[0], min(plan.options.workers or cores(), len(plan.partitions))
    if plan.options.scheduler == "sync":
        tasks = 1
    seconds = _time_of_a_row(plan, artifacts, part) if isinstance(part, FilePartition) else None
    return estimate(
        artifacts,
        plan.tables,
        rows=plan.rows,
        of_a_batch=plan.batch_rows,
        row_seconds=None if seconds is None else seconds / tasks,
        reasons=0 if plan.reasons is None else plan.reasons.most(artifacts.explainer.n_outputs),
    )


def _time_of_a_row(plan: Plan, artifacts: Artifacts, part: FilePartition) -> float | None:
    context, most = Context(plan, artifacts), min(part.rows, plan.batch_rows, TIMED_ROWS)
    found: Rows | None = None

    @functools.cache
    def first_rows() -> Rows:
        return next(batches_of(plan, replace(part, stop=part.start + most))) if found is None else found

    if plan.options.filter is not None:
        found = next(batches_of(plan, part), None)
        most = 0 if found is None else min(most, len(found))

    def explain(rows: int) -> object:  # without the reading: an object store's answers take longer than a few rows
        return explain_batch(context, first_rows().take(np.arange(rows)))

    return time_of_a_row(explain, most) if most > 1 and plan.options.scheduler in SCHEDULERS else None


def _prediction_type(artifacts: Artifacts, first: np.ndarray | None) -> pa.DataType:
    """Labels keep their type; numbers are float64, or int64 where the model predicts whole numbers."""
    teacher = artifacts.teacher
    if teacher is None or teacher.classes is None:
        return pa.int64() if first is not None and first.dtype.kind in "iu" else pa.float64()
    kinds = {type(label) for label in teacher.classes}
    if kinds <= {bool} or kinds <= {int} or kinds <= {float} or kinds <= {str}:
        return pa.array(list(teacher.classes)).type
    return pa.string()
