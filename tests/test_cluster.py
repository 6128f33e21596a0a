"""Clusters: machines with addresses of their own, TLS, workers that come and go, that lack files or packages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import batch_explain as bx
from batch_explain.engine import cluster as cluster_module
from batch_explain.engine.chunks import FEW_ROWS, MOST, Waiting
from batch_explain.engine.partitions import FilePartition, cut
from batch_explain.errors import OptionError
from batch_explain.storage.dataset import InputFile
from tests.comparing import digests
from tests.conftest import Engineered, once
from tests.namespaces import Machines, certificates
from tests.test_restart import Job, leftovers
from tests.test_workers_die import SLOWLY, Cluster, TrappedJob, ended, wait_for_receipts, wait_until


@pytest.fixture(scope="module")
def job(engineered: Engineered, tmp_path_factory: pytest.TempPathFactory) -> TrappedJob:
    """A run whose batches take a while; its artifacts lie in a folder of their own."""
    job = TrappedJob(engineered, tmp_path_factory.mktemp("job"), pace=SLOWLY / 2)
    own = job.folder / "own"
    own.mkdir()
    shutil.copy(job.options["model"], own / "model.pkl")
    shutil.copy(job.options["explainer"], own / "explainer.txt")
    job.options |= {"model": own, "explainer": own}
    return job


@pytest.fixture(scope="module")
def expected(job: TrappedJob) -> dict[str, str]:
    job.run(job.folder / "expected", scheduler="threads")
    return digests(job.folder / "expected")


def workers_of(output: Path) -> set[tuple[str, int]]:
    found = [json.loads(path.read_bytes())["worker"] for path in (output / "_run/receipts").glob("part-*.json")]
    return {(worker["host"], worker["pid"]) for worker in found}


needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need Linux, root and iproute2",
)


@needs_namespaces
def test_machines_that_share_no_artifacts(
    job: TrappedJob, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS; a worker is added, one is told to go, one is killed; none of them has the model's files."""
    output = tmp_path / "out"
    with Machines(tmp_path, 4) as machines:
        cert, key = certificates(tmp_path / "tls", [machines.address(each) for each in range(4)])
        tls = ["--tls-ca-file", str(cert), "--tls-cert", str(cert), "--tls-key", str(key)]
        place = ["--host", machines.address(0), "--port", "8786", "--no-dashboard", "--protocol", "tls"]
        machines.start(0, "distributed.cli.dask_scheduler", *place, *tls)
        url = f"tls://{machines.address(0)}:8786"

        def add(machine: int) -> "subprocess.Popen[bytes]":
            arguments = [url, "--host", machines.address(machine), "--nthreads", "1", "--memory-limit", "0"]
            arguments += ["--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path / f"worker{machine}")]
            hidden = job.folder / "own"
            return machines.start(machine, "distributed.cli.dask_worker", *arguments, *tls, hidden=hidden)

        first, second = add(1), add(2)
        arguments = ("--quiet", "--scheduler", url, "--partition-rows", "2500")
        assert "Check the address" in ended(job.start(output, *arguments), 2)  # without the certificate
        assert not output.exists()
        for name, path in (("CA_FILE", cert), ("CLIENT__CERT", cert), ("CLIENT__KEY", key)):
            monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(path))
        process = job.start(output, *arguments)
        assert wait_for_receipts(process, output, 2)
        add(3)
        first.terminate()
        assert wait_for_receipts(process, output, len(list((output / "_run/receipts").iterdir())) + 4)
        second.kill()
        ended(process, 0)
        assert len(workers_of(output)) >= 2
    assert digests(output) == expected
    assert not leftovers(output)
    info = json.loads((output / "run.json").read_bytes())
    assert info["rows"]["explained"] == 60_000
    assert sorted(path.name for path in (job.folder / "own").iterdir()) == ["explainer.txt", "model.pkl"]
    assert bx.verify_run(output, recompute="20", trust=job.options["trust"]).problems == ()


@once
def test_workers_with_another_version_are_named(
    job: TrappedJob, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written; what a worker has is what its own Python says that it has."""
    older = tmp_path / "site/lightgbm-3.0.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: lightgbm\nVersion: 3.0.0\n")
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[1])])
    with Cluster(tmp_path / "cluster", PYTHONPATH=path) as cluster:
        cluster.add_worker(nanny=False)
        address = cluster.address(1)
        with pytest.raises(OptionError, match=r"not as this process is: tcp://\S+: lightgbm 3\.0\.0 \(here: 4\."):
            job.run(tmp_path / "out", scheduler=address)
    assert not (tmp_path / "out").exists()


@once
def test_workers_without_a_package_are_named(engineered: Engineered, tmp_path: Path) -> None:
    """A package that the model needs, and that only this machine has."""
    job = Job(engineered, tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/ours_alone.py").write_text(
        "from sklearn.preprocessing import FunctionTransformer\nclass Ours(FunctionTransformer): pass\n"
    )
    make = (
        "import pickle, sys, pandas as pd, ours_alone\n"
        "from sklearn.impute import SimpleImputer\nfrom sklearn.linear_model import LinearRegression\n"
        "from sklearn.pipeline import make_pipeline\n"
        "frame = pd.read_parquet('rows/0.parquet')\n"
        "model = make_pipeline(ours_alone.Ours(), SimpleImputer(), LinearRegression()).fit(frame, frame.f0)\n"
        "pickle.dump(model, open('model.pkl', 'wb'))\n"
    )
    ours = {**os.environ, "PYTHONPATH": str(tmp_path / "own")}
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, env=ours, check=True)
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.add_worker(nanny=False)
        options = {**job.options, "model": tmp_path / "model.pkl", "trust": "ours_alone.Ours"}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        arguments += ["--quiet", "--output=out", f"--scheduler={cluster.address(1)}"]
        found = subprocess.run(
            [sys.executable, "-m", "batch_explain", "run", *arguments],
            cwd=tmp_path,
            env={**ours, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path / "own")])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert found.returncode == 2, found.stderr
    assert "ours_alone" in found.stderr and "on the worker tcp://" in found.stderr and found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_adapts(job: TrappedJob, expected: dict[str, str], tmp_path: Path) -> None:
    """It has no worker until there is a task, then some, and takes them away again."""
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        run = job.run(tmp_path / "out", scheduler=cluster)
        assert run.info["rows"]["explained"] == 60_000
        wait_until(lambda: not cluster.scheduler_info["workers"])
    assert digests(tmp_path / "out") == expected
    assert workers_of(tmp_path / "out")


@once
def test_the_callers_own_client(job: TrappedJob, expected: dict[str, str], tmp_path: Path) -> None:
    """Threads of one worker, in this process; the client goes on being the caller's."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        job.run(tmp_path / "out", scheduler=client)
        assert client.submit(sum, [1, 2]).result() == 3
    assert digests(tmp_path / "out") == expected


@once
@pytest.mark.parametrize("scheduler", [[1], object()])
def test_no_scheduler_at_all(scheduler: Any, job: TrappedJob, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Pass processes, threads, sync, the address of a Dask scheduler"):
        job.run(tmp_path / "out", scheduler=scheduler)


@once
def test_a_scheduler_file_and_no_workers(
    job: TrappedJob, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_WORKERS_SECONDS", 1)
    with Cluster(tmp_path / "cluster") as cluster:
        file = str(tmp_path / "cluster/scheduler.json")
        wait_until(lambda: os.path.exists(file) and os.path.getsize(file))
        with pytest.raises(OptionError, match="has no workers, and none came in 1 s"):
            job.run(tmp_path / "out", scheduler=file)
        cluster.add_worker(nanny=False)
        monkeypatch.setattr(cluster_module, "_WORKERS_SECONDS", 60)
        job.run(tmp_path / "out", scheduler=file)
    assert digests(tmp_path / "out") == expected


def file_of(path: str, *row_groups: int) -> InputFile:
    return InputFile(path, path, 1, sum(row_groups), row_groups, "x")


def chunks_of(partitions: list[FilePartition], workers: int) -> list[list[int]]:
    waiting, chunks = Waiting(partitions), []
    while chunk := waiting.take(workers):
        chunks.append([partition.index for partition in chunk])
    return chunks


@once
def test_chunks_of_partitions() -> None:
    """Each partition once; few rows together, ranges of one row group together, others alone, small ones last."""
    tiny = [file_of(f"a{number:05d}", 50) for number in range(10_000)]
    large = file_of("b", *[1_000_000] * 60)
    partitions = cut([*tiny, large], 100_000)
    chunks = chunks_of(partitions, 4)
    assert sorted(number for chunk in chunks for number in chunk) == list(range(10_600))
    rows = [[partitions[number].rows for number in chunk] for chunk in chunks]
    first = next(number for number, chunk in enumerate(rows) if chunk[0] == 50)
    assert all(chunk[0] == 100_000 for chunk in rows[:first]) and all(chunk[0] == 50 for chunk in rows[first:])
    for chunk in chunks[:first]:
        of_row_groups = {partitions[number].start // 1_000_000 for number in chunk}
        assert len(of_row_groups) == 1 and len(chunk) <= 10
    assert max(map(len, chunks[first:])) == MOST and MOST * 50 <= FEW_ROWS
    assert [len(chunk) for chunk in chunks[-16:]] == [1] * 16  # so that four workers end together
