"""Files that are there whole or not at all.

Locally: temporary file in the same folder, fsync, rename, fsync of the folder. On object stores: built in a local
temporary file, then uploaded once (an exception inside an fsspec write would publish half an object).
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from batch_explain.storage.filesystems import Location

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """A finished file: path relative to the run's folder, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class NewFile:
    """A file being written; it gets its final name in :meth:`commit`, or never.

    Parameters
    ----------
    root : Location
        The run's folder.
    path : str
        Where the file will be, relative to ``root``.
    """

    def __init__(self, root: Location, path: str) -> None:
        self._target = root.join(path)
        self._path = path
        if self._target.is_local:
            folder = os.path.dirname(self._target.path)
            os.makedirs(folder, exist_ok=True)
            self._temporary = os.path.join(folder, f".{self._target.name}.{uuid.uuid4().hex}.tmp")
        else:
            descriptor, self._temporary = tempfile.mkstemp(prefix="batch-explain-")
            os.close(descriptor)
        self.stream: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115 - closed by commit or abort

    def commit(self) -> FileRecord:
        """Make the file durable and give it its name."""
        try:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            record = FileRecord(self._path, os.path.getsize(self._temporary), _sha256(self._temporary))
            if self._target.is_local:
                os.replace(self._temporary, self._target.path)
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
        self.stream.close()
        with suppress(FileNotFoundError):
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


def write_json(root: Location, path: str, content: dict[str, Any]) -> FileRecord:
    """Write a JSON file atomically; NaN is refused because JSON has none."""
    file = NewFile(root, path)
    try:
        file.stream.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    except BaseException:
        file.abort()
        raise
    return file.commit()


def sha256_of(location: Location) -> str:
    """SHA-256 of a file, in hex."""
    with location.open() as stream:
        return _digest(stream)


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
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
