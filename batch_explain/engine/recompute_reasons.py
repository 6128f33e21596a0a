"""Stored reasons and reasons that are computed again, both as one line a row, so that they can be compared."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from batch_explain.engine.reasons import Reasons


def rows_of_lines(reasons: Reasons, stored: pa.Table, ids: Sequence[pa.Array], outputs: Sequence[str]) -> np.ndarray:
    """The row of its batch that each stored line belongs to, found by the ids; -1 where no row has them.

    Where rows share their ids, the first lines with them are the first row's; this is wrong only where one of these
    rows has no reasons at all.

    Parameters
    ----------
    reasons : Reasons
    stored : pyarrow.Table
        All lines of a batch, the ids first.
    ids : sequence of pyarrow.Array
        Of the batch's rows.
    outputs : sequence of str
        Labels of the outputs; none for a single one.
    """
    rows, lines = len(ids[0]), stored.num_rows
    both = pd.DataFrame({
        number: [*array.to_pylist(), *stored[number].to_pylist()] for number, array in enumerate(ids)
    }, dtype=object)  # fmt: skip
    keys = both.groupby(list(both), sort=False, dropna=False).ngroup().to_numpy()
    output = _positions(reasons, stored, outputs)
    begins = np.ones(lines, dtype=bool)
    of_line = keys[rows:]
    begins[1:] = (of_line[1:] != of_line[:-1]) | ((stored["rank"].to_numpy()[1:] == 1) & (output[1:] <= output[:-1]))
    place = {pair: at for at, pair in enumerate(_counted(keys[:rows]))}
    found = np.array([place.get(pair, -1) for pair in _counted(of_line[begins])], dtype=np.int64)
    return found[np.cumsum(begins) - 1] if lines else found


def one_line_a_row(
    reasons: Reasons, lines: pa.Table, rows: np.ndarray, chosen: np.ndarray, outputs: Sequence[str]
) -> pa.Table:
    """The lines of chosen rows, with a column for each output, rank and column of the reasons.

    Parameters
    ----------
    reasons : Reasons
    lines : pyarrow.Table
        As they are stored.
    rows : ndarray of int, shape (line,)
        The row of each.
    chosen : ndarray of int
        Sorted rows.
    outputs : sequence of str
        Labels of the outputs; none for a single one.

    Returns
    -------
    pyarrow.Table
        Importances are doubles, NaN where there is no such reason; all else is text, to be compared exactly.
    """
    at = np.searchsorted(chosen, rows)
    at = np.where((at < len(chosen)) & (chosen[np.minimum(at, len(chosen) - 1)] == rows), at, -1)
    output, ranks = _positions(reasons, lines, outputs), lines["rank"].to_numpy()
    names = [field.name for field in reasons.fields if field.name != "rank"]
    columns = {}
    apart = [f" of '{label}'" for label in outputs] if outputs and not reasons.predicted else [""]
    for number, label in enumerate(apart):
        for rank in range(1, min(reasons.top_k, len(reasons.candidates)) + 1):
            here = (at >= 0) & (output == number) & (ranks == rank)
            for name in names:
                cells = lines[name].filter(pa.array(here))
                column = np.full(len(chosen), np.nan if name == "importance" else "none", dtype=object)
                column[at[here]] = cells.to_pylist() if name == "importance" else list(map(repr, cells.to_pylist()))
                kind = pa.float64() if name == "importance" else pa.string()
                columns[f"{name} of rank {rank}{label}"] = pa.array(column.tolist(), kind)
    return pa.table(columns)


def _positions(reasons: Reasons, lines: pa.Table, outputs: Sequence[str]) -> np.ndarray:
    """Position of each line's output; 0 where a row has the reasons of one output."""
    if not outputs or reasons.predicted:
        return np.zeros(lines.num_rows, dtype=np.int64)
    place = {label: at for at, label in enumerate(outputs)}
    return np.array([place.get(label, -1) for label in lines["output"].to_pylist()], dtype=np.int64)


def _counted(keys: np.ndarray) -> list[tuple[int, int]]:
    """Each key with how often it came before."""
    before = pd.Series(keys).groupby(keys).cumcount().tolist()
    return list(zip(keys.tolist(), before, strict=True))
