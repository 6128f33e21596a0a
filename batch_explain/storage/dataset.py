"""The input dataset: which parquet files, what is in their footers, and reading ranges of their rows."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.errors import BadDataError, InputError, UnreadableFileError, first_line
from batch_explain.storage.filesystems import Location
from batch_explain.storage.tables import METADATA_KEY

_GLOB_CHARACTERS = frozenset("*?[")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_FOOTER_THREADS = 8
READ_BYTES = 64 << 20  # of all columns together, while a file is read
_BUFFER_BYTES, _SMALLEST_BUFFER = 1 << 20, 16 << 10  # of one column


@dataclass(frozen=True)
class InputFile:
    """One parquet file, as its footer describes it.

    Parameters
    ----------
    path : str
        Relative to the dataset's root, with ``/``; the ``source_file`` of its rows.
    url : str
        Where to open it.
    bytes, rows : int
        Size and number of rows.
    row_groups : tuple of int
        Rows of each row group.
    fingerprint : str
        SHA-256 over size and footer: another content has another one.
    schema : pyarrow.Schema
        The file's own columns; empty in a plan that was read back.
    hive : tuple of (str, str or None)
        Keys and values of its ``key=value`` folders.
    problem : str or None
        Why it cannot be read; it has no rows then.
    description : str or None
        What a run that wrote the file says of it, as JSON; not kept in a plan.
    """

    path: str
    url: str
    bytes: int
    rows: int
    row_groups: tuple[int, ...]
    fingerprint: str
    schema: pa.Schema = field(repr=False, default_factory=lambda: pa.schema([]))
    hive: tuple[tuple[str, str | None], ...] = ()
    problem: str | None = None
    description: str | None = field(repr=False, default=None)

    def to_json(self) -> dict[str, Any]:
        """The form in a stored plan: without its place, which may hold credentials, and its schema."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            "rows": self.rows,
            "row_groups": list(self.row_groups),
            "fingerprint": self.fingerprint,
            "problem": self.problem,
        }


def discover(url: str, max_bad_files: int = 0) -> list[InputFile]:
    """List the parquet files of a dataset, sorted by path, with their footers read.

    Parameters
    ----------
    url : str
        A file, a folder (searched to any depth; names that begin with ``_`` or ``.`` are not data), or a glob.
    max_bad_files : int
        So many files that are not readable parquet are listed with their ``problem`` and without rows.

    Raises
    ------
    InputError
        If nothing is there, or more files than allowed are not readable parquet.
    """
    place = Location(url)
    try:
        paths, root = _list(place), dataset_root(url)
    except OSError as error:
        raise InputError(
            f"The input {place} cannot be listed: {error}. Check the address and its permissions."
        ) from error
    if not paths:
        raise InputError(
            f"There is no parquet file in {place}. Name a parquet file, a folder that holds some (names that begin "
            "with '_' or '.' are not data), or a glob such as 'folder/*.parquet'."
        )
    if unnamed := [path for path in paths if not path.isascii() and path != path.encode("utf-8", "replace").decode()]:
        raise InputError(f"The name of the file {unnamed[0]!r} is not UTF-8. Rename it.")
    prefix = root.path.rstrip("/") + "/"
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        files = list(pool.map(lambda path: _read_footer(root.at(path), path.removeprefix(prefix)), paths))
    bad = [file for file in files if file.problem is not None]
    if len(bad) > max_bad_files or len(bad) == len(files):
        others = f" ({len(bad)} of {len(files)} files are not)" if len(bad) > 1 else ""
        raise InputError(
            f"The file {root.join(bad[0].path)} is not a readable parquet file{others}: {bad[0].problem}. Write it "
            "again, move it out of the dataset, name the files to read by a glob such as 'folder/*.parquet', or pass "
            "--max-bad-files to go on without."
        )
    return sorted(files, key=lambda file: file.path)


def input_files(content: Iterable[dict[str, Any]], url: str) -> tuple[InputFile, ...]:
    """Files of a stored plan, whose dataset is at ``url`` now."""
    root = dataset_root(url)
    return tuple(
        InputFile(
            **{**file, "row_groups": tuple(file["row_groups"])},
            url=root.join(file["path"]).url,
            hive=hive_keys(file["path"]),
        )
        for file in content
    )


def dataset_root(url: str) -> Location:
    """The folder that the paths of a dataset's files are relative to."""
    place = Location(url)
    if place.fs.isdir(place.path):
        return place
    if _GLOB_CHARACTERS & set(place.path) and not place.fs.isfile(place.path):
        return place.at(_before_glob(place.path))
    return place.parent


def _list(place: Location) -> list[str]:
    fs, path = place.fs, place.path
    try:
        if fs.isfile(path):
            return [path]
        if fs.isdir(path):
            found = fs.find(path)
        elif _GLOB_CHARACTERS & set(path):
            found = [file for match in fs.glob(path) for file in (fs.find(match) if fs.isdir(match) else [match])]
        else:
            raise InputError(f"There is nothing at {place}. Check the path of the input dataset.")
    except OSError as error:
        raise InputError(f"The input {place} cannot be listed: {error}. Check the path and its permissions.") from error
    prefix = dataset_root(place.url).path.rstrip("/") + "/"
    return sorted({name for name in found if not _is_hidden(name.removeprefix(prefix))})


def _before_glob(path: str) -> str:
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if _GLOB_CHARACTERS & set(part))
    return "/".join(parts[:first]) or "/"


def _is_hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _read_footer(place: Location, path: str) -> InputFile:
    try:
        with place.open() as stream:
            parquet = pq.ParquetFile(stream)
            metadata, schema = parquet.metadata, parquet.schema_arrow
            size, fingerprint = _fingerprint(stream)
    except (OSError, pa.ArrowException) as error:
        if not place.is_local and getattr(error, "errno", None) is not None:  # the storage's, not the file's
            raise
        return InputFile(path, place.url, 0, 0, (), "unreadable", hive=hive_keys(path), problem=first_line(error))
    return InputFile(
        path=path,
        url=place.url,
        bytes=size,
        rows=metadata.num_rows,
        row_groups=tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)),
        fingerprint=fingerprint,
        schema=schema.remove_metadata(),
        hive=hive_keys(path),
        description=(schema.metadata or {}).get(METADATA_KEY, b"").decode(errors="replace") or None,
    )


def _fingerprint(stream: BinaryIO) -> tuple[int, str]:
    """Size, and SHA-256 over size and footer."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 8))
    footer_bytes = int.from_bytes(stream.read(8)[:4], "little") + 8
    stream.seek(max(0, size - footer_bytes))
    return size, hashlib.sha256(f"{size}:".encode() + stream.read()).hexdigest()


def hive_keys(path: str) -> tuple[tuple[str, str | None], ...]:
    """Keys and values of the ``key=value`` folders in a file's path; None is hive's null."""
    keys = []
    for part in path.split("/")[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            keys.append((unquote(key), None if value == _HIVE_NULL else unquote(value)))
    return tuple(keys)


def hive_types(files: list[InputFile]) -> dict[str, pa.DataType]:
    """Type of each hive key over all files: int64 where every value is a whole number, else string."""
    values: dict[str, list[str]] = {}
    for file in files:
        for key, value in file.hive:
            known = values.setdefault(key, [])
            if value is not None:
                known.append(value)
    return {
        key: pa.int64() if known and all(_is_int64(value) for value in known) else pa.string()
        for key, known in values.items()
    }


def hive_value(file: InputFile, key: str, kind: pa.DataType) -> pa.Scalar:
    """A hive key's value in a file's path."""
    value = dict(file.hive)[key]
    return pa.scalar(int(value) if value is not None and pa.types.is_integer(kind) else value, kind)


def _is_int64(text: str) -> bool:
    # '007' stays text: as a number it could not be told from '7'
    digits = text.removeprefix("-")
    return (
        digits.isascii() and digits.isdecimal() and str(int(digits)) == digits and text != "-0"
        and -(2**63) <= int(text) < 2**63
    )  # fmt: skip


def read_batches(file: InputFile, *, start: int, stop: int, columns: list[str], batch_rows: int) -> Iterator[pa.Table]:
    """Read rows ``start`` to ``stop`` of a file in order, in tables of ``batch_rows`` rows (the last one fewer).

    Column chunks are streamed, so memory depends on ``batch_rows`` and the width, not on the row group's size.
    A range inside a row group decodes and drops the rows before it: parquet pages cannot be sought by row here.

    Raises
    ------
    UnreadableFileError
        If the file cannot be read, or has fewer rows than its footer says.
    BadDataError
        If it is another file than the one that was planned with.
    """
    groups, before = _overlapping(file.row_groups, start, stop)
    skip, wanted = start - before, stop - start
    pending: list[pa.RecordBatch] = []
    held = 0
    try:
        with Location(file.url).open_arrow() as stream:
            if _fingerprint(stream)[1] != file.fingerprint:
                raise BadDataError(
                    f"{file.path} was changed after the run was planned: rows of two versions would be mixed. Start "
                    "the run again."
                )
            buffer = min(_BUFFER_BYTES, max(_SMALLEST_BUFFER, READ_BYTES // max(1, len(columns))))
            parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=buffer)
            # a column named twice or nested must not slip in: select by exact name afterwards
            for batch in parquet.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False):
                if not columns:
                    batch = pa.RecordBatch.from_arrays([pa.nulls(batch.num_rows)], ["_"])
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                batch = batch.slice(skip, wanted)
                skip = 0
                wanted -= batch.num_rows
                pending.append(batch)
                held += batch.num_rows
                while held >= batch_rows:
                    table = pa.Table.from_batches(pending)
                    yield _select(table.slice(0, batch_rows), columns)
                    rest = table.slice(batch_rows)
                    pending, held = rest.to_batches(), rest.num_rows
                if not wanted:
                    break
    except MemoryError:  # Arrow's is an ArrowException as well
        raise
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) is not None:  # the storage's, not the file's
            raise
        raise UnreadableFileError(
            f"Rows {start} to {stop} of {file.path} cannot be read: {first_line(error)}. The file is damaged or was "
            "changed during the run: write it again and start the run again."
        ) from error
    if wanted:
        raise UnreadableFileError(
            f"{file.path} ended {wanted} rows before row {stop}, which its footer promises. Write the file again."
        )
    if held:
        yield _select(pa.Table.from_batches(pending), columns)


def _select(table: pa.Table, columns: list[str]) -> pa.Table:
    return table.select(columns) if columns else table


def _overlapping(row_groups: tuple[int, ...], start: int, stop: int) -> tuple[list[int], int]:
    """Row groups that hold any of the rows, and the number of rows before the first of them."""
    groups: list[int] = []
    first = position = 0
    for index, rows in enumerate(row_groups):
        if position < stop and position + rows > start:
            if not groups:
                first = position
            groups.append(index)
        position += rows
    return groups, first
