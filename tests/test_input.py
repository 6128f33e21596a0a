"""The forms a dataset can have: every row is read once, in order, and only the needed columns are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batch_explain as bx
from batch_explain.engine.partitions import cut
from batch_explain.errors import BadDataError
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import InputFile, discover
from batch_explain.storage.ranges import let_go
from batch_explain.storage.reading import read_batches
from tests.comparing import assert_close, frame_of, values_of
from tests.conftest import Engineered, once


def explain(engineered: Engineered, source: Path | str, output: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=source, explainer=engineered.explainer, output=output, **{"scheduler": "sync", **options}
    )


def assert_explains(run: bx.Run, engineered: Engineered, frame: pd.DataFrame) -> None:
    expected = engineered.booster.predict(frame[list(engineered.frame)], pred_contrib=True)[:, :-1]
    assert run.info["rows"]["explained"] == len(frame)
    assert_close(values_of(run, "engineered", list(engineered.frame))[0], expected, 1e-12)


def test_a_folder_is_read_in_path_order(engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame
    for name, part in (("b/2.parquet", frame[1_000:]), ("a.parquet", frame[:400]), ("b/1.parquet", frame[400:1_000])):
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / "rows" / name, index=False)
    (tmp_path / "rows/_temporary").mkdir()
    (tmp_path / "rows/_temporary/part.parquet").write_bytes(b"not data")
    (tmp_path / "rows/.crc").write_bytes(b"not data")
    run = explain(engineered, tmp_path / "rows", tmp_path / "out")
    assert_explains(run, engineered, frame)
    ids = frame_of(run, "engineered")
    assert ids.source_file.unique().tolist() == ["a.parquet", "b/1.parquet", "b/2.parquet"]
    assert ids.source_row.tolist() == [*range(400), *range(600), *range(2_000)]


def test_a_glob_names_files(engineered: Engineered, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for day in (1, 2, 3):
        engineered.frame[(day - 1) * 100 : day * 100].to_parquet(tmp_path / f"rows/day-{day}.parquet", index=False)
    (tmp_path / "rows/notes.csv").write_text("no parquet")
    run = explain(engineered, str(tmp_path / "rows/day-[12].parquet"), tmp_path / "out")
    assert_explains(run, engineered, engineered.frame[:200])


def test_hive_keys_are_ids_and_may_be_features(engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame.assign(f0=np.repeat([1, 2, 3], 1_000))
    for value in (1, 2, 3):
        folder = tmp_path / f"rows/f0={value}/region=r%20{value}"
        folder.mkdir(parents=True)
        frame[frame.f0 == value].drop(columns="f0").to_parquet(folder / "part.parquet", index=False)
    run = explain(engineered, tmp_path / "rows", tmp_path / "out", id_columns="region")
    assert_explains(run, engineered, frame)
    assert frame_of(run, "engineered").region.tolist() == np.repeat(["r 1", "r 2", "r 3"], 1_000).tolist()


@once
def test_one_huge_row_group_is_cut_into_ranges(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame.to_parquet(tmp_path / "rows.parquet", row_group_size=10_000, index=False)
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", partition_rows=999, batch_rows=100)
    assert run.info["partitions"] == 4
    assert_explains(run, engineered, engineered.frame)
    assert frame_of(run, "engineered").source_row.tolist() == list(range(3_000))


@once
def test_many_small_files(engineered: Engineered, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for number in range(100):
        part = engineered.frame[number * 3 : number * 3 + 3]
        part.to_parquet(tmp_path / f"rows/{number:03d}.parquet", index=False)
    run = explain(engineered, tmp_path / "rows", tmp_path / "out", scheduler="threads")
    assert_explains(run, engineered, engineered.frame[:300])


def test_files_without_rows_are_counted_as_nothing(engineered: Engineered, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for number, part in enumerate((engineered.frame[:0], engineered.frame[:10], engineered.frame[:0])):
        part.to_parquet(tmp_path / f"rows/{number}.parquet", index=False)
    assert_explains(explain(engineered, tmp_path / "rows", tmp_path / "out"), engineered, engineered.frame[:10])


@pytest.mark.parametrize("scheduler", ["sync", pytest.param("processes", marks=once)])
def test_an_empty_dataset_gives_empty_tables_with_their_columns(
    scheduler: str, engineered: Engineered, tmp_path: Path
) -> None:
    engineered.frame[:0].to_parquet(tmp_path / "rows.parquet", index=False)
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", scheduler=scheduler)
    assert run.info["rows"] == {"input": 0, "planned": 0, "explained": 0, "quarantined": 0}
    table = frame_of(run, "engineered")
    assert len(table) == 0
    assert list(table) == ["source_file", "source_row", *engineered.frame]
    summary = run.summary("engineered")
    assert (summary["count"] == 0).all()
    assert summary.mean_abs.isna().all()


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_any_parquet_compression(compression: str, engineered: Engineered, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pandas(engineered.frame[:50]), tmp_path / "rows.parquet", compression=compression)
    assert_explains(explain(engineered, tmp_path / "rows.parquet", tmp_path / "out"), engineered, engineered.frame[:50])


def test_other_numeric_types_and_orders(engineered: Engineered, tmp_path: Path) -> None:
    """float32, integers, booleans and dictionary columns, in another order, with columns nobody needs."""
    frame = engineered.frame[:200].copy()
    frame["f0"] = frame.f0.astype("float32")
    frame["f1"] = (frame.f1 * 10).round().astype("int16")
    frame["f3"] = frame.f3 > 0
    table = pa.Table.from_pandas(frame[list(reversed(frame.columns))], preserve_index=False)
    table = table.append_column("unused", pa.array([{"deep": [1]}] * 200))
    table = table.set_column(0, "f11", table["f11"].dictionary_encode())
    pq.write_table(table, tmp_path / "rows.parquet")
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out")
    assert_explains(run, engineered, frame.astype(float))


def test_columns_are_renamed_by_the_map(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame[:50].rename(columns={"f0": "amount", "f1": "f0"}).assign(f1=7.0).to_parquet(
        tmp_path / "rows.parquet", index=False
    )
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", columns_map={"f0": "amount", "f1": "f0"})
    assert_explains(run, engineered, engineered.frame[:50])


def test_only_needed_columns_are_read(engineered: Engineered, tmp_path: Path) -> None:
    """A column whose pages are destroyed does no harm as long as nobody needs it."""
    table = pa.Table.from_pandas(engineered.frame[:500].assign(zz_unused=np.arange(500) * 7), preserve_index=False)
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, use_dictionary=False, compression="none")
    chunk = pq.read_metadata(path).row_group(0).column(12)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(path)
    assert_explains(explain(engineered, path, tmp_path / "out"), engineered, engineered.frame[:500])


def test_limit_takes_the_first_rows(engineered: Engineered, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for number in range(3):
        engineered.frame[number * 100 : number * 100 + 100].to_parquet(tmp_path / f"rows/{number}.parquet", index=False)
    run = explain(engineered, tmp_path / "rows", tmp_path / "out", limit=150, partition_rows=40)
    assert_explains(run, engineered, engineered.frame[:150])
    assert run.info["rows"] == {"input": 300, "planned": 150, "explained": 150, "quarantined": 0}
    assert any("trial" in decision for decision in run.info["decisions"])


def test_ids_keep_values_and_types(engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame[:30].assign(
        name=[None, "a", "ü/<b>"] * 10, when=pd.date_range("2024-01-01", periods=30, tz="UTC"), number=range(30)
    )
    frame["name"] = frame["name"].astype(object)
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", id_columns=["number", "when", "name"])
    found = run.table("engineered").to_table()
    source = pq.read_table(tmp_path / "rows.parquet")
    assert found.column_names[:3] == ["number", "when", "name"]
    for name in ("number", "when", "name"):
        assert found[name].combine_chunks().equals(source[name].combine_chunks())


@once
def test_a_run_is_recorded_as_it_was(engineered: Engineered, tmp_path: Path) -> None:
    """run.json names every file of the run with its checksum, and _SUCCESS closes run.json."""
    import hashlib
    import json

    engineered.frame.to_parquet(tmp_path / "rows.parquet", index=False)
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", dtype="float32", compression="zstd")
    for entry in run.info["files"]:
        content = (tmp_path / "out" / entry["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    named = {entry["path"] for entry in run.info["files"]} | {"run.json", "_SUCCESS"}
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == named
    success = json.loads((tmp_path / "out/_SUCCESS").read_bytes())
    assert success["run.json"] == hashlib.sha256((tmp_path / "out/run.json").read_bytes()).hexdigest()
    part = pq.ParquetFile(tmp_path / "out/engineered/part-00000.parquet")
    assert part.schema_arrow.field("f0").type == pa.float32()
    assert part.metadata.row_group(0).column(2).compression == "ZSTD"
    (tmp_path / "out/run.json").write_text("{}")
    with pytest.raises(bx.errors.OptionError, match="edited"):
        bx.open_run(tmp_path / "out")


@once
def test_overwrite_replaces_a_run(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame[:100].to_parquet(tmp_path / "rows.parquet", index=False)
    explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", partition_rows=10)
    run = explain(engineered, tmp_path / "rows.parquet", tmp_path / "out", overwrite=True)
    assert len(list((tmp_path / "out/engineered").iterdir())) == run.info["partitions"] == 1
    assert_explains(run, engineered, engineered.frame[:100])


@given(
    groups=st.lists(st.lists(st.integers(0, 50), max_size=5), min_size=1, max_size=5),
    largest=st.integers(1, 60),
    limit=st.none() | st.integers(1, 100),
)
def test_partitions_cover_every_row_once_in_order(groups: list[list[int]], largest: int, limit: int | None) -> None:
    files = [InputFile(f"{i}", f"{i}", 0, sum(rows), tuple(rows), "") for i, rows in enumerate(groups)]
    partitions = cut(files, largest, limit)
    covered = [(part.file.path, row) for part in partitions for row in range(part.start, part.stop)]
    everything = [(file.path, row) for file in files for row in range(file.rows)]
    assert covered == everything[:limit]
    assert [part.index for part in partitions] == list(range(len(partitions)))
    if everything:
        assert all(0 < part.rows <= largest for part in partitions)
    edges = {file.path: set(np.cumsum([0, *file.row_groups]).tolist()) for file in files}
    for part in partitions:
        if part.rows and limit is None:
            inside = [edge for edge in edges[part.file.path] if part.start < edge < part.stop]
            # whole row groups together, or a range inside a single one
            assert not inside or {part.start, part.stop} <= edges[part.file.path] or part.rows <= largest


@given(
    rows=st.integers(0, 300),
    group=st.integers(1, 120),
    start=st.integers(0, 300),
    length=st.integers(0, 300),
    batch=st.integers(1, 90),
)
def test_reading_a_range_gives_exactly_its_rows(
    rows: int, group: int, start: int, length: int, batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"range-{rows}-{group}.parquet"
    if not path.exists():
        pq.write_table(pa.table({"x": np.arange(rows), "y": np.zeros(rows)}), path, row_group_size=group)
    file = discover(str(path))[0]
    start = min(start, rows)
    stop = min(start + length, rows)
    tables = list(read_batches(file, start=start, stop=stop, columns=["x"], batch_rows=batch))
    assert [x for table in tables for x in table["x"].to_pylist()] == list(range(start, stop))
    assert all(table.num_rows == batch for table in tables[:-1])
    assert all(table.column_names == ["x"] for table in tables)


@given(data=st.data())
@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow"])
def test_ranges_one_after_the_other(ending: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wherever the last range ended, and whether it was read to its end: the next one has its own rows."""
    path = tmp_path_factory.getbasetemp() / f"ranges.{ending}"
    table = pa.table({"x": np.arange(200), "y": np.zeros(200)})
    if not path.exists() and ending == "parquet":
        pq.write_table(table, path, row_group_size=70)
    elif not path.exists() and ending == "csv":
        table.to_pandas().to_csv(path, index=False)
    elif not path.exists():
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, 70)
    file = discover(str(path))[0]
    for _ in range(data.draw(st.integers(2, 6))):
        start = data.draw(st.integers(0, 200))
        stop = data.draw(st.integers(start, 200))
        tables = read_batches(
            file, start=start, stop=stop, columns=["x"], batch_rows=data.draw(st.sampled_from([7, 30]))
        )
        if data.draw(st.booleans()):
            next(tables, None)
            tables.close()  # type: ignore[attr-defined]  # a generator
        else:
            assert [x for found in tables for x in found["x"].to_pylist()] == list(range(start, stop))


def test_a_file_written_again_between_two_ranges(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.arange(200)}), path)
    file = discover(str(path))[0]
    assert len(list(read_batches(file, start=0, stop=100, columns=["x"], batch_rows=50))) == 2
    pq.write_table(pa.table({"x": np.arange(200)[::-1]}), path)
    with pytest.raises(BadDataError, match="changed after the run was planned"):
        list(read_batches(file, start=100, stop=200, columns=["x"], batch_rows=50))
    let_go()


def test_a_row_group_is_decoded_once(tmp_path: Path) -> None:
    """However many ranges it is read in: bytes that Linux saw this process read of the file."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.random.default_rng(0).normal(size=2_000_000)}), path, row_group_size=2_000_000)
    file = discover(str(path))[0]

    def bytes_read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(lines[0].split()[1])

    before = bytes_read()
    for start in range(0, 2_000_000, 100_000):
        for _ in read_batches(file, start=start, stop=start + 100_000, columns=["x"], batch_rows=10_000):
            pass
    assert bytes_read() - before < 2 * path.stat().st_size


@pytest.mark.parametrize(
    ("asked", "rows", "expected"),
    [(None, 0, 100_000), (None, 2_000_000, 100_000), (None, 5_000_000, 250_000), (None, 10**9, 500_000), (7, 10**9, 7)],
)
def test_rows_of_a_partition(asked: int | None, rows: int, expected: int) -> None:
    options = RunOptions.create(input="a", output="b", explainer="c", partition_rows=asked)
    assert options.rows_of_a_partition(rows) == expected
