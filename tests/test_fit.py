"""Explainers made of fitted models: the SDK's own, our surrogates of its kind, faithful ones, and the model itself."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVR

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import BatchExplainError
from tests.comparing import assert_close, values_of
from tests.conftest import ROOT, once

ROWS = 1_500
NUMBERS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    found = pd.DataFrame(rng.normal(size=(ROWS, 4)), columns=NUMBERS)
    found["kind"] = rng.choice(["u", "v", "w"], ROWS)
    signal = 2 * found.a - found.b + (found.kind == "u") * 1.5 + rng.normal(size=ROWS) * 0.3
    found["amount"] = signal
    found["sort"] = pd.cut(signal, [-np.inf, -1, 1, np.inf], labels=["low", "mid", "top"]).astype(str)
    found["bought"] = np.where(signal > 0, "yes", "no")
    return found


class Job:
    """A pipeline, its files, and the rows that it was trained on."""

    def __init__(self, folder: Path, frame: pd.DataFrame, label: str, learner: Any) -> None:
        self.folder, self.label = folder, label
        columns = make_column_transformer((OneHotEncoder(), ["kind"]), (StandardScaler(), NUMBERS))
        features = frame[[*NUMBERS, "kind"]]
        self.model = make_pipeline(columns, learner).fit(features, frame[label])
        joblib.dump(self.model, folder / "model.pkl")
        features.assign(**{label: frame[label]}).to_parquet(folder / "train.parquet", index=False)

    def fit(self, output: str, **options: Any) -> Any:
        return bx.fit(
            model=self.folder / "model.pkl", train=self.folder / "train.parquet", label=self.label,
            output=self.folder / output, **options,
        )  # fmt: skip


def held_out(fitted: Any) -> pd.DataFrame:
    return pd.read_parquet(Path(fitted.location.path) / "held_out.parquet")


@once
@pytest.mark.parametrize(
    ("label", "learner"),
    [("sort", LogisticRegression(max_iter=500)), ("bought", LogisticRegression()), ("amount", SVR())],
)
def test_surrogates_of_scikit_learn_pipelines(label: str, learner: Any, frame: pd.DataFrame, tmp_path: Path) -> None:
    """Fidelity is what scikit-learn computes on rows that were held out; a faithful one sees the model's confidence."""
    job = Job(tmp_path, frame, label, learner)
    small = {"num_leaves": 7, "learning_rate": 0.2}
    like_the_sdk = job.fit("sdk")
    faithful = job.fit("faithful", surrogate="faithful", surrogate_args=small)
    scores = []
    for fitted in (like_the_sdk, faithful):
        rows = held_out(fitted)
        assert len(rows) == ROWS // 5 and not rows.duplicated().any()
        assert len(fitted.explainer.used) > 2, "it splits"
        matrix = job.model[:-1].transform(rows[[*NUMBERS, "kind"]])
        margins = fitted.explainer.margins(np.asarray(matrix, dtype=np.float64)).T
        fidelity = fitted.held_out.info["fidelity"]
        if label == "amount":
            scores.append(-r2_score(job.model.predict(rows), margins[:, 0]))
            assert fidelity["r2"] == pytest.approx(-scores[-1], abs=1e-9)
            continue
        if margins.shape[1] == 1:
            margins = np.column_stack([np.zeros(len(margins)), margins[:, 0]])
        surrogate = np.exp(margins - margins.max(axis=1, keepdims=True))
        surrogate /= surrogate.sum(axis=1, keepdims=True)
        said = job.model.classes_[surrogate.argmax(axis=1)]
        assert fidelity["agreement"] == pytest.approx((said == job.model.predict(rows)).mean(), abs=1e-12)
        assert fidelity["agreement"] > 0.9
        teacher = job.model.predict_proba(rows)
        # the model's own probabilities as weights: what is left of the log-loss is the divergence
        every = np.tile(np.arange(teacher.shape[1]), len(teacher))
        stacked = np.repeat(surrogate, teacher.shape[1], axis=0)
        scores.append(log_loss(every, stacked, sample_weight=teacher.ravel(), labels=range(teacher.shape[1])))
        entropy = -(teacher * np.log(np.maximum(teacher, 1e-300))).sum(axis=1).mean()
        assert fidelity["divergence"] == pytest.approx(scores[-1] - entropy, abs=1e-6)
    if label == "sort":
        assert scores[1] < 0.9 * scores[0], "the surrogate on argmax labels does not see confidence"


@once
def test_what_a_fit_leaves_is_what_run_and_compare_take(frame: pd.DataFrame, tmp_path: Path) -> None:
    job = Job(tmp_path, frame, "bought", LogisticRegression())
    said = CliRunner().invoke(
        cli, ["fit", "--model", str(tmp_path / "model.pkl"), "--train", str(tmp_path / "train.parquet"), "--label",
              "bought", "--output", str(tmp_path / "fitted"), "--surrogate-arg", "num_leaves=15"],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "surrogate fidelity" in said.output and "accuracy" in said.output
    record = json.loads((tmp_path / "fitted/fit.json").read_text())
    rows = held_out(bx.open_fit(tmp_path / "fitted"))
    assert record["accuracy"]["accuracy"] == pytest.approx((job.model.predict(rows) == rows.bought).mean())
    assert record["rows"]["train"]["rows"] == ROWS and record["rows"]["held_out"]["rows"] == ROWS // 5
    run = bx.explain_dataset(
        input=tmp_path / "train.parquet", model=tmp_path / "model.pkl", explainer=tmp_path / "fitted",
        output=tmp_path / "out", baseline=tmp_path / "fitted/held_out", scheduler="sync",
    )  # fmt: skip
    assert run.info["drift"]["drift"] < 0.05 and {"a", "kind"} <= set(run.summary("raw").feature[:3])
    for level in ("raw", "engineered"):
        saved = bx.open_explanation(tmp_path / "fitted/explanations" / level)
        assert saved.level == level and saved.features
    assert bx.verify_run(tmp_path / "fitted/held_out").ok
    again = job.fit("again", surrogate_args={"num_leaves": 15})
    for name in ("bundle/surrogate.txt", "held_out.parquet"):
        assert (tmp_path / "fitted" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert again.info["fidelity"] == record["fidelity"]


@once
def test_more_rows_than_may_be_are_sampled_and_said(frame: pd.DataFrame, tmp_path: Path) -> None:
    job = Job(tmp_path, frame, "amount", SVR())
    fitted = job.fit("few", max_train_rows=200)
    assert fitted.info["rows"]["train"] == {
        "files": 1, "rows": ROWS, "fitted_on": 200, "sampled": True, "without_label": 0,
    }  # fmt: skip
    assert any("200 of 1,500 training rows, a sample" in each for each in fitted.info["decisions"])


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
@once
def test_a_killed_fit_is_no_fit_and_is_done_again(kills: int, frame: pd.DataFrame, tmp_path: Path) -> None:
    """``kill -9`` at instants spread over the writing: never taken for finished, and replaced by the same bytes."""
    job = Job(tmp_path, frame, "bought", LogisticRegression())
    whole = tmp_path / "whole"
    job.fit("whole", surrogate_args={"num_leaves": 15})
    command = [
        sys.executable, "-m", "batch_explain", "fit", "--model", str(tmp_path / "model.pkl"), "--train",
        str(tmp_path / "train.parquet"), "--label", "bought", "--surrogate-arg", "num_leaves=15", "--output",
    ]  # fmt: skip
    options: Any = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stderr": subprocess.DEVNULL}
    seen = set()
    for number in range(kills):
        output = tmp_path / str(number)
        process = subprocess.Popen([*command, str(output)], stdout=subprocess.DEVNULL, **options)
        late = ["bundle/bundle.json", "held_out/_run/plan.json"][number % 2]
        while process.poll() is None and not (output / late).exists():
            time.sleep(0.002)
        time.sleep(number // 2 * 0.01)
        process.kill()
        process.wait()
        seen.add((output / "fit.json").exists())
        if not (output / "fit.json").exists():
            with pytest.raises(BatchExplainError, match="no finished fit"):
                bx.open_fit(output)
            with pytest.raises(BatchExplainError, match=r"a fit that was not finished.*--overwrite"):
                job.fit(str(number))
        job.fit(str(number), overwrite=True, surrogate_args={"num_leaves": 15})
        for path in ("bundle/bundle.json", "held_out.parquet", "held_out/raw/part-00000.parquet"):
            assert (output / path).read_bytes() == (whole / path).read_bytes(), path
    assert False in seen, "no kill came in time"


@once
def test_rows_that_cannot_be_explained_end_a_fit(frame: pd.DataFrame, tmp_path: Path) -> None:
    job = Job(tmp_path, frame, "bought", LogisticRegression())
    rows = frame[[*NUMBERS, "kind"]].iloc[:50].copy()
    rows.loc[7, "a"] = np.inf
    rows.to_parquet(tmp_path / "test.parquet", index=False)
    with pytest.raises(BatchExplainError, match=r"row 7 of test.parquet.*fit again with --overwrite") as caught:
        job.fit("out", test=tmp_path / "test.parquet")
    assert caught.value.exit_code == 3
    assert len(bx.load_explainer(tmp_path / "out/bundle").used) > 2
    with pytest.raises(BatchExplainError, match="no finished fit"):
        bx.open_fit(tmp_path / "out")


def test_the_model_itself(frame: pd.DataFrame, tmp_path: Path) -> None:
    job = Job(tmp_path, frame, "sort", RandomForestClassifier(10, max_depth=6, random_state=0))
    fitted = job.fit("direct", direct=True)
    assert fitted.info["fidelity"]["agreement"] == 1 and "itself" in fitted.info["surrogate"]["description"]
    rows = held_out(fitted)[[*NUMBERS, "kind"]][:20]
    matrix = np.asarray(job.model[:-1].transform(rows), dtype=np.float64)
    found = fitted.explainer.explain(matrix)
    total = found.values.sum(axis=1) + np.asarray(found.expected_values)[:, None]
    np.testing.assert_allclose(total.T, job.model.predict_proba(rows), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "nothing"}, "label column"),
        ({"label": "a"}, "one of the columns that the model was trained on"),
        ({"label": "kind2"}, "none of the model's 3 classes"),
        ({"test": "no.parquet"}, "nothing at|no such|Check the path"),
        ({"train": "empty.parquet"}, "has no rows"),
        ({"train": "less.parquet"}, "lack|missing"),
        ({"surrogate": "best"}, "Use one of sdk, faithful"),
        ({"surrogate_args": "leaves"}, "Write NAME=VALUE"),
        ({"surrogate_args": {"num_leaves": -3}}, "cannot be fitted"),
        ({"direct": True}, "cannot be explained directly"),
        ({"direct": True, "surrogate": "faithful"}, "Leave the surrogate's options out"),
        ({"task": "regression"}, "is a classification model"),
    ],
)  # fmt: skip
@once
def test_nothing_is_written_where_a_fit_cannot_begin(
    options: dict[str, Any], message: str, frame: pd.DataFrame, tmp_path: Path
) -> None:
    job = Job(tmp_path, frame[:300], "sort", LogisticRegression(max_iter=500))
    train = pd.read_parquet(tmp_path / "train.parquet").assign(kind2="x")
    train.to_parquet(tmp_path / "train.parquet", index=False)
    train[:0].to_parquet(tmp_path / "empty.parquet", index=False)
    train.drop(columns="b").to_parquet(tmp_path / "less.parquet", index=False)
    given = {
        "model": tmp_path / "model.pkl", "train": tmp_path / "train.parquet", "label": job.label,
        "output": tmp_path / "out",
    }  # fmt: skip
    paths = {name: tmp_path / value for name, value in options.items() if name in ("train", "test")}
    with pytest.raises(BatchExplainError, match=message) as caught:
        bx.fit(**{**given, **options, **paths})
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


@once
def test_an_earlier_fit_is_replaced_only_when_asked(frame: pd.DataFrame, tmp_path: Path) -> None:
    job = Job(tmp_path, frame[:400], "bought", LogisticRegression())
    job.fit("out")
    with pytest.raises(BatchExplainError, match="holds a fit"):
        job.fit("out")
    job.fit("out", overwrite=True)
    (tmp_path / "out/fit.json").unlink()
    with pytest.raises(BatchExplainError, match="no finished fit"):
        bx.open_fit(tmp_path / "out")
    (tmp_path / "out/mine.txt").write_text("precious")
    with pytest.raises(BatchExplainError, match="which no fit wrote"):
        job.fit("out", overwrite=True)


@pytest.mark.automl
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("multiclass", {"surrogate_args": {"num_leaves": 7}}),
        ("dense_regression", {"categorical_features": "x7_MeanImputer"}),
        ("binary", {"surrogate_model": "linear"}),
        ("dense_multiclass", {"surrogate_model": "linear"}),
    ],
)
def test_automl_pipelines_through_the_sdk(
    kind: str, options: dict[str, Any], automl: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MimicWrapper and the pickle explain, global and local, engineered and raw, is what a fit leaves."""
    import azureml.interpret
    from azureml.interpret.scoring.scoring_explainer import load

    from tests.automl_fixtures.quiet import quiet

    paths = automl(kind)
    made: list[tuple[Any, dict[str, Any]]] = []

    class Remembered(azureml.interpret.MimicWrapper):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            made.append((self, given))

    monkeypatch.setattr(azureml.interpret, "MimicWrapper", Remembered)
    model = joblib.load(paths.model)
    frame = pd.read_parquet(paths.raw)[:400]
    frame.assign(answer=model.predict(frame)).to_parquet(tmp_path / "train.parquet", index=False)
    fitted = bx.fit(
        model=paths.model, train=tmp_path / "train.parquet", label="answer", output=tmp_path / "out", **options
    )
    assert fitted.info["surrogate"]["made_by"] == "the Azure ML SDK" and len(fitted.explainer.used) > 2
    assert fitted.held_out.info["additivity"]["largest_residual"] < 1e-6
    [(wrapper, given)] = made
    engineered = model[0].transform(held_out(fitted)[list(frame)])
    with quiet():
        explained = wrapper.explain(["global", "local"], eval_dataset=engineered, upload=False)
        raw = explained.get_raw_explanation(given["feature_maps"], raw_feature_names=list(frame))
    for level, theirs in (("engineered", explained), ("raw", raw)):
        ours = values_of(fitted.held_out, level, list(theirs.features))
        local = theirs.local_importance_values
        parts = local if isinstance(local, list) else [local]
        dense = np.array([part.toarray() if hasattr(part, "toarray") else part for part in parts])
        dense = dense.reshape(-1, *ours.shape[1:])
        assert_close(ours, dense[-len(ours) :], 1e-9)  # of two classes the SDK has both, mirrored
        ranked = dict(zip(theirs.get_ranked_global_names(), theirs.get_ranked_global_values(), strict=True))
        means = fitted.held_out.summary(level).groupby("feature")["mean_abs"].mean()
        np.testing.assert_allclose([means.get(name, 0.0) for name in ranked], list(ranked.values()), rtol=0, atol=1e-9)
        assert max(ranked.values()) > 0.01
    rows = np.asarray(engineered.toarray() if hasattr(engineered, "toarray") else engineered)
    pickled = bx.load_explainer(load(str(tmp_path / "out")))
    assert_close(pickled.explain(rows).values, fitted.explainer.explain(rows).values, 1e-12)


@once
def test_a_surrogate_that_never_splits_is_told_of(frame: pd.DataFrame, tmp_path: Path) -> None:
    job = Job(tmp_path, frame[:200], "amount", SVR())
    fitted = job.fit("out", surrogate_args={"min_data_in_leaf": 1_000})
    assert not len(fitted.explainer.used)
    [warning] = fitted.info["warnings"]
    assert warning.startswith("the surrogate never splits, so every importance is 0")


@pytest.mark.automl
def test_the_benchmark_of_surrogates_runs(tmp_path: Path) -> None:
    script = ROOT / "benchmarks/surrogates.py"
    if not script.exists():
        pytest.skip("the benchmarks are not part of the source distribution")
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(tmp_path / "found.json")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    found = {(each["teacher"], each["surrogate"]): each for each in results}
    divergence = [found["logistic", kind]["fidelity"]["divergence"] for kind in ("sdk", "faithful")]
    assert divergence[1] < divergence[0] and all(each["splits"] for each in found.values())
