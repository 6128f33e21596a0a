"""Mini-batches: which of the plan's files a mounted path is, DataFrames as files, and rows to give back."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.engine.partitions import FilePartition
from batch_explain.engine.plan import Plan
from batch_explain.engine.quarantine import QUARANTINE
from batch_explain.engine.schema import some_of
from batch_explain.errors import InputError, OptionError
from batch_explain.storage.dataset import InputFile, discover, hive_keys
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import read_parquet
from batch_explain.storage.receipts import Receipt
from batch_explain.storage.tables import part_path

if TYPE_CHECKING:
    import pandas as pd

_DIGITS = 32


def match(files: Sequence[InputFile], path: str, root: str | None) -> InputFile:
    """The file of a plan that a path is, to be read there: the input may be mounted elsewhere than it was planned.

    Parameters
    ----------
    files : sequence of InputFile
        The plan's.
    path : str
        As the platform gives it.
    root : str or None
        Folder that the plan's paths are relative to, where it is known; else the plan's path must end the given one.

    Raises
    ------
    InputError
        If no file is it, or it cannot be told which.
    """
    known = {file.path: file for file in files}
    if root is not None:
        names = [name_of(path, root)]
    else:
        parts = path.replace("\\", "/").split("/")
        names = ["/".join(parts[at:]) for at in range(len(parts))]
    found = [known[name] for name in names if name in known]
    if len(found) > 1:
        here = discover(path)[0].fingerprint
        found = [file for file in found if file.fingerprint == here] or found
    if len(found) != 1:
        which = f"may be any of {some_of([file.path for file in found])}" if found else "is none of the planned files"
        raise InputError(
            f"The file {path} of the mini-batch {which}. Give the parallel step the input that the plan was made of, "
            "and pass --input-root, the folder that it is mounted at."
        )
    return replace(found[0], url=Location(path).url)


def name_of(path: str, root: str | None) -> str:
    """The name of a file's rows (``source_file``): relative to the root; else the file's own, with its hive folders."""
    if root is not None:
        base, place = Location(root).path.rstrip("/") + "/", Location(path).path
        if not place.startswith(base):
            raise InputError(
                f"The file {path} of the mini-batch is not in --input-root ({root}). Pass the folder that the input is "
                "mounted at."
            )
        return place.removeprefix(base)
    parts = PurePath(path.replace("\\", "/")).parts
    first = len(parts) - 1
    while first > 0 and "=" in parts[first - 1].strip("="):
        first -= 1
    return "/".join(parts[first:])


def read_file(path: str, name: str) -> InputFile:
    """A file that no plan knows, under the name that its rows have."""
    return replace(discover(path)[0], path=name, hive=hive_keys(name))


@contextlib.contextmanager
def file_of_frame(frame: "pd.DataFrame", ids: Sequence[str]) -> Iterator[InputFile]:
    """A DataFrame as a file for as long as the block runs, named by the content of its id columns.

    Raises
    ------
    OptionError, InputError
        If there are no id columns, or they do not tell the rows apart, or a column has no form in parquet.
    """
    if not ids:
        raise OptionError(
            "The mini-batch is a DataFrame, whose rows have no file and no position. Pass --id-columns, columns that "
            "tell its rows apart from all others."
        )
    if absent := [name for name in ids if name not in frame.columns]:
        raise InputError(
            f"The mini-batch, a DataFrame, has no column {some_of(absent)}. Name by --id-columns those that it has."
        )
    if repeated := int(frame.duplicated(list(ids)).sum()):
        raise InputError(
            f"{repeated:,} of {len(frame):,} rows of the mini-batch, a DataFrame, have the same {some_of(list(ids))} "
            "as others. Name by --id-columns those that tell rows apart."
        )
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(
            f"The mini-batch, a DataFrame, has a column of values that do not go together: {error}. Mend the rows."
        ) from error
    digest = hashlib.sha256()
    for column in (table[name].combine_chunks() for name in ids):
        digest.update(repr(column.to_pylist()).encode("utf-8", "surrogatepass"))
    with tempfile.TemporaryDirectory(prefix="batch-explain-") as folder:
        place = os.path.join(folder, "rows.parquet")
        pq.write_table(table, place, compression="none")
        yield read_file(place, f"rows-{digest.hexdigest()[:_DIGITS]}")


def rows_of(plan: Plan, done: Sequence[tuple[FilePartition, Receipt]], tables: Sequence[str]) -> "pd.DataFrame":
    """The rows of partitions, read back from their parts.

    Parameters
    ----------
    plan : Plan
    done : sequence of (FilePartition, Receipt)
    tables : sequence of str
        Levels of the run's tables, each with one line a row.

    Returns
    -------
    DataFrame
        ``source_file``, ``source_row``, the ids, and the tables' columns: predictions under their own names, others
        as ``raw.<feature>`` or ``raw.<output>.<feature>``. A row in quarantine has its place and nothing else; a file
        without rows has one line with its name.
    """
    import pandas as pd

    if unknown := [level for level in tables if level not in plan.tables or level == "reasons"]:
        raise OptionError(
            f"The run has no table {some_of(unknown)} with one line a row. Return some of "
            f"{some_of([level for level in plan.tables if level != 'reasons'])}."
        )
    frames = [_rows_of_part(plan, part, receipt, tables) for part, receipt in done]
    return pd.concat(frames, ignore_index=True)


def _rows_of_part(plan: Plan, part: FilePartition, receipt: Receipt, tables: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    output = Location(plan.options.output)
    quarantined: set[int] = set()
    if receipt.rows_quarantined:
        quarantined = set(_read(output, QUARANTINE, part.index)["source_row"])
    rows = [row for row in range(part.start, part.stop) if row not in quarantined]
    pieces = [pd.DataFrame({"source_file": part.file.path, "source_row": rows})]
    seen = {"source_file", "source_row"}
    for level in tables:
        for spec in plan.tables[level]:
            found = _read(output, spec.folder, part.index)
            output_name = spec.folder.partition("output=")[2]
            prefix = "" if level == "predictions" else f"{level}.{output_name}{'.' * bool(output_name)}"
            ids = set(plan.ids) | {"source_file", "source_row"}
            found = found[[name for name in found.columns if name not in ids or name not in seen]]
            seen.update(name for name in found.columns if name in ids)
            pieces.append(found.rename(columns={n: f"{prefix}{n}" for n in found.columns if n not in ids}))
    frame = pd.concat(pieces, axis=1)
    if quarantined:
        frame = frame.set_index("source_row").reindex(range(part.start, part.stop)).reset_index()
        frame["source_file"] = part.file.path
    if not len(frame):
        frame = pd.DataFrame({"source_file": [part.file.path]}).reindex(columns=frame.columns)
    return frame[["source_file", "source_row", *(n for n in frame.columns if n not in ("source_file", "source_row"))]]


def _read(output: Location, folder: str, index: int) -> "pd.DataFrame":
    frame: pd.DataFrame = read_parquet(output.join(part_path(folder, index))).to_pandas()
    return frame
