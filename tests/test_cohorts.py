"""Summaries by cohort: equal to pandas on the full tables, whoever explains the rows, and made anew from a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_explain as bx
from batch_explain.engine.cohorts import decide_cohorts
from batch_explain.errors import InputError, OptionError, OutputRefusedError
from batch_explain.storage.dataset import discover, hive_types
from batch_explain.summary.cohorts import MAX_GROUPS, Asked, Cohort
from batch_explain.summary.quantiles import RELATIVE_ERROR, SMALLEST
from tests.comparing import digests, frame_of
from tests.conftest import Engineered, Small

COHORTS = ["job", "age:18,30,50", "balance@4", "visits", "score"]
EDGES = [-np.inf, 18, 30, 50, np.inf]
INTERVALS = ["< 18", "18 to < 30", "30 to < 50", "≥ 50"]


@pytest.fixture(scope="module")
def rows(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files; beside the model's columns one of few whole numbers and one of many numbers, with gaps."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    frame = small.frame[:900].assign(
        visits=rng.integers(0, 4, 900), score=pd.Series(rng.normal(size=900), index=small.frame.index[:900])
    )
    frame.loc[::7, "score"] = np.nan
    for number in range(3):
        part = frame[number * 300 : number * 300 + 300]
        small.write(folder / f"{number}.parquet", part.astype({"job": "category"}) if number == 1 else part)
    return folder


def explain(small: Small, rows: Path, output: Path, **options: Any) -> bx.Run:
    given: dict[str, Any] = {"scheduler": "sync", "partition_rows": 150, "batch_rows": 40, "cohort": COHORTS}
    given |= {"report": False, **options}
    return bx.explain_dataset(input=rows, model=small.model, explainer=small.explainer, output=output, **given)


@pytest.fixture(scope="module")
def run(small: Small, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bx.Run:
    return explain(small, rows, tmp_path_factory.mktemp("run") / "out", id_columns=["customer_id", "visits"])


def groups_of(frame: pd.DataFrame, prediction: pd.Series) -> dict[str, pd.Series]:
    """Each cohort's group of each row, by pandas' own means; NaN: no value."""
    score = frame.score.dropna().sort_values().to_numpy()
    edges = [score[len(score) * part // 4] for part in (1, 2, 3)]
    balance = np.sort(frame.balance.dropna().to_numpy())
    balances = [balance[len(balance) * part // 4] for part in (1, 2, 3)]

    def cut(values: pd.Series, edges: list[float]) -> pd.Series:
        return pd.cut(values, [-np.inf, *edges, np.inf], right=False, labels=False)

    age = pd.cut(frame.age, EDGES, right=False, labels=INTERVALS)
    return {
        "job": frame.job.astype(object),
        "age": age.astype(object),
        "visits": frame.visits.astype(str),
        "predicted class": prediction.astype(str),
        "score": cut(frame.score, edges),
        "balance": cut(frame.balance, balances),
    }


def test_cohorts_are_pandas_on_the_full_tables(run: bx.Run, rows: Path) -> None:
    source = pd.concat([pd.read_parquet(rows / f"{n}.parquet").astype({"job": object}) for n in range(3)])
    source = source.reset_index(drop=True)
    expected_groups = groups_of(source, frame_of(run, "predictions").prediction)
    cohorts = run.cohorts()
    assert set(cohorts.cohort) == set(expected_groups)
    for level in ("engineered", "raw"):
        table = frame_of(run, level).drop(columns=["customer_id", "visits"])
        table = table.drop(columns=run.info["features"]["identically_zero"], errors="ignore")
        assert (table != 0).to_numpy().any()
        for name, group in expected_groups.items():
            here = cohorts[(cohorts.cohort == name) & (cohorts.level == level)]
            labels = list(dict.fromkeys(None if pd.isna(label) else label for label in here.group))
            if name in ("score", "balance"):  # the groups of numbers stand in rising order, no value last
                group = group.map(dict(enumerate(label for label in labels if label is not None)))
            assert {label for label in labels if label is not None} == set(group.dropna())
            assert (None in labels) == group.isna().any()
            for label in labels:
                mine = here[here.group.isna() if label is None else here.group == label].set_index("feature")
                values = table[(group.isna() if label is None else group == label).to_numpy()]
                assert sorted(mine.index) == sorted(values.columns)
                values, scale = values[mine.index], max(1.0, np.abs(values.to_numpy()).max())
                assert (mine["count"] == len(values)).all()
                assert (mine["min"] == values.min()).all() and (mine["max"] == values.max()).all()
                assert (mine.share_positive == (values > 0).mean()).all()
                for column, moment in (
                    ("mean_abs", values.abs().mean()),
                    ("mean", values.mean()),
                    ("std", values.std()),
                ):
                    np.testing.assert_allclose(mine[column], moment, rtol=0, atol=1e-12 * scale)
                for column, of, q in (("p05", values, 0.05), ("p50", values, 0.5), ("abs_p95", values.abs(), 0.95)):
                    exact = of.quantile(q, interpolation="lower")
                    assert ((mine[column] - exact).abs() <= RELATIVE_ERROR * exact.abs() * (1 + 1e-9) + SMALLEST).all()
                assert mine["rank"].tolist() == list(range(1, len(mine) + 1))
                assert (mine.mean_abs.diff().dropna() <= 0).all()
    found = json.loads((Path(run.location.path) / "summary/cohorts.json").read_bytes())
    assert found["groups"] == pq.read_table(Path(run.location.path) / "summary/cohorts.parquet").to_pylist()


def test_the_bytes_do_not_depend_on_who_did_what_when(run: bx.Run, small: Small, rows: Path, tmp_path: Path) -> None:
    explain(small, rows, tmp_path / "out", scheduler="threads", workers=2, id_columns=["customer_id", "visits"])
    expected = digests(Path(run.location.path))
    assert {"summary/cohorts.parquet", "summary/sample.parquet", "summary/analysis.json"} <= set(expected)
    assert digests(tmp_path / "out") == expected


def test_summarize_gives_what_the_run_would_have_given(run: bx.Run, small: Small, rows: Path, tmp_path: Path) -> None:
    """From the run's tables where the column is an id, from its input elsewhere; rows in quarantine left out."""
    files = shutil.copytree(rows, tmp_path / "rows")
    bad = pd.read_parquet(files / "2.parquet").astype({"age": str})
    bad.loc[5, "age"] = "forty"
    for number in (0, 1):
        frame = pd.read_parquet(files / f"{number}.parquet").astype({"age": str})
        small.write(files / f"{number}.parquet", frame)
    small.write(files / "2.parquet", bad)
    asked = ["job", "visits", "balance@4", "score:-1,0,1"]
    ids = {"id_columns": ["customer_id", "visits"], "max_bad_rows": 5}
    there = explain(small, files, tmp_path / "with", cohort=asked, **ids)
    without = explain(small, files, tmp_path / "without", cohort=[], **ids)
    assert without.info["rows"]["quarantined"] == 1
    assert set(without.cohorts().cohort) == {"predicted class"}
    found = bx.summarize_run(tmp_path / "without", cohort=[*asked, "predicted class"], output=tmp_path / "new")
    pd.testing.assert_frame_equal(found, there.cohorts(), check_exact=True)
    assert (tmp_path / "new/cohorts.parquet").read_bytes() == (tmp_path / "with/summary/cohorts.parquet").read_bytes()
    assert bx.verify_run(tmp_path / "without").ok

    (files / "0.parquet").unlink()
    bx.summarize_run(tmp_path / "without", cohort="visits", output=tmp_path / "ids")
    with pytest.raises(InputError, match=r"'job' is not among the run's ids.*0\.parquet' is gone or changed"):
        bx.summarize_run(tmp_path / "without", cohort=["visits", "job"], output=tmp_path / "other")
    with pytest.raises(OutputRefusedError, match="run's own folder"):
        bx.summarize_run(tmp_path / "without", cohort="visits", output=tmp_path / "without/summary/new")
    with pytest.raises(OutputRefusedError, match="not an empty folder"):
        bx.summarize_run(tmp_path / "without", cohort="visits", output=tmp_path / "ids")


def test_edited_summaries_are_found(run: bx.Run, tmp_path: Path) -> None:
    from tests.test_verify import forge

    for path, column in (
        ("summary/raw.parquet", "p95"),
        ("summary/cohorts.parquet", "abs_p50"),
        ("summary/sample.parquet", "raw.age"),
    ):
        output = shutil.copytree(run.location.path, tmp_path / path.replace("/", "-"))
        table = pq.read_table(output / path)
        at, values = table.column_names.index(column), table[column].to_numpy().copy()
        values[0] += 0.5
        pq.write_table(table.set_column(at, column, pa.array(values)), output / path)
        forge(output)
        found = bx.verify_run(output)
        assert [problem.file for problem in found.problems] == [path]
    output = shutil.copytree(run.location.path, tmp_path / "json")
    analysis = json.loads((output / "summary/analysis.json").read_bytes())
    analysis["explanations"]["kernel_shap"]["label0"]["global_shap_values"]["age"] *= 2
    (output / "summary/analysis.json").write_text(json.dumps(analysis))
    forge(output)
    assert [problem.file for problem in bx.verify_run(output).problems] == ["summary/analysis.json"]


def test_analysis_json_is_clarifys(run: bx.Run) -> None:
    found = json.loads((Path(run.location.path) / "summary/analysis.json").read_bytes())
    label = found["explanations"]["kernel_shap"]["label0"]
    raw = frame_of(run, "raw").drop(columns=["customer_id", "visits"], errors="ignore")
    assert label["global_shap_values"] == pytest.approx(run.summary("raw").set_index("feature").mean_abs.to_dict())
    assert label["global_shap_values"]["age"] == pytest.approx(raw["age"].abs().mean(), abs=1e-12)
    assert label["expected_value"] == run.info["expected_values"][0]


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        ("jobs", "missing from 0.parquet.*'jobs' may be 'job'"),
        ("job:1,2", "'job', which holds no numbers but"),
        ("job@4", "'job', which holds no numbers but"),
        ("age:50,18", "rising edges"),
        ("age:18,x", "rising edges"),
        ("age@1", "2 to 50 parts"),
        (["age@3", "age@4"], "'age' more than once"),
        (["age", "age"], "'age' more than once"),
        ([3], "Write a text"),
    ],
)
def test_cohorts_that_cannot_be(cohort: Any, message: str, small: Small, rows: Path, tmp_path: Path) -> None:
    with pytest.raises((OptionError, InputError), match=message):
        explain(small, rows, tmp_path / "out", cohort=cohort)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_model_has_cohorts_only_where_asked(engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame[:400].assign(region=["north", "south"] * 200)
    frame.to_parquet(tmp_path / "rows.parquet")
    given: dict[str, Any] = {"input": tmp_path / "rows.parquet", "explainer": engineered.explainer, "scheduler": "sync"}
    with pytest.raises(OptionError, match="no cohorts"):
        bx.explain_dataset(**given, output=tmp_path / "none").cohorts()
    run = bx.explain_dataset(**given, output=tmp_path / "some", cohort="region", no_row_values=True)
    assert run.cohorts().groupby("group")["count"].first().to_dict() == {"north": 200, "south": 200}
    assert not [name for name in run.sample().columns if name.startswith("value.")]


def decided(folder: Path, *asked: str) -> tuple[Cohort, ...]:
    files = discover(str(folder))
    return decide_cohorts(asked, files, hive_types(files))[0]


def test_rare_values_are_other_and_no_value_is_a_group_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = [f"v{n:03d}" for n in range(120) for _ in range(120 - n)] + [None] * 9 + ["other"] * 200
    table = pa.table({"text": pa.array(rng.permutation(np.array(values, dtype=object)).tolist())})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    (cohort,) = decided(tmp_path, "text")
    assert cohort.groups == tuple(sorted(["other", *(f"v{n:03d}" for n in range(MAX_GROUPS - 1))]))
    assert cohort.labels[-2:] == ("(other)", None)
    counts = np.bincount(cohort.codes(table["text"]), minlength=len(cohort.labels))
    frame = table.to_pandas().text
    assert counts[:-2].tolist() == [(frame == label).sum() for label in cohort.groups]
    assert counts[-2] == (~frame.isin(cohort.groups) & frame.notna()).sum() and counts[-1] == 9


@pytest.mark.parametrize(
    ("column", "labels", "codes"),
    [
        (pa.array([True, None, False]), ("False", "True", "other", None), [1, 3, 0]),
        (pa.array([3, 10, None], pa.int8()), ("3", "10", "other", None), [0, 1, 3]),
        (pa.array(["b", "a", None]).dictionary_encode(), ("a", "b", "other", None), [1, 0, 3]),
        (pa.array([None, None, None]), ("other", None), [1, 1, 1]),
        (pa.array([1.5, 2.5, np.nan]), ("< 2.5", "≥ 2.5", None), [0, 1, 2]),
        (pa.array([7.0, 7.0, None]), ("any number", None), [0, 0, 1]),
        (pa.array([0, 19_000, None], pa.date32()), ("1970-01-01", "2022-01-08", "other", None), [0, 1, 3]),
    ],
)
def test_groups_of_every_type(column: pa.Array, labels: tuple[str, ...], codes: list[int], tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": column}), tmp_path / "rows.parquet")
    (cohort,) = decided(tmp_path, "c")
    assert (cohort.labels, cohort.codes(pq.read_table(tmp_path / "rows.parquet")["c"]).tolist()) == (labels, codes)


def test_a_folders_key_is_a_cohort_and_lists_are_none(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"d/day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"c": [[1], [2]]}), tmp_path / f"d/day={day}/a.parquet")
    (cohort,) = decided(tmp_path / "d", "day")
    assert cohort.groups == ("1", "2")
    with pytest.raises(InputError, match="no groups"):
        decided(tmp_path / "d", "c")


def test_a_name_with_a_colon_is_a_column_where_there_is_one() -> None:
    assert Asked.parse("a:1,2", ["a:1,2"]).column == "a:1,2"
    assert Asked.parse("a:b:1,2", ["a:b"]) == Asked("a:b:1,2", "a:b", (1.0, 2.0))
    assert Asked.parse("a@b@3", ["a@b"]).parts == 3


def test_a_surrogate_without_splits_has_cohorts_of_no_features(tmp_path: Path) -> None:
    import lightgbm

    frame = pd.DataFrame({"x": np.arange(100.0), "group": ["a", "b"] * 50})
    data = lightgbm.Dataset(frame[["x"]], frame.x)
    model = lightgbm.train({"objective": "regression", "verbosity": -1, "min_data_in_leaf": 1_000}, data, 2)
    model.save_model(tmp_path / "model.txt")
    frame.to_parquet(tmp_path / "rows.parquet")
    options = {"input": tmp_path / "rows.parquet", "explainer": tmp_path / "model.txt", "scheduler": "sync"}
    run = bx.explain_dataset(**options, output=tmp_path / "out", cohort="group")
    assert run.cohorts().empty and run.summary("engineered").mean_abs.tolist() == [0.0]
    assert run.info["summaries"]["cohorts"][0]["groups"][:2] == ["a", "b"]
    assert bx.verify_run(tmp_path / "out").ok
