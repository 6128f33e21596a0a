"""CSV, JSON lines and Arrow IPC: what is explained is what the same rows give as parquet."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_explain as bx
from batch_explain.errors import BadDataError, InputError
from batch_explain.integrations.azureml import EntryScript
from batch_explain.storage import text_files
from batch_explain.storage.dataset import discover
from batch_explain.storage.reading import read_batches
from tests.comparing import assert_close, frame_of, values_of
from tests.conftest import Engineered, Small, once

LEVELS = ("predictions", "engineered", "raw")


def write_json_lines(frame: pd.DataFrame, path: Path) -> None:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    content = "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_arrow(frame: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if "job" in frame:
        table = table.set_column(table.schema.names.index("job"), "job", table["job"].dictionary_encode())
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
        return
    pa.feather.write_feather(table, path, compression="lz4", chunksize=700)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "jsonl": write_json_lines,
    "ndjson.gz": write_json_lines,
    "feather": write_arrow,
    "arrow": write_arrow,
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", 30_000)


@pytest.fixture(scope="module")
def halves(small: Small) -> dict[str, pd.DataFrame]:
    """With texts that look like numbers, quoted line breaks, nulls and dates."""
    frame = small.frame[:600].assign(note=[None, 'two\nlines, "quoted"', "007", ""] * 150)
    return {"a": frame[:400], "b": frame[400:]}


def explain(small: Small, folder: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=folder, model=small.model, explainer=small.explainer, output=folder.parent / "out", scheduler="sync",
        id_columns="customer_id,day,note", partition_rows=150, batch_rows=100, cohort="job", report=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def of_parquet(small: Small, halves: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> bx.Run:
    folder = tmp_path_factory.mktemp("parquet")
    for name, half in halves.items():
        small.write(folder / f"rows/day={name}/rows.parquet", half)
    return explain(small, folder / "rows")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("ending", ["csv", pytest.param("ndjson.gz", marks=once), pytest.param("feather", marks=once)])
def test_the_same_rows_give_the_same_tables(
    ending: str, small: Small, halves: dict[str, pd.DataFrame], of_parquet: bx.Run, tmp_path: Path
) -> None:
    for name, half in halves.items():
        (tmp_path / f"rows/day={name}").mkdir(parents=True)
        WRITERS[ending](half, tmp_path / f"rows/day={name}/rows.{ending}")
    run = explain(small, tmp_path / "rows")
    assert run.info["partitions"] > 3
    for level in LEVELS:
        expected, found = frame_of(of_parquet, level), frame_of(run, level)
        if "sv" in ending:  # empty is null
            expected["note"] = expected.note.where(expected.note != "", None)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
    pd.testing.assert_frame_equal(run.summary("raw"), of_parquet.summary("raw"), rtol=1e-12)
    found = bx.verify_run(tmp_path / "out", recompute=20)
    assert not found.problems
    assert found.recomputed is not None and found.recomputed.rows == 20


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("ending", WRITERS)
def test_any_range_holds_the_rows_that_were_written(ending: str, small: Small, tmp_path: Path) -> None:
    frame, path = small.frame, tmp_path / f"rows.{ending}"
    WRITERS[ending](frame, path)
    file = discover(str(path))[0]
    assert file.rows == len(frame)
    assert len(file.row_groups) > 2
    for start, stop in ((0, 2_000), (0, 1), (777, 1_555), (1_999, 2_000)):
        tables = list(read_batches(file, start=start, stop=stop, columns=list(frame), batch_rows=90))
        assert max(table.num_rows for table in tables) <= 90
        found = pa.concat_tables(tables).to_pandas().astype(frame.dtypes)
        pd.testing.assert_frame_equal(found, frame[start:stop].reset_index(drop=True), check_exact=True)


def one_file(path: Path, content: str | bytes, columns: list[str]) -> tuple[Any, pa.Table]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    file = discover(str(path))[0]
    tables = read_batches(file, start=0, stop=file.rows, columns=columns, batch_rows=2)
    return file, pa.concat_tables(tables)


def test_types_fit_all_values_not_the_first_ones(tmp_path: Path) -> None:
    rows = [f"{at},{at},0{at % 7},true,,{at},{2**63 + at}" for at in range(200)]
    rows[150] = '150,1.5,"",FALSE,,x,1'
    _, table = one_file(tmp_path / "x.csv", "i,f,code,b,none,t,large\n" + "\n".join(rows), ["i", "f", "code", "b"])
    assert [str(kind) for kind in table.schema.types] == ["int64", "double", "string", "bool"]
    assert table["code"].to_pylist()[149:152] == ["02", None, "04"]
    file, _ = one_file(tmp_path / "y.csv", (tmp_path / "x.csv").read_text(), ["i"])
    assert [str(file.schema.field(name).type) for name in ("none", "t", "large")] == ["null", "string", "string"]


def test_files_may_have_other_columns_in_another_order(engineered: Engineered, tmp_path: Path) -> None:
    """Read from a stored plan, whose types are those of all files together; a name may repeat that nobody needs."""
    frame = engineered.frame[:40]
    (tmp_path / "rows").mkdir()
    frame.assign(a="x", b=1)[["a", *frame, "b"]].to_csv(tmp_path / "rows/1.csv", index=False)
    content = frame.assign(b="y", c=2.5)[["c", *reversed(list(frame)), "b"]].to_csv(index=False)
    (tmp_path / "rows/2.csv").write_text(content.replace("b\n", "c\n", 1))
    run = bx.explain_dataset(
        input=tmp_path / "rows", explainer=engineered.explainer, output=tmp_path / "out", scheduler="sync", report=False
    )
    expected = engineered.booster.predict(frame, pred_contrib=True)[:, :-1]
    assert_close(values_of(run, "engineered", list(frame))[0], np.concatenate([expected, expected]), 1e-12)
    assert bx.verify_run(tmp_path / "out", recompute="100%").ok


@once
def test_a_platform_brings_files_of_other_types(engineered: Engineered, tmp_path: Path) -> None:
    """Each is looked at alone: whole numbers in one, and no values at all in another."""
    frame = engineered.frame[:90].copy()
    frame.loc[:29, "f3"] = (frame.f3[:30] * 10).round()
    frame.loc[60:, "f3"] = np.nan
    (tmp_path / "rows").mkdir()
    files = [tmp_path / f"rows/{number}.csv" for number in range(3)]
    for number, path in enumerate(files):
        frame[number * 30 : number * 30 + 30].astype({"f3": "Int64"} if number == 0 else {}).to_csv(path, index=False)
    script = EntryScript(explainer=str(engineered.explainer), output=str(tmp_path / "out"))
    script.init(["--input-root", str(tmp_path / "rows")])
    script.run([str(path) for path in files])
    run = bx.finalize_run(tmp_path / "out", input=tmp_path / "rows")
    expected = engineered.booster.predict(frame, pred_contrib=True)[:, :-1]
    found = frame_of(run, "engineered").sort_values(["source_file", "source_row"])
    assert_close(found[list(frame)].to_numpy(), expected, 1e-12)
    assert not bx.verify_run(tmp_path / "out", recompute="100%").problems


def test_types_are_those_of_all_files(tmp_path: Path) -> None:
    for name, rows in (("a", "1,2020-01-01"), ("b", "1.5,2020-01-01T10:20:30.5"), ("c", ",")):
        (tmp_path / f"{name}.csv").write_text(f"x,y\n{rows}\n")
    files = discover(str(tmp_path))
    assert {tuple(map(str, file.schema.types)) for file in files} == {("double", "timestamp[ns]")}
    assert next(read_batches(files[0], start=0, stop=1, columns=["y"], batch_rows=1))["y"][0].as_py().year == 2020


@once
@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), st.integers(0, 9)), min_size=1
    ),
    st.integers(5, 60),
)
def test_any_text_is_cut_right(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], block: int) -> None:
    """Python's own writers, and blocks that end anywhere; a row is read from its block alone."""
    folder = tmp_path_factory.mktemp("texts")
    frame = pd.DataFrame(rows, columns=["a,b", "n"])
    frame.to_csv(folder / "x.csv", index=False)
    write_json_lines(frame, folder / "x.jsonl")
    before, text_files._BLOCK_BYTES = text_files._BLOCK_BYTES, block
    try:
        for name, expected in (("x.csv", [text or None for text, _ in rows]), ("x.jsonl", [text for text, _ in rows])):
            file = discover(str(folder / name))[0]
            if pa.types.is_string(file.schema.field("a,b").type):
                found = [
                    next(read_batches(file, start=at, stop=at + 1, columns=["a,b"], batch_rows=9))["a,b"][0].as_py()
                    for at in range(file.rows)
                ]
                assert found == expected
            assert file.rows == len(rows)
    finally:
        text_files._BLOCK_BYTES = before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", "a,b\n1,2\n3\n", "row 1 has 1 values, and the header names 2 columns"),
        ("x.csv", 'a,b\n1,2\n3,5" pipe\n', "row 1, column 'b': a quotation mark"),
        ("x.csv", 'a,b\n1,2\n3,"open\n', "row 1, column 'b': a quotation mark"),
        ("x.csv", "", "it has no header"),
        ("x.csv", b"a,b\n1,\xff\n", "row 0 or one close to it is not UTF-8"),
        ("x.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-6], "end"),
        ("x.jsonl", '{"a": 1}\n{"a": "x"}\n', "column 'a' changed from number to string in row 1"),
        (
            "x.jsonl",
            '{"a": 1}\n{"a": 18446744073709551617}\n',
            "row 1, column 'a': a whole number that 64 bits do not hold",
        ),
        ("x.json", '[{"a": 1}]\n', "the line changed from object to array in row 0"),
        ("x.jsonl", '{"a": 1}{"a": 2}\n', "each must have a line of its own"),
        ("x.arrow", b"ARROW0", "it does not end as an Arrow file"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        discover(str(path))
    assert name in str(refused.value)
    assert says in str(refused.value)


def test_a_value_that_is_no_number_is_named_or_in_quarantine(engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame[:50].astype({"f3": object})
    frame.loc[30, "f3"] = "old"
    frame.to_csv(tmp_path / "rows.csv", index=False)
    options = {"input": tmp_path / "rows.csv", "explainer": engineered.explainer, "scheduler": "sync", "report": False}
    with pytest.raises(BadDataError, match=r"Column 'f3' is 'old', not a number in row 30 of rows\.csv"):
        bx.explain_dataset(**options, output=tmp_path / "out")
    run = bx.explain_dataset(**options, output=tmp_path / "out", overwrite=True, max_bad_rows=1)
    expected = engineered.booster.predict(engineered.frame[:50].drop(30), pred_contrib=True)[:, :-1]
    assert_close(values_of(run, "engineered", list(engineered.frame))[0], expected, 1e-12)


def test_several_formats_need_a_glob(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame[:20].to_csv(tmp_path / "a.csv", index=False)
    engineered.frame[:20].to_parquet(tmp_path / "b.parquet", index=False)
    with pytest.raises(InputError, match=r"CSV \(a\.csv\), parquet \(b\.parquet\).*by a glob"):
        discover(str(tmp_path))
    assert [file.rows for file in discover(str(tmp_path / "*.csv"))] == [20]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "feather"])
def test_another_content_is_never_read(ending: str, tmp_path: Path) -> None:
    """A digit exchanged keeps the size: each block is compared as it is read."""
    frame = pd.DataFrame({"x": np.arange(1_000)})
    path = tmp_path / f"x.{ending}"
    WRITERS[ending](frame, path)
    file = discover(str(path))[0]
    if ending == "feather":
        WRITERS[ending](frame.where(frame.x != 567, 576), path)
    else:
        path.write_bytes(path.read_bytes().replace(b"567", b"576"))
    assert discover(str(path))[0].fingerprint != file.fingerprint
    with pytest.raises(BadDataError, match="was changed after the run was planned"):
        list(read_batches(file, start=560, stop=570, columns=["x"], batch_rows=100))


@pytest.mark.automl
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_genuine_model_takes_a_column_for_what_it_was_trained_on(
    ending: str, automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    """Against the SDK's own explain(): categories that look like numbers, dates, integers and texts with gaps."""
    paths, expected = automl("binary"), oracle("binary")
    WRITERS[ending](pd.read_parquet(paths.raw), tmp_path / f"rows.{ending}")
    run = bx.explain_dataset(
        input=tmp_path / f"rows.{ending}", model=paths.model, explainer=paths.explainer, output=tmp_path / "out",
        scheduler="sync", report=False,
    )  # fmt: skip
    assert_close(values_of(run, "engineered", expected.engineered_features), expected.engineered, 1e-9)
    assert_close(values_of(run, "raw", expected.raw_features), expected.raw, 1e-9)
    assert (frame_of(run, "predictions").prediction.to_numpy() == expected.prediction).all()
