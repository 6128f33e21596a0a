"""Strong scaling: measured with 1 and 2 workers, simulated to 1,000, and the partition size that follows.

`python benchmarks/scaling.py` in the core environment; `--quick` for few rows. The measured part explains the same
rows with one worker process and with two, in turns. The simulation plays a cluster with the engine's own chunks of
partitions and window, and with times measured in these runs: a row's, a partition's beside its rows, their spread, what
Dask takes for a task (the client and its scheduler do one after the other), what finalize takes for a partition.

Not measured but assumed, and options: stragglers (`--straggler-share` of the partitions take `--straggler-factor` times
as long), an object store (`--latency` for each of `--requests` a partition), `--start` seconds until a worker has
loaded the model, and that workers neither share a disk nor a network that is full.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
from engine_run import EngineRun, engine_environment, run_engine
from memory import LEAVES, TREES, Case, in_another_process

ROWS, COLUMNS, QUICK = 1_000_000, 50, 50
DASK_TASKS = 2_000
WORKERS = (1, 2, 10, 100, 1_000)
SIZES = (10_000, 25_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
DATASETS = (1_000_000, 10_000_000, 1_000_000_000)
_LEAST_ROW_S = 1e-6  # of few rows, times may be the wrong way round
_MANY = 1_000  # partitions, of which one run is like another
DISK, STORE = "local disk", "object store"
_PARTS = ("min", "median", "max")
WORTH_IT = 0.1  # more workers than that leaves each so many seconds of work are not looked at


@dataclass(frozen=True)
class Times:
    """What the simulation stands on, in seconds.

    Attributes
    ----------
    row, partition : float
        Of a worker, for a row and for a partition beside its rows.
    spread : float
        Standard deviation of the logarithm of a partition's time.
    task : float
        Of the client and the scheduler for one task.
    finalize : float
        For a partition, at the end.
    """

    row: float
    partition: float
    spread: float
    task: float
    finalize: float


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    straggler_share: float
    straggler_factor: float
    latency: float
    requests: int
    start: float


def simulate(rows: int, size: int, workers: int, times: Times, assumed: Assumed, seed: int = 0) -> float:
    """Seconds of a run, from the workers' start to the end of finalize.

    Tasks are given out as the engine does: chunks of partitions, in a window of tasks for each worker. A free worker
    takes the next task that is on the scheduler.
    """
    import numpy as np

    from batch_explain.engine.chunks import Waiting
    from batch_explain.engine.executors import WINDOW
    from batch_explain.engine.partitions import cut
    from batch_explain.storage.dataset import InputFile

    rng = np.random.default_rng(seed)
    groups = (size,) * (rows // size) + ((rows % size,) if rows % size else ())
    partitions = cut([InputFile("rows", "rows", 1, rows, groups, "")], size)
    took = times.row * np.array([each.rows for each in partitions])
    took += times.partition + assumed.latency * assumed.requests
    took *= np.exp(rng.normal(0, times.spread, len(took)) - times.spread**2 / 2)
    took[rng.random(len(took)) < assumed.straggler_share] *= assumed.straggler_factor
    waiting, queue, idle, submitted, now = Waiting(partitions), deque[float](), 0, 0.0, 0.0
    events: list[tuple[float, bool, float]] = [
        (assumed.start, False, 0.0)
    ] * workers  # when, whether a task comes, its s

    def submit() -> None:
        nonlocal submitted
        if chunk := waiting.take(workers):
            submitted = max(submitted, now) + times.task
            heapq.heappush(events, (submitted, True, float(sum(took[each.index] for each in chunk))))

    for _ in range(WINDOW * workers):
        submit()
    while events:
        now, comes, seconds = heapq.heappop(events)
        if comes:
            queue.append(seconds)
        else:
            idle += 1
            if seconds:
                submit()
        while idle and queue:
            idle -= 1
            heapq.heappush(events, (now + queue[0], False, queue.popleft()))
    return now + times.finalize * len(took)


def efficiency(rows: int, size: int, workers: int, times: Times, assumed: Assumed) -> float:
    """What a perfect cluster would take, by what this one does; the workers' start apart."""
    seeds = range(3 if rows // size < _MANY else 1)
    took = statistics.median(simulate(rows, size, workers, times, assumed, seed) for seed in seeds) - assumed.start
    return rows * times.row / workers / took


def measured(
    folder: Path, rows: int, size: int, repetitions: int, counts: Sequence[int]
) -> tuple[dict[int, list[EngineRun]], list[float]]:
    """Runs with so many workers, in turns; and the seconds of each partition of those with one."""
    environment, _ = engine_environment(folder)
    in_another_process(folder, Case("scaling", rows, COLUMNS, size))
    found: dict[int, list[EngineRun]] = {workers: [] for workers in counts}
    seconds: list[float] = []
    arguments = ["--input", str(folder / "rows.parquet"), "--explainer", str(folder / "model.txt"), "--no-report"]
    arguments += ["--partition-rows", str(size), "--overwrite"]
    for _ in range(repetitions):
        for workers, runs in found.items():
            done = run_engine([*arguments, "--workers", str(workers)], folder, env=environment)
            if done.measured.exit_code:
                raise RuntimeError((folder / "log.json").read_text()[-800:])
            runs.append(done)
            if workers == 1:
                seconds += list(_seconds_of_partitions(folder / "run"))
    return found, seconds


def _seconds_of_partitions(run: Path) -> Iterator[float]:
    """Of all but the first, whose process warms up."""
    for path in sorted((run / "_run/receipts").glob("*.json"))[1:]:
        yield json.loads(path.read_text())["worker"]["seconds"]


def dask_task_seconds(tasks: int) -> float:
    """What Dask takes for a task that does nothing, when there are enough of them: the client and the scheduler."""
    from distributed import Client, LocalCluster, as_completed

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(math.sqrt, range(50), pure=False))
        began = time.perf_counter()
        left = iter(range(tasks - 8))
        running = as_completed([client.submit(math.sqrt, number, pure=False) for number in range(8)])
        for _ in running:
            if (number := next(left, None)) is not None:
                running.add(client.submit(math.sqrt, number, pure=False))
        return (time.perf_counter() - began) / tasks


def times_of(folder: Path, quick: bool, repetitions: int) -> tuple[Times, list[dict[str, Any]]]:
    """Measure: what the simulation stands on, and the runs with one worker and with two."""
    rows = ROWS // QUICK if quick else ROWS
    size, small = rows // 10, max(50, rows // 1_000)
    runs, seconds = measured(folder, rows, size, repetitions, (1, 2))
    many, of_small = measured(folder, rows // 10, small, 1, (1,))
    large_s, small_s = statistics.median(seconds), statistics.median(of_small)
    row = max(_LEAST_ROW_S, (large_s - small_s) / (size - small))
    partition = max(0.0, small_s - small * row)
    finalize = max(0.0, many[1][0].closing_seconds - runs[1][0].closing_seconds) / (rows / 10 / small)
    spread = statistics.stdev(map(math.log, seconds))
    times = Times(row, partition, spread, dask_task_seconds(200 if quick else DASK_TASKS), finalize)
    results = []
    for workers, found in runs.items():
        faster = [one.explain_seconds / run.explain_seconds for one, run in zip(runs[1], found, strict=True)]
        results.append(
            {
                "name": f"measured: {rows:,} rows, {workers} worker{'s' * (workers > 1)}",
                "rows": rows,
                "workers": workers,
                "rows_explained": min(run.info["rows"]["explained"] for run in found),
                "seconds": common.spread([run.explain_seconds for run in found]),
                "times_one_worker": common.spread(faster),
            }
        )
    return times, results


def simulated(rows: int, workers: int, where: str, times: Times, assumed: Assumed) -> dict[str, Any]:
    """Efficiency by the rows of a partition."""
    assumed = assumed if where == STORE else replace(assumed, latency=0.0)
    found = {str(size): round(efficiency(rows, size, workers, times, assumed), 4) for size in SIZES}
    name = f"{rows:,} rows, {workers:,} worker{'s' * (workers > 1)}, {where}"
    return {"name": name, "rows": rows, "workers": workers, "where": where, "efficiency": found}


def recommended(results: list[dict[str, Any]], rows: int) -> int:
    """The partition size with the best efficiency over all simulated cases of so many rows, as a geometric mean."""
    found = [each["efficiency"] for each in results if "efficiency" in each and each["rows"] == rows]
    return max(SIZES, key=lambda size: statistics.geometric_mean(each[str(size)] for each in found))


def main(arguments: list[str]) -> int:
    """Measure, simulate, print, write."""
    parser = common.options(__doc__, repetitions=3)
    parser.add_argument("--straggler-share", type=float, default=0.01, help="of the partitions (default: %(default)s)")
    parser.add_argument("--straggler-factor", type=float, default=3.0, help="times as long (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.03, help="s of a store's answer (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=12, help="to it for a partition (default: %(default)s)")
    parser.add_argument("--start", type=float, default=15.0, help="s until a worker is ready (default: %(default)s)")
    options = parser.parse_args(arguments)
    begun = common.begin()
    assumed = _assumed(options)
    with tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-") as folder:
        times, results = times_of(Path(folder), options.quick, 1 if options.quick else options.repetitions)
    lines = [
        [each["name"], *(f"{each[what][part]:.2f}" for what in ("seconds", "times_one_worker") for part in _PARTS)]
        for each in results
    ]
    headings = ["", *(f"{what} {part}" for what in ("s,", "× faster,") for part in _PARTS)]
    common.print_table(f"{TREES} trees x {LEAVES} leaves x {COLUMNS} columns", headings, lines)
    problems = [
        f"{each['name']}: {each['rows_explained']}" for each in results if each["rows_explained"] != each["rows"]
    ]
    for rows in DATASETS[:1] if options.quick else DATASETS:
        worth = [workers for workers in WORKERS if rows * times.row / workers > WORTH_IT]
        results += [simulated(rows, workers, where, times, assumed) for where in (DISK, STORE) for workers in worth]
    lines = [
        [each["name"], *(f"{each['efficiency'][str(size)]:.0%}" for size in SIZES)]
        for each in results
        if "efficiency" in each
    ]
    common.print_table("Simulated efficiency, by rows of a partition", ["", *(f"{size:,}" for size in SIZES)], lines)
    best = {rows: recommended(results, rows) for rows in sorted({each["rows"] for each in results if "where" in each})}
    for rows, size in best.items():
        print(f"Recommended for {rows:,} rows: --partition-rows {size}")
    settings = {"times_s": asdict(times), "assumed": asdict(assumed), "recommended_partition_rows": best}
    return common.finish("scaling", begun, options, settings=settings, results=results, problems=problems)


def _assumed(options: argparse.Namespace) -> Assumed:
    return Assumed(options.straggler_share, options.straggler_factor, options.latency, options.requests, options.start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
