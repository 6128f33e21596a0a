"""Background rows for interventional SHAP values.

With one background row, the interventional SHAP value of a feature (Janzing, Minorics and Blöbaum 2020, "Feature
relevance quantification in explainable AI"; shap's ``interventional``) in one leaf is the path-dependent one with the
cover ratio z of each of the path's features replaced by whether the background row satisfies that feature's splits: 0
or 1. So a leaf stands for as many leaves as there are different answers among the background rows, each with its share
of the value; everything else stays as it is.
"""

import numpy as np

from batch_explain.trees.ensemble import MISSING_NAN, MISSING_ZERO, ZERO_THRESHOLD, Ensemble


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


def distinct(satisfied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different columns of a boolean matrix, shape (feature, row), and how many rows have each, in a fixed order."""
    columns, counts = np.unique(satisfied, axis=1, return_counts=True)
    return columns, counts
