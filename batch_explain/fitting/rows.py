"""Rows for a fit: a bounded sample of a dataset of any size, and rows that are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from batch_explain.engine.schema import as_trained, check_columns, require
from batch_explain.errors import InputError
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import InputFile, discover, hive_types
from batch_explain.storage.ranges import let_go
from batch_explain.storage.reading import read_batches
from batch_explain.storage.tables import SOURCE_IDS
from batch_explain.summary.sample import Sampling
from batch_explain.teachers.base import Teacher
from batch_explain.teachers.columns import BadValueError, to_frame

FILE, ROW = (field.name for field in SOURCE_IDS)
HELD_OUT_SHARE, MAX_HELD_OUT = 0.2, 20_000
_CHUNK = 1 << 20  # rows whose numbers are drawn at once
_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Dataset:
    """The files of a dataset, checked against what the model needs.

    Parameters
    ----------
    files : tuple of InputFile
    columns : tuple of str
        The model's columns.
    label : str or None
        None where the files have no such column.
    keys : dict
        Hive key -> type.
    notes : tuple of str
        Conversions that reading makes.
    """

    files: tuple[InputFile, ...]
    columns: tuple[str, ...]
    label: str | None
    keys: dict[str, pa.DataType]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Rows:
    """Rows as the model takes them.

    Parameters
    ----------
    table : pyarrow.Table
        As they stand in the files, with ``source_file`` and ``source_row``.
    frame : pandas.DataFrame
        The model's columns, in its types.
    labels : pandas.Series
        Without a missing one.
    without_label : int
        Rows that were left out because they have none.
    """

    table: pa.Table
    frame: pd.DataFrame
    labels: pd.Series
    without_label: int


def find(url: str, teacher: Teacher, label: str, *, option: str, needs_label: bool = True) -> Dataset:
    """List a dataset's files and check their columns.

    Parameters
    ----------
    url : str
    teacher : Teacher
    label : str
    option : str
        The option that names the dataset, for messages.
    needs_label : bool
        Whether files without it are an error.

    Raises
    ------
    InputError
        If nothing is there, or columns are missing or of a type that cannot become the trained one.
    """
    files = as_trained(discover(url), teacher.columns)
    keys = hive_types(files)
    if not sum(file.rows for file in files):
        raise InputError(f"The dataset {url} that {option} names has no rows. Pass one with rows.")
    if label in {column.name for column in teacher.columns}:
        raise InputError(
            f"The label '{label}' is one of the columns that the model was trained on, so it cannot be what the model "
            "predicts. Name the column with the true answer by --label."
        )
    has_label = all(label in file.schema.names or label in keys for file in files)
    if needs_label or has_label:
        require(files, [label], keys, what="label column", cure="Name the column with the true answer by --label.")
    notes = check_columns(
        RunOptions(input=url, output="", explainer=""), files, teacher.columns, keys, engineered=False
    )
    names = tuple(column.name for column in teacher.columns)
    return Dataset(tuple(files), names, label if has_label else None, keys, tuple(notes))


def split(dataset: Dataset, most: int, *, hold_out: bool) -> tuple["Chosen", "Chosen"]:
    """Choose rows to fit on, and rows to hold out.

    A row's number is a hash of its file's path and its position there: the rows with the smallest are held out, those
    that follow are fitted on. So the choice is the same whenever, wherever and however often it is made.

    Parameters
    ----------
    dataset : Dataset
    most : int
        Largest number of rows to fit on.
    hold_out : bool
        Whether a fifth of the rows, at most 20,000, are held out.

    Returns
    -------
    fitted, held : list of ndarray of int
        Sorted positions in each file.

    Raises
    ------
    InputError
        If there are too few rows to hold any out.
    """
    held = min(int(dataset.rows * HELD_OUT_SHARE), MAX_HELD_OUT) if hold_out else 0
    if hold_out and not held:
        raise InputError(
            f"The training data has {dataset.rows} rows, of which none can be held out to judge the surrogate. Pass "
            "more rows, or others by --test."
        )
    wanted = min(dataset.rows, held + most)
    sampling = Sampling(wanted, dataset.rows)
    files, places, numbers = [], [], []
    for at, file in enumerate(dataset.files):
        for start in range(0, file.rows, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, file.rows))
            chosen, drawn = sampling.choose(file.path, rows)
            files.append(np.full(len(chosen), at))
            places.append(rows[chosen])
            numbers.append(drawn)
    of, place, number = map(np.concatenate, (files, places, numbers))
    order = np.lexsort((place, of, number))[:wanted]

    def by_file(positions: np.ndarray) -> list[np.ndarray]:
        return [np.sort(place[positions[of[positions] == at]]) for at in range(len(dataset.files))]

    return by_file(order[held:]), by_file(order[:held])


Chosen = list[np.ndarray]


def read(dataset: Dataset, chosen: Sequence[np.ndarray], teacher: Teacher) -> Rows:
    """Read chosen rows, in the order of the input; those without a label are left out.

    Raises
    ------
    InputError
        At the first value that the model cannot take, named by file, row and column, or if no row is left.
    UnreadableFileError
        If a file is damaged.
    """
    assert dataset.label is not None
    wanted = tuple(dict.fromkeys((*dataset.columns, dataset.label)))
    parts = []
    for file, rows in zip(dataset.files, chosen, strict=True):
        first = 0
        if not len(rows):
            continue
        stop = int(rows[-1]) + 1
        for table in read_batches(
            file, start=0, stop=stop, columns=list(wanted), batch_rows=_BATCH_ROWS, keys=dataset.keys
        ):
            here = rows[(rows >= first) & (rows < first + table.num_rows)]
            if len(here):
                part = table.take(pa.array(here - first))
                ids = [pa.array([file.path] * len(here), pa.string()), pa.array(here, pa.int64())]
                parts.append(pa.table([*ids, *part.columns], [FILE, ROW, *wanted]))
            first += table.num_rows
    let_go(mine=True)
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"The training files have columns of types that do not mix: {error}. Write them with one type each."
        ) from error
    missing = table[dataset.label].to_pandas().isna().to_numpy()
    table = table.filter(pa.array(~missing))
    if not table.num_rows:
        raise InputError(f"No row of the training data has a value in the label column '{dataset.label}'.")
    names = [column.name for column in teacher.columns]
    try:
        frame, _ = to_frame(table.select(names), teacher.columns)
    except BadValueError as error:
        where = table.select([FILE, ROW]).slice(error.row, 1).to_pylist()[0]
        raise InputError(
            f"Row {where[ROW]} of {where[FILE]}: column '{error.column}' {error.reason}. Mend the value, or leave the "
            "row out."
        ) from None
    return Rows(table, frame, table[dataset.label].to_pandas(), int(missing.sum()))
