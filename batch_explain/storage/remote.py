"""Remote filesystems that fail in one way, and not in silence: by an OSError, whatever their libraries raise.

Clients of object stores have exceptions of their own (``azure.core``, ``botocore``, ``gcsfs``, ``aiohttp``), which
fsspec's filesystems hand on, wrap into Python's, or take for "there is no such file".
"""

import errno
import functools
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from fsspec.implementations.memory import MemoryFileSystem

from batch_explain.errors import mask_secrets

_Answer = TypeVar("_Answer")

_ERRNO_OF_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT}
_SHOWN_CHARACTERS = 300
_LONG_SECONDS, _BETWEEN_SECONDS = 15.0, 60.0
_TOO_MANY = 429
_CUT_SHORT = {"IncompleteReadError", "ClientPayloadError"}  # azure.core, aiohttp
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_LOG = logging.getLogger(__name__)


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn the exception of a storage's library into an OSError with an errno; credentials in it are masked.

    Refused access becomes PermissionError, what is not there FileNotFoundError. An OSError stays what it is, and so
    does an error of Python's own (a TypeError, say) that no library's error caused: it is a bug.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        library = next((each for each in _causes(error) if type(each).__module__ != "builtins"), None)
        if library is None:
            raise
        first_line = (str(library).splitlines() or [""])[0].rstrip(".")
        text = mask_secrets(f"{type(library).__name__}: {first_line}")[:_SHOWN_CHARACTERS].rstrip(": ")
        # not as its cause: it holds connections, which cannot go from a worker to the client, and what is not masked
        raise OSError(_ERRNO_OF_STATUS.get(_status(library), errno.EIO), text) from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int:
    """The HTTP status that a library's exception tells; 0 where it tells none."""
    for name in ("status_code", "status", "code"):  # azure.core, aiohttp, gcsfs
        if isinstance(found := getattr(error, name, None), int):
            return found
    answer = getattr(error, "response", None)  # botocore
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    return int(metadata.get("HTTPStatusCode", 0))


def try_for(seconds: float, work: Callable[[], None]) -> None:
    """Do what may fail, and go on after so many seconds: a dead storage keeps its client for minutes.

    The work goes on behind the caller's back then; what it raises is lost.
    """

    def do() -> None:
        with suppress(Exception):
            work()

    thread = threading.Thread(target=do, name="batch-explain-last-words", daemon=True)
    thread.start()
    thread.join(seconds)


class _Patience:
    """Says, once in a while, that a storage does not answer: its library tries again for minutes and says nothing."""

    def __init__(self) -> None:
        self._said = float("-inf")

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Watch over one call."""
        timer = threading.Timer(_LONG_SECONDS, self._say, [what])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _say(self, what: str) -> None:
        if time.monotonic() - self._said > _BETWEEN_SECONDS:
            self._said = time.monotonic()
            _LOG.warning(
                "the storage has not answered for %.0f s (%s); its library tries again for some minutes before it "
                "gives up",
                _LONG_SECONDS,
                mask_secrets(what),
            )


_PATIENCE = _Patience()


def _patiently(call: Callable[[], _Answer]) -> _Answer:
    """Ask again, after longer and longer pauses, where the storage is asked too much or its answer was cut short.

    All else that passes (cut connections, a service that is busy) the clients of object stores try again by themselves;
    Azure's takes these two for final.
    """
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            if not any(_status(each) == _TOO_MANY or type(each).__name__ in _CUT_SHORT for each in _causes(error)):
                raise
        time.sleep(pause)
    return call()


class _Guarded:
    """Has every method of another object, under :func:`os_errors`."""

    _once: frozenset[str] = frozenset()  # methods that must not be called again

    def __init__(self, guarded: Any) -> None:
        self._guarded = guarded

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._guarded, name)
        if not callable(member):
            return member

        @functools.wraps(member)
        def call(*arguments: Any, **options: Any) -> Any:
            with os_errors(), _PATIENCE.over(" ".join([name, *(each for each in arguments if isinstance(each, str))])):
                if name in self._once:
                    return member(*arguments, **options)
                return _patiently(lambda: member(*arguments, **options))

        return call


class RemoteFilesystem(_Guarded):
    """An fsspec filesystem that is not local.

    Parameters
    ----------
    guarded : fsspec.AbstractFileSystem
    """

    def open(self, path: str, mode: str = "rb", **options: Any) -> "RemoteFile":
        """Open a file; a written one is published at its close, even after an exception: write it in one piece."""
        if isinstance(self._guarded, MemoryFileSystem) and mode == "rb":
            return RemoteFile(io.BytesIO(self.cat_file(path)))
        with os_errors(), _PATIENCE.over(f"open {path}"):
            return RemoteFile(_patiently(lambda: self._guarded.open(path, mode, **options)))

    def rm_file(self, path: str) -> None:
        """Remove a file. None there is no error: of a delete whose answer was lost, the second try finds none."""
        with suppress(FileNotFoundError):
            self.__getattr__("rm_file")(path)

    def rm(self, path: str, recursive: bool = False) -> None:
        """Remove a file or a folder; see :meth:`rm_file`."""
        with suppress(FileNotFoundError):
            self.__getattr__("rm")(path, recursive=recursive)

    def exists(self, path: str) -> bool:
        """Whether anything is there."""
        return self._kind(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether a file is there."""
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether a folder is there."""
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str | None:
        """``file``, ``directory`` or None; fsspec's own questions answer no where the storage does not answer."""
        try:
            return str(self.info(path)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None


class RemoteFile(_Guarded):
    """An open file of a remote filesystem; a context manager."""

    _once = frozenset({"write", "flush", "close", "commit", "discard"})  # fsspec forgets what a failed call was to do

    def __enter__(self) -> "RemoteFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
