"""Attempts: a small file while a partition is being worked on, or with the reason why it failed.

They are for people (``batch-explain status``) and for nothing else: what proves that a partition was done is its
receipt.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from batch_explain.errors import StoppedError, mask_secrets
from batch_explain.storage.atomic import NewFile
from batch_explain.storage.filesystems import Location
from batch_explain.storage.remote import try_for
from batch_explain.storage.tables import part_name

ATTEMPTS_FOLDER = "_run/attempts"
_NOTE_SECONDS = 10.0


@dataclass(frozen=True)
class Attempt:
    """A partition that was begun and has no receipt.

    Parameters
    ----------
    index : int
        The partition.
    host : str
    pid : int
    began : float
        Seconds since the epoch, by that host's clock.
    tries : int
        Attempts so far, this one included; those before it died with their worker or failed.
    failed : str or None
        Why it failed; None while it is worked on, or where its worker died.
    """

    index: int
    host: str
    pid: int
    began: float
    tries: int = 1
    failed: str | None = None


@contextmanager
def attempt(output: Location, index: int) -> Iterator[None]:
    """Note that a partition is worked on while the block runs; and why, where it fails.

    The notes are best effort: where the storage fails, the task's own files will say so, and sooner.
    """
    note = _noted if output.is_local else functools.partial(try_for, _NOTE_SECONDS)
    mine = Attempt(index, platform.node(), os.getpid(), round(time.time(), 3))

    def begin() -> None:
        nonlocal mine
        if before := next(iter(_read(output, [_path(index)])), None):
            mine = replace(mine, tries=before.tries + 1)
        _write(output, mine)

    note(begin)
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        failed = replace(mine, failed=mask_secrets(str(error))[:2_000])
        note(lambda: _write(output, failed))
        raise
    place = output.join(_path(index))
    note(lambda: place.fs.rm_file(place.path))


def _noted(work: Callable[[], None]) -> None:
    with suppress(Exception):
        work()


def read_attempts(output: Location) -> list[Attempt]:
    """All attempts that have not ended in a receipt, by partition."""
    folder = output.join(ATTEMPTS_FOLDER)
    if not folder.fs.isdir(folder.path):
        return []
    names = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in folder.fs.ls(folder.path, detail=False))
    found = _read(output, [f"{ATTEMPTS_FOLDER}/{name}" for name in names if name.endswith(".json")])
    return sorted(found, key=lambda each: each.index)


def forget_attempts(output: Location) -> None:
    """Remove all of them: the run goes on anew, or has ended."""
    folder = output.join(ATTEMPTS_FOLDER)
    if folder.fs.isdir(folder.path):
        with suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)


def _write(output: Location, mine: Attempt) -> None:
    file = NewFile(output, _path(mine.index), durable=False)
    try:
        file.stream.write(json.dumps(asdict(mine), ensure_ascii=False).encode())
    except BaseException:
        file.abort()
        raise
    file.commit()


def _read(output: Location, paths: list[str]) -> Iterator[Attempt]:
    for path in paths:
        with suppress(OSError, ValueError, TypeError):
            yield Attempt(**json.loads(output.join(path).read_bytes()))


def _path(index: int) -> str:
    return f"{ATTEMPTS_FOLDER}/{part_name(index)}.json"
