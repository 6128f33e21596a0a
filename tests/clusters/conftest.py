"""A small dataset to be explained by a recipe, and what must come out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batch_explain as bx
from tests.comparing import values_of
from tests.conftest import ROOT, Engineered

RECIPES = ROOT / "jobs/clusters"


@dataclass(frozen=True)
class Task:
    """Options of ``batch-explain run``, and its rows."""

    options: dict[str, str]
    rows: Any
    booster: Any

    @property
    def arguments(self) -> list[str]:
        return ["--no-report", *(f"--{name.replace('_', '-')}={value}" for name, value in self.options.items())]

    def assert_done(self) -> None:
        """Every row, with LightGBM's own importances."""
        found = values_of(bx.open_run(self.options["output"]), "engineered", list(self.rows))[0]
        expected = self.booster.predict(self.rows, pred_contrib=True)[:, :-1]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.fixture
def task(engineered: Engineered, tmp_path: Path) -> Task:
    """A thousand rows in four files."""
    rows = engineered.frame[:1_000]
    (tmp_path / "rows").mkdir()
    for i in range(4):
        rows[i * 250 : (i + 1) * 250].to_parquet(tmp_path / f"rows/{i}.parquet", index=False)
    options = {
        "input": tmp_path / "rows", "explainer": engineered.explainer, "output": tmp_path / "out",
        "outputs": "engineered",
    }  # fmt: skip
    return Task({name: str(value) for name, value in options.items()}, rows, engineered.booster)


@pytest.fixture
def commands(tmp_path: Path) -> Callable[..., Path]:
    """A folder for the PATH with stand-ins for a platform's commands, as texts of shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{text}\n")
            (folder / name).chmod(0o755)
        return folder

    return write
