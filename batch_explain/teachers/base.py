"""What every teacher offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

from batch_explain.teachers.columns import Column


@dataclass(frozen=True)
class Predictions:
    """What the teacher says of a batch.

    Parameters
    ----------
    prediction : ndarray, shape (row,)
        ``predict``'s own answer: labels of any type, or numbers.
    probabilities : ndarray, shape (row, class), float64, or None
        ``predict_proba``'s answer in the order of ``classes``; None where the model has none.
    """

    prediction: np.ndarray
    probabilities: np.ndarray | None = None


@dataclass(frozen=True)
class Series:
    """Columns by which a forecasting model knows its series; the model's names.

    Parameters
    ----------
    time : str
    names : tuple of str
        Columns that together name a series; empty: there is one.
    origin : str or None
        What the model calls the time from which a row is forecast; None where it needs no past targets.
    target : str or None
        Name of the target; None where the model does not record it.
    lines_of_a_row : int
        Most lines that a row may become: one for each origin.
    """

    time: str
    names: tuple[str, ...]
    origin: str | None
    target: str | None
    lines_of_a_row: int


class Teacher(Protocol):
    """A fitted model, cut between featurizer and estimator.

    Attributes
    ----------
    kind : str
        What it is, for people.
    task : str
        ``classification`` or ``regression``.
    classes : tuple or None
        Class labels in the order of ``predict_proba``'s columns; None for regression.
    has_probabilities : bool
        Whether it has ``predict_proba``.
    columns : tuple of Column
        The raw columns that it needs, in its order.
    engineered_features : tuple of str or None
        Names of the featurizer's output columns; None when the model does not say.
    estimator : object
        What predicts from the featurizer's output.
    series : Series or None
        Of a forecasting model, whose rows are featurized as whole series; None: each row for itself.
    """

    kind: str
    task: str
    classes: tuple[Any, ...] | None
    has_probabilities: bool
    columns: tuple[Column, ...]
    engineered_features: tuple[str, ...] | None
    estimator: Any
    series: Series | None

    def featurize(self, frame: pd.DataFrame) -> Any:
        """Raw frame -> engineered rows, shape (row, engineered), as the model's own featurizer hands them on."""
        ...

    def predict(self, engineered: Any) -> Predictions:
        """Predict from :meth:`featurize`'s output, exactly as the whole model does from the raw frame."""
        ...

    def predict_raw(self, frame: pd.DataFrame) -> Predictions:
        """Predict from the raw frame (where the explanation has its own featurizer)."""
        ...

    def feature_map(self, raw_features: Sequence[str]) -> sp.csr_matrix | None:
        """Weights, shape (raw, engineered), as the model's own featurizer tells them; None when it does not."""
        ...


def predict_with(estimator: Any, data: Any, classes: tuple[Any, ...] | None) -> Predictions:
    """Call ``predict`` and, for a classifier that has it, ``predict_proba``.

    Both are asked: a classifier's ``predict`` need not be the argmax of its probabilities.
    """
    prediction = np.asarray(estimator.predict(data))
    probabilities = None
    if classes is not None and hasattr(estimator, "predict_proba"):
        probabilities = np.asarray(estimator.predict_proba(data), dtype=np.float64)
    return Predictions(prediction.reshape(len(prediction)), probabilities)
