"""Receipts: what proves that a partition was done, written last of all its files."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from batch_explain.errors import IntegrityError
from batch_explain.storage.atomic import FileRecord, write_json
from batch_explain.storage.filesystems import Location
from batch_explain.storage.tables import part_name

VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """One finished partition.

    Parameters
    ----------
    index : int
        The partition's number in the plan.
    run_id : str
        The run that it belongs to.
    rows_in, rows_explained : int
        Rows read, and rows written to every table.
    files : tuple of FileRecord
        Its parts.
    partial : FileRecord
        Its partial summary.
    statistics : dict
        Mergeable scalars: fidelity, additivity, conversions (see ``engine.task``).
    worker : dict
        Process, seconds and memory; the only content that differs between two attempts.
    """

    index: int
    run_id: str
    rows_in: int
    rows_explained: int
    files: tuple[FileRecord, ...]
    partial: FileRecord
    statistics: dict[str, Any]
    worker: dict[str, Any] = field(default_factory=dict)
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
    if not place.exists():
        return None
    content = json.loads(place.read_bytes())
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
    return f"_run/receipts/{part_name(index)}.json"
