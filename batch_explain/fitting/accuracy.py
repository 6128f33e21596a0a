"""How right the model itself is on rows whose answer is known."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from batch_explain.fitting.rows import Dataset
from batch_explain.results import Run
from batch_explain.storage.parquet_files import open_parquet
from batch_explain.storage.reading import read_batches

_BATCH_ROWS = 65_536


def _predictions(run: Run) -> Iterator[pd.Series]:
    for part in run.table("predictions").get_fragments():
        with part.open() as stream:
            for batch in open_parquet(stream).iter_batches(columns=["prediction"], use_threads=False):
                yield batch.column(0).to_pandas()


def accuracy(run: Run, labels: Iterable[pd.Series]) -> dict[str, Any] | None:
    """Accuracy of a classifier, R² of a regression, of the predictions in a run against the true answers.

    Parameters
    ----------
    run : Run
        Its predictions stand in the order of its input.
    labels : iterable of Series
        The true answers in the same order, cut anyhow; rows without one are left out.
    """
    if "predictions" not in run.info["tables"]:
        return None
    classes = run.info["task"] == "classification"
    predictions = _Cursor(_predictions(run))
    rows, right, error = 0, 0, 0.0
    moments = np.zeros(2)
    for true in labels:
        said = predictions.take(len(true))
        known = true.notna().to_numpy()
        true, said = true[known], said[known]
        rows += len(true)
        if classes:
            right += int(sum(a == b for a, b in zip(true.tolist(), said.tolist(), strict=True)))
        else:
            answer = true.to_numpy(np.float64)
            error += float(np.square(answer - said.to_numpy(np.float64)).sum())
            moments += answer.sum(), np.square(answer).sum()
    if not rows:
        return None
    if classes:
        return {"measure": "accuracy", "accuracy": right / rows, "rows": rows}
    spread = moments[1] - moments[0] ** 2 / rows
    return {"measure": "r2", "r2": 1 - error / spread if spread > 0 else None, "rows": rows}


def labels_of(dataset: Dataset) -> Iterator[pd.Series]:
    """The label column, in the order of the files."""
    label = dataset.label
    assert label is not None
    for file in dataset.files:
        for table in read_batches(
            file, start=0, stop=file.rows, columns=[label], batch_rows=_BATCH_ROWS, keys=dataset.keys
        ):
            yield table[label].to_pandas()


class _Cursor:
    """Takes so many values at a time from a sequence of series."""

    def __init__(self, parts: Iterable[pd.Series]) -> None:
        self._parts = iter(parts)
        self._rest = pd.Series(dtype=object)

    def take(self, count: int) -> pd.Series:
        """The next ``count`` values."""
        held = [self._rest] if len(self._rest) else []
        while sum(map(len, held)) < count:
            held.append(next(self._parts))
        joined = held[0] if len(held) == 1 else pd.concat(held, ignore_index=True) if held else self._rest
        self._rest = joined.iloc[count:]
        return joined.iloc[:count].reset_index(drop=True)
