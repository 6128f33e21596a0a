"""What a partition costs beside its rows: many tiny partitions, and many small files.

`python benchmarks/overhead.py` in the core environment; `--quick` for a hundredth of them. Each case is a run of
its own with two worker processes. What a partition's rows take is measured apart, in one process; what the disk
takes to make a file durable is measured by a second run into memory (`--memory-folder`), where that costs nothing.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engine_run import EngineRun, run_engine

RESULTS = Path(__file__).parent / "results" / "overhead.json"
WORKERS, COLUMNS, RAW, TREES, LEAVES = 2, 20, 10, 20, 15
MOST_MS, MOST_SCHEDULER_MB, MOST_FINALIZE_S, MOST_PLAN_S = 15, 500, 60, 30


@dataclass(frozen=True)
class Case:
    """A dataset of equal files, each of row groups that become a partition each."""

    name: str
    files: int
    row_groups: int
    rows: int

    @property
    def partitions(self) -> int:
        """One a row group."""
        return self.files * self.row_groups

    def smaller(self, by: int) -> Case:
        """The same with fewer files or row groups."""
        if self.files >= by:
            return Case(self.name, self.files // by, self.row_groups, self.rows)
        return Case(self.name, self.files, max(1, self.row_groups // by), self.rows)


PARTITIONS = Case("20,000 partitions", 20, 1_000, 50)
FILES = Case("10,000 files", 10_000, 1, 50)


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
    weights = {"raw_feature": [f"r{i % RAW}" for i in range(COLUMNS)], "engineered_feature": names, "weight": 1.0}
    pq.write_table(pa.table({**weights, "weight": [1.0] * COLUMNS}), folder / "map.parquet")
    (folder / "rows").mkdir()
    for file in range(case.files):
        rows = np.random.default_rng([1, file]).normal(size=(case.rows * case.row_groups, COLUMNS))
        table = pa.table({name: rows[:, i] for i, name in enumerate(names)})
        pq.write_table(table, folder / f"rows/{file:05d}.parquet", row_group_size=case.rows, use_dictionary=False)


def prepared(folder: Path, case: Case) -> None:
    """Prepare in another process: whatever this one holds, its children's peak memory would include."""
    place, arguments = str(Path(__file__).parent), f"{case.name!r}, {case.files}, {case.row_groups}, {case.rows}"
    step = f"import sys; sys.path.insert(0, {place!r}); import overhead; from pathlib import Path; "
    step += f"overhead.prepare(Path({str(folder)!r}), overhead.Case({arguments}))"
    subprocess.run([sys.executable, "-c", step], check=True)


def run(data: Path, folder: Path, case: Case, environment: dict[str, str] | None, *, fewest: bool = False) -> EngineRun:
    """Explain the rows in as many partitions as there are row groups, or in as few as can be."""
    arguments = ["--input", str(data / "rows"), "--explainer", str(data / "model.txt")]
    arguments += ["--feature-map", str(data / "map.parquet"), "--workers", str(WORKERS), "--no-report"]
    arguments += [] if fewest else ["--partition-rows", str(case.rows)]
    found = run_engine(arguments, folder, env=environment)
    if found.measured.exit_code:
        raise RuntimeError(f"{case.name}: exit {found.measured.exit_code}: {(folder / 'log.json').read_text()[-800:]}")
    return found
