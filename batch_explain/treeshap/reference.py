"""The definition, slowly: path-dependent SHAP values at any precision, for checking everything else.

Importance of feature j in one leaf: v (o_j - z_j) times the integral over [0, 1] of prod over i != j of
z_i + (o_i - z_i) t, here with the polynomial's coefficients multiplied out in mpmath numbers.
"""

from typing import Any

import numpy as np

from batch_explain.trees.ensemble import MISSING_NAN, MISSING_ZERO, ZERO_THRESHOLD, Ensemble


def goes_left(ensemble: Ensemble, node: int, value: float) -> bool:
    """LightGBM's decision (``Tree::NumericalDecision`` and ``Tree::CategoricalDecision``) at a node.

    Parameters
    ----------
    ensemble : Ensemble
    node : int
        Position in the ensemble's node arrays.
    value : float
        The row's value in the node's feature.
    """
    if abs(value) <= ZERO_THRESHOLD:
        value = 0.0
    if ensemble.category_set[node] >= 0:
        if np.isnan(value) or np.isinf(value) or int(value) < 0:
            return False
        return int(value) in ensemble.category_sets[int(ensemble.category_set[node])]
    missing = int(ensemble.missing[node])
    if np.isnan(value) and missing != MISSING_NAN:
        value = 0.0
    if (missing == MISSING_ZERO and value == 0.0) or (missing == MISSING_NAN and np.isnan(value)):
        return bool(ensemble.default_left[node])
    return bool(value <= ensemble.threshold[node])


def shap_values(ensemble: Ensemble, row: np.ndarray, *, digits: int = 50) -> np.ndarray:
    """SHAP values of one row, shape (output, feature), computed with ``digits`` decimal digits and rounded at the end.

    Parameters
    ----------
    ensemble : Ensemble
    row : ndarray, shape (feature,)
    digits : int
        Precision of all arithmetic; needs mpmath.
    """
    import mpmath

    with mpmath.workdps(digits):
        totals = [[mpmath.mpf(0)] * ensemble.n_features for _ in range(ensemble.n_outputs)]
        for tree in range(ensemble.n_trees):
            if ensemble.node_offset[tree + 1] > ensemble.node_offset[tree]:
                _add_tree(ensemble, tree, row, totals[tree % ensemble.n_outputs], mpmath)
        return np.array([[float(value) for value in output] for output in totals])


def _add_tree(ensemble: Ensemble, tree: int, row: np.ndarray, totals: list[Any], mpmath: Any) -> None:
    first_node, first_leaf = int(ensemble.node_offset[tree]), int(ensemble.leaf_offset[tree])

    def visit(node: int, path: dict[int, tuple[Any, bool]]) -> None:
        if node < 0:
            _add_leaf(mpmath.mpf(float(ensemble.leaf_value[first_leaf + ~node])), path, totals, mpmath)
            return
        at = first_node + node
        feature = int(ensemble.feature[at])
        left = goes_left(ensemble, at, float(row[feature]))
        zero, one = path.get(feature, (mpmath.mpf(1), True))
        for child, taken in ((int(ensemble.left[at]), left), (int(ensemble.right[at]), not left)):
            cover = ensemble.node_count[first_node + child] if child >= 0 else ensemble.leaf_count[first_leaf + ~child]
            ratio = mpmath.mpf(float(cover)) / mpmath.mpf(float(ensemble.node_count[at]))
            visit(child, {**path, feature: (zero * ratio, one and taken)})

    visit(0, {})


def _add_leaf(value: Any, path: dict[int, tuple[Any, bool]], totals: list[Any], mpmath: Any) -> None:
    for feature, (zero, one) in path.items():
        coefficients = [mpmath.mpf(1)]  # of t^0, t^1, ...
        for other, (z, o) in path.items():
            if other != feature:
                slope = (1 if o else 0) - z
                longer = [z * c for c in coefficients] + [mpmath.mpf(0)]
                for power, c in enumerate(coefficients):
                    longer[power + 1] += slope * c
                coefficients = longer
        integral = sum(c / (power + 1) for power, c in enumerate(coefficients))
        totals[feature] += value * ((1 if one else 0) - zero) * integral
