"""Delta tables of a run's parts: their files are added as they are, in one commit a run and table.

A commit bears the run's id as its application transaction, so that a run that is closed a second time commits nothing
twice.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batch_explain.errors import InterruptedRunError, OptionError, OutputRefusedError, first_line
from batch_explain.storage.atomic import FileRecord, new_file
from batch_explain.storage.delta import library, storage_options
from batch_explain.storage.filesystems import Location
from batch_explain.storage.tables import TableSpec

_TRIES = 20  # others may append at the same time


@dataclass(frozen=True)
class Part:
    """A part of a table, as the run wrote it, and its number of rows."""

    file: FileRecord
    rows: int


def check_table(target: Location, spec: TableSpec) -> None:
    """Refuse a table that parts could not be added to.

    Parameters
    ----------
    target : Location
        The folder of the tables.
    spec : TableSpec
        What the run writes.

    Raises
    ------
    OptionError
        If Delta has no type for a column.
    OutputRefusedError
        If a table is there that has other columns.
    """
    for field in _plain(spec.schema):
        if not _has_type(field.type):
            raise OptionError(
                f"The column '{field.name}' of the table {spec.folder} is {field.type}, for which Delta has no type. "
                "Write it as another one in the input (a time as timestamp[us]), leave it out of --id-columns, or "
                "leave --output-format out."
            )
    place = target.join(spec.folder)
    with _failing(place):
        if (table := _open(place)) is None:
            return
        there, ours = (
            {f.name: str(f.type) for f in _schema(schema).fields} for schema in (table.schema(), spec.schema)
        )
    if list(there.items()) != list(ours.items()):
        other = (
            next(name for name in [*ours, *there] if there.get(name) != ours.get(name)) if there != ours else "order"
        )
        raise OutputRefusedError(
            f"The Delta table {place} has other columns than this run's table {spec.folder} (the first that differs: "
            f"{other}). Append to another folder, or write the model's new features to one of their own."
        )


def commit(target: Location, output: Location, spec: TableSpec, parts: Sequence[Part], run_id: str) -> int:
    """Add a run's parts to a table, which is made where there is none; the version that has them.

    Parameters
    ----------
    target : Location
        The folder of the tables; where it is not the output, the parts are copied there first.
    output : Location
    spec : TableSpec
    parts : sequence of Part
        In their order.
    run_id : str

    Raises
    ------
    InterruptedRunError
        If it could not be done.
    """
    place = target.join(spec.folder)
    with _failing(place):
        deltalake = library()
        from deltalake.transaction import AddAction, create_table_with_add_actions

        table = _open(place)
        if table is not None and table.transaction_version(run_id) is not None:
            return _version_of(table, run_id)
        actions = []
        for part in parts:
            name = part.file.path.rsplit("/", 1)[-1]
            if target.url != output.url:
                name = f"{run_id}-{name}"
                _copy(output.join(part.file.path), target, f"{spec.folder}/{name}")
            statistics = json.dumps({"numRecords": part.rows})
            actions.append(AddAction(name, part.file.bytes, {}, int(time.time() * 1000), True, statistics))
        properties = deltalake.CommitProperties(
            custom_metadata={"batch_explain_run_id": run_id},
            max_commit_retries=_TRIES,
            app_transactions=[deltalake.Transaction(run_id, 0)],
        )
        if table is None:
            create_table_with_add_actions(
                _address(place), _schema(spec.schema), actions, "error",
                storage_options=_storage_options(place), commit_properties=properties,
            )  # fmt: skip
        else:
            table.create_write_transaction(actions, "append", _schema(spec.schema), commit_properties=properties)
        committed = _open(place)
        assert committed is not None
        return _version_of(committed, run_id)


def _version_of(table: Any, run_id: str) -> int:
    """Of the commit that added a run's parts; the newest one where that is long past."""
    found = (commit["version"] for commit in table.history(1_000) if commit.get("batch_explain_run_id") == run_id)
    return int(next(found, table.version()))


def _open(place: Location) -> Any:
    from deltalake import DeltaTable

    address, options = _address(place), _storage_options(place)
    if not DeltaTable.is_deltatable(address, options):
        return None
    return DeltaTable(address, storage_options=options)


def _schema(schema: Any) -> Any:
    from deltalake import Schema

    return Schema.from_arrow(_plain(schema)) if isinstance(schema, pa.Schema) else schema


def _plain(schema: pa.Schema) -> pa.Schema:
    """Without Arrow's own dictionaries, and without a ban on null, which would bind others that append."""
    return pa.schema([
        (field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field).with_nullable(True)
        for field in schema
    ])  # fmt: skip


def _copy(source: Location, target: Location, path: str) -> None:
    with source.open() as read, new_file(target, path) as write:
        shutil.copyfileobj(read, write, 1 << 20)


def _address(place: Location) -> str:
    return place.path if place.is_local else place.url


def _storage_options(place: Location) -> dict[str, str] | None:
    return None if place.is_local else storage_options()


@contextmanager
def _failing(place: Location) -> Iterator[None]:
    library()
    from deltalake.exceptions import DeltaError

    try:
        yield
    except DeltaError as error:
        raise InterruptedRunError(
            f"The Delta table {place} could not be read or written: {first_line(error)}. What was explained is kept: "
            "mend the place, and go on with --resume."
        ) from error


def _has_type(kind: pa.DataType) -> bool:
    """Whether Delta, and Spark that reads it, have the very type that the part's column has."""
    tests = (
        pa.types.is_signed_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_date32, pa.types.is_binary, pa.types.is_float32, pa.types.is_float64, pa.types.is_decimal128,
    )  # fmt: skip
    if pa.types.is_timestamp(kind):
        return kind.unit == "us" and kind.tz in (None, "UTC")
    return any(test(kind) for test in tests)
