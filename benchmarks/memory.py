"""Peak memory of a worker: independent of the rows of a file, of a row group, and bounded where rows are wide.

`python benchmarks/memory.py` in the core environment; `--quick` for two of them, tiny. Each case is a run of its
own with two worker processes; the largest resident memory of a worker, as its receipts tell, is held against a limit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from engine_run import engine_environment, run_engine

LIMIT_MB = 1_000
FLAT = 0.10  # from the smallest to the largest number of rows
TREES, LEAVES = 100, 31
QUICK, WIDE_QUICK = 1_000, 100  # so many times fewer rows, and no more columns


@dataclass(frozen=True)
class Case:
    """A dataset: how many rows and columns, and how many rows a row group has."""

    name: str
    rows: int
    columns: int
    row_group: int

    def smaller(self, by: int) -> Case:
        """The same with fewer rows, and no more columns than train in seconds."""
        return Case(self.name, self.rows // by, min(self.columns, WIDE_QUICK), self.row_group // by)


CASES = (
    Case("one row group", 5_000_000, 50, 5_000_000),
    Case("2,000 columns", 200_000, 2_000, 200_000),
    Case("1 million rows", 1_000_000, 50, 100_000),
    Case("20 million rows", 20_000_000, 50, 100_000),
)
GROWING = CASES[2:]


def prepare(folder: Path, case: Case) -> None:
    """Train a model on normal columns and write the rows, in a process of its own."""
    import lightgbm
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = [f"f{i}" for i in range(case.columns)]
    X = rng.normal(size=(10_000, case.columns))
    y = X @ rng.normal(size=case.columns) + np.sin(3 * X[:, 0]) * X[:, 1]
    parameters = {"objective": "regression", "num_leaves": LEAVES, "feature_fraction": 0.3, "verbosity": -1, "seed": 0}
    booster = lightgbm.train(parameters, lightgbm.Dataset(X, y, feature_name=names), TREES)
    booster.save_model(folder / "model.txt")
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(folder / "rows.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, case.rows, case.row_group):
            count = min(case.row_group, case.rows - start)
            columns = [pa.array(np.random.default_rng([1, start, i]).normal(size=count)) for i in range(case.columns)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=count)


def in_another_process(folder: Path, case: Case) -> None:
    """Prepare; whatever this process holds, its children's peak memory would include."""
    step = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import memory; from pathlib import Path; "
    step += f"memory.prepare(Path({str(folder)!r}), memory.{case!r})"
    subprocess.run([sys.executable, "-c", step], check=True)


def measure(case: Case, environment: dict[str, str] | None) -> dict[str, Any]:
    """Run a case; its largest worker, in MB."""
    with tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-") as name:
        folder = Path(name)
        in_another_process(folder, case)
        arguments = ["--input", str(folder / "rows.parquet"), "--explainer", str(folder / "model.txt")]
        run = run_engine([*arguments, "--workers", "2"], folder, env=environment)
        if run.measured.exit_code:
            raise RuntimeError(
                f"{case.name} ended with {run.measured.exit_code}: {(folder / 'log.json').read_text()[-500:]}"
            )
        explained = run.info["rows"]["explained"]
        shutil.rmtree(folder / "run")
        return {
            "name": case.name,
            "rows": case.rows,
            "columns": case.columns,
            "row_group": case.row_group,
            "rows_explained": explained,
            "partitions": run.info["partitions"],
            "worker_peak_mb": round(max(run.worker_peaks_mb), 1),
            "all_processes_peak_mb": round(run.measured.tree_rss_mb, 1),
            "explain_seconds": round(run.explain_seconds, 1),
        }


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is promised of a worker's memory."""
    found = [common.target(f"{r['name']}: MB of a worker", r["worker_peak_mb"], at_most=LIMIT_MB) for r in results]
    growing = [r["worker_peak_mb"] for r in results if r["name"] in {case.name for case in GROWING}]
    if len(growing) > 1:
        ratio = round(max(growing) / min(growing), 3)
        found.append(common.target("20 million rows: times the memory of the smaller", ratio, at_most=1 + FLAT))
    return found


def main(arguments: list[str]) -> int:
    """Measure, print, write; 1 if a promise is not kept."""
    options = common.options(__doc__).parse_args(arguments)
    begun = common.begin()
    results = []
    with tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-") as folder:
        environment, source = engine_environment(Path(folder))
    for case in CASES[:2] if options.quick else CASES:
        print(f"{case.name}: {case.rows:,} rows", file=sys.stderr, flush=True)
        results.append(measure(case.smaller(QUICK) if options.quick else case, environment))
    headings = (
        "case",
        "rows",
        "columns",
        "rows of a\nrow group",
        "peak MB of\na worker",
        "of all\nprocesses",
        "explain s",
    )
    lines = [
        [
            r["name"],
            f"{r['rows']:,}",
            f"{r['columns']:,}",
            f"{r['row_group']:,}",
            f"{r['worker_peak_mb']:,.0f}",
            f"{r['all_processes_peak_mb']:,.0f}",
            f"{r['explain_seconds']:.1f}",
        ]
        for r in results
    ]
    common.print_table(f"Memory of a run with 2 worker processes, {TREES} trees x {LEAVES} leaves", headings, lines)
    settings = {"from": source, "workers": 2, "trees": TREES, "leaves": LEAVES}
    promised = [] if options.quick else targets(results)
    problems = [f"{each['name']}: {each['reached']:g}, not {each['asked']}" for each in promised if not each["met"]]
    problems += [
        f"{r['name']}: {r['rows_explained']} rows explained" for r in results if r["rows_explained"] != r["rows"]
    ]
    return common.finish(
        "memory", begun, options, settings=settings, results=results, targets=promised, problems=problems
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
