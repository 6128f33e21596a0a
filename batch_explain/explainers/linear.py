"""Linear surrogates: exact in closed form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, Matrix, UsedValues, dense


class LinearExplainer(Explainer):
    """Importance = coefficient x (value - mean of the background).

    The SHAP values of a linear model under feature independence (Lundberg and Lee, 2017, corollary 1), which is what
    ``shap.LinearExplainer`` computes for ``feature_perturbation="interventional"``.

    Parameters
    ----------
    coefficients : ndarray, shape (output, engineered feature)
    means : ndarray, shape (engineered feature,)
        Of the background data.
    expected_values : ndarray, shape (output,)
        Margin at ``means``.
    intercepts : ndarray, shape (output,)
        The model's own; they check the expected values.
    link : str
        See :class:`Explainer`.

    Attributes
    ----------
    coefficients, means, intercepts : ndarray
    """

    kind = "linear"

    def __init__(
        self,
        coefficients: np.ndarray,
        means: np.ndarray,
        expected_values: np.ndarray,
        intercepts: np.ndarray,
        *,
        engineered_features: Sequence[str] | None,
        surrogate_classes: tuple[Any, ...] | None = None,
        link: str = "identity",
        data_mapper: Any = None,
    ) -> None:
        self.data_mapper = data_mapper
        self.coefficients = np.atleast_2d(np.asarray(coefficients, dtype=np.float64))
        self.means = np.asarray(means, dtype=np.float64)
        self.intercepts = np.atleast_1d(np.asarray(intercepts, dtype=np.float64))
        width = self.coefficients.shape[1]
        self.engineered_features = tuple(engineered_features or (f"Column_{i}" for i in range(width)))
        if len(self.engineered_features) != width:
            raise ArtifactError(
                f"The explainer names {len(self.engineered_features)} engineered features but its linear surrogate "
                f"takes {width}. It does not hold together: make the explainer again."
            )
        self.used = np.flatnonzero(np.any(self.coefficients != 0, axis=0))
        self.expected_values = np.atleast_1d(np.asarray(expected_values, dtype=np.float64)).copy()
        self.surrogate_classes = surrogate_classes if self.n_outputs > 1 else None
        self.link = link
        self.description = f"linear surrogate, {len(self.used)} features used"

    def values_of(self, engineered: Matrix) -> UsedValues:
        """See :meth:`Explainer.values_of`."""
        centred = dense(engineered[:, self.used]).T - self.means[self.used, None]
        values = self.coefficients[:, self.used, None] * centred
        return UsedValues(values, self.expected_values[:, None] + values.sum(axis=1))

    def margins(self, engineered: Matrix) -> np.ndarray:
        """See :meth:`Explainer.margins`."""
        return np.asarray((engineered @ self.coefficients.T).T + self.intercepts[:, None])
