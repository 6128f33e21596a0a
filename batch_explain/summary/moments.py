"""Per-feature statistics of importances, merged from batches to partitions to the whole run.

Merging is done in partition order, so that the result has the same bytes whatever order the tasks ran in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Moments:
    """Statistics of importances, each array of shape (output, feature).

    Parameters
    ----------
    count : int
        Rows.
    mean, m2 : ndarray
        Mean, and sum of squared deviations from it.
    absolute : ndarray
        Sum of absolute values.
    minimum, maximum : ndarray
        Infinite while ``count`` is 0.
    positive : ndarray of int
        Rows with a value above 0.
    """

    count: int
    mean: np.ndarray
    m2: np.ndarray
    absolute: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    positive: np.ndarray

    @classmethod
    def empty(cls, outputs: int, features: int) -> "Moments":
        """Moments of no rows."""
        shape = (outputs, features)
        return cls(
            0, np.zeros(shape), np.zeros(shape), np.zeros(shape), np.full(shape, np.inf), np.full(shape, -np.inf),
            np.zeros(shape, dtype=np.int64),
        )  # fmt: skip

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Moments of a batch, shape (output, feature, row)."""
        outputs, features, rows = values.shape
        moments = cls.empty(outputs, features)
        if rows == 0:
            return moments
        scratch = np.empty(rows)
        # feature by feature: all passes over one find it in the cache
        for at in np.ndindex(outputs, features):
            row = values[at]
            mean = np.add.reduce(row) / rows
            np.subtract(row, mean, out=scratch)
            np.square(scratch, out=scratch)
            moments.mean[at], moments.m2[at] = mean, np.add.reduce(scratch)
            np.abs(row, out=scratch)
            moments.absolute[at] = np.add.reduce(scratch)
            # + 0.0: which of two zeros is the least depends on the CPU
            moments.minimum[at], moments.maximum[at] = np.minimum.reduce(row) + 0.0, np.maximum.reduce(row) + 0.0
            moments.positive[at] = np.count_nonzero(row > 0)
        return replace(moments, count=rows)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows (Chan, Golub and LeVeque, 1979, for mean and m2)."""
        count = self.count + other.count
        if not other.count:
            return self
        if not self.count:
            return other
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count),
            self.absolute + other.absolute,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.positive + other.positive,
        )

    def spread(self, positions: np.ndarray, features: int) -> "Moments":
        """The same among ``features`` features, of which those not at ``positions`` were 0 in every row."""
        whole = Moments.empty(self.mean.shape[0], features)
        if self.count:
            whole.minimum[:] = whole.maximum[:] = 0.0
        for name in ("mean", "m2", "absolute", "minimum", "maximum", "positive"):
            getattr(whole, name)[:, positions] = getattr(self, name)
        return Moments(self.count, whole.mean, whole.m2, whole.absolute, whole.minimum, whole.maximum, whole.positive)

    def to_table(self) -> pa.Table:
        """As one row for each output and feature, for a partial summary."""
        columns = {
            "count": np.full(self.mean.size, self.count, dtype=np.int64),
            **{name: getattr(self, name).ravel() for name in _ARRAYS},
        }
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, outputs: int, features: int) -> "Moments":
        """Read :meth:`to_table`'s rows back."""
        arrays = {name: table[name].to_numpy().reshape(outputs, features) for name in _ARRAYS}
        return cls(table["count"][0].as_py() if table.num_rows else 0, **arrays)


_ARRAYS = ("mean", "m2", "absolute", "minimum", "maximum", "positive")


def summary_table(moments: Moments, outputs: Sequence[str | None], features: Sequence[str]) -> pa.Table:
    """The global summary.

    Returns
    -------
    pyarrow.Table
        One row for each output and feature, by output and then rank: ``output`` (null for a single one),
        ``feature``, ``rank`` (1 = largest mean |importance|; ties in feature order), ``count``, ``mean_abs``,
        ``mean``, ``std`` (n - 1), ``min``, ``max``, ``share_positive``. Null where there are too few rows.
    """
    n = moments.count
    blank = np.full(moments.mean.shape, np.nan)
    statistics = {
        "mean_abs": moments.absolute / n if n else blank,
        "mean": moments.mean if n else blank,
        "std": np.sqrt(moments.m2 / (n - 1)) if n > 1 else blank,
        "min": moments.minimum if n else blank,
        "max": moments.maximum if n else blank,
        "share_positive": moments.positive / n if n else blank,
    }
    order = np.argsort(-moments.absolute, axis=1, kind="stable")
    rows = order.shape[1]
    columns: dict[str, pa.Array] = {
        "output": pa.array(np.repeat(np.array(outputs, dtype=object), rows), type=pa.string()),
        "feature": pa.array([features[i] for line in order for i in line], type=pa.string()),
        "rank": pa.array(np.tile(np.arange(1, rows + 1), len(outputs)), type=pa.int64()),
        "count": pa.array(np.full(order.size, n), type=pa.int64()),
    }
    for name, values in statistics.items():
        ranked = np.take_along_axis(values, order, axis=1).ravel()
        columns[name] = pa.array(ranked, from_pandas=True, type=pa.float64())
    return pa.table(columns)
