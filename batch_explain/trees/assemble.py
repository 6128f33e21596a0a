"""From the node arrays in which tree libraries keep their trees to the one tree format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.trees.ensemble import MISSING_NAN, MISSING_NONE, Ensemble


class NotTreesError(ArtifactError):
    """A model that is no sum of trees, or none that this program can read exactly; the message says why."""


@dataclass(frozen=True)
class Nodes:
    """A tree as most libraries have it: one array over inner nodes and leaves alike, the root first.

    Parameters
    ----------
    left, right : ndarray of int, shape (node,)
        Children; -1 at leaves.
    feature : ndarray of int, shape (node,)
    threshold : ndarray of float64, shape (node,)
        A row goes left where value <= threshold.
    default_left : ndarray of bool, shape (node,)
        Where NaN goes.
    cover : ndarray of float64, shape (node,)
        Training weight that came by.
    value : ndarray of float64, shape (node, output)
        Of leaves; what it is elsewhere does not matter.
    categories : dict
        Inner node -> sorted categories that go left; all else, NaN too, goes right.
    """

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    default_left: np.ndarray
    cover: np.ndarray
    value: np.ndarray
    categories: dict[int, np.ndarray]


@dataclass(frozen=True)
class Sum:
    """Trees that add up to a model's output, before their columns have names.

    Parameters
    ----------
    outputs : list of list of Nodes
        Of each output, its trees, each with one value a leaf.
    base : ndarray of float64, shape (output,)
        What is added to them.
    link : str
        From the sum to the prediction: ``identity``, ``sigmoid``, ``softmax``; ``probability`` where it is one.
    missing : bool
        Whether NaN is a missing value; else the model takes none.
    absent_is_missing : bool
        Whether entries that a sparse row does not hold are missing rather than 0.
    single : bool
        Whether the library computes in float32, so that its own outputs are less exact than these.
    """

    outputs: list[list[Nodes]]
    base: np.ndarray
    link: str
    missing: bool = True
    absent_is_missing: bool = False
    single: bool = False

    def scaled(self, factor: float) -> "Sum":
        """The sum times a number."""
        outputs = [[replace(tree, value=tree.value * factor) for tree in trees] for trees in self.outputs]
        return replace(self, outputs=outputs, base=self.base * factor)


def split_outputs(trees: Sequence[Nodes]) -> list[list[Nodes]]:
    """Trees of several values a leaf as one list of trees for each value."""
    width = trees[0].value.shape[1]
    return [[replace(tree, value=tree.value[:, [output]]) for tree in trees] for output in range(width)]


def ensemble_of(found: Sum, names: Sequence[str], objective: str) -> Ensemble:
    """Put a sum of trees into the one format.

    Parameters
    ----------
    found : Sum
    names : sequence of str
        Of the columns.
    objective : str
        As LightGBM would spell it.

    Raises
    ------
    NotTreesError
        If no training row came by an inner node, so that path probabilities below it are not defined.
    """
    longest = max(map(len, found.outputs))
    parts: list[dict[str, np.ndarray]] = []
    sets: list[np.ndarray] = []
    if found.base.any():
        parts += [_constant(value) for value in found.base]
    for number in range(longest):
        for trees in found.outputs:
            parts.append(_part(trees[number], sets, found.missing) if number < len(trees) else _constant(0.0))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for column in columns.values():
        column.flags.writeable = False
    return Ensemble(
        feature_names=tuple(names),
        n_outputs=len(found.outputs),
        objective=objective,
        averaged=False,
        node_offset=_offsets([len(part["feature"]) for part in parts]),
        leaf_offset=_offsets([len(part["leaf_value"]) for part in parts]),
        category_sets=tuple(sets),
        **columns,
    )


def _constant(value: float) -> dict[str, np.ndarray]:
    whole: dict[str, np.ndarray] = {name: np.zeros(0, dtype) for name, dtype in _NODE_TYPES.items()}
    return {**whole, "leaf_count": np.ones(1), "leaf_value": np.array([value], dtype=np.float64)}


_NODE_TYPES: dict[str, type] = {
    "feature": np.int32,
    "threshold": np.float64,
    "category_set": np.int32,
    "missing": np.int8,
    "default_left": np.bool_,
    "left": np.int32,
    "right": np.int32,
    "node_count": np.float64,
}


def _part(tree: Nodes, sets: list[np.ndarray], missing: bool) -> dict[str, np.ndarray]:
    left, right = _without_empty(tree)
    order = _by_level(left, right)
    inner, leaves = order[left[order] >= 0], order[left[order] < 0]
    if not len(inner):
        return _constant(float(tree.value[0, 0]))
    number = np.empty(len(left), dtype=np.int32)
    number[inner] = np.arange(len(inner))
    number[leaves] = ~np.arange(len(leaves))
    chosen = np.full(len(inner), -1, dtype=np.int32)
    for place, node in enumerate(inner.tolist()):
        if node in tree.categories:
            chosen[place] = len(sets)
            sets.append(np.asarray(tree.categories[node], dtype=np.int64))
    found = {
        "feature": tree.feature[inner],
        "threshold": np.where(chosen >= 0, np.nan, tree.threshold[inner]),
        "category_set": chosen,
        "missing": np.full(len(inner), MISSING_NAN if missing else MISSING_NONE),
        "default_left": tree.default_left[inner],
        "left": number[left[inner]],
        "right": number[right[inner]],
        "node_count": tree.cover[inner],
    }
    typed = {name: np.asarray(values, dtype=_NODE_TYPES[name]) for name, values in found.items()}
    typed["leaf_count"] = np.asarray(tree.cover[leaves], dtype=np.float64)
    typed["leaf_value"] = np.asarray(tree.value[leaves, 0], dtype=np.float64)
    return typed


def _by_level(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """All nodes that can be reached, each after its parent."""
    levels = [np.zeros(1, dtype=np.int64)]
    while len(levels[-1]):
        inner = levels[-1][left[levels[-1]] >= 0]
        levels.append(np.concatenate([left[inner], right[inner]]).astype(np.int64))
    return np.concatenate(levels)


def _without_empty(tree: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Children, with inner nodes that no training row came by made leaves where all below them is one value."""
    empty = np.flatnonzero((tree.left >= 0) & ~(tree.cover > 0))
    if not len(empty):
        return tree.left, tree.right
    left, right = tree.left.copy(), tree.right.copy()
    for node in empty.tolist():
        below = _by_level_from(tree, node)
        values = tree.value[below[tree.left[below] < 0]]
        if (values != values[0]).any():
            _refuse(
                "no training row came by one of its inner nodes: SHAP's path probabilities below it are not defined"
            )
        tree.value[node] = values[0]
        left[node] = right[node] = -1
    return left, right


def _by_level_from(tree: Nodes, node: int) -> np.ndarray:
    found, waiting = [], [node]
    while waiting:
        at = waiting.pop()
        found.append(at)
        if tree.left[at] >= 0:
            waiting += [int(tree.left[at]), int(tree.right[at])]
    return np.array(found)


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    offsets.flags.writeable = False
    return offsets


def _refuse(reason: str) -> NoReturn:
    raise NotTreesError(reason)
