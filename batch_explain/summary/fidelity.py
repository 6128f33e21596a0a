"""How faithfully the surrogate follows the teacher, on the very rows that are explained."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

_EPSILON = float(np.finfo(np.float64).eps)  # as scikit-learn's log_loss clips


@dataclass(frozen=True)
class RegressionFidelity:
    """R² of the surrogate's margin against the teacher's prediction.

    Parameters
    ----------
    count : int
        Rows.
    mean, m2 : float
        Mean of the teacher's predictions, and the sum of squared deviations from it.
    squared_error : float
        Sum of squared differences between margin and prediction.
    undefined : int
        Further rows, for which the teacher predicted NaN or infinity.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    squared_error: float = 0.0
    undefined: int = 0

    @classmethod
    def of(cls, margins: np.ndarray, prediction: np.ndarray) -> "RegressionFidelity":
        """Fidelity on a batch: margins and predictions of shape (row,)."""
        teacher = prediction.astype(np.float64)
        finite = np.isfinite(teacher)
        undefined = len(teacher) - int(finite.sum())
        teacher, margins = teacher[finite], margins[finite]
        if not len(teacher):
            return cls(undefined=undefined)
        mean = float(teacher.mean())
        spread, error = np.square(teacher - mean).sum(), np.square(teacher - margins).sum()
        return cls(len(teacher), mean, float(spread), float(error), undefined)

    def merge(self, other: "RegressionFidelity") -> "RegressionFidelity":
        """Fidelity on both sets of rows."""
        undefined = self.undefined + other.undefined
        if not (self.count and other.count):
            return replace(self if self.count else other, undefined=undefined)
        count = self.count + other.count
        delta = other.mean - self.mean
        return RegressionFidelity(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            self.squared_error + other.squared_error,
            undefined,
        )

    def describe(self) -> dict[str, Any]:
        """For ``run.json``; r2 is None where the teacher's predictions do not vary."""
        r2 = 1 - self.squared_error / self.m2 if self.m2 > 0 else None
        return {"measure": "r2", "r2": r2, "rows": self.count, "rows_without_finite_prediction": self.undefined}


@dataclass(frozen=True)
class ClassFidelity:
    """Agreement of the surrogate's most probable class with the teacher's prediction, and its log-loss there.

    Parameters
    ----------
    count, agreeing : int
        Rows, and rows on which both name the same class.
    log_loss : float
        Sum of -log(the surrogate's probability of the teacher's class).
    compared : int
        Rows whose probabilities by both are known for every class.
    divergence : float
        Sum of the Kullback-Leibler divergences of the surrogate's probabilities from the teacher's.
    """

    count: int = 0
    agreeing: int = 0
    log_loss: float = 0.0
    compared: int = 0
    divergence: float = 0.0

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: tuple[Any, ...],
        prediction: np.ndarray,
        teacher: np.ndarray | None = None,
    ) -> "ClassFidelity":
        """Fidelity on a batch.

        Parameters
        ----------
        probabilities : ndarray, shape (class, row)
            The surrogate's.
        labels : tuple
            The teacher's label for each of the surrogate's classes.
        prediction : ndarray, shape (row,)
            The teacher's labels; one that the surrogate does not know counts as disagreement.
        teacher : ndarray, shape (row, class), or None
            The teacher's probabilities, where it has them and the surrogate knows all its classes.
        """
        if not len(prediction):
            return cls()
        position = pd.Index(labels).get_indexer(pd.Index(prediction))
        known = position >= 0
        chosen = np.where(known, probabilities[position, np.arange(len(position))], 0.0)
        agreeing = known & (probabilities.argmax(axis=0) == position)
        divergence = 0.0
        if teacher is not None and np.isfinite(teacher).all():
            logs = np.log(np.maximum(teacher, _EPSILON)) - np.log(np.maximum(probabilities.T, _EPSILON))
            divergence = float((teacher * logs).sum())
        else:
            teacher = None
        return cls(
            len(prediction),
            int(np.count_nonzero(agreeing)),
            float(-np.log(np.clip(chosen, _EPSILON, 1 - _EPSILON)).sum()),
            0 if teacher is None else len(prediction),
            divergence,
        )

    def merge(self, other: "ClassFidelity") -> "ClassFidelity":
        """Fidelity on both sets of rows."""
        return ClassFidelity(
            self.count + other.count,
            self.agreeing + other.agreeing,
            self.log_loss + other.log_loss,
            self.compared + other.compared,
            self.divergence + other.divergence,
        )

    def describe(self) -> dict[str, Any]:
        """For ``run.json``; None where there are no rows."""
        n = self.count
        return {
            "measure": "agreement and log-loss against the teacher's predicted class",
            "agreement": self.agreeing / n if n else None,
            "log_loss": self.log_loss / n if n else None,
            "divergence": self.divergence / self.compared if self.compared else None,
            "rows": n,
        }


Fidelity = RegressionFidelity | ClassFidelity


def fidelity_of(
    margins: np.ndarray,
    prediction: np.ndarray,
    *,
    link: str,
    labels: tuple[Any, ...] | None,
    probabilities: np.ndarray | None = None,
) -> Fidelity | None:
    """Fidelity of a batch; None where the surrogate's margins have no known link to predictions.

    Parameters
    ----------
    margins : ndarray, shape (output, row)
    prediction : ndarray, shape (row,)
        The teacher's.
    link : str
        ``identity``, ``sigmoid``, ``softmax``, ``probability`` (the margins are probabilities) or ``unknown``.
    labels : tuple or None
        The teacher's label for each of the surrogate's classes; None for regression.
    probabilities : ndarray, shape (row, class), or None
        The teacher's, in the order of its classes.
    """
    if np.isnan(margins).all() and margins.size:
        return None
    if labels is None:
        return RegressionFidelity.of(margins[0], prediction) if link == "identity" else None
    if probabilities is not None and probabilities.shape[1] != len(labels):
        probabilities = None
    if link == "sigmoid":
        with np.errstate(over="ignore"):
            second = 1 / (1 + np.exp(-margins[0]))
        return ClassFidelity.of(np.vstack([1 - second, second]), labels, prediction, probabilities)
    if link == "probability":
        return ClassFidelity.of(margins, labels, prediction, probabilities)
    if link == "softmax":
        weights = np.exp(margins - margins.max(axis=0, initial=-np.inf))
        return ClassFidelity.of(weights / weights.sum(axis=0), labels, prediction, probabilities)
    return None


def to_json(fidelity: Fidelity | None) -> dict[str, Any] | None:
    """For a receipt."""
    return None if fidelity is None else {"kind": type(fidelity).__name__, **asdict(fidelity)}


def from_json(content: dict[str, Any] | None) -> Fidelity | None:
    """Read :func:`to_json`'s form."""
    if content is None:
        return None
    values = dict(content)
    kinds: dict[str, type[Fidelity]] = {c.__name__: c for c in (RegressionFidelity, ClassFidelity)}
    return kinds[values.pop("kind")](**values)


def merge(first: Fidelity | None, second: Fidelity | None) -> Fidelity | None:
    """Merge two of one kind; None stands for no rows."""
    if first is None or second is None:
        return second if first is None else first
    return first.merge(second)  # type: ignore[arg-type]
