"""Chunks: partitions that one task of a cluster does one after the other."""

from collections import deque
from collections.abc import Iterable

from batch_explain.engine.partitions import FilePartition, Partition

MOST = 64  # partitions of a chunk
FEW_ROWS = 10_000  # of all partitions of a chunk
_SHARES = 4  # chunks that each worker still gets, at least: the last ones are small, so that all end together


class Waiting:
    """Partitions that wait for their turn; they are taken in chunks.

    Partitions of few rows share a chunk, because what Dask takes for a task they hardly take themselves. So do the row
    ranges of one row group, because reading one means decoding those before it. Small partitions come last: a large one
    that came last would be waited for.

    Parameters
    ----------
    partitions : iterable of Partition
        In their order.
    """

    def __init__(self, partitions: Iterable[Partition]) -> None:
        self._left = deque(sorted(partitions, key=lambda partition: partition.rows <= FEW_ROWS))

    def __len__(self) -> int:
        return len(self._left)

    def take(self, workers: int) -> list[Partition]:
        """The next chunk for one of so many workers; empty where none waits."""
        most = max(1, min(MOST, len(self._left) // (_SHARES * max(1, workers))))
        chunk: list[Partition] = []
        rows = 0
        while self._left and len(chunk) < most:
            rows += self._left[0].rows
            if chunk and rows > FEW_ROWS and not _goes_on(chunk[-1], self._left[0]):
                break
            chunk.append(self._left.popleft())
        return chunk


def _goes_on(before: Partition, after: Partition) -> bool:
    """Whether a partition begins inside the row group in which the one before ends."""
    if not (isinstance(before, FilePartition) and isinstance(after, FilePartition)):
        return False
    return before.file is after.file and before.stop == after.start and after.begins_inside
