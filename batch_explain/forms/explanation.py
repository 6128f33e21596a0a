"""What an explanation of interpret-community holds, as plain arrays: of a run, or made when a model was trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from batch_explain.forms.local import Values, local_of
from batch_explain.report.summaries import Level


@dataclass(frozen=True)
class Explanation:
    """A global explanation of one level, and local ones of some rows.

    Parameters
    ----------
    method : str
        What made it.
    task : str
        ``classification``, ``regression`` or ``unknown``.
    features : tuple of str
    level : str or None
        ``raw`` or ``engineered``; None where it does not say.
    classes : tuple of str or None
        None for regression.
    global_values : ndarray of float64, shape (feature,)
        Mean |importance| over all rows that were explained; of classes their mean.
    per_class_values : ndarray of float64, shape (class, feature), or None
        The same of each class.
    local_values : ndarray of float64, shape (class, row, feature) or (row, feature), or None
        Importances of some rows.
    expected_values : ndarray of float64, shape (class,) or (1,), or None
    eval_data : ndarray, shape (row, feature), or None
        The features' own values in these rows, as text where any of them is.
    eval_predictions : list or None
        The model's predictions of these rows.
    model : str or None
        What was explained.
    id : str or None
    """

    method: str
    task: str
    features: tuple[str, ...]
    level: str | None
    classes: tuple[str, ...] | None
    global_values: np.ndarray
    per_class_values: np.ndarray | None = None
    local_values: np.ndarray | None = None
    expected_values: np.ndarray | None = None
    eval_data: np.ndarray | None = None
    eval_predictions: list[Any] | None = None
    model: str | None = None
    id: str | None = None

    def __repr__(self) -> str:
        rows = 0 if self.local_values is None else self.local_values.shape[-2]
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        level = f"{self.level} " if self.level else ""
        return f"<Explanation: {self.task}, {len(self.features)} {level}features{classes}, {rows:,} local rows>"

    def rows(self, kept: np.ndarray) -> "Explanation":
        """The same with some of its local rows, by position."""
        return replace(
            self,
            local_values=None if self.local_values is None else self.local_values[..., kept, :],
            eval_data=None if self.eval_data is None else self.eval_data[kept],
            eval_predictions=None if self.eval_predictions is None else [self.eval_predictions[at] for at in kept],
        )

    def summary(self) -> pd.DataFrame:
        """Global importances, as :meth:`batch_explain.results.Run.summary` has them.

        Returns
        -------
        DataFrame
            ``output`` (class; null for regression), ``feature``, ``mean_abs``, ``rank`` (from 1; of equal ones the
            feature that comes first), the most important first.
        """
        lines = self.global_values[None] if self.per_class_values is None else self.per_class_values
        outputs = [None] if self.per_class_values is None or self.classes is None else list(self.classes)
        frames = []
        for output, values in zip(outputs, lines, strict=True):
            order = ranked(values)
            frames.append(
                pd.DataFrame(
                    {
                        "output": output,
                        "feature": np.array(self.features, dtype=object)[order],
                        "mean_abs": values[order],
                        "rank": np.arange(1, len(order) + 1),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)


def explanation_of(
    info: Mapping[str, Any], summary: pa.Table, sample: pa.Table | None, *, level: str, rows: int | None
) -> Explanation:
    """Of a run: see :meth:`batch_explain.results.Run.to_interpret`."""
    found = Level.of(level, info, summary)
    classes = _classes(info)
    mirrored = classes is not None and not info["outputs"]  # one output pushes toward the second of two classes
    per_class = np.nan_to_num(found.statistics["mean_abs"])  # NaN: there were no rows
    local, data, predictions = None, None, None
    if sample is not None:
        drawn = local_of(info, sample, level, rows)
        local = drawn.importances
        if classes is None:
            local = local[0]
        elif mirrored:
            local = np.stack((-local[0], local[0]))
        if drawn.values is not None:
            data, predictions = _cells(drawn.values), drawn.predictions
    return Explanation(
        method=f"batch_explain.{info['artifacts']['explainer']['kind']}",
        task="regression" if classes is None else "classification",
        features=found.features,
        level=level,
        classes=classes,
        global_values=per_class.mean(axis=0),
        per_class_values=None if classes is None else np.repeat(per_class, 2 if mirrored else 1, axis=0),
        local_values=local,
        expected_values=_expected(info, mirrored),
        eval_data=data,
        eval_predictions=predictions,
        model=None if info["artifacts"]["model"] is None else info["artifacts"]["model"]["kind"],
    )


def ranked(values: np.ndarray) -> np.ndarray:
    """Positions of the features, the largest first; of equal ones the feature that comes first."""
    return np.argsort(-values, axis=-1, kind="stable")


def _classes(info: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names in the order of the values; None for regression."""
    if info["outputs"]:
        return tuple(info["outputs"])
    if info["task"] != "classification":
        return None
    # a surrogate without a model knows its two classes by number
    return tuple(str(label) for label in info["classes"] or (0, 1))


def _expected(info: Mapping[str, Any], mirrored: bool) -> np.ndarray | None:
    if None in info["expected_values"]:
        return None
    expected = np.array(info["expected_values"], dtype=np.float64)
    return np.concatenate((-expected, expected)) if mirrored else expected


def _cells(values: tuple[Values, ...]) -> np.ndarray:
    """Shape (row, feature), of what JSON can hold: numbers and text."""
    return np.column_stack(
        [[str(value) if isinstance(value, date) else value for value in each.shown] for each in values]
    )
