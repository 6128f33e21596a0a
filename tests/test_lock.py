"""One run at a time in an output: refused at once while its holder lives, taken over when it is dead."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import batch_explain as bx
from batch_explain.errors import InterruptedRunError, OutputRefusedError
from batch_explain.events import Event, PartitionDone
from batch_explain.storage import lock as locks
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import LOCK_FILE, living_holder, take_lock
from tests.conftest import ROOT, Engineered, once

HOLD = """
import sys, time
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import take_lock
take_lock(Location(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same clockwork, a hundred times as fast."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 0.3)


def hold(output: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(root: Location) -> None:
    """Make the lock look as if it were held on another machine."""
    place = root.join(LOCK_FILE)
    holder = json.loads(place.read_bytes())
    place.fs.pipe_file(place.path, json.dumps({**holder, "machine": "another", "host": "elsewhere"}).encode())


def test_a_living_holder_is_named_at_once(root: Location) -> None:
    with take_lock(root):
        began = time.monotonic()
        with pytest.raises(OutputRefusedError, match=rf"another run \(process {os.getpid()} on .*, since 20..-..-..T"):
            take_lock(root)
        assert time.monotonic() - began < 1
    assert not root.join(LOCK_FILE).exists()
    take_lock(root).release()


@once
def test_only_one_of_many_gets_it(root: Location) -> None:
    won: list[locks.Lock] = []
    refused: list[OutputRefusedError] = []
    ready = threading.Barrier(8)

    def contend() -> None:
        ready.wait()
        try:
            won.append(take_lock(root))
        except OutputRefusedError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # fsspec's memory filesystem has no exclusive create that threads cannot break
    assert len(won) == 1 or not root.is_local
    assert len(won) + len(refused) == 8
    for each in won:
        each.release()


@once
@pytest.mark.parametrize("place", ["no hard links", "no conditional create"])
def test_storage_that_can_do_less(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE mounts have no hard links; some object stores' clients cannot create exclusively."""
    root = Location(str(tmp_path) if place == "no hard links" else f"memory://{tmp_path.name}")
    if place == "no hard links":

        def link(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    else:
        really = type(root.fs).open

        def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
            if "x" in mode:
                raise ValueError(mode)
            return really(self, path, mode, **options)

        monkeypatch.setattr(type(root.fs), "open", opened)
    with take_lock(root):
        with pytest.raises(OutputRefusedError, match="another run"):
            take_lock(root)
        assert [path.rsplit("/", 1)[-1] for path in root.fs.find(root.path)] == ["lock.json"]
    assert not root.fs.find(root.path)
    take_lock(root).release()


def test_a_killed_holder_on_this_machine_is_known_at_once(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with pytest.raises(OutputRefusedError, match=f"process {process.pid} on"):
        take_lock(Location(str(tmp_path)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    began = time.monotonic()
    take_lock(Location(str(tmp_path))).release()
    assert time.monotonic() - began < 2


@once
def test_a_pid_that_was_given_out_again_does_not_hold_it_for_long(tmp_path: Path, quick: None) -> None:
    """The process lives, but is another: it writes no beats."""
    root = Location(str(tmp_path))
    lock = take_lock(root)
    lock._released.set()
    lock._thread.join()
    assert living_holder(root) is not None
    time.sleep(0.4)
    assert living_holder(root) is None
    take_lock(root).release()


@once
def test_of_two_that_find_the_same_dead_lock_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second removes the lock that the first has just made, in the belief that it is the dead one."""
    root = Location(str(tmp_path))
    place = root.join(LOCK_FILE)
    process = hold(tmp_path)
    process.kill()
    process.communicate()
    really, made = locks._create, list[bool]()

    def create(at: Location, holder: locks.Holder) -> bool:
        made.append(really(at, holder))
        if made == [False, True]:
            at.fs.rm_file(at.path)
            really(at, locks.Holder.this_process())
        return made[-1]

    monkeypatch.setattr(locks, "_create", create)
    with pytest.raises(OutputRefusedError, match="taken by another run in this moment"):
        take_lock(root)
    assert made == [False, True] and place.exists()


@once
def test_a_silent_holder_elsewhere_is_dead_within_a_minute(root: Location, quick: None) -> None:
    assert 2 * locks.SILENCE_SECONDS < 60
    lock = take_lock(root)
    lock._released.set()  # it is not heard of any more
    lock._thread.join()
    elsewhere(root)
    with pytest.raises(OutputRefusedError, match="on elsewhere"):
        take_lock(root)  # it wrote a moment ago
    time.sleep(0.4)
    began = time.monotonic()
    take_lock(root).release()
    assert time.monotonic() - began < 60


@once
def test_a_holder_elsewhere_whose_clock_is_behind_is_not_taken_for_dead(tmp_path: Path, quick: None) -> None:
    root = Location(str(tmp_path))
    with take_lock(root) as lock:
        place = root.join(LOCK_FILE)
        stop = threading.Event()

        def live() -> None:
            number = 0
            while not stop.wait(0.05):
                number += 1
                holder = json.loads(place.read_bytes())
                place.fs.pipe_file(place.path, json.dumps({**holder, "machine": "another", "beat": number}).encode())
                os.utime(place.path, (1, 1))

        lock._released.set()
        lock._thread.join()
        thread = threading.Thread(target=live)
        thread.start()
        try:
            time.sleep(0.3)
            with pytest.raises(OutputRefusedError):
                take_lock(root)
        finally:
            stop.set()
            thread.join()


def test_a_holder_that_was_taken_for_dead_stops(root: Location, quick: None) -> None:
    lock = take_lock(root)
    place = root.join(LOCK_FILE)
    holder = json.loads(place.read_bytes())
    place.fs.pipe_file(place.path, json.dumps({**holder, "token": "another's"}).encode())
    time.sleep(0.3)
    with pytest.raises(InterruptedRunError, match="gave no sign of life"):
        lock.check()
    lock.release()
    assert json.loads(place.read_bytes())["token"] == "another's"  # not removed by the one that lost it


@once
def test_a_torn_lock_is_watched_then_removed(root: Location, quick: None) -> None:
    place = root.join(LOCK_FILE)
    place.fs.makedirs(place.parent.path, exist_ok=True)
    place.fs.pipe_file(place.path, b'{"token": "x')
    take_lock(root).release()


def test_a_second_run_is_refused_while_the_first_goes_on(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame.to_parquet(tmp_path / "rows.parquet", row_group_size=500)
    options: dict[str, Any] = {
        "input": tmp_path / "rows.parquet",
        "explainer": engineered.explainer,
        "output": tmp_path / "out",
        "scheduler": "sync",
        "partition_rows": 500,
    }
    second: list[Exception] = []

    def meanwhile(event: Event) -> None:
        if isinstance(event, PartitionDone) and not second:
            for how in ({}, {"overwrite": True}, {"resume": True}):
                with pytest.raises(
                    OutputRefusedError, match=f"being written by another run .process {os.getpid()}"
                ) as e:
                    bx.explain_dataset(**options, **how)
                second.append(e.value)

    run = bx.explain_dataset(**options, observers=[meanwhile])
    assert len(second) == 3
    assert run.info["rows"]["explained"] == 3_000
    assert not (tmp_path / "out" / LOCK_FILE).exists()
