"""LightGBM models for testing trees: trained, rewritten line by line, or written from nothing.

LightGBM itself is the oracle of all of them: ``lightgbm.Booster(model_str=text)`` reads what stands in the text.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightgbm
import numpy as np

Tree = dict[str, Any]  # a tree's lines; those of numbers as arrays

_ARRAYS = (
    "split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child", "leaf_value",
    "leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count", "cat_boundaries",
    "cat_threshold",
)  # fmt: skip
_WHOLE = ("split_feature", "decision_type", "left_child", "right_child", "leaf_count", "internal_count")

NUMERICAL = {(missing, left): missing << 2 | left << 1 for missing in range(3) for left in (False, True)}
CATEGORICAL = 1

# What LightGBM treats in a way of its own: missing, zero and almost zero, infinite, the least and the largest numbers.
SPECIAL = np.array(
    [np.nan, 0.0, -0.0, np.inf, -np.inf, 5e-324, -1e-310, 1e-35, -1e-35, 1.0000001e-35, 1.1e-35, 1.7e308, -1.7e308]
)
SPECIAL_CATEGORIES = np.array([np.nan, -1.0, -0.5, 0.0, 0.9, 31.0, 32.0, 63.5, 1e4, 2.0**31 - 1, -(2.0**31), -np.inf])


def train(
    X: np.ndarray,
    y: np.ndarray,
    *,
    rounds: int = 5,
    categorical: Sequence[int] = (),
    splits: bool = True,
    **options: Any,
) -> str:
    """The text of a model on few rows, which splits unless ``splits`` is false."""
    fixed = {
        "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2, "min_sum_hessian_in_leaf": 1e-3, "min_data_in_bin": 1,
        "min_data_per_group": 2, "cat_smooth": 0.5, "cat_l2": 0.5, "seed": 0, "deterministic": True,
        "force_col_wise": True,
    }  # fmt: skip
    if options.get("boosting") == "rf":
        fixed |= {"bagging_fraction": 0.7, "bagging_freq": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of categories that are no whole numbers, and of parameters that do nothing
        data = lightgbm.Dataset(X, y, categorical_feature=list(categorical))
        text = lightgbm.train({**fixed, **options}, data, num_boost_round=rounds).model_to_string(num_iteration=-1)
    if splits:
        assert "\nsplit_feature=" in text and re.search(r"^split_feature=\d", text, re.MULTILINE), "no tree splits"
    return text


def rewritten(text: str, change: Callable[[Tree], None]) -> str:
    """The model with every tree's lines changed in place."""
    body, end, rest = text.partition("end of trees")
    head, *sections = re.split(r"^(?=Tree=)", body, flags=re.MULTILINE)
    trees = []
    for section in sections:
        tree: Tree = dict(line.split("=", 1) for line in section.split("\n") if line)
        for key in _ARRAYS:
            if key in tree:
                tree[key] = np.array(tree[key].split(), dtype=np.int64 if key in _WHOLE else np.float64)
        change(tree)
        trees.append(tree_text(tree))
    # LightGBM finds trees by their sizes unless this line is missing
    return re.sub(r"^tree_sizes=.*\n", "", head, flags=re.MULTILINE) + "".join(trees) + end + rest


def tree_text(tree: Tree) -> str:
    """A tree's section."""

    def number(value: Any) -> str:
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))

    lines = [
        f"{key}={' '.join(map(number, value))}" if isinstance(value, (np.ndarray, list)) else f"{key}={value}"
        for key, value in tree.items()
    ]
    return "\n".join(lines) + "\n\n\n"


def written(trees: Sequence[Tree], features: int, outputs: int = 1, objective: str = "regression") -> str:
    """A model's text from its trees alone."""
    head = {
        "version": "v4",
        "num_class": outputs,
        "num_tree_per_iteration": outputs,
        "label_index": 0,
        "max_feature_idx": features - 1,
        "objective": objective,
        "feature_names": " ".join(f"f{i}" for i in range(features)),
        "feature_infos": " ".join(["[-10:10]"] * features),
    }
    lines = "".join(f"{key}={value}\n" for key, value in head.items())
    sections = (tree_text({"Tree": number, **tree}) for number, tree in enumerate(trees))
    return "tree\n" + lines + "\n" + "".join(sections) + "end of trees\n\nparameters:\nend of parameters\n"


def random_tree(
    rng: np.random.Generator,
    leaves: int,
    features: int,
    *,
    chain: float = 0.0,
    distinct: bool = False,
    categorical: Sequence[int] = (),
    thresholds: int = 20,
) -> Tree:
    """A tree of any shape.

    Parameters
    ----------
    chain : float
        Probability that the leaf that is split next is one that was made last: 1 makes a tree of one long path.
    distinct : bool
        Whether each split takes the next feature instead of any.
    categorical : sequence of int
        Features that are split by sets of categories 0 to 99.
    thresholds : int
        Number of thresholds of a feature that splits choose from.
    """
    left, right = np.zeros(leaves - 1, np.int64), np.zeros(leaves - 1, np.int64)
    places: list[tuple[np.ndarray, int]] = []  # of each leaf: where its number stands
    leaf = 0
    for node in range(leaves - 1):
        if node:
            # the leaf that was split last is now its left child, and leaf number node its right one
            newest = node if rng.random() < 0.5 else leaf
            leaf = newest if rng.random() < chain else int(rng.integers(node + 1))
            array, at = places[leaf]
            array[at] = node
        left[node], right[node] = ~leaf, ~(node + 1)
        places[leaf : leaf + 1] = [(left, node)]
        places.append((right, node))
    leaf_count = rng.integers(1, 200, leaves)
    count = np.zeros(leaves - 1, np.int64)
    for node in range(leaves - 2, -1, -1):
        count[node] = sum(count[c] if c >= 0 else leaf_count[~c] for c in (left[node], right[node]))
    feature = np.arange(leaves - 1) % features if distinct else rng.integers(features, size=leaves - 1)
    is_set = np.isin(feature, categorical)
    tree: Tree = {
        "num_leaves": leaves,
        "num_cat": int(is_set.sum()),
        "split_feature": feature,
        "split_gain": np.ones(leaves - 1),
        "threshold": np.round(rng.integers(-thresholds // 2, thresholds // 2, leaves - 1) * 2.0 / thresholds, 6),
        "decision_type": rng.choice(list(NUMERICAL.values()), leaves - 1),
        "left_child": left,
        "right_child": right,
        "leaf_value": rng.normal(size=leaves),
        "leaf_weight": leaf_count,
        "leaf_count": leaf_count,
        "internal_value": np.zeros(leaves - 1),
        "internal_weight": count,
        "internal_count": count,
    }
    if is_set.any():
        tree["decision_type"][is_set] = CATEGORICAL
        tree["threshold"][is_set] = np.arange(is_set.sum())
        tree["cat_boundaries"] = np.append(0, np.cumsum(rng.integers(1, 5, is_set.sum())))
        tree["cat_threshold"] = rng.integers(0, 1 << 32, tree["cat_boundaries"][-1])
    return tree | {"is_linear": 0, "shrinkage": 1}


def constant_tree(value: float) -> Tree:
    """A tree of one leaf, as LightGBM writes it."""
    return {
        "num_leaves": 1, "num_cat": 0, "split_feature": [], "split_gain": [], "threshold": [], "decision_type": [],
        "left_child": [], "right_child": [], "leaf_value": [value], "leaf_weight": [], "leaf_count": [],
        "internal_value": [], "internal_weight": [], "internal_count": [], "is_linear": 0, "shrinkage": 1,
    }  # fmt: skip


def booster(text: str) -> Any:
    """LightGBM's own reading of a text."""
    return lightgbm.Booster(model_str=text)


def contributions(model: Any, rows: np.ndarray, iterations: int = -1) -> np.ndarray:
    """LightGBM's own contributions, shape (output, row, feature + 1); the last one is the expected value."""
    found = model.predict(rows, pred_contrib=True, num_iteration=iterations, num_threads=1)
    outputs = model.num_model_per_iteration()
    return np.moveaxis(np.asarray(found).reshape(len(rows), outputs, rows.shape[1] + 1), 1, 0)


def margins(model: Any, rows: np.ndarray, iterations: int = -1) -> np.ndarray:
    """LightGBM's own margins, shape (output, row)."""
    found = model.predict(rows, raw_score=True, num_iteration=iterations, num_threads=1)
    return np.asarray(found).reshape(len(rows), -1).T
