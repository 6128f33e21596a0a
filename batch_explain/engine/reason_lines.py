"""The reasons of a batch: its rows' most important features, with their own values and codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts, Batch
from batch_explain.engine.largest import largest
from batch_explain.engine.reasons import Reasons


@dataclass(frozen=True)
class Lines:
    """The reasons of a batch, a line each: by row, then output, then rank.

    Parameters
    ----------
    rows : ndarray of int
        The row of the batch that each line belongs to.
    columns : list of pyarrow.Array
        As :attr:`Reasons.fields` has them.
    """

    rows: np.ndarray
    columns: list[pa.Array]


def reason_lines(reasons: Reasons, batch: Batch, table: pa.Table, artifacts: Artifacts) -> Lines:
    """Find the reasons of a batch.

    Parameters
    ----------
    reasons : Reasons
    batch : Batch
    table : pyarrow.Table
        Its rows as they were read.
    artifacts : Artifacts
    """
    values = batch.engineered if reasons.level == "engineered" else batch.raw
    assert values is not None
    predicted = _predicted(batch, artifacts) if reasons.predicted else None
    found = []
    for output, importances in enumerate(values):
        chosen = None if predicted is None or artifacts.labels is None else np.flatnonzero(predicted == output)
        sums = _of_candidates(reasons, importances if chosen is None else importances[:, chosen])
        if predicted is not None and chosen is None:  # the single output pushes toward the second class
            sums = sums * np.where(predicted == 0, -1.0, 1.0)
        rows, ranks, features = largest(_sizes(sums, reasons.which), reasons.top_k)
        importance = sums[features, rows]
        if chosen is not None:
            rows = chosen[rows]
        found.append((rows, np.full(len(rows), output), ranks, features, importance))
    rows, outputs, ranks, features, importance = found[0] if len(found) == 1 else _merged(found)
    columns = [
        _outputs(artifacts, outputs, None if predicted is None else predicted[rows]),
        pa.array((ranks + 1).astype(np.int32)),
        _texts(features, [candidate.name for candidate in reasons.candidates]),
        pa.array(importance.astype(reasons.dtype, copy=False)),
    ]
    if reasons.value == "double":
        columns.append(_numbers(reasons, batch, table, artifacts.explainer.used, rows, features))
    elif reasons.value is not None:
        columns.append(_as_texts(reasons, table, rows, features))
    if reasons.coded:
        columns += _codes(reasons, features, importance)
    return Lines(rows, columns)


def _predicted(batch: Batch, artifacts: Artifacts) -> np.ndarray:
    """Position of each row's predicted class among those that the surrogate knows; -1: none of them."""
    assert batch.predictions is not None
    return np.asarray(pd.Index(artifacts.surrogate_labels or ()).get_indexer(pd.Index(batch.predictions.prediction)))


def _outputs(artifacts: Artifacts, outputs: np.ndarray, predicted: np.ndarray | None) -> pa.Array:
    """The output of each line; null for a single one, unless it is for the predicted class."""
    if artifacts.labels is not None:
        return _texts(outputs, artifacts.labels)
    if predicted is not None:
        return _texts(predicted, [str(label) for label in artifacts.surrogate_labels or ()])
    return pa.DictionaryArray.from_arrays(pa.nulls(len(outputs), pa.int32()), pa.array([], pa.string()))


def _sizes(importances: np.ndarray, which: str) -> np.ndarray:
    """What reasons are ranked by; not above 0: none."""
    if which == "by-magnitude":
        return np.abs(importances)
    return importances if which == "positive" else -importances


def _merged(found: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Lines of all outputs, by row, then output, then rank."""
    together = [np.concatenate(each) for each in zip(*found, strict=True)]
    order = np.argsort(together[0], kind="stable")
    return tuple(each[order] for each in together)


def _of_candidates(reasons: Reasons, importances: np.ndarray) -> np.ndarray:
    """Importances of the candidates, shape (candidate, row); those of a group's features are added in their order."""
    places = [candidate.members for candidate in reasons.candidates]
    if places == [(at,) for at in range(len(importances))]:
        return importances
    sums = importances[[members[0] for members in places]]
    for at, members in enumerate(places):
        for member in members[1:]:
            sums[at] += importances[member]
    return sums


def _texts(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names, pa.string()))


def _codes(reasons: Reasons, features: np.ndarray, importance: np.ndarray) -> list[pa.Array]:
    """Codes and texts of lines."""
    codes = [each for c in reasons.candidates for each in (c.positive, c.negative)]
    position = 2 * features + (importance < 0)
    columns = []
    for texts in ([code.code for code in codes if code], [code.text for code in codes if code]):
        numbers, distinct = pd.factorize(np.array(texts, dtype=object))
        columns.append(_texts(numbers[position], list(distinct)))
    return columns


def _numbers(
    reasons: Reasons, batch: Batch, table: pa.Table, used: np.ndarray, rows: np.ndarray, features: np.ndarray
) -> pa.Array:
    """Own values of lines' features as doubles; null where there is none."""
    alone = np.array([not candidate.group for candidate in reasons.candidates])
    if reasons.level == "engineered":
        columns = used[[candidate.members[0] for candidate in reasons.candidates]]
        values = np.asarray(batch.matrix[rows, columns[features]], dtype=np.float64).ravel()
        if not alone.all():
            values = np.where(alone[features], values, np.nan)
    else:
        own = np.full((len(reasons.candidates), table.num_rows), np.nan)
        for at, candidate in enumerate(reasons.candidates):
            if candidate.column is not None:
                own[at] = table[candidate.column].cast(pa.float64(), safe=False).to_numpy()
        values = own[features, rows]
    return pa.array(values, from_pandas=True)


def _as_texts(reasons: Reasons, table: pa.Table, rows: np.ndarray, features: np.ndarray) -> pa.Array:
    """Own values of lines' features as text; null where there is none."""
    order = np.argsort(features, kind="stable")
    edges = np.searchsorted(features[order], np.arange(len(reasons.candidates) + 1))
    pieces = [pa.array([], pa.string())]
    for candidate, start, stop in zip(reasons.candidates, edges[:-1], edges[1:], strict=True):
        if candidate.column is None:
            pieces.append(pa.nulls(stop - start, pa.string()))
        else:
            pieces.append(_as_text(table[candidate.column].take(pa.array(rows[order[start:stop]]))))
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(pieces).take(pa.array(back))


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    try:
        return array.cast(pa.string())
    except pa.ArrowException:
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
