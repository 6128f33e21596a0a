"""The engineered values themselves as a table, and explaining from it later, without the model."""

import shutil
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import batch_explain as bx
from batch_explain.errors import InputError, OptionError
from tests.comparing import digests, frame_of, values_of
from tests.conftest import once
from tests.test_restart import stop_after

TABLES = "engineered,raw,features"


class Fill(LinearRegression):
    """A learner that takes gaps."""

    def predict(self, rows: Any) -> np.ndarray:
        return np.asarray(super().predict(np.nan_to_num(rows.toarray())))


TRUST = (f"{__name__}.Fill",)


class Job:
    """Sparse engineered rows with gaps, of a model whose last feature the surrogate never uses."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.folder = folder
        self.frame = pd.DataFrame(
            {
                "id": [f"r{i}" for i in range(400)],
                "number": rng.normal(size=400),
                "gaps": np.where(rng.random(400) < 0.2, np.nan, rng.normal(size=400)),
                "kind": rng.choice(list("abcdef"), 400),
                "constant": 1.0,
            }
        )
        numbers = ["number", "gaps", "constant"]
        featurizer = ColumnTransformer(
            [("n", StandardScaler(), numbers), ("k", OneHotEncoder(), ["kind"])], sparse_threshold=1.0
        )
        self.rows = featurizer.fit_transform(self.frame.drop(columns="id"))
        target = (
            self.frame.number * 2 + self.frame.gaps.fillna(3) + (self.frame.kind == "c") - 2 * (self.frame.kind == "e")
        )
        learner = Fill().fit(np.nan_to_num(self.rows.toarray()), target)
        joblib.dump(Pipeline([("features", featurizer), ("learner", learner)]), folder / "model.pkl")
        self.names = list(featurizer.get_feature_names_out())
        dense = pd.DataFrame(self.rows.toarray(), columns=self.names)
        learner = lightgbm.LGBMRegressor(n_estimators=15, num_leaves=8, verbose=-1, n_jobs=1)
        booster = learner.fit(dense, target).booster_
        booster.save_model(folder / "surrogate.txt")
        self.used = [name for name, splits in zip(self.names, booster.feature_importance(), strict=True) if splits]
        assert 4 <= len(self.used) < len(self.names)
        self.write(self.frame)

    def write(self, frame: pd.DataFrame) -> None:
        frame.to_parquet(self.folder / "rows.parquet", index=False)

    def run(self, output: str = "out", **options: Any) -> bx.Run:
        given = {
            "input": self.folder / "rows.parquet", "model": self.folder / "model.pkl",
            "explainer": self.folder / "surrogate.txt", "outputs": TABLES, "id_columns": "id", "scheduler": "sync",
            "partition_rows": 130, "batch_rows": 100, "trust": TRUST, **options,
        }  # fmt: skip
        return bx.explain_dataset(**given, output=self.folder / output)

    def later(self, output: str = "later", **options: Any) -> bx.Run:
        features = {"input": self.folder / "out/features", "explainer": self.folder / "surrogate.txt"}
        return bx.explain_dataset(
            **{**features, "scheduler": "sync", "report": False, **options}, output=self.folder / output
        )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_values_are_the_featurizers_to_the_bit(job: Job) -> None:
    run = job.run(dtype="float32", compression="zstd")  # importances' alone
    found = frame_of(run, "features")
    assert list(found) == ["id", *job.used]
    assert found.id.tolist() == job.frame.id.tolist()
    expected = pd.DataFrame(job.rows.toarray(), columns=job.names)[job.used].to_numpy()
    assert np.isnan(expected).any() and (expected == 0).any()
    assert (found[job.used].to_numpy().view("i8") == expected.view("i8")).all()
    table = run.table("features").to_table()
    assert all(table[name].type == pa.float64() and table[name].null_count == 0 for name in job.used)
    assert bx.verify_run(job.folder / "out", recompute=50, seed=1, trust=TRUST).ok


def test_verify_finds_a_forged_feature(job: Job) -> None:
    from tests.test_verify import add_to, forge, rewrite

    job.run()
    rewrite(job.folder / "out/features/part-00001.parquet", add_to(job.used[0], 3, 1e-6))
    forge(job.folder / "out")
    found = bx.verify_run(job.folder / "out", recompute="100%", seed=0, trust=TRUST)
    assert [problem.file for problem in found.problems] == ["features/part-00001.parquet"]


def test_explaining_later_is_explaining_now(job: Job) -> None:
    direct = job.run()
    bx.export_bundle(job.folder / "surrogate.txt", job.folder / "bundle", model=job.folder / "model.pkl", trust=TRUST)
    later = job.later(explainer=job.folder / "bundle")
    for level in ("engineered", "raw"):
        names = direct.info["features"][level]
        expected = values_of(direct, level, names)
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(values_of(later, level, names), expected, rtol=0, atol=1e-12)
        assert frame_of(later, level).id.tolist() == job.frame.id.tolist()
    decisions = later.info["decisions"]
    assert "rows are identified by id, as in the run that wrote the features" in decisions
    missing = len(job.names) - len(job.used)
    assert any(f"{missing} engineered features are not in the input" in decision for decision in decisions)
    assert later.info["task"] == "regression"


def test_a_used_feature_that_is_missing_is_named(job: Job) -> None:
    job.run()
    for place in (job.folder / "out/features").iterdir():
        table = pq.read_table(place)
        pq.write_table(table.drop([job.used[1]]), place)
    with pytest.raises(InputError, match=job.used[1]):
        job.later()


def test_rows_that_were_sparse_are_explained_as_sparse(job: Job) -> None:
    """The iteration limits of dense and of sparse rows can differ: the parts say which the rows were."""
    from batch_explain.explainers.tree import TreeExplainer

    text = (job.folder / "surrogate.txt").read_text()
    limited = TreeExplainer(text, iterations=-1, sparse_iterations=4)
    bx.export_bundle(limited, job.folder / "bundle")
    job.run()
    later = job.later(explainer=job.folder / "bundle")
    booster = lightgbm.Booster(model_str=text)
    expected = booster.predict(job.rows.toarray(), pred_contrib=True, num_iteration=4)
    everything = booster.predict(job.rows.toarray(), pred_contrib=True)
    assert np.abs(expected - everything).max() > 0.1
    found = values_of(later, "engineered", job.names)[0]
    np.testing.assert_allclose(found, expected[:, :-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(later.info["expected_values"], expected[0, -1:], rtol=0, atol=1e-12)


@once
def test_rows_of_different_runs_are_not_mixed(job: Job) -> None:
    job.run()
    job.run("other", id_columns=())
    shutil.copy(job.folder / "other/features/part-00000.parquet", job.folder / "out/features/part-00009.parquet")
    with pytest.raises(InputError, match=r"different ids.*different runs"):
        job.later()


def test_there_is_nothing_to_write_without_a_model(job: Job) -> None:
    job.run()
    with pytest.raises(OptionError, match="'features', which cannot be made: the input holds"):
        job.later(outputs="features")


def test_features_alone(job: Job) -> None:
    assert list(job.run(outputs="features").info["tables"]) == ["features"]
    job.run("by default", outputs=None)
    assert not (job.folder / "by default/features").exists()


def test_an_id_of_the_same_name_is_refused(job: Job) -> None:
    job.write(job.frame.rename(columns={"id": job.used[0]}))
    with pytest.raises(OptionError, match=f"'{job.used[0]}' would collide"):
        job.run(outputs="features", id_columns=job.used[0])


@once
def test_bad_rows_have_no_features(job: Job) -> None:
    frame = job.frame.copy()
    frame.loc[[3, 250], "kind"] = "unheard of"  # the encoder refuses it
    job.write(frame)
    run = job.run(max_bad_rows=2)
    assert run.info["rows"]["quarantined"] == 2
    assert frame_of(run, "features").id.tolist() == frame.id.drop([3, 250]).tolist()


@once
def test_a_resumed_run_has_the_same_bytes(job: Job) -> None:
    job.run("whole")
    with pytest.raises(KeyboardInterrupt):
        job.run(observers=[stop_after(2)])
    job.run(resume=True)
    assert digests(job.folder / "out") == digests(job.folder / "whole")
    assert any(name.startswith("features/") for name in digests(job.folder / "out"))
    job.run(overwrite=True)


@once
def test_mostly_zero_columns_are_small(tmp_path: Path) -> None:
    """500 columns, 1 in 100 filled with numbers that never repeat: little more than the numbers themselves."""
    from batch_explain.storage.filesystems import Location
    from batch_explain.storage.tables import PartWriter, TableSpec

    rng = np.random.default_rng(0)
    values = np.where(rng.random((500, 5_000)) < 0.01, rng.normal(size=(500, 5_000)), 0.0)
    spec = TableSpec.create("features", [pa.field(f"f{i}", pa.float64()) for i in range(500)], {})
    with PartWriter(Location(str(tmp_path)), [spec], 0, None) as writer:
        writer.write("features", [pa.array(column) for column in values])
        writer.commit()
    place = tmp_path / "features/part-00000.parquet"
    assert place.stat().st_size < 8 * np.count_nonzero(values) * 4 < values.nbytes / 20
    assert (pq.read_table(place).to_pandas().to_numpy().T.view("i8") == values.view("i8")).all()
