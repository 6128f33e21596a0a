"""`end_to_end.py --engineered`: engineered parquet in, engineered and raw importances out, summaries and checks on.

A LightGBM user's own case, without the Azure SDK: a model text of 100 trees x 31 leaves x 50 features, and a feature
map from 20 raw features. Rows a second are of the time in which tasks run; start-up and closing are reported apart.
`--reasons` measures what reasons cost instead: runs with them beside a run without, all taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
from engine_run import EngineRun, engine_environment, run_engine

TREES, LEAVES, FEATURES, RAW = 100, 31, 50, 20
FILES, ROW_GROUPS = 8, 2
CHECKED_ROWS = 500
TOLERANCE = 1e-9
WAYS = {
    "run": [],
    "run --scheduler threads": ["--scheduler", "threads"],
    "run --workers 1": ["--workers", "1"],
}
TOP_K = 5
WITH_REASONS = {
    "run": [],
    "run, reasons too": ["--outputs", "engineered,raw,reasons"],
    "run, engineered reasons too": ["--outputs", "engineered,raw,reasons", "--reasons-level", "engineered"],
    "run --outputs reasons": ["--outputs", "reasons"],
}


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Train the model, write its text, its map, and the rows."""
    import lightgbm
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, rows = Path(spec["folder"]), spec["rows"]
    rng = np.random.default_rng(0)
    names = [f"f{i}" for i in range(FEATURES)]
    X = rng.normal(size=(30_000, FEATURES))
    y = X[:, :10] @ rng.normal(size=10) + np.sin(3 * X[:, 10]) + X[:, 11] * X[:, 12]
    y += (X[:, 13:] > 0) @ rng.normal(size=FEATURES - 13)
    parameters = {
        "objective": "regression", "num_leaves": LEAVES, "feature_fraction": 0.5, "verbosity": -1, "seed": 0,
        "num_threads": common.cores(),
    }  # fmt: skip
    booster = lightgbm.train(parameters, lightgbm.Dataset(X, y, feature_name=names), TREES)
    booster.save_model(folder / "model.txt")
    pairs = {
        "raw_feature": [f"r{i % RAW}" for i in range(FEATURES)],
        "engineered_feature": names,
        "weight": [1.0] * FEATURES,
    }
    pq.write_table(pa.table(pairs), folder / "map.parquet")
    (folder / "input").mkdir()
    edges = np.linspace(0, rows, FILES + 1).astype(int)
    for i in range(FILES):
        start, stop = int(edges[i]), int(edges[i + 1])
        values = np.random.default_rng([1, i]).normal(size=(FEATURES, stop - start))
        table = pa.table({"row": np.arange(start, stop), **dict(zip(names, values, strict=True))})
        size = max(1, -(-(stop - start) // ROW_GROUPS))
        pq.write_table(table, folder / "input" / f"rows-{i:05d}.parquet", row_group_size=size)
    return {"trees": booster.num_trees(), "used": int((booster.feature_importance() > 0).sum())}


def judge(spec: dict[str, Any]) -> dict[str, Any]:
    """Compare fixed rows of a run with LightGBM's own pred_contrib: importances, and reasons by the importances."""
    import lightgbm
    import numpy as np
    import pyarrow.dataset as ds

    folder, run = Path(spec["folder"]), Path(spec["run"])
    rows = ds.dataset(sorted(map(str, (folder / "input").glob("*.parquet"))))
    total = rows.count_rows()
    positions = np.unique(np.linspace(0, total - 1, CHECKED_ROWS).astype(np.int64))
    booster = lightgbm.Booster(model_file=folder / "model.txt")
    given = rows.take(positions).drop_columns("row").to_pandas().to_numpy()
    engineered = booster.predict(given, pred_contrib=True)[:, :-1]
    weights = np.eye(RAW)[np.arange(FEATURES) % RAW]
    largest, explained = 0.0, []
    both = {"engineered": engineered, "raw": engineered @ weights}
    if (run / "reasons").exists():
        info = json.loads((run / "run.json").read_text())["reasons"]
        expected = both[info["level"]]
        table = ds.dataset(sorted(map(str, (run / "reasons").glob("*.parquet"))))
        ids = table.to_table(columns=["row"])["row"].to_numpy()
        explained.append(len(ids) // TOP_K if np.array_equal(ids, np.repeat(np.arange(total), TOP_K)) else 0)
        lines = table.take((positions[:, None] * TOP_K + np.arange(TOP_K)).ravel()).to_pandas()
        chosen = lines.feature.astype(str).str[1:].astype(int).to_numpy()  # f7, r7
        found = lines.importance.to_numpy().reshape(-1, TOP_K)
        sizes = -np.sort(-np.abs(expected), axis=1)[:, :TOP_K]
        own = np.take_along_axis(expected, chosen.reshape(-1, TOP_K), axis=1)
        largest = max(float(np.abs(found - own).max()), float(np.abs(np.abs(found) - sizes).max()))
    for level, expected in both.items():
        if not (run / level).exists():
            continue
        table = ds.dataset(sorted(map(str, (run / level).glob("*.parquet"))))
        ids = table.to_table(columns=["row"])["row"].to_numpy()
        explained.append(len(ids) if np.array_equal(ids, np.arange(total)) else 0)
        found = table.take(positions).drop_columns("row").to_pandas().to_numpy()
        scale = np.maximum(1.0, np.abs(expected).max(axis=1, keepdims=True))
        largest = max(largest, float(np.nan_to_num(np.abs(found - expected) / scale, nan=np.inf).max()))
    return {"rows_in_order": min(explained), "checked": len(positions), "largest_difference": largest}


def main(options: argparse.Namespace, folder: Path, begun: common.Begun) -> int:
    """Measure, print, write; 1 if a run failed or is not right."""
    environment, source = engine_environment(folder)
    facts = _step("prepare_engineered", {"folder": str(folder), "rows": options.rows}, folder)
    arguments = ["--input", str(folder / "input"), "--explainer", str(folder / "model.txt"), "--id-columns", "row"]
    arguments += ["--feature-map", str(folder / "map.parquet")]
    ways = WITH_REASONS if options.reasons else WAYS
    if options.quick:
        ways = dict(list(ways.items())[:2])
    runs: dict[str, list[EngineRun]] = {way: [] for way in ways}
    problems = []
    for number in range(options.repetitions):
        for way, extra in ways.items():
            print(f"{way} ({number + 1} of {options.repetitions})", file=sys.stderr, flush=True)
            out = folder / "scratch"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            os.sync()  # what the run before has left to be written is not this one's
            found = run_engine([*arguments, *extra], out, env=environment)
            if found.measured.exit_code:
                problems.append(f"{way} ended with {found.measured.exit_code}: {(out / 'log.json').read_text()[-300:]}")
                continue
            right = _step("judge_engineered", {"folder": str(folder), "run": str(out / "run")}, folder)
            if right["rows_in_order"] != options.rows or right["largest_difference"] > TOLERANCE:
                problems.append(f"{way}: {right}")
            runs[way].append(found)
    results = [_result(way, found, options.rows) for way, found in runs.items() if found]
    title = f"{options.rows:,} rows, {facts['trees']} trees x {LEAVES} leaves x {FEATURES} features, {RAW} raw features"
    headings = (
        "way",
        "runs",
        "rows/s",
        "µs/row",
        "CPU µs/row\n(with start-up)",
        "explain s",
        "start-up s",
        "closing s",
    )
    headings += ("peak RSS MB", "kernel")
    common.print_table(title, headings, [_line(result) for result in results])
    if options.reasons and results:
        _print_costs(results)
    settings = {"from": source, "model": facts}
    name = "reasons" if options.reasons else "engineered"
    return common.finish(name, begun, options, settings=settings, results=results, problems=problems)


def _result(way: str, runs: list[EngineRun], rows: int) -> dict[str, Any]:
    return {
        "name": way,
        "runs": len(runs),
        "rows_per_second": common.spread([rows / run.explain_seconds for run in runs], 0),
        "us_per_row": common.spread([1e6 * run.explain_seconds / rows for run in runs]),
        "cpu_us_per_row": common.spread([1e6 * run.measured.cpu_seconds / rows for run in runs]),
        "explain_seconds": common.spread([run.explain_seconds for run in runs]),
        "startup_seconds": common.spread([run.startup_seconds for run in runs]),
        "closing_seconds": common.spread([run.closing_seconds for run in runs]),
        "peak_rss_mb": common.spread([run.measured.tree_rss_mb for run in runs], 0),
        "treeshap": runs[0].info["treeshap"],
        "additivity": runs[0].info["additivity"],
    }


def _print_costs(results: list[dict[str, Any]]) -> None:
    """What a run takes more than the run without reasons."""
    without, *others = results
    for result in others:
        time = result["explain_seconds"]["median"] / without["explain_seconds"]["median"] - 1
        cpu = result["cpu_us_per_row"]["median"] - without["cpu_us_per_row"]["median"]
        print(f"{result['name']}: {time:+.0%} of the time in which tasks run, {cpu:+.2f} µs of CPU a row")


def _line(result: dict[str, Any]) -> list[str]:
    middle = {name: value["median"] for name, value in result.items() if isinstance(value, dict) and "median" in value}
    return [
        result["name"],
        str(result["runs"]),
        f"{middle['rows_per_second']:,.0f}",
        f"{middle['us_per_row']:.2f}",
        f"{middle['cpu_us_per_row']:.2f}",
        f"{middle['explain_seconds']:.2f}",
        f"{middle['startup_seconds']:.1f}",
        f"{middle['closing_seconds']:.1f}",
        f"{middle['peak_rss_mb']:.0f}",
        str(result["treeshap"]["kernel"]),
    ]


def _step(name: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A step in a process of its own: this one stays small, or every process that it starts would look as large."""
    path = folder / f"{name}.json"
    common.write_json(path, spec)
    program = Path(__file__).with_name("end_to_end.py")
    subprocess.run([sys.executable, str(program), "--step", name, str(path)], check=True)
    answer: dict[str, Any] = json.loads(path.with_suffix(".answer.json").read_text())
    return answer
