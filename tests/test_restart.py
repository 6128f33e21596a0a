"""Stopped anywhere and gone on with: the same bytes as an uninterrupted run, and nothing left over."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import batch_explain as bx
from batch_explain.errors import OptionError, OutputRefusedError
from batch_explain.events import Event, PartitionDone, RunResumed
from batch_explain.summary.partials import read_tables
from tests.comparing import digests
from tests.conftest import ROOT, Engineered, once

KILLS, KILLS_IN_CI = 40, 3
PARTITIONS = 24

pytestmark = once  # beside the AutoML stack, test_workers_die resumes runs


class Job:
    """A run on 60,000 engineered rows, on the command line or here."""

    def __init__(self, engineered: Engineered, folder: Path) -> None:
        self.folder = folder
        (folder / "rows").mkdir()
        for number in range(4):
            frame = pd.concat([engineered.frame.sample(frac=1, random_state=number * 5 + i) for i in range(5)])
            frame.to_parquet(folder / f"rows/{number}.parquet", index=False, row_group_size=2_500)
        self.options: dict[str, Any] = {
            "input": folder / "rows",
            "explainer": engineered.explainer,
            "partition_rows": 2_500,
            "batch_rows": 500,
        }

    def start(self, output: Path, *arguments: str) -> "subprocess.Popen[str]":
        """Begin a run in a process group of its own."""
        options = [part for name, value in self.options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return subprocess.Popen(
            [sys.executable, "-m", "batch_explain", "run", *options, "--output", str(output), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**environment, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def run(self, output: Path, *, observers: Any = (), **options: Any) -> bx.Run:
        """A run in this process."""
        return bx.explain_dataset(
            observers=observers, **{**self.options, "output": output, "scheduler": "sync", **options}
        )


@pytest.fixture
def job(engineered: Engineered, tmp_path: Path) -> Job:
    return Job(engineered, tmp_path)


def stop_after(partitions: int) -> Callable[[Event], None]:
    """An observer that stops the run, as Ctrl-C does, when so many partitions are done."""
    done: list[int] = []

    def observe(event: Event) -> None:
        if isinstance(event, PartitionDone):
            done.append(event.index)
            if len(done) == partitions:
                raise KeyboardInterrupt

    return observe


def leftovers(output: Path) -> list[str]:
    """Whatever a finished run should not hold."""
    names = [str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()]
    return [name for name in names if name.endswith(".tmp") or "attempts" in name or "lock" in name]


SUMMARIES = ("engineered.json", "engineered.parquet", "analysis.json", "sample.parquet", "sketches.parquet")


def wait_for_lock(process: "subprocess.Popen[str]", output: Path) -> float:
    """When a run began to write."""
    while not (output / "_run/lock.json").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    return time.monotonic()


def wait_for_receipts(process: "subprocess.Popen[str]", output: Path, count: int) -> None:
    """Until so many partitions are done."""
    receipts = output / "_run/receipts"
    while not (receipts.exists() and sum(path.suffix == ".json" for path in receipts.iterdir()) >= count):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("scheduler", "kills"),
    [
        ("sync", KILLS_IN_CI),
        ("processes", KILLS_IN_CI - 1),
        pytest.param("sync", KILLS, marks=pytest.mark.soak),
        pytest.param("processes", KILLS, marks=pytest.mark.soak),
    ],
)
def test_kill_anywhere(scheduler: str, kills: int, job: Job) -> None:
    """`kill -9` of the whole process group at random instants, then --resume."""
    arguments = ("--scheduler", scheduler, "--workers", "2")
    whole = job.folder / "whole"
    began = time.monotonic()
    process = job.start(whole, *arguments)
    locked = wait_for_lock(process, whole) - began
    process.communicate(timeout=120)
    working = time.monotonic() - began - locked
    assert process.returncode == 0
    expected = digests(whole)
    assert len(expected) == PARTITIONS + len(SUMMARIES) and not leftovers(whole)
    instants = random.Random(kills).choices([0, 1], weights=[1, 9], k=kills)
    chance = random.Random(kills + 1)
    resumed_in_the_middle = 0
    for number, late in enumerate(instants):
        output = job.folder / f"killed-{number}"
        process = job.start(output, *arguments)
        if number == 0:  # one that is in the middle for certain
            wait_for_receipts(process, output, 3)
        else:
            if late:
                wait_for_lock(process, output)
            time.sleep(chance.uniform(0, working if late else locked))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        seen: list[Event] = []
        run = job.run(output, resume=True, observers=[seen.append])
        already = sum(event.partitions for event in seen if isinstance(event, RunResumed))
        assert already + sum(isinstance(event, PartitionDone) for event in seen) in (PARTITIONS, 0)
        resumed_in_the_middle += 0 < already < PARTITIONS
        assert run.info["rows"] == {"input": 60_000, "planned": 60_000, "explained": 60_000, "quarantined": 0}
        assert digests(output) == expected
        assert not leftovers(output)
    assert resumed_in_the_middle


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("SIGINT", "sync"),
        ("SIGTERM", "threads"),
        ("SIGTERM", "processes"),
        pytest.param("SIGINT", "processes", marks=pytest.mark.soak),
    ],
)
def test_a_signal_stops_it_within_ten_seconds(name: str, scheduler: str, job: Job) -> None:
    output = job.folder / "out"
    process = job.start(output, "--scheduler", scheduler, "--workers", "2")
    wait_for_receipts(process, output, 2)
    began = time.monotonic()
    os.killpg(process.pid, getattr(signal, name))  # as a terminal does: the workers get it too
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 5, errors
    assert "--resume" in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (output / "_SUCCESS").exists()
    run = job.run(output, resume=True)
    assert run.info["rows"]["explained"] == 60_000
    assert not leftovers(output)


def test_a_reader_never_sees_a_torn_file(job: Job) -> None:
    """Whatever has its final name can be read whole, from the first moment on."""
    output = job.folder / "out"
    stopped, read = threading.Event(), set[str]()
    torn: list[str] = []

    def look() -> None:
        while not stopped.is_set():
            try:
                paths = list(output.rglob("*"))
            except FileNotFoundError:  # a folder that is being removed
                continue
            for path in paths:
                if path.name.startswith(".") or path.suffix not in (".parquet", ".arrow", ".json"):
                    continue
                try:
                    if path.suffix == ".json":
                        json.loads(path.read_bytes())
                    elif path.suffix == ".arrow":
                        read_tables(path.read_bytes())
                    else:
                        pq.read_table(path)
                    read.add(path.parent.name)
                except FileNotFoundError:
                    pass  # an attempt's, which has ended
                except Exception as error:
                    torn.append(f"{path}: {error}")

    reader = threading.Thread(target=look)
    reader.start()
    try:
        job.run(output)
        job.run(output, overwrite=True)
    finally:
        stopped.set()
        reader.join()
    assert not torn
    assert {"engineered", "receipts", "partials"} <= read


def test_done_partitions_are_not_done_again(job: Job) -> None:
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(5)])
    before = {path: path.stat().st_mtime_ns for path in (output / "engineered").iterdir()}
    assert len(before) == 5
    seen: list[Event] = []
    job.run(output, resume=True, observers=[seen.append])
    assert [event.partitions for event in seen if isinstance(event, RunResumed)] == [5]
    assert len([event for event in seen if isinstance(event, PartitionDone)]) == PARTITIONS - 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    job.run(job.folder / "whole")
    assert digests(output) == digests(job.folder / "whole")


@pytest.mark.parametrize("harm", ["part is gone", "part is short", "receipt is torn", "partial is gone"])
def test_a_receipt_whose_files_are_not_there_proves_nothing(harm: str, job: Job) -> None:
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(5)])
    part, receipt = output / "engineered/part-00003.parquet", output / "_run/receipts/part-00003.json"
    if harm == "part is gone":
        part.unlink()
    elif harm == "part is short":
        part.write_bytes(part.read_bytes()[:-1])
    elif harm == "receipt is torn":
        receipt.write_bytes(receipt.read_bytes()[:100])
    else:
        (output / "_run/partials/part-00003.arrow").unlink()
    seen: list[Event] = []
    job.run(output, resume=True, observers=[seen.append])
    assert [event.partitions for event in seen if isinstance(event, RunResumed)] == [4]
    job.run(job.folder / "whole")
    assert digests(output) == digests(job.folder / "whole")


def test_resume_of_a_finished_run_changes_nothing(job: Job) -> None:
    output = job.folder / "out"
    job.run(output)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*") if path.is_file()}
    assert job.run(output, resume=True).info["rows"]["explained"] == 60_000
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in output.rglob("*") if p.is_file()} == before


def test_resume_of_nothing_begins(job: Job) -> None:
    """A nightly job may always say --resume."""
    assert job.run(job.folder / "out", resume=True).info["rows"]["explained"] == 60_000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("file changed", r"the input file '2\.parquet' is changed"),
        ("file gone", r"the input file '2\.parquet' is gone"),
        ("file new", r"the input file '9\.parquet' is new"),
        ("explainer", "the explainer is another file"),
        ("option", r"--batch-rows was 500 and is 400; --dtype was float64 and is float32"),
        ("two things", r"--limit was not given and is 10; the input file '2\.parquet' is changed"),
    ],
)
def test_what_changed_is_refused_by_name(change: str, named: str, job: Job, engineered: Engineered) -> None:
    output, rows = job.folder / "out", job.folder / "rows"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(3)])
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    options: dict[str, Any] = {}
    if change == "file changed":
        engineered.frame.to_parquet(rows / "2.parquet", index=False)
    elif change == "file gone":
        (rows / "2.parquet").unlink()
    elif change == "file new":
        engineered.frame.to_parquet(rows / "9.parquet", index=False)
    elif change == "explainer":
        other = job.folder / "other.txt"
        other.write_text(engineered.explainer.read_text() + "\n")
        options["explainer"] = other
    elif change == "option":
        options |= {"batch_rows": 400, "dtype": "float32"}
    else:
        engineered.frame.to_parquet(rows / "2.parquet", index=False)
        options["limit"] = 10
    with pytest.raises(OptionError, match=f"cannot be resumed.*{named}.*--overwrite"):
        job.run(output, resume=True, **options)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_the_same_things_elsewhere_can_be_resumed(job: Job) -> None:
    """Moved input and artifacts, other workers: what counts is what is in them."""
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(3)])
    (job.folder / "rows").rename(job.folder / "moved")
    copy = job.folder / "copy.txt"
    copy.write_bytes(Path(job.options["explainer"]).read_bytes())
    run = job.run(
        output,
        resume=True,
        input=job.folder / "moved",
        explainer=copy,
        scheduler="threads",
        workers=2,
        task_timeout="10m",
    )
    assert run.info["rows"]["explained"] == 60_000


def test_a_partial_summary_that_was_damaged_is_found(job: Job) -> None:
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(5)])
    partial = output / "_run/partials/part-00002.arrow"
    content = bytearray(partial.read_bytes())
    content[50] ^= 1
    partial.write_bytes(content)
    with pytest.raises(bx.errors.IntegrityError, match=r"part-00002\.arrow is not what its receipt says"):
        job.run(output, resume=True)
    partial.unlink()
    job.run(output, resume=True)
    job.run(job.folder / "whole")
    assert digests(output) == digests(job.folder / "whole")


def test_overwrite_that_was_cut_short_can_be_repeated_or_resumed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    output = job.folder / "out"
    job.run(output)
    expected = digests(output)
    from fsspec.implementations.local import LocalFileSystem

    removed: list[str] = []
    really = LocalFileSystem.rm

    def rm(self: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        really(self, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "rm", rm)
        with pytest.raises(KeyboardInterrupt):
            job.run(output, overwrite=True)
    assert removed == [str(output / "_run/receipts")]
    assert not (output / "_SUCCESS").exists() and (output / "_run/plan.json").exists()
    seen: list[Event] = []
    job.run(output, resume=True, observers=[seen.append])
    assert [event.partitions for event in seen if isinstance(event, RunResumed)] == [0]
    assert digests(output) == expected


def test_an_unfinished_run_is_not_taken_for_nothing(job: Job) -> None:
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(3)])
    with pytest.raises(OutputRefusedError, match="--resume to continue the run that is in it, --overwrite to remove"):
        job.run(output)


def test_resume_and_overwrite_are_two_things(job: Job) -> None:
    with pytest.raises(OptionError, match="Pass one of the two"):
        job.run(job.folder / "out", resume=True, overwrite=True)


def test_other_versions_are_written_down(job: Job) -> None:
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(3)])
    place = output / "_run/plan.json"
    plan = json.loads(place.read_text())
    plan["versions"]["pyarrow"] = "1.2.3"
    place.write_text(json.dumps(plan))
    run = job.run(output, resume=True)
    assert any(
        "resumed with other versions: pyarrow" in note and "after 1.2.3" in note for note in run.info["decisions"]
    )


def test_a_run_of_another_format_is_not_gone_on_with(job: Job) -> None:
    output = job.folder / "out"
    with pytest.raises(KeyboardInterrupt):
        job.run(output, observers=[stop_after(2)])
    plan = json.loads((output / "_run/plan.json").read_bytes())
    (output / "_run/plan.json").write_text(json.dumps({**plan, "version": plan["version"] - 1}))
    before = digests(output)
    with pytest.raises(OptionError, match=r"format version.*start anew with --overwrite"):
        job.run(output, resume=True)
    assert digests(output) == before
