"""The numbers behind the figures: orders, offsets, counts and steps, for the page and for notebooks alike."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from batch_explain.report.rows import Column
from batch_explain.report.text import number

SHOWN_CATEGORIES = 20
_BINS, _SWARM_BINS = 30, 90
_ALIKE = 1e-9  # relative: values that differ by less are one bar
_WIDEST = 0.42  # of a row of a beeswarm, or of a category's column
_GOLDEN = 0.618033988749895


def offsets(values: np.ndarray) -> np.ndarray:
    """Distances of a beeswarm's points from their line, such that those at similar values lie beside each other.

    Parameters
    ----------
    values : ndarray, shape (row,)

    Returns
    -------
    ndarray, shape (row,)
        Between -0.42 and 0.42; points in the fullest place reach both.
    """
    low, high = values.min(initial=0), values.max(initial=0)
    if not len(values) or high == low:
        return np.linspace(-_WIDEST, _WIDEST, len(values)) if len(values) > 1 else np.zeros(len(values))
    bins = ((values - low) / (high - low) * _SWARM_BINS).astype(np.int64)
    order = np.argsort(bins, kind="stable")
    counts = np.bincount(bins)
    rank = np.empty(len(values))
    rank[order] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray((rank - (counts[bins] - 1) / 2) / max(counts.max() - 1, 12) * 2 * _WIDEST)


def beside(rows: int) -> np.ndarray:
    """Offsets of a category's points from its middle, evenly spread and always the same; shape (row,)."""
    return np.asarray(((np.arange(rows) * _GOLDEN) % 1 * 2 - 1) * _WIDEST * 0.8)


def axis_of(column: Column) -> dict[str, Any]:
    """Type and ticks of an axis of a feature's values; the labels are not yet shortened or escaped."""
    if column.kind != "category":
        return {"type": "date" if column.kind == "date" else "linear"}
    labels = list(column.labels[:SHOWN_CATEGORIES])
    if len(column.labels) > SHOWN_CATEGORIES:
        labels.append(f"{len(column.labels) - SHOWN_CATEGORIES:,} others")
    return {"type": "linear", "labels": labels}


@dataclass(frozen=True)
class Counts:
    """How many rows have which prediction.

    Parameters
    ----------
    title : str
        What is counted.
    note : str
        Of how many rows.
    labels : tuple of str
        Classes; empty for intervals.
    edges : tuple of float
        Of the intervals: one more than counts; empty for classes.
    counts : tuple of int
    """

    title: str
    note: str
    labels: tuple[str, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of_numbers(cls, title: str, note: str, values: np.ndarray, span: tuple[float, float] | None = None) -> "Counts":
        """Counts in intervals of one length."""
        known = values[np.isfinite(values)]
        if span is None and len(known):
            middle, spread = float(known.mean()), float(np.ptp(known))
            if spread <= _ALIKE * max(1.0, abs(middle)):
                span = (middle - 0.5 * max(1.0, abs(middle)), middle + 0.5 * max(1.0, abs(middle)))
        counts, edges = np.histogram(known, bins=_BINS, range=span)
        return cls(title, note, (), tuple(edges.tolist()), tuple(counts.tolist()))

    @property
    def hover(self) -> list[str]:
        """What each bar is, without its name."""
        if self.labels:
            return [f"{count:,} rows" for count in self.counts]
        ends = [number(edge, 3) for edge in self.edges]
        return [
            f"{low} to {high}: {count:,} rows" for low, high, count in zip(ends, ends[1:], self.counts, strict=False)
        ]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """As a table: class or interval, rows."""
        ends = [number(edge, 3) for edge in self.edges]
        names = self.labels or [f"{low} … {high}" for low, high in pairwise(ends)]
        return [(name, f"{count:,}") for name, count in zip(names, self.counts, strict=True)]

    @property
    def middles(self) -> list[float]:
        """Where the bars stand."""
        if self.labels:
            return [float(at) for at in range(len(self.labels))]
        edges = np.array(self.edges)
        return [float(at) for at in (edges[1:] + edges[:-1]) / 2]

    @property
    def width(self) -> float:
        """Of a bar."""
        return 0.7 if self.labels else (self.edges[1] - self.edges[0]) * 0.92


def largest_steps(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The importances of each row that are largest in absolute value.

    Parameters
    ----------
    values : ndarray, shape (feature, row)
    most : int

    Returns
    -------
    features : ndarray of int, shape (row, most or fewer)
        Positions, the largest first; ties in feature order.
    importances : ndarray, shape (row, most or fewer)
    """
    size = -np.abs(values.T)
    order = np.argsort(size, axis=1, kind="stable")[:, :most]
    return order, np.take_along_axis(values.T, order, axis=1)
