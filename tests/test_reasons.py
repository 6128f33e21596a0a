"""Reasons: what pandas picks from the run's own wide tables, row by row, ties included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.engine.largest import largest
from batch_explain.errors import OptionError
from tests import test_bad_input
from tests.comparing import digests, frame_of
from tests.conftest import Engineered, Small, once
from tests.test_restart import stop_after
from tests.test_verify import forge, rewrite

made = test_bad_input.made  # the fixture: a model of three classes and its surrogate

CODES = """feature,direction,code,text
duration,positive,R01,"Long calls, many of them"
duration,negative,R02,Short calls
money,,R03,Funds
"""
GROUPS = "feature,group\nbalance,money\nhousing,money\nloan,money\n"


def run_made(made: Path, rows: Path, output: Path, **options: Any) -> bx.Run:
    """A model of two classes, in partitions of several batches."""
    return bx.explain_dataset(
        **{
            "input": rows,
            "model": made / "model.pkl",
            "explainer": made / "surrogate.txt",
            "output": output,
            "scheduler": "sync",
            "id_columns": "customer",
            "partition_rows": 80,
            "batch_rows": 30,
            "outputs": "predictions,engineered,raw,reasons",
            **options,
        }
    )


def write_rows(path: Path, count: int = 200) -> Path:
    pq.write_table(test_bad_input.rows(count, seed=3), path)
    return path


def picked(
    run: bx.Run,
    *,
    level: str = "raw",
    top_k: int = 5,
    which: str = "by-magnitude",
    predicted: bool = False,
    groups: dict[str, str] | None = None,
    excluded: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Reasons by Python's own sort, of each row of the wide tables."""
    features, groups = run.info["features"][level], groups or {}
    names = [name for name in dict.fromkeys(groups.get(each, each) for each in features) if name not in excluded]
    tables = {label: frame_of(run, level, label)[features].to_dict("records") for label in run.outputs or [None]}
    classes = frame_of(run, "predictions").prediction.tolist() if predicted else None
    lines = []
    for row in range(len(next(iter(tables.values())))):
        for label, table in tables.items():
            sign, said = 1.0, label
            if classes is not None and label is None:
                sign, said = (-1.0 if classes[row] == run.info["classes"][0] else 1.0), str(classes[row])
            elif classes is not None and str(classes[row]) != label:
                continue
            values = table[row]
            sums = dict.fromkeys(names, 0.0)
            for feature in features:
                if (name := groups.get(feature, feature)) in sums:
                    sums[name] += sign * values[feature]
            size: Callable[[float], float] = {
                "by-magnitude": abs, "positive": lambda value: value, "negative": lambda value: -value,
            }[which]  # fmt: skip
            found = sorted((name for name in names if size(sums[name]) > 0), key=lambda name: -size(sums[name]))
            lines += [(row, said, rank, name, sums[name]) for rank, name in enumerate(found[:top_k], 1)]
    return pd.DataFrame(lines, columns=["row", "output", "rank", "feature", "importance"])


def assert_picked(run: bx.Run, expected: pd.DataFrame) -> pd.DataFrame:
    """The reasons are these; they are returned."""
    found = frame_of(run, "reasons")
    ids = run.info["ids"]
    keys = frame_of(run, next(level for level in ("raw", "engineered") if level in run.info["tables"]),
                    run.outputs[0] if run.outputs else None)[ids]  # fmt: skip
    pd.testing.assert_frame_equal(found[ids], keys.iloc[expected.row].reset_index(drop=True))
    for name in ("output", "rank", "feature"):
        assert found[name].astype(object).where(found[name].notna(), None).tolist() == expected[name].tolist(), name
    np.testing.assert_array_equal(found.importance, expected.importance.astype(found.importance.dtype))
    verified = bx.verify_run(run.location.path, recompute="20%", seed=0)
    assert verified.ok, verified.problems
    assert verified.recomputed is not None and verified.recomputed.rows
    return found


@given(
    arrays(float, st.tuples(st.integers(1, 9), st.integers(0, 12)), elements=st.sampled_from([0, 1, 2, 3, np.nan])),
    st.integers(1, 10),
)
def test_largest_is_a_stable_sort(sizes: np.ndarray, k: int) -> None:
    expected = []
    for row in range(sizes.shape[1]):
        above = [feature for feature in range(len(sizes)) if sizes[feature, row] > 0]
        ordered = sorted(above, key=lambda feature: -sizes[feature, row])
        expected += [(row, rank, feature) for rank, feature in enumerate(ordered[:k])]
    assert list(zip(*(each.tolist() for each in largest(sizes, k)), strict=True)) == expected


def test_by_magnitude_with_groups_codes_and_values(small: Small, tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text(CODES)
    (tmp_path / "groups.csv").write_text(GROUPS)
    run = bx.explain_dataset(
        input=small.write(tmp_path / "rows.parquet", small.frame[:300]), model=small.model, explainer=small.explainer,
        output=tmp_path / "out", scheduler="sync", id_columns="customer_id", partition_rows=200, batch_rows=150,
        outputs="raw,reasons", reason_codes=tmp_path / "codes.csv", missing_code="other",
        group_features=tmp_path / "groups.csv", exclude_features="age",
    )  # fmt: skip
    groups = dict.fromkeys(("balance", "housing", "loan"), "money")
    found = assert_picked(run, picked(run, groups=groups, excluded=("age",)))
    assert {"money", "duration"} <= set(found.feature) and "age" not in set(found.feature)

    codes = {("duration", True): ("R01", "Long calls, many of them"), ("duration", False): ("R02", "Short calls")}
    codes |= {("money", up): ("R03", "Funds") for up in (True, False)}
    expected = [
        codes.get((name, up), ("other", "other")) for name, up in zip(found.feature, found.importance > 0, strict=True)
    ]
    assert list(zip(found.code, found.text, strict=True)) == expected and len(set(expected)) == 4

    frame = small.frame.set_index("customer_id")
    for line in found.sample(300, random_state=0).itertuples():
        own = None if line.feature == "money" else frame.loc[line.customer_id, line.feature]
        if own is None or pd.isna(own):
            assert pd.isna(line.value)
        elif isinstance(own, pd.Timestamp):
            assert pd.Timestamp(line.value) == own
        else:
            assert line.value == own if isinstance(own, str) else float(line.value) == own
    assert run.info["reasons"]["groups"] == ["money"] and run.info["reasons"]["excluded"] == ["age"]
    assert set(run.info["reasons"]["sha256"]) == {"table of reason codes", "table of feature groups"}
    assert any("have the code 'other'" in decision for decision in run.info["decisions"])


@pytest.mark.parametrize("which", ["positive", "negative"])
def test_one_sign_for_the_predicted_class_of_two(made: Path, tmp_path: Path, which: str) -> None:
    """The single output pushes toward the second class: for rows of the first, its sign is the other one."""
    rows = write_rows(tmp_path / "rows.parquet")
    options = {"reasons": which, "reasons_for": "predicted", "reasons_level": "engineered", "top_k": 4}
    run = run_made(made, rows, tmp_path / "out", **options)
    found = assert_picked(run, picked(run, level="engineered", top_k=4, which=which, predicted=True))
    assert set(found.output) == {"False", "True"}
    assert (found.importance > 0).all() if which == "positive" else (found.importance < 0).all()
    assert found.groupby("customer").size().nunique() > 1  # fewer lines than top_k
    assert found.value.dtype == np.float64 and found.value.notna().all()


@pytest.mark.parametrize("predicted", [False, True])
def test_several_outputs(made: Path, tmp_path: Path, predicted: bool) -> None:
    rows = write_rows(tmp_path / "rows.parquet")
    run = run_made(
        made, rows, tmp_path / "out", model=made / "three_classes.pkl", explainer=made / "multiclass.txt",
        id_columns=(), reasons_for="predicted" if predicted else "all", exclude_features="city", top_k=2,
        no_row_values=not predicted,
    )  # fmt: skip
    found = assert_picked(run, picked(run, top_k=2, predicted=predicted, excluded=("city",)))
    assert set(found.output) == {"0", "1", "2"} and set(found.feature) == {"age", "balance"}
    assert list(found)[-1] == ("value" if predicted else "importance")
    if predicted:
        frame = pd.read_parquet(rows)
        assert [frame.loc[line.source_row, line.feature] for line in found.itertuples()] == found.value.tolist()


def test_exact_ties_zeros_and_more_reasons_than_features(engineered: Engineered, tmp_path: Path) -> None:
    """Raw features that share engineered ones have equal importances: they stand in the order of the features."""
    shares = [("twin_b", 0), ("twin_a", 0), ("twin_b", 1), ("twin_a", 1), ("other", 2), ("rest", 3), ("never", 11)]
    pairs = {
        "raw_feature": [name for name, _ in shares],
        "engineered_feature": [f"f{at}" for _, at in shares],
        "weight": [1.0] * len(shares),
    }
    pq.write_table(pa.table(pairs), tmp_path / "map.parquet")
    engineered.frame[:400].to_parquet(tmp_path / "rows.parquet", index=False)
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=engineered.explainer, feature_map=tmp_path / "map.parquet",
        output=tmp_path / "out", scheduler="sync", outputs="raw,reasons", dtype="float32", top_k=30, batch_rows=90,
    )  # fmt: skip
    found = frame_of(run, "reasons")
    assert found.importance.dtype == np.float32 and "value" not in found
    twins = found[found.feature.isin(["twin_a", "twin_b"])]
    assert twins.feature.tolist() == ["twin_b", "twin_a"] * 400 and len(set(found.feature)) == 4
    assert_picked(run, picked(run, top_k=30))


@once
def test_reasons_alone_resumed_and_damaged(made: Path, tmp_path: Path) -> None:
    """No wide table; stopped and gone on with, the same bytes; what changed is named; a changed value is found."""
    rows, groups = write_rows(tmp_path / "rows.parquet"), tmp_path / "groups.csv"
    groups.write_text("group,feature\nplace,city_Oslo\nplace,city_Bergen\n")
    options = {"outputs": "reasons", "group_features": groups, "reasons_level": "engineered"}
    whole = run_made(made, rows, tmp_path / "whole", **options)
    assert whole.info["tables"] == {"reasons": ["reasons"]}
    assert not (tmp_path / "whole/raw").exists() and len(whole.summary("raw"))
    with pytest.raises(KeyboardInterrupt):
        run_made(made, rows, tmp_path / "out", observers=[stop_after(1)], **options)
    assert bx.verify_run(tmp_path / "out").problems == ()
    right = groups.read_text()
    groups.write_text(right.replace("Bergen", "Tromso"))
    with pytest.raises(OptionError, match="table of feature groups is another file"):
        run_made(made, rows, tmp_path / "out", resume=True, **options)
    with pytest.raises(OptionError, match="--top-k was 5 and is 4"):
        run_made(made, rows, tmp_path / "out", resume=True, top_k=4, **options)
    groups.write_text(right)
    run_made(made, rows, tmp_path / "out", resume=True, **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def worse(table: pa.Table) -> pa.Table:
        values = table["importance"].to_numpy().copy()
        values[::5] *= 1 + 1e-6
        at = table.column_names.index("importance")
        return table.set_column(at, table.schema.field(at), pa.array(values))

    rewrite(tmp_path / "out/reasons/part-00001.parquet", worse)
    (problem,) = bx.verify_run(tmp_path / "out").problems
    assert problem.file == "reasons/part-00001.parquet"
    forge(tmp_path / "out")
    assert bx.verify_run(tmp_path / "out").ok
    (problem,) = bx.verify_run(tmp_path / "out", recompute=50, seed=0).problems
    assert problem.file == "reasons/part-00001.parquet" and "importance of rank 1" in problem.wrong

    rewrite(tmp_path / "out/reasons/part-00000.parquet", lambda table: table.slice(0, table.num_rows - 1))
    forge(tmp_path / "out")
    assert any("rows instead of" in problem.wrong for problem in bx.verify_run(tmp_path / "out").problems)
    run_made(made, rows, tmp_path / "out", overwrite=True, **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@once
def test_quarantine_repeated_ids_and_no_rows(made: Path, tmp_path: Path) -> None:
    table = test_bad_input.rows(200, seed=3)
    table = table.set_column(0, "customer", pa.array([row // 3 for row in range(200)]))
    bad = {5, *range(150, 160)}
    ages = ["unknown" if row in bad else str(age) for row, age in enumerate(table["age"].to_pylist())]
    pq.write_table(table.set_column(1, "age", pa.array(ages)), tmp_path / "rows.parquet")
    run = run_made(made, tmp_path / "rows.parquet", tmp_path / "out", max_bad_rows=20, batch_rows=10)
    assert run.info["rows"]["quarantined"] == len(bad)
    assert_picked(run, picked(run))

    rows = write_rows(tmp_path / "none.parquet", 0)
    empty = run_made(made, rows, tmp_path / "empty", outputs="reasons")
    assert len(frame_of(empty, "reasons")) == 0 and bx.verify_run(tmp_path / "empty", recompute=5).ok


@once
def test_on_the_command_line(made: Path, tmp_path: Path) -> None:
    """The options of a TOML file; the short table at the end needs no wide table."""
    config = tmp_path / "run.toml"
    config.write_text("outputs = ['reasons']\nreasons = 'positive'\nexclude-features = ['city']\ntop-k = 9\n")
    options = {"input": write_rows(tmp_path / "rows.parquet"), "model": made / "model.pkl", "config": config,
               "explainer": made / "surrogate.txt", "output": tmp_path / "out", "scheduler": "sync",
               "top-k": 1}  # fmt: skip
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    answered = CliRunner().invoke(cli, ["run", *arguments])
    assert answered.exit_code == 0, answered.output
    assert "top raw features" in answered.output
    found = frame_of(bx.open_run(tmp_path / "out"), "reasons")
    assert found["rank"].max() == 1 and (found.importance > 0).all() and set(found.feature) == {"age", "balance"}
    assert bx.run_status(tmp_path / "out").state == "finished"


@pytest.mark.automl
def test_automl_reasons_are_the_sdks(
    automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    """For the predicted class of several, on sparse rows, the SDK's own importances in their order."""
    paths, expected = automl("multiclass"), oracle("multiclass")
    for level, values, names in (
        ("raw", expected.raw, expected.raw_features),
        ("engineered", expected.engineered, expected.engineered_features),
    ):
        run = bx.explain_dataset(
            input=paths.raw, model=paths.model, explainer=paths.explainer, output=tmp_path / level, scheduler="sync",
            outputs="reasons", reasons_for="predicted", reasons_level=level, top_k=3, partition_rows=300,
        )  # fmt: skip
        found = frame_of(run, "reasons")
        output = {str(label): at for at, label in enumerate(expected.classes)}
        place = {name: at for at, name in enumerate(names)}
        assert (found.output.astype(str).to_numpy() == expected.prediction.astype(str)[found.source_row]).all()
        chosen = [output[label] for label in found.output]
        theirs = values[chosen, found.source_row, [place[name] for name in found.feature]]
        np.testing.assert_allclose(found.importance, theirs, rtol=0, atol=1e-9)
        sizes = -np.sort(-np.abs(values[chosen, found.source_row]), axis=1)
        np.testing.assert_allclose(
            np.abs(found.importance), sizes[np.arange(len(found)), found["rank"] - 1], rtol=0, atol=1e-9
        )
        assert found.groupby("source_row").size().max() == 3
        verified = bx.verify_run(tmp_path / level, recompute=30)
        assert verified.ok, verified.problems
