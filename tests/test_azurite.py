"""The engine on a real object store: Azurite through adlfs, as a user has it on Azure Blob Storage."""

import gc
import importlib.util
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_explain as bx
from batch_explain.errors import BatchExplainError, OutputRefusedError
from batch_explain.events import Event, RunResumed
from batch_explain.storage import lock as locks
from batch_explain.storage import remote
from batch_explain.storage.atomic import NewFile, new_file
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import LOCK_FILE, take_lock
from batch_explain.storage.tables import PartWriter, TableSpec
from tests.azurite import CONNECTION, IMPATIENT, KEY, PROGRAM, Azurite, Container
from tests.comparing import digests
from tests.conftest import ROOT, Engineered, Small, once
from tests.cutting_proxy import FAULTS, Proxy

PARTITIONS = 8

Connect: TypeAlias = Callable[[str], None]


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    missing = [
        what
        for what, there in (
            (f"{PROGRAM} on the PATH (npm install azurite)", shutil.which(PROGRAM)),
            ("adlfs (the [azure] extra)", importlib.util.find_spec("adlfs")),
        )
        if not there
    ]
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI must have {' and '.join(missing)}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    server = Azurite(tmp_path_factory.mktemp("azurite"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def connect(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Lets this process and those that it starts use a store, by its connection string, until the test ends."""
    import adlfs

    def use(connection: str) -> None:
        monkeypatch.setenv(CONNECTION, connection)
        adlfs.AzureBlobFileSystem.clear_instance_cache()  # clients are kept by address, not by credentials

    yield use
    adlfs.AzureBlobFileSystem.clear_instance_cache()  # or another module's test would wait for a server that is gone


@pytest.fixture
def container(azurite: Azurite, connect: Connect) -> Container:
    """An empty one, that this process and those that it starts can use."""
    return _container(azurite, connect)


def _container(server: Azurite, connect: Connect) -> Container:
    name = f"c{uuid.uuid4().hex[:12]}"
    server.filesystem.mkdir(name)
    connect(server.connection())
    return Container(server, name)


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client of this process waits less between its tries; and a PYTHONPATH with which others do."""
    folder = tmp_path / "impatient"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(IMPATIENT)
    from azure.storage.blob._shared import policies_async

    monkeypatch.setattr(policies_async.ExponentialRetry, "get_backoff_time", lambda self, settings: 0.2)
    return f"{folder}{os.pathsep}{ROOT}"


class Job:
    """A run on engineered rows in a container, on the command line or here."""

    def __init__(self, container: Container, engineered: Engineered, folder: Path) -> None:
        self.container, self.folder = container, folder
        (folder / "rows").mkdir()
        engineered.frame.to_parquet(folder / "rows/0.parquet", index=False, row_group_size=400)
        container.fs.put(str(folder / "rows"), f"{container.name}/rows", recursive=True)
        self.options: dict[str, Any] = {
            "input": container.url("rows"),
            "explainer": engineered.explainer,
            "partition_rows": 400,
            "batch_rows": 100,
        }

    def start(self, output: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Begin a run in a process group of its own."""
        values = {**self.options, "output": self.container.url(output)}
        options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return subprocess.Popen(
            [sys.executable, "-m", "batch_explain", "run", *options, "--scheduler", "sync", "--no-report", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.container.environment(**variables),
            start_new_session=True,
        )

    def run(self, folder: str, **options: Any) -> bx.Run:
        """A run in this process."""
        return bx.explain_dataset(
            **{**self.options, "output": self.container.url(folder), "scheduler": "sync", "report": False, **options}
        )

    def expected(self) -> dict[str, str]:
        """The results of a run that never left this machine's disk."""
        output = self.folder / "expected"
        bx.explain_dataset(
            **{**self.options, "input": self.folder / "rows", "output": output, "scheduler": "sync"},
        )
        return digests(output)

    def found(self, output: str) -> dict[str, str]:
        """The results in the container."""
        return digests(self.container.fetch(output, self.folder / f"fetched-{output}-{uuid.uuid4().hex}"))

    def wait_for_receipts(self, process: "subprocess.Popen[str]", output: str, count: int) -> None:
        while len(self.container.names(f"{output}/_run/receipts")) < count:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)


@pytest.fixture
def job(container: Container, engineered: Engineered, tmp_path: Path) -> Job:
    return Job(container, engineered, tmp_path)


def command(*arguments: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "batch_explain", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def leftovers(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".tmp") or "attempts" in name or "lock" in name]


def secrets_in(where: dict[str, bytes], *secrets: str) -> list[str]:
    """Places that hold a secret, as it is or as URLs write it."""
    forms = [form.encode() for secret in secrets for form in (secret, quote(secret, safe=""), quote(secret))]
    return [name for name, content in where.items() if any(form in content for form in forms)]


def test_everything_on_the_store_is_the_local_run(container: Container, small: Small, tmp_path: Path) -> None:
    """Rows, model, explainer and results in a container: the bytes of a run from and to a folder."""
    rows = small.write(tmp_path / "in/day=1/rows.parquet", small.frame[:600], row_group_size=200)
    shutil.copy(rows, tmp_path / "in/rows.parquet")
    fs = container.fs
    fs.put(str(tmp_path / "in"), f"{container.name}/in", recursive=True)
    for path in (small.model, small.explainer):
        fs.put_file(str(path), f"{container.name}/artifacts/{path.name}")
    ran = command(
        "run",
        *("--input", container.url("in"), "--output", container.url("out")),
        *("--model", container.url("artifacts/model.pkl"), "--explainer", container.url("artifacts/surrogate.txt")),
        *("--partition-rows", "400", "--workers", "2"),
        environment=container.environment(),
    )
    assert ran.returncode == 0, ran.stderr
    assert bx.verify_run(container.url("out"), recompute="20").ok
    assert bx.run_status(container.url("out")).state == "finished"
    local = bx.explain_dataset(
        input=tmp_path / "in",
        model=small.model,
        explainer=small.explainer,
        output=tmp_path / "out",
        partition_rows=400,
        scheduler="sync",
    )
    fetched = container.fetch("out", tmp_path / "fetched")
    assert digests(fetched) == digests(tmp_path / "out")
    assert not leftovers(container.names("out"))
    run = bx.open_run(container.url("out"))
    assert run.table("raw").to_table().equals(local.table("raw").to_table())
    produced = {str(path): path.read_bytes() for path in fetched.rglob("*") if path.is_file()}
    assert len(produced) > 20 and not secrets_in(produced | {"run": f"{ran.stdout}{ran.stderr}".encode()}, KEY)


@once
def test_killed_in_the_middle_and_resumed(job: Job) -> None:
    """And while it runs: a second run is refused, and whatever can be seen is whole."""
    process = job.start("out")
    job.wait_for_receipts(process, "out", 2)
    os.killpg(process.pid, signal.SIGSTOP)  # it gave a sign of life a moment ago
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputRefusedError, match=f"being written by another run .process {process.pid} on"):
            job.run("out", **how)
    assert bx.run_status(job.container.url("out")).holder is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = job.container.fetch("out", job.folder / "killed")
    for part in there.rglob("*.parquet"):
        pq.read_table(part)
    receipts = len(list((there / "_run/receipts").iterdir()))
    assert 2 <= receipts < PARTITIONS
    assert bx.run_status(job.container.url("out")).state == "stopped"
    seen: list[Event] = []
    job.run("out", resume=True, observers=[seen.append])
    assert [event.partitions for event in seen if isinstance(event, RunResumed)] == [receipts]
    expected = job.expected()
    assert job.found("out") == expected
    job.run("out", overwrite=True)
    assert job.found("out") == expected
    assert not leftovers(job.container.names("out"))


RACE = """
import sys, time
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import LOCK_FILE, Holder, _create
place = Location(sys.argv[1])
place.fs.exists(place.path)
print("ready", flush=True)
began = float(sys.stdin.readline())
won = []
for number in range(int(sys.argv[2])):
    time.sleep(max(0, began + number * 0.2 - time.time()))
    won.append(_create(place.join(str(number), LOCK_FILE), Holder.this_process()))
print(*map(int, won))
"""


@once
def test_of_racing_processes_one_gets_the_lock(container: Container) -> None:
    racers, rounds = 3, 10
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, container.url("race"), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=container.environment(),
        )
        for _ in range(racers)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    began = time.time() + 0.5
    won = [process.communicate(f"{began}\n", timeout=60)[0].split() for process in processes]
    assert [sum(int(each[number]) for each in won) for number in range(rounds)] == [1] * rounds


def test_a_dead_lock_is_taken_over_a_living_one_is_not(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 2.0)
    root = Location(container.url("locked"))
    place = root.join(LOCK_FILE)
    lock = take_lock(root)

    def seem_elsewhere() -> None:  # its process cannot be looked for: only its beats tell
        content = json.loads(place.read_bytes())
        place.fs.pipe_file(place.path, json.dumps({**content, "machine": "another", "host": "elsewhere"}).encode())

    lock._holder = locks.replace(lock._holder, machine="another", host="elsewhere")
    time.sleep(3)  # longer than a dead one is believed
    assert json.loads(place.read_bytes())["beat"] > 3
    with pytest.raises(OutputRefusedError, match="on elsewhere"):
        take_lock(root)
    lock._released.set()  # it is not heard of any more
    lock._thread.join()
    seem_elsewhere()
    with pytest.raises(OutputRefusedError, match="on elsewhere"):
        take_lock(root)  # it wrote a moment ago
    time.sleep(2)
    with take_lock(root):
        assert json.loads(place.read_bytes())["host"] != "elsewhere"
    assert not container.names("locked")


def test_what_raises_publishes_nothing(container: Container) -> None:
    root = Location(container.url("half"))
    with new_file(root, "old.bin") as stream:
        stream.write(b"old")
    with pytest.raises(RuntimeError), new_file(root, "old.bin") as stream:
        stream.write(b"n" * 3_000_000)
        raise RuntimeError
    spec = TableSpec.create("table", [pa.field("x", pa.int64())], {})
    with pytest.raises(RuntimeError), PartWriter(root, [spec], 0, None) as writer:
        writer.write("table", [pa.array(range(100_000))])
        raise RuntimeError
    forgotten = NewFile(root, "forgotten.bin")
    forgotten.stream.write(b"x" * 3_000_000)
    temporary = forgotten._temporary
    del forgotten, writer
    gc.collect()
    os.remove(temporary)
    assert container.names("half") == ["old.bin"]
    assert root.join("old.bin").read_bytes() == b"old"


WRITE = """
import sys, fsspec
fs = fsspec.filesystem("abfs")
for path in sys.argv[1:]:
    fs.pipe_file(path, b"1")
"""


@once
def test_listings_are_of_this_moment(container: Container) -> None:
    """Another process writes between two looks of this one."""
    fsspec_own = fsspec.filesystem("abfs")
    container.fs.pipe_file(f"{container.name}/folder/a", b"1")
    fsspec_own.ls(f"{container.name}/folder")  # a listing that was kept before the engine came
    place = Location(container.url("folder"))
    looks: list[Callable[[], Any]] = [
        lambda: place.fs.ls(place.path, detail=False),
        lambda: place.fs.find(place.path),
        lambda: place.fs.glob(f"{place.path}/*"),
        lambda: [place.join("b").exists(), place.join("a").exists(), place.join("sub").fs.isdir(f"{place.path}/sub")],
    ]
    before = [look() for look in looks]
    new = [f"{container.name}/folder/{name}" for name in ("b", "sub/c")]
    subprocess.run([sys.executable, "-c", WRITE, *new], check=True, env=container.environment())
    container.fs.rm_file(f"{container.name}/folder/a")
    after = [look() for look in looks]
    names = [f"{container.name}/folder/{name}" for name in ("a", "b", "sub/c", "sub")]
    assert before == [names[:1], names[:1], names[:1], [False, True, False]]
    assert after == [[names[1], names[3]], names[1:3], [names[1], names[3]], [True, False, True]]


OTHER_KEY = b64encode(b"another key, which opens nothing").decode()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("key", "cannot be listed: .*failed to authenticate"),
        ("key that is none", "cannot be listed: .*Incorrect padding"),
        ("connection string", "cannot be reached: .*Connection string is either blank or malformed"),
        ("server", "cannot be listed: .*Cannot connect to host"),
        ("input container", "There is nothing at abfs://no-such-container/rows"),
        ("output container", "cannot be written: .*container does not exist"),
        ("explainer container", "There is no explainer at abfs://no-such-container/e.txt"),
    ],
)
def test_nothing_starts_where_the_store_refuses(
    wrong: str, said: str, job: Job, impatient: str, connect: Connect
) -> None:
    server, options = job.container.server, {}
    connection = {
        "key": server.connection(OTHER_KEY),
        "key that is none": server.connection("not-a-key-"),
        "connection string": "nothing of the kind",
        "server": Azurite(job.folder, port=1).connection(),
    }.get(wrong, server.connection())
    connect(connection)
    if wrong == "input container":
        options = {"input": "abfs://no-such-container/rows"}
    elif wrong == "output container":
        options = {"output": "abfs://no-such-container/out"}
    elif wrong == "explainer container":
        options = {"explainer": "abfs://no-such-container/e.txt"}
    with pytest.raises(BatchExplainError, match=said) as caught:
        job.run("out", **options)
    assert caught.value.exit_code == 2
    assert not secrets_in({"message": str(caught.value).encode()}, KEY, OTHER_KEY, "not-a-key-")
    assert not job.container.names("out")


@once
@pytest.mark.parametrize("client", ["impatient", pytest.param("as it is", marks=pytest.mark.soak)])
def test_the_server_stops_in_the_middle(
    client: str,
    impatient: str,
    engineered: Engineered,
    tmp_path: Path,
    azurite: Azurite,
    connect: Connect,
) -> None:
    """Exit 5, one paragraph; when the server is back, --resume ends in the bytes of an undisturbed run."""
    (tmp_path / "blobs").mkdir()
    server = Azurite(tmp_path / "blobs").start()
    try:
        job = Job(_container(server, connect), engineered, tmp_path)
        paths = {"PYTHONPATH": impatient} if client == "impatient" else {}
        process = job.start("out", **paths)
        job.wait_for_receipts(process, "out", 2)
        server.stop()
        began = time.monotonic()
        _, errors = process.communicate(timeout=300)
        print(f"ended after {time.monotonic() - began:.0f} s\n{errors}")
        assert process.returncode == 5, errors
        last = errors.splitlines()[-1]
        assert "Traceback" not in errors and "--resume" in last and "Cannot connect to host" in last
        assert client == "impatient" or "waiting: the storage has not answered for 15 s" in errors
        assert not secrets_in({"errors": errors.encode()}, KEY)
        server.start()
        seen: list[Event] = []
        job.run("out", resume=True, observers=[seen.append])
        assert [2 <= event.partitions < PARTITIONS for event in seen if isinstance(event, RunResumed)] == [True]
        assert job.found("out") == job.expected()
        assert not leftovers(job.container.names("out"))
    finally:
        server.stop()


def test_a_store_that_does_not_answer_is_told(
    container: Container,
    impatient: str,
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Location(container.url("x"))
    monkeypatch.setattr(remote, "_LONG_SECONDS", 0.3)
    monkeypatch.setattr(remote, "_PATIENCE", remote._Patience())
    with caplog.at_level(logging.WARNING, logger="batch_explain"):
        assert not place.exists()
        assert not caplog.records
        connect(Azurite(tmp_path, port=1).connection())
        with pytest.raises(OSError, match="Cannot connect to host"):
            Location(container.url("x")).exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"the storage has not answered for 0 s (info {container.name}/x); its library tries again for some minutes "
        "before it gives up"
    ]


@once
def test_a_signed_token_appears_nowhere(job: Job, connect: Connect) -> None:
    connection, signature = job.container.server.with_sas(job.container.name)
    process = job.start("out", **{CONNECTION: connection})
    said = {"run": process.communicate(timeout=120)[1]}
    assert process.returncode == 0, said
    connect(connection)
    verified, status = bx.verify_run(job.container.url("out")), bx.run_status(job.container.url("out"))
    assert verified.ok and status.state == "finished"
    said |= {"verify": json.dumps(verified.to_json()), "status": json.dumps(status.to_json())}
    # adlfs takes no token in a URL; who tries it must not find it in a log
    with pytest.raises(BatchExplainError, match="sig=\\*\\*\\*") as caught:
        job.run("other", input=f"{job.container.url('rows')}?sv=2024-01-01&sig={quote(signature)}")
    said["refused"] = str(caught.value)
    fetched = job.container.fetch("out", job.folder / "fetched")
    produced = {str(path): path.read_bytes() for path in fetched.rglob("*") if path.is_file()}
    assert len(produced) > 25
    assert not secrets_in(produced | {name: text.encode() for name, text in said.items()}, signature, KEY)
    assert digests(fetched) == job.expected()


@once
@pytest.mark.filterwarnings("ignore:Sending a large body directly")  # by the client, when it sends a part again
@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.soak) for first in range(1, 5))])
def test_each_request_fails_once_and_nothing_is_torn(
    first: int, job: Job, impatient: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before and after the store did it, half an answer, 429, 503: tried again, the results are the local run's."""
    container = job.container
    with Proxy(container.server.port, first) as proxy:
        through = container.server.connection().replace(f":{container.server.port}/", f":{proxy.port}/")
        connect(through)
        monkeypatch.setattr(remote, "PAUSES", (0.05,) * 3)
        job.run("out", report=True)
        assert bx.verify_run(container.url("out")).ok
    counts = Counter(fault for fault, _ in proxy.failed)
    assert min(counts[fault] for fault in FAULTS) >= 10, counts
    assert {request.split()[0] for _, request in proxy.failed} >= {"GET", "HEAD", "PUT", "DELETE"}
    assert job.found("out") == job.expected() and not leftovers(container.names("out"))


@once
@pytest.mark.parametrize("planned", [True, False])
def test_a_parallel_step_writes_to_the_store(job: Job, planned: bool) -> None:
    """Results by their address, rows mounted elsewhere, a mini-batch repeated: the run's own parts, once each."""
    output = job.container.url("steps")
    rows = sorted((job.folder / "rows").iterdir())
    if planned:
        bx.plan_dataset(**job.options, output=output, report=False)
    arguments = ["--explainer", str(job.options["explainer"]), "--output-folder", output, "--no-report"]
    scripts = [bx.EntryScript(finalize=False, partition_rows=400, batch_rows=100) for _ in range(2)]
    for script in scripts:
        script.init(arguments)
    for script, path in zip(itertools.cycle(scripts), [*rows, *rows[:1]], strict=False):
        assert len(script.run([str(path)])) == 1
    found = bx.finalize_run(output, **({} if planned else {"input": job.container.url("rows")}))
    assert bx.verify_run(output).ok and not leftovers(job.container.names("steps"))
    whole = job.run("whole")
    assert found.info["rows"] == whole.info["rows"]
    if planned:
        parts = [{k: v for k, v in job.found(name).items() if "/part-" in k} for name in ("steps", "whole")]
        assert len(parts[0]) >= 4 and parts[0] == parts[1]
    else:
        tables = [run.table("engineered").to_table().to_pandas() for run in (found, whole)]
        ids = ["source_file", "source_row"]
        left, right = (table.sort_values(ids, ignore_index=True) for table in tables)
        assert left.equals(right) and len(left) == whole.info["rows"]["explained"]
