"""Partitions of whole series, for forecasting: found by the series' columns, read from wherever their rows are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batch_explain.engine.rows import Rows
from batch_explain.errors import BadDataError, IntegrityError
from batch_explain.storage.dataset import InputFile
from batch_explain.storage.reading import read_batches
from batch_explain.teachers.columns import BadValueError, Column, to_frame

# Before the columns that say of which series, time and origin a line is: raw features may have the columns' own names.
KEY = "key."
_READ_ROWS = 65_536
_NUMBER = "number of the series"
_SHOWN = 3

Key = tuple[str | None, ...]


@dataclass(frozen=True)
class SeriesColumns:
    """How a run knows series and history.

    Parameters
    ----------
    time : str
        The column of times, by its name in the files.
    names : tuple of str
        The columns that together name a series, likewise; empty: there is one.
    kinds : tuple of (str or None)
        The type that the model was trained on, of each: numbers and texts of one series are the same series.
    keys : tuple of str
        The columns of the tables that say of which time, series and origin a line is.
    origin : str or None
        That of the origin; None where a row has one line.
    target : str or None
        The column of known targets, by its name in the files; None where there are none.
    in_input : bool
        Whether the input has it too.
    history : tuple of InputFile
        Files of ``--history``.
    history_hive : dict
        Their hive keys -> type.
    context : dict
        Input file -> its rows with a known target, which are history too.
    """

    time: str
    names: tuple[str, ...]
    kinds: tuple[str | None, ...]
    keys: tuple[str, ...]
    origin: str | None
    target: str | None
    in_input: bool = False
    history: tuple[InputFile, ...] = ()
    history_hive: dict[str, pa.DataType] = field(default_factory=dict)
    context: dict[str, int] = field(default_factory=dict)

    def keyed(self, table: pa.Table) -> pa.Table:
        """A table with the columns of time and series a second time, under the names that they have in the results."""
        for key, name in zip(self.keys, (self.time, *self.names), strict=False):
            table = table.append_column(key, table[name])
        return table


@dataclass(frozen=True)
class Piece:
    """Row groups of a file that hold rows of a partition's series.

    Parameters
    ----------
    file : InputFile
    groups : tuple of int
    rows : int
        Rows to explain among them.
    """

    file: InputFile
    groups: tuple[int, ...]
    rows: int

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, of row groups that follow each other."""
        starts = np.concatenate([[0], np.cumsum(self.file.row_groups, dtype=np.int64)])
        for _, run in groupby(enumerate(self.groups), key=lambda pair: pair[1] - pair[0]):
            groups = [group for _, group in run]
            yield int(starts[groups[0]]), int(starts[groups[-1] + 1])


@dataclass(frozen=True)
class SeriesPartition:
    """Whole series, in order.

    Parameters
    ----------
    index : int
    series : tuple of (Key, int)
        Each series' names as text, and its rows to explain.
    input, history : tuple of Piece
        Where rows of theirs are, in the input and in the files of ``--history``.
    """

    index: int
    series: tuple[tuple[Key, int], ...]
    input: tuple[Piece, ...]
    history: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows to explain."""
        return sum(rows for _, rows in self.series)

    @property
    def paths(self) -> tuple[str, ...]:
        """Files that its rows are in."""
        return tuple(piece.file.path for piece in self.input)

    @property
    def name(self) -> str:
        """See :class:`Partition`."""
        shown = "; ".join(_named(key) for key, _ in self.series[:_SHOWN])
        more = f" and {len(self.series) - _SHOWN} more" if len(self.series) > _SHOWN else ""
        return f"The series {shown}{more} (partition {self.index}, {self.rows} rows)"

    def batches(self, batch_rows: int) -> int:
        """See :class:`Partition`."""
        return len(self.groups(batch_rows))

    def groups(self, batch_rows: int) -> list[tuple[int, int]]:
        """Ranges of series that make a batch: of at most so many rows, but for a series that has more by itself."""
        return _packed([rows for _, rows in self.series], batch_rows)

    def only(self, number: int) -> "SeriesPartition":
        """The same with one of its series."""
        return replace(self, series=self.series[number : number + 1])


@dataclass(frozen=True)
class SeriesRows(Rows):
    """Rows of whole series, with their history.

    Parameters
    ----------
    history : pyarrow.Table
        Rows of the same series whose target is known.
    targets : ndarray of float64
        Their targets.
    """

    history: pa.Table
    targets: np.ndarray


def place_of_history(rows: SeriesRows, position: int) -> str:
    """Where a row of history stands, for people."""
    return _place(rows.history, position)


@dataclass
class _Found:
    """A series, as it was found in the files."""

    rows: int = 0
    known: int = 0
    input: dict[int, dict[int, int]] = field(default_factory=dict)  # file -> row group -> rows to explain
    history: dict[int, set[int]] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        return self.rows + self.known


def cut_series(
    columns: SeriesColumns,
    files: Sequence[InputFile],
    keys: dict[str, pa.DataType],
    partition_rows: int,
    limit: int | None,
) -> tuple[SeriesColumns, list[SeriesPartition], list[str]]:
    """Find the series, reading their columns and the target alone, and cut them into partitions.

    Series stand in the order of their names as text.

    Parameters
    ----------
    columns : SeriesColumns
        Without ``context``.
    files : sequence of InputFile
        Of the input, those that can be read.
    keys : dict
        Hive key -> type.
    partition_rows : int
        Most rows of a partition, history included; a series that has more is a partition of its own.
    limit : int or None
        A trial: so many rows at most, but at least one series.

    Returns
    -------
    columns : SeriesColumns
        With ``context``.
    partitions : list of SeriesPartition
        One without series, where there are none.
    decisions : list of str
    """
    found: dict[Key, _Found] = {}
    context: dict[str, int] = {}
    for number, file in enumerate(files):
        for key, group, known, rows in _counted(file, columns, keys, past=False):
            series = found.setdefault(key, _Found())
            in_file = series.input.setdefault(number, {})
            in_file[group] = in_file.get(group, 0) + (0 if known else rows)
            series.rows += 0 if known else rows
            series.known += rows if known else 0
            if known:
                context[file.path] = context.get(file.path, 0) + rows
    for number, file in enumerate(columns.history):
        for key, group, known, rows in _counted(file, columns, columns.history_hive, past=True):
            if known and key in found:
                found[key].known += rows
                found[key].history.setdefault(number, set()).add(group)
    order = sorted((key for key in found if found[key].rows), key=_order)
    decisions = []
    if limit is not None:
        rows_until = np.cumsum([found[key].rows for key in order])
        order = order[: max(1, int(np.searchsorted(rows_until, limit, "right")))]
    large = [key for key in order if found[key].weight > partition_rows]
    if large:
        decisions.append(
            f"{len(large)} series have more rows than --partition-rows ({partition_rows}) with their history, the "
            f"largest one {max(found[key].weight for key in large)}: each is a partition of its own"
        )
    if context:
        decisions.append(
            f"{sum(context.values())} rows of the input have a known target ('{columns.target}'): they are history, "
            "and are not explained"
        )
    ranges = _packed([found[key].weight for key in order], partition_rows) or [(0, 0)]
    partitions = [
        _partition(index, [(key, found[key]) for key in order[start:stop]], files, columns.history)
        for index, (start, stop) in enumerate(ranges)
    ]
    return replace(columns, context=context), partitions, decisions


def read_series(
    partition: SeriesPartition,
    columns: SeriesColumns,
    names: list[str],
    of_history: list[str],
    keys: dict[str, pa.DataType],
    batch_rows: int,
) -> Iterator[SeriesRows]:
    """Rows of a partition in batches of whole series, each series in the order of time.

    Parameters
    ----------
    partition : SeriesPartition
    columns : SeriesColumns
    names, of_history : list of str
        Columns wanted of rows to explain, and of history, by their names in the files.
    keys : dict
        Hive key -> type.
    batch_rows : int
        Most rows of a batch, but for a series that has more.
    """
    wanted = {key: number for number, (key, _) in enumerate(partition.series)}
    rows, known = _Pieces(), _Pieces()
    for pieces, all_known in ((partition.input, False), (partition.history, True)):
        wanted_here, hive = (of_history, columns.history_hive) if all_known else (names, keys)
        for piece in pieces:
            for start, stop in piece.ranges():
                for table, first in _tables(piece.file, start, stop, columns, wanted_here, hive, past=all_known):
                    series = _numbered(table, columns, wanted)
                    past = _is_known(table, columns)
                    if not all_known:  # a row of --history without a target tells nothing
                        rows.add(table, np.flatnonzero((series >= 0) & ~past), series, piece.file.path, first)
                    known.add(table, np.flatnonzero((series >= 0) & past), series, piece.file.path, first)
    found, history = rows.joined(columns.time), known.joined(columns.time)
    of_series = np.bincount(_series_of(found), minlength=len(wanted)) if found is not None else np.zeros(len(wanted))
    if of_series.tolist() != [count for _, count in partition.series]:
        raise IntegrityError(
            f"{partition.name} have other rows than when the run was planned. The input was changed: start the run "
            "again with --overwrite."
        )
    if found is None:
        return
    starts = np.concatenate([[0], np.cumsum(of_series)]).astype(np.int64)
    for first, last in partition.groups(batch_rows):
        here = found.slice(starts[first], starts[last] - starts[first])
        past_rows = _between(history, first, last)
        yield SeriesRows(
            table=columns.keyed(here.select(names)),
            paths=here[_PATH].combine_chunks() if here.num_rows else pa.array([], pa.string()),
            numbers=here[_ROW].to_numpy(),
            history=_plain(here.slice(0, 0)) if past_rows is None else past_rows,
            targets=_targets(past_rows, columns),
        )


_PATH, _ROW = "file of the row", "number of the row"


class _Pieces:
    """Rows that come from many places, in the end sorted by series and time."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []

    def add(self, table: pa.Table, positions: np.ndarray, series: np.ndarray, path: str, first: int) -> None:
        if len(positions):
            taken = table.take(pa.array(positions))
            taken = taken.append_column(_NUMBER, pa.array(series[positions]))
            taken = taken.append_column(_PATH, pa.repeat(pa.scalar(path), len(positions)))
            self._tables.append(_plain(taken.append_column(_ROW, pa.array(positions + first))))

    def joined(self, time: str) -> pa.Table | None:
        if not self._tables:
            return None
        try:
            table = pa.concat_tables(self._tables, promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            raise BadDataError(
                f"Rows of one series are in files whose columns have types that do not mix: {error}. Write the files "
                "with one type for each column."
            ) from error
        return table.take(pc.sort_indices(table, [(_NUMBER, "ascending"), (time, "ascending")]))


def _partition(
    index: int, series: list[tuple[Key, _Found]], files: Sequence[InputFile], history: Sequence[InputFile]
) -> SeriesPartition:
    rows: dict[int, dict[int, int]] = {}
    past: dict[int, set[int]] = {}
    for _, found in series:
        for file, groups in found.input.items():
            in_file = rows.setdefault(file, {})
            for group, count in groups.items():
                in_file[group] = in_file.get(group, 0) + count
        for file, some in found.history.items():
            past.setdefault(file, set()).update(some)
    return SeriesPartition(
        index,
        tuple((key, found.rows) for key, found in series),
        tuple(Piece(files[file], tuple(sorted(found)), sum(found.values())) for file, found in sorted(rows.items())),
        tuple(Piece(history[file], tuple(sorted(groups)), 0) for file, groups in sorted(past.items())),
    )


def _counted(
    file: InputFile, columns: SeriesColumns, keys: dict[str, pa.DataType], *, past: bool
) -> Iterator[tuple[Key, int, bool, int]]:
    """How many rows, known or not, each series has in each row group of a file."""
    stops = np.cumsum(file.row_groups, dtype=np.int64)
    for table, first in _tables(file, 0, file.rows, columns, list(columns.names), keys, past=past):
        codes, texts = _coded(table, columns)
        known = _is_known(table, columns)
        groups = np.searchsorted(stops, np.arange(first, first + table.num_rows), side="right")
        both, counts = np.unique(np.stack([codes, groups, known.astype(np.int64)]), axis=1, return_counts=True)
        for (code, group, is_known), rows in zip(both.T.tolist(), counts.tolist(), strict=True):
            yield texts[code], group, bool(is_known), rows


def _tables(
    file: InputFile,
    start: int,
    stop: int,
    columns: SeriesColumns,
    names: list[str],
    keys: dict[str, pa.DataType],
    *,
    past: bool,
) -> Iterator[tuple[pa.Table, int]]:
    """Columns of some rows of a file, the series' own and the target among them, and the first row's number."""
    wanted = list(dict.fromkeys([*names, *columns.names]))
    if columns.target is not None and (past or columns.in_input):
        wanted = list(dict.fromkeys([*wanted, columns.target]))
    for table in read_batches(file, start=start, stop=stop, columns=wanted, batch_rows=_READ_ROWS, keys=keys):
        yield table, start
        start += table.num_rows


def _is_known(table: pa.Table, columns: SeriesColumns) -> np.ndarray:
    """Rows whose target is known."""
    if columns.target is None or columns.target not in table.column_names:
        return np.full(table.num_rows, False)
    target = table[columns.target]
    missing = pc.is_null(target, nan_is_null=pa.types.is_floating(target.type))
    return ~np.asarray(missing.to_numpy(), dtype=bool)


def _targets(history: pa.Table | None, columns: SeriesColumns) -> np.ndarray:
    if history is None or columns.target is None:
        return np.array([])
    try:
        frame, _ = to_frame(history.select([columns.target]), [Column(columns.target, np.dtype("f8"))])
    except BadValueError as error:
        raise BadDataError(
            f"The known target '{columns.target}' {error.reason} in {_place(history, error.row)}. Mend or remove the "
            "row."
        ) from error
    return np.asarray(frame[columns.target].to_numpy(), dtype=np.float64)


def _place(table: pa.Table, position: int) -> str:
    return f"row {table[_ROW][position].as_py()} of {table[_PATH][position].as_py()}"


def _numbered(table: pa.Table, columns: SeriesColumns, wanted: dict[Key, int]) -> np.ndarray:
    """The number of each row's series; -1: none of the wanted ones."""
    codes, texts = _coded(table, columns)
    numbers = np.array([wanted.get(key, -1) for key in texts], dtype=np.int64)
    return np.asarray(numbers[codes])


def _coded(table: pa.Table, columns: SeriesColumns) -> tuple[np.ndarray, list[Key]]:
    """Rows' series as codes, and the names of each code as text."""
    if not columns.names:
        return np.zeros(table.num_rows, dtype=np.int64), [()]
    codes, texts = zip(
        *(_texts(table[name], name, kind) for name, kind in zip(columns.names, columns.kinds, strict=True)), strict=True
    )
    distinct, inverse = np.unique(np.stack(codes), axis=1, return_inverse=True)
    return inverse.reshape(-1), [
        tuple(found[code] for found, code in zip(texts, pair, strict=True)) for pair in distinct.T.tolist()
    ]


def _texts(values: pa.ChunkedArray, name: str, kind: str | None) -> tuple[np.ndarray, list[str | None]]:
    """A column as codes, and what each stands for: the model's value of it as text; None: null."""
    encoded = values.combine_chunks()
    encoded = pa.chunked_array([encoded]).combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    column = Column(name, None if kind is None else np.dtype(kind))
    texts = [_text(encoded.dictionary.slice(at, 1), column) for at in range(len(encoded.dictionary))]
    codes = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, [*texts, None]


def _text(value: pa.Array, column: Column) -> str | None:
    try:
        frame, _ = to_frame(pa.table({column.name: value}), [column])
    except BadValueError:
        return f"{value[0].as_py()!r}, which is no {column.dtype}"  # a series of its own, whose rows are refused
    found = frame[column.name].iloc[0]
    if pd.isna(found):
        return None
    return str(found)


def _plain(table: pa.Table) -> pa.Table:
    """Dictionaries decoded, so that rows of several files can be joined."""
    for at, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            decoded = [chunk.dictionary_decode() for chunk in table.column(at).chunks]
            table = table.set_column(at, column.name, pa.chunked_array(decoded, column.type.value_type))
    return table


def _series_of(table: pa.Table) -> np.ndarray:
    return np.asarray(table[_NUMBER].to_numpy())


def _between(history: pa.Table | None, first: int, last: int) -> pa.Table | None:
    """History of some series, which stands in their order."""
    if history is None:
        return None
    start, stop = np.searchsorted(_series_of(history), [first, last])
    return history.slice(start, stop - start)


def _packed(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Ranges of items whose sizes add up to at most so much; what is larger stands alone."""
    ranges: list[tuple[int, int]] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and total + size > most:
            ranges.append((start, at))
            start, total = at, 0
        total += size
    if start < len(sizes):
        ranges.append((start, len(sizes)))
    return ranges


def _order(key: Key) -> tuple[Any, ...]:
    return tuple((name is None, name or "") for name in key)


def _named(key: Key) -> str:
    return ", ".join("null" if name is None else name for name in key) or "(the only one)"
