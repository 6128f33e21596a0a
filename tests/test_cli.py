"""The command line: a run's table, logs, configuration, exit codes, and what an interrupt leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from tests.conftest import ROOT, Engineered, Small, once

COMMAND = [sys.executable, "-m", "batch_explain"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_help_imports_nothing_heavy() -> None:
    """Not a matter of time but of what is imported: the time follows."""
    code = (
        "import sys, batch_explain.cli; print([m for m in ('numpy', 'pandas', 'pyarrow', 'dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    assert "run" in run("--help").stdout


@once
def test_a_run_prints_what_a_person_wants_to_know(small: Small, tmp_path: Path) -> None:
    source = small.write(tmp_path / "rows.parquet")
    done = run(
        "run", "--input", source, "--model", small.model, "--explainer", small.explainer, "--output", tmp_path / "out",
        "--id-columns", "customer_id", "--partition-rows", "500", "--scheduler", "threads", "--check", "all",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2,000" in done.stdout
    assert "agrees on" in done.stdout
    assert "top raw features" in done.stdout
    assert "2,000 of 2,000 rows (100%)" in done.stderr
    assert bx.open_run(tmp_path / "out").info["options"]["id_columns"] == ["customer_id"]


@once
def test_json_log_and_quiet(engineered: Engineered, tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    engineered.frame.to_parquet(source, row_group_size=1_000)
    common = [
        "run",
        "--input",
        source,
        "--explainer",
        engineered.explainer,
        "--scheduler",
        "sync",
        "--partition-rows",
        1_000,
    ]
    done = run(*map(str, common), "--output", tmp_path / "a", "--log-format", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["ArtifactsLoaded", "RunPlanned", "WorkersReady", *["PartitionDone"] * 3, "RunFinished"]
    assert sum(event.get("rows", 0) for event in events if event["event"] == "PartitionDone") == 3_000
    done = run(*map(str, common), "--output", tmp_path / "b", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_configuration_file_and_precedence(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame.to_parquet(tmp_path / "rows.parquet")
    config = tmp_path / "run.toml"
    config.write_text(
        f"input = '{tmp_path}/rows.parquet'\nexplainer = '{engineered.explainer}'\nscheduler = 'sync'\nlimit = 10\n"
        "partition-rows = 5\nquiet = true\n"
    )
    result = CliRunner().invoke(
        cli, ["run", "--config", str(config), "--output", str(tmp_path / "out"), "--limit", "20"]
    )
    assert (result.exit_code, result.output) == (0, "")
    info = bx.open_run(tmp_path / "out").info
    assert info["rows"]["explained"] == 20
    assert info["partitions"] == 4


def test_a_bug_is_one_paragraph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(bx.__dict__, "explain_dataset", broken)
    result = CliRunner().invoke(cli, ["run", "--input", "a", "--explainer", "b", "--output", "c"])
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert "BATCH_EXPLAIN_TRACEBACK" in result.output


@pytest.mark.parametrize("rows", [3_000])
def test_demo_explains_what_it_made(rows: int, tmp_path: Path) -> None:
    """The README's first command, on fewer rows; on Python 3.10 beside AutoML this is a genuine AutoML pipeline."""
    done = run("demo", "--folder", tmp_path / "demo", "--rows", rows, "--scheduler", "sync")
    assert done.returncode == 0, done.stderr
    info = bx.open_run(tmp_path / "demo/explained").info
    assert info["rows"]["explained"] == rows
    assert info["fidelity"]["agreement"] > 0.9
    assert info["additivity"]["largest_residual"] < 1e-9
    assert list(info["tables"]) == ["predictions", "engineered", "raw"]
    assert bx.open_run(tmp_path / "demo/explained").summary("raw").mean_abs.max() > 0.1
