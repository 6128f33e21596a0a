"""LightGBM surrogates, explained by exact path-dependent TreeSHAP."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, Matrix, UsedValues, dense

# Below this width a sparse batch is made dense: LightGBM's sparse contributions go through a hash map per row.
DENSE_COLUMNS = 1_000


class TreeExplainer(Explainer):
    """A LightGBM booster.

    Values are LightGBM's ``pred_contrib`` (Lundberg, Erion and Lee, 2018, "Consistent Individualized Feature
    Attribution for Tree Ensembles", algorithm 2).

    Parameters
    ----------
    booster : lightgbm.Booster
        The surrogate.
    engineered_features : sequence of str or None
        Names of its columns; None: the booster's own.
    iterations, sparse_iterations : int
        Boosting iterations used for dense and for sparse input; 0 or less: all. The SDK uses all for dense input and
        the best iteration of early stopping for sparse input, so the two can differ.
    data_mapper : object, optional
        ``transform`` from raw to engineered, of explainers made with ``transformations``.
    probability_model : object, optional
        A classifier whose ``predict_proba`` the values are rescaled to (``shap_values_output="probability"``).
    """

    kind = "tree"

    def __init__(
        self,
        booster: Any,
        *,
        engineered_features: Sequence[str] | None = None,
        iterations: int = -1,
        sparse_iterations: int = -1,
        surrogate_classes: tuple[Any, ...] | None = None,
        data_mapper: Any = None,
        probability_model: Any = None,
    ) -> None:
        text = booster.model_to_string(num_iteration=-1)
        if re.search(r"^is_linear=1", text, re.MULTILINE):
            raise ArtifactError(
                "The surrogate has linear trees (linear_tree=true), for which no exact SHAP values exist. Train it "
                "with linear_tree=false."
            )
        self._booster = booster
        self._iterations, self._sparse_iterations = iterations, sparse_iterations
        self.data_mapper = data_mapper
        self._probability_model = probability_model
        self._width = int(booster.num_feature())
        self.engineered_features = tuple(engineered_features or booster.feature_name())
        if len(self.engineered_features) != self._width:
            raise ArtifactError(
                f"The explainer names {len(self.engineered_features)} engineered features but its surrogate takes "
                f"{self._width}. The pickle does not hold together: make the explainer again."
            )
        self.used = _split_features(text)
        self._outputs = int(booster.num_model_per_iteration())
        self.expected_values = self._contributions(np.zeros((1, self._width)), iterations)[:, -1, 0].copy()
        self.surrogate_classes = surrogate_classes if self._outputs > 1 else None
        self.link = _link(text, self._outputs)
        self.description = f"LightGBM surrogate, {booster.num_trees()} trees, {len(self.used)} features used"

    def learn(self, first_row: Matrix) -> None:
        """Take the expected values of the format that is explained: the iteration limits can differ."""
        super().learn(first_row)
        if sp.issparse(first_row) and self._sparse_iterations != self._iterations:
            self.expected_values = self._contributions(first_row, self._sparse_iterations)[:, -1, 0].copy()

    def explain_used(self, engineered: Matrix) -> UsedValues:
        """See :meth:`Explainer.explain_used`."""
        sparse = sp.issparse(engineered)
        contributions = self._contributions(engineered, self._sparse_iterations if sparse else self._iterations)
        values = contributions[:, :-1]
        margins = contributions.sum(axis=1)
        if self._probability_model is not None and not sparse:
            values = self._as_probability(values, contributions[:, -1, 0], engineered)
        return UsedValues(values, margins)

    def margins(self, engineered: Matrix) -> np.ndarray:
        """See :meth:`Explainer.margins`."""
        iterations = self._sparse_iterations if sp.issparse(engineered) else self._iterations
        raw = self._booster.predict(engineered, raw_score=True, num_iteration=iterations, num_threads=1)
        return np.asarray(raw).reshape(engineered.shape[0], self._outputs).T

    def _contributions(self, engineered: Matrix, iterations: int) -> np.ndarray:
        """Shape (output, used feature + 1, row); the last feature is the expected value."""
        rows = engineered.shape[0]
        kept = np.append(self.used, self._width)
        result = np.empty((self._outputs, len(kept), rows))
        if rows == 0:
            return result
        if sp.issparse(engineered) and self._width <= DENSE_COLUMNS:
            engineered = dense(engineered)
        found = self._booster.predict(engineered, pred_contrib=True, num_iteration=iterations, num_threads=1)
        if isinstance(found, np.ndarray):
            wide = found.reshape(rows, self._outputs, self._width + 1)
            for output in range(self._outputs):
                result[output] = wide[:, output, kept].T
        else:
            for output, matrix in enumerate(found if isinstance(found, list) else [found]):
                result[output] = sp.csc_matrix(matrix)[:, kept].toarray().T
        return result

    def _as_probability(self, values: np.ndarray, expected: np.ndarray, engineered: Matrix) -> np.ndarray:
        """Rescale each output's values toward the probability, as the SDK does for dense multiclass input.

        The formula is ``interpret_community.common.explanation_utils._scale_single_shap_matrix``'s: the error
        against the probability is spread over the features in proportion to their absolute values, and what is left
        of it evenly. It is a heuristic; for sparse input the SDK has none.
        """
        probability = self._probability_model.predict_proba(engineered)
        n_features = self._width
        scaled = np.empty_like(values)
        for output, value in enumerate(values):
            error = probability[:, output] - value.sum(axis=0) - expected[output]
            size, magnitude = np.abs(error), np.abs(value).sum(axis=0)
            share = np.sign(error) * np.minimum(size, magnitude) / np.where(magnitude > 0, magnitude, 1.0)
            flat = np.maximum(size - magnitude, 0.0) * np.sign(error) / n_features
            scaled[output] = value + share * np.abs(value) + flat
        return scaled


def _split_features(text: str) -> np.ndarray:
    """Features that any tree splits on, from the model text (its importances leave out splits without gain)."""
    used: set[int] = set()
    for line in re.findall(r"^split_feature=(.*)$", text, re.MULTILINE):
        used.update(int(feature) for feature in line.split())
    return np.array(sorted(used), dtype=np.int64)


def _link(text: str, outputs: int) -> str:
    """From margin to prediction, read from the model text's objective line."""
    found = re.search(r"^objective=(\S+)(.*)$", text, re.MULTILINE)
    objective, rest = (found.group(1), found.group(2)) if found else ("regression", "")
    if objective == "multiclass":
        return "softmax"
    if objective == "binary" and outputs == 1 and "sigmoid:1" in rest:
        return "sigmoid"
    if objective in ("regression", "regression_l1", "huber", "fair", "quantile", "mape") and "sqrt" not in rest:
        return "identity"
    return "unknown"
