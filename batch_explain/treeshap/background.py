"""Background rows for interventional SHAP values.

With one background row, the interventional SHAP value of a feature (Janzing, Minorics and Blöbaum 2020, "Feature
relevance quantification in explainable AI"; shap's ``interventional``) in one leaf is the path-dependent one with the
cover ratio z of each of the path's features replaced by whether the background row satisfies that feature's splits: 0
or 1. The integral then is a Shapley weight. Where a of the path's features are failed by the background row alone and b
by the explained row alone, and none by both, each of the former contributes the leaf's value times
(a - 1)! b! / (a + b)!, and each of the latter the negative of it times a! (b - 1)! / (a + b)!. Where any is failed by
both, nobody gets to the leaf and it contributes nothing.

So a leaf depends on the background only through its *answers*: which of the path's features a row fails, and how many
rows do so. They are few, and fixed, so that tables hold their mean.
"""

import math
from dataclasses import dataclass

import numpy as np

from batch_explain.errors import OptionError
from batch_explain.trees.ensemble import MISSING_NAN, MISSING_ZERO, ZERO_THRESHOLD, Ensemble

MOST_ROWS = 500  # the kernel takes 512


def check_count(rows: int, what: str = "The background") -> None:
    """Raise OptionError unless there are 1 to :data:`MOST_ROWS` background rows."""
    if not 1 <= rows <= MOST_ROWS:
        raise OptionError(
            f"{what} has {rows:,} rows; it takes 1 to {MOST_ROWS}. Take a sample of rows that stands for what "
            "importances are to be compared with, a hundred or so, and pass that."
        )


def check_rows(rows: np.ndarray) -> None:
    """Raise OptionError unless these rows, featurized, shape (row, feature), can be a background."""
    check_count(len(rows))
    infinite = int(np.isinf(rows).any(axis=1).sum())
    if infinite:
        raise OptionError(
            f"{infinite:,} of the {len(rows):,} background rows hold infinite values once they are featurized. Leave "
            "them out."
        )


@dataclass(frozen=True, eq=False)
class Answers:
    """Of the background rows to one path.

    Parameters
    ----------
    features : tuple of int
        The path's, as positions among the used features.
    fails : ndarray of uint64, shape (feature, word)
        For each feature the answers that fail it, a bit each.
    rows : ndarray of uint16, shape (answer,)
        How many background rows give each answer.
    failed : ndarray of uint16, shape (answer,)
        How many features each answer fails.
    """

    features: tuple[int, ...]
    fails: np.ndarray
    rows: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, satisfied: dict[int, np.ndarray]) -> "Answers":
        """From whether each row satisfies each feature: feature -> ndarray of bool, shape (row,)."""
        failing = ~np.array(list(satisfied.values()))
        packed = np.ascontiguousarray(np.packbits(failing, axis=0).T)
        # as texts of bytes, which sort fast, so that the rows' order changes nothing
        texts = packed.view(f"S{packed.shape[1]}").ravel()
        _, first, rows = np.unique(texts, return_index=True, return_counts=True)
        different = failing[:, first]
        words = np.zeros((len(failing), -(-len(first) // 64) * 64), dtype=bool)
        words[:, : len(first)] = different
        fails = np.packbits(words, axis=1, bitorder="little").view(np.uint64)
        return cls(tuple(satisfied), fails, rows.astype(np.uint16), different.sum(axis=0).astype(np.uint16))

    def failing(self) -> np.ndarray:
        """How many background rows fail each feature, shape (feature,)."""
        bits = np.unpackbits(self.fails.view(np.uint8), axis=1, bitorder="little", count=len(self.rows))
        return bits @ self.rows.astype(np.int64)

    @property
    def doubles(self) -> int:
        """Size in memory, in eights of bytes."""
        return self.fails.size + -(-len(self.rows) // 2)


def shapley_weights(longest: int) -> np.ndarray:
    """(a - 1)! b! / (a + b)! at [a, b] for a + b up to ``longest``, and 0 elsewhere and where a is 0."""
    weights = np.zeros((longest + 1, longest + 1))
    for a in range(1, longest + 1):
        weights[a, : longest + 1 - a] = [1 / (a * math.comb(a + b, a)) for b in range(longest + 1 - a)]
    return weights


def go_left(ensemble: Ensemble, rows: np.ndarray) -> np.ndarray:
    """Whether each row would go left at each inner node, shape (node, row): LightGBM's decisions.

    Parameters
    ----------
    ensemble : Ensemble
    rows : ndarray of float64, shape (row, feature)
    """
    found = np.empty((len(ensemble.feature), len(rows)), dtype=bool)
    for node, feature in enumerate(ensemble.feature.tolist()):
        values = rows[:, feature]
        if ensemble.category_set[node] >= 0:
            categories = ensemble.category_sets[int(ensemble.category_set[node])]
            with np.errstate(invalid="ignore"):
                whole = (values > -1) & (values < 2.0**31)
            numbers = np.where(whole, values, -1).astype(np.int64)
            found[node] = whole & np.isin(numbers, categories)
            continue
        missing = int(ensemble.missing[node])
        absent = np.isnan(values)
        plain = np.where(absent | (np.abs(values) <= ZERO_THRESHOLD), 0.0, values)
        if missing == MISSING_ZERO:
            absent = plain == 0
        elif missing != MISSING_NAN:
            absent = np.zeros(len(rows), dtype=bool)
        found[node] = np.where(absent, ensemble.default_left[node], plain <= ensemble.threshold[node])
    return found


def mean_margins(ensemble: Ensemble, left: np.ndarray) -> np.ndarray:
    """Mean margin of the background rows, shape (output,), from :func:`go_left`: what importances add up from."""
    expected = np.zeros(ensemble.n_outputs)
    rows = left.shape[1]
    for tree in range(ensemble.n_trees):
        first = int(ensemble.node_offset[tree])
        values = ensemble.leaf_value[ensemble.leaf_offset[tree] : ensemble.leaf_offset[tree + 1]]
        if len(values) == 1:
            expected[tree % ensemble.n_outputs] += float(values[0])
            continue
        there = np.zeros((int(ensemble.node_offset[tree + 1]) - first, rows), dtype=bool)
        there[0] = True
        total = 0.0
        for node in range(len(there)):  # children have larger numbers than their parents
            for child, goes in (
                (int(ensemble.left[first + node]), there[node] & left[first + node]),
                (int(ensemble.right[first + node]), there[node] & ~left[first + node]),
            ):
                if child >= 0:
                    there[child] = goes
                else:
                    total += float(values[~child]) * int(goes.sum())
        expected[tree % ensemble.n_outputs] += total / rows
    return expected
