"""Sketches: distributions of features' own values, of predictions and of importances, as integer counts.

Counts merge in any order to the same bytes. Numbers are counted in the logarithmic buckets of
:mod:`batch_explain.summary.quantiles`, dates by week (a logarithmic bucket of a date would be a year wide), all else by
value, of which there is a fixed list; what is not on it counts as other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.summary.cohorts import Cohort
from batch_explain.summary.quantiles import PLACE_BITS, ZERO_PLACE, Buckets, counter
from batch_explain.summary.tally import Layout, Statistics

SKETCHES_PATH = "summary/sketches.parquet"
IMPORTANCE, VALUE, PREDICTION = "importance", "value", "prediction"
LOG, WEEK, CATEGORY, OTHER, MISSING = "log", "week", "category", "other", "missing"

MAX_FEATURES = 500  # whose values are sketched: up to 10 KB each in a worker
MAX_CATEGORIES = 50
LONGEST_CATEGORY = 100  # characters; longer texts are other

_ALL = np.zeros(1, np.int64)
_KEYS = ("kind", "level", "output", "feature", "bin")


@dataclass(frozen=True)
class Sketch:
    """What is counted of one column, or of one part of the prediction.

    Parameters
    ----------
    kind : str
        ``value`` or ``prediction``.
    feature : str
        The column's name in the model; ``prediction``, ``class``, ``probability`` or ``margin``.
    scale : str
        ``log`` (buckets of numbers), ``week`` (of dates) or ``category``.
    level : str or None
        Of values: ``raw``, or ``engineered`` where the input holds engineered features.
    output : str or None
        Of a probability its class, of a margin its output.
    groups : tuple of str
        The categories that have counts of their own.
    """

    kind: str
    feature: str
    scale: str
    level: str | None = None
    output: str | None = None
    groups: tuple[str, ...] = ()

    @cached_property
    def categories(self) -> Cohort:
        """Tells the category of each value; beside the listed ones others, and last no value at all."""
        return Cohort(self.feature, self.groups)

    @property
    def slots(self) -> int:
        """Counts beside those in buckets: one for each category, or the one of missing values."""
        return len(self.categories.labels) if self.scale == CATEGORY else 1

    def to_json(self) -> dict[str, Any]:
        """For the plan."""
        return {**asdict(self), "groups": list(self.groups)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Sketch":
        """Read :meth:`to_json`'s form."""
        return cls(**{**content, "groups": tuple(content["groups"])})


@dataclass(frozen=True)
class SketchCounts:
    """The counts of all sketches of a run.

    Parameters
    ----------
    buckets : Buckets
        Of numbers and dates; a series is a sketch's number.
    slots : ndarray of int64
        Of categories and missing values, sketch by sketch.
    """

    buckets: Buckets
    slots: np.ndarray

    @classmethod
    def empty(cls, sketches: Sequence[Sketch]) -> "SketchCounts":
        """Of no rows."""
        return cls(Buckets.empty(), np.zeros(sum(sketch.slots for sketch in sketches), np.int64))


class SketchTally:
    """Adds batches up.

    Parameters
    ----------
    sketches : sequence of Sketch
    whole_run : bool
        Whether there may be more than 2^32 rows.
    """

    def __init__(self, sketches: Sequence[Sketch], *, whole_run: bool = False) -> None:
        self._sketches = sketches
        self._start = np.concatenate([[0], np.cumsum([sketch.slots for sketch in sketches], dtype=np.int64)])
        self._slots = np.zeros(int(self._start[-1]), np.int64)
        self._counter = counter(len(sketches), wide=whole_run)

    def add(self, number: int, values: np.ndarray) -> None:
        """Count a batch's values of one sketch.

        Parameters
        ----------
        number : int
            The sketch's.
        values : ndarray, shape (row,)
            Numbers in float64, weeks since 1970-01-01 in float64 (both NaN where there is none), or the numbers of
            categories in int64.
        """
        sketch, start = self._sketches[number], self._start[number]
        if sketch.scale == CATEGORY:
            self._slots[start : start + sketch.slots] += np.bincount(values, minlength=sketch.slots)
            return
        missing = np.isnan(values)
        if absent := int(np.count_nonzero(missing)):
            values = values[~missing]
            self._slots[start] += absent
        if sketch.scale == LOG:
            self._counter.add(np.ascontiguousarray(values)[None], number, _ALL, _ALL)
        else:
            weeks, counts = np.unique(np.clip(values, -ZERO_PLACE, ZERO_PLACE).astype(np.int64), return_counts=True)
            self._counter.add_counts(number << PLACE_BITS | (ZERO_PLACE + weeks), counts.astype(np.int64))

    def add_numbers(self, first: int, values: np.ndarray) -> None:
        """Count a batch's numbers of so many sketches in a row, shape (sketch, row): the same as one by one."""
        if values.size and not np.isnan(values).any():
            self._counter.add(np.ascontiguousarray(values), first, _ALL, _ALL)
            return
        for number, line in enumerate(values, first):
            self.add(number, line)

    def add_counts(self, other: SketchCounts) -> None:
        """Add what another tally found."""
        self._counter.add_counts(other.buckets.codes, other.buckets.counts)
        self._slots += other.slots

    def counts(self) -> SketchCounts:
        """Of all batches."""
        return SketchCounts(Buckets(*self._counter.sparse()), self._slots.copy())


def sketches_table(
    layout: Layout,
    statistics: Statistics,
    sketches: Sequence[Sketch],
    counts: SketchCounts,
    *,
    features: Mapping[str, Sequence[str]],
    outputs: Sequence[str | None],
) -> pa.Table:
    """All distributions of a run.

    Parameters
    ----------
    layout : Layout
    statistics : Statistics
        Of the importances.
    sketches : sequence of Sketch
    counts : SketchCounts
    features : mapping
        Level -> names of the features that statistics are about.
    outputs : sequence of (str or None)

    Returns
    -------
    pyarrow.Table
        One row for each count that is not zero: ``kind`` (``importance``, ``value``, ``prediction``), ``level``,
        ``output``, ``feature``, ``bin``, ``bucket``, ``category``, ``count``. ``bin`` is ``log`` or ``week`` (then
        ``bucket`` is the place on that scale: 0 holds zeros, or the week that begins on 1970-01-01), ``category`` (then
        ``category`` names it), ``other`` (categories that are not listed) or ``missing``. A logarithmic bucket b > 0
        begins at 2^e x (1 + m / 64) with e = (b - 1) // 64 - 40 and m = (b - 1) % 64; -b holds the same magnitudes
        below zero.
    """
    parts = [_of_importances(layout, statistics, features, outputs)]
    start = 0
    for number, sketch in enumerate(sketches):
        slots = counts.slots[start : start + sketch.slots]
        start += sketch.slots
        parts.append(_of_sketch(sketch, counts.buckets.of_series(number, number + 1), slots))
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def _of_importances(
    layout: Layout, statistics: Statistics, features: Mapping[str, Sequence[str]], outputs: Sequence[str | None]
) -> pa.Table:
    tables = [_rows({}, [])]
    for block in layout.blocks:
        if block.cohort is not None or not block.quantiles:
            continue
        found = statistics.buckets.of_series(block.start, block.stop)
        series, places = found.codes >> PLACE_BITS, found.codes & ((1 << PLACE_BITS) - 1)
        output, feature = np.divmod(series, max(block.features, 1))
        texts = {
            "kind": _repeated(IMPORTANCE, len(series)),
            "level": _repeated(block.level, len(series)),
            "output": _taken([None if label is None else str(label) for label in outputs], output),
            "feature": _taken(list(features[block.level]), feature),
            "bin": _repeated(LOG, len(series)),
        }
        tables.append(_rows(texts, found.counts, bucket=pa.array((places - ZERO_PLACE).astype(np.int32))))
    return pa.concat_tables(tables)


def _of_sketch(sketch: Sketch, buckets: Buckets, slots: np.ndarray) -> pa.Table:
    labels = sketch.categories.labels if sketch.scale == CATEGORY else (None,)
    bins = [*[CATEGORY] * (len(labels) - 2), OTHER, MISSING] if sketch.scale == CATEGORY else [MISSING]
    some = np.flatnonzero(slots)
    n = len(buckets.codes) + len(some)
    texts = {
        "kind": _repeated(sketch.kind, n),
        "level": _repeated(sketch.level, n),
        "output": _repeated(sketch.output, n),
        "feature": _repeated(sketch.feature, n),
        "bin": _encoded([*[sketch.scale] * len(buckets.codes), *(bins[at] for at in some)]),
    }
    places = (buckets.codes & ((1 << PLACE_BITS) - 1)) - ZERO_PLACE
    return _rows(
        texts,
        np.concatenate([buckets.counts, slots[some]]),
        bucket=pa.array([*places.tolist(), *[None] * len(some)], pa.int32()),
        category=_encoded(
            [*[None] * len(places), *(labels[at] if bins[at] == CATEGORY else None for at in some)]
        ),
    )  # fmt: skip


def _rows(texts: Mapping[str, pa.Array], counts: Any, **columns: pa.Array) -> pa.Table:
    n = len(counts)
    every = {name: texts.get(name, _encoded([])) for name in _KEYS}
    every["bucket"] = columns.get("bucket", pa.nulls(n, pa.int32()))
    every["category"] = columns.get("category", _encoded([None] * n))
    every["count"] = pa.array(counts, pa.int64())
    return pa.table(every)


def _encoded(texts: Sequence[str | None]) -> pa.Array:
    """Few different texts in many rows: a dictionary keeps the rows small."""
    return pa.array(texts, pa.string()).dictionary_encode()


def _repeated(text: str | None, n: int) -> pa.Array:
    return _taken([text], np.zeros(n, np.int64))


def _taken(texts: Sequence[str | None], at: np.ndarray) -> pa.Array:
    known = [text for text in texts if text is not None]
    place = np.cumsum([text is not None for text in texts]) - 1 if texts else np.empty(0, np.int64)
    absent = np.array([text is None for text in texts], dtype=bool)
    mask = absent[at] if len(at) else np.empty(0, bool)
    indices = pa.array(place[at].astype(np.int32) if len(at) else np.empty(0, np.int32), mask=mask)
    return pa.DictionaryArray.from_arrays(indices, pa.array(known, pa.string()))
