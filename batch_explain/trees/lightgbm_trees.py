"""LightGBM's trees as parts of a larger sum; alone they are read by :mod:`batch_explain.trees.lightgbm_text`."""

from typing import Any

import numpy as np

from batch_explain.trees.assemble import Nodes, NotTreesError, Sum
from batch_explain.trees.ensemble import MISSING_NONE, MISSING_ZERO, Ensemble
from batch_explain.trees.lightgbm_text import read_model_text


def read_lightgbm(booster: Any, iterations: int) -> Sum:
    """A booster's trees.

    Parameters
    ----------
    booster : lightgbm.Booster
    iterations : int
        Boosting iterations that count; 0 or less: all.

    Raises
    ------
    NotTreesError
        If it takes zeros for missing values, or its prediction is not the sum of its trees.
    ArtifactError
        If it has linear trees.
    """
    ensemble = read_model_text(booster.model_to_string(num_iteration=-1)).first(iterations)
    objective, *rest = ensemble.objective.split() or ["regression"]
    if objective in ("multiclass", "softmax"):
        link = "softmax"
    elif objective == "binary":
        link = "sigmoid"
    elif objective in ("regression", "regression_l1", "huber", "fair", "quantile", "mape") and "sqrt" not in rest:
        link = "identity"
    else:
        raise NotTreesError(f"its objective is '{ensemble.objective}', whose prediction is not the sum of its trees")
    outputs: list[list[Nodes]] = [[] for _ in range(ensemble.n_outputs)]
    for tree in range(ensemble.n_trees):
        outputs[tree % ensemble.n_outputs].append(_nodes(ensemble, tree))
    found = Sum(outputs, np.zeros(ensemble.n_outputs), link)
    return found.scaled(ensemble.n_outputs / ensemble.n_trees) if ensemble.averaged else found


def _nodes(ensemble: Ensemble, tree: int) -> Nodes:
    """Inner nodes first, then leaves."""
    inner = slice(int(ensemble.node_offset[tree]), int(ensemble.node_offset[tree + 1]))
    leaves = slice(int(ensemble.leaf_offset[tree]), int(ensemble.leaf_offset[tree + 1]))
    count, ends = inner.stop - inner.start, leaves.stop - leaves.start
    if (ensemble.missing[inner] == MISSING_ZERO).any():
        raise NotTreesError("it takes zeros for missing values (zero_as_missing)")
    padded = np.full(ends, -1)
    threshold, chosen = ensemble.threshold[inner], ensemble.category_set[inner]
    # where nothing is missing NaN counts as 0
    default = np.where(ensemble.missing[inner] == MISSING_NONE, threshold >= 0, ensemble.default_left[inner])
    return Nodes(
        left=np.concatenate([_place(ensemble.left[inner], count), padded]),
        right=np.concatenate([_place(ensemble.right[inner], count), padded]),
        feature=np.concatenate([ensemble.feature[inner], padded * 0]).astype(np.int64),
        threshold=np.concatenate([threshold, padded * 0.0]),
        default_left=np.concatenate([default, padded == 0]).astype(bool),
        cover=np.concatenate([ensemble.node_count[inner], ensemble.leaf_count[leaves]]),
        value=np.concatenate([np.zeros(count), ensemble.leaf_value[leaves]])[:, None],
        categories={at: ensemble.category_sets[each] for at, each in enumerate(chosen.tolist()) if each >= 0},
    )


def _place(children: np.ndarray, inner: int) -> np.ndarray:
    return np.where(children >= 0, children, inner + ~children)
