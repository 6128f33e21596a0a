"""Any other explainer: asked through its own ``explain``, batch by batch (kernel, deep, trees other than LightGBM)."""

import contextlib
import functools
import inspect
import io
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, Matrix, UsedValues, dense

_INNER = ("_kernel_explainer", "_tree_explainer", "_deep_explainer", "_linear_explainer")
_SEED = 0
_KERNEL_EXACT_FEATURES = 11  # 2**11 + 2 * 11 samples enumerate every coalition of so many features


class OpaqueExplainer(Explainer):
    """An object with ``explain(rows)``.

    Parameters
    ----------
    source : object
        The scoring explainer. It gets dense batches, with ``get_raw=False`` where it knows the option.
    engineered_features : sequence of str or None
        Names of its input columns; None: learned from the first row as ``Column_0`` and so on.
    data_mapper : object, optional
        ``transform`` from raw to engineered, of explainers made with ``transformations``.
    """

    kind = "opaque"
    additive = False

    def __init__(
        self, source: Any, *, engineered_features: Sequence[str] | None = None, data_mapper: Any = None
    ) -> None:
        self._source = source
        self.data_mapper = data_mapper
        self._takes_get_raw = _takes_get_raw(source)
        # numpy's global random state (kernel SHAP samples with it) belongs to one thread at a time
        self._lock = threading.Lock()
        kernel = getattr(source, "_kernel_explainer", None)
        if kernel is not None:
            kernel.shap_values = functools.partial(kernel.shap_values, silent=True)
        self._collapse = False
        self._learned = False
        self.engineered_features = tuple(engineered_features or ())
        self.used = np.arange(len(self.engineered_features))
        self.expected_values = _expected_values(source)
        self.description = f"{type(source).__name__} (through its own explain)"
        self.notes = ("the explainer is asked through its own explain: additivity is not promised by it",)
        if kernel is not None and len(self.engineered_features) > _KERNEL_EXACT_FEATURES:
            self.notes += (
                f"kernel SHAP samples coalitions above {_KERNEL_EXACT_FEATURES} features: values are estimates, made "
                f"repeatable by numpy's random seed {_SEED} for each batch",
            )

    @property
    def learns_from_rows(self) -> bool:
        """Always, until it has seen one."""
        return not self._learned

    def learn(self, first_row: Matrix) -> None:
        """Learn the numbers of features and outputs from one explained row."""
        if self._learned:
            return
        values = self._ask(first_row)
        if not self.engineered_features:
            self.engineered_features = tuple(f"Column_{i}" for i in range(values.shape[1]))
            self.used = np.arange(values.shape[1])
        if values.shape[1] != len(self.engineered_features):
            raise ArtifactError(
                f"The explainer returned importances of {values.shape[1]} features for rows of "
                f"{len(self.engineered_features)}. It does not belong to these engineered features."
            )
        if len(self.expected_values) != values.shape[0]:
            self.expected_values = np.full(values.shape[0], np.nan)
        # Two outputs that mirror each other are one: the margin of the second class.
        self._collapse = values.shape[0] == 2 and _mirrored(values) and _is_round(self.expected_values.sum())
        if self._collapse:
            self.expected_values = self.expected_values[1:]
            self.notes += ("the explainer's two mirrored outputs are written as one, toward the second class",)
        super().learn(first_row)
        self._learned = True

    def learned(self) -> dict[str, Any]:
        """Names, expected values, and whether two mirrored outputs are written as one."""
        if not self._learned:
            return {}
        return {
            "features": list(self.engineered_features),
            "expected_values": [None if np.isnan(value) else value for value in self.expected_values.tolist()],
            "collapse": self._collapse,
        }

    def take_learned(self, state: dict[str, Any]) -> None:
        """Take what the planning process learned: every worker must write the same outputs."""
        if state:
            self.engineered_features = tuple(state["features"])
            self.used = np.arange(len(self.engineered_features))
            self.expected_values = np.array(state["expected_values"], dtype=np.float64)
            self._collapse, self._learned = state["collapse"], True

    def values_of(self, engineered: Matrix) -> UsedValues:
        """See :meth:`Explainer.values_of`."""
        if engineered.shape[0] == 0:
            empty = np.empty((self.n_outputs, len(self.used), 0))
            return UsedValues(empty, np.empty((self.n_outputs, 0)))
        self.learn(engineered[:1])
        values = self._ask(engineered)
        if self._collapse:
            if not _mirrored(values):
                raise ArtifactError(
                    "The explainer's two outputs mirror each other for the first row but not for all rows, so they "
                    "cannot be written as one margin. Make the explainer again with a single output."
                )
            values = values[1:]
        if values.shape[:2] != (self.n_outputs, len(self.used)):
            raise ArtifactError(
                f"The explainer returned {values.shape[0]} outputs of {values.shape[1]} features where its first row "
                f"had {self.n_outputs} of {len(self.used)}. It cannot be run in batches."
            )
        return UsedValues(values, self.expected_values[:, None] + values.sum(axis=1))

    def margins(self, engineered: Matrix) -> None:
        """Not possible: only the explainer knows its model."""

    def _ask(self, engineered: Matrix) -> np.ndarray:
        """Shape (output, feature, row)."""
        rows = dense(engineered)
        options = {"get_raw": False} if self._takes_get_raw else {}
        with self._lock, _silence(), _without_mapper(self._source, self.data_mapper):
            state = np.random.get_state()
            np.random.seed(_SEED)
            try:
                values = self._source.explain(rows, **options)
            finally:
                np.random.set_state(state)
        return as_array(values, rows.shape[0])


def _takes_get_raw(source: Any) -> bool:
    try:
        return "get_raw" in inspect.signature(source.explain).parameters
    except (TypeError, ValueError):
        return False


def _expected_values(source: Any) -> np.ndarray:
    for name in _INNER:
        value = getattr(getattr(source, name, None), "expected_value", None)
        if value is not None:
            return np.atleast_1d(np.asarray(value, dtype=np.float64))
    return np.array([np.nan])


def as_array(values: Any, rows: int) -> np.ndarray:
    """What an ``explain`` returned for so many rows: float64, (output, feature, row). Raises ArtifactError."""
    if sp.issparse(values):
        values = values.toarray()
    elif isinstance(values, list) and values and sp.issparse(values[0]):
        values = [matrix.toarray() for matrix in values]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1] != rows:
        raise ArtifactError(
            f"The explainer returned values of shape {array.shape} for {rows} rows; expected (row, feature) or "
            "(output, row, feature). It is no explainer that this program can run."
        )
    return np.ascontiguousarray(array.transpose(0, 2, 1))


def _mirrored(values: np.ndarray) -> bool:
    scale = max(1.0, float(np.abs(values).max(initial=0.0)))
    return bool(np.abs(values[0] + values[1]).max(initial=0.0) <= 1e-9 * scale)


def _is_round(total: float) -> bool:
    """Whether two expected values can mirror each other: margins add up to 0, probabilities to 1."""
    return bool(abs(total) < 1e-9 or abs(total - 1) < 1e-9)


@contextlib.contextmanager
def _silence() -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _without_mapper(source: Any, mapper: Any) -> Any:
    """The rows are engineered already: keep ``explain`` from transforming them a second time."""
    if mapper is None:
        yield
        return
    source._data_mapper = None
    try:
        yield
    finally:
        source._data_mapper = mapper
