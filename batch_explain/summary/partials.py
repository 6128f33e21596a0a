"""Partial summaries: what a partition adds to the global one, and the global one made of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.errors import IntegrityError
from batch_explain.storage.atomic import FileRecord
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt, partial_path
from batch_explain.storage.tables import write_table
from batch_explain.summary.moments import Moments, summary_table

_LEVELS = ("engineered", "raw")


def write_partial(output: Location, index: int, moments: Mapping[str, Moments]) -> FileRecord:
    """Write a partition's moments of all levels, one after the other, with their shapes in the metadata."""
    pieces, shapes = [], {}
    for level in _LEVELS:
        if level in moments:
            pieces.append(moments[level].to_table())
            shapes[level] = "x".join(map(str, moments[level].mean.shape))
    table = pa.concat_tables(pieces) if pieces else pa.table({"count": pa.array([], pa.int64())})
    return write_table(output, partial_path(index), table.replace_schema_metadata(shapes), use_dictionary=False)


def read_partial(output: Location, receipt: Receipt) -> dict[str, Moments]:
    """Read a partition's partial summary: level -> moments; empty for a partition without rows.

    Raises
    ------
    IntegrityError
        If it is not the file that the receipt names.
    """
    content = output.join(receipt.partial.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != receipt.partial.sha256:
        raise IntegrityError(
            f"{output.join(receipt.partial.path)} is not what its receipt says: it was damaged. Remove it, and go on "
            "with --resume: its partition is then done again."
        )
    table = pq.read_table(pa.BufferReader(content))
    moments, start = {}, 0
    shapes = table.schema.metadata or {}
    for level in _LEVELS:
        if level.encode() in shapes:
            outputs, features = map(int, shapes[level.encode()].decode().split("x"))
            moments[level] = Moments.from_table(table.slice(start, outputs * features), outputs, features)
            start += outputs * features
    return moments


def summary_tables(
    output: Location,
    receipts: Iterable[Receipt],
    *,
    features: Mapping[str, Sequence[str]],
    used: np.ndarray,
    outputs: Sequence[str | None],
) -> dict[str, pa.Table]:
    """Merge partitions' summaries in their order to the global ones.

    Parameters
    ----------
    output : Location
        The run's folder.
    receipts : iterable of Receipt
        In partition order.
    features : mapping
        Level (``engineered``, ``raw``) -> names of its features.
    used : ndarray of int
        Positions of the engineered features that partial summaries are about; the others are 0 in every row.
    outputs : sequence of (str or None)
        Labels; None alone for a single output.

    Returns
    -------
    dict
        Level -> :func:`batch_explain.summary.moments.summary_table`.

    Raises
    ------
    IntegrityError
        If a partial summary is not the file that its receipt names.
    """
    sizes = {level: len(used) if level == "engineered" else len(names) for level, names in features.items()}
    merged = {level: Moments.empty(len(outputs), size) for level, size in sizes.items()}
    for receipt in receipts:
        partial = read_partial(output, receipt)
        for level in merged:
            if level in partial:
                merged[level] = merged[level].merge(partial[level])
    if "engineered" in merged:
        merged["engineered"] = merged["engineered"].spread(used, len(features["engineered"]))
    return {level: summary_table(moments, outputs, features[level]) for level, moments in merged.items()}


def summary_path(level: str, form: str) -> str:
    """Where a level's global summary lies as ``parquet`` or ``json``, relative to the run's folder."""
    return f"summary/{level}.{form}"


def summary_json(level: str, table: pa.Table) -> dict[str, Any]:
    """A global summary as JSON has it."""
    return {"level": level, "features": table.to_pylist()}
