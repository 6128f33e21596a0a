"""Bad rows and files: found one by one, kept with their reason, counted; all others explained as if they were alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.engine.quarantine import without_value
from batch_explain.errors import BadDataError, InputError
from tests.comparing import digests, frame_of
from tests.conftest import Engineered, Small, once
from tests.test_restart import stop_after

BAD = {("0.parquet", 0): "forty", ("0.parquet", 3): "", ("1.parquet", 499): "1,5", ("2.parquet", 200): "4O"}
BAD |= {("2.parquet", row): "x" for row in range(201, 205)}


@pytest.fixture
def rows(small: Small, tmp_path: Path) -> Path:
    """Four files of 500 rows whose age is text, with 8 texts that are no numbers."""
    for number in range(4):
        frame = small.frame[number * 500 : (number + 1) * 500].reset_index(drop=True)
        frame["age"] = frame["age"].astype(str).astype(object)
        for (path, row), text in BAD.items():
            if path == f"{number}.parquet":
                frame.loc[row, "age"] = text
        small.write(tmp_path / f"rows/{number}.parquet", frame)
    return tmp_path / "rows"


def explain(small: Small, rows: Path, output: Path, **options: Any) -> bx.Run:
    given = {"scheduler": "sync", "partition_rows": 200, "batch_rows": 64, "id_columns": "customer_id", "report": False}
    return bx.explain_dataset(
        input=rows, model=small.model, explainer=small.explainer, output=output, **{**given, **options}
    )


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_bad_rows_are_alone_in_quarantine(scheduler: str, small: Small, rows: Path, tmp_path: Path) -> None:
    run = explain(small, rows, tmp_path / "out", scheduler=scheduler, workers=2, max_bad_rows=8)
    found = frame_of(run, "quarantine")
    assert list(found.columns) == ["source_file", "source_row", "reason", "row"]
    assert list(zip(found.source_file, found.source_row, strict=True)) == sorted(BAD)
    for each in found.itertuples():
        text = BAD[each.source_file, each.source_row]
        assert each.reason.startswith("the model cannot take it: ValueError: ")
        expected = pd.read_parquet(rows / each.source_file).iloc[each.source_row]
        content = json.loads(each.row)
        assert content["age"] == text and content["customer_id"] == expected.customer_id
        assert content["balance"] == expected.balance
    assert run.info["rows"] == {"input": 2_000, "planned": 2_000, "explained": 1_992, "quarantined": 8}
    assert run.info["quarantine"] == {
        "reasons": {"the model cannot take it: ValueError": 8},
        "rows_by_file": {"0.parquet": 2, "1.parquet": 1, "2.parquet": 5},
        "unreadable_files": [],
    }
    # all others have the values that they have without them
    good = small.frame[[(f"{i // 500}.parquet", i % 500) not in BAD for i in range(2_000)]]
    source = small.write(tmp_path / "good.parquet", good)
    alone = explain(small, source, tmp_path / "alone", partition_rows=10_000, batch_rows=10_000)
    for level in ("predictions", "engineered", "raw"):
        pd.testing.assert_frame_equal(frame_of(run, level), frame_of(alone, level))
    pd.testing.assert_frame_equal(run.summary("raw"), alone.summary("raw"), rtol=1e-9)


@once
def test_rows_are_numbered_as_in_their_file(small: Small, rows: Path, tmp_path: Path) -> None:
    run = explain(small, rows, tmp_path / "out", id_columns=None, max_bad_rows="1%")
    found = frame_of(run, "raw")
    kept = [(f"{i // 500}.parquet", i % 500) for i in range(2_000) if (f"{i // 500}.parquet", i % 500) not in BAD]
    assert list(zip(found.source_file, found.source_row, strict=True)) == kept


def test_a_model_that_refuses_whole_batches(small: Small, engineered: Engineered, tmp_path: Path) -> None:
    """Unknown categories are an exception for the whole batch: bisected down to the guilty rows."""
    import lightgbm

    frame = pd.DataFrame({"color": ["red", "blue", "green", "blue"] * 250, "size": np.arange(1_000.0) % 7})
    target = (frame.color == "red") ^ (frame["size"] > 3)
    steps = make_column_transformer((OneHotEncoder(handle_unknown="error"), ["color"]), ("passthrough", ["size"]))
    model = make_pipeline(steps, LogisticRegression()).fit(frame, target)
    features = model[:-1].transform(frame)
    options = {"objective": "binary", "verbosity": -1, "num_leaves": 7, "num_threads": 1}
    surrogate = lightgbm.train(options, lightgbm.Dataset(features, target), 10)
    assert (surrogate.feature_importance() > 0).sum() >= 3
    surrogate.save_model(tmp_path / "surrogate.txt")
    joblib.dump(model, tmp_path / "model.pkl")
    frame.loc[[17, 400, 401, 999], "color"] = ["pink", "Red", "red ", "?"]
    frame.to_parquet(tmp_path / "rows.parquet")
    options = {
        "input": tmp_path / "rows.parquet",
        "model": tmp_path / "model.pkl",
        "explainer": tmp_path / "surrogate.txt",
    }
    run = bx.explain_dataset(**options, output=tmp_path / "out", scheduler="sync", batch_rows=300, max_bad_rows=10)
    found = frame_of(run, "quarantine")
    assert list(found.source_row) == [17, 400, 401, 999]
    assert [json.loads(row)["color"] for row in found.row] == ["pink", "Red", "red ", "?"]
    assert found.reason.str.startswith("the model cannot take it: ValueError: Found unknown categories").all()
    assert run.info["quarantine"]["reasons"] == {"the model cannot take it: ValueError": 4}
    values = frame_of(run, "engineered").drop(columns=["source_file", "source_row"]).to_numpy()
    good = frame.drop(index=found.source_row)
    expected = surrogate.predict(model[:-1].transform(good), pred_contrib=True)[:, :-1]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10)


@once
def test_above_the_limit_the_run_ends_and_keeps_what_it_found(small: Small, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["run", "--input", rows, "--model", small.model, "--explainer", small.explainer, "--output", output]
    arguments += ["--scheduler", "sync", "--partition-rows", 200, "--batch-rows", 64, "--id-columns", "customer_id"]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--quiet", "--max-bad-rows", "6"])
    assert result.exit_code == 3, result.stderr
    for part in (
        "which is more than --max-bad-rows (6) allows",
        "8 × the model cannot take it: ValueError",
        "--resume",
    ):
        assert part in result.stderr
    assert not (output / "_SUCCESS").exists()
    listed = pd.concat([pd.read_parquet(path) for path in sorted((output / "quarantine").iterdir())])
    assert len(listed) == 7 or len(listed) == 8
    before = len(list((output / "_run/receipts").iterdir()))
    assert before >= 6
    result = CliRunner().invoke(cli, [*map(str, arguments), "--quiet", "--resume", "--max-bad-rows", "8"])
    assert result.exit_code == 0, result.stderr
    explain(small, rows, tmp_path / "whole", max_bad_rows=8)
    assert digests(output) == digests(tmp_path / "whole")


@once
def test_the_limit_counts_all_partitions(small: Small, rows: Path, tmp_path: Path) -> None:
    """No partition alone is above it."""
    with pytest.raises(BadDataError, match=r"6 rows or more cannot be explained.*--max-bad-rows \(5\)"):
        explain(small, rows, tmp_path / "out", max_bad_rows=5, partition_rows=203)
    with pytest.raises(BadDataError, match=r"which is more than --max-bad-rows \(0\.1%\)"):
        explain(small, rows, tmp_path / "share", max_bad_rows="0.1%")


def test_without_a_limit_the_first_bad_row_ends_the_run(small: Small, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"row 0 of 0\.parquet.*--max-bad-rows"):
        explain(small, rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@once
def test_no_row_values_stand_in_the_quarantine(small: Small, rows: Path, tmp_path: Path) -> None:
    run = explain(small, rows, tmp_path / "out", max_bad_rows=8, no_row_values=True)
    found = frame_of(run, "quarantine")
    assert list(zip(found.source_file, found.source_row, strict=True)) == sorted(BAD)
    assert found.row.isna().all()
    assert set(found.reason) == {"the model cannot take it: ValueError"}
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"forty" in content for content in written)


@pytest.mark.automl
@pytest.mark.parametrize("values", [True, False])
def test_each_value_has_its_reason(values: bool, automl: Callable[[str], Any], tmp_path: Path) -> None:
    """An AutoML model knows its columns' types: the column and the value are named, the batch is not lost."""
    paths = automl("binary")
    frame = pd.read_parquet(paths.raw)[:200]
    ages = {7: 1.5, 8: np.inf, 150: -0.25}
    frame["age"] = frame["age"].astype(float)
    for row, age in ages.items():
        frame.loc[row, "age"] = age
    frame.to_parquet(tmp_path / "rows.parquet")
    options = {"model": paths.model, "explainer": paths.explainer, "scheduler": "sync", "batch_rows": 50}
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", output=tmp_path / "out", max_bad_rows=3, no_row_values=not values, **options
    )
    found = frame_of(run, "quarantine")
    assert list(found.source_row) == list(ages)
    kinds = {"column 'age' is …, but the model was trained on int64": 2, "column 'age' is infinite": 1}
    assert run.info["quarantine"]["reasons"] == kinds
    if values:
        assert found.reason[0] == "column 'age' is 1.5, but the model was trained on int64"
        assert [json.loads(row)["age"] for row in found.row] == [1.5, "inf", -0.25]
    else:
        assert found.row.isna().all() and set(found.reason) == set(kinds)
    frame.drop(index=list(ages)).to_parquet(tmp_path / "good.parquet")
    alone = bx.explain_dataset(input=tmp_path / "good.parquet", output=tmp_path / "alone", **options)
    for level in ("predictions", "engineered", "raw"):
        left, right = (frame_of(each, level).drop(columns=["source_file", "source_row"]) for each in (run, alone))
        pd.testing.assert_frame_equal(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("column 'f0' is 'it is', not a number", "column 'f0' is …, not a number"),
        ("column 'f0' is \"it's\", not a number", "column 'f0' is …, not a number"),
        ("column 'a' is -1e+300, outside int64", "column 'a' is …, outside int64"),
        ("column 'a' is NaN in an integer column", "column 'a' is NaN in an integer column"),
        ("column 'is 5' is null, but", "column 'is 5' is null, but"),
        ("the model cannot take it: ValueError: 'x' is 5: no", "the model cannot take it: ValueError"),
    ],
)
def test_kinds_of_reasons_hold_no_values(reason: str, kind: str) -> None:
    assert without_value(reason) == kind


@once
def test_a_resumed_run_has_the_same_quarantine(small: Small, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        explain(small, rows, tmp_path / "out", max_bad_rows=8, observers=[stop_after(4)])
    run = explain(small, rows, tmp_path / "out", max_bad_rows="0.4%", resume=True)
    assert run.info["rows"]["quarantined"] == 8
    explain(small, rows, tmp_path / "whole", max_bad_rows=8)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@once
def test_files_that_cannot_be_read_are_left_out(small: Small, tmp_path: Path) -> None:
    """One is no parquet file at all; one has damaged pages, which only reading it shows."""
    for number in range(4):
        small.write(tmp_path / f"rows/{number}.parquet", small.frame[number * 500 : (number + 1) * 500])
    (tmp_path / "rows/1.parquet").write_bytes(b"PAR1 no footer")
    damaged = tmp_path / "rows/2.parquet"
    content = bytearray(damaged.read_bytes())
    content[200:3_000] = bytes(2_800)
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"1\.parquet is not a readable parquet file.*--max-bad-files"):
        explain(small, tmp_path / "rows", tmp_path / "none")
    with pytest.raises(BadDataError, match=r"2 files cannot be read, more than --max-bad-files \(1\)"):
        explain(small, tmp_path / "rows", tmp_path / "one", max_bad_files=1)
    run = explain(small, tmp_path / "rows", tmp_path / "out", max_bad_files=2)
    assert run.info["rows"] == {"input": 1_500, "planned": 1_500, "explained": 1_000, "quarantined": 500}
    assert [file["path"] for file in run.info["quarantine"]["unreadable_files"]] == ["1.parquet", "2.parquet"]
    assert run.info["quarantine"]["rows_by_file"] == {"2.parquet": 500}
    found = frame_of(run, "quarantine")
    assert list(found.source_row) == list(range(500)) and set(found.source_file) == {"2.parquet"}
    expected = pd.concat([small.frame[:500], small.frame[1_500:]]).customer_id
    np.testing.assert_array_equal(frame_of(run, "raw").customer_id, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_bad_rows", "-1"), ("max_bad_rows", "101%"), ("max_bad_rows", "many"), ("max_bad_files", -1)],
)
def test_limits_that_are_none(name: str, value: Any, small: Small, tmp_path: Path) -> None:
    with pytest.raises(bx.errors.OptionError, match=f"--{name.replace('_', '-')} is"):
        explain(small, small.write(tmp_path / "rows.parquet"), tmp_path / "out", **{name: value})
