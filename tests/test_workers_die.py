"""Workers, schedulers and tasks that die or hang: the run ends, says why, and loses nothing that was done."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from batch_explain.engine import cluster as cluster_module
from batch_explain.engine import workers
from batch_explain.engine.artifacts import Artifacts, name_outputs
from batch_explain.engine.plan import Plan, write_plan
from batch_explain.engine.runner import plan_run
from batch_explain.engine.task import Context, run_partition
from batch_explain.errors import InterruptedRunError
from batch_explain.events import Event, PartitionDone, RunResumed
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import discover
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt, valid_receipt
from tests.comparing import digests
from tests.conftest import ROOT, Engineered, once
from tests.test_restart import PARTITIONS, Job, leftovers

KILLS, KILLS_IN_CI = 20, 3
TRAPPED = 10  # the partition whose task dies or hangs: the fifth of 1.parquet
SLOWLY = 0.1  # seconds a batch, so that there is time to kill


class Trap(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Passes columns on; where f11 is 9, and while the file is there, it kills its process or sleeps for ever."""

    def __init__(self, armed: str, kills: bool = True, pace: float = 0.0) -> None:
        self.armed = armed
        self.kills = kills
        self.pace = pace

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Trap":
        self.feature_names_in_ = np.array(X.columns, dtype=object)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        time.sleep(self.pace)
        if (X["f11"] == 9).any() and os.path.exists(self.armed):
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10_000)
        return X


class TrappedJob(Job):
    """A run with a model that holds a :class:`Trap`."""

    def __init__(self, engineered: Engineered, folder: Path, **trap: Any) -> None:
        super().__init__(engineered, folder)
        self.armed = folder / "armed"
        frame = pd.read_parquet(folder / "rows/1.parquet")
        frame.loc[11_000, "f11"] = 9.0
        frame.to_parquet(folder / "rows/1.parquet", index=False, row_group_size=2_500)
        model = make_pipeline(Trap(str(self.armed), **trap), SimpleImputer(), LinearRegression())
        model.fit(engineered.frame, engineered.frame.f0)
        (folder / "model.pkl").write_bytes(pickle.dumps(model))
        self.options |= {"model": folder / "model.pkl", "trust": "tests.test_workers_die.Trap"}


class Cluster:
    """A scheduler and workers, each an OS process of its own that a test may kill."""

    def __init__(self, folder: Path, **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        folder.mkdir()
        self._connection = folder / "scheduler.json"
        self._log = (folder / "log.txt").open("wb")
        self._options: dict[str, Any] = {
            "env": {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            "stdout": self._log,
            "stderr": self._log,
            "cwd": folder,
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        place = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self._connection)]
        self.scheduler = self._start("dask_scheduler", *place)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in (*self.workers, self.scheduler):
            for each in _family(process):
                each.kill()
            process.wait(30)
        self._log.close()

    def _start(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", f"distributed.cli.{program}", *arguments], **self._options)

    def add_worker(self, *, nanny: bool, memory_limit: str = "0") -> None:
        """Start a worker process, with a nanny that starts it again when it dies, or without."""
        options = ["--scheduler-file", str(self._connection), "--host", "127.0.0.1", "--no-dashboard"]
        options += ["--nthreads", "1", "--memory-limit", memory_limit, "--nanny" if nanny else "--no-nanny"]
        self.workers.append(self._start("dask_worker", *options))

    def kill_a_worker(self, chance: random.Random) -> None:
        """Kill a worker process; where no nanny is left to replace it, mostly do it here."""
        process = chance.choice(self.workers)
        victims = worker_processes(process)
        if victims and chance.random() < 0.7:
            victims[0].kill()
            return
        self.workers.remove(process)
        process.kill()
        process.wait(30)
        if len(self.workers) < 2 or chance.random() < 0.8:
            self.add_worker(nanny=chance.random() < 0.5)

    def address(self, workers: int) -> str:
        """Address of the scheduler, once so many workers are there."""
        from distributed import Client

        wait_until(lambda: self._connection.exists() and bool(self._connection.read_text()))
        address: str = json.loads(self._connection.read_text())["address"]
        with Client(address, timeout=30) as client:
            client.wait_for_workers(workers, timeout=60)
        return address


def _family(process: "subprocess.Popen[Any]") -> list[psutil.Process]:
    """A process with its children, theirs and so on."""
    try:
        parent = psutil.Process(process.pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def worker_processes(process: "subprocess.Popen[Any]") -> list[psutil.Process]:
    """Dask's worker processes among a process's children."""
    found = []
    for child in _family(process)[:-1]:
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def receipts(output: Path) -> set[str]:
    """Names of the partitions that are done."""
    return {path.stem for path in (output / "_run/receipts").glob("part-*.json")}


def wait_for_receipts(process: "subprocess.Popen[str]", output: Path, count: int) -> bool:
    """Wait until so many partitions are done; False where the run has ended before."""
    wait_until(lambda: len(receipts(output)) >= count or process.poll() is not None)
    return process.poll() is None


def ended(process: "subprocess.Popen[str]", code: int, *, seconds: float = 60) -> str:
    """Wait for the end of a quiet run: nothing on stderr, or one paragraph; and no process of its own is left."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        for each in _family(process):
            each.kill()
    assert process.returncode == code, errors
    assert errors.count("\n") == (code != 0) and errors.startswith("batch-explain: " * (code != 0)), errors
    wait_until(lambda: not _group(process), 10)
    return errors


def _group(process: "subprocess.Popen[str]") -> bool:
    """Whether any process of the group that it led is there."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_resumes(job: Job, output: Path, expected: dict[str, str]) -> None:
    """--resume does what is missing, nothing twice, and gives the tables of an uninterrupted run."""
    done = receipts(output)
    assert 0 < len(done) < PARTITIONS
    before = {path: path.stat().st_mtime_ns for path in (output / "_run/receipts").iterdir()}
    seen: list[Event] = []
    job.run(output, resume=True, observers=[seen.append])
    assert [event.partitions for event in seen if isinstance(event, RunResumed)] == [len(done)]
    assert len([event for event in seen if isinstance(event, PartitionDone)]) == PARTITIONS - len(done)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert digests(output) == expected
    assert not leftovers(output)


@pytest.fixture(scope="module")
def expected(engineered: Engineered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tables of an uninterrupted run, in which the trap does nothing."""
    job = TrappedJob(engineered, tmp_path_factory.mktemp("expected"))
    job.run(job.folder / "out")
    return digests(job.folder / "out")


@pytest.mark.parametrize("kills", [KILLS_IN_CI, pytest.param(KILLS, marks=pytest.mark.soak)])
def test_workers_are_killed_all_the_time(
    kills: int, engineered: Engineered, expected: dict[str, str], tmp_path: Path
) -> None:
    job = TrappedJob(engineered, tmp_path, pace=SLOWLY)
    output = tmp_path / "out"
    chance = random.Random(kills)
    with Cluster(tmp_path / "cluster") as cluster:
        for nanny in (True, False):
            cluster.add_worker(nanny=nanny)
        arguments = ("--quiet", "--scheduler", cluster.address(2))
        process = job.start(output, *arguments)
        for done in sorted(chance.choices(range(1, PARTITIONS - 5), k=kills)):
            if not wait_for_receipts(process, output, done):
                ended(process, 5)
                process = job.start(output, *arguments, "--resume")
            time.sleep(chance.uniform(0, 0.5))
            cluster.kill_a_worker(chance)
        process.wait(120)
        if process.returncode == 5:
            process = job.start(output, *arguments, "--resume")
        ended(process, 0)
    assert digests(output) == expected
    assert not leftovers(output)


@once
def test_the_scheduler_is_killed(engineered: Engineered, expected: dict[str, str], tmp_path: Path) -> None:
    job = TrappedJob(engineered, tmp_path, pace=SLOWLY)
    output = tmp_path / "out"
    with Cluster(tmp_path / "cluster") as cluster, Cluster(tmp_path / "another") as another:
        cluster.add_worker(nanny=True)
        cluster.add_worker(nanny=False)
        process = job.start(output, "--quiet", "--scheduler", cluster.address(2))
        assert wait_for_receipts(process, output, 3)
        cluster.scheduler.kill()
        began = time.monotonic()
        errors = ended(process, 5)
        assert time.monotonic() - began < 40
        assert "the scheduler is gone" in errors and "--resume" in errors
        done = receipts(output)
        another.add_worker(nanny=False)
        # the workers of the dead scheduler may still be at it
        ended(job.start(output, "--quiet", "--scheduler", another.address(1), "--resume"), 0)
    assert 3 <= len(done) < PARTITIONS
    assert digests(output) == expected
    assert not leftovers(output)


@once
def test_no_workers_are_left(engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_POLL_SECONDS", 0.1)
    job = TrappedJob(engineered, tmp_path, pace=SLOWLY)
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.add_worker(nanny=False)

        def kill(event: Event) -> None:
            if isinstance(event, PartitionDone):
                cluster.workers[0].kill()

        with pytest.raises(InterruptedRunError, match=r"The Dask cluster has no workers left.*--resume"):
            job.run(tmp_path / "out", scheduler=cluster.address(1), observers=[kill])


@once
def test_workers_that_dask_pauses_for_ever_are_told_of(
    engineered: Engineered, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's libraries alone are four fifths of its limit, which without a nanny nobody enforces."""
    monkeypatch.setattr(cluster_module, "_POLL_SECONDS", 0.5)
    job = TrappedJob(engineered, tmp_path)
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.add_worker(nanny=False, memory_limit="50MB")
        with pytest.raises(InterruptedRunError, match=r"Dask has paused tcp://.*more memory.*--resume"):
            job.run(tmp_path / "out", scheduler=cluster.address(1))
    job.run(tmp_path / "out", resume=True)
    assert digests(tmp_path / "out") == expected


def test_dask_never_pauses_our_own_workers(engineered: Engineered, tmp_path: Path) -> None:
    plan, _ = planned(TrappedJob(engineered, tmp_path), tmp_path / "out")
    options = replace(plan.options, scheduler="processes", memory_limit=2_000_000_000)
    with cluster_module.ClusterExecutor(replace(plan, options=options), 1) as executor:
        client = executor._client
        limits = client.run(lambda dask_worker: vars(dask_worker.memory_manager)).values()
        ended = client.run(lambda dask_worker: dask_worker.memory_manager.memory_terminate_fraction, nanny=True)
    for found in limits:
        assert found["memory_limit"] == 2_000_000_000
        assert not any(found[f"memory_{what}_fraction"] for what in ("target", "spill", "pause"))
    assert list(ended.values()) == [1.0]


@once
def test_a_partition_that_kills_the_last_worker_is_named(
    engineered: Engineered, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody replaces workers without a nanny, so that it cannot be tried again; but one knows where to look."""
    monkeypatch.setattr(cluster_module, "_POLL_SECONDS", 0.1)
    job = TrappedJob(engineered, tmp_path)
    job.armed.touch()
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.add_worker(nanny=False)
        where = rf"they worked on rows 10000 to 12500 of 1\.parquet \(partition {TRAPPED}\)\. "
        with pytest.raises(InterruptedRunError, match=where):
            job.run(tmp_path / "out", scheduler=cluster.address(1))
    job.armed.unlink()
    assert_resumes(job, tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("scheduler", "allowed"),
    [("processes", 0), *(pytest.param("cluster", allowed, marks=pytest.mark.soak) for allowed in (0, 3))],
)
def test_a_partition_that_kills_its_workers_is_named(
    scheduler: str, allowed: int, engineered: Engineered, expected: dict[str, str], tmp_path: Path
) -> None:
    """Those that wait on the workers that it kills are done, and not blamed."""
    job = TrappedJob(engineered, tmp_path)
    job.armed.touch()
    output = tmp_path / "out"
    with ExitStack() as stack:
        where = scheduler
        if scheduler == "cluster":
            setting = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed)}
            cluster = stack.enter_context(Cluster(tmp_path / "cluster", **setting))
            for _ in range(2):
                cluster.add_worker(nanny=True)
            where = cluster.address(2)
        errors = ended(job.start(output, "--quiet", "--scheduler", where, "--workers", "2"), 5)
    assert f"Rows 10000 to 12500 of 1.parquet (partition {TRAPPED}) kill every worker" in errors
    assert f"part-{TRAPPED:05d}" not in receipts(output)
    job.armed.unlink()
    assert_resumes(job, output, expected)


@once
@pytest.mark.parametrize(
    "scheduler", ["threads", *(pytest.param(each, marks=pytest.mark.soak) for each in ("sync", "processes"))]
)
def test_a_task_that_hangs_is_given_up(
    scheduler: str, engineered: Engineered, expected: dict[str, str], tmp_path: Path
) -> None:
    job = TrappedJob(engineered, tmp_path, kills=False)
    job.armed.touch()
    output = tmp_path / "out"
    process = job.start(output, "--quiet", "--scheduler", scheduler, "--workers", "2", "--task-timeout", "2s")
    wait_until((output / f"_run/attempts/part-{TRAPPED:05d}.json").exists)
    began = time.monotonic()
    errors = ended(process, 5)
    assert time.monotonic() - began < 15
    assert f"(partition {TRAPPED}) took longer than --task-timeout (2 s)" in errors and "--resume" in errors
    job.armed.unlink()
    assert_resumes(job, output, expected)


@pytest.mark.soak
def test_a_local_worker_process_is_killed(engineered: Engineered, expected: dict[str, str], tmp_path: Path) -> None:
    """The process that replaces it is as deaf to Ctrl-C, which a terminal sends to all, as the first was."""
    job = TrappedJob(engineered, tmp_path, pace=2 * SLOWLY)
    output = tmp_path / "out"
    process = job.start(output, "--quiet", "--scheduler", "processes", "--workers", "2")
    wait_until(lambda: len(pids_of(output)) == 2)
    victim = worker_processes(process)[0]
    victim.kill()
    wait_until(lambda: len(pids_of(output)) == 3)
    for worker in worker_processes(process):
        worker.send_signal(signal.SIGINT)
    ended(process, 0)
    assert digests(output) == expected
    assert not leftovers(output)


def pids_of(output: Path) -> set[int]:
    """The processes that have done partitions."""
    return {json.loads(path.read_bytes())["worker"]["pid"] for path in (output / "_run/receipts").glob("part-*.json")}


def planned(job: Job, output: Path) -> tuple[Plan, Artifacts]:
    """A run that is planned and not begun."""
    options = RunOptions.create(**job.options, output=output, scheduler="sync")
    plan, artifacts = plan_run(options, discover(options.input), Artifacts.load(options))
    write_plan(plan)
    return plan, artifacts


def run_in_process(plan: Plan, index: int, ready: Path) -> Receipt:
    """Run one task as a worker does, when the other process is ready too."""
    workers.load_on_worker(plan.options, tuple(sorted(plan.artifacts.items())), plan.learned)
    (ready / str(os.getpid())).touch()
    wait_until(lambda: len(list(ready.iterdir())) == 2)
    return workers.run_on_worker(plan.options, plan.digest, (index,))[0]


def assert_one_result(plan: Plan, index: int, answers: list[Receipt], expected: dict[str, str]) -> None:
    """However many attempts there were: one receipt, which is each one's answer, and the parts that it names."""
    output = Path(plan.options.output)
    found = valid_receipt(Location(str(output)), index, plan.run_id)
    assert found is not None
    for answer in answers:
        assert (answer.files, answer.partial, answer.statistics) == (found.files, found.partial, found.statistics)
    assert len(found.files) == 3
    for record in found.files:
        assert expected[record.path] == record.sha256 == digests(output)[record.path]
    assert not leftovers(output)


@once
def test_two_attempts_in_threads(engineered: Engineered, expected: dict[str, str], tmp_path: Path) -> None:
    job = TrappedJob(engineered, tmp_path, pace=0.02)
    plan, artifacts = planned(job, tmp_path / "out")
    first, second = Context(plan, artifacts), Context(plan, name_outputs(Artifacts.load(plan.options)))
    with futures.ThreadPoolExecutor(2) as pool:
        for index, delay in enumerate((0, 0, 0, 0.01, 0.03, 0.1)):
            one = pool.submit(run_partition, first, plan.partitions[index])
            time.sleep(delay)
            other = pool.submit(run_partition, second, plan.partitions[index])
            assert_one_result(plan, index, [one.result(), other.result()], expected)
    assert receipts(tmp_path / "out") == {f"part-{index:05d}" for index in range(6)}


@once
def test_two_attempts_in_processes(engineered: Engineered, expected: dict[str, str], tmp_path: Path) -> None:
    job = TrappedJob(engineered, tmp_path, pace=0.02)
    plan, _ = planned(job, tmp_path / "out")
    ready = tmp_path / "ready"
    ready.mkdir()
    with futures.ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        answers = list(pool.map(run_in_process, [plan] * 2, [3] * 2, [ready] * 2))
    assert len({answer.worker["pid"] for answer in answers}) > 1 or answers[0] == answers[1]
    assert_one_result(plan, 3, answers, expected)
