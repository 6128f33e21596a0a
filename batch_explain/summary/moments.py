"""Moments of many series of importances, merged from batches to partitions to the whole run.

Merging is done in partition order, so that the result has the same bytes whatever order the tasks ran in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_MANY_ROWS = 1_000  # of a group: its moments are taken at once, those of smaller groups together


@dataclass(frozen=True)
class Moments:
    """Statistics of series of values, each array of shape (series,).

    Parameters
    ----------
    count : ndarray of int64
        Values.
    mean, m2 : ndarray
        Mean, and sum of squared deviations from it.
    absolute : ndarray
        Sum of absolute values.
    minimum, maximum : ndarray
        Infinite while ``count`` is 0.
    positive : ndarray of int64
        Values above 0.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    absolute: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    positive: np.ndarray

    @classmethod
    def empty(cls, series: int) -> "Moments":
        """Moments of no values."""
        return cls(
            np.zeros(series, np.int64), np.zeros(series), np.zeros(series), np.zeros(series), np.full(series, np.inf),
            np.full(series, -np.inf), np.zeros(series, np.int64),
        )  # fmt: skip

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Moments of a batch, shape (series, row)."""
        series, rows = values.shape
        moments = cls.empty(series)
        if rows == 0:
            return moments
        moments.count[:] = rows
        scratch = np.empty(rows)
        # series by series: all passes over one find it in the cache
        for at, row in enumerate(values):
            mean = np.add.reduce(row) / rows
            np.subtract(row, mean, out=scratch)
            np.square(scratch, out=scratch)
            moments.mean[at], moments.m2[at] = mean, np.add.reduce(scratch)
            np.abs(row, out=scratch)
            moments.absolute[at] = np.add.reduce(scratch)
            # + 0.0: which of two zeros is the least depends on the CPU
            moments.minimum[at], moments.maximum[at] = np.minimum.reduce(row) + 0.0, np.maximum.reduce(row) + 0.0
            moments.positive[at] = np.count_nonzero(row > 0)
        return moments

    @classmethod
    def by_group(cls, values: np.ndarray, groups: np.ndarray, starts: np.ndarray, of: int) -> "Moments":
        """Moments of each group of rows.

        Parameters
        ----------
        values : ndarray, shape (series, row)
            The rows sorted by group.
        groups, starts : ndarray of int
            Numbers of the groups that have rows, and where each one's rows begin.
        of : int
            How many groups there are.

        Returns
        -------
        Moments
            Of ``of`` x series, the groups one after the other.
        """
        series, rows = values.shape
        moments = cls.empty(of * series)
        if not rows:
            return moments
        sizes = np.diff(starts, append=rows)
        if len(groups) * _MANY_ROWS <= rows:
            found = {name: getattr(moments, name).reshape(of, series) for name in ("count", *_ARRAYS)}
            for group, start, size in zip(groups, starts, sizes, strict=True):
                part = cls.of(values[:, start : start + size])
                for name, array in found.items():
                    array[group] = getattr(part, name)
            return moments
        moments.count.reshape(of, series)[groups] = sizes[:, None]
        found = {name: getattr(moments, name).reshape(of, series) for name in _ARRAYS}
        scratch = np.empty(rows)
        for at, row in enumerate(values):
            mean = np.add.reduceat(row, starts) / sizes
            np.subtract(row, np.repeat(mean, sizes), out=scratch)
            np.square(scratch, out=scratch)
            found["mean"][groups, at], found["m2"][groups, at] = mean, np.add.reduceat(scratch, starts)
            np.abs(row, out=scratch)
            found["absolute"][groups, at] = np.add.reduceat(scratch, starts)
            found["minimum"][groups, at] = np.minimum.reduceat(row, starts) + 0.0
            found["maximum"][groups, at] = np.maximum.reduceat(row, starts) + 0.0
            found["positive"][groups, at] = np.add.reduceat((row > 0).astype(np.int64), starts)
        return moments

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of values (Chan, Golub and LeVeque, 1979, for mean and m2)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / np.maximum(count, 1)
        return Moments(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + delta * (delta * (self.count * share)),
            self.absolute + other.absolute,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.positive + other.positive,
        )

    @classmethod
    def joined(cls, pieces: Sequence["Moments"]) -> "Moments":
        """The series of all, one after the other."""
        names = ("count", *_ARRAYS)
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))

    def of_series(self, start: int, stop: int) -> "Moments":
        """Some of the series."""
        return Moments(*(getattr(self, name)[start:stop] for name in ("count", *_ARRAYS)))

    def to_table(self) -> pa.Table:
        """As one row for each series, for a partial summary."""
        return pa.table({name: getattr(self, name) for name in ("count", *_ARRAYS)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Moments":
        """Read :meth:`to_table`'s rows back."""
        return cls(*(table[name].to_numpy() for name in ("count", *_ARRAYS)))


_ARRAYS = ("mean", "m2", "absolute", "minimum", "maximum", "positive")
