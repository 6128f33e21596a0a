"""Which groups a run's cohorts have, decided before any task by a column's values: all, or a fixed part of them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from batch_explain.engine.schema import require, some_of
from batch_explain.errors import InputError, OptionError, UnreadableFileError
from batch_explain.storage.dataset import InputFile, hive_value
from batch_explain.storage.reading import read_batches
from batch_explain.summary.cohorts import PREDICTED_CLASS, Asked, Cohort, is_groupable, is_number

LOOKED_AT = 1_000_000  # rows: so many are read whole
_RANGES = 64  # of more, or of more files, so many row groups are looked at, evenly spaced
_THREADS = 8


def decide_cohorts(
    asked: Sequence[str], files: Sequence[InputFile], keys: dict[str, pa.DataType], limit: int | None = None
) -> tuple[tuple[Cohort, ...], list[str]]:
    """The cohorts that ``--cohort`` names.

    Parameters
    ----------
    asked : sequence of str
        ``COLUMN``, ``COLUMN:18,30,50`` or ``COLUMN@4``.
    files : sequence of InputFile
        Those that can be read.
    keys : dict
        Hive key -> type.
    limit : int, optional
        Only the first rows count.

    Returns
    -------
    cohorts : tuple of Cohort
    decisions : list of str
        How each was cut.

    Raises
    ------
    OptionError, InputError
        If a column is missing, of different kinds in different files, or cannot be cut as it should be.
    """
    if not asked:
        return (), []
    columns = {*keys, *(name for file in files for name in file.schema.names)}
    parsed = [Asked.parse(text, tuple(columns)) for text in asked]
    names = [each.column for each in parsed]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"--cohort names {some_of(repeated)} more than once. Name each column once.")
    require(files, names, keys, what="cohort column", cure="Name columns that the files have by --cohort.")
    types = {name: _type(name, files, keys) for name in names}
    ranges, read = ranges_to_read(files, limit)
    in_files = [each.column for each in parsed if each.column not in keys and each.edges is None]
    tables = _read(ranges, in_files) if in_files else []
    decided = []
    for each in parsed:
        if each.column in keys:
            values = _of_folders(files, each.column, keys[each.column])
            decided.append(each.decide(types[each.column], values, "the folders' names"))
        else:
            column = pa.chunked_array(
                [chunk for table in tables for chunk in _plain_chunks(table[each.column], types[each.column])]
                if each.column in in_files else [],
                type=types[each.column],
            )  # fmt: skip
            decided.append(each.decide(types[each.column], column, read))
    return tuple(cohort for cohort, _ in decided), [note for _, note in decided]


def refuse_two_meanings(cohorts: Sequence[Cohort]) -> None:
    """A column must not bear the name of the cohort that a classifier always has."""
    if any(cohort.name == PREDICTED_CLASS for cohort in cohorts):
        raise OptionError(
            f"--cohort names the column '{PREDICTED_CLASS}', which is what the summaries by the model's own prediction "
            "are called. Give the column another name."
        )


def _type(name: str, files: Sequence[InputFile], keys: dict[str, pa.DataType]) -> pa.DataType:
    """The column's type; float64 where it is of different types of numbers."""
    found: set[pa.DataType] = set()
    for file in files:
        kind = keys[name] if name in keys else file.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        kind = pa.string() if pa.types.is_large_string(kind) else kind
        if not pa.types.is_null(kind):
            found.add(kind)
    if any(not is_groupable(kind) for kind in found):
        raise InputError(
            f"The cohort column '{name}' holds {', '.join(sorted(map(str, found)))}, which has no groups. Name a "
            "column of texts, numbers, dates or booleans by --cohort."
        )
    if len(found) > 1 and not all(is_number(kind) for kind in found):
        raise InputError(
            f"The cohort column '{name}' has different types in different files "
            f"({', '.join(sorted(map(str, found)))}). Write the files with one type, or leave it out of --cohort."
        )
    if len(found) > 1:
        return pa.int64() if all(pa.types.is_integer(kind) for kind in found) else pa.float64()
    return found.pop() if found else pa.string()


def _plain_chunks(column: pa.ChunkedArray, kind: pa.DataType) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        yield (chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk).cast(kind, safe=False)


def ranges_to_read(
    files: Sequence[InputFile], limit: int | None, most: int = LOOKED_AT
) -> tuple[list[tuple[InputFile, int, int]], str]:
    """Ranges of rows to look at, and how they are called: all, or the beginnings of evenly spaced row groups."""
    groups, left = [], sum(file.rows for file in files) if limit is None else limit
    for file in files:
        for start, row_groups in file.stretches:
            for rows in row_groups:
                if rows and left:
                    groups.append((file, start, start + min(rows, left)))
                left -= min(rows, left)
                start += rows
    total = sum(stop - start for _, start, stop in groups)
    if total <= most and len(groups) <= _RANGES:
        return groups, f"all {total:,} rows"
    if total <= most and len({file.path for file, _, _ in groups}) <= _RANGES:
        whole: dict[str, tuple[InputFile, int, int]] = {}
        for file, start, stop in groups:
            whole[file.path] = (file, whole.get(file.path, (file, start, stop))[1], stop)
        return list(whole.values()), f"all {total:,} rows"
    number = min(_RANGES, len(groups))
    chosen = [groups[at * len(groups) // number] for at in range(number)]
    chosen = [(file, start, min(stop, start + most // number)) for file, start, stop in chosen]
    read = sum(stop - start for _, start, stop in chosen)
    return chosen, f"{read:,} of {total:,} rows (the beginnings of {number} evenly spaced row groups)"


def _read(ranges: Sequence[tuple[InputFile, int, int]], columns: list[str]) -> list[pa.Table]:
    columns = list(dict.fromkeys(columns))

    def read(of: tuple[InputFile, int, int]) -> list[pa.Table]:
        file, start, stop = of
        try:
            return list(read_batches(file, start=start, stop=stop, columns=columns, batch_rows=100_000))
        except UnreadableFileError:  # its task will say so
            return []

    with ThreadPoolExecutor(_THREADS) as pool:
        return [table for tables in pool.map(read, ranges) for table in tables]


def _of_folders(files: Sequence[InputFile], key: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A hive key's value of each row; in proportion, where there are many."""
    total = max(1, sum(file.rows for file in files))
    chunks = [
        pa.repeat(hive_value(file, key, kind), min(file.rows, max(1, file.rows * LOOKED_AT // total)))
        for file in files
        if file.rows
    ]
    return pa.chunked_array(chunks, type=kind)
