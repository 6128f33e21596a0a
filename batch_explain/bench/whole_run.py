"""One `batch-explain run` in a process of its own, measured from outside and by what it says of itself."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch_explain.bench.measuring import Measured, measure


@dataclass(frozen=True)
class EngineRun:
    """A run that has ended.

    Attributes
    ----------
    measured : Measured
    info : dict
        Its run.json; empty if it failed.
    inside_seconds : float
        From its first line of work to its end, imports of the program apart.
    worker_peaks_mb : list of float
        Peak resident memory of each worker process.
    part_us_per_row : list of float
        Of each partition, in its own worker.
    """

    measured: Measured
    info: dict[str, Any] = field(default_factory=dict)
    inside_seconds: float = 0.0
    worker_peaks_mb: list[float] = field(default_factory=list)
    part_us_per_row: list[float] = field(default_factory=list)

    @property
    def timings(self) -> dict[str, float]:
        """Phase -> seconds."""
        return dict(self.info["timings_s"])

    @property
    def explain_seconds(self) -> float:
        """From when the workers are ready to the last receipt: reading, explaining, writing."""
        return self.timings["explain"]

    @property
    def closing_seconds(self) -> float:
        """Stopping the workers, merging the summaries, checksums, the report."""
        return self.inside_seconds - sum(self.timings.values())

    @property
    def startup_seconds(self) -> float:
        """Interpreter, imports, loading, planning, starting the workers, and leaving."""
        return self.measured.seconds - self.explain_seconds - self.closing_seconds


def run_engine(
    arguments: Sequence[str], folder: Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> EngineRun:
    """Run ``python -m batch_explain run`` into ``folder/run``; its log is ``folder/log.json``, also where it fails."""
    command = [sys.executable, "-m", "batch_explain", "run", "--log-format", "json", *arguments]
    command += ["--output", str(folder / "run")]
    log = folder / "log.json"
    measured = measure(command, cwd=cwd or folder, stdout=folder / "table.txt", stderr=log, env=env)
    if measured.exit_code:
        return EngineRun(measured)
    info = json.loads((folder / "run" / "run.json").read_text())
    inside = next(line["seconds"] for line in _json_lines(log) if line["event"] == "RunFinished")
    receipts = [json.loads(path.read_text()) for path in sorted((folder / "run" / "_run" / "receipts").glob("*.json"))]
    of_parts = [1e6 * each["worker"]["seconds"] / each["rows_in"] for each in receipts if each["rows_in"]]
    return EngineRun(measured, info, inside, _worker_peaks(receipts), of_parts)


def why_it_failed(folder: Path) -> str:
    """The last line that a run said."""
    lines = [line for line in (folder / "log.json").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("batch-explain: ") if lines else "it said nothing"


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _worker_peaks(receipts: list[dict[str, Any]]) -> list[float]:
    """Peak resident memory of each worker process, from the run's receipts."""
    peaks: dict[int, float] = {}
    for receipt in receipts:
        worker = receipt["worker"]
        peaks[worker["pid"]] = max(peaks.get(worker["pid"], 0.0), round((worker["peak_rss_bytes"] or 0) / 1e6, 1))
    return list(peaks.values())
