"""CatBoost's oblivious trees, from the JSON that it saves."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from batch_explain.trees.assemble import Nodes, NotTreesError, Sum
from batch_explain.trees.rounding import at_most_as_float32

_LINKS = {
    "Logloss": "sigmoid",
    "CrossEntropy": "sigmoid",
    "MultiClass": "softmax",
    "RMSE": "identity",
    "MAE": "identity",
}


def read_catboost(model: Any) -> Sum:
    """A ``CatBoostClassifier`` or ``CatBoostRegressor`` on numbers.

    CatBoost compares in float32: a value goes right where it is greater than the border after rounding. Covers are the
    weights of its leaves, as in its own SHAP values.

    Raises
    ------
    NotTreesError
        If it has categorical, text or embedding features, or trees that are not oblivious.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        try:
            model.save_model(str(path), format="json")
        except Exception as error:  # CatBoost's own: models of some features have no JSON
            raise NotTreesError(f"CatBoost cannot write it as JSON ({str(error)[:120]})") from error
        content = json.loads(path.read_text())
    if "oblivious_trees" not in content:
        raise NotTreesError("its trees are not oblivious (grow_policy)")
    loss = content["model_info"].get("params", {}).get("loss_function", {}).get("type")
    if loss not in _LINKS:
        raise NotTreesError(f"its loss is '{loss}', whose prediction is not the sum of its trees")
    scale, bias = content["scale_and_bias"]
    base = np.atleast_1d(np.asarray(bias, dtype=np.float64))
    features = content["features_info"]
    if any(features.get(f"{kind}_features") for kind in ("categorical", "text", "embedding")) or "ctrs" in features:
        raise NotTreesError("it has categorical, text or embedding features")
    floats = features["float_features"]
    column = {each["feature_index"]: each["flat_feature_index"] for each in floats}
    goes_left = {each["feature_index"]: each.get("nan_value_treatment") != "AsTrue" for each in floats}
    width = len(base)
    outputs: list[list[Nodes]] = [[] for _ in range(width)]
    for tree in content["oblivious_trees"]:
        values = np.asarray(tree["leaf_values"], dtype=np.float64).reshape(-1, width) * scale
        for output in range(width):
            outputs[output].append(_nodes(tree, values[:, [output]], column, goes_left))
    return Sum(outputs, base, _LINKS[loss], single=True)


def _nodes(tree: Any, values: np.ndarray, column: dict[int, int], goes_left: dict[int, bool]) -> Nodes:
    """A whole binary tree: the last split at the root, and the leaf's number in the order of the bits below it."""
    splits = tree["splits"][::-1] if tree["splits"] else []
    if any(split.get("split_type", "FloatFeature") != "FloatFeature" for split in splits):
        raise NotTreesError("it splits on categorical features")
    depth = len(splits)
    inner = 2**depth - 1
    level = np.floor(np.log2(np.arange(1, inner + 1))).astype(np.int64)
    cover = np.asarray(tree["leaf_weights"], dtype=np.float64)
    covers = [cover]
    for _ in range(depth):
        covers.append(covers[-1].reshape(-1, 2).sum(axis=1))
    borders = at_most_as_float32(np.array([split["border"] for split in splits], dtype=np.float64).reshape(-1))
    numbers = np.array([split["float_feature_index"] for split in splits], dtype=np.int64)
    padded = np.full(len(cover), -1)
    children = np.arange(inner)
    return Nodes(
        left=np.concatenate([2 * children + 1, padded]),
        right=np.concatenate([2 * children + 2, padded]),
        feature=np.concatenate([[column[number] for number in numbers[level].tolist()], padded * 0]).astype(np.int64),
        threshold=np.concatenate([borders[level], padded * 0.0]),
        default_left=np.concatenate([[goes_left[n] for n in numbers[level].tolist()], padded == 0]).astype(bool),
        cover=np.concatenate([*covers[::-1]]),
        value=np.concatenate([np.zeros((inner, 1)), values]),
        categories={},
    )
