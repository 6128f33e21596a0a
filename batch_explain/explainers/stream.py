"""The bytes of a pickle file, decompressed as they are read, with a bound on what may come out of a small file."""

import bz2
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import Any

from batch_explain.errors import ArtifactError

# What joblib writes, and gzip, by their first bytes.
_COMPRESSED = (
    (b"\x78", "zlib"),
    (b"\x1f\x8b", "gzip"),
    (b"BZ", "bz2"),
    (b"\x5d\x00", "lzma"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)

MOST_EXPANSION = 200  # genuine models come out 3 to 30 times as large as their file
ALWAYS_ALLOWED = 64_000_000  # bytes
MOST_BYTES = 16_000_000_000
_LZMA_MEMORY = 256_000_000  # bytes; the highest preset needs 65 MB
_CHUNK = 1 << 20  # bytes


def compression_of(data: bytes) -> str | None:
    """The compression of a file: ``zlib``, ``gzip``, ``bz2``, ``lzma``, ``xz``, ``lz4``; None: not compressed."""
    return next((name for prefix, name in _COMPRESSED if data.startswith(prefix)), None)


class PickleStream:
    """What a pickle file holds, from its beginning to its end.

    Parameters
    ----------
    data : bytes
        The file.

    Raises
    ------
    ArtifactError
        While reading: if it expands beyond every measure.
    EOFError, zlib.error, lzma.LZMAError, OSError
        While reading: if it is damaged. No memory is taken for what is announced, only for what is there.
    """

    def __init__(self, data: bytes) -> None:
        self.compression = compression_of(data)
        self._most = min(MOST_BYTES, max(ALWAYS_ALLOWED, MOST_EXPANSION * len(data)))
        self._size = len(data)
        self._chunks = iter((data,)) if self.compression is None else _inflated(data, self.compression)
        self._current = memoryview(b"")
        self._seen = 0

    def read(self, size: int) -> bytes:
        """The next bytes, all of them."""
        return bytes(self._take(size) if size <= len(self._current) else self.read_buffer(size))

    def read_buffer(self, size: int) -> bytearray:
        """The next bytes, all of them, in memory that may be written to."""
        found = bytearray()
        while len(found) < size:
            if not self._current and not self._next_chunk():
                raise EOFError("the file ends early")
            found += self._take(size - len(found))
        return found

    def readline(self) -> bytes:
        """The bytes up to the next end of line, or of the file."""
        line = bytearray()
        while self._current or self._next_chunk():
            found = re.search(b"\n", self._current)
            line += self._take(len(self._current) if found is None else found.end())
            if found is not None:
                break
        return bytes(line)

    def _take(self, most: int) -> memoryview:
        found, self._current = self._current[:most], self._current[most:]
        return found

    def _next_chunk(self) -> bool:
        for chunk in self._chunks:
            self._seen += len(chunk)
            if self.compression is not None and self._seen > self._most:
                raise ArtifactError(
                    f"the {self.compression} file of {self._size:,} bytes expands to more than {self._most:,} bytes, "
                    f"more than {MOST_EXPANSION} times its size, as no model does. If it is genuine, write it again "
                    "without compression"
                )
            if chunk:
                self._current = memoryview(chunk)
                return True
        return False


def _inflated(data: bytes, compression: str) -> Iterator[bytes]:
    while data:
        inflater = _decompressor(compression)
        given = data
        while True:
            yield inflater.decompress(given, _CHUNK)
            if inflater.eof:
                break
            given = getattr(inflater, "unconsumed_tail", b"")
            if not given and getattr(inflater, "needs_input", True):
                raise EOFError("the compressed file ends early")
        data = inflater.unused_data or b""
        if data and compression_of(data) != compression:  # a trailer of another kind
            return


def _decompressor(compression: str) -> Any:
    if compression in ("zlib", "gzip"):
        return zlib.decompressobj(31 if compression == "gzip" else 15)
    if compression == "bz2":
        return bz2.BZ2Decompressor()
    if compression == "lz4":
        try:
            from lz4.frame import LZ4FrameDecompressor
        except ImportError:
            raise ArtifactError("it is compressed by lz4, which needs 'pip install lz4'") from None
        return LZ4FrameDecompressor()
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_LZMA_MEMORY)
