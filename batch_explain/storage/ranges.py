"""A file that is read range by range: where the next range goes on, what is decoded already is not decoded again."""

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from batch_explain.storage.filesystems import Location
from batch_explain.storage.formats import Content, Format

_VERSION_FACTS = ("ino", "mtime", "created", "etag", "ETag", "last_modified", "LastModified")

_open: dict[int, "Reading"] = {}  # of each thread, the file that it read last and may go on with


class Reading:
    """Row groups of a file, read in order from a row on.

    Parameters
    ----------
    place : Location
    form : Format
    content : Content
    groups : list of int
        To the end of the file, or to where a filter skips row groups.
    position : int
        The first row of the first group; then the row that comes next.
    stop : int
        Where the first range ends.
    columns : list of str
    batch_rows : int
    """

    def __init__(
        self,
        place: Location,
        form: Format,
        content: Content,
        groups: list[int],
        position: int,
        stop: int,
        columns: list[str],
        batch_rows: int,
    ) -> None:
        self.position = position
        self.end = position + sum(content.row_groups[group] for group in groups)
        self._what = (place.url, content.fingerprint, tuple(columns), batch_rows)
        # asked before it is opened, and not where nothing is left to go on with: it is a request
        self._version = _version(place) if stop < self.end else None
        self._batches = _closable(form.read(place, content, groups, columns, batch_rows))
        self._left: pa.RecordBatch | None = None

    def goes_on(
        self, place: Location, content: Content, first: int, start: int, stop: int, columns: list[str], batch_rows: int
    ) -> bool:
        """Whether a range, whose row group begins at ``first``, can be had from here with less decoding than anew."""
        if self._what != (place.url, content.fingerprint, tuple(columns), batch_rows):
            return False
        if not first <= self.position <= start or stop > self.end or self._version is None:
            return False
        return self._version == _version(place)

    def until(self, stop: int) -> Iterator[pa.RecordBatch]:
        """Batches up to a row; ``position`` is behind each when it is given."""
        while self.position < stop:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                return
            here = batch.slice(0, stop - self.position)
            self._left = batch.slice(here.num_rows) if here.num_rows < batch.num_rows else None
            self.position += here.num_rows
            yield here

    def close(self) -> None:
        """Close the file."""
        with suppress(ValueError):  # another thread is at it
            self._batches.close()


def _closable(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch, None, None]:
    yield from batches


def last_reading() -> Reading | None:
    """What this thread left open, taken out."""
    return _open.pop(threading.get_ident(), None)


def keep(reading: Reading) -> None:
    """Leave it open for this thread's next range, where it has more rows."""
    if reading.position >= reading.end:
        reading.close()
        return
    _open[threading.get_ident()] = reading


def let_go(*, mine: bool = False) -> None:
    """Close what any thread left open, or what this one did."""
    for thread in [threading.get_ident()] if mine else list(_open):
        if (reading := _open.pop(thread, None)) is not None:
            reading.close()


def _version(place: Location) -> tuple[Any, ...] | None:
    """What changes when a file is written again; None where its storage does not tell."""
    try:
        facts = place.fs.info(place.path)
    except OSError:
        return None
    version = tuple(str(facts[name]) for name in _VERSION_FACTS if name in facts)
    return (facts.get("size"), *version) if version else None
