"""One `batch-explain run` in a process of its own, measured from outside and by what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common

ROOT = Path(__file__).resolve().parents[1]


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
    """

    measured: common.Measured
    info: dict[str, Any] = field(default_factory=dict)
    inside_seconds: float = 0.0
    worker_peaks_mb: list[float] = field(default_factory=list)

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
        """Stopping the workers, then merging the summaries and closing the run."""
        return self.inside_seconds - sum(self.timings.values())

    @property
    def startup_seconds(self) -> float:
        """Interpreter, imports, loading, planning, starting of workers, and leaving."""
        return self.measured.seconds - self.explain_seconds - self.closing_seconds


def run_engine(arguments: Sequence[str], folder: Path, *, env: dict[str, str] | None) -> EngineRun:
    """Run into `folder`/run; its progress goes to `folder`/log.json."""
    command = [sys.executable, "-m", "batch_explain", "run", "--log-format", "json", *arguments]
    command += ["--output", str(folder / "run")]
    log = folder / "log.json"
    measured = common.measure(command, cwd=folder, stdout=folder / "table.txt", stderr=log, env=env)
    if measured.exit_code:
        return EngineRun(measured)
    info = json.loads((folder / "run" / "run.json").read_text())
    inside = next(line["seconds"] for line in _json_lines(log) if line["event"] == "RunFinished")
    return EngineRun(measured, info, inside, _worker_peaks(folder / "run"))


def engine_environment(folder: Path) -> tuple[dict[str, str] | None, str]:
    """The environment in which `python -m batch_explain` is found: the installed package, or else this working tree."""
    command = [sys.executable, "-c", "import batch_explain"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0:
        return None, "installed"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}, "working tree"


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _worker_peaks(run: Path) -> list[float]:
    """Peak resident memory of each worker process, from the run's receipts."""
    peaks: dict[int, float] = {}
    for receipt in sorted((run / "_run" / "receipts").glob("*.json")):
        worker = json.loads(receipt.read_text())["worker"]
        peaks[worker["pid"]] = max(peaks.get(worker["pid"], 0.0), round((worker["peak_rss_bytes"] or 0) / 1e6, 1))
    return list(peaks.values())
