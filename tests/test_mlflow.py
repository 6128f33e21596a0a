"""MLflow: what a real tracking server holds afterwards, and what happens where there is none."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import batch_explain as bx
from batch_explain.errors import InterruptedRunError, OptionError
from batch_explain.events import Event, PartitionDone
from batch_explain.integrations.mlflow_record import metric_label
from tests.conftest import ROOT, Engineered, once
from tests.mlflow_server import QUIET, Server, Wire, free_port
from tests.test_hostile_names import NAMES, Hostile

SECRET = "sesame0451"
COMMAND = [sys.executable, "-m", "batch_explain"]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not answering yet."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {**QUIET, "MLFLOW_EXPERIMENT_NAME": "explained", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_names_of_metrics_are_allowed_stable_and_different() -> None:
    validate = pytest.importorskip("mlflow.utils.validation")._validate_metric_name
    plain = ["age", "duration.of call", "naïve 数"]
    assert [metric_label(name) for name in plain] == plain
    names = {*NAMES, *plain, "a/b", "a_b", "a_b ", "x" * 300, "x" * 299 + "y", "y" * 100, "...", "\ud800", "-", "_"}
    names |= {metric_label(name) for name in names}  # a feature that is called as another one is logged
    labels = [metric_label(name) for name in sorted(names)]
    assert len(set(labels)) == len(names)
    for label in labels:
        assert "/" not in label
        for name in (f"importance/{label}", f"importance_share/{'x' * 100}/{label}"):
            validate(name)
            assert len(name) <= 250


def test_what_cannot_be_logged_is_known_before_anything_starts(
    engineered: Engineered, tmp_path: Path, tracking: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    engineered.frame.to_parquet(tmp_path / "rows.parquet")
    options = {"input": tmp_path / "rows.parquet", "explainer": engineered.explainer, "output": tmp_path / "out"}
    tracking.setenv("MLFLOW_TRACKING_URI", f"http://somebody:{SECRET}@127.0.0.1:{free_port()}")
    tracking.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    before = dict(os.environ)
    with pytest.raises(OptionError, match="MLflow at .* cannot be used.*MLFLOW_TRACKING_URI") as refused:
        bx.explain_dataset(mlflow=True, scheduler="sync", **options)
    assert SECRET not in str(refused.value) and "\n" not in str(refused.value)
    assert dict(os.environ) == before
    with pytest.raises(OptionError, match="mlflow is 'yes'"):
        bx.explain_dataset(mlflow="yes", **options)  # type: ignore[arg-type]
    tracking.setitem(sys.modules, "mlflow", None)
    with pytest.raises(OptionError, match=r"pip install 'batch-explain\[mlflow\]'"):
        bx.explain_dataset(mlflow=True, **options)
    assert not (tmp_path / "out").exists()


@once
def test_a_server_holds_what_the_run_says(
    server: Server, engineered: Engineered, tmp_path: Path, tracking: pytest.MonkeyPatch
) -> None:
    """Hostile names in worker processes; twice; and a server that dies while rows are explained."""
    job = Hostile(tmp_path, NAMES, ["a", "b/c", "d"])  # while the server starts
    (tmp_path / "rows").rename(tmp_path / f"rows;token={SECRET}")
    command = [*COMMAND, *job.command, "--input", str(tmp_path / f"rows;token={SECRET}"), "--mlflow"]
    command += ["--scheduler", "processes", "--workers", "2", "--partition-rows", "300"]
    from mlflow import MlflowClient

    tracking.setenv("MLFLOW_TRACKING_URI", server.wait().uri)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "View run" not in done.stdout

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("explained").experiment_id
    (logged,) = client.search_runs([experiment])
    assert logged.info.status == "FINISHED"
    run = bx.open_run(tmp_path / "deep/out")
    info, data = run.info, logged.data
    assert data.params == {
        "batch_explain.input": info["options"]["input"],
        "batch_explain.output": str(tmp_path / "deep/out"),
        "batch_explain.explainer": str(tmp_path / "surrogate.txt"),
        "batch_explain.model": str(tmp_path / "model.pkl"),
        "batch_explain.id_columns": '["customer id"]',
        "batch_explain.partition_rows": "300",
        "batch_explain.workers": "2",
    }
    assert data.tags["batch_explain.version"] == bx.__version__
    assert data.tags["batch_explain.explainer_sha256"] == info["artifacts"]["explainer"]["sha256"]
    assert data.metrics["rows_explained"] == len(job.frame) == 900
    assert data.metrics["rows_quarantined"] == 0
    assert data.metrics["rows_per_second"] == info["rows_per_second"]
    assert data.metrics["seconds_explain"] == info["timings_s"]["explain"]
    assert data.metrics["peak_rss_bytes"] == info["peak_rss_bytes"]
    assert data.metrics["fidelity_agreement"] == info["fidelity"]["agreement"]
    assert data.metrics["additivity_largest_residual"] == info["additivity"]["largest_residual"] < 1e-9

    files = {path.relative_to(job.folder / "deep/out").as_posix(): path for path in run_files(job.folder / "deep/out")}
    found = Path(client.download_artifacts(logged.info.run_id, "batch_explain", str(fresh(tmp_path / "fetched"))))
    names = json.loads((found / "metric_names.json").read_text())
    (found / "metric_names.json").unlink()
    fetched = {path.relative_to(found).as_posix(): path for path in found.rglob("*") if path.is_file()}
    assert set(fetched) == {
        path for path in files if path == "run.json" or path.endswith(".json") and "summary" in path
    }
    assert all(path.read_bytes() == files[name].read_bytes() for name, path in fetched.items())

    # the summary against LightGBM's own contributions, and the metrics against both
    level = "raw" if info["features"]["raw"] else "engineered"
    summary = pd.read_parquet(tmp_path / f"deep/out/summary/{level}.parquet").set_index(["output", "feature"])[
        "mean_abs"
    ]
    expected = pd.DataFrame(abs(job.expected()).mean(0), list(job.model.classes_), NAMES).stack()
    seen = {}
    for name, value in data.metrics.items():
        kind, _, place = name.partition("/")
        if kind == "importance":
            key = tuple(names[place].values()) if place in names else tuple(place.split("/"))
            seen[key] = value
            assert value == summary[key] == pytest.approx(expected[key], abs=1e-9)
            share = data.metrics[f"importance_share/{place}"]
            assert share == pytest.approx(value / summary[key[0]].sum(), rel=1e-12)
    assert set(seen) == set(summary.index) and len(seen) == 3 * len(NAMES)

    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert again.returncode == 0, again.stderr
    assert len(client.search_runs([experiment])) == 1
    assert all(len(client.get_metric_history(logged.info.run_id, name)) == 1 for name in data.metrics)

    # the server dies after the plan; its run is complete, and logged by --resume, into somebody's MLflow run
    engineered.frame.to_parquet(tmp_path / "engineered.parquet", row_group_size=1_000)
    wire = Wire(server.port)
    tracking.setenv("MLFLOW_TRACKING_URI", wire.uri)
    options: dict[str, Any] = {"input": tmp_path / "engineered.parquet", "explainer": engineered.explainer}
    options |= {"output": tmp_path / "out", "scheduler": "sync", "partition_rows": 1_000, "mlflow": True}

    def cut(event: Event) -> None:
        if isinstance(event, PartitionDone) and event.index == 0:
            wire.cut()

    with pytest.raises(InterruptedRunError, match="complete.* batch-explain log .*--resume") as lost:
        bx.explain_dataset(observers=[cut], **options)
    assert lost.value.exit_code == 5
    assert bx.open_run(tmp_path / "out").info["rows"]["explained"] == 3_000 and bx.verify_run(tmp_path / "out").ok
    tracking.setenv("MLFLOW_TRACKING_URI", server.uri)
    job_run = client.create_run(experiment).info.run_id
    tracking.setenv("MLFLOW_RUN_ID", job_run)
    for _ in range(2):
        bx.explain_dataset(**options, resume=True)
    theirs = client.get_run(job_run)
    assert theirs.info.status == "RUNNING"  # whoever began it ends it
    assert theirs.data.metrics["rows_explained"] == 3_000
    assert len(client.get_metric_history(job_run, "rows_explained")) == 1
    # a second run in the same job: below it, once
    second = {bx.log_to_mlflow(run) for _ in range(2)}
    assert len(second) == 1 and job_run not in second
    assert client.get_run(second.pop()).data.tags["mlflow.parentRunId"] == job_run

    assert all(SECRET.encode() not in path.read_bytes() for path in run_files(server.folder))
    assert len(run_files(server.folder)) > 5


def run_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder
