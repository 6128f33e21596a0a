"""`status` tells where a run stands, whatever state its folder is in, and writes nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.engine.status import Status
from batch_explain.errors import BadDataError, OptionError
from batch_explain.events import Event, PartitionDone
from tests.conftest import ROOT, Engineered, Small, once
from tests.test_restart import stop_after

pytestmark = once


class Job:
    """A run on engineered rows, in eight partitions."""

    def __init__(self, engineered: Engineered, folder: Path) -> None:
        self.engineered = engineered
        engineered.frame[:1_600].to_parquet(folder / "rows.parquet", index=False, row_group_size=200)
        self.rows = folder / "rows.parquet"
        self.output = folder / "out"

    def run(self, **options: Any) -> bx.Run:
        return bx.explain_dataset(
            **{
                "input": self.rows,
                "explainer": self.engineered.explainer,
                "output": self.output,
                "partition_rows": 200,
                "scheduler": "sync",
                "report": False,
                **options,
            }
        )

    def status(self) -> Status:
        return bx.run_status(self.output)


@pytest.fixture
def job(engineered: Engineered, tmp_path: Path) -> Job:
    return Job(engineered, tmp_path)


def test_while_it_runs(job: Job) -> None:
    seen: list[Status] = []
    job.run(observers=[lambda event: seen.append(job.status()) if isinstance(event, PartitionDone) else None])
    assert [found.done for found in seen] == list(range(1, 9))
    assert [found.rows_done for found in seen] == list(range(200, 1_601, 200))
    assert [found.missing for found in seen] == list(range(7, -1, -1))
    for found in seen:
        assert (found.state, found.partitions, found.rows, found.rows_quarantined) == ("running", 8, 1_600, 0)
        assert found.holder is not None and found.holder.pid == os.getpid()
        assert found.silent_seconds is not None and not found.failed and not found.interrupted


def test_what_is_worked_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at from inside a partition's work."""
    from batch_explain.engine.artifacts import Artifacts

    explain, seen = Artifacts.explain, list[Status]()

    def look(self: Artifacts, *arguments: Any, **options: Any) -> Any:
        if (job.output / "_run/attempts").exists():
            seen.append(job.status())
        return explain(self, *arguments, **options)

    monkeypatch.setattr(Artifacts, "explain", look)
    job.run()
    assert [[attempt.index for attempt in found.running] for found in seen] == [[index] for index in range(8)]
    assert [(found.done, found.missing) for found in seen] == [(index, 7 - index) for index in range(8)]
    assert all(found.running[0].pid == os.getpid() and found.running[0].tries == 1 for found in seen)


def test_finished(job: Job) -> None:
    job.run()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in job.output.rglob("*") if path.is_file()}
    found = job.status()
    assert (found.state, found.holder, found.silent_seconds) == ("finished", None, None)
    assert (found.done, found.partitions, found.missing, found.rows_done, found.rows) == (8, 8, 0, 1_600, 1_600)
    assert not found.running and not found.failed and not found.interrupted
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in job.output.rglob("*") if p.is_file()} == before


def test_stopped_and_resumed(job: Job) -> None:
    with pytest.raises(KeyboardInterrupt):
        job.run(observers=[stop_after(3)])
    found = job.status()
    assert (found.state, found.holder, found.done, found.missing, found.rows_done) == ("stopped", None, 3, 5, 600)
    job.run(resume=True)
    assert job.status().state == "finished"


def test_a_partition_that_fails(small: Small, tmp_path: Path) -> None:
    frame = small.frame[:600].copy()
    frame["age"] = frame["age"].astype(float)
    frame.loc[frame.index[450], "age"] = float("inf")
    small.write(tmp_path / "rows.parquet", frame, row_group_size=200)
    output = tmp_path / "out"
    with pytest.raises(BadDataError) as refused:
        bx.explain_dataset(
            input=tmp_path / "rows.parquet", model=small.model, explainer=small.explainer, output=output,
            partition_rows=200, scheduler="sync",
        )  # fmt: skip
    found = bx.run_status(output)
    assert (found.state, found.done, found.partitions, found.missing, found.rows_done) == ("stopped", 2, 3, 0, 400)
    (failed,) = found.failed
    assert (failed.index, failed.tries, failed.failed) == (2, 1, str(refused.value))
    assert not found.running and not found.interrupted
    shown = CliRunner().invoke(cli, ["status", str(output)]).output
    assert "2 of 3 done, 1 failed" in shown and "- partition 2 (attempt 1" in shown and "row 450" in shown


def test_a_process_that_was_killed(job: Job) -> None:
    """Its partition is told as interrupted, and the run as stopped."""
    pd.concat([job.engineered.frame] * 20).to_parquet(job.rows, index=False)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "batch_explain", "run", "--input", str(job.rows), "--output", str(job.output),
            "--explainer", str(job.engineered.explainer), "--scheduler", "sync", "--batch-rows", "5", "--quiet",
            "--partition-rows", "100000",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        attempt = job.output / "_run/attempts/part-00000.json"
        while not attempt.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        during = job.status()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert during.state == "running" and during.holder is not None and during.holder.pid == process.pid
    assert [attempt.index for attempt in during.running] == [0]
    after = job.status()
    assert (after.state, after.holder, after.done, after.missing, after.failed) == ("stopped", None, 0, 0, ())
    assert [(each.index, each.pid, each.tries) for each in after.interrupted] == [(0, process.pid, 1)]
    shown = CliRunner().invoke(cli, ["status", str(job.output)]).output
    assert "its process ended while it worked on it" in shown and "--resume" in shown


def test_damaged_and_foreign_receipts_do_not_count(job: Job) -> None:
    job.run()
    receipts = job.output / "_run/receipts"
    (receipts / "part-00001.json").write_bytes((receipts / "part-00001.json").read_bytes()[:50])
    content = json.loads((receipts / "part-00002.json").read_bytes())
    (receipts / "part-00002.json").write_text(json.dumps({**content, "run_id": "another"}))
    (receipts / "part-00099.json").write_text("{}")
    (receipts / "part-00003.json").unlink()
    (receipts / "of an editor~").write_text("x")
    found = job.status()
    assert (found.done, found.missing, found.rows_done) == (5, 3, 1_000)


def test_a_plan_that_cannot_be_read(job: Job) -> None:
    with pytest.raises(KeyboardInterrupt):
        job.run(observers=[stop_after(3)])
    (job.output / "_run/plan.json").write_text("{")
    found = job.status()
    assert (found.state, found.done, found.partitions, found.missing, found.rows) == ("stopped", 3, None, None, None)
    told = CliRunner().invoke(cli, ["status", str(job.output)])
    assert told.exit_code == 0 and "3 done; the plan is not there yet or cannot be read" in told.output


@once
def test_files_that_disappear_under_it(job: Job) -> None:
    """It is asked without a pause while runs begin, work, end and are overwritten."""
    errors: list[BaseException] = []
    states: set[str] = set()
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                states.add(job.status().state)
            except OptionError:
                states.add("no run")
            except BaseException as error:
                errors.append(error)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for _ in range(6):
        job.run(overwrite=True, partition_rows=50)
    ended.set()
    for asker in askers:
        asker.join()
    assert not errors and "running" in states


def test_no_run_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(OptionError, match="There is no run in"):
            bx.run_status(place)
        told = CliRunner().invoke(cli, ["status", str(place)])
        assert told.exit_code == 2 and "There is no run in" in told.output


def test_on_the_command_line(job: Job) -> None:
    texts: list[str] = []
    told: list[dict[str, Any]] = []

    def ask(event: Event) -> None:
        if isinstance(event, PartitionDone):
            command = [sys.executable, "-m", "batch_explain", "status", str(job.output)]
            if event.index == 0:
                texts.append(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
            elif event.index == 1:
                done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, cwd=ROOT)
                told.append(json.loads(done.stdout))

    job.run(observers=[ask])
    assert f"running (process {os.getpid()} on " in texts[0] and "1 of 8 done, 7 not begun" in texts[0]
    assert "200 of 1,600 done" in texts[0]
    assert (told[0]["state"], told[0]["done"], told[0]["missing"], told[0]["rows_done"]) == ("running", 2, 6, 400)
    assert told[0]["holder"]["pid"] == os.getpid() and told[0]["failed"] == []
    finished = CliRunner().invoke(cli, ["status", str(job.output), "--json"])
    assert finished.exit_code == 0 and json.loads(finished.output)["state"] == "finished"
