"""What a file of rows can be, chosen by its name: one object for each format."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import pyarrow as pa

from batch_explain.storage.filesystems import Location

# what a damaged file makes its readers raise; Arrow's exceptions are among them
DAMAGE = (OSError, EOFError, ValueError, zlib.error, pa.ArrowException)
_DIGITS = 32


class FormatError(ValueError):
    """A file is not what its name says; the message says what is wrong, and where in the file."""


class ChangedError(Exception):
    """A file is another one than it was when it was looked at."""


@dataclass(frozen=True)
class Block:
    """Whole rows of a file that has no footer: one of its row groups.

    Parameters
    ----------
    offset, bytes : int
        Where it stands (of a compressed file: in what is unpacked), and its length.
    digest : str
        Of its bytes, and of what stands before the first row.
    """

    offset: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Parameters
    ----------
    row_groups : tuple of int
        Rows of each row group: what can be read without reading what stands before it.
    fingerprint : str
        Another content has another one.
    schema : pyarrow.Schema
        Its columns. Of text: their types are inferred from all of its rows.
    blocks : tuple of Block
        One for each row group; none where there is a footer.
    description : str or None
        What a run that wrote the file says of it, as JSON.
    """

    row_groups: tuple[int, ...]
    fingerprint: str
    schema: pa.Schema = field(repr=False)
    blocks: tuple[Block, ...] = ()
    description: str | None = field(repr=False, default=None)


class Format(Protocol):
    """How files of a format are looked at, and read."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def types_are_inferred(self) -> bool:
        """Whether the files do not tell the types of their columns."""

    @property
    def has_statistics(self) -> bool:
        """Whether row groups tell what values they may hold."""

    def look(self, stream: BinaryIO) -> Content:
        """Find what a file holds; OSError, ArrowException or ValueError where it is damaged."""

    def read(
        self, place: Location, content: Content, groups: list[int], columns: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Read columns of some row groups, which follow each other.

        ChangedError where the file is not the one that was looked at. A column that is there twice, or nested, may
        bring others with it.
        """

    def joined(self, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
        """The type of a column that has one type in some rows and another in others; None: there is none."""


def digest_of(header: bytes, data: bytes) -> str:
    """A block's digest."""
    digest = hashlib.sha256(header)
    digest.update(data)
    return digest.hexdigest()[:_DIGITS]


def format_of(path: str) -> Format:
    """The format that a file's name tells; parquet where it tells none."""
    # each of them imports this module
    from batch_explain.storage.arrow_files import ARROW
    from batch_explain.storage.csv_files import CSV, TSV
    from batch_explain.storage.json_files import JSON_LINES
    from batch_explain.storage.parquet_files import PARQUET

    endings: dict[str, Format] = {
        "csv": CSV, "tsv": TSV, "jsonl": JSON_LINES, "ndjson": JSON_LINES, "json": JSON_LINES,
        "arrow": ARROW, "feather": ARROW, "ipc": ARROW,
    }  # fmt: skip
    name = path.rsplit("/", 1)[-1].lower().removesuffix(".gz")
    return endings.get(name.rpartition(".")[2], PARQUET)
