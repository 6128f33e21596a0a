"""The interface of every explainer, and what it returns."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

Matrix: TypeAlias = np.ndarray | sp.csr_matrix


@dataclass(frozen=True)
class Importances:
    """Importance values of a batch.

    Parameters
    ----------
    values : ndarray, shape (output, feature, row), float64
        ``values[o, f]`` is contiguous: one feature's importances for all rows.
    expected_values : ndarray, shape (output,), float64
        What the values add up from; NaN where the explainer states none.
    feature_names : tuple of str
        Names along the second axis.
    classes : tuple or None
        Labels along the first axis where there are several outputs; None for a single output.
    """

    values: np.ndarray
    expected_values: np.ndarray
    feature_names: tuple[str, ...]
    classes: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class UsedValues:
    """Importances of the features that can be other than zero, and the margins that they add up to.

    Parameters
    ----------
    values : ndarray, shape (output, used feature, row), float64, or None
        Along ``Explainer.used``; None where they were not asked for.
    margins : ndarray, shape (output, row), float64
        Expected value + sum of the values, before any rescaling to probabilities; NaN where there is no expected value.
    raw : ndarray, shape (output, raw feature, row), float64, or None
        None where they were not asked for, or there is no feature map.
    """

    values: np.ndarray | None
    margins: np.ndarray
    raw: np.ndarray | None = None


class Explainer(ABC):
    """Explains rows of engineered features.

    Attributes
    ----------
    kind : str
        ``tree``, ``linear``, or ``opaque`` (whatever has an ``explain`` of its own).
    description : str
        What it is, for people.
    engineered_features : tuple of str
        Names of its input columns.
    raw_features : tuple of str or None
        Names along the feature map's first axis.
    feature_map : csr_matrix, shape (raw, engineered), or None
        Weights, each engineered column's adding up to 1 (or all 0: its importance has no raw feature to go to).
    used : ndarray of int
        Positions of the engineered features that can have an importance other than 0.
    expected_values : ndarray, shape (output,), float64
        Base values; NaN where unknown.
    surrogate_classes : tuple or None
        The surrogate's own labels, one an output; None for a single output or where it has none.
    link : str
        From margin to prediction: ``identity``, ``sigmoid``, ``softmax``, ``probability`` (it is one), or ``unknown``.
    additive : bool
        Whether values + expected value = margin is promised, so that a violation stops the run.
    margin_tolerance : float
        What is no violation, relative to the row's largest value, at least 1.
    notes : tuple of str
        Decisions that a reader of the results must know.
    data_mapper : object or None
        ``transform`` from raw to engineered, of explainers made with ``transformations``.
    task : str or None
        ``classification`` or ``regression``, where the artifact records which model it explains.
    classes : tuple or None
        That model's class labels; None for regression and where it is not recorded.
    """

    kind: str
    description: str
    engineered_features: tuple[str, ...]
    raw_features: tuple[str, ...] | None = None
    feature_map: sp.csr_matrix | None = None
    used: np.ndarray
    expected_values: np.ndarray
    surrogate_classes: tuple[Any, ...] | None = None
    link: str = "unknown"
    additive: bool = True
    margin_tolerance: float = 1e-6
    notes: tuple[str, ...] = ()
    data_mapper: Any = None
    task: str | None = None
    classes: tuple[Any, ...] | None = None

    @property
    def n_outputs(self) -> int:
        """Number of columns of margins."""
        return len(self.expected_values)

    @property
    def featurizes(self) -> bool:
        """Whether it was made with ``transformations`` and so takes raw rows to engineered ones itself."""
        return self.data_mapper is not None

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """Labels of the outputs, as far as the artifact knows them; None for a single output."""
        if self.n_outputs > 1 and self.classes is not None and len(self.classes) == self.n_outputs:
            return self.classes
        return self.surrogate_classes

    @property
    def depends_on_format(self) -> bool:
        """Whether the same row has other importances when it is sparse than when it is dense."""
        return False

    @property
    def treeshap(self) -> dict[str, Any] | None:
        """What computes TreeSHAP in this process, for ``run.json``; None where nothing does."""
        return None

    @property
    def scratch_bytes(self) -> int:
        """Memory that explaining takes for each row beside the values that it returns."""
        return 0

    @property
    def learns_from_rows(self) -> bool:
        """Whether :meth:`learn` must see a row before names, outputs and feature map are known."""
        return self.featurizes and self.feature_map is None

    def featurize(self, frame: "pd.DataFrame") -> Matrix:
        """Raw frame -> engineered matrix, by the ``transformations`` it was made with."""
        if self.raw_features is None:
            self.raw_features = tuple(str(name) for name in frame.columns)
        frame = frame[list(self.raw_features)]  # its feature map follows the first frame's column order
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # building the map from the first row warns about names and sparsity
            return as_matrix(self.data_mapper.transform(frame))

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Do now what the first batch would have to wait for."""

    def learn(self, first_row: Matrix) -> None:
        """Learn from one engineered row what the artifact itself does not record."""
        if self.featurizes and self.feature_map is None:
            self.set_feature_map(combine_maps([self.data_mapper.feature_map]))

    def learned(self) -> dict[str, Any]:
        """What :meth:`learn` found and other processes must not learn anew from other rows; JSON."""
        return {}

    def take_learned(self, state: dict[str, Any]) -> None:  # noqa: B027 - most learn nothing
        """Take what another process learned."""

    def set_feature_map(self, weights: sp.csr_matrix) -> None:
        """Take a normalised feature map, shape (raw, engineered).

        Raises
        ------
        ArtifactError
            If its shape does not fit the explainer's features.
        """
        if self.raw_features is None:
            self.raw_features = tuple(f"raw_{i}" for i in range(weights.shape[0]))
            self.notes += ("the explainer has a feature map but no raw feature names: they are numbered",)
        if weights.shape != (len(self.raw_features), len(self.engineered_features)):
            raise ArtifactError(
                f"The feature map has shape {weights.shape}, but the explainer has {len(self.raw_features)} raw and "
                f"{len(self.engineered_features)} engineered features. It does not hold together: make it again."
            )
        self.feature_map = weights

    def set_background(self, engineered: Matrix) -> None:
        """Compare with these rows from now on: interventional SHAP values instead of path-dependent ones.

        Parameters
        ----------
        engineered : ndarray or csr_matrix, shape (row, engineered feature)
            1 to 500 rows of finite or missing values.

        Raises
        ------
        ArtifactError
            If the explainer has no trees.
        OptionError
            If there are no such rows, or too many, or some hold infinite values.
        """
        raise ArtifactError(
            f"The explainer ({self.description}) has no trees, so there are no interventional values of it. Leave "
            "--background out, or pass a tree explainer."
        )

    def explain_used(self, engineered: Matrix, *, values: bool = True, raw: bool = False) -> UsedValues:
        """Importances of the used features, and of the raw ones.

        Parameters
        ----------
        engineered : ndarray or csr_matrix, shape (row, engineered feature)
            float64; NaN is missing.
        values, raw : bool
            Which importances are wanted.
        """
        found = self.values_of(engineered)
        derived = None
        if raw and self.feature_map is not None:
            assert found.values is not None
            derived = apply_map(self.feature_map[:, self.used], found.values)
        return UsedValues(found.values if values else None, found.margins, derived)

    @abstractmethod
    def values_of(self, engineered: Matrix) -> UsedValues:
        """Importances of the used features; :meth:`explain_used` derives the raw ones from them."""

    @abstractmethod
    def margins(self, engineered: Matrix) -> np.ndarray | None:
        """Margins, shape (output, row), evaluated without SHAP; None where that is not possible."""

    def explain(self, engineered: "Matrix | pd.DataFrame") -> Importances:
        """Importances of all engineered features, zeros included.

        Parameters
        ----------
        engineered : ndarray, csr_matrix or DataFrame, shape (row, engineered feature)
            NaN is missing. A DataFrame's columns are taken in their order.

        Returns
        -------
        Importances
            Dense: for tens of thousands of sparse columns pass few rows at a time, or run the engine.
        """
        matrix = self._checked(engineered)
        used = self.explain_used(matrix).values
        assert used is not None
        values = used
        if len(self.used) < len(self.engineered_features):
            values = np.zeros((used.shape[0], len(self.engineered_features), used.shape[2]))
            values[:, self.used] = used
        return Importances(values, self.expected_values, self.engineered_features, self.labels)

    def _checked(self, engineered: "Matrix | pd.DataFrame") -> Matrix:
        """Rows as a matrix of the right width, the first of them learned from."""
        matrix = as_matrix(engineered)
        if matrix.shape[0] and matrix.shape[1] == (len(self.engineered_features) or matrix.shape[1]):
            self.learn(matrix[:1])
        if matrix.shape[1] != len(self.engineered_features):
            raise ValueError(
                f"The data has {matrix.shape[1]} columns; this explainer takes {len(self.engineered_features)} "
                "engineered features."
            )
        return matrix

    def explain_raw(self, engineered: "Matrix | pd.DataFrame") -> Importances:
        """Importances of the raw features, from the engineered ones and the feature map.

        Raises
        ------
        ValueError
            If the explainer has no feature map.
        """
        if self.feature_map is None or self.raw_features is None:
            raise ValueError("This explainer has no feature map, so it has no raw importances.")
        raw = self.explain_used(self._checked(engineered), values=False, raw=True).raw
        assert raw is not None
        return Importances(raw, self.expected_values, self.raw_features, self.labels)


def as_matrix(data: "Matrix | pd.DataFrame") -> Matrix:
    """float64 matrix of a frame, an array or any sparse matrix."""
    if sp.issparse(data):
        return sp.csr_matrix(data, dtype=np.float64)
    return np.asarray(data, dtype=np.float64)


def dense(matrix: Matrix) -> np.ndarray:
    """The same as an ndarray."""
    return matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix.toarray())


def apply_map(weights: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Weights, shape (raw, engineered), times values, shape (output, engineered, row): (output, raw, row)."""
    raw = np.empty((values.shape[0], weights.shape[0], values.shape[2]))
    for output in range(values.shape[0]):
        raw[output] = weights @ values[output]
    return raw


def combine_maps(maps: Sequence[Any]) -> sp.csr_matrix:
    """Multiply feature maps in order and normalise each engineered column's weights to add up to 1.

    As ``interpret_community.common.explanation_utils._get_raw_feature_importances`` does it; a column without any
    weight stays 0.
    """
    product = sp.csr_matrix(maps[0], dtype=np.float64)
    for following in maps[1:]:
        product = product @ sp.csr_matrix(following, dtype=np.float64)
    totals = np.asarray(abs(product).sum(axis=0)).ravel()
    scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return sp.csr_matrix(product @ sp.diags(scale))
