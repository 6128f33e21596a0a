"""How things are measured: processes from outside, the machine and its versions, spreads, and the form of the JSON.

Only the standard library and psutil: a process that is started from a large one would inherit its peak memory.
"""

import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from batch_explain.engine.environment import cores

FORMAT_VERSION = 2
BUSY = 0.5  # load average for each core, above which times are too long
PACKAGES = (
    "batch-explain", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "lightgbm", "shap", "dask", "distributed",
    "interpret-community", "azureml-interpret", "azureml-train-automl-runtime", "woodelf-explainer", "shapiq",
)  # fmt: skip
_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Measured:
    """A process that has ended, with all that it started.

    Attributes
    ----------
    exit_code : int
    seconds : float
        Wall clock, from before it was started to after it was gone.
    cpu_seconds : float
        User and system time of the whole process tree.
    tree_rss_mb : float
        Largest sum of the tree's resident memory, sampled; pages shared between processes count in each.
    largest_rss_mb : float
        Peak of the largest single process, as the kernel recorded it; at least what the process that started it takes.
    sampled_rss_mb : float
        As ``tree_rss_mb``, by samples alone.
    root_rss_mb : float
        Peak of the command's own process, sampled.
    """

    exit_code: int
    seconds: float
    cpu_seconds: float
    tree_rss_mb: float
    largest_rss_mb: float
    sampled_rss_mb: float
    root_rss_mb: float = 0.0


def measure(
    command: Sequence[str], *, cwd: Path, stdout: Path, stderr: Path, env: dict[str, str] | None = None
) -> Measured:
    """Run a command to its end, its output going to files, and measure it from outside."""
    started = time.perf_counter()
    with open(stdout, "wb") as out, open(stderr, "wb") as err:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    sampler = _TreeMemory(process.pid)
    sampler.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)  # of this process and those it waited for, and no others
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        sampler.stop()
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for behind Popen's back
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(
        exit_code=process.returncode,
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        tree_rss_mb=max(sampler.peak, largest) / 1e6,
        largest_rss_mb=largest / 1e6,
        sampled_rss_mb=sampler.peak / 1e6,
        root_rss_mb=sampler.of_root / 1e6,
    )


class _TreeMemory(threading.Thread):
    """Samples the resident memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = self.of_root = 0
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._ended.wait(_SAMPLE_SECONDS):
            try:
                root = psutil.Process(self._pid)
                tree = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            sizes = [_rss(process) for process in tree]
            self.peak, self.of_root = max(self.peak, sum(sizes)), max(self.of_root, sizes[0])

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self.join()


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def machine() -> dict[str, Any]:
    """CPU model, cores, memory, system, and how busy it is."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "load_average": _load(),
    }


def _load() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()]


def _cpu_model() -> str:
    """Model name; some virtual machines give no more than the maker, so family and model number follow."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def versions() -> dict[str, str]:
    """Python and the packages that matter here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float] | None:
    """Min, median and max; None of no values."""
    if not values:
        return None
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def target(name: str, reached: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """What has to be reached, what was, and whether that is enough; one of the limits is given."""
    limit, sign = (at_most, "<=") if at_most is not None else (at_least, ">=")
    assert limit is not None
    met = reached <= limit if sign == "<=" else reached >= limit
    return {"name": name, "reached": reached, "asked": f"{sign} {limit:g}", "met": met}


@dataclass(frozen=True)
class Begun:
    """When a measurement began, and how the machine was then."""

    machine: dict[str, Any] = field(default_factory=machine)
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since then."""
        return time.perf_counter() - self.clock

    @property
    def busy(self) -> bool:
        """Whether others worked on the machine's cores then."""
        return bool(self.machine["load_average"][0] > BUSY * self.machine["cores"])


def record(
    benchmark: str,
    begun: Begun,
    *,
    settings: dict[str, Any],
    results: Any,
    targets: Sequence[dict[str, Any]] = (),
    problems: Sequence[str] = (),
    commit: str | None = None,
) -> dict[str, Any]:
    """The JSON that every benchmark writes.

    Parameters
    ----------
    settings : dict
        What was measured, and how.
    results : list of dict, or dict of such lists and dicts
        Each dict in a list has a ``name``. A quantity that was measured several times is its :func:`spread`.
    targets : sequence of dict
        From :func:`target`.
    problems : sequence of str
        Why the results cannot be believed; none if they can.
    """
    return {
        "benchmark": benchmark,
        "format_version": FORMAT_VERSION,
        "commit": commit,
        "machine": {**begun.machine, "load_average_after": _load()},
        "versions": versions(),
        "started": begun.at,
        "seconds": round(begun.seconds, 1),
        "settings": settings,
        "results": results,
        "targets": list(targets),
        "problems": list(problems),
    }
