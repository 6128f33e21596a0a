"""Delta tables: the files of one version of a table and their partition values, as its log has them.

The files are then read like any others; so a table that needs more than its files to be read right is refused.
"""

import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, unquote

import pyarrow as pa

from batch_explain.errors import InputError, first_line
from batch_explain.storage.filesystems import Location
from batch_explain.storage.hive import Keys

_ADDRESS = re.compile(r"delta(?:\+(?P<scheme>[a-z0-9]+))?://(?P<path>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
LOG_FOLDER = "_delta_log"
# that change nothing of what is in a table's files
_HARMLESS = {"columnMapping", "deletionVectors", "timestampNtz", "vacuumProtocolCheck", "v2Checkpoint"}
_EXAMPLE = "delta://tables/rows?version=12 or delta+abfs://container/rows?timestamp=2024-12-31T23:59:59Z"


@dataclass(frozen=True)
class DeltaAddress:
    """A table, and which of its versions: ``delta://FOLDER``, ``delta+abfs://CONTAINER/FOLDER``, ``…?version=12``.

    Parameters
    ----------
    table : str
        The folder, as a path or URL.
    version : int or None
    timestamp : str or None
        The version of that moment; neither: the newest.
    """

    table: str
    version: int | None = None
    timestamp: str | None = None

    @classmethod
    def parse(cls, url: str) -> "DeltaAddress | None":
        """Read an address; None where it is none of a Delta table, InputError where it cannot be understood."""
        if (found := _ADDRESS.fullmatch(url)) is None:
            return None
        path, asked = found["path"], dict(parse_qsl(found["query"] or "", keep_blank_values=True))
        version, timestamp = asked.pop("version", None), asked.pop("timestamp", None)
        if (
            not path or asked or (version is not None and timestamp is not None)
            or (version is not None and not re.fullmatch(r"\d+", version, re.ASCII))
        ):  # fmt: skip
            raise InputError(
                f"The address {url.partition('?')[0]} of a Delta table cannot be understood with what follows it. "
                f"Write {_EXAMPLE}; a version is a whole number, and credentials come from the environment."
            )
        table = path if found["scheme"] is None else f"{found['scheme']}://{path}"
        return cls(table, None if version is None else int(version), timestamp)

    def at(self, version: int) -> str:
        """The address of that version."""
        plain = re.fullmatch(r"([a-z0-9]+)://(.*)", self.table, re.DOTALL)
        return f"delta{f'+{plain[1]}://{plain[2]}' if plain else f'://{self.table}'}?version={version}"


@dataclass(frozen=True)
class Snapshot:
    """One version of a table.

    Parameters
    ----------
    files : dict
        Path relative to the table's folder -> its partition values.
    types : dict
        Partition column -> type.
    """

    files: dict[str, Keys]
    types: dict[str, pa.DataType]


def pinned(url: str, before: str | None = None) -> str:
    """The address with the version that it means now; any other address as it is.

    Parameters
    ----------
    url : str
    before : str, optional
        The address of the run that is resumed: where no version is asked for, it is that run's.

    Raises
    ------
    InputError
        If there is no such table or version, or the folder is a Delta table and was not called one.
    """
    address = DeltaAddress.parse(url)
    if address is None:
        _refuse_plain_table(Location(url))
        return url
    earlier = None if before is None else DeltaAddress.parse(before)
    if (
        address.version is None and address.timestamp is None
        and earlier is not None and earlier.version is not None
        and Location(earlier.table).url == Location(address.table).url
    ):  # fmt: skip
        return address.at(earlier.version)
    return address.at(_opened(address).version())


def snapshot(address: DeltaAddress) -> Snapshot:
    """The files of a version.

    Raises
    ------
    InputError
        If there is no such table or version, or its files alone do not say what is in it.
    """
    table, place = _opened(address), Location(address.table)
    _refuse_features(table, place)
    actions = pa.table(table.get_add_actions(flatten=True))
    names = list(table.metadata().partition_columns)
    schema = pa.schema(table.schema().to_arrow())
    types = {name: _plain(schema.field(name).type) for name in names}
    if odd := [name for name, kind in types.items() if not _has_alias(kind)]:
        raise InputError(
            f"The Delta table {place} is partitioned by '{odd[0]}', whose type {types[odd[0]]} cannot be read from its "
            "log here. Write a table that is partitioned by texts, whole numbers, dates or booleans."
        )
    values = [actions[f"partition.{name}"].cast(pa.string()).to_pylist() for name in names]
    files: dict[str, Keys] = {}
    for at, path in enumerate(actions["path"].to_pylist()):
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|/", path):
            raise InputError(
                f"The Delta table {place} has files outside its folder (a shallow clone): their rows are another "
                "table's. Name that one, or make a deep clone."
            )
        files[unquote(path)] = tuple((name, column[at]) for name, column in zip(names, values, strict=True))
    return Snapshot(files, types)


def storage_options() -> dict[str, str]:
    """What deltalake needs and does not read from the environment by itself: Azure's connection string."""
    parts = dict(
        part.split("=", 1) for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";") if "=" in part
    )
    names = {
        "AccountName": "azure_storage_account_name",
        "AccountKey": "azure_storage_account_key",
        "SharedAccessSignature": "azure_storage_sas_key",
        "BlobEndpoint": "azure_storage_endpoint",
    }
    found = {option: parts[name] for name, option in names.items() if name in parts}
    if found.get("azure_storage_endpoint", "").startswith("http://"):
        found["azure_allow_http"] = "true"
    return found


def library() -> Any:
    """The deltalake package; InputError where it is not installed."""
    try:
        import deltalake
    except ImportError:
        raise InputError("Delta tables need the deltalake package: pip install 'batch-explain[delta]'.") from None
    return deltalake


def _opened(address: DeltaAddress) -> Any:
    deltalake, place = library(), Location(address.table)
    from deltalake.exceptions import DeltaError

    try:
        table = deltalake.DeltaTable(
            place.path if place.is_local else place.url,
            version=address.version,
            storage_options=None if place.is_local else storage_options(),
        )
        if address.timestamp is not None:
            moment = datetime.fromisoformat(address.timestamp.replace("Z", "+00:00"))
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
            table.load_as_version(moment)
            if _written(place, table.version()) > moment.timestamp():  # deltalake gives the oldest one then
                raise ValueError("the table has no version that old")
    except (DeltaError, ValueError, OSError) as error:
        asked = f" at version {address.version}" if address.version is not None else ""
        asked = f" at {address.timestamp}" if address.timestamp is not None else asked
        raise InputError(
            f"The Delta table {place}{asked} cannot be opened: {first_line(error)}. Check the address, the version (as "
            f"in {_EXAMPLE}) and its permissions."
        ) from error
    return table


def _written(place: Location, version: int) -> float:
    """When a version was committed, which is its file's time, as deltalake has it; 0 where the file is gone."""
    log = place.join(LOG_FOLDER, f"{version:020d}.json")
    try:
        found = log.fs.info(log.path)
    except FileNotFoundError:
        return 0.0
    when = found.get("last_modified", found.get("mtime", 0.0))
    return when.timestamp() if isinstance(when, datetime) else float(when)


def _refuse_plain_table(place: Location) -> None:
    try:
        if not place.fs.isdir(place.path) or not place.fs.isdir(place.join(LOG_FOLDER).path):
            return
    except OSError:  # who lists the input will say so
        return
    raise InputError(
        f"The input {place} is a Delta table: files that its log has removed would be read too. Name it by "
        f"delta{f'://{place.path}' if place.is_local else f'+{place.url}'}, or some of its files by a glob."
    )


def _refuse_features(table: Any, place: Location) -> None:
    """Whatever makes the files' own rows and columns other than the table's."""
    from deltalake.exceptions import DeltaError

    protocol, settings = table.protocol(), table.metadata().configuration
    features = set(protocol.reader_features or ())
    wrong = sorted(features - _HARMLESS)
    if (settings.get("delta.columnMapping.mode") or "none") != "none":
        wrong.append("columnMapping")
    if "deletionVectors" in features or "delta.enableDeletionVectors" in settings:
        try:
            deleted = any(batch.num_rows for batch in table.deletion_vectors())
        except DeltaError:  # one that cannot be read is one
            deleted = True
        wrong += ["deletionVectors"] * deleted
    if protocol.min_reader_version > 3 or wrong:
        what = ", ".join(wrong) or f"reader version {protocol.min_reader_version}"
        raise InputError(
            f"The Delta table {place} uses {what}: its files alone do not say what is in it, and reading them would "
            "give wrong rows or names. Write a plain copy (in Spark, REORG TABLE … APPLY (PURGE) removes deletion "
            "vectors), and name that."
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or str(kind) == "string_view" else kind


def _has_alias(kind: pa.DataType) -> bool:
    """Whether a plan can store the type."""
    try:
        return bool(pa.type_for_alias(str(kind)) == kind)
    except ValueError:
        return False
