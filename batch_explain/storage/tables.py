"""The tables that a run writes: their schemas, and the writer of one partition's parts."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.storage.atomic import FileRecord, NewFile
from batch_explain.storage.filesystems import Location

METADATA_KEY = b"batch_explain"
_LONGEST_LABEL, _KEPT_OF_LABEL = 200, 100  # bytes; file systems allow 255 for a name
SOURCE_IDS = (pa.field("source_file", pa.string()), pa.field("source_row", pa.int64()))


def part_path(folder: str, index: int) -> str:
    """Where a partition's part of a table lies, relative to the run's folder."""
    return f"{folder}/{part_name(index)}.parquet"


def part_name(index: int) -> str:
    """Name of a partition's part, without the ending."""
    return f"part-{index:05d}"


def importance_folder(level: str, output: str | None) -> str:
    """Folder of an importance table: ``level``, or ``level/output=<label>`` where there are several outputs."""
    return level if output is None else f"{level}/output={encode_label(output)}"


def encode_label(label: str) -> str:
    """Percent-encode a class label so that it is one safe folder name (``.`` and ``..`` included).

    What would be too long for a file system is cut, and a digest of the label takes the place of the rest.
    """
    encoded = quote(label, safe="")
    if len(encoded) > _LONGEST_LABEL:
        digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()
        encoded = f"{encoded[:_KEPT_OF_LABEL].rsplit('%', 1)[0]}~{digest[:32]}"
    return encoded.replace(".", "%2E") if not encoded.strip(".") else encoded


@dataclass(frozen=True)
class TableSpec:
    """One table.

    Parameters
    ----------
    folder : str
        Relative to the run's folder; its parts lie directly in it.
    schema : pyarrow.Schema
        Columns in order, the ids first; metadata holds what a reader of a single part needs.
    """

    folder: str
    schema: pa.Schema

    @property
    def repeating(self) -> list[str]:
        """Columns whose values repeat, so that a dictionary makes them small: texts, and all feature values.

        Importances hardly repeat: there, a dictionary would cost more than the rest of the write.
        """
        return [
            f.name
            for f in self.schema
            if self.folder == "features" or pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)
        ]

    @classmethod
    def create(cls, folder: str, fields: Sequence[pa.Field], metadata: dict[str, Any]) -> "TableSpec":
        """Build a spec whose parts carry ``metadata`` as JSON."""
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
        return cls(folder, pa.schema(fields, metadata={METADATA_KEY: text.encode()}))


def write_table(root: Location, path: str, table: pa.Table, **options: Any) -> FileRecord:
    """Write a table atomically; ``options`` are those of :func:`pyarrow.parquet.write_table`."""
    file = NewFile(root, path)
    try:
        pq.write_table(table, file.stream, **options)
    except BaseException:
        file.abort()
        raise
    return file.commit()


class PartWriter:
    """Writes one part of each table; each appears whole in :meth:`commit`, or never.

    Used as a context manager: leaving it without ``commit`` removes everything that was written.
    """

    def __init__(self, root: Location, tables: Sequence[TableSpec], index: int, compression: str | None) -> None:
        self._tables = {table.folder: table for table in tables}
        self._files: dict[str, NewFile] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        try:
            for table in tables:
                file = NewFile(root, part_path(table.folder, index))
                self._files[table.folder] = file
                self._writers[table.folder] = pq.ParquetWriter(
                    file.stream,
                    table.schema,
                    compression=compression or "none",
                    use_dictionary=table.repeating,
                    write_statistics=True,
                )
        except BaseException:
            self._abandon()
            raise

    def write(self, folder: str, columns: list[pa.Array]) -> None:
        """Append rows (one row group) to a table; ``columns`` in the order of its schema."""
        table = pa.Table.from_arrays(columns, schema=self._tables[folder].schema)
        if table.num_rows:
            self._writers[folder].write_table(table, row_group_size=table.num_rows)

    def commit(self) -> list[FileRecord]:
        """Finish all parts and give them their names."""
        for writer in self._writers.values():
            writer.close()
        return [file.commit() for file in self._files.values()]

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Remove what has no final name yet."""
        for writer in self._writers.values():
            # an unfinished one would write its footer into the closed file when it is collected
            with suppress(OSError, ValueError, pa.ArrowException):
                writer.close()
            writer.is_open = False
        for file in self._files.values():
            file.abort()
