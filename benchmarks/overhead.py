"""What a partition costs beside its rows: many tiny partitions, many small files, and both beside one large file.

`python benchmarks/overhead.py` in the core environment; `--quick` for some hundred partitions. Each case is a run of
its own with two worker processes. The same rows in one file tell what the rows themselves take; a run into memory
(`--memory-folder`), where making a file durable costs nothing, tells the disk's share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from engine_run import EngineRun, engine_environment, run_engine

WORKERS, COLUMNS, RAW, TREES, LEAVES = 2, 20, 10, 20, 15
FEWEST = 100_000  # rows of a partition, where there are as few as can be
QUICK = 100  # so many times fewer
MOST_MS, MOST_SCHEDULER_MB, MOST_CLOSING_S, MOST_PLANNING_S, LEAST_BUSY = 15, 500, 60, 30, 0.95


@dataclass(frozen=True)
class Case:
    """A dataset: files of some row groups each, and one of its own size beside them.

    Attributes
    ----------
    files, row_groups, rows : int
        Files, row groups of a file, and rows of a row group.
    partition_rows : int
        Most rows of a partition.
    large : int
        Rows of one more file, in row groups of 100,000.
    """

    name: str
    files: int
    row_groups: int
    rows: int
    partition_rows: int
    large: int = 0

    def smaller(self) -> Case:
        """The same with fewer files or row groups."""
        files, row_groups = max(1, self.files // QUICK), self.row_groups
        if self.files < QUICK:
            files, row_groups = self.files, max(1, self.row_groups // QUICK)
        return Case(self.name, files, row_groups, self.rows, self.partition_rows, self.large // QUICK)


CASES = (
    Case("20,000 partitions of 50 rows", 20, 1_000, 50, 50),
    Case("10,000 files of 50 rows", 10_000, 1, 50, FEWEST),
    Case("10,000 files of 50 rows, one of 10 GB", 10_000, 1, 50, FEWEST, 62_500_000),  # of 20 columns of 8 bytes
)


def prepare(folder: Path, case: Case) -> None:
    """Train a model on normal columns and write the rows, in a process of its own."""
    import lightgbm
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = [f"f{i}" for i in range(COLUMNS)]
    X = rng.normal(size=(10_000, COLUMNS))
    y = X @ rng.normal(size=COLUMNS) + np.sin(3 * X[:, 0]) * X[:, 1]
    parameters = {"objective": "regression", "num_leaves": LEAVES, "verbosity": -1, "seed": 0, "num_threads": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(X, y, feature_name=names), TREES)
    booster.save_model(folder / "model.txt")
    raw = [f"r{i % RAW}" for i in range(COLUMNS)]
    weights = pa.table({"raw_feature": raw, "engineered_feature": names, "weight": [1.0] * COLUMNS})
    pq.write_table(weights, folder / "map.parquet")
    (folder / "rows").mkdir()
    for file in range(case.files):
        rows = np.random.default_rng([1, file]).normal(size=(case.rows * case.row_groups, COLUMNS))
        table = pa.table({name: rows[:, i] for i, name in enumerate(names)})
        pq.write_table(table, folder / f"rows/{file:05d}.parquet", row_group_size=case.rows, use_dictionary=False)
    if case.large:
        with pq.ParquetWriter(folder / "rows/large.parquet", table.schema, use_dictionary=False) as writer:
            for start in range(0, case.large, FEWEST):
                rows = np.random.default_rng([2, start]).normal(size=(min(FEWEST, case.large - start), COLUMNS))
                writer.write_table(pa.table({name: rows[:, i] for i, name in enumerate(names)}))


def run(case: Case, data: Path, folder: Path, environment: dict[str, str] | None, partition_rows: int) -> EngineRun:
    """Explain all rows."""
    arguments = ["--input", str(data / "rows"), "--explainer", str(data / "model.txt"), "--no-report"]
    arguments += ["--feature-map", str(data / "map.parquet"), "--workers", str(WORKERS), "--overwrite"]
    found = run_engine([*arguments, "--partition-rows", str(partition_rows)], folder, env=environment)
    if found.measured.exit_code:
        raise RuntimeError(f"{case.name}: exit {found.measured.exit_code}: {(folder / 'log.json').read_text()[-800:]}")
    return found


def rows_take(case: Case, data: Path, folder: Path, environment: dict[str, str] | None) -> float:
    """Worker seconds that the rows take by themselves: the same number in one file."""
    alone = Case(case.name, 1, 1, min(case.files * case.row_groups * case.rows, 1_000_000), FEWEST)
    whole = data / "alone"
    whole.mkdir()
    in_another_process(whole, alone)
    return run(alone, whole, folder, environment, FEWEST).explain_seconds * WORKERS


def in_another_process(folder: Path, case: Case) -> None:
    """Prepare; whatever this process holds, its children's peak memory would include."""
    step = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import overhead; from pathlib import Path; "
    )
    step += f"overhead.prepare(Path({str(folder)!r}), overhead.{case!r})"
    subprocess.run([sys.executable, "-c", step], check=True)


def idle_at_the_end(run_folder: Path) -> float:
    """Seconds between the first worker's last receipt and the other's."""
    last: dict[int, float] = {}
    for path in (run_folder / "_run/receipts").glob("*.json"):
        pid = json.loads(path.read_text())["worker"]["pid"]
        last[pid] = max(last.get(pid, 0.0), path.stat().st_mtime)
    if len(last) < WORKERS:
        raise RuntimeError("one worker did all of it")
    return max(last.values()) - min(last.values())


def measure(case: Case, environment: dict[str, str] | None, memory: Path, *, quick: bool) -> dict[str, Any]:
    """Run a case in memory and on the disk, and its rows alone. ``quick``: in memory; a large one: on the disk."""
    with (
        tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-") as on_disk,
        tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-", dir=memory) as in_memory,
    ):
        disk, ram = Path(on_disk), Path(in_memory)
        places = {"memory": ram} if quick else {"disk": disk} if case.large else {"memory": ram, "disk": disk}
        data = next(iter(places.values())) / "data"
        data.mkdir()
        in_another_process(data, case)
        found = {name: run(case, data, place, environment, case.partition_rows) for name, place in places.items()}
        last = [*found.values()][-1]
        partitions = last.info["partitions"]
        result: dict[str, Any] = {
            "name": case.name,
            "rows": case.files * case.row_groups * case.rows + case.large,
            "rows_explained": last.info["rows"]["explained"],
            "files": case.files + bool(case.large),
            "large_file_bytes": large.stat().st_size if (large := data / "rows/large.parquet").exists() else 0,
            "partitions": partitions,
            "planning_s": round(last.timings["load"] + last.timings["plan"], 2),
            "explain_s": {name: round(each.explain_seconds, 2) for name, each in found.items()},
            "closing_s": {name: round(each.closing_seconds, 2) for name, each in found.items()},
            "scheduler_peak_mb": round(last.measured.root_rss_mb, 1),
            "worker_peak_mb": round(max(last.worker_peaks_mb), 1),
            "idle_at_the_end_s": round(idle_at_the_end([*places.values()][-1] / "run"), 3),
        }
        if not case.large and not quick:
            alone = rows_take(case, data, ram, environment)
            per = {name: (each.explain_seconds * WORKERS - alone) / partitions for name, each in found.items()}
            result |= {"rows_alone_worker_s": round(alone, 2)}
            result |= {"overhead_ms": {name: round(1e3 * each, 2) for name, each in per.items()}}
        return result


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is promised."""
    partitions, files, skewed = results
    return [
        common.target("ms of a worker for a partition", partitions["overhead_ms"]["memory"], at_most=MOST_MS),
        common.target("scheduler's MB, 20,000 partitions", partitions["scheduler_peak_mb"], at_most=MOST_SCHEDULER_MB),
        common.target("finalizing 20,000 partitions, s", partitions["closing_s"]["disk"], at_most=MOST_CLOSING_S),
        common.target("planning 10,000 files, s", files["planning_s"], at_most=MOST_PLANNING_S),
        common.target(
            "one worker waits for the other, share of the run",
            round(skewed["idle_at_the_end_s"] / skewed["explain_s"]["disk"], 4),
            at_most=1 - LEAST_BUSY,
        ),
    ]


def main(arguments: list[str]) -> int:
    """Measure, print, write; 1 if a promise is not kept."""
    parser = common.options(__doc__)
    parser.add_argument("--memory-folder", type=Path, default=Path("/dev/shm"), help="in memory (default: %(default)s)")
    options = parser.parse_args(arguments)
    begun = common.begin()
    memory = options.memory_folder if options.memory_folder.is_dir() else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-") as folder:
        environment, source = engine_environment(Path(folder))
    results = []
    for case in CASES:
        print(case.name, file=sys.stderr, flush=True)
        results.append(measure(case.smaller() if options.quick else case, environment, memory, quick=options.quick))
    headings = ("case", "partitions", "planning s", "explaining s", "closing s", "overhead ms", "without disk",
                "scheduler MB", "waiting at the end s")  # fmt: skip
    lines = [
        [
            r["name"],
            f"{r['partitions']:,}",
            f"{r['planning_s']:.1f}",
            f"{[*r['explain_s'].values()][-1]:.1f}",
            f"{[*r['closing_s'].values()][-1]:.1f}",
            *(f"{r['overhead_ms'][place]:.1f}" if "overhead_ms" in r else "" for place in ("disk", "memory")),
            f"{r['scheduler_peak_mb']:.0f}",
            f"{r['idle_at_the_end_s']:.2f}",
        ]
        for r in results
    ]
    common.print_table(f"Partitions, {WORKERS} worker processes", headings, lines)
    promised = [] if options.quick else targets(results)
    problems = [
        f"{r['name']}: {r['rows_explained']} rows explained" for r in results if r["rows_explained"] != r["rows"]
    ]
    settings = {"from": source, "workers": WORKERS, "trees": TREES, "leaves": LEAVES, "columns": COLUMNS, "raw": RAW}
    return common.finish(
        "overhead", begun, options, settings=settings, results=results, targets=promised, problems=problems
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
