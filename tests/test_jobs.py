"""The files in jobs/ that people copy: the nightly run as cron starts it, what registers and deploys."""

import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import batch_explain as bx
from tests.conftest import ROOT, Engineered, Small, once

JOBS = ROOT / "jobs"


@pytest.fixture
def nights(engineered: Engineered, tmp_path: Path) -> Callable[..., tuple[int, list[str], str]]:
    """Starts a night: its exit code, the alerts that it raised, and what it printed."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "batch-explain": f'#!/bin/sh\nexec {sys.executable} -W ignore -m batch_explain "$@"\n',
        "alert": f'#!/bin/sh\necho "$@" >> {tmp_path}/alerts.txt\n',
    }.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    config = (JOBS / "nightly.toml").read_text()
    for option, value in {
        "input": f'"{tmp_path}/rows.parquet"',
        "explainer": f'"{engineered.explainer}"',
        "outputs": '"engineered"',
        "memory-limit": '"2GB"\nscheduler = "sync"\nreport = false',
    }.items():
        config = "\n".join(
            f"{option} = {value}" if line.startswith(f"{option} ") else line for line in config.split("\n")
        )
    dropped = ("model ", "id-columns", "top-k")
    (tmp_path / "nightly.toml").write_text(
        "\n".join(line for line in config.split("\n") if not line.startswith(dropped))
    )

    def start(day: str, rows: Any, keep: int = 14) -> tuple[int, list[str], str]:
        alerts = tmp_path / "alerts.txt"
        alerts.unlink(missing_ok=True)
        if rows is None:
            (tmp_path / "rows.parquet").unlink()
        else:
            rows.to_parquet(tmp_path / "rows.parquet", index=False)
        done = subprocess.run(
            [JOBS / "nightly.sh", tmp_path / "nightly.toml"], capture_output=True, text=True, check=False,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "DAY": day,
                "RUNS": f"{tmp_path}/explained", "KEEP": str(keep), "ALERT": "alert",
            },
        )  # fmt: skip
        return done.returncode, alerts.read_text().splitlines() if alerts.exists() else [], done.stderr

    return start


@once
def test_nights(nights: Callable[..., Any], engineered: Engineered, tmp_path: Path) -> None:
    runs, rows = tmp_path / "explained", engineered.frame
    shifted = rows.assign(f0=0.0, f1=0.0)  # the two that matter most
    code, alerts, said = nights("2024-05-01", rows[:500])
    assert (code, alerts) == (0, []), said
    assert nights("2024-05-02", rows[500:1_000])[:2] == (0, [])
    assert bx.open_run(runs / "2024-05-02").info["drift"]["drift"] < 0.1
    code, [alert], _ = nights("2024-05-03", shifted[:500])
    assert code == 4 and alert.startswith(f"4 {runs}/2024-05-03") and "2024-05-02; the results are complete" in alert
    code, [alert], said = nights("2024-05-04", None)
    assert code == 2 and alert.startswith("2 ") and "rows.parquet" in said
    damaged = next((runs / "2024-05-02/engineered").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    code, [alert], _ = nights("2024-05-02", rows[500:1_000])  # finished: only verified
    assert code == 6 and "damaged" in alert
    assert nights("2024-05-05", shifted[500:1_000], keep=2)[:2] == (0, [])
    assert sorted(path.name for path in runs.iterdir()) == ["2024-05-03", "2024-05-05"]


def test_the_other_schedulers_call_the_same_command() -> None:
    assert (JOBS / "nightly.sh").stat().st_mode & stat.S_IXUSR
    job = yaml.safe_load((JOBS / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert container["command"][0] == "/jobs/nightly.sh"
    given_up = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert given_up["containerName"] == container["name"] and given_up["values"] == [1, 2, 3, 4, 6]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in job["template"]["spec"]["volumes"]}
    assert "jobs/nightly.sh /etc" in (JOBS / "nightly.service").read_text()
    for name, python in (("conda.yml", "3.10"), ("conda_core.yml", "3.12")):
        environment = yaml.safe_load((JOBS / name).read_text())
        assert f"python={python}" in environment["dependencies"] and environment["dependencies"][-1]["pip"]


@pytest.mark.automl
def test_what_sdk_v1_registers_is_what_a_run_takes(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workspace is a stand-in; the folder that it would upload is opened as a job finds it."""
    import azureml.core

    def keep(workspace: Any, model_path: str, model_name: str) -> Any:
        shutil.copytree(model_path, tmp_path / "registered")
        return SimpleNamespace(name=model_name, version=3)

    monkeypatch.setattr(azureml.core.Workspace, "from_config", staticmethod(lambda: None))
    monkeypatch.setattr(azureml.core.Model, "register", staticmethod(keep))
    script = runpy.run_path(str(JOBS / "register.py"))
    assert script["register_v1"]("bank", str(small.model), str(small.explainer)) == "azureml-model:bank:3"
    run = bx.explain_dataset(
        input=small.write(tmp_path / "rows.parquet", small.frame[:50]), model=tmp_path / "registered",
        explainer=tmp_path / "registered", output=tmp_path / "out", scheduler="sync", report=False,
    )  # fmt: skip
    assert run.info["rows"]["explained"] == 50 and "predictions" in run.info["tables"]


@pytest.mark.automl
def test_the_v1_deployment_is_one_that_the_sdk_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real ``InferenceConfig`` and ``AciWebservice`` settings, checked by the SDK; the service is a stand-in."""
    import azureml.core
    from azureml.core.model import InferenceConfig

    kept: list[Any] = []

    def taken(
        workspace: Any, name: str, models: Any, inference: InferenceConfig, settings: Any, overwrite: bool
    ) -> Any:
        inference.validate_configuration()
        settings.validate_configuration()
        kept.extend([name, inference, settings])
        answer = {"predictions": [1], "raw_features": ["age"], "raw_local_importance_values": [[0.5]], "reasons": [[]]}
        return SimpleNamespace(wait_for_deployment=lambda show_output: None, run=lambda body: {**answer, "body": body})

    class Found:
        def __init__(self, workspace: Any, id: str) -> None:
            kept.append(id)

        deploy = staticmethod(taken)

    monkeypatch.setattr(azureml.core.Workspace, "from_config", staticmethod(lambda: None))
    monkeypatch.setattr(azureml.core, "Model", Found)
    (tmp_path / "rows.json").write_text(json.dumps([{"age": 41}]))
    given = ["deploy_v1.py", "--name", "bank-scoring", "--model", "bank:1", "--rows", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", given)
    runpy.run_path(str(JOBS / "deploy_v1.py"), run_name="__main__")
    model, name, inference, settings = kept
    assert (model, name, settings.cpu_cores) == ("bank:1", "bank-scoring", 2)
    packages = list(inference.environment.python.conda_dependencies.pip_packages)
    assert any(package.startswith("batch-explain[automl") for package in packages)
    assert Path(inference.source_directory, inference.entry_script).is_file()
    np.testing.assert_equal(inference.environment.name, "batch-explain")
