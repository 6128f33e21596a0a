"""Explainers that are neither LightGBM nor linear, and models matched to them, without the Azure stack."""

from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

import batch_explain as bx
from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import combine_maps
from tests.comparing import assert_close, frame_of, values_of
from tests.conftest import once


class Weighted:
    """Explains by fixed weights; ``shape`` is how it hands out its values."""

    def __init__(self, weights: list[list[float]], shape: str = "nested") -> None:
        self.weights, self.shape = np.array(weights), shape
        self._features = [f"f{i}" for i in range(self.weights.shape[1])]
        self._feature_maps = [np.array([[1.0, 3.0, 0.0], [0.0, 1.0, 2.0]])]
        self._raw_features = ["left", "right"]

    def explain(self, rows: np.ndarray, get_raw: bool = False) -> Any:
        assert isinstance(rows, np.ndarray) and not get_raw
        values = [rows * weights for weights in self.weights]
        if self.shape == "csr":
            values = [sp.csr_matrix(value) for value in values]
        if self.shape == "nested":
            values = [value.tolist() for value in values]
        return values[0] if len(values) == 1 else values


class Bare:
    """The least that an explainer can be."""

    def explain(self, rows: np.ndarray) -> np.ndarray:
        return rows * 2


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(100, 3)), columns=["f0", "f1", "f2"])


@pytest.mark.parametrize("shape", ["nested", "array", "csr"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_any_object_with_explain(outputs: int, shape: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(outputs, 3))
    joblib.dump(Weighted(weights.tolist(), shape), tmp_path / "explainer.pkl")
    rows.to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet",
        explainer=tmp_path / "explainer.pkl",
        trust="tests.test_explainers.Weighted",
        output=tmp_path / "out",
        scheduler="sync",
        batch_rows=30,
    )
    expected = rows.to_numpy() * weights[:, None]
    assert_close(values_of(run, "engineered", list(rows)), expected, 0)
    # the map's columns, each divided by its sum
    normalised = np.array([[1.0, 0.75, 0.0], [0.0, 0.25, 1.0]])
    assert_close(values_of(run, "raw", ["left", "right"]), expected @ normalised.T, 1e-12)
    assert run.info["expected_values"] == [None] * outputs
    assert run.info["additivity"]["allowed"] is None
    assert run.outputs == (None if outputs == 1 else ["0", "1", "2"])


def test_the_least_explainer(rows: pd.DataFrame) -> None:
    found = bx.load_explainer(Bare()).explain(rows)
    np.testing.assert_array_equal(found.values[0].T, rows.to_numpy() * 2)
    assert found.feature_names == ("Column_0", "Column_1", "Column_2")
    assert np.isnan(found.expected_values).all()


def test_an_explainer_without_names_needs_a_model(rows: pd.DataFrame, tmp_path: Path) -> None:
    joblib.dump(Bare(), tmp_path / "explainer.pkl")
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ArtifactError, match="does not name its features"):
        bx.explain_dataset(
            input=tmp_path / "rows.parquet",
            explainer=tmp_path / "explainer.pkl",
            output=tmp_path / "out",
            trust="tests.test_explainers.Bare",
        )


def test_feature_maps_are_multiplied_and_normalised() -> None:
    first = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    second = sp.csr_matrix([[1.0, 0, 0, 0], [0, 2.0, 1.0, 0], [0, 0, 0, 1.0]])
    found = combine_maps([first, second]).toarray()
    np.testing.assert_allclose(found, [[1, 0.5, 0.5, 0], [0, 0.5, 0.5, 0]])  # the last column maps to nothing


@pytest.fixture(scope="module")
def classes() -> tuple[pd.DataFrame, np.ndarray, LogisticRegression]:
    X, y = make_classification(1_000, 6, n_informative=5, n_redundant=0, n_classes=3, random_state=0)
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(6)])
    labels = np.array(["no", "maybe", "yes"])[y]
    return frame, labels, LogisticRegression(max_iter=500).fit(frame, labels)


def surrogate_text(path: Path, frame: pd.DataFrame, labels: np.ndarray, **parameters: Any) -> Path:
    learner = lightgbm.LGBMModel(n_estimators=10, num_leaves=8, verbosity=-1, n_jobs=1, **parameters)
    booster = learner.fit(frame, labels).booster_
    assert (booster.feature_importance() > 0).sum() >= 3
    booster.save_model(path)
    return path


def test_a_bare_estimator_is_its_own_pipeline(classes: Any, tmp_path: Path) -> None:
    """No featurizer: the raw columns are the engineered ones, and the map is the identity."""
    frame, _, model = classes
    joblib.dump(model, tmp_path / "model.pkl")
    codes = model.predict_proba(frame).argmax(axis=1)
    text = surrogate_text(tmp_path / "surrogate.txt", frame, codes, objective="multiclass", num_class=3)
    frame.to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet",
        model=tmp_path / "model.pkl",
        explainer=text,
        output=tmp_path / "out",
        scheduler="sync",
    )
    assert run.outputs == ["maybe", "no", "yes"]
    expected = lightgbm.Booster(model_file=text).predict(frame, pred_contrib=True).reshape(len(frame), 3, 7)
    assert_close(values_of(run, "engineered", list(frame)), expected[:, :, :6].transpose(1, 0, 2), 1e-12)
    assert_close(values_of(run, "raw", list(frame)), expected[:, :, :6].transpose(1, 0, 2), 1e-12)
    assert frame_of(run, "predictions").prediction.tolist() == model.predict(frame).tolist()


def test_multiclass_model_with_a_single_output_explainer_is_refused(classes: Any, tmp_path: Path) -> None:
    frame, _, model = classes
    joblib.dump(model, tmp_path / "model.pkl")
    text = surrogate_text(tmp_path / "surrogate.txt", frame, frame.sum(axis=1).to_numpy(), objective="regression")
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ArtifactError, match="3 classes, but the explainer has one output"):
        bx.explain_dataset(
            input=tmp_path / "rows.parquet",
            model=tmp_path / "model.pkl",
            explainer=text,
            output=tmp_path / "out",
            scheduler="sync",
        )


def test_random_forest_boosters_add_up(classes: Any) -> None:
    """Averaged trees: values, expected value and margin are averages too."""
    frame, _, _ = classes
    booster = lightgbm.train(
        {
            "objective": "regression", "boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1, "verbosity": -1,
            "num_threads": 1,
        },
        lightgbm.Dataset(frame, frame.f0 + frame.f1 * frame.f2),
        num_boost_round=7,
    )  # fmt: skip
    explainer = bx.load_explainer(booster)
    found = explainer.explain(frame)
    np.testing.assert_allclose(
        found.values.sum(axis=1) + found.expected_values[:, None], explainer.margins(frame.to_numpy()), atol=1e-12
    )


@once
def test_wide_rows_make_smaller_batches(tmp_path: Path) -> None:
    """Memory is bounded whatever --batch-rows says, and the decision is recorded."""
    width, rows = 6_000, 40
    matrix = np.random.default_rng(0).normal(size=(rows, width))
    frame = pd.DataFrame(matrix, columns=[f"f{i}" for i in range(width)])
    explainer = Bare()
    explainer._features = list(frame)  # type: ignore[attr-defined]
    joblib.dump(explainer, tmp_path / "explainer.pkl")
    frame.to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet",
        explainer=tmp_path / "explainer.pkl",
        output=tmp_path / "out",
        scheduler="sync",
        trust="tests.test_explainers.Bare",
    )
    assert any("because the rows are wide" in decision for decision in run.info["decisions"])
    np.testing.assert_array_equal(values_of(run, "engineered", list(frame))[0], matrix * 2)
