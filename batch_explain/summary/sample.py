"""A uniform sample of a run's rows: those whose numbers, drawn by hashing their place in the input, are the smallest.

A row's number depends on its file's path and its position there alone, so that the sample is the same however the rows
are cut into partitions and whoever explains them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import pyarrow as pa

MAX_CELLS = 1_000_000  # numbers of a sample
HASH = "_hash"
_MOST_ARRAYS = 1 << 15  # of pieces that are not joined yet: each takes about a kilobyte, however few rows it has


@dataclass(frozen=True)
class Sampling:
    """Which rows to keep.

    Parameters
    ----------
    rows : int
        Size of the sample.
    of : int
        Rows of the run.
    """

    rows: int
    of: int

    @property
    def candidates(self) -> int:
        """How many rows are expected to have a number below the threshold: more than enough, by eight deviations."""
        return self.rows + 8 * isqrt(self.rows) + 16 if self.rows else 0

    def choose(self, path: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates among rows of a file.

        Parameters
        ----------
        path : str
        rows : ndarray of int
            Positions in the file.

        Returns
        -------
        positions : ndarray of int
            Which of ``rows`` are candidates.
        numbers : ndarray of uint64
            Theirs.
        """
        if not self.rows:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        numbers = hashes(path, rows)
        if self.candidates >= self.of:
            return np.arange(len(rows)), numbers
        chosen = np.flatnonzero(numbers < np.uint64((self.candidates << 64) // self.of))
        return chosen, numbers[chosen]

    def smallest(self, tables: Sequence[pa.Table]) -> pa.Table | None:
        """The sample: of all candidates, those with the smallest numbers, in the order of the input.

        A row has as many lines as there are outputs, which follow each other.
        """
        if not tables:
            return None
        table = _concatenated(tables)
        numbers = table[HASH].to_numpy()
        distinct = np.unique(numbers)
        if len(distinct) > self.rows:
            table = table.filter(pa.array(numbers < distinct[self.rows]))
        return table.drop_columns([HASH]) if hasattr(table, "drop_columns") else table.drop([HASH])


class Pieces:
    """Rows of a sample that come a few at a time, in the order of the input, joined as they become many."""

    def __init__(self) -> None:
        self._runs: list[list[pa.Table]] = []  # of tables of one schema that follow each other

    def add(self, table: pa.Table) -> None:
        """Add rows behind the others."""
        if not self._runs or self._runs[-1][-1].schema != table.schema:
            self._runs.append([])
        run = self._runs[-1]
        run.append(table)
        if len(run) * table.num_columns > _MOST_ARRAYS:
            run[:] = [_joined(run)]

    def tables(self) -> list[pa.Table]:
        """All rows, in tables of one schema each."""
        return [_joined(run) for run in self._runs]


def hashes(path: str, rows: np.ndarray) -> np.ndarray:
    """A number for each row of a file, uniform below 2^64 (splitmix64 of Steele, Lea and Flood, 2014)."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        state = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + seed
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(state ^ (state >> np.uint64(31)))


def sample_rows(
    numbers: np.ndarray,
    outputs: Sequence[str | None],
    columns: Mapping[str, pa.Array],
    importances: Mapping[str, tuple[Sequence[str], np.ndarray]],
) -> pa.Table:
    """Rows of a sample, one line for each row and output.

    Parameters
    ----------
    numbers : ndarray of uint64
    outputs : sequence of (str or None)
    columns : mapping
        Name -> one value for each row: ids, place, predictions, feature values.
    importances : mapping
        Level -> names of its features, and values of shape (output, feature, row).

    Returns
    -------
    pyarrow.Table
        ``_hash``, ``output``, the columns, ``engineered.<feature>``, ``raw.<feature>``.
    """
    rows, count = len(numbers), len(outputs)
    repeated = pa.array(np.repeat(np.arange(rows), count))
    table = {HASH: pa.array(np.repeat(numbers, count))}
    table["output"] = pa.array(list(outputs) * rows, pa.string())
    for name, column in columns.items():
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        table[name] = (array.dictionary_decode() if pa.types.is_dictionary(array.type) else array).take(repeated)
    for level, (features, values) in importances.items():
        for at, feature in enumerate(features):
            table[f"{level}.{feature}"] = pa.array(np.ascontiguousarray(values[:, at].T).ravel())
    return pa.table(table)


def cut(rows: int, cells_a_row: int) -> int:
    """As many rows of a sample as fit into :data:`MAX_CELLS`."""
    return min(rows, max(1, MAX_CELLS // max(1, cells_a_row))) if rows else 0


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; a column that is of kinds that do not mix in different files becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        pass
    first: dict[str, pa.DataType] = {}
    mixed = set()
    for table in tables:
        for field in table.schema:
            if first.setdefault(field.name, field.type) != field.type:
                mixed.add(field.name)
    as_text = [
        table.cast(pa.schema([pa.field(f.name, pa.string()) if f.name in mixed else f for f in table.schema]))
        for table in tables
    ]
    return pa.concat_tables(as_text, promote_options="permissive")
