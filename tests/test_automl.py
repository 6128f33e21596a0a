"""Genuine AutoML models: what a run writes is what the SDK's own explain() says, for every row and output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import batch_explain as bx
from tests.comparing import assert_close, frame_of, values_of

pytestmark = pytest.mark.automl

KINDS = [
    "binary",
    "multiclass",
    "regression",
    "dense_regression",
    "dense_multiclass",
    "wide_binary",
    "voting_multiclass",
    "stack_binary",
    "linear_regression",
    "kernel_regression",
    "kernel_binary",
    "kernel_multiclass",
    "transformations_binary",
    "probability_multiclass",
    "labelled_multiclass",
    "own_predict_binary",
    "early_stopped_regression",
    "linear_multiclass",
    "linear_binary",
    "tree_sklearn_regression",
]


def run_kind(paths: Any, output: Path, **options: Any) -> bx.Run:
    if "own_predict" in str(paths.model):
        options["trust"] = "tests.automl_fixtures.learners.ThresholdClassifier"
    return bx.explain_dataset(
        input=paths.raw, model=paths.model, explainer=paths.explainer, output=output, **{"scheduler": "sync", **options}
    )


def assert_is_the_sdks(run: bx.Run, oracle: Any) -> None:
    """Every row and output equals the oracle, and the predictions are the model's."""
    rows = oracle.engineered.shape[1]
    assert run.info["rows"] == {"input": rows, "planned": rows, "explained": rows, "quarantined": 0}
    assert_close(values_of(run, "engineered", oracle.engineered_features), oracle.engineered, 1e-9)
    assert_close(values_of(run, "raw", oracle.raw_features), oracle.raw, 1e-9)
    np.testing.assert_allclose(run.info["expected_values"], oracle.expected_values, rtol=0, atol=1e-9)
    predictions = frame_of(run, "predictions")
    np.testing.assert_array_equal(predictions.source_row, np.arange(rows))
    assert (predictions.prediction.to_numpy() == oracle.prediction).all()
    if oracle.probabilities is not None:
        columns = [f"probability_{label}" for label in oracle.classes]
        np.testing.assert_allclose(predictions[columns], oracle.probabilities, rtol=0, atol=1e-12)
    else:
        assert not [column for column in predictions if column.startswith("probability_")]


@pytest.mark.parametrize("partitions", [1, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_sdks(
    kind: str, partitions: int, automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    expected = oracle(kind)
    rows = expected.engineered.shape[1]
    run = run_kind(
        automl(kind), tmp_path / "out", partition_rows=-(-rows // partitions), batch_rows=-(-rows // partitions // 2)
    )
    assert run.info["partitions"] == partitions
    assert np.abs(expected.engineered).max() > 0  # a surrogate that never splits would pass everything
    assert_is_the_sdks(run, expected)


@pytest.mark.parametrize("scheduler", ["threads", "processes", "cluster"])
def test_values_are_the_sdks_on_every_scheduler(
    scheduler: str,
    automl: Callable[[str], Any],
    oracle: Callable[[str], Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Two kinds, one pool after the other: workers change their artifacts when the run changes."""
    where = request.getfixturevalue("cluster") if scheduler == "cluster" else scheduler
    for kind in ("binary", "linear_regression"):
        run = run_kind(automl(kind), tmp_path / kind, scheduler=where, workers=2, partition_rows=300)
        assert_is_the_sdks(run, oracle(kind))


@pytest.mark.parametrize("kind", ["binary", "dense_multiclass"])
def test_explain_on_an_object_is_the_sdks(
    kind: str, automl: Callable[[str], Any], oracle: Callable[[str], Any]
) -> None:
    """``load_explainer`` takes the path or the object, and explains in memory."""
    import joblib

    from tests.automl_fixtures.quiet import quiet

    paths, expected = automl(kind), oracle(kind)
    with quiet():
        model = joblib.load(paths.model)
        features = model.steps[0][1].transform(pd.read_parquet(paths.raw))
        source = joblib.load(paths.explainer)
    for explainer in (bx.load_explainer(paths.explainer), bx.load_explainer(source)):
        found = explainer.explain(features)
        assert found.values.shape == expected.engineered.transpose(0, 2, 1).shape
        assert_close(found.values.transpose(0, 2, 1), expected.engineered, 1e-9)
        assert_close(explainer.explain_raw(features).values.transpose(0, 2, 1), expected.raw, 1e-9)
        np.testing.assert_allclose(found.expected_values, expected.expected_values, atol=1e-9)
        assert list(found.feature_names) == expected.engineered_features


def test_20001_rows_stay_20001_in_order(
    automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    """The documented script explains a random 5,000 of them."""
    paths, expected = automl("binary"), oracle("binary")
    position = np.random.default_rng(0).integers(0, expected.engineered.shape[1], 20_001)
    frame = pd.read_parquet(paths.raw).iloc[position].reset_index(drop=True).assign(customer=position)
    source = tmp_path / "rows.parquet"
    frame.to_parquet(source, row_group_size=6_000, index=False)
    run = bx.explain_dataset(
        input=source,
        model=paths.model,
        explainer=paths.explainer,
        output=tmp_path / "out",
        scheduler="threads",
        workers=2,
        partition_rows=5_000,
        id_columns="customer",
    )
    assert run.info["rows"]["explained"] == 20_001
    np.testing.assert_array_equal(frame_of(run, "raw").customer, position)
    assert_close(values_of(run, "engineered", expected.engineered_features), expected.engineered[:, position], 1e-9)
    assert_close(values_of(run, "raw", expected.raw_features), expected.raw[:, position], 1e-9)
    assert (frame_of(run, "predictions").prediction.to_numpy() == expected.prediction[position]).all()


def test_nulls_in_an_integer_column_go_to_the_models_own_imputer(automl: Callable[[str], Any], tmp_path: Path) -> None:
    """The SDK fails the whole batch; the featurizer's imputer has an answer for each such row."""
    import joblib

    from tests.automl_fixtures.quiet import quiet

    paths = automl("binary")
    frame = pd.read_parquet(paths.raw)
    integer = next(name for name, dtype in frame.dtypes.items() if dtype.kind == "i")
    holed = frame.astype({integer: "Int64"})
    holed.loc[::5, integer] = pd.NA
    source = tmp_path / "rows.parquet"
    holed.to_parquet(source, index=False)
    run = bx.explain_dataset(
        input=source, model=paths.model, explainer=paths.explainer, output=tmp_path / "out", scheduler="sync"
    )
    with quiet():
        model, explainer = joblib.load(paths.model), joblib.load(paths.explainer)
        featurizer = model.steps[0][1]
        imputer = next(
            transformer.steps[0][1]
            for entry in featurizer.transformer_and_mapper_list
            for columns, transformer, _ in entry.mapper.features
            if list(columns) == [integer]
        )
        filled = featurizer.transform(frame)
        column = featurizer.get_engineered_feature_names().index(f"{integer}_MeanImputer")
        filled = filled.tolil()
        filled[np.arange(0, len(frame), 5), column] = imputer.statistics_[0]
        expected = explainer.explain(filled.tocsr(), get_raw=True)
    assert_close(values_of(run, "raw", explainer.raw_features)[0], np.asarray(expected), 1e-9)
    nulls = len(range(0, len(frame), 5))
    assert any(f"'{integer}': {nulls} nulls" in decision for decision in run.info["decisions"])


def test_wide_rows_write_only_what_can_be_other_than_zero(
    automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    paths, expected = automl("wide_binary"), oracle("wide_binary")
    run = run_kind(paths, tmp_path / "out")
    features = run.info["features"]
    assert len(features["engineered"]) > 40_000
    never_split = set(features["identically_zero"])
    split = [i for i, name in enumerate(features["engineered"]) if name not in never_split]
    assert features["not_written"] == features["identically_zero"]
    assert 100 < len(split) < 1_000
    zeros = np.delete(expected.engineered, split, axis=2)
    assert zeros.size and not zeros.any()
    columns = frame_of(run, "engineered").columns
    assert len(columns) == 2 + len(split)
    assert list(frame_of(run, "raw").columns[2:]) == expected.raw_features
    assert (frame_of(run, "raw")["empty"] == 0).all()
    summary = run.summary("engineered")
    assert len(summary) == len(features["engineered"])  # the summary names them all
    assert (summary[summary.feature.isin(list(never_split)[:100])].mean_abs == 0).all()


def test_parts_say_what_they_are(automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path) -> None:
    import json

    paths, expected = automl("labelled_multiclass"), oracle("labelled_multiclass")
    run = run_kind(paths, tmp_path / "out")
    assert run.outputs == expected.classes
    for number, label in enumerate(expected.classes):
        schema = pq.read_schema(tmp_path / f"out/raw/output={label}/part-00000.parquet")
        metadata = json.loads(schema.metadata[b"batch_explain"])
        assert metadata["output"] == label
        assert metadata["classes"] == expected.classes
        assert metadata["features"] == expected.raw_features
        assert metadata["expected_value"] == pytest.approx(expected.expected_values[number], abs=1e-9)
        assert metadata["feature_map_sha256"] == run.info["features"]["feature_map_sha256"]


def test_fidelity_is_scikit_learns(automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, log_loss, r2_score

    found = run_kind(automl("regression"), tmp_path / "r", partition_rows=500).info["fidelity"]
    expected = oracle("regression")
    assert found["r2"] == pytest.approx(r2_score(expected.prediction, expected.margins[0]), abs=1e-12)

    found = run_kind(automl("multiclass"), tmp_path / "m", partition_rows=500).info["fidelity"]
    expected = oracle("multiclass")
    margins = expected.margins - expected.margins.max(axis=0)
    probabilities = (np.exp(margins) / np.exp(margins).sum(axis=0)).T
    chosen = np.array(expected.classes)[probabilities.argmax(axis=1)]
    assert found["agreement"] == accuracy_score(expected.prediction, chosen)
    assert found["log_loss"] == pytest.approx(log_loss(expected.prediction, probabilities, labels=expected.classes))

    found = run_kind(automl("binary"), tmp_path / "b", partition_rows=500).info["fidelity"]
    expected = oracle("binary")
    second = 1 / (1 + np.exp(-expected.margins[0]))
    assert found["agreement"] == accuracy_score(expected.prediction, (second > 0.5).astype(int))
    assert found["log_loss"] == pytest.approx(log_loss(expected.prediction, second))


def test_categories_with_blanks_around_them_are_warned_of(automl: Callable[[str], Any], tmp_path: Path) -> None:
    """The stack takes 'admin ' for an unknown category and says nothing: other importances, and nobody knows why."""
    paths = automl("binary")
    frame = pd.read_parquet(paths.raw)[:200]
    known = frame.job.isin(["admin", "tech"])
    options = {"model": paths.model, "explainer": paths.explainer, "scheduler": "sync", "partition_rows": 100}
    frame.to_parquet(tmp_path / "clean.parquet")
    clean = bx.explain_dataset(input=tmp_path / "clean.parquet", output=tmp_path / "clean", **options)
    assert clean.info["warnings"] == []
    padded = frame.assign(job=frame.job.where(~known, " " + frame.job.str.upper() + "\t"))
    padded.loc[~known, "job"] = " unheard of "
    padded.to_parquet(tmp_path / "padded.parquet")
    run = bx.explain_dataset(input=tmp_path / "padded.parquet", output=tmp_path / "padded", **options)
    assert run.info["warnings"] == [
        f"column 'job': {known.sum()} values have blanks around a category that the model knows; it takes them for "
        "unknown ones"
    ]
    left, right = (frame_of(each, "raw").job.to_numpy() for each in (clean, run))
    assert (left != right)[known.to_numpy()].any()
