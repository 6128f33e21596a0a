"""Registered models as artifacts: MLflow's registry behind a real server, and SDK v1's inside a job."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import ArtifactError, InterruptedRunError, OptionError
from batch_explain.explainers.folders import explainer_in, model_in
from batch_explain.storage.filesystems import Location
from tests.comparing import digests
from tests.conftest import ROOT, Small, once
from tests.mlflow_server import QUIET, Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    for name, value in {**QUIET, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_TRACKING_URI": server.uri}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.kill()


@once
def test_registered_fetched_and_run(small: Small, server: Server, tmp_path: Path) -> None:
    """By version and by alias, a pickle with its explainer and a bundle alone; the results are those of the files."""
    pytest.importorskip("flask")
    common: dict[str, Any] = {
        "input": small.write(tmp_path / "rows.parquet", small.frame[:300]), "id_columns": "customer_id",
        "partition_rows": 100, "scheduler": "sync", "report": False,
    }  # fmt: skip
    bx.explain_dataset(**common, model=small.model, explainer=small.explainer, output=tmp_path / "files")
    bx.export_bundle(small.explainer, tmp_path / "bundle", model=small.model)
    server.wait()
    given = ["register", "--name", "bank", "--model", str(small.model), "--explainer", str(small.explainer)]
    said = CliRunner().invoke(cli, [*given, "--alias", "champion", "--tag", "team=risk"])
    assert said.exit_code == 0 and "models:/bank/1" in said.output, said.output
    script = [sys.executable, "-W", "ignore", ROOT / "jobs/register.py"]
    done = subprocess.run(
        [*script, "--name", "bank", "--explainer", tmp_path / "bundle"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("--explainer models:/bank/2\n"), done.stderr

    named = bx.explain_dataset(
        **common, model="models:/bank@champion", explainer="models:/bank@champion", output=tmp_path / "alias"
    )
    assert named.info["options"]["model"] == named.info["options"]["explainer"] == "models:/bank/1"
    bundled = bx.explain_dataset(
        **{**common, "scheduler": "processes", "workers": 2}, model="models:/bank/1", explainer="models:/bank/latest",
        output=tmp_path / "bundled",
    )  # fmt: skip
    assert bundled.info["options"]["explainer"] == "models:/bank/2"
    tables = [
        {
            name: digest
            for name, digest in digests(tmp_path / folder).items()
            if name.startswith(("raw/", "predictions/"))
        }
        for folder in ("files", "alias", "bundled")
    ]
    assert len(tables[0]) == 6 and tables[0] == tables[1] == tables[2]
    shutil.rmtree(tmp_path / "alias/raw")
    assert not bx.verify_run(tmp_path / "alias").ok
    assert bx.verify_run(tmp_path / "bundled", recompute="20").ok

    cached = tmp_path / "cache/batch_explain/registry"
    assert len(list(cached.glob("*/bank/*"))) == 2 and not list(cached.glob("*/bank/.fetching-*"))
    import mlflow

    version = mlflow.MlflowClient().get_model_version("bank", "1")
    assert version.tags["team"] == "risk" and re.fullmatch("[0-9a-f]{64}", version.tags["explainer_sha256"])
    for url, message in [
        ("models:/bank/7", "cannot be fetched"),
        ("models:/nobody/1", "cannot be fetched"),
        ("models:/bank@nobody", "cannot be fetched"),
        ("models:/bank/Production", "neither a version nor 'latest'"),
        ("models:/bank", "names no version"),
    ]:
        with pytest.raises(ArtifactError, match=re.escape(message)):
            bx.explain_dataset(**common, explainer=url, output=tmp_path / "none")
    server.kill()
    with pytest.raises(InterruptedRunError, match="did not take 'bank'"):
        bx.register("bank", explainer=tmp_path / "bundle")
    assert bx.load_explainer("models:/bank/1").n_outputs == 1, "what is here already needs no server"
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_registered(small: Small, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(OptionError, match="nothing to register"):
        bx.register("bank")
    with pytest.raises(ArtifactError, match="cannot be read"):
        bx.register("bank", model=tmp_path / "missing.pkl")


def test_artifacts_are_found_in_a_folder(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copy(small.explainer, folder / "explainer.txt")
    shutil.copy(small.model, folder / "model.pkl")
    assert explainer_in(Location(str(folder))).name == "explainer.txt"
    assert model_in(Location(str(folder))).name == "model.pkl"
    run = bx.explain_dataset(
        input=small.write(tmp_path / "rows.parquet", small.frame[:50]), model=folder, explainer=folder,
        output=tmp_path / "out", scheduler="sync", report=False,
    )  # fmt: skip
    assert run.info["rows"]["explained"] == 50
    bx.export_bundle(small.explainer, folder / "bundle", model=small.model)
    assert explainer_in(Location(str(folder))).name == "bundle"
    assert explainer_in(Location(str(folder / "bundle"))).name == "bundle"


@pytest.mark.automl
def test_names_of_sdk_v1_inside_a_job(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a job finds its registered models: AZUREML_MODEL_DIR, as the SDK's own Model.get_model_path reads it."""
    folder = tmp_path / "azureml-models/bank/3/outputs"
    folder.mkdir(parents=True)
    shutil.copy(small.explainer, folder / "explainer.txt")
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path / "azureml-models"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(small.model, folder / "model.pkl")
    assert bx.load_explainer("azureml-model:bank:3").n_outputs == 1
    assert bx.load_explainer("azureml-model:bank/explainer.txt").n_outputs == 1
    with pytest.raises(ArtifactError, match="azureml-model:other cannot be fetched"):
        bx.load_explainer("azureml-model:other")
