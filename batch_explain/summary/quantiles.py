"""Quantiles from integer counts in logarithmic buckets: mergeable in any order, deterministic to the byte.

The scheme is that of DDSketch (Masson, Rim and Lee, 2019), with its linear interpolation inside an octave, so that a
double's bucket is the upper bits of the double itself: sign, exponent and six bits of the mantissa. A quantile is the
value at rank floor(p x (n - 1)), counted from 0, with a relative error of at most :data:`RELATIVE_ERROR`. Magnitudes
below :data:`SMALLEST` count as zero, those from :data:`LARGEST` on as the last bucket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MANTISSA_BITS, LOWEST, OCTAVES, PLACE_BITS = 6, -40, 128, 15  # as in _native/buckets.cpp
RELATIVE_ERROR = 1 / (2 * 2**MANTISSA_BITS + 1)
SMALLEST, LARGEST = 2.0**LOWEST, 2.0 ** (LOWEST + OCTAVES)

PERCENTS = (1, 5, 25, 50, 75, 95, 99)
ABSOLUTE_PERCENTS = (50, 95)

ZERO_PLACE = OCTAVES << MANTISSA_BITS  # the places of negative values lie before it, of positive ones behind
_SHIFT = 52 - MANTISSA_BITS


@dataclass(frozen=True)
class Buckets:
    """Counts of the values of many series, in those of their buckets that are not empty.

    Parameters
    ----------
    codes : ndarray of int64
        Sorted: ``series << PLACE_BITS | place``, and places are in the order of the values.
    counts : ndarray of int64
    """

    codes: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls) -> "Buckets":
        """Of no values."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def merge(self, other: "Buckets") -> "Buckets":
        """Counts of both; exact, so that neither order nor grouping matters."""
        if not len(other.codes):
            return self
        if not len(self.codes):
            return other
        place = np.searchsorted(self.codes, other.codes)
        known = self.codes[np.minimum(place, len(self.codes) - 1)] == other.codes
        counts = self.counts.copy()
        counts[place[known]] += other.counts[known]
        if known.all():
            return Buckets(self.codes, counts)
        new, at = ~known, place[~known]
        return Buckets(np.insert(self.codes, at, other.codes[new]), np.insert(counts, at, other.counts[new]))

    def of_series(self, start: int, stop: int) -> "Buckets":
        """The counts of some of the series, numbered from 0."""
        low, high = np.searchsorted(self.codes, [start << PLACE_BITS, stop << PLACE_BITS])
        return Buckets(self.codes[low:high] - (start << PLACE_BITS), self.counts[low:high])

    def absolute(self) -> "Buckets":
        """Counts of the absolute values."""
        series, place = self.codes >> PLACE_BITS, self.codes & ((1 << PLACE_BITS) - 1)
        codes, inverse = np.unique(
            series << PLACE_BITS | (ZERO_PLACE + np.abs(place - ZERO_PLACE)), return_inverse=True
        )
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, inverse.ravel(), self.counts)
        return Buckets(codes, counts)

    def quantiles(self, series: int, percents: Sequence[int]) -> np.ndarray:
        """Quantiles of each series, shape (percent, series); NaN where a series has no values."""
        found = np.full((len(percents), series), np.nan)
        if not len(self.codes):
            return found
        total = np.cumsum(self.counts)
        stop = np.searchsorted(self.codes, np.arange(1, series + 1) << PLACE_BITS)
        before = np.concatenate([[0], total])[np.concatenate([[0], stop[:-1]])]
        n = np.concatenate([[0], total])[stop] - before
        some = n > 0
        for line, percent in zip(found, percents, strict=True):
            rank = percent * (n[some] - 1) // 100
            at = np.searchsorted(total, before[some] + rank, side="right")
            line[some] = values_of(self.codes[at] & ((1 << PLACE_BITS) - 1))
        return found


def values_of(places: np.ndarray) -> np.ndarray:
    """The value that stands for each bucket: as far, relatively, from its lower end as from its upper one."""
    offset = places - ZERO_PLACE
    key = np.abs(offset) - 1
    low = np.ldexp(1 + (key & (2**MANTISSA_BITS - 1)) / 2**MANTISSA_BITS, (key >> MANTISSA_BITS) + LOWEST)
    high = low + np.ldexp(2.0**-MANTISSA_BITS, (key >> MANTISSA_BITS) + LOWEST)
    return np.asarray(np.where(offset == 0, 0.0, np.sign(offset) * (2 * low / (low + high) * high)))


class Counter(Protocol):
    """Counts values of series, batch by batch."""

    def add(self, values: np.ndarray, first: int, groups: np.ndarray, starts: np.ndarray) -> None:
        """Count values of shape (n, row), their rows sorted by group.

        From ``starts[i]`` on they belong to the series ``first + n * groups[i] + 0 … n - 1``.
        """

    def add_counts(self, codes: np.ndarray, counts: np.ndarray) -> None:
        """Add what :meth:`sparse` gave."""

    def sparse(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes and counts as :class:`Buckets` has them."""


def counter(series: int, *, wide: bool = False) -> Counter:
    """Count so many series; at most 2^32 - 1 values of each, or 2^63 - 1 (``wide``), in twice the memory."""
    try:
        from batch_explain.summary import _buckets
    except ImportError:  # where the compiled module cannot be used
        return NumpyCounter(series)
    return (_buckets.WideCounter if wide else _buckets.Counter)(series)


class NumpyCounter:
    """The same as the compiled counter, some 30 times slower."""

    def __init__(self, series: int) -> None:
        self._series = series
        self._found = Buckets.empty()

    def add(self, values: np.ndarray, first: int, groups: np.ndarray, starts: np.ndarray) -> None:
        """Count values; see :class:`Counter`."""
        n, rows = values.shape
        group = np.repeat(groups, np.diff(starts, append=rows))
        series = first + np.arange(n)[:, None] + n * group[None]
        bits = np.ascontiguousarray(values).view(np.int64)
        key = ((bits & 0x7FFFFFFFFFFFFFFF) >> _SHIFT) - ((1023 + LOWEST) << MANTISSA_BITS)
        key = np.clip(key, -1, ZERO_PLACE - 1) + 1
        place = ZERO_PLACE + np.where(bits < 0, -key, key)
        codes, counts = np.unique(series << PLACE_BITS | place, return_counts=True)
        self.add_counts(codes, counts.astype(np.int64))

    def add_counts(self, codes: np.ndarray, counts: np.ndarray) -> None:
        """Add counts; see :class:`Counter`."""
        self._found = self._found.merge(Buckets(codes, counts))

    def sparse(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes and counts."""
        return self._found.codes, self._found.counts
