"""Ranges of a file's rows, in batches: the one reader of all formats, keys and filters."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from batch_explain.errors import BadDataError, UnreadableFileError, first_line
from batch_explain.storage.dataset import InputFile
from batch_explain.storage.filesystems import Location
from batch_explain.storage.filtering import rows_that_hold
from batch_explain.storage.formats import DAMAGE, ChangedError
from batch_explain.storage.hive import with_keys
from batch_explain.storage.ranges import Reading, keep, last_reading


def read_batches(
    file: InputFile,
    *,
    start: int,
    stop: int,
    columns: list[str],
    batch_rows: int,
    keys: Mapping[str, pa.DataType] | None = None,
) -> Iterator[pa.Table]:
    """The tables of :func:`read_rows`."""
    for table, _ in read_rows(file, start=start, stop=stop, columns=columns, batch_rows=batch_rows, keys=keys):
        yield table


def read_rows(
    file: InputFile,
    *,
    start: int,
    stop: int,
    columns: list[str],
    batch_rows: int,
    keys: Mapping[str, pa.DataType] | None = None,
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Read rows ``start`` to ``stop`` of a file in order, in tables of ``batch_rows`` rows (the last one fewer).

    Parameters
    ----------
    file : InputFile
        Rows that its filter leaves out are not given.
    start, stop : int
        A range inside a row group decodes and drops the rows before it.
    columns : list of str
        Those that are keys of the file's folder are added to it. None at all: a table of a column that means nothing.
    batch_rows : int
    keys : mapping, optional
        Hive key -> type.

    Yields
    ------
    table : pyarrow.Table
    positions : ndarray of int64
        Of its rows in the file.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read, or has fewer rows than it had.
    BadDataError
        If it is another file than the one that was planned with.
    """
    keys = keys or {}
    in_file = [name for name in columns if name not in keys]
    read = list(dict.fromkeys([*in_file, *(file.where.columns if file.where is not None else ())]))
    held: list[pa.Table] = []
    places: list[np.ndarray] = []
    rows = 0

    def taken() -> Iterator[tuple[pa.Table, np.ndarray]]:
        nonlocal rows
        table, positions = pa.concat_tables(held), np.concatenate(places)
        # a column named twice or nested must not slip in: select by exact name
        here = with_keys(table.slice(0, batch_rows), file.hive, keys, columns)
        yield here.select(columns) if columns else here, positions[:batch_rows]
        held[:], places[:] = [table.slice(batch_rows)], [positions[batch_rows:]]
        rows -= here.num_rows

    for batch, first in _read(file, start=start, stop=stop, columns=read, batch_rows=batch_rows):
        table, positions = pa.Table.from_batches([batch]), np.arange(first, first + batch.num_rows)
        if file.where is not None:
            chosen = rows_that_hold(file.where, table)
            table, positions = table.take(pa.array(chosen)), positions[chosen]
        held.append(table)
        places.append(positions)
        rows += table.num_rows
        while rows >= batch_rows:
            yield from taken()
    if rows:
        yield from taken()


def _read(
    file: InputFile, *, start: int, stop: int, columns: list[str], batch_rows: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """All rows of a range, and the position of each piece's first."""
    place, content = Location(file.url), file.content
    groups, first = _groups(file, start, stop)
    reading = last_reading()
    if reading is not None and not reading.goes_on(place, content, first, start, stop, columns, batch_rows):
        reading.close()
        reading = None
    position = start
    try:
        reading = reading or Reading(place, file.format, content, groups, first, stop, columns, batch_rows)
        # a column named twice or nested may bring others
        for batch in reading.until(stop):
            if not columns:
                batch = pa.RecordBatch.from_arrays([pa.nulls(batch.num_rows)], ["_"])
            skip = max(0, start - (reading.position - batch.num_rows))
            if skip < batch.num_rows:
                yield batch.slice(skip), reading.position - batch.num_rows + skip
        position, done, reading = reading.position, reading, None
        keep(done)
    except ChangedError:
        raise BadDataError(
            f"{file.path} was changed after the run was planned: rows of two versions would be mixed. Start the run "
            "again."
        ) from None
    except MemoryError:  # Arrow's is an ArrowException as well
        raise
    except DAMAGE as error:
        if getattr(error, "errno", None) is not None:  # the storage's, not the file's
            raise
        raise UnreadableFileError(
            f"Rows {start} to {stop} of {file.path} cannot be read: {first_line(error)}. The file is damaged or was "
            "changed during the run: write it again and start the run again."
        ) from error
    finally:
        if reading is not None:
            reading.close()
    if position < stop and start < stop:
        raise UnreadableFileError(
            f"{file.path} ended {stop - max(start, position)} rows before row {stop}, which it had. Write the file "
            "again."
        )


def _groups(file: InputFile, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups of a range, and those behind it up to one that is skipped; and the first row of the first."""
    groups: list[int] = []
    first = position = 0
    for group, rows in enumerate(file.row_groups):
        if position >= stop and (not groups or group in file.skipped):
            break
        if position + rows > start:
            if not groups:
                first = position
            groups.append(group)
        position += rows
    return groups, first
