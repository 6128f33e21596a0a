"""Bundles of genuine scoring explainers, beside the SDK: the same values, now and from features later."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import batch_explain as bx
from batch_explain.errors import ArtifactError
from tests.comparing import assert_close, frame_of, values_of

pytestmark = pytest.mark.automl

KINDS = [
    "multiclass",  # sparse
    "probability_multiclass",  # dense, rescaled to probabilities
    "early_stopped_regression",  # other trees for dense than for sparse rows
    "linear_binary",
    "transformations_binary",  # featurizes by itself
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_gives_what_the_pickle_gives(
    kind: str, automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    paths, expected = automl(kind), oracle(kind)
    assert np.abs(expected.engineered).max() > 0.1
    exported = bx.export_bundle(paths.explainer, tmp_path / "bundle", model=paths.model)
    assert exported.task == paths.task
    assert list(exported.classes or ()) == list(expected.classes or ())
    options: dict[str, Any] = {"input": paths.raw, "model": paths.model, "scheduler": "sync", "partition_rows": 1_000}
    direct = bx.explain_dataset(
        **options,
        explainer=paths.explainer,
        output=tmp_path / "direct",
        outputs=["predictions", "engineered", "raw", "features"],
    )
    later = bx.explain_dataset(
        input=tmp_path / "direct/features", explainer=tmp_path / "bundle", output=tmp_path / "later", scheduler="sync"
    )
    with_model = bx.explain_dataset(**options, explainer=tmp_path / "bundle", output=tmp_path / "with", limit=200)
    for level, values in (("engineered", expected.engineered), ("raw", expected.raw)):
        names = expected.engineered_features if level == "engineered" else expected.raw_features
        if kind == "transformations_binary" and level == "raw":
            names = direct.info["features"]["raw"]
        assert_close(values_of(direct, level, names), values, 1e-9)
        for run, rows in ((later, None), (with_model, 200)):
            assert run.outputs == direct.outputs
            assert_close(values_of(run, level, names), values_of(direct, level, names)[:, :rows], 1e-12)
    np.testing.assert_allclose(later.info["expected_values"], direct.info["expected_values"], rtol=0, atol=1e-12)
    assert frame_of(with_model, "predictions").equals(frame_of(direct, "predictions")[:200])
    places = [
        frame_of(run, "raw", (run.outputs or [None])[0])[["source_file", "source_row"]] for run in (direct, later)
    ]
    assert places[0].equals(places[1])


def test_sparse_rows_keep_their_iteration_limit(automl: Callable[[str], Any], tmp_path: Path) -> None:
    import joblib
    from scipy.sparse import csr_matrix

    from tests.automl_fixtures import sdk_explain
    from tests.automl_fixtures.quiet import quiet

    paths = automl("early_stopped_regression")
    bx.export_bundle(paths.explainer, tmp_path / "bundle")
    explainer = bx.load_explainer(tmp_path / "bundle")
    with quiet():
        rows = joblib.load(paths.model).steps[0][1].transform(pd.read_parquet(paths.raw))
    answers = {}
    for sparse in (False, True):
        expected = sdk_explain(paths, sparse=sparse)
        found = explainer.explain(csr_matrix(rows) if sparse else rows)
        assert_close(found.values.transpose(0, 2, 1), expected.engineered, 1e-9)
        answers[sparse] = found.values
    assert np.abs(answers[True] - answers[False]).max() > 1e-3


def test_kernel_explainers_need_the_sdk(automl: Callable[[str], Any], tmp_path: Path) -> None:
    paths = automl("kernel_regression")
    with pytest.raises(ArtifactError, match=r"A KernelScoringExplainer cannot be exported.*MimicWrapper"):
        bx.export_bundle(paths.explainer, tmp_path / "bundle", model=paths.model)


def test_the_bundle_of_another_automl_model(automl: Callable[[str], Any], tmp_path: Path) -> None:
    ours, other = automl("multiclass"), automl("early_stopped_regression")
    bx.export_bundle(ours.explainer, tmp_path / "bundle", model=ours.model)
    with pytest.raises(ArtifactError, match="its task is classification, and the model's regression"):
        bx.explain_dataset(
            input=other.raw, model=other.model, explainer=tmp_path / "bundle", output=tmp_path / "out", scheduler="sync"
        )


def test_features_of_text_columns_are_small(automl: Callable[[str], Any], tmp_path: Path) -> None:
    """42,000 engineered features, of which the surrogate uses some hundred, mostly zero."""
    paths = automl("wide_binary")
    run = bx.explain_dataset(
        input=paths.raw,
        model=paths.model,
        explainer=paths.explainer,
        output=tmp_path / "out",
        outputs=["features", "engineered"],
        scheduler="sync",
    )
    features = frame_of(run, "features").iloc[:, 2:]
    assert 100 < features.shape[1] < 1_000
    bytes_of = {entry["path"]: entry["bytes"] for entry in run.info["files"]}
    # the numbers alone would take this much; a part also holds names, ids and statistics
    numbers = 8 * np.count_nonzero(features.to_numpy())
    assert bytes_of["features/part-00000.parquet"] < 2 * numbers < features.size * 8
