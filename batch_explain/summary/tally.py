"""What is summarised, as one list of series, and the statistics of all of them, added up batch by batch.

A *block* is one level's importances in one cohort (or in all rows): groups x outputs x features. The blocks of a run
follow each other, and so all statistics of a run are a few flat arrays, which merge element by element.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batch_explain.summary.cohorts import Cohort
from batch_explain.summary.moments import Moments
from batch_explain.summary.quantiles import Buckets, counter

SERIES_BYTES = 10_000  # of a worker, for the counts of one series
MAX_QUANTILE_SERIES = 10_000
_ALL = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Block:
    """One level in one cohort.

    Parameters
    ----------
    cohort : Cohort or None
        None: all rows.
    level : str
    start : int
        Its first series.
    groups, outputs, features : int
    quantiles : bool
        Whether they are counted.
    """

    cohort: Cohort | None
    level: str
    start: int
    groups: int
    outputs: int
    features: int
    quantiles: bool

    @property
    def stop(self) -> int:
        """Behind its last series."""
        return self.start + self.groups * self.outputs * self.features


@dataclass(frozen=True)
class Layout:
    """All blocks, in order."""

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, cohorts: Sequence[Cohort], features: Mapping[str, int], outputs: int) -> "Layout":
        """Blocks of all rows, then those of each cohort; ``features``: level -> number of computed features."""
        blocks: list[Block] = []
        start = counted = 0
        for cohort in (None, *cohorts):
            for level, number in features.items():
                groups = 1 if cohort is None else len(cohort.labels)
                size = groups * outputs * number
                quantiles = counted + size <= MAX_QUANTILE_SERIES
                counted += size * quantiles
                blocks.append(Block(cohort, level, start, groups, outputs, number, quantiles))
                start += size
        return cls(tuple(blocks))

    @property
    def series(self) -> int:
        """Of all blocks."""
        return self.blocks[-1].stop if self.blocks else 0

    def decisions(self) -> list[str]:
        """What is left out, because it would take too much memory."""
        return [
            f"{block.level} summaries {'of all rows' if block.cohort is None else f'by {block.cohort.name!r}'} have no "
            f"quantiles: all together there would be more than {MAX_QUANTILE_SERIES:,} series"
            for block in self.blocks
            if not block.quantiles
        ]


@dataclass(frozen=True)
class Statistics:
    """Moments and bucket counts of a layout's series."""

    moments: Moments
    buckets: Buckets

    @classmethod
    def empty(cls, layout: Layout) -> "Statistics":
        """Of no rows."""
        return cls(Moments.empty(layout.series), Buckets.empty())

    def merge(self, other: "Statistics") -> "Statistics":
        """Of both sets of rows."""
        return Statistics(self.moments.merge(other.moments), self.buckets.merge(other.buckets))


class Tally:
    """Adds batches up.

    Parameters
    ----------
    layout : Layout
    whole_run : bool
        Whether there may be more than 2^32 rows.
    """

    def __init__(self, layout: Layout, *, whole_run: bool = False) -> None:
        self._layout = layout
        self._moments = Moments.empty(layout.series)
        counted = [block.stop for block in layout.blocks if block.quantiles]
        self._counter = counter(max(counted, default=0), wide=whole_run)

    def add_statistics(self, other: Statistics) -> None:
        """Add what another tally found."""
        self._moments = self._moments.merge(other.moments)
        self._counter.add_counts(other.buckets.codes, other.buckets.counts)

    def add(self, values: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray]) -> None:
        """Add a batch.

        Parameters
        ----------
        values : mapping
            Level -> importances, shape (output, feature, row).
        codes : mapping
            Cohort's name -> number of each row's group.
        """
        found = []
        flat = {
            level: np.ascontiguousarray(array).reshape(array.shape[0] * array.shape[1], array.shape[2])
            for level, array in values.items()
        }
        for cohort, blocks in _by_cohort(self._layout.blocks):
            groups = starts = _ALL
            ordered = flat
            if cohort is not None:
                order = np.argsort(codes[cohort.name], kind="stable")
                groups, starts = np.unique(codes[cohort.name][order], return_index=True)
                if len(groups) != 1:
                    ordered = {level: _in_order(array, order) for level, array in flat.items()}
            for block in blocks:
                rows = ordered[block.level]
                found.append(
                    Moments.of(rows) if cohort is None else Moments.by_group(rows, groups, starts, block.groups)
                )
                if block.quantiles and rows.size:
                    self._counter.add(rows, block.start, groups, starts)
        if found:
            self._moments = self._moments.merge(Moments.joined(found))

    def statistics(self) -> Statistics:
        """Of all batches."""
        return Statistics(self._moments, Buckets(*self._counter.sparse()))


def _by_cohort(blocks: Iterable[Block]) -> list[tuple[Cohort | None, list[Block]]]:
    found: dict[str | None, tuple[Cohort | None, list[Block]]] = {}
    for block in blocks:
        found.setdefault(block.cohort.name if block.cohort else None, (block.cohort, []))[1].append(block)
    return list(found.values())


def _in_order(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    ordered = np.empty_like(values)
    for row, target in zip(values, ordered, strict=True):
        np.take(row, order, out=target, mode="clip")
    return ordered
