"""Arrow IPC: files (Feather) and streams, read as what both are: messages, whose record batches are the row groups."""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from batch_explain.storage.filesystems import Location
from batch_explain.storage.formats import Block, ChangedError, Content, FormatError, digest_of

_MAGIC, _PADDED = b"ARROW1", 8  # what a file begins with (and ends with), where a stream begins at once
_ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")


class _Arrow:
    name = "Arrow IPC"
    has_statistics = False
    types_are_inferred = False

    def look(self, stream: BinaryIO) -> Content:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 8))
        ending = stream.read(8)
        source = _source(stream)
        if not ending.endswith(_MAGIC if source.tell() else _ENDS):
            raise FormatError("it does not end as an Arrow file or stream does: it is another one, or was cut off")
        whole = hashlib.sha256(f"{size}:".encode())
        beginning, rows, blocks = b"", list[int](), list[Block]()
        for offset, message in _messages(source):
            data = message.serialize().to_pybytes()
            whole.update(data)
            if message.type == "record batch":
                blocks.append(Block(offset, len(data), digest_of(beginning, data)))
                rows.append(_batch(beginning, data, [0]).num_rows)
            elif blocks:
                raise FormatError(f"a {message.type} follows after rows: write each column with one dictionary")
            else:
                beginning += data
        schema = pa.ipc.open_stream(pa.BufferReader(beginning)).schema
        return Content(tuple(rows), whole.hexdigest(), schema.remove_metadata(), tuple(blocks))

    def read(
        self, place: Location, content: Content, groups: list[int], columns: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Each record batch is in memory as a whole."""
        with place.open_arrow() as stream:
            beginning, names = b"", list[str]()
            for _, message in _messages(_source(stream)):
                if message.type == "record batch":
                    break
                beginning += message.serialize().to_pybytes()
            for group in groups:
                block = content.blocks[group]
                stream.seek(block.offset)
                data = stream.read(block.bytes)
                if digest_of(beginning, data) != block.digest:
                    raise ChangedError
                names = names or pa.ipc.open_stream(pa.BufferReader(beginning)).schema.names
                batch = _batch(beginning, data, [names.index(name) for name in columns] or [0])
                for start in range(0, batch.num_rows, batch_rows):
                    yield batch.slice(start, batch_rows)

    def joined(self, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
        return one if one == other else None


ARROW = _Arrow()


def _source(stream: BinaryIO) -> pa.NativeFile:
    """The stream as pyarrow takes it, at its first message."""
    source = stream if isinstance(stream, pa.NativeFile) else pa.PythonFile(stream, mode="r")
    source.seek(0)
    source.seek(_PADDED if source.read(len(_MAGIC)) == _MAGIC else 0)
    return source


def _messages(source: pa.NativeFile) -> Iterator[tuple[int, pa.Message]]:
    while True:
        offset = source.tell()
        try:
            yield offset, pa.ipc.read_message(source)
        except EOFError:
            return


def _batch(beginning: bytes, data: bytes, columns: list[int]) -> pa.RecordBatch:
    """A record batch, of a stream that has no other."""
    # not in Arrow's threads, for the reason that parquet_files.open_parquet gives
    options = pa.ipc.IpcReadOptions(included_fields=sorted(columns), use_threads=False)
    return pa.ipc.open_stream(pa.BufferReader(beginning + data), options=options).read_next_batch()
