"""The sample: uniform, the same however the rows are cut, and equal to the tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

import batch_explain as bx
from batch_explain.summary import sample
from batch_explain.summary.sample import HASH, Sampling, hashes
from tests.comparing import frame_of
from tests.conftest import Small, once


def explain(small: Small, rows: Path, output: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=rows, model=small.model, explainer=small.explainer, output=output, scheduler="sync", **options
    )


def test_the_sample_is_rows_of_the_tables_however_they_are_cut(small: Small, tmp_path: Path) -> None:
    for number in range(2):
        small.write(tmp_path / f"rows/{number}.parquet", small.frame[number * 500 : number * 500 + 500])
    one = explain(small, tmp_path / "rows", tmp_path / "one", sample_rows=60, id_columns="customer_id")
    many = explain(small, tmp_path / "rows", tmp_path / "many", sample_rows=60, partition_rows=90, batch_rows=35)
    sample = one.sample()
    assert len(sample) == 60
    places = ["source_file", "source_row"]
    assert sample[places].equals(sample[places].sort_values(places).reset_index(drop=True))
    pd.testing.assert_frame_equal(sample.drop(columns="customer_id"), many.sample(), rtol=1e-12)

    source = pd.concat([pd.read_parquet(tmp_path / f"rows/{n}.parquet").assign(
        source_file=f"{n}.parquet", source_row=np.arange(500)) for n in range(2)]).set_index("customer_id")  # fmt: skip
    chosen = source.loc[sample.customer_id]
    assert (chosen[places].to_numpy() == sample[places].to_numpy()).all()
    values = sample.filter(regex="^value[.]").rename(columns=lambda name: name.removeprefix("value."))
    pd.testing.assert_frame_equal(values, chosen[list(values)].reset_index(drop=True))
    for level in ("engineered", "raw"):
        table = frame_of(one, level).set_index("customer_id").loc[sample.customer_id]
        mine = sample.filter(regex=f"^{level}[.]").rename(
            columns=lambda name, level=level: name.removeprefix(f"{level}.")
        )
        assert set(table) - set(mine) == set(one.info["features"]["identically_zero"]) & set(table)
        assert (mine != 0).to_numpy().any()
        np.testing.assert_array_equal(mine.to_numpy(), table[list(mine)].to_numpy())
    predictions = frame_of(one, "predictions").set_index("customer_id").loc[sample.customer_id]
    np.testing.assert_array_equal(sample[list(predictions)].to_numpy(), predictions.to_numpy())


def test_none_fewer_and_all(small: Small, tmp_path: Path) -> None:
    rows = small.write(tmp_path / "rows.parquet", small.frame[:100])
    assert len(explain(small, rows, tmp_path / "all", sample_rows=500, no_row_values=True).sample()) == 100
    explain(small, rows, tmp_path / "none", sample_rows=0)
    assert not (tmp_path / "none/summary/sample.parquet").exists()
    assert bx.verify_run(tmp_path / "none").ok and bx.verify_run(tmp_path / "all").ok


@once
def test_every_row_is_as_likely() -> None:
    """Of a million rows in files of neighbouring names, the sampled ones fall evenly on files, positions and parity."""
    sampling = Sampling(20_000, 1_000_000)
    tables, threshold = [], []
    for file in range(10):
        rows = np.arange(100_000)
        chosen, numbers = sampling.choose(f"part-{file}.parquet", rows)
        threshold.append(len(chosen))
        tables.append(pa.table({HASH: numbers, "file": np.full(len(chosen), file), "row": chosen}))
    assert sampling.rows < sum(threshold) < sampling.rows * 1.2  # what partitions keep is hardly more than the sample
    sample = sampling.smallest(tables)
    assert sample is not None and sample.num_rows == 20_000
    frame = sample.to_pandas()
    for groups, expected in ((frame.file, 2_000), (frame.row // 10_000, 2_000), (frame.row % 2, 10_000)):
        counts = groups.value_counts()
        assert ((counts - expected).abs() < 5 * expected**0.5).all(), counts
    assert len(np.unique(hashes("a", np.arange(100_000)))) == 100_000


def test_columns_of_several_kinds_in_several_files_become_text() -> None:
    first = pa.table({HASH: pa.array([1], pa.uint64()), "value.a": [1], "value.b": [1]})
    second = pa.table({HASH: pa.array([2], pa.uint64()), "value.a": ["x"], "value.b": [1.5]})
    sample = Sampling(5, 2).smallest([first, second])
    assert sample is not None
    assert sample.to_pylist() == [{"value.a": "1", "value.b": 1}, {"value.a": "x", "value.b": 1.5}] or sample[
        "value.b"
    ].to_pylist() == ["1", "1.5"]


def test_pieces_that_were_joined_on_the_way_are_all_there_in_order(monkeypatch):
    monkeypatch.setattr(sample, "_MOST_ARRAYS", 5)
    tables = [pa.table({"a": [i, i + 1], "b": [str(i)] * 2}) for i in range(7)]
    tables += [pa.table({"a": [float(i)], "c": [i]}) for i in range(7)] + tables[:2]
    pieces = sample.Pieces()
    for table in tables:
        pieces.add(table)
    found = [table.to_pylist() for table in pieces.tables()]
    assert [line for table in found for line in table] == [line for table in tables for line in table.to_pylist()]
    assert len(found) == 3  # one for each schema in a row
