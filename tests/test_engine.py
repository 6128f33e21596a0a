"""One suite of cases, run on every executor: this thread, threads, processes, and a real cluster."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import batch_explain as bx
from batch_explain.errors import BadDataError, InterruptedRunError
from batch_explain.options import RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import read_receipt
from tests.comparing import assert_close, digests, frame_of, values_of
from tests.conftest import Engineered, Small, once


@pytest.fixture(scope="module", params=["sync", "threads", pytest.param("processes", marks=once), "cluster"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.getfixturevalue("cluster") if request.param == "cluster" else request.param


@pytest.fixture(scope="module", params=["sync", "threads", "cluster"])
def cheap_scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    """Without the processes of this machine, which take seconds to start and differ from the cluster in that alone."""
    yield request.getfixturevalue("cluster") if request.param == "cluster" else request.param


@pytest.fixture
def rows(small: Small, tmp_path: Path) -> Path:
    for number in range(4):
        small.write(tmp_path / f"rows/{number}.parquet", small.frame[number * 500 : (number + 1) * 500])
    return tmp_path / "rows"


CUT: dict[str, Any] = {"partition_rows": 200, "id_columns": "customer_id", "cohort": ["job", "balance@4"]}


def explain(small: Small, rows: Path, output: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=rows, model=small.model, explainer=small.explainer, output=output, **{"workers": 2, **options}
    )


def test_same_values_and_bytes_everywhere(
    scheduler: str, small: Small, rows: Path, tmp_path: Path, reference: Callable[..., dict[str, str]]
) -> None:
    run = explain(small, rows, tmp_path / "out", scheduler=scheduler, **CUT)
    np.testing.assert_array_equal(frame_of(run, "raw").customer_id, small.frame.customer_id)
    assert digests(tmp_path / "out") == reference(rows)
    assert (tmp_path / "out/_SUCCESS").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.fixture(scope="module")
def reference(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """What one worker in this thread writes, and that it is what the model and LightGBM themselves say."""
    answers: dict[str, dict[str, str]] = {}

    def answer(rows: Path) -> dict[str, str]:
        if not answers:
            import joblib
            import lightgbm

            output = tmp_path_factory.mktemp("reference") / "out"
            run = explain(small, rows, output, scheduler="sync", **CUT)
            model, booster = joblib.load(small.model), lightgbm.Booster(model_file=small.explainer)
            contributions = booster.predict(model[:-1].transform(small.frame), pred_contrib=True)
            assert np.abs(contributions[:, :-1]).max() > 0
            assert_close(values_of(run, "engineered", booster.feature_name())[0], contributions[:, :-1], 1e-12)
            assert run.info["expected_values"] == [pytest.approx(contributions[0, -1])]
            predictions = frame_of(run, "predictions")
            assert (predictions.prediction.to_numpy() == model.predict(small.frame)).all()
            probabilities = predictions[[f"probability_{label}" for label in model.classes_]]
            np.testing.assert_allclose(probabilities, model.predict_proba(small.frame), rtol=0, atol=1e-12)
            answers["digests"] = digests(output)
        return answers["digests"]

    return answer


def test_artifacts_are_loaded_once_a_worker(scheduler: str, small: Small, rows: Path, tmp_path: Path) -> None:
    run = explain(small, rows, tmp_path / "out", scheduler=scheduler, partition_rows=100)
    receipts = [read_receipt(Location(str(tmp_path / "out")), index) for index in range(run.info["partitions"])]
    loads: dict[tuple[str, int], set[float]] = {}
    for receipt in receipts:
        assert receipt is not None
        worker = receipt.worker
        loads.setdefault((worker["host"], worker["pid"]), set()).add(worker["artifacts_loaded_at"])
    assert len(receipts) == 20
    assert all(len(times) == 1 for times in loads.values())
    assert len(loads) == (2 if scheduler not in ("sync", "threads") else 1)


def test_an_error_in_a_task_is_the_users_error(cheap_scheduler: str, small: Small, rows: Path, tmp_path: Path) -> None:
    """The paragraph comes back from the worker as it is, and the run is not a success."""
    broken = small.frame[:500].assign(age="forty")
    broken.loc[:, "age"] = [str(age) for age in small.frame.age[:500]]
    broken.loc[123, "age"] = "forty"
    small.write(rows / "2.parquet", broken)
    for name in ("0", "1", "3"):
        small.write(rows / f"{name}.parquet", small.frame[:500].assign(age=small.frame.age[:500].astype(str)))
    with pytest.raises(BadDataError, match=r"row 123 of 2\.parquet"):
        explain(small, rows, tmp_path / "out", scheduler=cheap_scheduler, partition_rows=100, batch_rows=50)
    assert not (tmp_path / "out/_SUCCESS").exists()
    with pytest.raises(bx.errors.OptionError, match="unfinished run"):
        bx.open_run(tmp_path / "out")


def test_without_a_model_the_input_is_engineered(cheap_scheduler: str, engineered: Engineered, tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    engineered.frame.to_parquet(source, row_group_size=700)
    run = bx.explain_dataset(
        input=source,
        explainer=engineered.explainer,
        output=tmp_path / "out",
        scheduler=cheap_scheduler,
        workers=2,
        partition_rows=700,
        check="all",
    )
    expected = engineered.booster.predict(engineered.frame, pred_contrib=True)
    assert list(run.info["tables"]) == ["engineered"]
    levels = [
        pq.read_metadata(part).schema.column(2).max_definition_level for part in (tmp_path / "out/engineered").iterdir()
    ]
    assert set(levels) == {0}, "importances are required: there is no level to write of whether they are null"
    assert_close(values_of(run, "engineered", list(engineered.frame))[0], expected[:, :-1], 1e-12)
    never_split = [f for f, n in zip(engineered.frame, engineered.booster.feature_importance(), strict=True) if not n]
    assert "f11" in never_split
    assert run.info["additivity"]["rows_checked"] == 3_000
    assert run.info["additivity"]["largest_residual"] < 1e-12
    assert run.info["features"]["identically_zero"] == never_split


def test_workers_that_do_not_share_the_output_are_told(small: Small, rows: Path, tmp_path: Path) -> None:
    """A worker that reads another plan than the run's does not write into it."""
    from batch_explain.engine.workers import run_on_worker

    explain(small, rows, tmp_path / "out", scheduler="sync")
    options = RunOptions.create(
        input=rows, model=small.model, explainer=small.explainer, output=tmp_path / "out", scheduler="sync"
    )
    with pytest.raises(InterruptedRunError, match="not the one of this run"):
        run_on_worker(options, "another plan's digest", (0,))


def test_plan_can_be_read_back(small: Small, rows: Path, tmp_path: Path) -> None:
    """Tasks on other machines work from the stored plan: it must say all that the planned one did."""
    from batch_explain.engine.artifacts import Artifacts
    from batch_explain.engine.plan import read_plan, write_plan
    from batch_explain.engine.runner import plan_run
    from batch_explain.storage.dataset import discover

    options = RunOptions.create(
        input=rows, model=small.model, explainer=small.explainer, output=tmp_path / "out", partition_rows=300
    )
    plan, _ = plan_run(options, discover(options.input), Artifacts.load(options))
    write_plan(plan)
    again = read_plan(options)
    assert again.digest == plan.digest
    assert again.to_json() == plan.to_json()
    assert json.loads(json.dumps(plan.to_json())) == json.loads((tmp_path / "out/_run/plan.json").read_bytes())
    assert [spec.schema for specs in again.tables.values() for spec in specs] == [
        spec.schema for specs in plan.tables.values() for spec in specs
    ]
    assert [(p.index, p.file.url, p.start, p.stop) for p in again.partitions] == [
        (p.index, p.file.url, p.start, p.stop) for p in plan.partitions
    ]
