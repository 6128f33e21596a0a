"""What formats of text have in common: blocks of whole rows, each read alone; gzip; types that all rows agree on."""

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from batch_explain.storage.filesystems import Location
from batch_explain.storage.formats import Block, ChangedError, Content, FormatError, digest_of

_BLOCK_BYTES = 4 << 20
MOMENT = pa.timestamp("ns")  # what a text that is a date or a time is read as
_GZIP = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Dialect(Protocol):
    """A format of text: what it must say of itself, and what all of them share."""

    name: str
    has_statistics: bool = False
    types_are_inferred: bool = True

    def look(self, stream: BinaryIO) -> Content:
        """See :func:`look`."""
        return look(self, stream)

    def read(
        self, place: Location, content: Content, groups: list[int], columns: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """See :func:`read`."""
        return read(self, place, content, groups, columns, batch_rows)

    def header_end(self, beginning: bytes) -> int:
        """How many bytes stand before the first row; -1: its end is not among these bytes."""

    def rows_end(self, data: bytes) -> int:
        """How many bytes of data that begins with a row are whole rows that end in a line break."""

    def names(self, header: bytes) -> list[str]:
        """The columns that the header names; none where there is no header."""

    def types(self, block: bytes, header: bytes, before: int, known: list[pa.DataType]) -> tuple[int, pa.Schema]:
        """The number of a block's rows, and its columns with the narrowest types.

        ``before``: rows before it; ``known``: the columns' types there, where the header names columns.
        """

    def parse(self, block: bytes, header: bytes, columns: list[str], schema: pa.Schema) -> pa.Table:
        """Columns of a block's rows, in the types that the schema says."""

    def joined(self, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
        """See :class:`batch_explain.storage.formats.Format`."""


def look(dialect: Dialect, stream: BinaryIO) -> Content:
    """Count and infer: one pass over all rows, a block in memory."""
    size = stream.seek(0, 2)
    stream.seek(0)
    whole = hashlib.sha256(f"{size}:".encode())
    rows: list[int] = []
    blocks: list[Block] = []
    found: dict[int, pa.Field] = {}  # by position: names may repeat
    place: dict[str, int] = {}
    with _unpacked(stream) as plain:
        header = _header(dialect, plain)
        named = bool(dialect.names(header))
        whole.update(header)
        for offset, data in _cut(dialect, plain, len(header)):
            whole.update(data)
            _check_text(dialect, data, sum(rows))
            known = [found[at].type for at in sorted(found)] if named else []
            number, schema = dialect.types(data, header, sum(rows), known)
            for position, field in enumerate(schema):
                at = position if named else place.setdefault(field.name, len(place))
                before = found.setdefault(at, field)
                kind = dialect.joined(before.type, field.type)
                if kind is None:
                    raise FormatError(
                        f"column '{field.name}' is {before.type} before row {sum(rows)} and {field.type} after it"
                    )
                found[at] = field.with_type(kind)
            rows.append(number)
            blocks.append(Block(offset, len(data), digest_of(header, data)))
    if not rows:  # its columns, of which nothing is known
        found = {at: pa.field(name, pa.null()) for at, name in enumerate(dialect.names(header))}
    schema = pa.schema([found[at] for at in sorted(found)])
    return Content(tuple(rows), whole.hexdigest(), schema, tuple(blocks))


def read(
    dialect: Dialect, place: Location, content: Content, groups: list[int], columns: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read blocks: a compressed file is unpacked from its beginning, of any other the bytes before are not read."""
    with place.open() as stream, _unpacked(stream) as plain:
        header = _header(dialect, plain)
        for group in groups:
            block = content.blocks[group]
            plain.seek(block.offset)
            data = plain.read(block.bytes)
            if digest_of(header, data) != block.digest:
                raise ChangedError
            yield from dialect.parse(data, header, columns, content.schema).to_batches(batch_rows)


@contextmanager
def _unpacked(stream: BinaryIO) -> Iterator[BinaryIO]:
    packed = stream.read(len(_GZIP)) == _GZIP
    stream.seek(0)
    if not packed:
        yield stream
        return
    with gzip.GzipFile(fileobj=cast(Any, stream)) as plain:
        yield cast(BinaryIO, plain)


def _header(dialect: Dialect, stream: BinaryIO) -> bytes:
    beginning = b""
    while (end := dialect.header_end(beginning)) < 0:
        more = stream.read(_BLOCK_BYTES)
        if not more:
            end = len(beginning)
            break
        beginning += more
    stream.seek(end)
    return beginning[:end]


def _cut(dialect: Dialect, stream: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole rows, with their offsets; a row that is longer than a block is one."""
    held = b""
    while more := stream.read(_BLOCK_BYTES):
        held += more
        if end := dialect.rows_end(held):
            yield offset, held[:end]
            offset += end
            held = held[end:]
    if held.strip():
        yield offset, held


def _check_text(dialect: Dialect, data: bytes, before: int) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        row = before + data[: dialect.rows_end(data[: error.start])].count(b"\n")
        raise FormatError(f"row {row} or one close to it is not UTF-8") from None
