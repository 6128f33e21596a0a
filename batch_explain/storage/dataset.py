"""The input dataset: which files there are, and what is in them."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa

from batch_explain.errors import InputError, first_line
from batch_explain.filters import Filter
from batch_explain.storage.delta import DeltaAddress, snapshot
from batch_explain.storage.filesystems import Location
from batch_explain.storage.filtering import check_types, groups_without, key_may_hold
from batch_explain.storage.formats import DAMAGE, Block, Content, Format, format_of
from batch_explain.storage.hive import Keys, hive_keys, scalar_of, types_of_keys

__all__ = [
    "InputFile", "dataset_root", "discover", "hive_keys", "hive_types", "hive_value", "input_files", "location_of",
    "types_from_json", "types_to_json",
]  # fmt: skip

_GLOB_CHARACTERS = frozenset("*?[")
_THREADS = 8


@dataclass(frozen=True)
class InputFile:
    """One file, and what it holds.

    Parameters
    ----------
    path : str
        Relative to the dataset's root, with ``/``; the ``source_file`` of its rows.
    url : str
        Where to open it.
    bytes, rows : int
        Size and number of rows.
    row_groups : tuple of int
        Rows of each row group: what can be read without what stands before it.
    fingerprint : str
        SHA-256 over size and footer, or over all bytes where there is none: another content has another one.
    schema : pyarrow.Schema
        The file's own columns; in a plan that was read back, of files of text alone.
    hive : tuple of (str, str or None)
        Keys and values of its ``key=value`` folders; of a Delta table, as its log has them.
    problem : str or None
        Why it cannot be read; it has no rows then.
    description : str or None
        What a run that wrote the file says of it, as JSON; not kept in a plan.
    blocks : tuple of Block
        Where its row groups stand; none where there is a footer.
    where : Filter or None
        Conditions on its own columns, that rows must fulfil to be read.
    skipped : tuple of int
        Row groups that hold no such row.
    key_types : tuple of (str, pyarrow.DataType)
        Types of the keys, where a Delta table tells them.
    """

    path: str
    url: str
    bytes: int
    rows: int
    row_groups: tuple[int, ...]
    fingerprint: str
    schema: pa.Schema = field(repr=False, default_factory=lambda: pa.schema([]))
    hive: Keys = ()
    problem: str | None = None
    description: str | None = field(repr=False, default=None)
    blocks: tuple[Block, ...] = field(repr=False, default=())
    where: Filter | None = None
    skipped: tuple[int, ...] = ()
    key_types: tuple[tuple[str, pa.DataType], ...] = field(repr=False, default=())

    @property
    def stretches(self) -> list[tuple[int, tuple[int, ...]]]:
        """The first row and the row groups of each stretch of the file in which no row group is skipped."""
        found: list[tuple[int, list[int]]] = []
        row, follows = 0, False
        for group, rows in enumerate(self.row_groups):
            if group not in self.skipped:
                if not follows:
                    found.append((row, []))
                found[-1][1].append(rows)
            follows = group not in self.skipped
            row += rows
        return [(first, tuple(groups)) for first, groups in found]

    @cached_property
    def edges(self) -> frozenset[int]:
        """Rows at which row groups begin, or the last one ends."""
        return frozenset(accumulate(self.row_groups, initial=0))

    @property
    def rows_skipped(self) -> int:
        """Rows of the row groups that hold no wanted row."""
        return sum(self.row_groups[group] for group in self.skipped)

    @property
    def format(self) -> Format:
        """How it is read."""
        return format_of(self.path)

    @property
    def content(self) -> Content:
        """What its format knows of it."""
        return Content(self.row_groups, self.fingerprint, self.schema, self.blocks)

    def to_json(self) -> dict[str, Any]:
        """The form in a stored plan: without its place, which may hold credentials, and its schema."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            "rows": self.rows,
            "row_groups": list(self.row_groups),
            "fingerprint": self.fingerprint,
            "problem": self.problem,
            **({"blocks": [[block.offset, block.bytes, block.digest] for block in self.blocks]} if self.blocks else {}),
            **({"skipped": list(self.skipped)} if self.skipped else {}),
            **({"keys": [list(key) for key in self.hive]} if self.hive != hive_keys(self.path) else {}),
        }

    @classmethod
    def from_json(
        cls, content: Mapping[str, Any], url: str, schema: pa.Schema | None = None, where: Filter | None = None
    ) -> "InputFile":
        """Read :meth:`to_json`'s form back.

        Parameters
        ----------
        content : mapping
        url : str
            Where the file is now.
        schema : pyarrow.Schema, optional
            The columns of a file of text.
        where : Filter, optional
            The run's.
        """
        stored = dict(content)
        keys = stored.pop("keys", None)
        hive = hive_keys(content["path"]) if keys is None else tuple((key, value) for key, value in keys)
        return cls(
            **{
                **stored,
                "row_groups": tuple(content["row_groups"]),
                "blocks": tuple(Block(*block) for block in content.get("blocks", ())),
                "skipped": tuple(content.get("skipped", ())),
            },
            url=url,
            schema=schema or pa.schema([]),
            hive=hive,
            where=_on_columns(where, hive),
        )


def discover(
    url: str, max_bad_files: int = 0, where: Filter | None = None, left_out: list[str] | None = None
) -> list[InputFile]:
    """List the files of a dataset, sorted by path, and look into them: footers are read, and all of any text.

    Parameters
    ----------
    url : str
        A file, a folder (searched to any depth; names that begin with ``_`` or ``.`` are not data), or a glob.
    max_bad_files : int
        So many files that cannot be read are listed with their ``problem`` and without rows.
    where : Filter, optional
        Files whose folders' keys it leaves out are not listed, nor looked into.
    left_out : list, optional
        Gets the paths of these.

    Raises
    ------
    InputError
        If nothing is there, more files than allowed cannot be read, or they have several formats.
    OptionError
        If a key of the folders is of another type than what the filter compares it with.
    """
    place = location_of(url)
    try:
        root = dataset_root(url)
        listed, types = _listed(url, place)
    except OSError as error:
        raise InputError(
            f"The input {place} cannot be listed: {error}. Check the address and its permissions."
        ) from error
    if not listed:
        raise InputError(
            f"There is no parquet file in {place}, nor one of another format. Name a parquet file, a folder that holds "
            "some (names that begin with '_' or '.' are not data), or a glob such as 'folder/*.csv'."
        )
    if unnamed := [path for path in listed if not path.isascii() and path != path.encode("utf-8", "replace").decode()]:
        raise InputError(f"The name of the file {unnamed[0]!r} is not UTF-8. Rename it.")
    _refuse_several_formats(place, list(listed))
    if where is not None:
        wanted = _not_left_out(where, listed, types or types_of_keys(listed.values()), place)
        if left_out is not None:
            left_out += [path for path in listed if path not in wanted]
        listed = wanted

    def look(path: str) -> InputFile:
        return replace(_look(root.join(path), path, listed[path], where), key_types=tuple(types.items()))

    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(look, listed))
    bad = [file for file in files if file.problem is not None]
    if len(bad) > max_bad_files or len(bad) == len(files):
        others = f" ({len(bad)} of {len(files)} files are not)" if len(bad) > 1 else ""
        raise InputError(
            f"The file {root.join(bad[0].path)} is not a readable {bad[0].format.name} file{others}: {bad[0].problem}. "
            "Write it again, move it out of the dataset, name the files to read by a glob such as 'folder/*.parquet', "
            "or pass --max-bad-files to go on without."
        )
    return _of_one_type(sorted(files, key=lambda file: file.path))


def _refuse_several_formats(place: Location, names: Sequence[str]) -> None:
    examples: dict[str, str] = {}
    for name in names:
        examples.setdefault(format_of(name).name, name)
    if len(examples) > 1:
        found = ", ".join(f"{kind} ({name})" for kind, name in examples.items())
        raise InputError(
            f"{place} holds files of several formats, by their names: {found}. Name those to read by a glob such as "
            "'folder/*.csv'."
        )


def _not_left_out(
    where: Filter, listed: Mapping[str, Keys], types: Mapping[str, pa.DataType], place: Location
) -> dict[str, Keys]:
    """The files whose folders' keys leave them any row."""
    if (on_keys := where.without([name for name in where.columns if name not in types])) is None:
        return dict(listed)
    check_types(on_keys, pa.schema([]), types, str(place))
    found = {path: keys for path, keys in listed.items() if key_may_hold(on_keys, keys, types)}
    if not found:
        raise InputError(
            f"--filter leaves none of the {len(listed):,} files in {place}: no folder's key fulfils {on_keys}. Mend "
            "the filter, or the input's address."
        )
    return found


def _on_columns(where: Filter | None, hive: Keys) -> Filter | None:
    return None if where is None else where.without([key for key, _ in hive])


def _look(place: Location, path: str, hive: Keys, where: Filter | None) -> InputFile:
    form, skipped = format_of(path), tuple[int, ...]()
    where = _on_columns(where, hive)
    try:
        with place.open() as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            content = form.look(stream)
            if where is not None and form.has_statistics and set(where.columns) <= set(content.schema.names):
                skipped = groups_without(where, stream, content.schema)
    except MemoryError:  # Arrow's is an ArrowException as well
        raise
    except DAMAGE as error:
        if not place.is_local and getattr(error, "errno", None) is not None:  # the storage's, not the file's
            raise
        return InputFile(path, place.url, 0, 0, (), "unreadable", hive=hive, problem=first_line(error))
    return InputFile(
        path=path,
        url=place.url,
        bytes=size,
        rows=sum(content.row_groups),
        row_groups=content.row_groups,
        fingerprint=content.fingerprint,
        schema=content.schema,
        hive=hive,
        description=content.description,
        blocks=content.blocks,
        where=where,
        skipped=skipped,
    )


def _of_one_type(files: list[InputFile]) -> list[InputFile]:
    """Files of text, whose columns have the type that fits the values in all of them."""
    readable = [file for file in files if file.problem is None]
    if not readable or not readable[0].format.types_are_inferred:
        return files
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    for file in readable:
        for found in file.schema:
            before, path = kinds.setdefault(found.name, (found.type, file.path))
            kind = file.format.joined(before, found.type)
            if kind is None:
                raise InputError(
                    f"The column '{found.name}' is {before} in {path} and {found.type} in {file.path}. Write the files "
                    "with one type."
                )
            kinds[found.name] = (kind, path)
    return [
        replace(file, schema=pa.schema([found.with_type(kinds[found.name][0]) for found in file.schema]))
        for file in files
    ]


def input_files(
    content: Iterable[dict[str, Any]], url: str, types: Mapping[str, str], where: Filter | None = None
) -> tuple[InputFile, ...]:
    """Files of a stored plan, whose dataset is at ``url`` now; ``types``: :func:`types_to_json`'s."""
    root, schema = dataset_root(url), types_from_json(types)
    return tuple(InputFile.from_json(file, root.join(file["path"]).url, schema, where) for file in content)


def types_to_json(files: Iterable[InputFile]) -> dict[str, str]:
    """Column -> type in files of text, which do not tell it themselves; nested ones are never read.

    Where files were looked at one by one, what fits all of them.
    """
    types: dict[str, pa.DataType] = {}
    for file in files:
        if file.problem is None and file.format.types_are_inferred:
            for found in file.schema:
                if not pa.types.is_nested(found.type):
                    before = types.get(found.name, found.type)
                    types[found.name] = file.format.joined(before, found.type) or before
    return {name: str(kind) for name, kind in types.items()}


def types_from_json(content: Mapping[str, str]) -> pa.Schema:
    """Read :func:`types_to_json`'s form back."""
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in content.items()])


def location_of(url: str) -> Location:
    """Where a dataset is; of a Delta table, its folder."""
    address = DeltaAddress.parse(url)
    return Location(url if address is None else address.table)


def dataset_root(url: str) -> Location:
    """The folder that the paths of a dataset's files are relative to."""
    place = location_of(url)
    if place.fs.isdir(place.path):
        return place
    if _GLOB_CHARACTERS & set(place.path) and not place.fs.isfile(place.path):
        return place.at(_before_glob(place.path))
    return place.parent


def _listed(url: str, place: Location) -> tuple[dict[str, Keys], dict[str, pa.DataType]]:
    """Files by their paths below the root, with their keys; and the keys' types, where the dataset tells them."""
    if (address := DeltaAddress.parse(url)) is not None:
        found = snapshot(address)
        return found.files, found.types
    prefix = dataset_root(url).path.rstrip("/") + "/"
    names = [path.removeprefix(prefix) for path in _list(place)]
    return {name: hive_keys(name) for name in names}, {}


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


def hive_types(files: Iterable[InputFile]) -> dict[str, pa.DataType]:
    """Type of each hive key over all files: int64 where every value is a whole number, else string; or as they tell."""
    files = list(files)
    return {**types_of_keys(file.hive for file in files), **(dict(files[0].key_types) if files else {})}


def hive_value(file: InputFile, key: str, kind: pa.DataType) -> pa.Scalar:
    """A hive key's value in a file's path."""
    return scalar_of(dict(file.hive)[key], kind)
