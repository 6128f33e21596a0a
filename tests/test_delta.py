"""Delta tables against deltalake's own reader: a version's rows, and no table whose files alone would be wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import batch_explain as bx
from batch_explain.errors import InputError, OptionError, OutputRefusedError
from tests.comparing import assert_close, frame_of, values_of
from tests.conftest import ROOT, Engineered, Small, once


@pytest.fixture
def table(engineered: Engineered, tmp_path: Path) -> Path:
    """Version 0: rows of two regions; 1: one of them again, from another day; 2: the first day's rows are gone."""
    frame = engineered.frame[:300].assign(n=np.arange(300), region=["a b/=%", None] * 150)
    frame["day"] = pd.Timestamp("2024-01-01").date()
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    write_deltalake(tmp_path / "table", rows, partition_by=["region", "day"])
    later = rows.slice(0, 100).set_column(
        rows.schema.names.index("day"), "day", pa.array([pd.Timestamp("2024-02-01").date()] * 100)
    )
    write_deltalake(tmp_path / "table", later, mode="append")
    DeltaTable(tmp_path / "table").delete("day = '2024-01-01'")
    return tmp_path / "table"


def explain(engineered: Engineered, source: Any, output: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=str(source), explainer=engineered.explainer, output=output, id_columns="n,region,day",
        **{"scheduler": "sync", "report": False, **options},
    )  # fmt: skip


def assert_explains(run: bx.Run, engineered: Engineered, expected: pd.DataFrame) -> None:
    """The rows that deltalake reads, in any order."""
    found = frame_of(run, "engineered")
    order, wanted = found.assign(at=range(len(found))).sort_values(["day", "n"]), expected.sort_values(["day", "n"])
    for name in ("n", "region", "day"):
        assert order[name].fillna("null").tolist() == wanted[name].fillna("null").tolist()
    values = engineered.booster.predict(wanted[list(engineered.frame)], pred_contrib=True)[:, :-1]
    assert_close(values_of(run, "engineered", list(engineered.frame))[0][order["at"]], values, 1e-12)


@pytest.mark.parametrize(
    ("asked", "version"),
    [("", 2), pytest.param("?version=0", 0, marks=once), pytest.param("?version=1", 1, marks=once)],
)
def test_a_version_is_read(asked: str, version: int, engineered: Engineered, table: Path, tmp_path: Path) -> None:
    run = explain(engineered, f"delta://{table}{asked}", tmp_path / "out", partition_rows=40)
    assert_explains(run, engineered, DeltaTable(table, version=version).to_pandas())
    assert f"the Delta table is read at version {version}" in run.info["decisions"]
    found = bx.verify_run(tmp_path / "out", recompute="100%")
    assert not found.problems and found.recomputed is not None


@once
def test_a_moment_is_a_version(engineered: Engineered, table: Path, tmp_path: Path) -> None:
    """A commit's time is its file's, which is set: three may lie within a millisecond."""
    for version in range(3):
        when = 1_700_000_000 + version * 60
        os.utime(table / f"_delta_log/{version:020d}.json", (when, when))
    run = explain(engineered, f"delta://{table}?timestamp=2023-11-14T22:14:30Z", tmp_path / "out")
    assert run.info["input"]["location"].endswith("table?version=1")
    with pytest.raises(InputError, match="no version that old"):
        explain(engineered, f"delta://{table}?timestamp=2023-11-14T22:13:19Z", tmp_path / "old")


def test_a_filter_takes_files_by_the_log(engineered: Engineered, table: Path, tmp_path: Path) -> None:
    where = "day < '2024-01-15' and region is null and n < 101"
    run = explain(engineered, f"delta://{table}?version=1", tmp_path / "out", filter=where)
    frame = DeltaTable(table, version=1).to_pandas()
    first = pd.Timestamp("2024-01-01").date()
    assert_explains(run, engineered, frame[(frame.day == first) & frame.region.isna() & (frame.n < 101)])
    assert run.info["rows"]["input"] == 150
    with pytest.raises(OptionError, match="'day', whose type is date32"):
        explain(engineered, f"delta://{table}", tmp_path / "other", filter="day > 5")


@once
def test_a_resumed_run_reads_the_version_that_it_began_with(
    engineered: Engineered, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batch_explain.engine import runner

    monkeypatch.setattr(runner, "finalize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        explain(engineered, f"delta://{table}", tmp_path / "out")
    monkeypatch.undo()
    expected = DeltaTable(table).to_pandas()
    write_deltalake(table, pa.Table.from_pandas(expected[:7], preserve_index=False), mode="append")
    assert_explains(explain(engineered, f"delta://{table}", tmp_path / "out", resume=True), engineered, expected)
    with pytest.raises(OptionError, match="the input file"):
        explain(engineered, f"delta://{table}?version=3", tmp_path / "out", resume=True)


def change_log(table: Path, change: Any) -> None:
    log = table / "_delta_log/00000000000000000000.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    change({name: content for action in actions for name, content in action.items()})
    log.write_text("\n".join(map(json.dumps, actions)))


def cloned(actions: dict[str, Any]) -> None:
    actions["add"]["path"] = "file:///elsewhere/" + actions["add"]["path"]


def mapped(actions: dict[str, Any]) -> None:
    actions["protocol"].update(minReaderVersion=2, minWriterVersion=5)
    actions["metaData"]["configuration"]["delta.columnMapping.mode"] = "name"


def featured(actions: dict[str, Any], feature: str = "typeWidening") -> None:
    actions["protocol"].update(
        minReaderVersion=3, minWriterVersion=7, readerFeatures=[feature], writerFeatures=[feature]
    )


def deleted(actions: dict[str, Any]) -> None:
    featured(actions, "deletionVectors")
    vector = "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"
    actions["add"]["deletionVector"] = {
        "storageType": "i",
        "pathOrInlineDv": vector,
        "sizeInBytes": 40,
        "cardinality": 6,
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (mapped, "columnMapping"),
        (cloned, "outside its folder"),
        (featured, "typeWidening"),
        (deleted, "deletionVectors"),
    ],
)
def test_what_the_files_do_not_tell_is_refused(change: Any, says: str, engineered: Engineered, tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", pa.Table.from_pandas(engineered.frame[:9], preserve_index=False))
    change_log(tmp_path / "table", change)
    with pytest.raises(InputError, match=says):
        bx.explain_dataset(input=f"delta://{tmp_path}/table", explainer=engineered.explainer, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_must_be_called_one(engineered: Engineered, table: Path, tmp_path: Path) -> None:
    for source, says in (
        (table, rf"is a Delta table.*delta://{table}"),
        (f"delta://{tmp_path}/nothing", "cannot be opened"),
        (f"delta://{table}?version=9", "at version 9 cannot be opened"),
        (f"delta://{table}?version=1&timestamp=2024-01-01", "cannot be understood"),
        (f"delta://{table}?sig=secret", "cannot be understood"),
    ):
        with pytest.raises(InputError, match=says) as refused:
            explain(engineered, source, tmp_path / "out")
        assert "secret" not in str(refused.value)


@pytest.fixture
def rows(small: Small, tmp_path: Path) -> Path:
    return small.write(tmp_path / "rows.parquet", small.frame[:400], row_group_size=100)


def nightly(small: Small, rows: Path, output: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=rows, model=small.model, explainer=small.explainer, output=output, id_columns="customer_id",
        output_format="delta", partition_rows=100, report=False, scheduler="sync",
        **{"outputs": "predictions,engineered,raw,reasons", **options},
    )  # fmt: skip


def test_a_run_is_read_by_deltalake(small: Small, rows: Path, tmp_path: Path) -> None:
    run = nightly(small, rows, tmp_path / "out")
    for level in ("predictions", "engineered", "raw", "reasons"):
        table = DeltaTable(tmp_path / "out" / level)
        expected = frame_of(run, level)
        expected = expected.astype(dict.fromkeys(expected.select_dtypes("category"), object))
        keys = ["customer_id", *(["output", "rank"] if level == "reasons" else [])]
        found = table.to_pandas().sort_values(keys, ignore_index=True)
        pd.testing.assert_frame_equal(
            found, expected.sort_values(keys, ignore_index=True), check_exact=True, check_dtype=False
        )
        assert run.info["delta"]["versions"][level] == table.version() == 0
        assert sum(pa.table(table.get_add_actions())["num_records"].to_pylist()) == len(expected)
    assert bx.verify_run(tmp_path / "out", recompute=5).ok
    assert len(bx.open_run(tmp_path / "out").table("raw").to_table()) == 400


@once
def test_runs_append_one_commit_each(small: Small, rows: Path, tmp_path: Path) -> None:
    first = nightly(small, rows, tmp_path / "one", append_to=tmp_path / "all")
    second = nightly(small, rows, tmp_path / "two", append_to=tmp_path / "all", limit=150)
    table = DeltaTable(tmp_path / "all/raw")
    assert table.version() == 1
    expected = pd.concat([frame_of(run, "raw") for run in (first, second)]).sort_values(["customer_id", "age"])
    found = table.to_pandas().sort_values(["customer_id", "age"])
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)
    assert second.info["delta"]["versions"] == dict.fromkeys(second.info["tables"], 1)
    with pytest.raises(OutputRefusedError, match=r"all/engineered has other columns|all/predictions has other columns"):
        nightly(small, rows, tmp_path / "three", append_to=tmp_path / "all", dtype="float32", outputs="engineered")
    with pytest.raises(OutputRefusedError, match="lie one in the other"):
        nightly(small, rows, tmp_path / "three", append_to=tmp_path / "three/all")
    assert not (tmp_path / "three").exists()


@once
@pytest.mark.parametrize("step", [4, 5])
def test_a_killed_end_commits_once(step: int, small: Small, rows: Path, tmp_path: Path) -> None:
    """Killed between the commits to four tables that had rows before, and behind those that make them; then resumed."""
    program = f"""
import os, signal
import batch_explain as bx
from batch_explain.engine import delta_output, finalize
from tests.test_delta import nightly
from tests.conftest import Small
from pathlib import Path
calls, real = [], delta_output.commit
def commit(*arguments):
    if len(calls) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(real(*arguments))
    return calls[-1]
delta_output.commit = commit
if {step} == 5:
    finalize._compare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
nightly(Small(Path({str(small.model)!r}), Path({str(small.explainer)!r}), None), Path({str(rows)!r}),
        Path({str(tmp_path / "out")!r}), append_to={str(tmp_path / "all")!r})
"""
    if step == 4:
        nightly(small, rows, tmp_path / "earlier", append_to=tmp_path / "all")
        program = program.replace("== 4:", "== 2:")
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2_000:]
    run = nightly(small, rows, tmp_path / "out", append_to=tmp_path / "all", resume=True)
    earlier = int(step == 4)
    for level in run.info["tables"]:
        table = DeltaTable(tmp_path / "all" / level)
        assert table.version() == run.info["delta"]["versions"][level] == earlier
        assert len(table.to_pandas()) == len(frame_of(run, level)) * (1 + earlier)


@once
def test_columns_without_a_delta_type_are_refused_before(small: Small, rows: Path, tmp_path: Path) -> None:
    frame = small.frame[:5].assign(number=np.arange(5, dtype="uint64"))
    small.write(tmp_path / "odd.parquet", frame)
    with pytest.raises(OptionError, match="'number' of the table predictions is uint64, for which Delta has no type"):
        bx.explain_dataset(
            input=tmp_path / "odd.parquet", model=small.model, explainer=small.explainer, output=tmp_path / "out",
            id_columns="number", output_format="delta",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
