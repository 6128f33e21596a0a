"""Partitions: what one task explains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batch_explain.storage.dataset import InputFile


class Partition(Protocol):
    """Rows that one task explains, as one part of each table."""

    @property
    def index(self) -> int:
        """Its number, and that of its parts."""

    @property
    def rows(self) -> int:
        """Rows to explain."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Files that its rows are in."""

    @property
    def name(self) -> str:
        """What it holds, for people; begins a sentence."""

    def batches(self, batch_rows: int) -> int:
        """In how many batches it is explained."""


@dataclass(frozen=True)
class FilePartition:
    """Contiguous rows of one file."""

    index: int
    file: InputFile
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def paths(self) -> tuple[str, ...]:
        """Its file."""
        return (self.file.path,)

    @property
    def name(self) -> str:
        """See :class:`Partition`."""
        return f"Rows {self.start} to {self.stop} of {self.file.path} (partition {self.index})"

    @property
    def begins_inside(self) -> bool:
        """Whether it begins inside a row group."""
        return self.start not in self.file.edges

    def batches(self, batch_rows: int) -> int:
        """See :class:`Partition`."""
        return -(-self.rows // batch_rows)


def cut(files: Sequence[InputFile], partition_rows: int, limit: int | None = None) -> list[FilePartition]:
    """Cut files into partitions of whole row groups, or of row ranges where a row group is too large.

    An empty dataset gets one partition without rows, so that its tables exist with their columns.
    """
    partitions: list[FilePartition] = []
    left = sum(file.rows for file in files) if limit is None else limit
    for file in files:
        ranges = [
            (first + start, first + stop)
            for first, row_groups in file.stretches
            for start, stop in _ranges(row_groups, partition_rows)
        ]
        for start, stop in ranges:
            stop = min(stop, start + left)
            if not left:
                return partitions
            if stop > start:
                partitions.append(FilePartition(len(partitions), file, start, stop))
                left -= stop - start
    return partitions or [FilePartition(0, files[0], 0, 0)]


def _ranges(row_groups: Sequence[int], largest: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    for rows in row_groups:
        if stop > start and stop + rows - start > largest:
            ranges.append((start, stop))
            start = stop
        stop += rows
        while stop - start > largest:
            ranges.append((start, start + largest))
            start += largest
    if stop > start:
        ranges.append((start, stop))
    return ranges
