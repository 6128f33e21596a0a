"""Splits as sets of cells: what the values of a feature can be told apart by.

The kernel turns each value into a byte code. All splits of a numerical feature that treat missing values alike share a
*variable*: its cells are the intervals between their thresholds, the code is the interval's number, and a missing value
falls into the first or the last interval, which is where such splits send it. A categorical feature is one variable,
whose cells are the classes of categories that no split tells apart. A split, and any conjunction of splits along a
path, is then a set of cells; sets are the bits of Python integers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from batch_explain.trees.ensemble import MISSING_NAN, MISSING_ZERO, Ensemble

MAX_THRESHOLDS = 255  # of one variable, so that a code is a byte


@dataclass
class Variable:
    """What splits of one feature test.

    Parameters
    ----------
    feature : int
        Position among the ensemble's used features.
    cells : int
        Number of intervals or classes.
    missing, default_left : int, bool
        As in :class:`Ensemble`; meaningless for a categorical variable.
    thresholds : ndarray of float64, or None
        Sorted; cell ``i`` holds the values above exactly ``i`` of them. None: categorical.
    classes : ndarray of int32, or None
        Category -> cell; cell 0 is in no set, nor is any category beyond the array.
    """

    feature: int
    cells: int
    missing: int = 0
    default_left: bool = False
    thresholds: np.ndarray | None = None
    classes: np.ndarray | None = None

    @property
    def all_cells(self) -> int:
        """The set of all cells."""
        return (1 << self.cells) - 1


@dataclass(frozen=True)
class Splits:
    """All splits of an ensemble.

    Parameters
    ----------
    variables : list of Variable
    variable : list of int
        Of each inner node.
    left : list of int
        Of each inner node: the set of cells that go left.
    """

    variables: list[Variable] = field(default_factory=list)
    variable: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


def splits_of(ensemble: Ensemble) -> Splits:
    """Express every split as a set of cells."""
    nodes = len(ensemble.feature)
    result = Splits([], [0] * nodes, [0] * nodes)
    position = {int(column): i for i, column in enumerate(ensemble.used)}
    numerical: dict[tuple[int, int, bool], list[int]] = {}
    categorical: dict[int, list[int]] = {}
    for node in range(nodes):
        feature = position[int(ensemble.feature[node])]
        if ensemble.category_set[node] >= 0:
            categorical.setdefault(feature, []).append(node)
        else:
            missing = int(ensemble.missing[node])
            # where nothing is missing, the default direction is never taken
            key = (feature, missing, missing in (MISSING_ZERO, MISSING_NAN) and bool(ensemble.default_left[node]))
            numerical.setdefault(key, []).append(node)
    for (feature, missing, default_left), group in sorted(numerical.items()):
        _add_numerical(result, ensemble, feature, missing, default_left, group)
    for feature, group in sorted(categorical.items()):
        _add_categorical(result, ensemble, feature, group)
    return result


def _add_numerical(
    result: Splits, ensemble: Ensemble, feature: int, missing: int, default_left: bool, nodes: Sequence[int]
) -> None:
    thresholds, place = np.unique(ensemble.threshold[nodes], return_inverse=True)
    first = len(result.variables)
    for start in range(0, len(thresholds), MAX_THRESHOLDS):
        chunk = thresholds[start : start + MAX_THRESHOLDS]
        result.variables.append(Variable(feature, len(chunk) + 1, missing, default_left, thresholds=chunk))
    for node, at in zip(nodes, place.tolist(), strict=True):
        result.variable[node] = first + at // MAX_THRESHOLDS
        result.left[node] = (2 << at % MAX_THRESHOLDS) - 1


def _add_categorical(result: Splits, ensemble: Ensemble, feature: int, nodes: Sequence[int]) -> None:
    sets = [ensemble.category_sets[int(ensemble.category_set[node])] for node in nodes]
    highest = max((int(categories[-1]) for categories in sets if len(categories)), default=-1)
    member = np.zeros((len(sets), highest + 1), dtype=bool)
    for row, categories in zip(member, sets, strict=True):
        row[categories] = True
    # class 0 is that of the categories in no set
    kinds, classes = np.unique(np.column_stack([np.zeros(len(sets), bool), member]), axis=1, return_inverse=True)
    order = np.argsort(kinds.any(axis=0), kind="stable")
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    variable = Variable(feature, len(order), classes=rank[np.ravel(classes)[1:]])
    for row, node in zip(kinds, nodes, strict=True):
        result.variable[node] = len(result.variables)
        result.left[node] = sum(1 << int(rank[kind]) for kind in np.flatnonzero(row))
    result.variables.append(variable)
