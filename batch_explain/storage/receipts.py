"""Receipts: what proves that a partition was done, written last of all its files."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from batch_explain.errors import IntegrityError
from batch_explain.storage.atomic import FileRecord, write_json
from batch_explain.storage.filesystems import Location
from batch_explain.storage.tables import part_name

VERSION = 5
RECEIPTS_FOLDER = "_run/receipts"
PARTIALS_FOLDER = "_run/partials"


@dataclass(frozen=True)
class Receipt:
    """One finished partition.

    Parameters
    ----------
    index : int
        The partition's number in the plan.
    run_id : str
        The run that it belongs to.
    rows_in, rows_explained, rows_quarantined, rows_left_out : int
        Rows read, rows explained in every table, rows written to the quarantine instead, and rows that ``--filter``
        leaves out.
    lines : int
        Lines that every table of importances has: one for each explained row, but in forecasting one for each origin.
    files : tuple of FileRecord
        Its parts.
    partial : FileRecord
        Its partial summary.
    statistics : dict
        Mergeable scalars: fidelity, additivity, conversions, reasons (see ``engine.task``).
    worker : dict
        Process, seconds and memory; the only content that differs between two attempts.
    """

    index: int
    run_id: str
    rows_in: int
    rows_explained: int
    rows_quarantined: int
    lines: int
    files: tuple[FileRecord, ...]
    partial: FileRecord
    statistics: dict[str, Any]
    worker: dict[str, Any] = field(default_factory=dict)
    rows_left_out: int = 0
    version: int = VERSION


def write_receipt(root: Location, receipt: Receipt) -> None:
    """Write a receipt atomically."""
    write_json(root, receipt_path(receipt.index), dataclasses.asdict(receipt))


def read_receipt(root: Location, index: int) -> Receipt | None:
    """Read a partition's receipt; None when the partition was never done.

    Raises
    ------
    IntegrityError
        If the receipt was written by another version of the format.
    """
    place = root.join(receipt_path(index))
    try:
        content = json.loads(place.read_bytes())
    except FileNotFoundError:
        return None
    if content["version"] != VERSION:
        raise IntegrityError(
            f"The receipt {place} has format version {content['version']}; this program reads {VERSION}. Finish the "
            "run with the program that began it, or start it again."
        )
    content["files"] = tuple(FileRecord(**file) for file in content["files"])
    content["partial"] = FileRecord(**content["partial"])
    return Receipt(**content)


def receipt_path(index: int) -> str:
    """Where a partition's receipt lies, relative to the run's folder."""
    return f"{RECEIPTS_FOLDER}/{part_name(index)}.json"


def partial_path(index: int) -> str:
    """Where a partition's partial summary lies, relative to the run's folder."""
    return f"{PARTIALS_FOLDER}/{part_name(index)}.arrow"


def valid_receipt(root: Location, index: int, run_id: str, sizes: Mapping[str, int] | None = None) -> Receipt | None:
    """A partition's receipt, if it proves that the partition was done.

    Parameters
    ----------
    root : Location
        The run's folder.
    index : int
    run_id : str
    sizes : mapping, optional
        Path -> bytes of the files that are there; None: each file is looked at.

    Returns
    -------
    Receipt or None
        None where there is no receipt or it is damaged, belongs to another run, or one of its files is missing or has
        another size.
    """
    try:
        receipt = read_receipt(root, index)
    except (ValueError, KeyError, TypeError):
        return None
    if receipt is None or receipt.run_id != run_id:
        return None
    for record in (*receipt.files, receipt.partial):
        if (_size(root.join(record.path)) if sizes is None else sizes.get(record.path)) != record.bytes:
            return None
    return receipt


def names_and_sizes(root: Location, folder: str) -> dict[str, int]:
    """Path relative to ``root`` -> bytes, of the files directly in a folder of it; none where there is no folder."""
    place = root.join(folder)
    try:
        entries = place.fs.ls(place.path, detail=True)
    except FileNotFoundError:
        return {}
    return {
        f"{folder}/{e['name'].rstrip('/').rsplit('/', 1)[-1]}": int(e["size"]) for e in entries if e["type"] == "file"
    }


def _size(place: Location) -> int | None:
    with suppress(FileNotFoundError):
        return int(place.fs.size(place.path))
    return None
