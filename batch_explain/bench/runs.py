"""The whole job, as users run it: processes of their own, with all cores and with one worker, taking turns."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from batch_explain.bench.subject import Subject
from batch_explain.bench.whole_run import EngineRun, run_engine, why_it_failed
from batch_explain.engine.environment import cores
from batch_explain.explainers.base import Explainer
from batch_explain.results import Run, open_run

MOST_ROUNDS = 3
_PARTS = 4  # at least, for each worker: the last one of a run is waited for
_WRITING_US = 4.0  # what a row costs beside featurizing and explaining, for the number of rows alone
_FEWEST_ROWS, _FEWEST_PART = 1_000, 200
_ENGINEERED = "engineered"


@dataclass
class Way:
    """Runs with so many workers.

    Attributes
    ----------
    runs : list of EngineRun
    checked : ndarray, shape (output, used feature, row), or None
        Engineered importances of the first rows, as a run wrote them.
    failed : str or None
        Why a run did not end well.
    """

    workers: int
    rows: int
    runs: list[EngineRun] = field(default_factory=list)
    checked: np.ndarray | None = None
    failed: str | None = None

    @property
    def us(self) -> list[float]:
        """Microseconds a row while tasks ran, of each run."""
        return [1e6 * run.explain_seconds / self.rows for run in self.runs]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.workers} worker{'s' * (self.workers > 1)}"


def run_in_turns(
    subject: Subject, us_per_row: float, seconds: float, folder: Path, say: Callable[[str], None], checked: int
) -> list[Way]:
    """Run with as many workers as there are cores, and with one, in about so many seconds; once at least.

    Parameters
    ----------
    us_per_row : float
        About what featurizing and explaining a row takes on one core.
    checked : int
        Rows whose written importances are read.
    """
    counts = [cores(), 1] if cores() > 1 else [1]
    aim = seconds / 4 / len(counts)  # most of a run of few rows is its start
    rows = min(subject.plan.rows, max(_FEWEST_ROWS, int(1e6 * aim / (us_per_row + _WRITING_US))))
    part = max(_FEWEST_PART, -(-rows // (_PARTS * max(counts))))
    arguments = [*subject.arguments, "--limit", str(rows), "--partition-rows", str(part)]
    ways = [Way(count, rows) for count in counts]
    started = time.perf_counter()
    for number in range(MOST_ROUNDS):
        begun = time.perf_counter()
        for way in ways:
            if time.perf_counter() - started > seconds:
                break  # the start alone took as long as that
            say(f"whole run of {rows:,} rows, {way.name}")
            out = folder / "scratch"
            out.mkdir()
            found = run_engine([*arguments, "--workers", str(way.workers)], out, cwd=Path.cwd())
            if found.measured.exit_code:
                way.failed = why_it_failed(out)
                return ways
            way.runs.append(found)
            if not number and subject.plan.series is None:
                way.checked = _written(open_run(str(out / "run")), subject.artifacts.explainer, checked)
            shutil.rmtree(out)
        took = time.perf_counter() - begun
        if time.perf_counter() - started + took > seconds:
            break
    return ways


def _written(run: Run, explainer: Explainer, rows: int) -> np.ndarray:
    """Engineered importances of the used features, shape (output, used feature, row), of the first rows."""
    names = [explainer.engineered_features[i] for i in explainer.used]
    found = []
    outputs: Sequence[str | None] = run.outputs or [None]
    for output in outputs:
        table = run.table(_ENGINEERED, output).head(rows, columns=names)
        found.append(np.stack([table[name].to_numpy() for name in names]))
    return np.stack(found)
