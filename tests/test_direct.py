"""Teachers that are sums of trees, explained by these trees: against their libraries' own contributions, and shap."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import batch_explain as bx
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.explainers.additive import additive
from batch_explain.explainers.direct import direct_explainer
from batch_explain.teachers.load import teacher_of
from batch_explain.trees.assemble import Sum, ensemble_of
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.trees.rounding import at_most_as_float32, below_as_float32
from batch_explain.trees.write_text import write_model_text
from batch_explain.treeshap.kernel import TreeShap
from tests.lightgbm_models import train

ROWS, WIDTH = 400, 6
NAMES = [f"f{i}" for i in range(WIDTH)]
TOLERANCE = 1e-9


def _data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, WIDTH))
    X[:, 3] = np.round(X[:, 3] * 4) / 4  # on the thresholds themselves
    X[:, 5] = rng.integers(0, 12, ROWS)
    y = 2 * X[:, 0] + np.sin(3 * X[:, 1]) + X[:, 5] % 3
    gaps = X.copy()
    gaps[rng.random(X.shape) < 0.15] = np.nan
    return {
        "X": X, "gaps": gaps, "y": y, "two": (y > 1).astype(int), "four": np.digitize(y, [-0.5, 1.5, 3]),
        "weight": rng.random(ROWS) + 0.1,
    }  # fmt: skip


DATA = _data()


def found(model: Any, rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (output, feature, row), expected values and margins of the model's own trees."""
    return values_of(additive(model), rows)


def values_of(trees: Sum, rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ensemble = ensemble_of(trees, NAMES, "regression")
    assert len(ensemble.used) > 1, "it splits"
    kernel = TreeShap(ensemble)
    result = kernel.explain(rows)
    values = np.zeros((ensemble.n_outputs, WIDTH, rows.shape[0]))
    values[:, kernel.used] = result.engineered
    return values, kernel.expected_values, result.margins


def by_shap(model: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by shap's path-dependent TreeSHAP, which has its own way of reading each library's trees."""
    shap = pytest.importorskip("shap")
    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    values = explainer.shap_values(rows, check_additivity=False)
    if isinstance(values, list):  # older: one array an output
        values = np.stack(values, axis=-1)
    values = values[..., None] if values.ndim == 2 else values
    return np.moveaxis(values, (0, 1, 2), (2, 1, 0)), np.atleast_1d(explainer.expected_value)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    expected = np.asarray(expected)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


SKLEARN: dict[str, tuple[Callable[[], Any], str]] = {
    "forest": (lambda: RandomForestRegressor(8, random_state=0), "y"),
    "extra trees": (lambda: ExtraTreesRegressor(8, random_state=0), "y"),
    "forest of classes": (lambda: RandomForestClassifier(8, random_state=0), "four"),
    "extra trees of classes": (lambda: ExtraTreesClassifier(8, random_state=0), "two"),
    "tree": (lambda: DecisionTreeRegressor(max_depth=5, random_state=0), "y"),
    "tree of classes": (lambda: DecisionTreeClassifier(max_depth=5, random_state=0), "four"),
    "boosting": (lambda: GradientBoostingRegressor(n_estimators=15, random_state=0), "y"),
    "boosting of two": (lambda: GradientBoostingClassifier(n_estimators=15, random_state=0), "two"),
    "hist": (lambda: HistGradientBoostingRegressor(max_iter=15), "y"),
    "hist of two": (lambda: HistGradientBoostingClassifier(max_iter=15), "two"),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_scikit_learn_is_shap(name: str) -> None:
    make, target = SKLEARN[name]
    model = make().fit(DATA["X"], DATA[target], sample_weight=None if "hist" in name else DATA["weight"])
    rows = DATA["X"][:60]
    values, expected, margins = found(model, rows)
    theirs, base = by_shap(model, rows)
    close(values, theirs)
    close(expected, base)
    close(margins, own(model, rows))


def own(model: Any, rows: Any) -> np.ndarray:
    """Probabilities of forests, margins of boosting, predictions of regressors: (output, row)."""
    if hasattr(model, "decision_function"):
        answer = model.decision_function(rows)
    elif hasattr(model, "predict_proba"):
        answer = model.predict_proba(rows)
    else:
        answer = model.predict(rows)
    return np.asarray(answer).reshape(len(rows), -1).T


@pytest.mark.parametrize("categorical", [None, [5]])
@pytest.mark.parametrize("target", ["y", "two", "four"])
def test_histogram_boosting_with_gaps_and_categories(categorical: list[int] | None, target: str) -> None:
    kind = HistGradientBoostingRegressor if target == "y" else HistGradientBoostingClassifier
    for rows in (DATA["X"], DATA["gaps"]):
        model = kind(max_iter=8, categorical_features=categorical).fit(rows, DATA[target])
        asked = DATA["gaps"][:80].copy()
        if categorical:
            asked[:10, 5], asked[10:20, 5], asked[20:25, 5] = 77, np.nan, -3  # unknown, missing, negative
        values, expected, margins = found(model, asked)
        close(margins, own(model, asked))
        close(values.sum(axis=1) + expected[:, None], margins)
        if categorical is None and target == "y":
            close(values, by_shap(model, asked)[0])


def test_forests_of_several_classes_and_gaps_add_up() -> None:
    model = GradientBoostingClassifier(n_estimators=6, random_state=0).fit(DATA["X"], DATA["four"])
    close(found(model, DATA["X"])[2], own(model, DATA["X"]))
    if sys.version_info >= (3, 11):  # missing values in forests came later
        forest = RandomForestRegressor(8, random_state=0).fit(DATA["gaps"], DATA["y"])
        close(found(forest, DATA["gaps"])[0], by_shap(forest, DATA["gaps"])[0])


XGBOOST: dict[str, tuple[dict[str, Any], str]] = {
    "regression": ({}, "y"),
    "dropped trees": ({"rate_drop": 0.3, "booster": "dart"}, "y"),
    "two classes": ({"objective": "binary:logistic", "base_score": 0.3}, "two"),
    "four classes": ({"objective": "multi:softprob", "num_class": 4}, "four"),
    "parallel trees": (
        {"objective": "multi:softprob", "num_class": 4, "num_parallel_tree": 2, "subsample": 0.7},
        "four",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", XGBOOST)
def test_xgboost_is_its_own_contributions(name: str) -> None:
    """To its float32; and exactly, in float64, for the additions that it makes in float32."""
    xgboost = pytest.importorskip("xgboost")
    from batch_explain.trees.xgboost_trees import read_xgboost

    options, target = XGBOOST[name]
    data = xgboost.DMatrix(DATA["gaps"], DATA[target])
    model = xgboost.train({**options, "nthread": 1, "max_depth": 4, "seed": 0}, data, 10)
    asked = xgboost.DMatrix(DATA["gaps"][:80])
    values, expected, margins = values_of(read_xgboost(model), DATA["gaps"][:80])
    theirs = model.predict(asked, pred_contribs=True).reshape(80, -1, WIDTH + 1)
    close(values, np.transpose(theirs[:, :, :-1], (1, 2, 0)), 1e-5)
    close(expected, theirs[0, :, -1], 1e-5)
    close(margins, model.predict(asked, output_margin=True).reshape(80, -1).T, 1e-5)
    close(values.sum(axis=1) + expected[:, None], margins)
    leaves = model.predict(asked, pred_leaf=True, iteration_range=(0, 3)).reshape(80, -1)
    assert len(np.unique(leaves)) > 3
    close(
        values_of(read_xgboost(model, 3), DATA["gaps"][:80])[2],
        model.predict(asked, output_margin=True, iteration_range=(0, 3)).reshape(80, -1).T,
        1e-5,
    )


@pytest.mark.parametrize("target", ["y", "two", "four"])
@pytest.mark.parametrize("gaps", ["Min", "Max"])
def test_catboost_is_its_own_shap_values(target: str, gaps: str) -> None:
    catboost = pytest.importorskip("catboost")
    kind = catboost.CatBoostRegressor if target == "y" else catboost.CatBoostClassifier
    loss = {"y": "RMSE", "two": "Logloss", "four": "MultiClass"}[target]
    model = kind(
        iterations=8, loss_function=loss, nan_mode=gaps, verbose=0, thread_count=1, allow_writing_files=False
    ).fit(DATA["gaps"], DATA[target])  # fmt: skip
    rows = DATA["gaps"][:80]
    theirs = model.get_feature_importance(catboost.Pool(rows), type="ShapValues").reshape(80, -1, WIDTH + 1)
    values, expected, margins = found(model, rows)
    close(values, np.transpose(theirs[:, :, :-1], (1, 2, 0)))
    close(expected, theirs[0, :, -1])
    close(margins, model.predict(rows, prediction_type="RawFormulaVal").reshape(80, -1).T)


def test_a_threshold_means_the_same_before_rounding() -> None:
    """Around each threshold, over the neighbours of doubles and of float32."""
    rng = np.random.default_rng(0)
    thresholds = np.concatenate(
        [rng.normal(size=200), rng.normal(size=50) * 1e-30, [0.0, -0.0, 1.0, 2.0**24 + 1, -1e30]]
    )
    single = thresholds.astype(np.float32)
    steps = [np.nextafter(single, np.float32(way)).astype(np.float64) for way in (-np.inf, np.inf)]
    around = [single.astype(np.float64), *steps, *[(single + step) / 2 for step in steps]]
    around += [np.nextafter(each, way) for each in around for way in (-np.inf, np.inf)]
    for x in around:
        np.testing.assert_array_equal(x <= at_most_as_float32(thresholds), x.astype(np.float32) <= thresholds)
        np.testing.assert_array_equal(x <= below_as_float32(single), x.astype(np.float32) < single)


@pytest.mark.parametrize(
    "scaler", [StandardScaler(), StandardScaler(with_mean=False), MinMaxScaler(), MaxAbsScaler(), RobustScaler()]
)
def test_behind_a_scaler_every_decision_is_the_same(scaler: Any) -> None:
    """Rows on the moved thresholds themselves, and one double beside them."""
    model = make_pipeline(scaler, DecisionTreeRegressor(max_depth=8, random_state=0)).fit(DATA["X"], DATA["y"])
    ensemble = ensemble_of(additive(model), NAMES, "regression")
    rows = np.repeat(DATA["X"][:60], 3, axis=0)
    for number, (feature, threshold) in enumerate(zip(ensemble.feature[:60], ensemble.threshold[:60], strict=True)):
        rows[3 * number : 3 * number + 3, feature] = [threshold, np.nextafter(threshold, np.inf), threshold - 1e-12]
    close(found(model, rows)[2], own(model, rows), 1e-12)


def test_votes_that_are_sums_of_trees() -> None:
    X, rows = DATA["X"], DATA["X"][:60]
    scaled_trees = make_pipeline(StandardScaler(), ExtraTreesClassifier(5, random_state=1))
    forests = [("a", RandomForestClassifier(5, random_state=0)), ("b", scaled_trees)]
    vote = VotingClassifier(forests, voting="soft", weights=[0.3, 0.9]).fit(X, DATA["four"])
    values, _, margins = found(vote, rows)
    close(margins, vote.predict_proba(rows).T)
    scaled = vote.estimators_[1][0].transform(rows)
    parts = [by_shap(vote.estimators_[0], rows)[0], by_shap(vote.estimators_[1][1], scaled)[0]]
    close(values, (0.3 * parts[0] + 0.9 * parts[1]) / 1.2)
    members = [
        ("a", GradientBoostingRegressor(n_estimators=5)),
        ("b", lightgbm.LGBMRegressor(n_estimators=5, verbosity=-1)),
    ]
    vote = VotingRegressor(members).fit(X, DATA["y"])
    close(found(vote, rows)[2], vote.predict(rows)[None])
    contributions = vote.estimators_[1].booster_.predict(rows, pred_contrib=True)[:, :-1].T
    close(found(vote, rows)[0][0], (by_shap(vote.estimators_[0], rows)[0][0] + contributions) / 2)


@pytest.mark.parametrize(
    ("make", "target", "reason"),
    [
        (lambda: LinearRegression(), "y", "LinearRegression is no sum of trees"),
        (
            lambda: VotingRegressor([("a", make_pipeline(Normalizer(), DecisionTreeRegressor()))]),
            "y",
            "Normalizer mixes",
        ),
        (lambda: VotingClassifier([("a", LogisticRegression())], voting="soft"), "two", "LogisticRegression is no sum"),
        (
            lambda: VotingClassifier([("a", GradientBoostingClassifier(n_estimators=2))], voting="soft"),
            "two",
            "no sums",
        ),
        (lambda: VotingClassifier([("a", DecisionTreeClassifier())]), "two", "counts votes"),
        (lambda: StackingRegressor([("a", DecisionTreeRegressor())]), "y", "StackingRegressor is no sum"),
        (lambda: HistGradientBoostingRegressor(loss="poisson", max_iter=2), "positive", "loss is 'poisson'"),
        (lambda: GradientBoostingRegressor(init=LinearRegression(), n_estimators=2), "y", "another model"),
        (lambda: lightgbm.LGBMRegressor(zero_as_missing=True, n_estimators=2, verbosity=-1), "y", "takes zeros"),
        (lambda: lightgbm.LGBMRegressor(linear_tree=True, n_estimators=2, verbosity=-1), "y", "linear tree"),
    ],
)
def test_what_is_no_sum_of_trees_says_why(make: Callable[[], Any], target: str, reason: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(DATA["X"], columns=NAMES)
    model = make().fit(frame, DATA["y"] - DATA["y"].min() + 1 if target == "positive" else DATA[target])
    joblib.dump(model, tmp_path / "model.pkl")
    frame[:50].to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ArtifactError, match=reason):
        bx.explain_dataset(
            input=tmp_path / "rows.parquet", model=tmp_path / "model.pkl", output=tmp_path / "out", scheduler="sync",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_explainer(tmp_path: Path) -> None:
    """Predictions, importances, sums, decisions; resumed, verified; and the same from the exported bundle."""
    frame = pd.DataFrame(DATA["X"], columns=NAMES)
    model = make_pipeline(StandardScaler(), RandomForestClassifier(10, max_depth=5, random_state=0)).fit(
        frame, DATA["four"]
    )
    joblib.dump(model, tmp_path / "model.pkl")
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    given: dict[str, Any] = {
        "input": tmp_path / "rows.parquet",
        "scheduler": "threads",
        "workers": 2,
        "partition_rows": 150,
    }
    run = bx.explain_dataset(**given, model=tmp_path / "model.pkl", output=tmp_path / "out")
    assert run.outputs == ["0", "1", "2", "3"] and run.info["fidelity"]["agreement"] == 1
    assert any("explained itself" in each for each in run.info["decisions"])
    expected = by_shap(model[1], model[0].transform(frame))[0]
    bx.export_bundle(None, tmp_path / "bundle", model=tmp_path / "model.pkl")
    bundled = bx.explain_dataset(
        **given, model=tmp_path / "model.pkl", explainer=tmp_path / "bundle", output=tmp_path / "bundled"
    )  # fmt: skip
    for each in (run, bundled):
        assert bx.verify_run(each.location.path, recompute="50").ok
        for output, label in enumerate(each.outputs or ()):
            table = each.table("raw", label).to_table(columns=NAMES).to_pandas()
            close(table[NAMES].to_numpy().T, expected[output])
        assert each.info["additivity"]["largest_residual"] < 1e-9
    bx.explain_dataset(**given, model=tmp_path / "model.pkl", direct=True, output=tmp_path / "asked")
    with pytest.raises(OptionError, match="leave the explainer out"):
        bx.explain_dataset(
            **given, model=tmp_path / "model.pkl", direct=True, explainer=tmp_path / "bundle", output=tmp_path / "no"
        )
    with pytest.raises(OptionError, match="'explainer' is missing, and so is 'model'"):
        bx.explain_dataset(**given, output=tmp_path / "no")


def test_sparse_rows_hold_what_the_library_takes_them_for(tmp_path: Path) -> None:
    """XGBoost takes what is not there for missing, and zeros for zeros."""
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    rows = sp.random(300, WIDTH, 0.4, "csr", random_state=rng)
    rows.data[::5] = 0
    y = rows.toarray() @ rng.normal(size=WIDTH)
    model = xgboost.XGBRegressor(n_estimators=10, max_depth=4, n_jobs=1).fit(rows, y)
    explainer = direct_explainer(teacher_of(model, NAMES, "model.pkl"))
    contributions = model.get_booster().predict(xgboost.DMatrix(rows), pred_contribs=True)
    importances = explainer.explain(rows)
    close(importances.values[0], contributions[:, :-1].T, 1e-5)
    assert np.abs(explainer.margins(rows)[0] - model.predict(rows)).max() == 0
    with pytest.raises(ArtifactError, match="for missing, which a bundle cannot say"):
        bx.export_bundle(
            None, tmp_path / "bundle", model=model.fit(pd.DataFrame(DATA["gaps"], columns=NAMES), DATA["y"])
        )


@pytest.mark.parametrize(
    "options", [{}, {"objective": "multiclass", "num_class": 4}, {"boosting": "rf"}, {"objective": "binary"}]
)
def test_a_written_text_is_the_same_model(options: dict[str, Any]) -> None:
    target = {"multiclass": "four", "binary": "two"}.get(options.get("objective", ""), "y")
    text = train(DATA["gaps"], DATA[target], rounds=5, categorical=[5], **options)
    written = write_model_text(read_model_text(text))
    again = read_model_text(written)
    for name, value in vars(read_model_text(text)).items():
        if isinstance(value, tuple):
            assert len(value) == len(getattr(again, name))
            assert all(np.array_equal(a, b) for a, b in zip(value, getattr(again, name), strict=True))
        else:
            np.testing.assert_array_equal(getattr(again, name), value)
    first, second = (lightgbm.Booster(model_str=each) for each in (text, written))
    for asked in ({}, {"raw_score": True}, {"pred_contrib": True}):
        np.testing.assert_array_equal(first.predict(DATA["gaps"], **asked), second.predict(DATA["gaps"], **asked))


@pytest.mark.automl
def test_automl_pipelines(automl: Callable[[str], Any], tmp_path: Path) -> None:
    """A learner behind the featurizer, and a vote of forests behind scalers; a vote of others says why not."""
    paths = automl("binary")
    model = joblib.load(paths.model)
    frame = pd.read_parquet(paths.raw)[:200]
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    given: dict[str, Any] = {"input": tmp_path / "rows.parquet", "scheduler": "sync", "report": False}
    run = bx.explain_dataset(**given, model=paths.model, output=tmp_path / "out")
    features = list(run.info["features"]["engineered"])
    columns = [name for name in run.table("engineered").schema.names if name in set(features)]
    engineered = model[0].transform(frame[[c.name for c in teacher_of(model, None, "").columns]])
    learner = model.steps[-1][1].model
    expected = learner.booster_.predict(engineered, pred_contrib=True)
    expected = np.asarray(expected.toarray() if sp.issparse(expected) else expected)[:, :-1]
    table = run.table("engineered").to_table(columns=columns).to_pandas()
    assert len(columns) > 5
    close(table.to_numpy(), expected[:, [features.index(name) for name in columns]])
    assert run.info["features"]["raw"] and run.info["fidelity"]["agreement"] == 1
    with pytest.raises(ArtifactError, match="cannot be explained directly"):
        bx.explain_dataset(**given, model=automl("voting_multiclass").model, output=tmp_path / "vote")
