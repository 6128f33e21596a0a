"""Files that are there whole or not at all.

Locally: temporary file in the same folder, fsync, rename, fsync of the folder. On object stores: built in a local
temporary file, then uploaded once (an exception inside an fsspec write would publish half an object).
"""

import hashlib
import io
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from batch_explain.storage.filesystems import Location

_CHUNK = 1 << 20
_TOKENS = 10_000  # of JSON, written at a time
_BUFFER_BYTES = 256 << 10
_SYNC_BYTES = 16 << 20  # the disk is told to begin after so many


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A finished file: path relative to the run's folder, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class _HashedFile(io.RawIOBase):
    """Writes to a file, adds up its digest on the way, and has the disk begin before everything is written.

    Parameters
    ----------
    path : str
    """

    def __init__(self, path: str) -> None:
        self._disk: threading.Thread | None = None
        self._descriptor = -1
        self._digest = hashlib.sha256()
        self._unsynced = 0
        self.bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:  # its descriptor may be another file's by now
            raise ValueError("write to a closed file")
        view = memoryview(data).cast("B")
        self._digest.update(view)
        left = view
        while left:
            left = left[os.write(self._descriptor, left) :]
        self.bytes += len(view)
        self._unsynced += len(view)
        if self._unsynced >= _SYNC_BYTES and not (self._disk and self._disk.is_alive()):
            self._unsynced = 0
            self._disk = threading.Thread(target=self._sync_soon, daemon=True)
            self._disk.start()
        return len(view)

    def _sync_soon(self) -> None:
        with suppress(OSError):  # sync() will meet it again
            getattr(os, "fdatasync", os.fsync)(self._descriptor)  # macOS has the other alone

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Make durable what was written."""
        self._wait()
        os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed and self._descriptor >= 0:
            self._wait()
            os.close(self._descriptor)
        super().close()

    def _wait(self) -> None:
        if self._disk is not None:
            self._disk.join()


class NewFile:
    """A file being written; it gets its final name in :meth:`commit`, or never.

    Parameters
    ----------
    root : Location
        The run's folder.
    path : str
        Where the file will be, relative to ``root``.
    durable : bool
        Whether it must outlive a loss of power.

    Attributes
    ----------
    stream : binary file
        To write to, from the beginning to the end.
    """

    def __init__(self, root: Location, path: str, *, durable: bool = True) -> None:
        self._target = root.join(path)
        self._path = path
        self._durable = durable
        if self._target.is_local:
            folder = os.path.dirname(self._target.path)
            os.makedirs(folder, exist_ok=True)
            self._temporary = os.path.join(folder, f".{self._target.name}.{uuid.uuid4().hex}.tmp")
        else:
            descriptor, self._temporary = tempfile.mkstemp(prefix="batch-explain-")
            os.close(descriptor)
        self._file = _HashedFile(self._temporary)
        self.stream: BinaryIO = io.BufferedWriter(self._file, _BUFFER_BYTES)

    def commit(self) -> FileRecord:
        """Make the file durable and give it its name."""
        try:
            self.stream.flush()
            if self._durable:
                self._file.sync()
            self._file.close()
            record = FileRecord(self._path, self._file.bytes, self._file.sha256)
            if self._target.is_local:
                os.replace(self._temporary, self._target.path)
                if self._durable:
                    _fsync_folder(os.path.dirname(self._target.path))
            else:
                self._target.fs.put_file(self._temporary, self._target.path)
                os.remove(self._temporary)
        except BaseException:
            self.abort()
            raise
        return record

    def abort(self) -> None:
        """Remove what was written so far."""
        with suppress(OSError):  # a disk that failed may fail again; the temporary file is then swept by the next run
            self._file.close()
        with suppress(OSError):
            os.remove(self._temporary)


@contextmanager
def new_file(root: Location, path: str) -> Iterator[BinaryIO]:
    """Write a file that appears under its name when the block ends without an error."""
    file = NewFile(root, path)
    try:
        yield file.stream
    except BaseException:
        file.abort()
        raise
    file.commit()


def json_bytes(content: Any) -> bytes:
    """The one form in which a run writes JSON."""
    return b"".join(_json_pieces(content))


def _json_pieces(content: Any) -> Iterator[bytes]:
    """The same, a part at a time: a run of 20,000 partitions has 30 MB of it."""
    tokens = json.JSONEncoder(indent=1, ensure_ascii=False, allow_nan=False).iterencode(content)
    while piece := "".join(islice(tokens, _TOKENS)):
        yield piece.encode()
    yield b"\n"


def write_json(root: Location, path: str, content: dict[str, Any]) -> FileRecord:
    """Write a JSON file atomically; NaN is refused because JSON has none."""
    return _write(root, path, _json_pieces(content))


def write_bytes(root: Location, path: str, content: bytes) -> FileRecord:
    """Write a file atomically."""
    return _write(root, path, [content])


def _write(root: Location, path: str, pieces: Iterable[bytes]) -> FileRecord:
    file = NewFile(root, path)
    try:
        for piece in pieces:
            file.stream.write(piece)
    except BaseException:
        file.abort()
        raise
    return file.commit()


def sha256_of(location: Location) -> str:
    """SHA-256 of a file, in hex."""
    with location.open() as stream:
        return _digest(stream)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _fsync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
