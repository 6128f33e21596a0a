"""Where a run stands, told while it runs and after, from its folder alone."""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from batch_explain.engine.plan import read_plan_json
from batch_explain.engine.series_plan import stored_rows
from batch_explain.errors import BatchExplainError, OptionError
from batch_explain.results import is_finished
from batch_explain.storage.attempts import Attempt, read_attempts
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import LOCK_FILE, SILENCE_SECONDS, Holder, age_of, living_holder
from batch_explain.storage.output import PLAN_FILE
from batch_explain.storage.receipts import RECEIPTS_FOLDER, Receipt, read_receipt

FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"

_LONG_SILENCE = 10 * SILENCE_SECONDS  # clocks differ
_READ_RECEIPTS = 20_000  # more are only counted
_THREADS = 16


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Parameters
    ----------
    output : str
    state : str
        ``finished``, ``running`` or ``stopped``.
    holder : Holder or None
        The process that runs it.
    silent_seconds : float or None
        Since that process gave its last sign of life; None where the storage does not tell.
    partitions : int or None
        All that are planned; None while the plan is not written, or cannot be read.
    done : int
        Partitions that have their receipt.
    running, interrupted, failed : tuple of Attempt
        Partitions without a receipt: worked on now; begun by a process that has ended; and failed, with the reason.
    missing : int or None
        Partitions that have neither a receipt nor an attempt.
    rows, rows_done : int or None
        Rows planned, and those of the partitions that are done.
    rows_quarantined, rows_left_out : int or None
        Rows of them that could not be explained, and that ``--filter`` leaves out; None where there are too many
        receipts to read.
    """

    output: str
    state: str
    holder: Holder | None
    silent_seconds: float | None
    partitions: int | None
    done: int
    running: tuple[Attempt, ...]
    interrupted: tuple[Attempt, ...]
    failed: tuple[Attempt, ...]
    missing: int | None
    rows: int | None
    rows_done: int | None
    rows_quarantined: int | None
    rows_left_out: int | None

    def to_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        holder = self.holder
        told = None if holder is None else {"host": holder.host, "pid": holder.pid, "since": holder.since}
        return {**asdict(self), "holder": told}


def status(path: str | os.PathLike[str]) -> Status:
    """Tell where a run stands; quick, and without writing anything.

    Parameters
    ----------
    path : str or path
        The run's output folder.

    Raises
    ------
    OptionError
        If there is no run.
    """
    output = Location(os.fspath(path))
    try:
        return _status(output)
    except OSError as error:
        raise OptionError(
            f"The run in {output} cannot be read: {error}. Check the place and its permissions."
        ) from error


def _status(output: Location) -> Status:
    nothing = f"There is no run in {output}. Pass the output folder of a run."
    if not output.fs.isdir(output.path):
        raise OptionError(nothing)
    # before the receipts: a run that ends meanwhile is then told as running with all partitions done, not as stopped
    holder = living_holder(output, wait=False)
    if holder is not None and (_silence(output) or 0.0) > _LONG_SILENCE:
        holder = None
    plan = _plan(output)
    attempts = _attempts(output)
    done, rows_done, rows_quarantined, rows_left_out = _done(output, plan)
    finished = is_finished(output)
    if not finished and holder is None and not output.join(PLAN_FILE).exists():
        raise OptionError(nothing)
    open_ones = [attempt for attempt in attempts if attempt.index not in done]
    begun = [attempt for attempt in open_ones if attempt.failed is None]
    running = begun if holder is not None and not finished else []
    partitions = None if plan is None else len(plan.partitions)
    return Status(
        output=str(output),
        state=FINISHED if finished else RUNNING if holder is not None else STOPPED,
        holder=None if finished else holder,
        silent_seconds=None if finished or holder is None else _silence(output),
        partitions=partitions,
        done=len(done),
        running=tuple(running),
        interrupted=tuple(attempt for attempt in begun if attempt not in running),
        failed=tuple(attempt for attempt in open_ones if attempt.failed is not None),
        missing=None if partitions is None else max(0, partitions - len(done) - len(open_ones)),
        rows=None if plan is None else sum(plan.partitions.values()),
        rows_done=rows_done,
        rows_quarantined=rows_quarantined,
        rows_left_out=rows_left_out,
    )


@dataclass(frozen=True)
class _Plan:
    """What the plan says of the work: the run's id, and partition -> rows."""

    run_id: str
    partitions: dict[int, int]


def _plan(output: Location) -> _Plan | None:
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = read_plan_json(output)
        if not content["partitions"]:  # a platform brings them
            return None
        rows = [stored_rows(partition) for partition in content["partitions"]]
        numbers = content.get("numbers") or range(len(rows))
        return _Plan(str(content["run_id"]), dict(zip(numbers, rows, strict=True)))
    return None


def _attempts(output: Location) -> list[Attempt]:
    with suppress(FileNotFoundError):  # the run has ended meanwhile
        return read_attempts(output)
    return []


def _done(output: Location, plan: _Plan | None) -> tuple[set[int], int | None, int | None, int | None]:
    """Partitions that are done, the rows in them, and how many of those are in the quarantine, and left out."""
    found = _receipts(output)
    if plan is None:
        return set(found), None, None, None
    found = [index for index in found if index in plan.partitions]
    if len(found) > _READ_RECEIPTS:
        return set(found), sum(plan.partitions[index] for index in found), None, None
    with ThreadPoolExecutor(_THREADS) as pool:
        receipts = [r for r in pool.map(lambda index: _receipt(output, index), found) if r and r.run_id == plan.run_id]
    return (
        {receipt.index for receipt in receipts},
        sum(receipt.rows_in for receipt in receipts),
        sum(receipt.rows_quarantined for receipt in receipts),
        sum(receipt.rows_left_out for receipt in receipts),
    )


def _receipts(output: Location) -> list[int]:
    """Numbers of the partitions that have a receipt, by the names of the files alone."""
    folder = output.join(RECEIPTS_FOLDER)
    try:
        names: Iterable[Any] = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    numbers = (re.fullmatch(r"part-(\d+)\.json", str(name).rstrip("/").rsplit("/", 1)[-1]) for name in names)
    return sorted(int(number[1]) for number in numbers if number)


def _receipt(output: Location, index: int) -> Receipt | None:
    with suppress(BatchExplainError, OSError, ValueError, LookupError, TypeError):
        return read_receipt(output, index)
    return None


def _silence(output: Location) -> float | None:
    seconds = age_of(output.join(LOCK_FILE))
    return None if seconds == float("inf") else round(seconds, 1)


def describe(attempts: Sequence[Attempt]) -> list[str]:
    """A line for each partition that failed or was interrupted."""
    return [
        f"partition {attempt.index} (attempt {attempt.tries}, process {attempt.pid} on {attempt.host}): "
        + (attempt.failed or "its process ended while it worked on it")
        for attempt in attempts
    ]
