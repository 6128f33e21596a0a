"""Distributions read back from sketches, and how far two of them are from each other.

Both measures are taken over the same bins. Numbers and dates: the baseline's deciles, cut between buckets so that equal
values are never parted, one bin below and one above all that the baseline has, and one of missing values. Categories:
one bin each, one of all others, one of missing values; a category that only one run counts apart has a bin only where
the other run has no others that it could be among.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy.spatial.distance import jensenshannon

from batch_explain.summary.sketches import CATEGORY, LOG, MISSING, OTHER, WEEK

BINS = 10
EMPTY = 1e-4  # the share that an empty bin counts as, in the index

Key = tuple[str | None, str | None, str | None, str | None]  # kind, level, output, feature


@dataclass(frozen=True)
class Distribution:
    """Counts of one series.

    Parameters
    ----------
    scale : str or None
        ``log``, ``week``, ``category``; None: there are missing values only.
    places, counts : ndarray of int64
        Buckets in the order of the values, and their counts.
    categories : dict
        Category -> count.
    other, missing : int
        Values that are no listed category, and rows without a value.
    """

    scale: str | None
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    categories: Mapping[str, int] = field(default_factory=dict)
    other: int = 0
    missing: int = 0

    @classmethod
    def of_zeros(cls, rows: int) -> "Distribution":
        """Of what is 0 in every row."""
        return cls(LOG, np.zeros(1, np.int64), np.array([rows]))

    @property
    def total(self) -> int:
        """Rows."""
        return int(self.counts.sum()) + sum(self.categories.values()) + self.other + self.missing


def read_distributions(table: pa.Table) -> dict[Key, Distribution]:
    """Read back what :func:`batch_explain.summary.sketches.sketches_table` made; a series' rows are together."""
    if not table.num_rows:
        return {}
    coded = [_coded(table[name]) for name in ("kind", "level", "output", "feature")]
    changes = np.zeros(table.num_rows, bool)
    changes[0] = True
    for codes, _ in coded:
        changes[1:] |= codes[1:] != codes[:-1]
    bins, names = _coded(table["bin"])
    categories, labels = _coded(table["category"])
    places = table["bucket"].fill_null(0).to_numpy().astype(np.int64)
    counts = table["count"].to_numpy()
    starts = np.flatnonzero(changes)
    found: dict[Key, Distribution] = {}
    for start, stop in zip(starts, [*starts[1:], table.num_rows], strict=True):
        kind, level, output, feature = (texts[codes[start]] for codes, texts in coded)
        here = {name: start + np.flatnonzero(bins[start:stop] == at) for at, name in enumerate(names)}
        scale = next((name for name in (LOG, WEEK, CATEGORY) if len(here.get(name, ()))), None)
        if scale is None and len(here.get(OTHER, ())):
            scale = CATEGORY
        numbers = here[scale] if scale in (LOG, WEEK) else np.empty(0, np.int64)
        found[kind, level, output, feature] = Distribution(
            scale,
            places[numbers],
            counts[numbers],
            {str(labels[categories[at]]): int(counts[at]) for at in here.get(CATEGORY, ())},
            *(int(counts[here[name]].sum()) if name in here else 0 for name in (OTHER, MISSING)),
        )
    return found


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str | None]]:
    """Codes and what they stand for; the last is null."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    array = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    texts = [*array.dictionary.to_pylist(), None]
    return array.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False), texts


def binned(baseline: Distribution, run: Distribution) -> tuple[np.ndarray, np.ndarray] | None:
    """Counts of the baseline and of the run in common bins.

    Returns
    -------
    tuple of ndarray or None
        None where one has no rows, or they are of different scales.
    """
    if not (baseline.total and run.total) or len({baseline.scale, run.scale} - {None}) > 1:
        return None
    if CATEGORY in (baseline.scale, run.scale):
        return _by_category(baseline, run)
    edges = _deciles(baseline)
    sides = []
    for side in (baseline, run):
        inside = np.searchsorted(edges, side.places, side="left") + 1
        if len(baseline.places):
            inside[side.places < baseline.places[0]] = 0
            inside[side.places > baseline.places[-1]] = len(edges) + 2
        numbers = np.bincount(inside, weights=side.counts, minlength=len(edges) + 3)
        sides.append(np.append(numbers, side.missing))
    return sides[0], sides[1]


def _deciles(baseline: Distribution) -> np.ndarray:
    """The bucket in which each tenth of the values ends; without the last one."""
    total = np.cumsum(baseline.counts)
    if not len(total):
        return np.empty(0, np.int64)
    targets = np.arange(1, BINS) * total[-1]
    at = np.searchsorted(total * BINS, targets, side="left")
    edges = np.unique(baseline.places[at])
    return np.asarray(edges[edges < baseline.places[-1]])


def _by_category(baseline: Distribution, run: Distribution) -> tuple[np.ndarray, np.ndarray]:
    kept = set(baseline.categories) & set(run.categories)
    kept |= set(run.categories) if not baseline.other else set()
    kept |= set(baseline.categories) if not run.other else set()
    names = sorted(kept)
    sides = []
    for side in (baseline, run):
        listed = [side.categories.get(name, 0) for name in names]
        others = side.other + sum(count for name, count in side.categories.items() if name not in kept)
        sides.append(np.array([*listed, others, side.missing], dtype=np.float64))
    return sides[0], sides[1]


def stability_index(baseline: np.ndarray, run: np.ndarray) -> float:
    """Population stability index of counts in common bins.

    The sum of (r - b) x ln(r / b) over the bins, where b and r are their shares of the rows, and an empty bin counts as
    a share of :data:`EMPTY` (bins that both leave empty as nothing). Below 0.1 is usually called stable, above 0.25 a
    shift (Siddiqi, Credit Risk Scorecards, 2006).
    """
    some = (baseline > 0) | (run > 0)
    b, r = (np.where(side > 0, side / side.sum(), EMPTY)[some] for side in (baseline, run))
    return float(np.sum((r - b) * np.log(r / b)))


def js_distance(baseline: np.ndarray, run: np.ndarray) -> float:
    """Jensen-Shannon distance of counts in common bins: the square root of the divergence to base 2, from 0 to 1."""
    if np.array_equal(baseline / baseline.sum(), run / run.sum()):
        return 0.0  # rounding would give 1e-9
    return float(jensenshannon(baseline, run, base=2))


def shift(baseline: Distribution | None, run: Distribution | None) -> tuple[float | None, float | None]:
    """Stability index and Jensen-Shannon distance; None where they are not known."""
    counts = None if baseline is None or run is None else binned(baseline, run)
    return (None, None) if counts is None else (stability_index(*counts), js_distance(*counts))
