"""Shared fixtures: small artifacts for both environments; genuine AutoML kinds where the Azure stack is installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

# How long an example takes is the machine's business.
settings.register_profile("batch_explain", deadline=None)
settings.load_profile("batch_explain")

ROOT = Path(__file__).parent.parent
HAS_AUTOML = importlib.util.find_spec("azureml") is not None

# For slow tests of what no version of the AutoML stack has a part in.
once = pytest.mark.skipif(HAS_AUTOML, reason="shown without the AutoML stack, which has no part in it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_AUTOML:
        return
    skip = pytest.mark.skip(reason="needs the [automl] extra, which exists for Python 3.10")
    for item in items:
        if item.get_closest_marker("automl"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def automl(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Paths of a genuine AutoML kind, built once a session when first asked for."""
    from tests.automl_fixtures import build

    folder = tmp_path_factory.mktemp("kinds")
    return lambda kind: build([kind], folder)[kind]


@pytest.fixture(scope="session")
def oracle(automl: Callable[[str], Any]) -> Callable[[str], Any]:
    """The SDK's own answer for a kind, computed once a session."""
    from tests.automl_fixtures.oracle import sdk_explain

    answers: dict[str, Any] = {}

    def answer(kind: str) -> Any:
        if kind not in answers:
            answers[kind] = sdk_explain(automl(kind))
        return answers[kind]

    return answer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert not os.environ.get("CI"), "CI needs Chromium: apt-get install chromium"
        pytest.skip("there is no Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Small:
    """A scikit-learn pipeline with a LightGBM surrogate, and rows for it.

    Attributes
    ----------
    model, explainer : Path
        ``model.pkl`` and ``surrogate.txt``.
    frame : DataFrame
        2,000 raw rows with a customer_id.
    """

    model: Path
    explainer: Path
    frame: pd.DataFrame

    def write(self, path: Path, frame: pd.DataFrame | None = None, **options: Any) -> Path:
        """Write raw rows (or another frame) as parquet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.frame if frame is None else frame).to_parquet(path, index=False, **options)
        return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The demo's scikit-learn model on few rows."""
    from batch_explain.demo import bank_frame, train_sklearn

    folder = tmp_path_factory.mktemp("small")
    train_sklearn(folder, train_rows=2_000)
    return Small(folder / "model.pkl", folder / "surrogate.txt", bank_frame(2_000, 1)[0])


@dataclass(frozen=True)
class Engineered:
    """A LightGBM regressor's text and engineered rows for it, for tests that need no model."""

    explainer: Path
    frame: pd.DataFrame
    booster: Any


@pytest.fixture(scope="session")
def engineered(tmp_path_factory: pytest.TempPathFactory) -> Engineered:
    """12 features with gaps, 30 trees; feature f11 is never split on."""
    import lightgbm

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(3_000, 12)), columns=[f"f{i}" for i in range(12)])
    frame.loc[::13, "f2"] = np.nan
    frame["f11"] = 0.0
    target = frame.f0 * 2 + frame.f1 * frame.f2.fillna(1) + (frame.f3 > 0)
    booster = lightgbm.train(
        {"objective": "regression", "verbosity": -1, "num_leaves": 15, "num_threads": 1},
        lightgbm.Dataset(frame, target),
        num_boost_round=30,
    )
    assert (booster.feature_importance() > 0).sum() >= 8
    path = tmp_path_factory.mktemp("engineered") / "surrogate.txt"
    booster.save_model(path)
    return Engineered(path, frame, booster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Dask cluster: a scheduler and two workers, each an OS process of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    connection = folder / "scheduler.json"
    processes = []
    with open(folder / "log.txt", "wb") as log:
        options: dict[str, Any] = {"env": environment, "stdout": log, "stderr": log, "cwd": folder}
        try:
            scheduler = [*dask, "--no-dashboard", "--scheduler-file", str(connection)]
            processes.append(subprocess.Popen(scheduler, **options))
            _wait_for(lambda: connection.exists() and bool(connection.read_text()))
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(connection)]
            worker += ["--host", "127.0.0.1", "--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
            processes += [subprocess.Popen(worker, **options) for _ in range(2)]
            yield _address_with_workers(connection, 2)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(30)


def _address_with_workers(connection: Path, workers: int) -> str:
    import json

    from distributed import Client

    address: str = json.loads(connection.read_text())["address"]
    with Client(address, timeout=30) as client:
        client.wait_for_workers(workers, timeout=60)
    return address


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the cluster did not start")
        time.sleep(0.1)
