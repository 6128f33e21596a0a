"""Memory is planned before the run and kept in it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest

import batch_explain as bx
from batch_explain.errors import OptionError
from tests.conftest import ROOT, Engineered, once

ROWS, COLUMNS = 20_000, 600


pytestmark = once


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """20,000 rows of 600 columns in one row group, most of them used by the surrogate."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(ROWS, COLUMNS)), columns=[f"f{i}" for i in range(COLUMNS)])
    target = frame[:4_000].to_numpy() @ rng.normal(size=COLUMNS)
    options = {"objective": "regression", "verbosity": -1, "num_leaves": 31, "feature_fraction": 0.3, "num_threads": 2}
    booster = lightgbm.train(options, lightgbm.Dataset(frame[:4_000], target), 60)
    assert (booster.feature_importance() > 0).sum() > 400
    booster.save_model(folder / "surrogate.txt")
    frame.to_parquet(folder / "rows.parquet", row_group_size=ROWS)
    return {"input": folder / "rows.parquet", "explainer": folder / "surrogate.txt"}


def run(wide: dict[str, Any], output: Path, *arguments: str) -> tuple[dict[str, Any], int]:
    """A run in a process of its own, as a nightly job is: what it foretold, and the peak of its workers, in bytes."""
    options = [part for name, value in wide.items() for part in (f"--{name}", str(value))]
    options += ["--workers", "2", "--compression", "none", "--output", str(output)]
    ended = subprocess.run(
        [sys.executable, "-m", "batch_explain", "run", "--log-format", "json", *options, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    receipts = [json.loads(path.read_text()) for path in (output / "_run/receipts").iterdir()]
    planned = next(event for event in events if event["event"] == "RunPlanned")
    return planned, max(receipt["worker"]["peak_rss_bytes"] for receipt in receipts)


def test_a_limit_is_planned_for_and_kept(wide: dict[str, Any], tmp_path: Path) -> None:
    planned, peak = run(wide, tmp_path / "free", "--partition-rows", "5000")
    assert 0.8 < planned["worker_bytes"] / peak < 1.6  # foretold, if anything too high
    written = sum(path.stat().st_size for path in (tmp_path / "free/engineered").iterdir())
    assert 0.9 < planned["output_bytes"] / written < 1.1
    limit = planned["worker_bytes"] * 9 // 10
    _, held = run(wide, tmp_path / "held", "--partition-rows", "5000", "--memory-limit", str(limit))
    assert held < limit
    decisions = bx.open_run(tmp_path / "held").info["decisions"]
    assert any("memory is limited" in decision for decision in decisions)
    left, right = (bx.open_run(tmp_path / name).table("engineered").to_table() for name in ("free", "held"))
    assert left.equals(right)


def test_partitions_are_cut_by_what_their_footers_take(wide: dict[str, Any], tmp_path: Path) -> None:
    """A batch is a row group of its part, whose footer, with a place for each of its columns, is kept to the end."""
    planned, peak = run(wide, tmp_path / "cut", "--batch-rows", "50")
    _, of_one = run(wide, tmp_path / "whole", "--batch-rows", "50", "--partition-rows", str(ROWS))
    assert planned["partitions"] == 4
    assert of_one - peak > 150e6
    decisions = bx.open_run(tmp_path / "cut").info["decisions"]
    assert any("footers of more would be large" in decision for decision in decisions)


def test_mini_batches_are_cut_alike(wide: dict[str, Any], tmp_path: Path) -> None:
    rows, options = tmp_path / "rows.parquet", {"explainer": wide["explainer"], "batch_rows": 10}
    pd.read_parquet(wide["input"])[:1_400].to_parquet(rows)
    planned = bx.plan_dataset(input=rows, output=tmp_path / "planned", **options)
    script = bx.EntryScript(output=tmp_path / "out", **options)
    script.init([])
    (said,) = script.run([str(rows)])
    assert said.endswith(f"1400 rows in {planned.partitions} partitions") and planned.partitions > 1


def test_a_limit_that_holds_nothing_is_refused(wide: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--memory-limit is 40 MB, but a worker needs .* MB.*Give it more"):
        bx.explain_dataset(**wide, output=tmp_path / "out", memory_limit="40MB")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="--memory-limit is 'much'"):
        bx.explain_dataset(**wide, output=tmp_path / "out", memory_limit="much")


def test_a_peak_is_the_runs_own(engineered: Engineered, tmp_path: Path) -> None:
    """Not that of the program which started it: getrusage hands that on."""
    engineered.frame.to_parquet(tmp_path / "rows.parquet")
    options = ["--input=rows.parquet", f"--explainer={engineered.explainer}", "--output=out", "--scheduler=sync"]
    large = "import subprocess, sys; held = bytes([1]) * 2_000_000_000; subprocess.run([sys.executable, *sys.argv[1:]])"
    subprocess.run(
        [sys.executable, "-c", large, "-m", "batch_explain", "run", *options, "--no-report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    assert bx.open_run(tmp_path / "out").info["peak_rss_bytes"] < 1_500_000_000
