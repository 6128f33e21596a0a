"""What benchmarks share: the machine and its versions, processes measured from outside, tables, JSON.

Only the standard library, psutil and rich: a process that is started from a large one would inherit its peak memory.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

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
        Peak of the largest single process, as the kernel recorded it.
    """

    exit_code: int
    seconds: float
    cpu_seconds: float
    tree_rss_mb: float
    largest_rss_mb: float


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
    )


class _TreeMemory(threading.Thread):
    """Samples the resident memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
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
            self.peak = max(self.peak, sum(_rss(process) for process in tree))

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self.join()


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """CPU model, cores, memory, system, and how busy it is."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


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


def commit(root: Path) -> str | None:
    """The commit of a working tree, with ``+`` where files differ from it; None outside of git."""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float] | None:
    """Min, median and max; None of no values."""
    if not values:
        return None
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column to the left, the numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=bool(number), vertical="bottom")
    for row in rows:
        table.add_row(*row)
    # on a narrow terminal too: lines that wrap can be read, numbers that are cut off cannot
    Console(highlight=False, markup=False, width=200).print(table)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that a person can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_between(path: Path, marker: str, text: str) -> None:
    """Put text between `<!-- marker -->` and `<!-- /marker -->`, which have to stand there, on lines of their own.

    Raises
    ------
    ValueError
        If the file has not exactly one such pair.
    """
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->\n"
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path.name} has no single pair of lines '{begin.strip()}' and '{end.strip()}'")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}{text.strip()}\n{end}{after}", encoding="utf-8")
