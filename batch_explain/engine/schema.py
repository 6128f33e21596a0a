"""The dataset's columns against what the model and the explainer need: missing, doubled, of the wrong type, mixed."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from batch_explain.errors import InputError, OptionError
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import InputFile, hive_types
from batch_explain.storage.filtering import check_types
from batch_explain.storage.tables import SOURCE_IDS
from batch_explain.teachers.columns import Column, conversion_note, kind_of, type_problem


def id_fields(
    options: RunOptions, ids: Sequence[str], files: Sequence[InputFile], keys: dict[str, pa.DataType]
) -> list[pa.Field]:
    """Fields of the id columns, first in every table; without ids, of the rows' places in the input.

    Raises
    ------
    InputError
        If one is missing from a file, or its type differs between files.
    """
    if not ids:
        return list(SOURCE_IDS)
    fields = []
    for name in ids:
        require(files, [name], keys, what="id column", cure="Name columns that the files have by --id-columns.")
        types = {keys.get(name) or file.schema.field(name).type for file in files}
        plain = {t.value_type if pa.types.is_dictionary(t) else t for t in types}
        if len(plain) > 1:
            raise InputError(
                f"The id column '{name}' has different types in different files "
                f"({', '.join(sorted(map(str, plain)))}). Write the files with one type, or leave it out of "
                "--id-columns."
            )
        fields.append(pa.field(name, plain.pop()))
    return fields


def check_columns(
    options: RunOptions,
    files: Sequence[InputFile],
    columns: Sequence[Column],
    keys: dict[str, pa.DataType],
    *,
    engineered: bool,
) -> list[str]:
    """Check every file's columns against what the model needs; return the conversions that will be made.

    Raises
    ------
    InputError
        Naming all columns that are missing, doubled or of a type that cannot become the trained one.
    OptionError
        If ``--columns-map`` names a column that the model does not have.
    """
    in_file = dict(options.columns_map)
    if unknown := sorted(set(in_file) - {column.name for column in columns}):
        raise OptionError(
            f"--columns-map names {', '.join(map(repr, unknown))}, which the model does not need. It needs "
            f"{some_of([column.name for column in columns])}."
        )
    names = [in_file.get(column.name, column.name) for column in columns]
    require(
        files,
        names,
        keys,
        what="column that the model needs",
        cure="Without --model the input must hold the engineered features by name: pass the --model too."
        if engineered
        else "Add them to the files, or name the file's own column by --columns-map MODEL=FILE.",
    )
    notes: dict[str, None] = {}
    # a text among inferred numbers makes a text of its column: let it be named by its row
    engineered = engineered and not any(file.format.types_are_inferred for file in files)
    schemas: dict[Any, str] = {}
    for file in files:
        schemas.setdefault(file.schema, file.path)
    kinds: dict[str, tuple[str, str]] = {}
    problems = []
    for schema, path in schemas.items():
        for column, name in zip(columns, names, strict=True):
            found = keys[name] if name in keys else schema.field(name).type
            if problem := column_problem(column, found, engineered=engineered):
                problems.append(f"'{name}' in {path} {problem}")
                continue
            if note := conversion_note(column, found):
                notes[note] = None
            kind = kind_of(found)
            first_kind, first_path = kinds.setdefault(name, (kind, path))
            if column.dtype is None and not engineered and not _may_mix(kind, first_kind):
                problems.append(f"'{name}' is {first_kind} in {first_path} but {kind} in {path}")
    if problems:
        raise InputError(
            f"{len(problems)} column{'s' * (len(problems) > 1)} cannot become what the model was trained on: "
            f"{'; '.join(problems[:8])}{'; …' * (len(problems) > 8)}. Write the files with the trained types, or point "
            "--columns-map at the right column."
        )
    return list(notes)


def as_trained(
    files: Sequence[InputFile], columns: Sequence[Column], columns_map: Sequence[tuple[str, str]] = ()
) -> list[InputFile]:
    """The same files, where a file of text does not tell types: what the model knows as text is read as text.

    A number that looks like another one (``007``, ``1.50``) is then not changed on its way to the model.
    """
    in_file = dict(columns_map)
    texts = {in_file.get(c.name, c.name) for c in columns if c.dtype is not None and c.dtype.kind == "O"}

    def read_as(file: InputFile, found: pa.Field) -> pa.Field:
        kind = file.format.joined(found.type, pa.string()) if found.name in texts else None
        return found if kind is None else found.with_type(kind)

    return [
        replace(file, schema=pa.schema([read_as(file, found) for found in file.schema]))
        if file.problem is None and file.format.types_are_inferred
        else file
        for file in files
    ]


def check_filter(options: RunOptions, files: Sequence[InputFile]) -> None:
    """Refuse a filter that any file's columns cannot be compared by; OptionError."""
    if (where := options.where) is None:
        return
    readable = [file for file in files if file.problem is None]
    keys = hive_types(readable)
    kinds = {(file.schema, tuple(key for key, _ in file.hive)): file for file in readable}
    for (schema, names), file in kinds.items():
        check_types(where, schema, {name: keys[name] for name in names}, file.path)


def column_problem(column: Column, found: pa.DataType, *, engineered: bool) -> str | None:
    """Say why a type cannot become what the model was trained on; None when it can."""
    if engineered and kind_of(found) not in ("integer", "float", "bool", "null"):
        return f"has type {found}, but engineered features are numbers"
    return type_problem(column, found)


def _may_mix(kind: str, other: str) -> bool:
    """Whether files may hold a column in two families where the model does not say what it was trained on."""
    return kind == other or "null" in (kind, other) or {kind, other} == {"integer", "float"}


def require(
    files: Sequence[InputFile], names: Sequence[str], keys: dict[str, pa.DataType], *, what: str, cure: str
) -> None:
    """Refuse files that lack a column, or have it more than once.

    Parameters
    ----------
    files : sequence of InputFile
    names : sequence of str
        The columns.
    keys : dict
        Hive key -> type.
    what, cure : str
        What such a column is called, and what to do where it is missing.

    Raises
    ------
    InputError
        Naming the file and the columns.
    """
    for file in files:
        have = file.schema.names
        present = set(have)
        missing = [name for name in names if name not in present and name not in keys]
        if missing:
            close = {name: _closest(name, have) for name in missing[:5]}
            hints = [f"'{name}' may be '{match}'" for name, match in close.items() if match]
            raise InputError(
                f"{len(missing)} {what if len(missing) == 1 else what.replace('column', 'columns', 1)} "
                f"{'is' if len(missing) == 1 else 'are'} missing from {file.path}: {some_of(missing)}"
                f"{' (' + ', '.join(hints) + ')' if hints else ''}. {cure}"
            )
        counted = [name for name in names if have.count(name) > 1] if len(present) < len(have) else []
        if counted:
            raise InputError(
                f"{file.path} has more than one column named {some_of(counted)}. Which one is meant cannot be known: "
                "write the file with distinct names."
            )
        if both := [name for name in names if name in keys and name in present]:
            raise InputError(
                f"{some_of(both)} is a column of {file.path} and a key of its folder as well. Remove one of the two."
            )
        if keyless := [name for name in names if name in keys and name not in dict(file.hive)]:
            raise InputError(
                f"{file.path} does not lie in a folder '{keyless[0]}=…', as other files of the dataset do. Move it "
                "there, or leave it out by a glob."
            )


def _closest(name: str, have: Sequence[str]) -> str | None:
    folded = {other.casefold().strip(): other for other in have}
    found = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.8)
    return folded[found[0]] if found else None


def some_of(names: Sequence[str], most: int = 10) -> str:
    """List names for a message: the first few, and how many more there are."""
    return ", ".join(f"'{name}'" for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
