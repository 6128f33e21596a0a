"""``--filter``: the rows that pandas keeps are explained, the others are counted, and never silently dropped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_explain as bx
from batch_explain.engine.status import status
from batch_explain.errors import InputError, OptionError
from batch_explain.filters import Filter
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import discover
from batch_explain.storage.reading import read_rows
from tests.comparing import assert_close, frame_of, values_of
from tests.conftest import Engineered, once


@pytest.fixture(scope="module")
def rows(engineered: Engineered) -> pd.DataFrame:
    """Sorted by ``n``, so that statistics tell row groups apart; texts and numbers with gaps."""
    frame = engineered.frame.assign(n=np.arange(3_000), job=["clerk", "nurse", None] * 1_000)
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame.n, "h")
    return frame


def explain(engineered: Engineered, source: Path, where: str, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=source, explainer=engineered.explainer, output=source.parent / "out", filter=where,
        **{"scheduler": "sync", "report": False, "batch_rows": 70, **options},
    )  # fmt: skip


def write(rows: pd.DataFrame, folder: Path) -> Path:
    """Hive folders of ten row groups each."""
    for day, part in rows.groupby(rows.n // 1_000):
        (folder / f"rows/day={day}").mkdir(parents=True)
        part.to_parquet(folder / f"rows/day={day}/part.parquet", index=False, row_group_size=100)
    return folder / "rows"


@pytest.mark.parametrize(
    ("where", "kept", "files", "groups"),
    [
        ("n >= 250 and n < 1205", lambda f: (f.n >= 250) & (f.n < 1_205), 3, 11),
        ("day = 1 and f2 > 0.1", lambda f: (f.n // 1_000 == 1) & (f.f2 > 0.1), 1, 10),
        ("job != 'clerk' and n < 500", lambda f: (f.job == "nurse") & (f.n < 500), 3, 5),
        pytest.param(
            "job is null and day in (0, 2) and n > 2950", lambda f: f.job.isna() & (f.n > 2_950), 2, 1, marks=once
        ),
        pytest.param("\"when\" > '2024-05-03 15:00:00'", lambda f: f.when > "2024-05-03 15:00:00", 3, 1, marks=once),
        ("f2 is not null and n in (13, 14)", lambda f: f.n == 14, 3, 1),
    ],
)
def test_the_rows_that_pandas_keeps(
    where: str, kept: Any, files: int, groups: int, engineered: Engineered, rows: pd.DataFrame, tmp_path: Path
) -> None:
    run = explain(engineered, write(rows, tmp_path), where, id_columns="n", partition_rows=150)
    expected = rows[kept(rows)]
    assert frame_of(run, "engineered").n.tolist() == expected.n.tolist()
    values = engineered.booster.predict(expected[list(engineered.frame)], pred_contrib=True)[:, :-1]
    assert_close(values_of(run, "engineered", list(engineered.frame))[0], values, 1e-12)
    counted = run.info["rows"]
    assert counted["input"] == files * 1_000
    assert counted["explained"] == len(expected)
    assert counted["left_out"] == counted["input"] - len(expected)
    assert counted["planned"] == groups * 100
    assert any(f"{files * 10 - groups} of {files * 10} row groups" in decision for decision in run.info["decisions"])
    noted = f"{3 - files} of 3 files are not read: their folders' keys are left out"
    assert (noted in run.info["decisions"]) == (files < 3)
    found = bx.verify_run(tmp_path / "out", recompute="100%")
    assert not found.problems
    assert found.recomputed is not None and found.recomputed.rows == len(expected)


@once
def test_places_quarantine_and_sample_are_of_the_rows_in_their_files(
    engineered: Engineered, rows: pd.DataFrame, tmp_path: Path
) -> None:
    rows = rows.astype({"f3": object})
    rows.loc[[700, 702], "f3"] = "bad"
    rows[["f3", "f0", "n", *(f"f{i}" for i in (1, 2, *range(4, 12)))]].to_csv(tmp_path / "rows.csv", index=False)
    run = explain(engineered, tmp_path / "rows.csv", "n >= 600 and n != 702", max_bad_rows=1, cohort="n:1000")
    places = frame_of(run, "engineered").source_row
    assert places.tolist() == [row for row in range(600, 3_000) if row not in (700, 702)]
    assert run.table("quarantine").to_table()["source_row"].to_pylist() == [700]
    assert run.info["rows"] == {"input": 3_000, "planned": 3_000, "explained": 2_398, "quarantined": 1, "left_out": 601}
    assert set(run.sample().source_row) <= set(places)
    assert bx.verify_run(tmp_path / "out", recompute=50).ok
    assert status(tmp_path / "out").rows_left_out == 601
    assert run.cohorts()["count"].max() == 2_000


@once
def test_no_row_is_wanted(engineered: Engineered, rows: pd.DataFrame, tmp_path: Path) -> None:
    source = write(rows, tmp_path)
    for where, planned in (("n > 5000", 0), ("n > 10 and n < 11", 100)):
        run = explain(engineered, source, where, overwrite=True)
        assert run.info["rows"] == {
            "input": 3_000, "planned": planned, "explained": 0, "quarantined": 0, "left_out": 3_000,
        }  # fmt: skip
        assert bx.verify_run(tmp_path / "out").ok
    with pytest.raises(InputError, match=r"leaves none of the 3 files.*day = 7"):
        explain(engineered, source, "day = 7", overwrite=True)


NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**53 + 1, -(2**53) - 1]))
CONDITIONS = st.one_of(
    st.tuples(st.sampled_from(["i", "x", "t"]), st.sampled_from(["is null", "is not null"]), st.none()),
    st.tuples(
        st.sampled_from(["i", "x"]), st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="]),
        st.sampled_from([-2, -1.5, 0, 0.5, 1, 2.0, 2**53 + 1]),
    ),
    st.tuples(st.just("t"), st.sampled_from(["=", "!=", "<", ">="]), st.sampled_from(["'b'", "'it''s'", "''"])),
    st.tuples(st.just("i"), st.just("in"), st.sampled_from(["(1)", "(-1, 0.5, 3)"])),
)  # fmt: skip


@once
@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(NUMBERS, st.one_of(st.none(), st.floats(-3, 3), st.just(float("nan"))),
                  st.sampled_from([None, "", "a", "b", "it's"])),
        max_size=30,
    ),
    st.lists(CONDITIONS, min_size=1, max_size=3),
)  # fmt: skip
def test_as_sqlite_has_it(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], conditions: list[Any]) -> None:
    """Row groups of two rows, and SQLite's answer; NaN, of which it knows nothing, is null in a comparison."""
    import sqlite3

    where = " and ".join(f"{name} {op}{'' if value is None else f' {value}'}" for name, op, value in conditions)
    path = tmp_path_factory.mktemp("filter") / "rows.parquet"
    kinds = pa.schema([("i", pa.int64()), ("x", pa.float64()), ("t", pa.string())])
    columns = list(zip(*rows, strict=True)) or [[], [], []]
    pq.write_table(
        pa.table([pa.array(list(c), k) for c, k in zip(columns, kinds.types, strict=True)], schema=kinds),
        path,
        row_group_size=2,
    )
    db = sqlite3.connect(":memory:")
    db.execute("create table r (at integer, i integer, x real, t text, nan integer)")
    db.executemany(
        "insert into r values (?, ?, ?, ?, ?)",
        [(at, i, None if x != x else x, t, x is not None and x != x) for at, (i, x, t) in enumerate(rows)],
    )
    of_sqlite = where.replace("x is null", "(x is null and not nan)").replace("x is not null", "(x is not null or nan)")
    expected = [at for (at,) in db.execute(f"select at from r where {of_sqlite.replace('==', '=')} order by at")]
    db.close()
    file = discover(str(path), where=Filter.parse(where))[0]
    found = [
        position
        for first, groups in file.stretches
        for _, positions in read_rows(file, start=first, stop=first + sum(groups), columns=["t"], batch_rows=3)
        for position in positions.tolist()
    ]
    assert found == expected
    assert str(Filter.parse(str(Filter.parse(where)))) == str(Filter.parse(where))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nope > 1", "compares the column 'nope', which is not there"),
        ("job > 5", "whose type is large_string|string, with 5 by >. It can be compared with a text"),
        ("n = '5'", "with a number"),
        ("when > 'noon'", "which is none"),
        ("day = 'x'", "with a number"),
        ("n > 99999999999999999999", "cannot hold"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    where: str, says: str, engineered: Engineered, rows: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as refused:
        explain(engineered, write(rows, tmp_path), where.replace("when", '"when"'))
    assert any(part in str(refused.value) for part in says.split("|"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "where",
    [
        "", "n", "n >", "n > 1 or n < 0", "n > 1 and", "n = null", "n in ()", "n in 1", "n is 5", 'n = "x"', "n = 'x",
        "5 > n", "n ~ 1", "n > 1 n < 2",
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(where: str) -> None:
    with pytest.raises(OptionError, match="--filter is"):
        RunOptions.create(input="a", output="b", explainer="c", filter=where)


@once
def test_a_killed_run_is_resumed_with_the_same_filter_alone(
    engineered: Engineered, rows: pd.DataFrame, tmp_path: Path
) -> None:
    source = write(rows, tmp_path)
    whole = explain(engineered, source, "f0 > 0", partition_rows=20)
    expected = frame_of(whole, "engineered")
    options = ["--input", source, "--explainer", engineered.explainer, "--output", tmp_path / "killed"]
    options += [
        "--filter",
        "f0  >  0",
        "--partition-rows",
        "20",
        "--batch-rows",
        "70",
        "--scheduler",
        "sync",
        "--no-report",
    ]
    command = [sys.executable, "-m", "batch_explain", "run", *map(str, options), "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ})
    while len(list(tmp_path.glob("killed/_run/receipts/*"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(OptionError, match=r"--filter was f0 > 0 and is f0 > 1"):
        bx.explain_dataset(
            input=source, explainer=engineered.explainer, output=tmp_path / "killed", filter="f0 > 1", resume=True,
            partition_rows=20, batch_rows=70, scheduler="sync",
        )  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    pd.testing.assert_frame_equal(frame_of(bx.open_run(tmp_path / "killed"), "engineered"), expected, check_exact=True)


def test_cohorts_of_many_row_groups_some_of_them_skipped(engineered: Engineered, tmp_path: Path) -> None:
    """More than are looked at one by one: those between two skipped ones are read together."""
    frame = engineered.frame.assign(a=np.repeat(np.arange(300) % 3, 10))
    frame.to_parquet(tmp_path / "rows.parquet", index=False, row_group_size=10)
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=engineered.explainer, output=tmp_path / "out", scheduler="sync",
        filter="a != 1", cohort="a", report=False,
    )  # fmt: skip
    assert run.info["rows"]["explained"] == 2_000
    found = run.cohorts()
    groups = found[found.feature.eq("f0") & found.cohort.eq("a")]
    assert dict(zip(groups.group, groups["count"], strict=True)) == {"0": 1_000, "2": 1_000}
