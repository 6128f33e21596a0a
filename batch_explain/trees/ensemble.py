"""The one tree format: frozen arrays over all trees of an ensemble."""

from dataclasses import dataclass, replace

import numpy as np

MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2

# LightGBM's predictor takes |value| <= kZeroThreshold (a float) for 0, before any decision.
ZERO_THRESHOLD = float(np.float32(1e-35))


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Additive trees; a row goes left at a numerical split where value <= threshold.

    Parameters
    ----------
    feature_names : tuple of str
        Of all input columns.
    n_outputs : int
        Columns of margins; tree ``t`` adds to output ``t % n_outputs``.
    objective : str
        The training objective with its parameters, as the source spells it.
    averaged : bool
        Whether predictions (but neither margins nor importances) are divided by the number of trees.
    node_offset, leaf_offset : ndarray of int, shape (tree + 1,)
        Where each tree's inner nodes and leaves begin in the arrays below. A tree of one leaf has no inner node.
    feature : ndarray of int32, shape (node,)
        Column that is compared.
    threshold : ndarray of float64, shape (node,)
        NaN at categorical splits.
    category_set : ndarray of int32, shape (node,)
        -1 at numerical splits; elsewhere the position in ``category_sets``.
    missing : ndarray of int8, shape (node,)
        What is missing: ``MISSING_NONE`` nothing (NaN counts as 0), ``MISSING_ZERO`` zeros and NaN, ``MISSING_NAN``
        NaN.
    default_left : ndarray of bool, shape (node,)
        Where a missing value goes at a numerical split.
    left, right : ndarray of int32, shape (node,)
        Children: an inner node's number within its tree, or ``~leaf``. Children have larger numbers than their parent.
    node_count, leaf_count : ndarray of float64, shape (node,) and (leaf,)
        Training rows that came by: the covers whose ratios are SHAP's path probabilities.
    leaf_value : ndarray of float64, shape (leaf,)
    category_sets : tuple of ndarray of int64
        Sorted categories (value truncated toward zero) that go left. NaN, negative and all other categories go right.
    """

    feature_names: tuple[str, ...]
    n_outputs: int
    objective: str
    averaged: bool
    node_offset: np.ndarray
    leaf_offset: np.ndarray
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
    category_sets: tuple[np.ndarray, ...]

    @property
    def n_trees(self) -> int:
        """Number of trees, over all outputs."""
        return len(self.node_offset) - 1

    @property
    def n_features(self) -> int:
        """Number of input columns."""
        return len(self.feature_names)

    @property
    def used(self) -> np.ndarray:
        """Sorted columns that any tree splits on; all others have an importance of exactly 0."""
        return np.unique(self.feature).astype(np.int64)

    def first(self, iterations: int) -> "Ensemble":
        """The ensemble of the first boosting iterations (``n_outputs`` trees each); 0 or less: all."""
        trees = iterations * self.n_outputs
        if trees <= 0 or trees >= self.n_trees:
            return self
        nodes, leaves = int(self.node_offset[trees]), int(self.leaf_offset[trees])
        by_node = ("feature", "threshold", "category_set", "missing", "default_left", "left", "right", "node_count")
        return replace(
            self,
            node_offset=self.node_offset[: trees + 1],
            leaf_offset=self.leaf_offset[: trees + 1],
            leaf_count=self.leaf_count[:leaves],
            leaf_value=self.leaf_value[:leaves],
            **{name: getattr(self, name)[:nodes] for name in by_node},
        )

    def expected_values(self) -> np.ndarray:
        """Mean margin over the covers, shape (output,): what the importances add up from."""
        expected = np.zeros(self.n_outputs)
        for tree in range(self.n_trees):
            leaves = slice(self.leaf_offset[tree], self.leaf_offset[tree + 1])
            values = self.leaf_value[leaves]
            if len(values) > 1:
                share = self.leaf_count[leaves] / self.node_count[self.node_offset[tree]]
                expected[tree % self.n_outputs] += float(share @ values)
            else:
                expected[tree % self.n_outputs] += float(values[0])
        return expected
