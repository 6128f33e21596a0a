"""What must not happen silently: mixed versions, another run's parts, a run removed for nothing, other digits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.engine import cluster, workers
from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.plan import Plan, write_plan
from batch_explain.engine.runner import plan_run
from batch_explain.engine.task import Context, run_partition
from batch_explain.errors import ArtifactError, BadDataError, InterruptedRunError, OptionError, OutputRefusedError
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import discover
from batch_explain.storage.output import claim_output
from tests.comparing import frame_of
from tests.conftest import Engineered, Small, once


def planned(small: Small, tmp_path: Path, **options: Any) -> tuple[Plan, Artifacts]:
    source = small.write(tmp_path / "rows.parquet")
    made = RunOptions.create(
        input=source, model=small.model, explainer=small.explainer, output=tmp_path / "out", **options
    )
    return plan_run(made, discover(made.input), Artifacts.load(made))


def test_a_file_that_changed_after_planning_is_not_mixed_in(small: Small, tmp_path: Path) -> None:
    plan, artifacts = planned(small, tmp_path)
    write_plan(plan)
    small.write(tmp_path / "rows.parquet", small.frame[::-1])  # as many rows, in another order
    with pytest.raises(BadDataError, match="changed after the run was planned"):
        run_partition(Context(plan, artifacts), plan.partitions[0])
    assert not list((tmp_path / "out").glob("raw/*"))


def test_a_worker_refuses_another_model_than_the_planned_one(small: Small, tmp_path: Path) -> None:
    plan, _ = planned(small, tmp_path)
    key = tuple({**plan.artifacts, "model": "0" * 64}.items())
    with pytest.raises(ArtifactError, match="The model that a worker finds is not the one"):
        workers._load_artifacts(plan.options, key)


def test_a_task_of_an_earlier_run_does_not_write_into_the_next(small: Small, tmp_path: Path) -> None:
    plan, artifacts = planned(small, tmp_path)
    write_plan(replace(plan, run_id="the next run's"))
    with pytest.raises(InterruptedRunError, match="Another run has taken the output"):
        run_partition(Context(plan, artifacts), plan.partitions[0])
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"plan.json", "id"}


def test_an_output_taken_while_planning_is_left_alone(small: Small, tmp_path: Path) -> None:
    plan, _ = planned(small, tmp_path)
    claim = claim_output(plan.options)
    write_plan(plan)  # by another run
    with pytest.raises(OutputRefusedError, match="another run has taken it"):
        claim.take()
    assert (tmp_path / "out/_run/plan.json").exists()


@once
def test_a_run_is_not_removed_for_a_cluster_that_is_not_there(
    engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    engineered.frame.to_parquet(tmp_path / "rows.parquet")
    options = {"input": tmp_path / "rows.parquet", "explainer": engineered.explainer, "output": tmp_path / "out"}
    bx.explain_dataset(**options, scheduler="sync")
    with pytest.raises(OptionError, match="cannot be reached"):
        bx.explain_dataset(**options, scheduler="tcp://127.0.0.1:1", overwrite=True)
    assert bx.open_run(tmp_path / "out").info["rows"]["explained"] == 3_000


def explain_with(model: Any, frame: pd.DataFrame, engineered: Engineered, tmp_path: Path) -> bx.Run:
    joblib.dump(model, tmp_path / "model.pkl")
    frame.to_parquet(tmp_path / "rows.parquet")
    return bx.explain_dataset(
        input=tmp_path / "rows.parquet",
        model=tmp_path / "model.pkl",
        explainer=engineered.explainer,
        output=tmp_path / "out",
        scheduler="sync",
    )


def test_predictions_of_a_float32_pipeline_are_its_own(engineered: Engineered, tmp_path: Path) -> None:
    """The featurizer's output reaches the estimator as it is: float64 would give other digits."""
    frame = engineered.frame.fillna(0).astype("float32")
    model = make_pipeline(StandardScaler(), Ridge()).fit(frame, frame.f0 * 2 + frame.f1)
    run = explain_with(model, frame, engineered, tmp_path)
    expected = model.predict(frame)
    assert expected.dtype == np.float32
    found = frame_of(run, "predictions").prediction.to_numpy()
    np.testing.assert_array_equal(found, found.astype(np.float32))  # computed in float32, as the pipeline does
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # BLAS adds up in an order of its own


def test_infinite_predictions_are_counted_not_hidden(engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame.fillna(0)
    target = np.exp(frame.f0)
    model = TransformedTargetRegressor(LinearRegression(), func=np.log, inverse_func=np.exp).fit(frame, target)
    frame.loc[[5, 7], "f0"] = 1e6
    with np.errstate(over="ignore"):
        run = explain_with(model, frame, engineered, tmp_path)
    assert np.isinf(frame_of(run, "predictions").prediction[[5, 7]]).all()
    assert run.info["fidelity"]["rows"] == 2_998
    assert run.info["fidelity"]["rows_without_finite_prediction"] == 2


def test_decisions_stand_in_run_json(small: Small, tmp_path: Path) -> None:
    run = bx.explain_dataset(
        input=small.write(tmp_path / "rows.parquet"),
        model=small.model,
        explainer=small.explainer,
        output=tmp_path / "out",
        scheduler="sync",
    )
    assert any("use the one of the model's featurizer" in decision for decision in run.info["decisions"])
    assert any("logit of the second class" in decision for decision in run.info["decisions"])
    assert any("source_file and source_row" in decision for decision in run.info["decisions"])


def test_receipts_name_their_run(small: Small, tmp_path: Path) -> None:
    run = bx.explain_dataset(
        input=small.write(tmp_path / "rows.parquet", row_group_size=500),
        model=small.model,
        explainer=small.explainer,
        output=tmp_path / "out",
        scheduler="sync",
        partition_rows=500,
    )
    plan = json.loads((tmp_path / "out/_run/plan.json").read_bytes())
    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "out/_run/receipts").iterdir()]
    assert len(receipts) == run.info["partitions"] == 4
    assert {receipt["run_id"] for receipt in receipts} == {plan["run_id"]}
    assert sum(receipt["rows_in"] for receipt in receipts) == 2_000


@once
def test_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"precious")
    result = CliRunner().invoke(cli, ["demo", "--folder", str(tmp_path), "--rows", "10"])
    assert result.exit_code == 2
    assert "no demo made it" in result.stderr
    assert (tmp_path / "model.pkl").read_bytes() == b"precious"


def test_planning_looks_at_one_row_only(tmp_path: Path, engineered: Engineered) -> None:
    """A first row is explained as a proof, however many rows and files there are."""
    (tmp_path / "rows").mkdir()
    engineered.frame[:0].to_parquet(tmp_path / "rows/0.parquet")
    pd.concat([engineered.frame] * 3).to_parquet(tmp_path / "rows/1.parquet")
    options = RunOptions.create(input=tmp_path / "rows", explainer=engineered.explainer, output=tmp_path / "out")
    plan, _ = plan_run(options, discover(options.input), Artifacts.load(options))
    assert [(part.file.path, part.start, part.stop) for part in plan.partitions] == [("1.parquet", 0, 9_000)]
