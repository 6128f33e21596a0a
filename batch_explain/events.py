"""What happens in a run, as small objects, and the observers that show it."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class ArtifactsLoaded:
    """Model and explainer are loaded and belong together (``seconds`` includes their imports)."""

    seconds: float
    explainer: str
    model: str


@dataclass(frozen=True)
class RunPlanned:
    """The input is listed and cut into partitions; what the run will take is estimated.

    Memory of each worker and size of the results in bytes; seconds of explaining, None where they are not known.
    """

    files: int
    rows: int
    partitions: int
    output: str
    worker_bytes: int
    output_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class RunResumed:
    """A stopped run goes on: so many partitions and rows are done already."""

    partitions: int
    rows: int


@dataclass(frozen=True)
class WorkersReady:
    """Tasks can start; ``dashboard`` is the Dask dashboard's address, or None where there is none."""

    scheduler: str
    workers: int
    dashboard: str | None


@dataclass(frozen=True)
class PartitionDone:
    """One partition has its receipt."""

    index: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Waiting:
    """Something takes long, and what it is: a storage that does not answer."""

    what: str


@dataclass(frozen=True)
class RunFinished:
    """``_SUCCESS`` is written."""

    rows: int
    seconds: float
    output: str


Event = ArtifactsLoaded | RunPlanned | RunResumed | WorkersReady | PartitionDone | Waiting | RunFinished
Observer = Callable[[Event], None]


class JsonLog:
    """One JSON object a line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, event: Event) -> None:
        """Write the event."""
        line: dict[str, Any] = {"time": round(time.time(), 3), "event": type(event).__name__, **asdict(event)}
        print(json.dumps(line, ensure_ascii=False), file=self._stream, flush=True)


class PlainLog:
    """Plain lines for a log file, with rate and time left; progress at most every ``interval`` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval
        self._progress = _Progress()
        self._shown = 0.0

    def __call__(self, event: Event) -> None:
        """Write the event as a line."""
        self._progress.update(event)
        match event:
            case ArtifactsLoaded():
                self._say(f"loaded {event.explainer} and {event.model} in {event.seconds:.1f} s")
            case RunPlanned():
                self._say(
                    f"{event.rows:,} rows in {event.files:,} files, {event.partitions:,} partitions -> {event.output}"
                )
                self._say(_estimate(event))
            case RunResumed():
                self._say(f"resumed: {event.partitions:,} partitions with {event.rows:,} rows are done already")
            case WorkersReady():
                where = f", dashboard {event.dashboard}" if event.dashboard else ""
                self._say(f"{event.workers} workers ({event.scheduler}){where}")
            case PartitionDone():
                if self._progress.is_complete or time.monotonic() - self._shown > self._interval:
                    self._shown = time.monotonic()
                    self._say(self._progress.describe())
            case Waiting():
                self._say(f"waiting: {event.what}")
            case RunFinished():
                self._say(f"done: {event.rows:,} rows in {event.seconds:.1f} s -> {event.output}")

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class ProgressBar:
    """A bar on a terminal, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._plain = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("explaining"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._plain,
        )
        self._progress = _Progress()
        self._task: Any = None

    def __call__(self, event: Event) -> None:
        """Draw the event."""
        self._progress.update(event)
        match event:
            case ArtifactsLoaded():
                self._plain.print(f"loaded {event.explainer} and {event.model} in {event.seconds:.1f} s", markup=False)
            case RunPlanned():
                self._plain.print(
                    f"{event.rows:,} rows in {event.files:,} files, {event.partitions:,} partitions",
                    markup=False,
                )
                self._plain.print(_estimate(event), markup=False)
                self._task = self._bar.add_task("explaining", total=event.rows, rate="")
            case RunResumed():
                self._plain.print(f"resumed: {event.rows:,} rows are done already", markup=False)
                self._bar.update(self._task, completed=event.rows)
            case WorkersReady():
                if event.dashboard:
                    self._plain.print(f"Dask dashboard: {event.dashboard}", markup=False)
                self._bar.start()
            case PartitionDone():
                self._bar.update(self._task, completed=self._progress.done, rate=f"{self._progress.rate:,.0f} rows/s")
            case Waiting():
                self._plain.print(f"waiting: {event.what}", markup=False)
            case RunFinished():
                self.close()

    def close(self) -> None:
        """Leave the terminal as it was; safe to call twice."""
        self._bar.stop()


class _Progress:
    """Rows done, rate and time left."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self._resumed = 0
        self._start = time.monotonic()

    def update(self, event: Event) -> None:
        if isinstance(event, RunPlanned):
            self.total = event.rows
        elif isinstance(event, WorkersReady):
            self._start = time.monotonic()
        elif isinstance(event, RunResumed):
            self.done = self._resumed = event.rows
        elif isinstance(event, PartitionDone):
            self.done += event.rows

    @property
    def rate(self) -> float:
        """Rows a second since the workers were ready."""
        return (self.done - self._resumed) / max(time.monotonic() - self._start, 1e-9)

    @property
    def is_complete(self) -> bool:
        return self.done >= self.total

    def describe(self) -> str:
        share = self.done / self.total if self.total else 1.0
        left = (self.total - self.done) / self.rate if self.rate else 0.0
        return f"{self.done:,} of {self.total:,} rows ({share:.0%}), {self.rate:,.0f} rows/s, {_duration(left)} left"


def _estimate(event: RunPlanned) -> str:
    took = "" if event.seconds is None else f", about {_duration(event.seconds)} of explaining"
    return f"estimate: {event.worker_bytes / 1e6:,.0f} MB a worker, {event.output_bytes / 1e6:,.0f} MB of results{took}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
