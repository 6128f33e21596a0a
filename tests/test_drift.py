"""Drift: what runs keep equals counts over the full tables, and what is compared equals a computation from the rows."""

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batch_explain as bx
from batch_explain.drift import ndcg
from batch_explain.errors import DriftError, OptionError
from tests.comparing import frame_of
from tests.conftest import HAS_AUTOML, Engineered, Small, once

EMPTY = 1e-4


def places_of(values: np.ndarray) -> np.ndarray:
    """The bucket of each number, from its mantissa and exponent."""
    mantissa, exponent = np.frexp(np.abs(values))
    key = (exponent - 1 + 40) * 64 + np.floor((2 * mantissa - 1) * 64).astype(int)
    return np.where(np.abs(values) < 2.0**-40, 0, np.sign(values).astype(int) * (key + 1))


def counts_of(values: pd.Series) -> dict[Any, int]:
    """Bucket -> count, and None -> missing ones."""
    known = values.dropna().to_numpy(dtype=float)
    found = dict(zip(*np.unique(places_of(known), return_counts=True), strict=True))
    return {**found, **({None: int(values.isna().sum())} if values.isna().any() else {})}


def kept(sketches: pd.DataFrame, kind: str, feature: str, **of: Any) -> dict[Any, int]:
    here = sketches[(sketches.kind == kind) & (sketches.feature == feature)]
    for name, value in of.items():
        here = here[here[name] == value]
    keys = [
        {"log": bucket, "week": bucket, "category": category, "other": "<other>", "missing": None}[bin]
        for bin, bucket, category in zip(here.bin, here.bucket, here.category, strict=True)
    ]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, here["count"], strict=True))


def shares_of(baseline: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares in the baseline's deciles and beyond its ends, from the numbers themselves."""
    b, r = places_of(baseline), places_of(run)
    deciles = np.quantile(b, np.arange(1, 10) / 10, method="inverted_cdf")
    edges = sorted({*deciles[deciles < b.max()], b.max(), b.min() - 1})
    cut = [-np.inf, *(edge + 0.5 for edge in edges), np.inf]
    return tuple(np.histogram(side, cut)[0] / len(side) for side in (b, r))  # type: ignore[return-value]


def psi_and_js(b: np.ndarray, r: np.ndarray) -> tuple[float, float]:
    some = b + r > 0
    b, r = b[some], r[some]

    def entropy(p: np.ndarray) -> float:
        return -sum(x * np.log2(x) for x in p if x > 0)

    js = np.sqrt(max(0.0, entropy((b + r) / 2) - (entropy(b) + entropy(r)) / 2))
    b, r = np.where(b > 0, b, EMPTY), np.where(r > 0, r, EMPTY)
    return sum((y - x) * np.log(y / x) for x, y in zip(b, r, strict=True)), js


def explain(source: Small | Engineered, frame: pd.DataFrame, output: Path, **options: Any) -> bx.Run:
    path = output.parent / f"{output.name}.parquet"
    frame.to_parquet(path, index=False)
    model = {"model": source.model} if isinstance(source, Small) else {}
    given = {"scheduler": "sync", "partition_rows": 300, "sample_rows": 0, **model, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories")
        return bx.explain_dataset(input=path, explainer=source.explainer, output=output, **given)


@pytest.fixture(scope="module")
def raw_rows(small: Small) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows, and others in which the balance has doubled and a third of the jobs are new."""
    before, after = (small.frame[start : start + 900].reset_index(drop=True) for start in (0, 900))
    after = after.assign(balance=after.balance * 2, job=after.job.where(after.index % 3 > 0, "astronaut"))
    before.loc[::50, "job"] = None
    return before, after


@pytest.fixture(scope="module")
def raw_runs(
    small: Small, raw_rows: tuple[pd.DataFrame, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> tuple[bx.Run, bx.Run]:
    folder = tmp_path_factory.mktemp("raw")
    return explain(small, raw_rows[0], folder / "before"), explain(small, raw_rows[1], folder / "after")


def shifted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(f0=frame.f0 + 0.5)


@pytest.fixture(scope="module")
def halves(engineered: Engineered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bx.Run]:
    """Two halves of the same rows, and the second one with f0 moved by half its standard deviation."""
    folder = tmp_path_factory.mktemp("halves")
    first, second = engineered.frame[:1499], engineered.frame[1499:2998]
    rows = {"first": first, "second": second, "moved": shifted(second)}
    return {name: explain(engineered, frame, folder / name) for name, frame in rows.items()}


def test_sketches_are_counts_of_all_rows(
    raw_runs: tuple[bx.Run, bx.Run], raw_rows: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    for run, rows in zip(raw_runs, raw_rows, strict=True):
        found, predictions = run.sketches(), frame_of(run, "predictions")
        assert rows.balance.isna().any()
        for name in ("age", "balance", "duration", "pdays"):
            assert kept(found, "value", name, level="raw") == counts_of(rows[name])
        for name in ("job", "marital", "contact"):
            expected = rows[name].value_counts().to_dict()
            if rows[name].isna().any():
                expected[None] = int(rows[name].isna().sum())
            assert kept(found, "value", name) == expected
        weeks = (rows.last_contact - pd.Timestamp("1970-01-01")) // pd.Timedelta(days=7)
        assert kept(found, "value", "last_contact") == weeks.value_counts().to_dict()
        classes = predictions.prediction.astype(str).value_counts().to_dict()
        assert len(classes) == 2 and kept(found, "prediction", "class") == classes
        for label in classes:
            expected = counts_of(predictions[f"probability_{label}"])
            assert kept(found, "prediction", "probability", output=label) == expected
        for level in ("engineered", "raw"):
            table = frame_of(run, level).drop(columns=["source_file", "source_row"])
            for name in table.columns.difference(run.info["features"]["identically_zero"]):
                assert kept(found, "importance", name, level=level) == counts_of(table[name])


@once
def test_sketches_do_not_depend_on_partitions(
    small: Small, raw_rows: tuple[pd.DataFrame, pd.DataFrame], raw_runs: tuple[bx.Run, bx.Run], tmp_path: Path
) -> None:
    expected = (Path(raw_runs[0].location.path) / "summary/sketches.parquet").read_bytes()
    for rows, partitions in ((1000, 1), (140, 7)):
        run = explain(small, raw_rows[0], tmp_path / str(partitions), partition_rows=rows)
        assert run.info["partitions"] == partitions
        assert (tmp_path / str(partitions) / "summary/sketches.parquet").read_bytes() == expected


@once
def test_rows_values_are_kept_only_where_they_may_be(small: Small, tmp_path: Path) -> None:
    """Of categories the 50 most frequent, of --no-row-values none; numbers are buckets, not values."""
    jobs = [f"job {n:03}" for n in range(60) for _ in range(2 + (n < 50))] + ["x" * 101] * 5 + ["once"]
    frame = small.frame[: len(jobs)].assign(job=jobs)
    found = explain(small, frame, tmp_path / "all").sketches()
    assert kept(found, "value", "job") == {f"job {n:03}": 3 for n in range(50)} | {"<other>": 26}
    run = explain(small, frame, tmp_path / "none", no_row_values=True)
    found = run.sketches()
    assert set(found[found.kind == "value"].bin) <= {"log", "week", "missing"}
    assert kept(found, "value", "age") == counts_of(frame.age)
    assert any("--no-row-values" in decision for decision in run.info["decisions"])


@once
def test_a_shift_of_known_size(engineered: Engineered, halves: dict[str, bx.Run]) -> None:
    comparison = bx.compare_runs(halves["moved"], halves["first"])
    frame = comparison.frame().set_index("feature")
    first, moved = engineered.frame[:1499], shifted(engineered.frame[1499:2998])
    tables = {name: frame_of(halves[name], "engineered") for name in ("first", "moved")}
    unused = halves["first"].info["features"]["identically_zero"]
    assert "f11" in unused and len(unused) <= 4
    # the input need not hold them
    assert frame.psi_value[unused].isna().all() and (frame.psi_importance[unused] == 0).all()
    for name in [name for name in frame.index if name not in (*unused, "f2")]:
        expected = psi_and_js(*shares_of(first[name].to_numpy(), moved[name].to_numpy()))
        np.testing.assert_allclose(frame.loc[name, ["psi_value", "js_value"]].astype(float), expected, atol=1e-12)
        expected = psi_and_js(*shares_of(tables["first"][name].to_numpy(), tables["moved"][name].to_numpy()))
        found = frame.loc[name, ["psi_importance", "js_importance"]].astype(float)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    # normal distributions that are d apart have a divergence of d²
    assert 0.15 < frame.psi_value["f0"] < 0.35
    assert (frame.psi_value.drop(["f0", *unused]) < 0.06).all()
    (margin,) = comparison.predictions
    trees = engineered.booster.predict(first), engineered.booster.predict(moved)
    np.testing.assert_allclose((margin["psi"], margin["js"]), psi_and_js(*shares_of(*trees)), atol=1e-12)
    still = bx.compare_runs(halves["second"], halves["first"])
    assert (still.frame().psi_value.dropna() < 0.06).all() and still.predictions[0]["psi"] < 0.06
    assert still.drift < comparison.drift
    means = {name: tables[name].filter(regex=r"^f\d").abs().mean() for name in tables}
    for side, of in (("", "moved"), ("_baseline", "first")):
        share = means[of] / means[of].sum()
        np.testing.assert_allclose(frame[f"share{side}"], share[frame.index], rtol=1e-9)
        ranks = share.rank(ascending=False, method="first")
        assert (frame[f"rank{side}"] == ranks[frame.index]).all()


def test_categories_classes_and_fidelity(
    raw_runs: tuple[bx.Run, bx.Run], raw_rows: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    comparison = bx.compare_runs(raw_runs[1], raw_runs[0])
    frame = comparison.frame().set_index("feature")
    jobs = [rows.job.fillna("<none>").value_counts(normalize=True) for rows in raw_rows]
    labels = sorted({*jobs[0].index, *jobs[1].index})
    assert "astronaut" not in jobs[0] and "astronaut" in jobs[1]
    expected = psi_and_js(*(side.reindex(labels, fill_value=0.0).to_numpy() for side in jobs))
    np.testing.assert_allclose(frame.loc["job", ["psi_value", "js_value"]].astype(float), expected, atol=1e-12)
    assert frame.psi_value["balance"] > 0.1 > frame.psi_value["age"]
    classes = next(each for each in comparison.predictions if each["of"] == "class")
    for run, name in ((raw_runs[1], "shares"), (raw_runs[0], "shares_baseline")):
        expected = frame_of(run, "predictions").prediction.astype(str).value_counts(normalize=True).to_dict()
        assert classes[name] == pytest.approx(expected, abs=1e-15)
    now, before = (run.info["fidelity"] for run in (raw_runs[1], raw_runs[0]))
    assert comparison.fidelity == {
        name: {"run": now[name], "baseline": before[name], "change": now[name] - before[name]}
        for name in ("agreement", "log_loss")
    }
    json.dumps(comparison.to_json(), allow_nan=False)


def test_a_run_is_where_it_is(raw_runs: tuple[bx.Run, bx.Run]) -> None:
    for level in ("raw", "engineered"):
        comparison = bx.compare_runs(raw_runs[0].location.path, raw_runs[0], level=level)
        frame = comparison.frame()
        assert comparison.drift == 0 and set(comparison.ndcg.values()) == {1.0}
        shifts = frame[["psi_importance", "js_importance", *(["psi_value", "js_value"] if level == "raw" else [])]]
        assert (shifts == 0).all(axis=None) and len(frame) > 10
        assert (frame["rank"] == frame.rank_baseline).all() and (frame.share == frame.share_baseline).all()
        assert [(each["psi"], each["js"]) for each in comparison.predictions] == [(0, 0)] * 3


def test_ndcg_of_the_published_example() -> None:
    """Amazon's documentation: SAT score, GPA and class rank, in training and in live data."""
    expected = (0.05 + 0.5 / np.log2(3) + 0.7 / 2) / (0.7 + 0.5 / np.log2(3) + 0.05 / 2)
    assert ndcg([0.70, 0.50, 0.05], [0.10, 0.20, 0.70]) == pytest.approx(expected, abs=1e-15)
    assert ndcg([0.0, 0.0], [0.0, 0.0]) == 1 and ndcg([0.0, 0.0], [1.0, 0.0]) == 0 and ndcg([2.0], [1.0]) == 1


_small = st.integers(0, 3).map(float)


@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(st.tuples(_small, _small), min_size=2, max_size=6))
def test_ndcg_is_the_mean_over_all_orders(pairs: list[tuple[float, float]]) -> None:
    baseline, run = zip(*pairs, strict=True)

    def gain(order: Any) -> float:
        return sum(baseline[f] / np.log2(i + 2) for i, f in enumerate(order))

    orders = list(itertools.permutations(range(len(pairs))))
    ideal = max(map(gain, orders))
    possible = [order for order in orders if all(run[a] >= run[b] for a, b in itertools.pairwise(order))]
    expected = sum(map(gain, possible)) / len(possible) / ideal if ideal else float(not any(run))
    if baseline == run:
        expected = 1.0
    assert ndcg(baseline, run) == pytest.approx(expected, abs=1e-12)


@once
def test_features_that_swapped_their_roles(engineered: Engineered, halves: dict[str, bx.Run], tmp_path: Path) -> None:
    """The names of the two foremost features swapped, in the trees and in the rows; one is new, one is gone."""
    names = {"f0": "f3", "f3": "f0", "f5": "new"}
    text = engineered.explainer.read_text()
    before = "feature_names=" + " ".join(f"f{i}" for i in range(12))
    assert before in text
    after = "feature_names=" + " ".join(names.get(f"f{i}", f"f{i}") for i in range(12))
    (tmp_path / "swapped.txt").write_text(text.replace(before, after))
    swapped = Engineered(tmp_path / "swapped.txt", engineered.frame, None)
    run = explain(swapped, engineered.frame[:1499].rename(columns=names), tmp_path / "run")
    comparison = bx.compare_runs(run, halves["first"])
    a = halves["first"].summary("engineered").set_index("feature").mean_abs
    order = [names.get(name, name) for name in a[a > 0].sort_values(ascending=False).index]
    gain = sum(a.get(name, 0.0) / np.log2(i + 2) for i, name in enumerate(order))
    last = np.arange(len(order), len(a) + 1)  # places that all share whose importance is 0, f5 among them
    gain += a["f5"] * np.mean(1 / np.log2(last + 2))
    ideal = sum(value / np.log2(i + 2) for i, value in enumerate(a.sort_values(ascending=False)))
    assert comparison.ndcg == {None: pytest.approx(gain / ideal, abs=1e-12)} and comparison.drift > 0.01
    only = comparison.only()
    assert only["run"]["features"] == ["new"] and only["baseline"]["features"] == ["f5"]
    frame = comparison.frame().set_index("feature")
    assert np.isnan(frame.loc["new", "rank_baseline"]) and frame.loc["new", "share_baseline"] == 0
    written = {each["feature"]: each for each in comparison.to_json()["features"]}
    assert written["new"]["rank_baseline"] is None and written["new"]["psi_importance"] is None
    assert written["f5"]["rank"] is None and written["f5"]["rank_baseline"] == frame.loc["f5", "rank_baseline"]
    assert np.isnan(frame.loc["f5", "rank"]) and frame.loc["f5", "share"] == 0 < frame.loc["f5", "share_baseline"]


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "batch_explain", *map(str, arguments)], capture_output=True, text=True)


@once
def test_a_run_that_drifted_is_complete_and_exits_4(
    engineered: Engineered, halves: dict[str, bx.Run], tmp_path: Path
) -> None:
    baseline, output = Path(halves["first"].location.path), tmp_path / "out"
    options: dict[str, Any] = {"input": baseline.parent / "moved.parquet", "explainer": engineered.explainer}
    options |= {"output": output, "baseline": baseline, "partition_rows": 300, "sample_rows": 0, "scheduler": "sync"}
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    done = command("run", *given, "--max-drift", "0.0001")
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr and "--max-drift" in done.stderr.splitlines()[-1]
    assert "drift (1 - nDCG)" in done.stdout
    run = bx.open_run(output)
    assert bx.verify_run(output).ok
    content = json.loads((output / "summary/drift.json").read_bytes())
    expected = bx.compare_runs(halves["moved"], baseline, max_drift=0.0001)
    assert run.info["drift"] == expected.headline() and run.info["drift"]["above_limit"]
    assert content == json.loads(json.dumps(expected.to_json()))
    again = {**options, "resume": True}
    assert bx.explain_dataset(**again).info == run.info  # the limit may change
    assert bx.explain_dataset(**again, max_drift=0.9).info == run.info
    with pytest.raises(DriftError, match="complete"):
        bx.explain_dataset(**again, max_drift=0.0001)
    with pytest.raises(OptionError, match="finished, and was compared with"):
        bx.explain_dataset(**{**again, "baseline": halves["second"].location.path})
    # closed again, with nothing to compare with: no comparison is left
    (output / "_SUCCESS").unlink()
    assert bx.explain_dataset(**{**again, "baseline": None}).info["drift"] is None
    assert not (output / "summary/drift.json").exists() and bx.verify_run(output).ok

    done = command("compare", output, baseline, "--max-drift", "0.0001", "--json", "--output", tmp_path / "c.json")
    assert done.returncode == 4 and json.loads(done.stdout) == json.loads((tmp_path / "c.json").read_bytes()) == content


@once
def test_what_is_no_baseline_starts_nothing(
    engineered: Engineered, halves: dict[str, bx.Run], raw_runs: tuple[bx.Run, bx.Run], tmp_path: Path
) -> None:
    first = Path(halves["first"].location.path)
    unfinished = shutil.copytree(first, tmp_path / "unfinished")
    (unfinished / "_SUCCESS").unlink()
    explanation = tmp_path / "explanation"
    explanation.mkdir()
    (explanation / "explanation_metadata.json").write_text("{}")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"baseline": tmp_path / "nothing"}, "no run in"),
        ({"baseline": unfinished}, "an unfinished run in"),
        ({"baseline": raw_runs[0].location.path}, "no feature in common"),
        ({"baseline": first, "output": first / "in"}, "lies in the output"),
        ({"baseline": first, "output": first, "overwrite": True}, "lies in the output"),
        ({"baseline": explanation}, "cannot be used: it has no 'model_type'"),
        ({"max_drift": 0.1}, "Pass --baseline too"),
        ({"baseline": first, "max_drift": "-1"}, "from 0 to 1"),
    ]
    for options, message in cases:
        given = {"output": tmp_path / "out", "scheduler": "sync", "input": first.parent / "moved.parquet", **options}
        with pytest.raises(OptionError, match=message):
            bx.explain_dataset(explainer=engineered.explainer, **given)
        assert not (tmp_path / "out").exists() and not (first / "in").exists() and (first / "_SUCCESS").exists()
    with pytest.raises(OptionError, match="no raw feature"):
        bx.compare_runs(halves["moved"], first, level="raw")


@once
def test_verify_notices_an_edited_sketch(halves: dict[str, bx.Run], tmp_path: Path) -> None:
    """Even where whoever edits it also mends its checksum: it must be what the partitions' own add up to."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from batch_explain.storage.atomic import json_bytes

    run = shutil.copytree(halves["first"].location.path, tmp_path / "run")
    path = run / "summary/sketches.parquet"
    table = pq.read_table(path)
    counts = table["count"].to_numpy().copy()
    counts[0] += 1
    pq.write_table(table.set_column(table.num_columns - 1, "count", pa.array(counts)), path, compression="zstd")
    assert [problem.file for problem in bx.verify_run(run).problems] == ["summary/sketches.parquet"]
    info = json.loads((run / "run.json").read_bytes())
    (entry,) = (entry for entry in info["files"] if entry["path"] == "summary/sketches.parquet")
    entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (run / "run.json").write_bytes(json_bytes(info))
    digest = hashlib.sha256((run / "run.json").read_bytes()).hexdigest()
    (run / "_SUCCESS").write_bytes(json_bytes({"run.json": digest}))
    (problem,) = bx.verify_run(run).problems
    assert problem.file == "summary/sketches.parquet" and "add up to" in problem.wrong


@pytest.mark.automl
@pytest.mark.skipif(not HAS_AUTOML, reason="needs interpret-community")
def test_an_explanation_of_interpret_community_is_a_baseline(tmp_path: Path) -> None:
    """Per class for a model of three classes; rankings and shares, nothing else."""
    import lightgbm
    from interpret_community.explanation.explanation import save_explanation
    from interpret_community.mimic.mimic_explainer import MimicExplainer
    from interpret_community.mimic.models.lightgbm_model import LGBMExplainableModel

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(600, 5)), columns=list("abcde"))
    classes = pd.cut(frame @ [1.0, 0.9, 0.8, 0.7, 0.6], [-np.inf, -0.6, 0.6, np.inf], labels=False)
    model = lightgbm.LGBMClassifier(n_estimators=8, num_leaves=7, n_jobs=1, verbosity=-1).fit(frame, classes)
    explainer = MimicExplainer(model, frame, LGBMExplainableModel, features=list(frame), classes=["0", "1", "2"])
    explanation = explainer.explain_global(frame[:300], include_local=False)
    save_explanation(explanation, str(tmp_path / "explanation"))
    model.booster_.save_model(tmp_path / "surrogate.txt")
    source = Engineered(tmp_path / "surrogate.txt", frame, model.booster_)
    run = explain(source, frame[300:].reset_index(drop=True), tmp_path / "out", baseline=tmp_path / "explanation")
    summary = run.summary("engineered").set_index(["output", "feature"]).mean_abs
    found = {each["output"]: each["ndcg"] for each in run.info["drift"]["ndcg"]}
    assert set(found) == {"0", "1", "2"}
    comparison = bx.compare_runs(run, tmp_path / "explanation")
    frame = comparison.frame().set_index(["output", "feature"])
    for label, values in zip("012", explanation.per_class_values, strict=True):
        before = pd.Series(values, index=list("abcde"))
        order = summary[label].sort_values(ascending=False).index
        assert summary[label].min() > 0 and summary[label].is_unique
        gain, ideal = (
            sum(before[name] / np.log2(i + 2) for i, name in enumerate(names))
            for names in (order, before.sort_values(ascending=False).index)
        )
        assert found[label] == pytest.approx(gain / ideal, abs=1e-9)
        np.testing.assert_allclose(frame.share_baseline[label][before.index], before / before.sum(), rtol=1e-9)
    assert comparison.predictions == () and comparison.fidelity is None and frame.psi_importance.isna().all()
