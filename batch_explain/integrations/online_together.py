"""Requests that come at once, done as one batch: a genuine featurizer takes as long for four rows as for one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from batch_explain.engine.artifacts import Batch
from batch_explain.teachers.base import Predictions

_MOST_ROWS = 1_000


@dataclass(eq=False)
class _Call:
    table: pa.Table
    found: Batch | None = None


class Together:
    """Explains tables, those of threads that wait for their turn joined into one. May be shared by threads.

    Parameters
    ----------
    explain : callable
        Table -> batch. What it says of a row must not depend on the others, nor what it raises on which thread asks.
    """

    def __init__(self, explain: Callable[[pa.Table], Batch]) -> None:
        self._explain = explain
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []

    def __call__(self, table: pa.Table) -> Batch:
        """Explain a table.

        Raises
        ------
        Exception
            What the explaining of this very table raises: a table that cannot be explained spoils no other.
        """
        call = _Call(table)
        with self._lock:
            self._waiting.append(call)
        with self._turn:
            if call.found is None:
                self._explain_waiting(call)
            if call.found is None:
                call.found = self._explain(table)
        return call.found

    def _explain_waiting(self, call: _Call) -> None:
        """Explain this call's table, and those beside it that are like it; none where they cannot be, together."""
        with self._lock:
            rows, chosen = call.table.num_rows, [call]
            for other in self._waiting:
                fits = rows + other.table.num_rows <= _MOST_ROWS and other.table.schema == call.table.schema
                if other is not call and fits:
                    chosen.append(other)
                    rows += other.table.num_rows
            self._waiting = [other for other in self._waiting if other not in chosen]
        if len(chosen) == 1:
            return
        try:
            whole = self._explain(pa.concat_tables([each.table for each in chosen]))
        except Exception:  # each is then explained alone, in its own turn
            return
        first = 0
        for each in chosen:
            each.found = _rows_of(whole, first, first + each.table.num_rows)
            first += each.table.num_rows


def _rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some rows of a batch; what was counted over all of it is left out."""
    predictions = batch.predictions
    if predictions is not None:
        probabilities = predictions.probabilities
        predictions = Predictions(
            predictions.prediction[start:stop], None if probabilities is None else probabilities[start:stop]
        )
    return replace(
        batch,
        matrix=batch.matrix[start:stop],
        engineered=None if batch.engineered is None else batch.engineered[:, :, start:stop],
        raw=None if batch.raw is None else batch.raw[:, :, start:stop],
        margins=batch.margins[:, start:stop],
        predictions=predictions,
        imputed={},
        padded={},
    )
