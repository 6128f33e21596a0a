"""The definition, slowly: path-dependent SHAP values at any precision, for checking everything else.

Importance of feature j in one leaf: v (o_j - z_j) times the integral over [0, 1] of prod over i != j of
z_i + (o_i - z_i) t, here with the polynomial's coefficients multiplied out. In decimal numbers rather than mpmath's,
which take 30 times as long: a path of 60 features has a hundred thousand products.
"""

from decimal import Decimal, localcontext
from functools import reduce

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


def shap_values(ensemble: Ensemble, row: np.ndarray, *, digits: int = 60) -> np.ndarray:
    """SHAP values of one row, shape (output, feature), computed with ``digits`` decimal digits and rounded at the end.

    Parameters
    ----------
    ensemble : Ensemble
    row : ndarray, shape (feature,)
    digits : int
        Precision of all arithmetic.
    """
    with localcontext() as context:
        context.prec = digits
        totals = [[Decimal(0)] * ensemble.n_features for _ in range(ensemble.n_outputs)]
        for tree in range(ensemble.n_trees):
            if ensemble.node_offset[tree + 1] > ensemble.node_offset[tree]:
                _add_tree(ensemble, tree, row, totals[tree % ensemble.n_outputs])
        return np.array([[float(value) for value in output] for output in totals])


def _add_tree(ensemble: Ensemble, tree: int, row: np.ndarray, totals: list[Decimal]) -> None:
    first_node, first_leaf = int(ensemble.node_offset[tree]), int(ensemble.leaf_offset[tree])
    # a stack, because a path can be longer than Python's recursion is deep
    waiting: list[tuple[int, dict[int, tuple[Decimal, bool]]]] = [(0, {})]
    while waiting:
        node, path = waiting.pop()
        if node < 0:
            _add_leaf(Decimal(float(ensemble.leaf_value[first_leaf + ~node])), path, totals)
            continue
        at = first_node + node
        feature = int(ensemble.feature[at])
        left = goes_left(ensemble, at, float(row[feature]))
        zero, one = path.get(feature, (Decimal(1), True))
        for child, taken in ((int(ensemble.left[at]), left), (int(ensemble.right[at]), not left)):
            cover = ensemble.node_count[first_node + child] if child >= 0 else ensemble.leaf_count[first_leaf + ~child]
            ratio = Decimal(float(cover)) / Decimal(float(ensemble.node_count[at]))
            waiting.append((child, {**path, feature: (zero * ratio, one and taken)}))


def _add_leaf(value: Decimal, path: dict[int, tuple[Decimal, bool]], totals: list[Decimal]) -> None:
    others = _products_of_others([Decimal(1)], list(path.values()))
    for (feature, (zero, one)), coefficients in zip(path.items(), others, strict=True):
        integral = sum((c / (power + 1) for power, c in enumerate(coefficients)), Decimal(0))
        totals[feature] += value * (int(one) - zero) * integral


def _products_of_others(product: list[Decimal], factors: list[tuple[Decimal, bool]]) -> list[list[Decimal]]:
    """For each factor z + (o - z) t: ``product`` times all others, as coefficients of t^0, t^1, ..."""
    if len(factors) == 1:
        return [product]
    half = len(factors) // 2
    first, second = factors[:half], factors[half:]
    return [
        *_products_of_others(reduce(_times, second, product), first),
        *_products_of_others(reduce(_times, first, product), second),
    ]


def _times(polynomial: list[Decimal], factor: tuple[Decimal, bool]) -> list[Decimal]:
    zero, one = factor
    slope = int(one) - zero
    return [zero * c + slope * b for c, b in zip([*polynomial, Decimal(0)], [Decimal(0), *polynomial], strict=True)]
