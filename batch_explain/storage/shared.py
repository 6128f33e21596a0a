"""Arrays that the processes of one machine share: files in a private folder, mapped read-only by all of them.

The folder is locked while a file is looked for, made or removed, so that processes that start together make it once.
Every user holds a shared lock on the file; whoever can take it for himself at the end is the last one and removes it.
Locks end with their process, however it ends; a file that a killed run left is used by the next run and then removed.
"""

import os
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from typing import Any

import numpy as np

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_DOUBLE = 8


def shared_array(digest: str, doubles: int, fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """A read-only array that all processes of this user and machine map from one file.

    Parameters
    ----------
    digest : str
        Names the content: the same digest always stands for the same bytes.
    doubles : int
        Number of elements.
    fill : callable
        Computes the content into a zeroed array, in the process that comes first.

    Returns
    -------
    ndarray of float64, shape (doubles,)
        Aligned to a page.

    Raises
    ------
    OSError
        If there is no room or no mapping; the caller uses memory of its own.
    """
    if fcntl is None or not doubles:
        raise OSError("this system has no file locks" if doubles else "there is nothing to share")
    folder = _private_folder()
    path = os.path.join(folder, f"{digest}.f64")
    with _locked(folder):
        if not _is_whole(path, doubles):
            _make(path, doubles, fill)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            mapped = mmap(descriptor, doubles * _DOUBLE, access=ACCESS_READ)
        except BaseException:
            os.close(descriptor)
            raise
    # when the last array over the mapping is gone, or at the end of the process
    weakref.finalize(mapped, _release, folder, path, descriptor, os.getpid())
    return np.frombuffer(mapped, dtype=np.float64)


def _private_folder() -> str:
    """A folder in the temporary one that this user alone can write and read."""
    folder = os.path.join(tempfile.gettempdir(), f"batch-explain-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_whole(path: str, doubles: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.getsize(path) == doubles * _DOUBLE
    return False


def _make(path: str, doubles: int, fill: Callable[[np.ndarray], None]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".tmp")
    try:
        # a full disk is an error here; found out by writing to the mapping, it would be the end of the process
        os.posix_fallocate(descriptor, 0, doubles * _DOUBLE)
        with mmap(descriptor, doubles * _DOUBLE) as mapped:
            array = np.frombuffer(mapped, dtype=np.float64)
            fill(array)
            del array  # a mapping with an array over it cannot be closed
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    finally:
        os.close(descriptor)


def _release(folder: str, path: str, descriptor: int, owner: int) -> None:
    if os.getpid() != owner:  # a forked child has its parent's locks
        return
    with suppress(OSError):
        with _locked(folder), suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.remove(path)
        os.rmdir(folder)  # not while others' files are in it
    with suppress(OSError):
        os.close(descriptor)
