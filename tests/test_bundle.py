"""Portable bundles: they give the SDK's values with no SDK there, wherever a pickle goes."""

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import joblib
import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LinearRegression, LogisticRegression

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import ArtifactError, OptionError, OutputRefusedError
from tests.comparing import assert_close, digests, frame_of, values_of
from tests.conftest import Engineered, Small, once
from tests.lightgbm_models import booster, train
from tests.test_restart import stop_after

GOLDEN = Path(__file__).parent / "data"
KINDS = ["multiclass-sparse", "linear-multiclass"]


@pytest.fixture(params=KINDS)
def golden(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / str(request.param)


def refusal(bundle: Path | str) -> str:
    """The paragraph with which a bundle is refused."""
    with pytest.raises(ArtifactError) as caught:
        bx.load_explainer(bundle)
    message = str(caught.value)
    assert str(bundle) in message and "\n" not in message
    return message


def test_golden_bundles_give_the_sdks_values(golden: Path, tmp_path: Path) -> None:
    """Made on Python 3.10 (see data/make.py); the expected values are the SDK's own explain()."""
    expected = np.load(golden / "expected.npz", allow_pickle=False)
    explainer = bx.load_explainer(golden / "bundle")
    assert len(explainer.used) >= 8  # it does split
    assert np.abs(expected["engineered"]).max() > 0.3
    run = bx.explain_dataset(
        input=golden / "features", explainer=golden / "bundle", output=tmp_path / "out", scheduler="sync"
    )
    assert_close(values_of(run, "engineered", list(expected["engineered_features"])), expected["engineered"], 1e-12)
    assert_close(values_of(run, "raw", list(expected["raw_features"])), expected["raw"], 1e-12)
    np.testing.assert_allclose(run.info["expected_values"], expected["expected_values"], rtol=0, atol=1e-12)
    assert run.outputs == run.info["classes"] == list(expected["classes"])
    assert run.info["task"] == "classification"
    assert run.info["additivity"]["largest_residual"] < 1e-12
    ids = frame_of(run, "raw", run.outputs[0])[["source_file", "source_row"]]
    assert ids.source_file.tolist() == ["raw.parquet"] * 60  # of the rows that the model saw, not of the features
    assert ids.source_row.tolist() == list(range(60))
    assert bx.verify_run(tmp_path / "out", recompute=20, seed=0).ok


def test_in_memory(golden: Path) -> None:
    expected = np.load(golden / "expected.npz", allow_pickle=False)
    explainer = bx.load_explainer(golden / "bundle")
    features = pq.read_table(golden / "features").to_pandas()
    found = explainer.explain(features.reindex(columns=list(explainer.engineered_features), fill_value=0.0))
    assert found.classes == tuple(expected["classes"])
    assert_close(found.values.transpose(0, 2, 1), expected["engineered"], 1e-12)


@once
def test_there_is_no_code_in_it(golden: Path) -> None:
    for path in (golden / "bundle").iterdir():
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].dtype.kind in "fiS" for name in arrays)
        elif path.suffix == ".parquet":
            assert pq.read_table(path).schema.names == ["sparse", "row", "engineered", "raw"]
        else:
            assert path.name in ("bundle.json", "surrogate.txt")
            assert all(letter.isprintable() or letter in "\n" for letter in path.read_text(encoding="utf-8"))


@once
@pytest.mark.parametrize("objective", ["regression", "binary", "multiclass"])
def test_any_lightgbm_model_can_be_exported(objective: str, tmp_path: Path) -> None:
    """Against LightGBM's own contributions, with categories, gaps, and no model given."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(400, 4)), rng.integers(0, 12, 400)])
    X[::9, 1] = np.nan
    y = X[:, 0] * 2 + (X[:, 4] % 3) + np.nan_to_num(X[:, 1])
    if objective != "regression":
        y = np.digitize(y, np.quantile(y, [0.5] if objective == "binary" else [0.3, 0.6]))
    outputs = 3 if objective == "multiclass" else 1
    extra = {"num_class": 3} if outputs > 1 else {}
    text = train(X, y, objective=objective, categorical=[4], rounds=6, **extra)
    (tmp_path / "model.txt").write_text(text)
    exported = bx.export_bundle(tmp_path / "model.txt", tmp_path / "bundle")
    assert exported.task is None and exported.classes is None
    found = bx.load_explainer(tmp_path / "bundle").explain(X)
    expected = booster(text).predict(X, pred_contrib=True).reshape(len(X), outputs, 6)
    assert np.abs(expected[:, :, :5]).max() > 0.1
    np.testing.assert_allclose(found.values, expected[:, :, :5].transpose(1, 2, 0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.expected_values, expected[0, :, 5], rtol=0, atol=1e-12)
    canary = pq.read_table(tmp_path / "bundle/canary.parquet")
    rows = np.array(canary["row"].to_pylist())
    categories = rows[:, 4]
    assert np.isnan(rows).any(axis=0).all() and (rows == 0).any(axis=0).all()
    assert categories[~np.isnan(categories)].max() > 11  # one that no tree knows


def test_an_lgbm_object_is_exported_with_its_classes(tmp_path: Path) -> None:
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 3)), columns=["a", "b", "c"])
    labels = np.array(["x", "y", "z"])[np.digitize(X.a + X.b * X.c, [-0.5, 0.5])]
    model = lightgbm.LGBMClassifier(n_estimators=5, num_leaves=6, verbose=-1, n_jobs=1).fit(X, labels)
    bx.export_bundle(model, tmp_path / "bundle")
    explainer = bx.load_explainer(tmp_path / "bundle")
    assert len(explainer.used) == 3
    assert explainer.explain(X).classes == ("x", "y", "z")
    expected = model.booster_.predict(X, pred_contrib=True).reshape(300, 3, 4)[:, :, :3]
    np.testing.assert_allclose(explainer.explain(X).values, expected.transpose(1, 2, 0), rtol=0, atol=1e-12)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The text of a model of few trees."""
    rows = np.random.default_rng(0).normal(size=(200, 3))
    place = tmp_path / "tiny.txt"
    place.write_text(train(rows, rows[:, 0] * rows[:, 1], objective="regression"))
    return place


def test_the_same_bytes_each_time(small: Small, tmp_path: Path) -> None:
    for name in ("a", "b"):
        bx.export_bundle(small.explainer, tmp_path / name, model=small.model)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["bundle.json", "canary.parquet", "feature_map.npz", "surrogate.txt"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a/surrogate.txt").read_text() == small.explainer.read_text()


@once
def test_what_the_output_may_be(tiny: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"

    def export(**options: Any) -> Any:
        return bx.export_bundle(tiny, place, **options)

    place.write_text("a file")
    with pytest.raises(OutputRefusedError, match="is a file"):
        export()
    place.unlink()
    export()
    with pytest.raises(OutputRefusedError, match=r"not empty.*--overwrite"):
        export()
    names = booster(tiny.read_text()).feature_name()
    weights = pa.table({"raw_feature": ["x"] * 3, "engineered_feature": names, "weight": [1.0] * 3})
    pq.write_table(weights, tmp_path / "map.parquet")
    before = (place / "bundle.json").read_bytes()
    export(overwrite=True, feature_map=tmp_path / "map.parquet")
    assert (place / "bundle.json").read_bytes() != before
    (place / "bundle.json").unlink()  # as if the export had been stopped before its last step
    assert "export was stopped" in refusal(place)
    export()
    (place / "mine.txt").write_text("precious")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(OutputRefusedError, match=r"not empty.*only ever replaces a bundle"):
            export(**options)
    assert (place / "mine.txt").read_text() == "precious"
    bx.load_explainer(place)  # what lies beside it is nobody's business when it is read


def test_the_command(tiny: Path, tmp_path: Path) -> None:
    arguments = ["export", "--explainer", str(tiny)]
    result = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    assert "no --model" in result.output and str(tmp_path / "bundle") in result.output
    result = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "bundle")])
    assert result.exit_code == 2 and "--overwrite" in result.output


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert "it is no bundle" in refusal(tmp_path)


class Sums:
    """An explainer with code of its own."""

    _features = ("a", "b")

    def explain(self, rows: np.ndarray) -> np.ndarray:
        return rows


def test_what_needs_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"A Sums cannot be exported.*MimicWrapper"):
        bx.export_bundle(Sums(), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_inspect_tells_what_it_is() -> None:
    found = bx.inspect_artifact(GOLDEN / "multiclass-sparse/bundle")
    explainer = bx.load_explainer(GOLDEN / "multiclass-sparse/bundle")
    assert found.kind == "portable bundle of a tree explainer" and found.task == "classification"
    assert found.outputs == explainer.n_outputs == len(found.classes or ()) and not found.imports and not found.warnings
    assert found.trees is not None and found.trees.used_features == len(explainer.used) and found.trees.table_bytes
    assert found.made_with["lightgbm"] and found.here["lightgbm"]
    linear = bx.inspect_artifact(GOLDEN / "linear-multiclass/bundle")
    assert linear.trees is None and linear.feature_map is not None and 0 < linear.feature_map[2] < 1


@once
def test_a_bundle_can_be_pinned(tmp_path: Path) -> None:
    place = GOLDEN / "linear-multiclass/bundle"
    digest = hashlib.sha256((place / "bundle.json").read_bytes()).hexdigest()
    assert bx.load_explainer(place, sha256=digest).kind == "linear"
    with pytest.raises(ArtifactError, match=r"has the SHA-256 .* and --sha256 says 0000"):
        bx.load_explainer(place, sha256="0" * 64)


@once
def test_workers_open_bundles(engineered: Engineered, tmp_path: Path) -> None:
    """In worker processes: the bytes of the run with the original explainer in one process."""
    engineered.frame[:600].to_parquet(tmp_path / "rows.parquet", index=False)
    bundle = tmp_path / "bundle"
    bx.export_bundle(engineered.explainer, bundle)
    options: dict[str, Any] = {"input": tmp_path / "rows.parquet", "partition_rows": 300}
    bx.explain_dataset(**options, explainer=engineered.explainer, output=tmp_path / "a", scheduler="sync")
    run = bx.explain_dataset(**options, explainer=bundle, output=tmp_path / "b", scheduler="processes", workers=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert run.info["artifacts"]["explainer"]["description"].startswith("portable bundle: LightGBM")


@once
def test_on_another_filesystem(tiny: Path) -> None:
    place = "memory://bundles/tiny"
    bx.export_bundle(tiny, place)
    with pytest.raises(OutputRefusedError, match="not empty"):
        bx.export_bundle(tiny, place)
    bx.export_bundle(tiny, place, overwrite=True)
    rows = np.random.default_rng(1).normal(size=(20, 3))
    expected = booster(tiny.read_text()).predict(rows, pred_contrib=True)[:, :3]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(bx.load_explainer(place).explain(rows).values[0].T, expected, rtol=0, atol=1e-12)
    fsspec.filesystem("memory").rm_file("/bundles/tiny/surrogate.txt")
    assert "surrogate.txt is missing" in refusal(place)


@once
def test_a_bundle_of_another_model(tmp_path: Path) -> None:
    """Refused by what differs: task, classes (1 is not '1'), features."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 3)), columns=["a", "b", "c"])
    codes = np.digitize(frame.a + frame.b, [-0.5, 0.5])
    texts = np.array(["low", "mid", "top"])[codes]
    model = LogisticRegression().fit(frame, texts)
    (tmp_path / "model.txt").write_text(train(frame.to_numpy(), codes, objective="multiclass", num_class=3))
    bx.export_bundle(tmp_path / "model.txt", tmp_path / "bundle", model=model)
    frame.to_parquet(tmp_path / "rows.parquet")

    def run(model: Any) -> bx.Run:
        joblib.dump(model, tmp_path / "model.pkl")
        return bx.explain_dataset(
            input=tmp_path / "rows.parquet", model=tmp_path / "model.pkl", explainer=tmp_path / "bundle",
            output=tmp_path / "out", scheduler="sync",
        )  # fmt: skip

    for other, message in (
        (LinearRegression().fit(frame, codes), "its task is classification, and the model's regression"),
        (LogisticRegression().fit(frame, codes), "its classes are 'low', 'mid', 'top', and the model's 0, 1, 2"),
        (LogisticRegression().fit(frame[["c", "b", "a"]], texts), "number 0: 'c' in the model, 'a' in the explainer"),
        (LogisticRegression().fit(frame[["a", "b"]], texts), "makes 2 engineered features.* explains 3"),
    ):
        with pytest.raises(ArtifactError, match=message):
            run(other)
    found = run(model)
    assert found.outputs == ["low", "mid", "top"]
    assert found.info["features"]["raw"] == ["a", "b", "c"]


@once
def test_an_exchanged_bundle_is_not_resumed_with(engineered: Engineered, tmp_path: Path) -> None:
    bundle, source = tmp_path / "bundle", tmp_path / "rows.parquet"
    engineered.frame[:400].to_parquet(source, index=False)
    bx.export_bundle(engineered.explainer, bundle)
    options: dict[str, Any] = {
        "input": source, "explainer": bundle, "output": tmp_path / "out", "scheduler": "sync", "partition_rows": 100,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        bx.explain_dataset(**options, observers=[stop_after(1)])
    kept = tmp_path / "kept"
    bundle.rename(kept)
    reduced = engineered.booster.model_to_string(num_iteration=10)
    (tmp_path / "other.txt").write_text(reduced)
    bx.export_bundle(tmp_path / "other.txt", bundle)
    with pytest.raises(OptionError, match="the explainer is another file"):
        bx.explain_dataset(**options, resume=True)
    run = bx.explain_dataset(**{**options, "explainer": kept}, resume=True)
    expected = engineered.booster.predict(engineered.frame[:400], pred_contrib=True)[:, :12]
    assert_close(values_of(run, "engineered", list(engineered.frame))[0], expected, 1e-12)
    assert (
        run.info["artifacts"]["explainer"]["sha256"] == hashlib.sha256((kept / "bundle.json").read_bytes()).hexdigest()
    )
