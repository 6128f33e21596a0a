"""One run at a time in an output: a lock that holds across hosts, and is known for dead within a minute.

The lock is a file made by a conditional create (a hard link locally, an exclusive create on object stores), so that of
several runs one gets it. Its holder writes a beat into it every few seconds. A lock whose beats stop is dead; on the
holder's own machine it is dead as soon as its process is. Beats are compared with what was read before, not with this
machine's clock, which may be another than the holder's.
"""

import errno
import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone

import psutil

from batch_explain.errors import InterruptedRunError, OutputRefusedError
from batch_explain.storage.filesystems import Location
from batch_explain.storage.remote import try_for

LOCK_FILE = "_run/lock.json"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # without a beat: dead
_SETTLE_SECONDS = 0.2
_RELEASES, _RELEASE_SECONDS = 3, 10.0
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Holder:
    """Who holds an output.

    Parameters
    ----------
    token : str
        Another one for every process that takes a lock.
    host : str
    machine : str
        Identifies the boot and the process namespace, within which a pid means one process.
    pid : int
    since : str
        When the lock was taken, UTC.
    beat : int
        Counts up while the holder lives.
    """

    token: str
    host: str
    machine: str
    pid: int
    since: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> "Holder":
        """Describe this process, which takes a lock now."""
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, platform.node(), _machine(), os.getpid(), since)

    @property
    def is_gone(self) -> bool:
        """Whether it is known, without waiting, that the process has ended; only on its own machine."""
        return self.machine == _machine() and not psutil.pid_exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lock:
    """A lock that this process holds, until :meth:`release`.

    Used as a context manager; a thread writes its beats.
    """

    def __init__(self, output: Location, holder: Holder) -> None:
        self._place = output.join(LOCK_FILE)
        self._output = output
        self._holder = holder
        self._lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._live, name="batch-explain-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise InterruptedRunError if another run has taken the output."""
        if self._lost:
            raise InterruptedRunError(
                f"Another run has taken the output {self._output}, because this one gave no sign of life for "
                f"{SILENCE_SECONDS:.0f} s. Give each run its own output."
            )

    def release(self) -> None:
        """Give the output free, where the storage answers; without beats the lock will be known for dead."""
        self._released.set()
        try_for(_RELEASE_SECONDS, self._remove)

    def _remove(self) -> None:
        self._thread.join()
        for attempt in range(_RELEASES):
            try:
                if self._is_ours():
                    self._place.fs.rm_file(self._place.path)
                return
            except OSError:
                time.sleep(_SETTLE_SECONDS * attempt)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _is_ours(self) -> bool:
        found = _read(self._place)
        return found is not None and found.token == self._holder.token

    def _live(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(Exception):  # a storage that fails now may work at the next beat
                if not self._is_ours():
                    self._lost = True
                    return
                self._holder = replace(self._holder, beat=self._holder.beat + 1)
                _replace(self._place, self._holder)


def take_lock(output: Location) -> Lock:
    """Take an output, from a dead run if need be.

    Raises
    ------
    OutputRefusedError
        If a living run holds it; at once where it gave a sign of life lately.
    OSError
        If the place cannot be written.
    """
    place, holder = output.join(LOCK_FILE), Holder.this_process()
    if not _create(place, holder):
        dead = _read(place)
        refuse_if_held(output)
        with suppress(FileNotFoundError):
            if _read(place) == dead:
                place.fs.rm_file(place.path)
        _create(place, holder)
        time.sleep(_SETTLE_SECONDS)  # for another that found the same dead lock, and removes this one for it
        found = _read(place)
        if found is None or found.token != holder.token:
            raise OutputRefusedError(
                f"The output {output} was taken by another run in this moment"
                + (f" ({found})." if found else ".")
                + " Wait for its end, or choose another place."
            )
    return Lock(output, holder)


def refuse_if_held(output: Location) -> None:
    """Raise OutputRefusedError if a living run holds an output; waits where that is not known."""
    if (holder := living_holder(output)) is not None:
        raise OutputRefusedError(
            f"The output {output} is being written by another run ({holder}). Wait for its end, stop it, or choose "
            "another place."
        )


def living_holder(output: Location, *, wait: bool = True) -> Holder | None:
    """Who holds an output; None where nobody does.

    Parameters
    ----------
    output : Location
    wait : bool
        Whether to watch a holder that wrote no beat lately, for as long as a dead one is silent;
        else it is taken for living.
    """
    place = output.join(LOCK_FILE)
    first = _read(place)
    if first is None and not place.exists():
        return None
    if first is not None and first.is_gone:
        return None
    if first is not None and age_of(place) < SILENCE_SECONDS:
        return first
    if not wait:
        return first
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENCE_SECONDS))
        found = _read(place)
        if found != first:
            return found
    return None


def _create(place: Location, holder: Holder) -> bool:
    """Make the lock unless there is one."""
    content = json.dumps(asdict(holder)).encode()
    place.fs.makedirs(place.parent.path, exist_ok=True)
    try:
        if not place.is_local:
            _create_remote(place, content)
        else:
            _create_local(place.path, f"{place.path}.{holder.token}.tmp", content)
    except FileExistsError:  # perhaps by this very call: a client whose answer was lost asks again
        found = _read(place)
        return found is not None and found.token == holder.token
    return True


def _create_local(path: str, temporary: str, content: bytes) -> None:
    """By a hard link, so that nobody reads half a lock; by an exclusive create where there are none (FUSE mounts)."""
    _write(temporary, content)
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "xb") as stream:
            stream.write(content)
    finally:
        with suppress(OSError):  # it is swept with all temporary files
            os.remove(temporary)


def _create_remote(place: Location, content: bytes) -> None:
    try:
        place.fs.pipe_file(place.path, content, mode="create")  # one request, which can be made again
    except (ValueError, NotImplementedError):  # no conditional create: look first, and settle afterwards
        if place.exists():
            raise FileExistsError from None
        place.fs.pipe_file(place.path, content)
        time.sleep(_SETTLE_SECONDS)
        if place.read_bytes() != content:
            raise FileExistsError from None


def _replace(place: Location, holder: Holder) -> None:
    content = json.dumps(asdict(holder)).encode()
    if not place.is_local:
        place.fs.pipe_file(place.path, content)
        return
    temporary = f"{place.path}.{holder.token}.tmp"
    try:
        _write(temporary, content)
        os.replace(temporary, place.path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)


def _read(place: Location) -> Holder | None:
    """The holder; None where there is no lock, or one that was not written to its end."""
    try:
        return Holder(**json.loads(place.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def age_of(place: Location) -> float:
    """Seconds since the lock was written, by this machine's clock; infinite where the storage does not tell."""
    try:
        written = place.fs.modified(place.path).replace(tzinfo=timezone.utc)
        return float(abs(time.time() - written.timestamp()))
    except (NotImplementedError, AttributeError, KeyError, FileNotFoundError, TypeError):
        return float("inf")


def _machine() -> str:
    """Name this boot of this machine and this namespace of processes: containers share the one, not the other."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    return platform.node()
