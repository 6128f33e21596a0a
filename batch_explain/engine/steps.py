"""A run in steps that start apart: its plan first, its tasks by whoever brings them, its end last."""

import bisect
import itertools
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from threadpoolctl import threadpool_limits

from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.baseline import check_baseline, refuse_drift
from batch_explain.engine.brought import forget_notes, gathered, refuse_filter
from batch_explain.engine.estimate import Estimate
from batch_explain.engine.explaining import Context
from batch_explain.engine.finalize import finalize
from batch_explain.engine.partitions import FilePartition, Partition
from batch_explain.engine.plan import Plan, read_plan, read_plan_json, write_plan
from batch_explain.engine.quarantine import Limits
from batch_explain.engine.recompute import stored_options
from batch_explain.engine.resume import FREE, finished
from batch_explain.engine.runner import prepare, reading_errors, storage_errors
from batch_explain.engine.task import run_partition
from batch_explain.engine.workers import worker_context
from batch_explain.errors import InterruptedRunError, OptionError
from batch_explain.events import Event, Observer
from batch_explain.options import RunOptions
from batch_explain.results import Run, is_finished, open_run
from batch_explain.storage.attempts import forget_attempts
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import take_lock

_KEPT_FREE = 0.5  # of a mini-batch's time: slower nodes, storage that waits
_MEASURED_SECONDS, _FEWEST_MEASURED = 5.0, 64
_NAMED = 5


@dataclass(frozen=True)
class Forecast:
    """Whether mini-batches of whole files end within the time that a platform gives them.

    Parameters
    ----------
    timeout : float
        Seconds that the platform gives to one mini-batch.
    row_seconds, task_seconds : float
        Seconds that a row takes in one process, read, explained and written, and that a task takes beside its rows;
        measured.
    file_seconds : float
        Seconds of the largest file.
    largest : str
        That file.
    mini_batch_size : int
        Files of a mini-batch, of which even the largest need half of the time together; 0: there is no such size.
    rows_of_a_file : int
        Most rows of a file that would be done in half of the time.
    """

    timeout: float
    row_seconds: float
    task_seconds: float
    file_seconds: float
    largest: str
    mini_batch_size: int
    rows_of_a_file: int

    @property
    def advice(self) -> str:
        """What to set."""
        measured = f"the largest file, {self.largest}, takes about {_seconds(self.file_seconds)}"
        if self.mini_batch_size:
            files = f"{self.mini_batch_size} file{'s' * (self.mini_batch_size > 1)}"
            return f"{measured}: set mini_batch_size to {files} at most, for {self.timeout:g} s with half of it free"
        return (
            f"{measured}: no mini_batch_size meets {self.timeout:g} s with half of it free. Set the mini-batch's "
            f"timeout to {_seconds(self.file_seconds / _KEPT_FREE)} and mini_batch_size to 1, or write files of at "
            f"most {self.rows_of_a_file:,} rows"
        )


@dataclass(frozen=True)
class Planned:
    """A run that is planned, and of which no row is explained.

    Parameters
    ----------
    output : str
    files, rows, partitions : int
    expected : Estimate
    decisions : tuple of str
        What was decided on the user's behalf.
    forecast : Forecast or None
        None where no time was given for mini-batches.
    """

    output: str
    files: int
    rows: int
    partitions: int
    expected: Estimate
    decisions: tuple[str, ...]
    forecast: Forecast | None = None


def plan_dataset(
    *, mini_batch_timeout: float | None = None, observers: Sequence[Observer] = (), **options: Any
) -> Planned:
    """Plan a run and explain nothing: the first step where a platform brings the partitions.

    Parameters
    ----------
    mini_batch_timeout : float, optional
        Seconds that the platform gives to one mini-batch: measures some rows, and foretells how many files it may have.
    observers : sequence of callable
        As in :func:`batch_explain.explain_dataset`.
    **options
        As there. With ``resume``, a plan that is in the output is kept, if it is of the same run.

    Returns
    -------
    Planned

    Raises
    ------
    BatchExplainError
        As ``explain_dataset`` does before its first task.
    """
    asked = RunOptions.create(**options)
    refuse_filter(asked)
    timeout = None if mini_batch_timeout is None else _positive(mini_batch_timeout)

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    output = Location(asked.output)
    with reading_errors(), threadpool_limits(1, user_api="blas"):
        prepared = prepare(asked, emit)
        plan = prepared.plan
        forecast = None if timeout is None else _forecast(plan, prepared.artifacts, timeout)
    if not (prepared.claim.resumes and is_finished(output)):
        with prepared.claim.take(), storage_errors(output):
            forget_attempts(output)
            write_plan(plan)
    return Planned(
        str(output), len(plan.files), plan.rows, len(plan.partitions), prepared.expected, plan.decisions, forecast
    )


def finalize_run(output: str, **places: Any) -> Run:
    """End a run whose partitions were explained elsewhere: check every receipt, then summaries, report, ``_SUCCESS``.

    Parameters
    ----------
    output : str
        The run's folder.
    **places
        ``model``, ``explainer``, ``input`` and the other places of the plan, where they are elsewhere now; and
        ``max_drift``, ``max_bad_rows``, ``max_bad_files``, ``trust``, ``report``.

    Returns
    -------
    Run
        The finished run; one that was finished before is only opened.

    Raises
    ------
    InterruptedRunError
        If partitions are missing; they are named.
    BadDataError
        If more rows or files are in quarantine than the run allows.
    DriftError
        If the finished run is farther from its baseline than allowed.
    """
    options = planned_options(output, **places)
    place = Location(options.output)
    with storage_errors(place):
        if is_finished(place):
            found = open_run(options.output)
        else:
            with take_lock(place) as lock, threadpool_limits(1, user_api="blas"):
                context = _whole(planned_context(options), None if places.get("input") is None else options.input)
                lock.check()
                _close(context)
            found = open_run(options.output)
    refuse_drift(found, options.max_drift)
    return found


def planned_options(output: Any, **given: Any) -> RunOptions:
    """The options of the plan in a folder, with what is given now in their place.

    Raises
    ------
    OptionError
        If there is no plan.
    """
    basis = {"input": ".", "explainer": ".", "output": output}
    place = Location(RunOptions.create(**basis).output)
    try:
        stored = stored_options(read_plan_json(place), place)
    except FileNotFoundError:
        raise OptionError(
            f"There is no plan in {place}. Make one first with batch-explain plan (the same options as run), and give "
            "all steps the same output."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"The plan in {place} cannot be read ({error}). Start anew with --overwrite.") from error
    given = {name: value for name, value in given.items() if value is not None}
    checked = RunOptions.create(**{**basis, "baseline": stored.baseline, "outputs": stored.outputs, **given})
    values = {name: getattr(checked, name) for name in given}
    if changed := [name for name, value in values.items() if name not in FREE and value != getattr(stored, name)]:
        raise OptionError(
            f"The plan in {place} was made with another --{changed[0].replace('_', '-')}: "
            f"{getattr(stored, changed[0])!r}, not {values[changed[0]]!r}. Give all steps the same options, or start "
            "anew with --overwrite."
        )
    return replace(stored, **values)


def planned_context(options: RunOptions) -> Context:
    """The plan in the run's folder and the artifacts that belong to it, loaded once a process."""
    plan = read_plan(options)
    return worker_context(options, plan.digest)


def _whole(context: Context, listed: str | None) -> Context:
    """With the partitions of a run that had no plan."""
    if context.plan.partitions:
        return context
    return replace(context, plan=gathered(context.plan, listed))


def _close(context: Context) -> None:
    plan, limits = context.plan, Limits(context.plan)
    receipts = finished(plan)
    refuse_missing(plan, {receipt.index for receipt in receipts})
    for receipt in receipts:
        limits.add(receipt)
    check_baseline(plan, context.artifacts)
    if plan.numbers:
        write_plan(plan)
        forget_notes(Location(plan.options.output))
    finalize(plan, context.artifacts, {"tasks": sum(receipt.worker["seconds"] for receipt in receipts)})


def refuse_missing(plan: Plan, done: set[int]) -> None:
    """Raise InterruptedRunError that names the partitions without a valid receipt."""
    missing = [partition for partition in plan.partitions if partition.index not in done]
    if not missing:
        return
    files = Counter(path for partition in missing for path in partition.paths)
    named = "; ".join(partition.name for partition in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
    raise InterruptedRunError(
        f"{len(missing):,} of {len(plan.partitions):,} partitions have no valid receipt: {named}{more}. "
        f"Have the platform explain {'this file' if len(files) == 1 else f'these {len(files):,} files'} again (what is "
        "done is skipped), or go on with batch-explain run and --resume, then finalize again."
    )


def of_files(plan: Plan) -> list[FilePartition]:
    """The partitions, where a platform may bring them file by file.

    Raises
    ------
    OptionError
        If they hold whole series, whose rows are in several files.
    """
    found = [partition for partition in plan.partitions if isinstance(partition, FilePartition)]
    if len(found) < len(plan.partitions):
        raise OptionError(
            "The model forecasts: its partitions are whole series, whose rows may be in any file, so a platform cannot "
            "bring them file by file. Explain them by batch-explain run on one node."
        )
    return found


def _forecast(plan: Plan, artifacts: Artifacts, timeout: float) -> Forecast:
    """Measure a task on some rows, and say how many files a mini-batch may have."""
    row_seconds, task_seconds = _measured(plan, artifacts, min(timeout, _MEASURED_SECONDS))
    needed: defaultdict[str, float] = defaultdict(float)
    for partition in of_files(plan):
        needed[partition.file.path] += task_seconds + partition.rows * row_seconds
    ordered = sorted(needed.items(), key=lambda item: -item[1])
    largest, most = ordered[0]
    fitting = bisect.bisect_right(list(itertools.accumulate(seconds for _, seconds in ordered)), timeout * _KEPT_FREE)
    of_rows = max(0.0, timeout * _KEPT_FREE - task_seconds)
    return Forecast(
        timeout=timeout,
        row_seconds=row_seconds,
        task_seconds=task_seconds,
        file_seconds=most,
        largest=largest,
        mini_batch_size=fitting,
        rows_of_a_file=max(1, math.floor(of_rows / row_seconds)) if row_seconds else plan.rows,
    )


def _measured(plan: Plan, artifacts: Artifacts, most_seconds: float) -> tuple[float, float]:
    """Seconds that a row takes, and a task beside its rows: by tasks of more and more rows, in another folder."""
    part = max(of_files(plan), key=lambda partition: partition.rows)
    rows, fewest, times = min(part.rows, _FEWEST_MEASURED), min(part.rows, _FEWEST_MEASURED), dict[int, float]()
    if not rows:
        return 0.0, 0.0
    with tempfile.TemporaryDirectory(prefix="batch-explain-") as folder:
        for number in range(32):
            piece: Partition = replace(part, index=number, stop=part.start + rows)
            trial = replace(plan, options=replace(plan.options, output=folder), partitions=(piece,), numbers=(number,))
            write_plan(trial)
            times[rows] = run_partition(Context(trial, artifacts), piece).worker["seconds"]
            if number and (rows == part.rows or times[rows] * 4 > most_seconds):
                break
            rows = min(part.rows, rows * 4) if number else rows  # the first one warms up
    if times[rows] <= times[fewest]:  # too few to tell the one from the other
        return times[rows] / rows, times[fewest]
    row = (times[rows] - times[fewest]) / (rows - fewest)
    return row, max(0.0, times[fewest] - fewest * row)


def _positive(value: Any) -> float:
    try:
        seconds = float(str(value).removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise OptionError(f"--mini-batch-timeout is '{value}'. Give the platform's seconds for one mini-batch: 60.")
    return seconds


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{math.ceil(seconds):,} s"
