"""Partial summaries: what a partition adds to the global ones, in one small file."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_explain.errors import IntegrityError
from batch_explain.storage.atomic import FileRecord
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt, partial_path
from batch_explain.storage.tables import write_table
from batch_explain.summary.moments import Moments
from batch_explain.summary.quantiles import Buckets
from batch_explain.summary.sample import Pieces, Sampling
from batch_explain.summary.sketches import Sketch, SketchCounts, SketchTally
from batch_explain.summary.tally import Layout, Statistics, Tally

_READ_AT_ONCE = 8


@dataclass(frozen=True)
class Partial:
    """A partition's part of the summaries.

    Parameters
    ----------
    statistics : Statistics
    sketches : SketchCounts
    sample : pyarrow.Table or None
        Its candidates for the sample; None: it has none.
    """

    statistics: Statistics
    sketches: SketchCounts
    sample: pa.Table | None


def write_partial(output: Location, index: int, partial: Partial) -> FileRecord:
    """Write a partition's partial summary: a parquet file that holds its tables, each as parquet."""
    tables = {
        "moments": _bytes(partial.statistics.moments.to_table(), use_dictionary=False),
        "buckets": _counts(code=partial.statistics.buckets.codes, count=partial.statistics.buckets.counts),
        "sketches": _counts(code=partial.sketches.buckets.codes, count=partial.sketches.buckets.counts),
        "slots": _counts(count=partial.sketches.slots),
    }
    if partial.sample is not None:
        tables["sample"] = _bytes(partial.sample)
    content = pa.table({"name": list(tables), "table": pa.array(list(tables.values()), pa.binary())})
    return write_table(output, partial_path(index), content, use_dictionary=False, compression="none")


def read_partial(output: Location, receipt: Receipt) -> Partial:
    """Read a partition's partial summary.

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
    rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    tables = {row["name"]: pq.read_table(pa.BufferReader(row["table"])) for row in rows}
    buckets, sketched = (
        Buckets(*(tables[table][name].to_numpy() for name in ("code", "count"))) for table in ("buckets", "sketches")
    )
    return Partial(
        Statistics(Moments.from_table(tables["moments"]), buckets),
        SketchCounts(sketched, tables["slots"]["count"].to_numpy()),
        tables.get("sample"),
    )


def merge_partials(
    output: Location, receipts: Iterable[Receipt], layout: Layout, sketches: Sequence[Sketch], sampling: Sampling
) -> tuple[Statistics, SketchCounts, pa.Table | None]:
    """Merge partitions' summaries in their order.

    Parameters
    ----------
    output : Location
        The run's folder.
    receipts : iterable of Receipt
        In partition order.
    layout : Layout
    sketches : sequence of Sketch
    sampling : Sampling

    Returns
    -------
    statistics : Statistics
    counts : SketchCounts
    sample : pyarrow.Table or None
        None where there is none.

    Raises
    ------
    IntegrityError
        If a partial summary is not the file that its receipt names.
    """
    total, sketched = Tally(layout, whole_run=True), SketchTally(sketches, whole_run=True)
    candidates = Pieces()
    left = iter(receipts)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        while some := list(islice(left, _READ_AT_ONCE)):
            for partial in pool.map(lambda receipt: read_partial(output, receipt), some):
                total.add_statistics(partial.statistics)
                sketched.add_counts(partial.sketches)
                if partial.sample is not None:
                    candidates.add(partial.sample)
    return total.statistics(), sketched.counts(), sampling.smallest(candidates.tables())


def _counts(**columns: np.ndarray) -> bytes:
    """Sorted codes and small counts: two or three bytes a bucket."""
    encodings = dict.fromkeys(columns, "DELTA_BINARY_PACKED")
    return _bytes(pa.table(columns), use_dictionary=False, column_encoding=encodings)


def _bytes(table: pa.Table, **options: object) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", **options)
    return bytes(buffer.getvalue())
