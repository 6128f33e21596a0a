"""Parquet files: what their footers say, and their row groups, streamed."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.storage.filesystems import Location
from batch_explain.storage.formats import ChangedError, Content
from batch_explain.storage.tables import METADATA_KEY

READ_BYTES = 64 << 20  # of all columns together, while a file is read
_BUFFER_BYTES, _SMALLEST_BUFFER = 1 << 20, 16 << 10  # of one column


class _Parquet:
    name = "parquet"
    has_statistics = True
    types_are_inferred = False

    def __init__(self) -> None:
        self._footer: tuple[str, pq.FileMetaData] | None = None

    def look(self, stream: BinaryIO) -> Content:
        parquet = open_parquet(stream)
        metadata, schema = parquet.metadata, parquet.schema_arrow
        return Content(
            row_groups=tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)),
            fingerprint=footer_fingerprint(stream, 8),
            schema=schema.remove_metadata(),
            description=(schema.metadata or {}).get(METADATA_KEY, b"").decode(errors="replace") or None,
        )

    def read(
        self, place: Location, content: Content, groups: list[int], columns: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Column chunks are streamed, so memory depends on ``batch_rows`` and the width, not on the row group's size.

        A range inside a row group decodes and drops the rows before it: parquet pages cannot be sought by row here.
        """
        with place.open_arrow() as stream:
            if footer_fingerprint(stream, 8) != content.fingerprint:
                raise ChangedError
            buffer = min(_BUFFER_BYTES, max(_SMALLEST_BUFFER, READ_BYTES // max(1, len(columns))))
            footer = self._footer_of(content.fingerprint, stream)
            parquet = open_parquet(stream, metadata=footer, buffer_size=buffer)
            for group in groups:  # one by one: a batch over several would read behind the range that is asked for
                yield from parquet.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False)

    def _footer_of(self, fingerprint: str, stream: BinaryIO) -> pq.FileMetaData:
        """The footer, parsed; that of the last file is kept, because tasks of one file follow each other.

        One alone, and let go of before the next is parsed: of many columns and row groups it takes 100 MB.
        """
        known = self._footer
        if known is None or known[0] != fingerprint:
            known = self._footer = None
            known = self._footer = (fingerprint, pq.read_metadata(stream))
        return known[1]

    def joined(self, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
        return one if one == other else None


PARQUET = _Parquet()


def read_parquet(place: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole parquet file, in this thread alone, for the reason that :func:`open_parquet` gives.

    Parameters
    ----------
    place : Location
    columns : sequence of str, optional
        Those to read, in this order, as far as the file has them. All where it is left out.

    Raises
    ------
    OSError, pyarrow.ArrowException
        If it is not there, or not readable parquet.
    """
    with place.open_arrow() as stream:
        return open_parquet(stream).read(columns=columns, use_threads=False)


def open_parquet(stream: Any, **options: Any) -> pq.ParquetFile:
    """Open a parquet file so that Arrow's own threads keep off it; pass ``use_threads=False`` to what reads its rows.

    Those threads (the scanner's in :func:`pyarrow.parquet.read_table`, those of ``pre_buffer``, which newer pyarrow has
    by default, and those of ``use_threads``) hold a Python stream, or bytes that it gave, and may let go of them after
    the rows are there. Where Python is ending by then, it ends the thread inside C++, and the process aborts.

    Parameters
    ----------
    stream : binary file, or pyarrow.NativeFile
    **options
        Those of :class:`pyarrow.parquet.ParquetFile`.
    """
    return pq.ParquetFile(stream, pre_buffer=False, **options)


def footer_fingerprint(stream: BinaryIO, ending: int) -> str:
    """SHA-256 over a file's size and its footer, whose length stands first in its last ``ending`` bytes."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - ending))
    footer_bytes = int.from_bytes(stream.read(ending)[:4], "little") + ending
    stream.seek(max(0, size - footer_bytes))
    return hashlib.sha256(f"{size}:".encode() + stream.read()).hexdigest()
