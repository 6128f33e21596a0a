"""What a surrogate learns: the model's answers on training rows, as azureml-interpret takes them or as they are."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError, BatchExplainError, InputError, first_line
from batch_explain.explainers.base import Matrix, as_matrix
from batch_explain.fitting.rows import Rows
from batch_explain.teachers.base import Predictions, Teacher

SOFT_LOGIT = 5.0  # the SDK's clip_val
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Lesson:
    """Engineered rows and the model's answers.

    Parameters
    ----------
    matrix : ndarray or csr_matrix, shape (row, engineered)
    task : str
    classes : tuple or None
    prediction : ndarray, shape (row,)
    probabilities : ndarray, shape (row, class), or None
        The model's; of a classifier without any, 1 for the class that it predicts.
    decisions : ndarray, shape (row, output), or None
        ``decision_function``'s answer, of a classifier without probabilities.
    only_labels : bool
        Whether it is a classifier that has neither.
    """

    matrix: Matrix
    task: str
    classes: tuple[Any, ...] | None
    prediction: np.ndarray
    probabilities: np.ndarray | None
    decisions: np.ndarray | None = None
    only_labels: bool = False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.matrix.shape[0])

    @property
    def outputs(self) -> int:
        """Columns of margins: one for each class where there are more than two."""
        return len(self.classes) if self.classes is not None and len(self.classes) > 2 else 1

    def take(self, rows: np.ndarray) -> "Lesson":
        """Some of the rows."""
        return replace(
            self,
            matrix=self.matrix[rows],
            prediction=self.prediction[rows],
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            decisions=None if self.decisions is None else self.decisions[rows],
        )


def lesson(teacher: Teacher, rows: Rows) -> Lesson:
    """Ask the model.

    Raises
    ------
    InputError
        If the model refuses the rows.
    ArtifactError
        If it answers with numbers that are none.
    """
    try:
        engineered = teacher.featurize(rows.frame)
        predictions = teacher.predict(engineered)
        decide = getattr(teacher, "decisions", None)
        decisions = decide(engineered) if decide is not None and predictions.probabilities is None else None
    except BatchExplainError:
        raise
    except Exception as error:
        raise InputError(
            f"The model refuses the training rows: {type(error).__name__}: {first_line(error)}. Pass rows like those "
            "that it was trained on."
        ) from error
    matrix = as_matrix(engineered)
    only_labels = teacher.classes is not None and predictions.probabilities is None and decisions is None
    known = _known(teacher, predictions)
    found = Lesson(matrix, teacher.task, teacher.classes, predictions.prediction, known, decisions, only_labels)
    answers = found.prediction.astype(np.float64) if found.probabilities is None else found.probabilities
    if not np.isfinite(answers).all():
        row = int(np.flatnonzero(~np.isfinite(answers).reshape(len(answers), -1).all(axis=1))[0])
        raise ArtifactError(
            f"The model answers row {row} of the training rows with a number that is not finite, which no surrogate "
            "can learn. Mend the model, or leave such rows out."
        )
    return found


def _known(teacher: Teacher, predictions: Predictions) -> np.ndarray | None:
    if teacher.classes is None or predictions.probabilities is not None:
        return predictions.probabilities
    place = {label: at for at, label in enumerate(teacher.classes)}
    chosen = np.array([place[label] for label in np.asarray(predictions.prediction).tolist()])
    one_hot: np.ndarray = np.eye(len(teacher.classes))[chosen]
    return one_hot


def soft_logits(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds of the second of two classes, clipped at 5 either way: the SDK's targets. Shape (row,)."""
    second = probabilities[:, 1]
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(second) - np.log1p(-second), -SOFT_LOGIT, SOFT_LOGIT))


def margins(known: Lesson, floor: float) -> np.ndarray:
    """The model's answers on the scale of margins, shape (row, output).

    Predictions of a regression. Of two classes the log-odds of the second; of more the log-probability of each less
    the mean over the row's classes, which softmax turns back into the probabilities: probabilities below ``floor``
    count as ``floor`` (and of two classes, those above 1 - ``floor`` as that). Classifiers without probabilities:
    their ``decision_function``.
    """
    if known.classes is None:
        return known.prediction.astype(np.float64)[:, None]
    if known.decisions is not None:
        return known.decisions
    assert known.probabilities is not None
    logs: np.ndarray = np.log(np.maximum(known.probabilities, floor))
    if logs.shape[1] == 2:
        return np.asarray(logs[:, 1:] - logs[:, :1])
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def probabilities_of(margins_: np.ndarray) -> np.ndarray:
    """What margins, shape (row, output), say of the classes: shape (row, class)."""
    if margins_.shape[1] == 1:
        margins_ = np.hstack([np.zeros_like(margins_), margins_])
    weights = np.exp(margins_ - margins_.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def loss(known: Lesson, margins_: np.ndarray) -> float:
    """How far margins, shape (row, output), are from the model: 0 is perfect.

    Regression, and classifiers without probabilities: 1 - R² over all outputs. Others: the Kullback-Leibler divergence
    of the margins' probabilities from the model's, a row's mean, which is the log-loss against the model's own
    probabilities less what these leave open.
    """
    if known.classes is None or known.decisions is not None:
        wanted = margins(known, _EPSILON)
        spread = float(np.square(wanted - wanted.mean(axis=0)).sum())
        error = float(np.square(wanted - margins_).sum())
        return error / spread if spread else float(error > 0)
    assert known.probabilities is not None
    return float(divergence(known.probabilities, probabilities_of(margins_)).mean())


def divergence(model: np.ndarray, surrogate: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of each row's probabilities from the model's, shape (row,)."""
    logs = np.log(np.maximum(model, _EPSILON)) - np.log(np.maximum(surrogate, _EPSILON))
    return np.asarray((model * logs).sum(axis=1))
