"""MLflow: what a real tracking server holds afterwards, and what happens where there is none."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import DriftError, InterruptedRunError, OptionError
from batch_explain.events import Event, PartitionDone
from batch_explain.integrations.mlflow_record import metric_label
from tests.conftest import Engineered, once
from tests.mlflow_server import QUIET, Server, Wire, free_port
from tests.test_hostile_names import NAMES, Hostile

SECRET = "sesame0451"


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
    with pytest.raises(OptionError, match=r"MLflow at .* cannot be used.*MLFLOW_TRACKING_URI") as refused:
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
    """Hostile names; twice; later; a server that dies while rows are explained; somebody else's MLflow run."""
    engineered.frame.to_parquet(tmp_path / "engineered.parquet", row_group_size=1_000)
    options: dict[str, Any] = {"input": tmp_path / "engineered.parquet", "explainer": engineered.explainer}
    options |= {"output": tmp_path / "out", "scheduler": "sync", "partition_rows": 1_000}
    engineered.frame.assign(f0=0.0).to_parquet(tmp_path / "other.parquet")
    other = {"input": tmp_path / "other.parquet", "output": tmp_path / "later", "limit": 2_000}
    later = bx.explain_dataset(**options | other)  # while the server starts
    options |= {"baseline": tmp_path / "later", "max_drift": 0.0}
    job = Hostile(tmp_path, NAMES, ["a", "b/c", "d"])
    (tmp_path / "rows").rename(tmp_path / f"rows;token={SECRET}")
    command = [*job.command, "--input", str(tmp_path / f"rows;token={SECRET}"), "--partition-rows", "300", "--mlflow"]
    from mlflow import MlflowClient

    tracking.setenv("MLFLOW_TRACKING_URI", server.wait().uri)
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "View run" not in done.output

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
        "batch_explain.scheduler": "sync",
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

    found = Path(client.download_artifacts(logged.info.run_id, "batch_explain", str(fresh(tmp_path / "fetched"))))
    names = json.loads((found / "metric_names.json").read_text())
    fetched = {path.relative_to(found).as_posix() for path in files_in(found)} - {"metric_names.json"}
    summaries = {f"summary/{path.name}" for path in (tmp_path / "deep/out/summary").glob("*.json")}
    assert fetched == summaries | {"run.json", "report.html"} and len(summaries) >= 3
    assert all((found / path).read_bytes() == (tmp_path / "deep/out" / path).read_bytes() for path in fetched)

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

    again = CliRunner().invoke(cli, [*command, "--resume"])
    assert again.exit_code == 0, again.output
    assert len(client.search_runs([experiment])) == 1
    assert all(len(client.get_metric_history(logged.info.run_id, name)) == 1 for name in data.metrics)

    for _ in range(2):
        said = CliRunner().invoke(cli, ["log", str(later.location)])
        assert said.exit_code == 0, said.output
    newest = client.search_runs([experiment])
    assert len(newest) == 2 and newest[0].info.run_id in said.output
    assert newest[0].data.metrics["rows_explained"] == 2_000
    only = later.summary("engineered").set_index("feature")["mean_abs"]
    assert newest[0].data.metrics["importance/f0"] == only["f0"] > 0

    # the server dies after the plan; its run is complete, and logged by --resume, into somebody's MLflow run
    wire = Wire(server.port)
    tracking.setenv("MLFLOW_TRACKING_URI", wire.uri)

    def cut(event: Event) -> None:
        if isinstance(event, PartitionDone) and event.index == 0:
            wire.cut()

    with pytest.raises(InterruptedRunError, match=r"complete.* batch-explain log .*--resume") as lost:
        bx.explain_dataset(observers=[cut], mlflow=True, **options)
    assert lost.value.exit_code == 5
    assert bx.open_run(tmp_path / "out").info["rows"]["explained"] == 3_000 and bx.verify_run(tmp_path / "out").ok
    tracking.setenv("MLFLOW_TRACKING_URI", server.uri)
    job_run = client.create_run(experiment).info.run_id
    tracking.setenv("MLFLOW_RUN_ID", job_run)
    for _ in range(2):
        with pytest.raises(DriftError):  # logged all the same
            bx.explain_dataset(**options, mlflow=True, resume=True)
    theirs = client.get_run(job_run)
    assert theirs.info.status == "RUNNING"  # whoever began it ends it
    assert theirs.data.metrics["rows_explained"] == 3_000
    drift = bx.compare_runs(tmp_path / "out", tmp_path / "later").drift
    assert theirs.data.metrics["drift"] == pytest.approx(drift, rel=1e-12) and drift > 0.01
    assert len(client.get_metric_history(job_run, "rows_explained")) == 1
    # a second run in the same job: below it, once
    second = {bx.log_to_mlflow(run) for _ in range(2)}
    assert len(second) == 1 and job_run not in second
    assert client.get_run(second.pop()).data.tags["mlflow.parentRunId"] == job_run

    assert all(SECRET.encode() not in path.read_bytes() for path in files_in(server.folder))
    assert len(files_in(server.folder)) > 5


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder
