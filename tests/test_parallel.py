"""A platform that brings the partitions: plan first, mini-batches by several processes, finalize last."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import InputError, InterruptedRunError, OptionError
from batch_explain.integrations.minibatches import match
from batch_explain.storage.dataset import discover
from tests.comparing import digests, frame_of
from tests.conftest import ROOT, Engineered, Small, once


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


class Platform:
    """Several worker processes of a parallel step; the input is mounted elsewhere than it was planned."""

    def __init__(self, script: Path, arguments: list[Any], workers: int, **environment: str) -> None:
        command = [sys.executable, ROOT / "tests/platform_worker.py", script, *arguments, "--progress_update", "5", "x"]
        self._command = [str(part) for part in command]
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self.workers = [self.start() for _ in range(workers)]

    def start(self) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self._environment, cwd=ROOT
        )

    def give(self, worker: int, **task: Any) -> None:
        stream = self.workers[worker].stdin
        assert stream is not None
        stream.write(json.dumps(task) + "\n")
        stream.flush()

    def answer(self, worker: int) -> dict[str, Any]:
        stream = self.workers[worker].stdout
        assert stream is not None
        line = stream.readline()
        assert line, self.workers[worker].communicate()[1]
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, worker: int, **task: Any) -> dict[str, Any]:
        self.give(worker, **task)
        return self.answer(worker)

    def kill(self, worker: int) -> None:
        """`kill -9`, and another process in its place."""
        self.workers[worker].kill()
        self.workers[worker].communicate()
        self.workers[worker] = self.start()

    def shut_down(self) -> list[str]:
        ended = [worker.communicate(timeout=120)[1] for worker in self.workers]
        assert all(worker.returncode == 0 for worker in self.workers), ended
        return ended


@contextlib.contextmanager
def platform(*arguments: Any, script: str = "parallel_run_step.py", workers: int = 3, **env: str) -> Iterator[Platform]:
    found = Platform(ROOT / "jobs" / script, list(arguments), workers, **env)
    try:
        yield found
    finally:
        for worker in found.workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()


def files_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.parquet"))]


def wait_for(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not (folder.exists() and len(list(folder.glob("*.json"))) >= count):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def values_by_row(run: bx.Run, ids: list[str]) -> pd.DataFrame:
    frame = frame_of(run, "engineered")
    assert not frame.duplicated(ids).any()
    return frame.sort_values(ids, ignore_index=True)


def test_a_hostile_platform_with_a_plan(engineered: Engineered, rows: Path, whole: bx.Run, tmp_path: Path) -> None:
    """Killed in the middle, repeated, twice at once, out of order: the bytes of `explain_dataset`."""
    output, mount = tmp_path / "out", tmp_path / "mnt/INPUT_data"
    shutil.copytree(rows, mount)
    options = {"explainer": engineered.explainer, "output": output}
    bx.plan_dataset(input=rows, **options, partition_rows=300)
    files = files_of(mount)
    with platform(
        "--output-folder", output, "--output", "/azureml/answers", "--explainer", engineered.explainer
    ) as azure:
        azure.give(0, files=files)
        wait_for(output / "_run/receipts", 1)
        azure.kill(0)
        begun = len(list((output / "_run/receipts").iterdir()))
        assert 1 <= begun < 12
        azure.give(1, files=files[::-1][:4])
        azure.give(2, files=files[::-1][:4], context=True)  # the same one twice at once
        assert [azure.answer(1)["items"], azure.answer(2)["items"]] == [4, 4]
        assert azure.ask(0, files=[]) == {"items": 0, "content": "[]"}
        wrong = azure.ask(2, files=[str(engineered.explainer)])
        assert "is none of the planned files" in wrong["error"]
        with pytest.raises(InterruptedRunError, match=r"have no valid receipt: .*of a/"):
            bx.finalize_run(output)
        before = {path: path.stat().st_mtime_ns for path in (output / "engineered").iterdir()}
        assert azure.ask(1, files=files)["items"] == 6  # what is done is left alone
        assert all(path.stat().st_mtime_ns == then for path, then in before.items())
        said = azure.shut_down()
    assert all("ignored: --progress_update 5 x" in each for each in said)
    assert digests(output) == digests(Path(str(whole.location)))
    run = bx.open_run(output)
    assert run.info["rows"]["explained"] == 3_000 and bx.verify_run(str(output)).ok


def test_files_of_one_name_are_told_apart_or_refused(engineered: Engineered, rows: Path, tmp_path: Path) -> None:
    """`0.parquet` at the root and `a/0.parquet` below: by content, by the root, or not at all."""
    data = tmp_path / "rows"
    shutil.copytree(rows / "a", data / "a")
    shutil.copy(rows / "b/0.parquet", data / "0.parquet")
    shutil.copy(rows / "a/1.parquet", data / "1.parquet")
    files = discover(str(data))
    assert match(files, str(data / "a/0.parquet"), None).path == "a/0.parquet"
    assert match(files, str(data / "0.parquet"), None).path == "0.parquet"
    assert match(files, str(data / "a/1.parquet"), str(data)).path == "a/1.parquet"
    with pytest.raises(InputError, match=r"may be any of 'a/1\.parquet', '1\.parquet'.*--input-root"):
        match(files, str(data / "a/1.parquet"), None)


@once
def test_without_a_plan(engineered: Engineered, rows: Path, whole: bx.Run, tmp_path: Path) -> None:
    """Parts named by path and row range; two processes begin at once; rows come back for append_row."""
    output = tmp_path / "out"
    arguments = [
        "--output-folder",
        output,
        "--explainer",
        engineered.explainer,
        "--partition-rows",
        300,
        "--input-root",
        rows,
    ]
    files = files_of(rows)
    with platform(*arguments, "--append", "engineered") as azure:
        azure.give(0, files=files[2:4])
        azure.give(1, files=files[3:5])
        azure.give(2, files=files[2:3], context=True)
        found = [azure.answer(worker) for worker in range(3)]
        assert [answer["items"] for answer in found] == [1_000, 1_000, 500], found
        appended = [found[1], found[2]]
        with pytest.raises(InterruptedRunError, match=r"3 of 6 files of the input were never brought: 'a/0\.parquet'"):
            bx.finalize_run(output, input=rows)
        appended += [azure.ask(0, files=[file]) for file in (files[5], files[0], files[1])]
        said = azure.shut_down()
    assert all("is to be ended by batch-explain finalize" in each for each in said)
    run = bx.finalize_run(output, input=rows)
    assert run.info["rows"]["explained"] == 3_000 and bx.verify_run(str(output), recompute="50").ok
    ids = ["source_file", "source_row"]
    expected = values_by_row(whole, ids)
    pd.testing.assert_frame_equal(values_by_row(run, ids), expected)
    pd.testing.assert_frame_equal(run.summary("engineered"), whole.summary("engineered"))
    back = pd.concat([pd.read_json(io.StringIO(a["content"]), orient="split", precise_float=True) for a in appended])
    back = back.sort_values(ids, ignore_index=True).rename(columns=lambda name: name.removeprefix("engineered."))
    np.testing.assert_allclose(back.drop(columns=ids), expected.drop(columns=ids), atol=1e-13)
    assert back[ids].equals(expected[ids])


@once
def test_dataframes(engineered: Engineered, rows: Path, whole: bx.Run, tmp_path: Path) -> None:
    """Tabular mini-batches: id columns are needed; a batch that comes again takes its own place."""
    output, source = tmp_path / "out", tmp_path / "all.parquet"
    frame = pd.concat(map(pd.read_parquet, files_of(rows)), ignore_index=True)
    frame.to_parquet(source)
    arguments = ["--output-folder", output, "--explainer", engineered.explainer, "--id-columns", "id"]
    cuts = [(0, 700), (700, 1_400), (1_400, 3_000)]
    with platform(*arguments, workers=2) as azure:
        azure.give(0, frame=str(source), rows=cuts[2])
        azure.give(1, frame=str(source), rows=cuts[0], context=True)
        assert [azure.answer(0)["items"], azure.answer(1)["items"]] == [1_600, 700]
        assert [azure.ask(number % 2, frame=str(source), rows=cuts[1])["items"] for number in range(3)] == [700] * 3
        azure.shut_down()
    run = bx.finalize_run(output)
    assert run.info["partitions"] == 3 and bx.verify_run(str(output)).ok
    found, expected = values_by_row(run, ["id"]), values_by_row(whole, ["source_file", "source_row"])
    assert found["id"].tolist() == list(range(3_000))
    np.testing.assert_array_equal(found.drop(columns="id"), expected.drop(columns=["source_file", "source_row"]))
    script = bx.EntryScript(output=tmp_path / "none", explainer=engineered.explainer)
    script.init([])
    with pytest.raises(OptionError, match="Pass --id-columns"):
        script.run(frame.head())
    assert script.run([]) == [] and len(script.run(frame.iloc[:0])) == 0


@once
def test_rows_in_quarantine_and_empty_files_have_their_place(small: Small, tmp_path: Path) -> None:
    """append_row: at least one line for each item, whatever became of it."""
    frame = small.frame.iloc[:20].reset_index(drop=True).astype({"age": object})
    frame["age"] = frame["age"].astype(str)
    frame.loc[7, "age"] = "old"
    files = [
        small.write(tmp_path / "rows/bad.parquet", frame),
        small.write(tmp_path / "rows/none.parquet", frame.iloc[:0]),
    ]
    script = bx.EntryScript(
        append=["predictions"], output=tmp_path / "out", model=small.model, explainer=small.explainer, max_bad_rows=1
    )
    script.init(["--id-columns", "customer_id", "--logging_level", "INFO"])
    found = script.run([str(path) for path in files])
    assert found["source_row"].iloc[:20].tolist() == list(range(20))
    assert found["prediction"].isna().to_numpy().nonzero()[0].tolist() == [7, 20]
    assert found["source_file"].iloc[20] == "none.parquet"
    run = bx.finalize_run(tmp_path / "out", input=tmp_path / "rows")
    assert (run.info["rows"]["explained"], run.info["rows"]["quarantined"]) == (19, 1)
    assert bx.verify_run(str(tmp_path / "out")).ok
