"""XGBoost's trees, from the JSON that it saves."""

import json
from typing import Any

import numpy as np

from batch_explain.trees.assemble import Nodes, NotTreesError, Sum
from batch_explain.trees.rounding import below_as_float32

_SIGMOID = ("binary:logistic", "reg:logistic", "binary:logitraw")
_SOFTMAX = ("multi:softprob", "multi:softmax")
_IDENTITY = ("reg:squarederror", "reg:linear", "reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror")


def read_xgboost(booster: Any, iterations: int | None = None) -> Sum:
    """A booster of trees (``gbtree``, ``dart``).

    XGBoost compares in float32: a value goes left where it is less than the threshold after rounding. Its contributions
    take the sums of hessians for covers, and so do these. It adds up in float32 and this does not.

    Parameters
    ----------
    booster : xgboost.Booster
    iterations : int, optional
        Boosting iterations that count; None: all.

    Raises
    ------
    NotTreesError
        If it is no sum of trees, or splits on categories.
    """
    content = json.loads(booster.save_raw("json"))["learner"]
    boosting = content["gradient_booster"]
    if boosting["name"] not in ("gbtree", "dart"):
        raise NotTreesError(f"XGBoost's booster '{boosting['name']}' has no trees")
    model = boosting.get("gbtree", boosting)["model"]
    factors = boosting.get("weight_drop", model.get("weight_drop")) or None  # of dropped trees; newer versions: second
    objective = content["objective"]["name"]
    classes = max(1, int(content["learner_model_param"]["num_class"]))
    if int(content["learner_model_param"].get("num_target", 1)) > 1:
        raise NotTreesError("it predicts several targets")
    trees, groups = model["trees"], model["tree_info"]
    outputs: list[list[Nodes]] = [[] for _ in range(classes)]
    offsets = model.get("iteration_indptr") or _iterations(len(trees), classes, model)
    last = len(trees) if iterations is None else offsets[min(iterations, len(offsets) - 1)]
    for number in range(last):
        factor = 1.0 if factors is None else float(np.float32(factors[number]))
        outputs[groups[number]].append(_nodes(trees[number], factor))
    base, link = _base(content["learner_model_param"]["base_score"], objective, classes)
    return Sum(outputs, base, link, absent_is_missing=True, single=True)


def _iterations(trees: int, classes: int, model: Any) -> list[int]:
    parallel = max(1, int(model["gbtree_model_param"].get("num_parallel_tree", 1)))
    return list(range(0, trees + 1, classes * parallel))


def _nodes(tree: Any, factor: float) -> Nodes:
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise NotTreesError("its trees hold several values a leaf (multi_strategy)")
    if any(tree.get("categories_nodes", ())):
        raise NotTreesError("it splits on XGBoost's own categories")
    left = np.array(tree["left_children"], dtype=np.int64)
    conditions = np.array(tree["split_conditions"], dtype=np.float32)
    return Nodes(
        left=left,
        right=np.array(tree["right_children"], dtype=np.int64),
        feature=np.where(left < 0, 0, np.array(tree["split_indices"], dtype=np.int64)),
        threshold=below_as_float32(conditions),
        default_left=np.array(tree["default_left"], dtype=bool),
        cover=np.array(tree["sum_hessian"], dtype=np.float32).astype(np.float64),
        value=conditions.astype(np.float64)[:, None] * factor,
        categories={},
    )


def _base(text: str, objective: str, classes: int) -> tuple[np.ndarray, str]:
    """The margin that the trees are added to, and the link."""
    given = np.array(json.loads(text) if text.startswith("[") else [float(text)], dtype=np.float32).astype(np.float64)
    given = np.resize(given, classes)
    if objective in _SIGMOID:
        return (given if objective == "binary:logitraw" else np.log(given) - np.log1p(-given)), "sigmoid"
    if objective in _SOFTMAX:
        return given, "softmax"
    if objective in _IDENTITY:
        return given, "identity"
    raise NotTreesError(f"its objective is '{objective}', whose prediction is not the sum of its trees")
