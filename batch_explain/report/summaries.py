"""The global summaries as a report shows them, by output, by class and by cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PREDICTED = "predicted class"
STATISTICS = ("mean_abs", "mean", "p05", "p50", "p95", "share_positive")


@dataclass(frozen=True)
class Level:
    """The summary of all rows of one level (``raw`` or ``engineered``).

    Parameters
    ----------
    name : str
    features : tuple of str
        Those that can be other than 0, in the order of the model.
    statistics : dict
        Statistic -> ndarray of shape (output, feature); NaN where not known.
    """

    name: str
    features: tuple[str, ...]
    statistics: dict[str, np.ndarray]

    @classmethod
    def of(cls, name: str, info: Mapping[str, Any], table: pa.Table) -> "Level":
        """From ``summary/<level>.parquet``."""
        zero = set(info["features"]["identically_zero"]) if name == "engineered" else set()
        features = tuple(feature for feature in info["features"][name] if feature not in zero)
        outputs = info["outputs"] or [None]
        row, column = _places(table["output"], outputs), _places(table["feature"], features)
        found = {}
        for statistic in STATISTICS:
            found[statistic] = np.full((len(outputs), len(features)), np.nan)
            kept = column >= 0
            found[statistic][row[kept], column[kept]] = _floats(table[statistic])[kept]
        return cls(name, features, found)

    def order(self, output: int | None = None) -> np.ndarray:
        """Positions of the features, the largest mean |importance| first; None: by its mean over the outputs."""
        size = self.statistics["mean_abs"]
        size = np.nan_to_num(size.mean(axis=0) if output is None else size[output])
        return np.argsort(-size, kind="stable")


@dataclass(frozen=True)
class CohortSummary:
    """Mean |importance| in the groups of one cohort, for one level.

    Parameters
    ----------
    cohort : str
    level : str
    groups : tuple of (str or None)
        None: rows without a value.
    counts : ndarray of int, shape (group,)
    mean_abs : ndarray, shape (output, group, feature)
        Features as :class:`Level` has them.
    """

    cohort: str
    level: str
    groups: tuple[str | None, ...]
    counts: np.ndarray
    mean_abs: np.ndarray


def cohort_summaries(info: Mapping[str, Any], table: pa.Table | None, levels: Sequence[Level]) -> list[CohortSummary]:
    """All of ``summary/cohorts.parquet``, in the order of ``run.json``."""
    if table is None:
        return []
    outputs = info["outputs"] or [None]
    found = []
    for entry in info["summaries"]["cohorts"]:
        of_cohort = table.filter(pc.equal(table["cohort"], entry["cohort"]))
        for level in levels:
            part = of_cohort.filter(pc.equal(of_cohort["level"], level.name))
            if not part.num_rows:
                continue
            group, feature = _places(part["group"], entry["groups"]), _places(part["feature"], level.features)
            output = _places(part["output"], outputs)
            counts, means = (
                np.zeros(len(entry["groups"]), np.int64),
                np.full((len(outputs), len(entry["groups"]), len(level.features)), np.nan),
            )
            counts[group] = part["count"].to_numpy()
            kept = feature >= 0
            means[output[kept], group[kept], feature[kept]] = _floats(part["mean_abs"])[kept]
            there = np.flatnonzero(counts)
            groups = tuple(entry["groups"][at] for at in there)
            found.append(CohortSummary(entry["cohort"], level.name, groups, counts[there], means[:, there]))
    return found


def _places(column: pa.ChunkedArray, values: Sequence[str | None]) -> np.ndarray:
    """Position of each element among the values; -1 where it is none of them."""
    found = pc.index_in(column, value_set=pa.array(list(values), pa.string()))
    return np.asarray(found.fill_null(-1).to_numpy())


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), dtype=np.float64)
