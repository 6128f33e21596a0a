"""A platform that brings the partitions: plan first, mini-batches by several processes, finalize last."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import InterruptedRunError, OptionError
from tests.comparing import digests
from tests.conftest import Engineered


@pytest.fixture(scope="module")
def rows(engineered: Engineered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files of 500 rows, in two folders, of the same names in each."""
    folder = tmp_path_factory.mktemp("parallel") / "rows"
    for number in range(6):
        path = folder / f"{'ab'[number // 3]}/{number % 3}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = engineered.frame.iloc[number * 500 : (number + 1) * 500].assign(
            id=range(number * 500, number * 500 + 500)
        )
        part.to_parquet(path, index=False, row_group_size=100)
    return folder


@pytest.fixture(scope="module")
def whole(engineered: Engineered, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bx.Run:
    """The same rows by `explain_dataset`."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return bx.explain_dataset(
        input=rows, explainer=engineered.explainer, output=output, partition_rows=300, scheduler="sync"
    )


def test_plan_then_tasks_then_finalize(engineered: Engineered, rows: Path, whole: bx.Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ["--input", rows, "--explainer", engineered.explainer, "--output", output, "--partition-rows", 300]
    options += ["--scheduler", "sync"]
    planned = CliRunner().invoke(cli, ["plan", *map(str, options), "--mini-batch-timeout", "60", "--json"])
    assert planned.exit_code == 0, planned.output
    found = json.loads(planned.stdout)
    assert (found["rows"], found["partitions"]) == (3_000, 12)
    assert found["forecast"]["mini_batch_size"] == 6 and found["forecast"]["file_seconds"] < 30
    assert not (output / "raw").exists() and not (output / "_run/lock.json").exists()
    early = CliRunner().invoke(cli, ["finalize", "--output", str(output)])
    assert (
        early.exit_code == 5
        and "12 of 12 partitions" in early.stderr
        and "Rows 0 to 300 of a/0.parquet" in early.stderr
    )
    resumed = CliRunner().invoke(cli, ["run", *map(str, options), "--resume", "--quiet"])
    assert resumed.exit_code == 0, resumed.output
    assert digests(output) == digests(Path(str(whole.location)))
    (output / "_SUCCESS").unlink()
    (output / "run.json").unlink()
    ended = CliRunner().invoke(cli, ["finalize", "--output", str(output)])
    assert ended.exit_code == 0, ended.output
    assert digests(output) == digests(Path(str(whole.location)))
    assert bx.verify_run(str(output)).ok


def test_a_mini_batch_that_cannot_be_done_in_time_is_foretold(
    engineered: Engineered, rows: Path, tmp_path: Path
) -> None:
    options = {"input": rows, "explainer": engineered.explainer, "scheduler": "sync"}
    short = bx.plan_dataset(**options, output=tmp_path / "short", mini_batch_timeout=1e-4).forecast
    assert short.mini_batch_size == 0 and "no mini_batch_size meets 0.0001 s" in short.advice
    assert short.file_seconds == pytest.approx(short.task_seconds + 500 * short.row_seconds)
    with pytest.raises(OptionError, match="mini-batch-timeout"):
        bx.plan_dataset(**options, output=tmp_path / "none", mini_batch_timeout="soon")
    assert not (tmp_path / "none").exists()
    with pytest.raises(OptionError, match="There is no plan in"):
        bx.finalize_run(tmp_path / "none")
    with pytest.raises(InterruptedRunError, match="6 of 6 partitions"):
        bx.finalize_run(tmp_path / "short")
