"""Partial summaries: what a partition adds to the global ones, in one small file."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from batch_explain.errors import IntegrityError
from batch_explain.storage.atomic import FileRecord, write_bytes
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt, partial_path
from batch_explain.summary.moments import Moments
from batch_explain.summary.quantiles import Buckets
from batch_explain.summary.sample import Pieces, Sampling
from batch_explain.summary.sketches import Sketch, SketchCounts, SketchTally
from batch_explain.summary.tally import Layout, Statistics, Tally

_READ_AT_ONCE = 8
_NAME = b"table"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
_ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)


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
    """Write a partition's partial summary: its tables, one after the other, as Arrow streams.

    Of few rows, writing and reading one as parquet takes ten times as long.
    """
    tables = {
        "moments": partial.statistics.moments.to_table(),
        "buckets": _stored(partial.statistics.buckets),
        "sketches": _stored(partial.sketches.buckets),
        "slots": pa.table({"count": _narrow(partial.sketches.slots)}),
    }
    if partial.sample is not None:
        tables["sample"] = partial.sample
    sink = pa.BufferOutputStream()
    for name, table in tables.items():
        schema = table.schema.with_metadata({_NAME: name})
        with pa.ipc.new_stream(sink, schema, options=_COMPRESSED) as writer:
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    return write_bytes(output, partial_path(index), bytes(sink.getvalue()))


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
    tables = read_tables(content)
    return Partial(
        Statistics(Moments.from_table(tables["moments"]), _buckets(tables["buckets"])),
        SketchCounts(_buckets(tables["sketches"]), tables["slots"]["count"].to_numpy().astype(np.int64)),
        tables.get("sample"),
    )


def read_tables(content: bytes) -> dict[str, pa.Table]:
    """The tables of a partial summary's file, by name."""
    tables, source = {}, pa.BufferReader(content)
    while source.tell() < len(content):
        table = pa.ipc.open_stream(source, options=_ONE_THREAD).read_all()
        tables[table.schema.metadata[_NAME].decode()] = table.replace_schema_metadata()
    return tables


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


def _stored(buckets: Buckets) -> pa.Table:
    """Sorted codes as the steps between them, and small counts: two or three bytes a bucket."""
    return pa.table({"step": _narrow(np.diff(buckets.codes, prepend=0)), "count": _narrow(buckets.counts)})


def _buckets(table: pa.Table) -> Buckets:
    steps, counts = (table[name].to_numpy().astype(np.int64) for name in ("step", "count"))
    return Buckets(np.cumsum(steps), counts)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Whole numbers that are not negative, in as few bytes as they need."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
