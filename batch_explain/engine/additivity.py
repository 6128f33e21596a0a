"""Whether importances add up to the margin: expected value + importances against the surrogate without SHAP."""

from dataclasses import dataclass

import numpy as np

from batch_explain.engine.artifacts import Batch
from batch_explain.explainers.base import Explainer

_CHECKED_ROWS = 256


@dataclass(frozen=True)
class Additivity:
    """What a check of a batch found.

    Parameters
    ----------
    rows : int
        Rows that were checked; 0 where the explainer has no margin of its own.
    largest : float or None
        The largest residual; None where no row was checked. NaN if any is.
    worst_row, worst_output : int
        Where it is: positions in the batch.
    allowed : float
        The explainer's tolerance.
    """

    rows: int = 0
    largest: float | None = None
    worst_row: int = 0
    worst_output: int = 0
    allowed: float = Explainer.margin_tolerance

    @property
    def violated(self) -> bool:
        """Whether a residual is above the tolerance; NaN is."""
        return self.largest is not None and not self.largest <= self.allowed

    def larger_than(self, before: float | None) -> float | None:
        """The larger of two largest residuals."""
        if self.largest is None or before is None:
            return before if self.largest is None else self.largest
        return max(before, self.largest)


def check_additivity(explainer: Explainer, batch: Batch, *, check_all: bool) -> Additivity:
    """Check 256 rows at fixed places of a batch, or all of them."""
    rows = batch.margins.shape[1]
    chosen = np.arange(rows)
    if not check_all and rows > _CHECKED_ROWS:
        chosen = np.unique(np.linspace(0, rows - 1, _CHECKED_ROWS).astype(np.int64))
    margins = explainer.margins(batch.matrix[chosen]) if rows else None
    if margins is None:
        return Additivity()
    values = batch.raw if batch.engineered is None else batch.engineered
    assert values is not None
    scale = np.maximum(1.0, np.abs(values[:, :, chosen]).max(axis=1, initial=0.0))
    residuals = np.abs(batch.margins[:, chosen] - margins) / scale
    output, worst = np.unravel_index(int(residuals.argmax()), residuals.shape)
    return Additivity(
        len(chosen), float(residuals[output, worst]), int(chosen[worst]), int(output), explainer.margin_tolerance
    )
