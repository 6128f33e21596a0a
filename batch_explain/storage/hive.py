"""Keys and values in the ``key=value`` folders of a dataset."""

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import pyarrow as pa

Keys = tuple[tuple[str, str | None], ...]
_NULL = "__HIVE_DEFAULT_PARTITION__"


def hive_keys(path: str) -> Keys:
    """Keys and values of the ``key=value`` folders in a file's path; None is hive's null."""
    keys = []
    for part in path.split("/")[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            keys.append((unquote(key), None if value == _NULL else unquote(value)))
    return tuple(keys)


def types_of_keys(files: Iterable[Keys]) -> dict[str, pa.DataType]:
    """Type of each key over all files: int64 where every value is a whole number, else string."""
    values: dict[str, list[str]] = {}
    for keys in files:
        for key, value in keys:
            known = values.setdefault(key, [])
            if value is not None:
                known.append(value)
    return {
        key: pa.int64() if known and all(_is_int64(value) for value in known) else pa.string()
        for key, known in values.items()
    }


def scalar_of(value: str | None, kind: pa.DataType) -> pa.Scalar:
    """A key's value, in its type."""
    return pa.scalar(value, pa.string()).cast(kind)


def with_keys(table: pa.Table, keys: Keys, types: Mapping[str, pa.DataType], columns: list[str]) -> pa.Table:
    """A file's rows with those columns that are keys of its folder."""
    values = dict(keys)
    for name in columns:
        if name in types:
            table = table.append_column(name, pa.repeat(scalar_of(values[name], types[name]), table.num_rows))
    return table


def _is_int64(text: str) -> bool:
    # '007' stays text: as a number it could not be told from '7'
    digits = text.removeprefix("-")
    return (
        digits.isascii() and digits.isdecimal() and str(int(digits)) == digits and text != "-0"
        and -(2**63) <= int(text) < 2**63
    )  # fmt: skip
