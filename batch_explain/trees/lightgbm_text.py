"""LightGBM's model text: scan it into sections of ``key=value`` lines, then parse the sections.

The rules of the format (``Tree::ToString`` and ``GBDT::SaveModelToString`` of LightGBM 3.3 and 4.6), in one place:

- A header of ``key=value`` lines, then sections that begin with ``Tree=<number>``, then ``end of trees``.
- ``decision_type`` of a node: bit 0 categorical, bit 1 missing values go left, bits 2 and 3 what counts as missing.
- A child >= 0 is an inner node of the tree, a child < 0 is the leaf ``~child``. Nodes are numbered in the order in
  which they were split, so that children have larger numbers than their parent.
- ``threshold`` of a categorical node is the number of its set; set ``i`` is the bits of the words
  ``cat_threshold[cat_boundaries[i] : cat_boundaries[i + 1]]``, the lowest bit first.
- Leaf values are already multiplied by the learning rate.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.trees.ensemble import MISSING_NAN, MISSING_NONE, MISSING_ZERO, Ensemble

VERSIONS = ("v3", "v4")

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2
_MISSING = {0: MISSING_NONE, 1: MISSING_ZERO, 2: MISSING_NAN}

# key -> dtype of its numbers; one number an inner node, and one a leaf
_NODE_KEYS: dict[str, type] = {
    "split_feature": np.int32,
    "threshold": np.float64,
    "decision_type": np.int64,
    "left_child": np.int32,
    "right_child": np.int32,
    "internal_count": np.float64,
}
_LEAF_KEYS: dict[str, type] = {"leaf_value": np.float64, "leaf_count": np.float64}

_MEND = "Write it again with Booster.save_model, or copy it again from where it was made."


class UnknownFormatError(ArtifactError):
    """A model text of a version that this reader does not know; LightGBM itself may."""


@dataclass(frozen=True)
class _Tree:
    """One tree's arrays, children checked."""

    feature: np.ndarray
    threshold: np.ndarray
    category_set: np.ndarray
    missing: np.ndarray
    default_left: np.ndarray
    left: np.ndarray
    right: np.ndarray
    node_count: np.ndarray
    leaf_count: np.ndarray
    leaf_value: np.ndarray
    category_sets: list[np.ndarray]


def read_model_text(text: str) -> Ensemble:
    """Read a LightGBM model text.

    Parameters
    ----------
    text : str
        As ``Booster.model_to_string`` and ``Booster.save_model`` write it.

    Returns
    -------
    Ensemble
        All its trees.

    Raises
    ------
    UnknownFormatError
        If the text has another format version than those in ``VERSIONS``.
    ArtifactError
        If the text is damaged or incomplete, has linear trees, or an inner node that no training row came by.
    """
    header, sections = _scan(text)
    version = header.get("version")
    if version not in VERSIONS:
        raise UnknownFormatError(
            f"The LightGBM model text has format version {version!r}; this program reads {' and '.join(VERSIONS)}."
        )
    names = tuple(header.get("feature_names", "").split())
    width = _whole(header, "max_feature_idx") + 1
    if len(names) != width:
        _refuse(f"it names {len(names)} features where max_feature_idx promises {width}")
    outputs = _whole(header, "num_tree_per_iteration")
    if outputs < 1 or len(sections) % outputs:
        _refuse(f"it has {len(sections)} trees, which is no multiple of its {outputs} outputs")
    trees = [_parse_tree(section, number, width) for number, section in enumerate(sections)]
    return Ensemble(
        feature_names=names,
        n_outputs=outputs,
        objective=header.get("objective", ""),
        averaged="average_output" in header,
        node_offset=_offsets(len(tree.feature) for tree in trees),
        leaf_offset=_offsets(len(tree.leaf_value) for tree in trees),
        feature=_joined([tree.feature for tree in trees], np.int32),
        threshold=_joined([tree.threshold for tree in trees], np.float64),
        category_set=_joined(_renumbered(trees), np.int32),
        missing=_joined([tree.missing for tree in trees], np.int8),
        default_left=_joined([tree.default_left for tree in trees], np.bool_),
        left=_joined([tree.left for tree in trees], np.int32),
        right=_joined([tree.right for tree in trees], np.int32),
        node_count=_joined([tree.node_count for tree in trees], np.float64),
        leaf_count=_joined([tree.leaf_count for tree in trees], np.float64),
        leaf_value=_joined([tree.leaf_value for tree in trees], np.float64),
        category_sets=tuple(categories for tree in trees for categories in tree.category_sets),
    )


def _scan(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The header, and one section a tree; a key without ``=`` has an empty value."""
    body, end, _ = text.replace("\r\n", "\n").partition("\nend of trees")
    head, *bodies = body.split("\nTree=")
    sections = [_lines("Tree=" + section) for section in bodies]
    header = _lines(head)
    promised = header.get("tree_sizes")
    if not end or (promised is not None and len(promised.split()) != len(sections)):
        raise ArtifactError(f"The LightGBM model text is not complete: trees are missing. {_MEND}")
    return header, sections


def _lines(section: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in section.split("\n"):
        key, _, value = line.partition("=")
        if key:
            found[key] = value
    return found


def _parse_tree(section: dict[str, str], number: int, width: int) -> _Tree:
    if section.get("is_linear", "0").strip() == "1":
        raise ArtifactError(
            f"Tree {number} of the LightGBM model is a linear tree (linear_tree=true), for which no exact SHAP values "
            "exist. Train the surrogate with linear_tree=false."
        )
    leaves = _whole(section, "num_leaves", number)
    if leaves < 1:
        _refuse(f"tree {number} has {leaves} leaves")
    nodes = {key: _numbers(section, key, dtype, leaves - 1, number) for key, dtype in _NODE_KEYS.items()}
    if leaves == 1:
        constant = _numbers(section, "leaf_value", np.float64, 1, number)
        by_leaf = {"leaf_value": constant, "leaf_count": np.ones(1)}
    else:
        by_leaf = {key: _numbers(section, key, dtype, leaves, number) for key, dtype in _LEAF_KEYS.items()}
    feature, decision = nodes["split_feature"], nodes["decision_type"]
    if np.any((feature < 0) | (feature >= width)):
        _refuse(f"tree {number} splits on a feature that does not exist")
    _check_children(nodes["left_child"], nodes["right_child"], leaves, number)
    if not all(np.isfinite(values).all() for values in (by_leaf["leaf_value"], by_leaf["leaf_count"])):
        _refuse(f"tree {number} has a leaf whose value or count is not a number")
    if np.any(by_leaf["leaf_count"] < 0):
        _refuse(f"tree {number} has a leaf whose count is negative")
    counted = (nodes["internal_count"] > 0) & np.isfinite(nodes["internal_count"])
    if not counted.all():
        node = int(np.argmin(counted))
        raise ArtifactError(
            f"Inner node {node} of tree {number} of the LightGBM model has a count of "
            f"{nodes['internal_count'][node]:g}: SHAP's path probabilities below it are not defined. Make the "
            "explainer again from training data."
        )
    if np.isnan(nodes["threshold"]).any():
        _refuse(f"tree {number} has a threshold that is not a number")
    missing = decision >> _MISSING_SHIFT
    if not np.isin(missing, list(_MISSING)).all():
        _refuse(f"tree {number} has an unknown type of missing values")
    categorical = (decision & _CATEGORICAL) != 0
    sets, chosen = _parse_category_sets(section, nodes["threshold"], categorical, number)
    return _Tree(
        feature=feature,
        threshold=np.where(categorical, np.nan, nodes["threshold"]),
        category_set=chosen,
        missing=missing.astype(np.int8),
        default_left=(decision & _DEFAULT_LEFT) != 0,
        left=nodes["left_child"],
        right=nodes["right_child"],
        node_count=nodes["internal_count"],
        leaf_count=by_leaf["leaf_count"],
        leaf_value=by_leaf["leaf_value"],
        category_sets=sets,
    )


def _check_children(left: np.ndarray, right: np.ndarray, leaves: int, number: int) -> None:
    """Every inner node but the root, and every leaf, is the child of exactly one earlier node: a tree, not a graph."""
    children = np.concatenate([left, right])
    parents = np.tile(np.arange(leaves - 1), 2)
    expected = np.concatenate([np.arange(-leaves, 0), np.arange(1, leaves - 1)]) if leaves > 1 else np.empty(0)
    inner = children >= 0
    if not np.array_equal(np.sort(children), expected) or np.any(children[inner] <= parents[inner]):
        _refuse(f"the nodes of tree {number} do not form a tree")


def _parse_category_sets(
    section: dict[str, str], threshold: np.ndarray, categorical: np.ndarray, number: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The tree's sets of categories, and for each node the number of its set or -1."""
    chosen = np.full(len(threshold), -1, dtype=np.int32)
    if not categorical.any():
        return [], chosen
    count = _whole(section, "num_cat", number)
    bounds = _numbers(section, "cat_boundaries", np.int64, count + 1, number)
    words = _numbers(section, "cat_threshold", np.int64, int(bounds[-1]), number)
    if bounds[0] != 0 or np.any(np.diff(bounds) < 0) or np.any((words < 0) | (words >= 1 << 32)):
        _refuse(f"the categories of tree {number} cannot be read")
    bits = (words[:, None] >> np.arange(32)) & 1
    sets = [np.flatnonzero(bits[start:stop].ravel()) for start, stop in itertools.pairwise(bounds)]
    wanted = threshold[categorical]
    if np.any((wanted < 0) | (wanted >= count) | (wanted != np.floor(wanted))):
        _refuse(f"tree {number} splits on a set of categories that does not exist")
    chosen[categorical] = wanted.astype(np.int32)
    return sets, chosen


def _numbers(section: dict[str, str], key: str, dtype: type, count: int, number: int) -> np.ndarray:
    try:
        values = np.array(section.get(key, "").split(), dtype=np.float64)
    except ValueError:
        _refuse(f"'{key}' of tree {number} has something other than numbers in it")
    if len(values) != count:
        _refuse(f"'{key}' of tree {number} has {len(values)} numbers instead of {count}")
    if issubclass(dtype, np.integer):
        if np.any(values != np.floor(values)) or np.any(np.abs(values) > np.iinfo(dtype).max):
            _refuse(f"'{key}' of tree {number} has a number that is not whole, or too large")
        return values.astype(dtype)
    return values


def _whole(section: dict[str, str], key: str, number: int | None = None) -> int:
    try:
        return int(section.get(key, ""))
    except ValueError:
        _refuse(f"'{key}' of {'the header' if number is None else f'tree {number}'} is missing or no whole number")


def _refuse(reason: str) -> NoReturn:
    raise ArtifactError(f"The LightGBM model text is damaged: {reason}. {_MEND}")


def _renumbered(trees: list[_Tree]) -> list[np.ndarray]:
    """Category sets numbered over all trees."""
    result, before = [], 0
    for tree in trees:
        result.append(np.where(tree.category_set >= 0, tree.category_set + before, -1))
        before += len(tree.category_sets)
    return result


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    joined: np.ndarray = np.concatenate([*arrays, np.empty(0, dtype)]).astype(dtype)
    joined.flags.writeable = False
    return joined


def _offsets(sizes: Iterable[int]) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum(list(sizes))]).astype(np.int64)
    offsets.flags.writeable = False
    return offsets
