"""Names in models and data that would leave the output folder, break a table, or be taken for something else."""

import json
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import batch_explain as bx
from batch_explain.cli import cli
from tests.conftest import once

NAMES = [
    "../../outside",
    "..",
    ".",
    "",
    "/absolute",
    "back\\slash",
    "nul\0nul",
    "line\nbreak\r\t",
    "x" * 10_000,
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "%2e%2e%2f",
    "output=1",
    "日本語 العربية",
    "\x1b[31mred\x07",
    " blank ",
    "'; DROP TABLE rows; --",
    "{{ 7 * 7 }}",
]


class Hostile:
    """A classifier of hostile classes on hostile columns, with ids to match."""

    def __init__(self, folder: Path, features: list[str], labels: list[str]) -> None:
        rng = np.random.default_rng(0)
        self.folder, self.labels = folder, labels
        values = rng.normal(size=(900, len(features)))
        self.frame = pd.DataFrame(values, columns=features)
        target = np.array(labels, dtype=object)[np.argmax(values[:, : len(labels)], axis=1)].astype(str)
        self.model = make_pipeline(StandardScaler(), LogisticRegression()).fit(self.frame, target)
        self.rows = self.model[:-1].transform(self.frame)
        codes = np.searchsorted(self.model.classes_, target)
        parameters = {"objective": "multiclass", "num_class": len(labels), "verbosity": -1, "num_threads": 1}
        self.booster = lightgbm.train(parameters, lightgbm.Dataset(self.rows, codes), 5)
        assert (self.booster.feature_importance() > 0).sum() >= len(labels)
        self.booster.save_model(folder / "surrogate.txt")
        joblib.dump(self.model, folder / "model.pkl")
        self.ids = [NAMES[i % len(NAMES)] for i in range(len(self.frame))]
        frame = self.frame.assign(**{"customer id": self.ids})
        (folder / "rows").mkdir()
        frame.to_parquet(folder / "rows/a b.parquet", index=False)

    @property
    def command(self) -> list[str]:
        paths = {"input": "rows", "model": "model.pkl", "explainer": "surrogate.txt", "output": "deep/out"}
        options = [part for name, path in paths.items() for part in (f"--{name}", str(self.folder / path))]
        return ["run", *options, "--id-columns", "customer id", "--scheduler", "sync"]

    def expected(self) -> np.ndarray:
        """LightGBM's own contributions, shape (row, output, feature)."""
        found = self.booster.predict(self.rows, pred_contrib=True, num_threads=1)
        return np.asarray(found).reshape(len(self.rows), len(self.labels), -1)[:, :, :-1]


@once
@pytest.mark.parametrize("kind", ["features", "classes"])
def test_they_are_text_and_nothing_else(kind: str, tmp_path: Path) -> None:
    plain = [f"f{i}" for i in range(len(NAMES))]
    job = Hostile(tmp_path, *(NAMES, ["a", "b", "c"]) if kind == "features" else (plain, NAMES))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    ended = CliRunner().invoke(cli, job.command)
    assert ended.exit_code == 0, ended.output
    assert "\x1b[31m" not in ended.output and "\0" not in ended.output and "\x07" not in ended.output
    assert "x" * 100 not in ended.output
    output = tmp_path / "deep/out"
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(output) for path in written)
    folders = {path.parent for path in written if path.is_relative_to(output / "engineered")}
    assert {folder.parent for folder in folders} == {output / "engineered"} and len(folders) == len(job.labels)
    run = bx.open_run(output)
    order, expected = list(job.model.classes_), job.expected()
    for label in job.labels:
        table = run.table("engineered", label).to_table()
        assert table.column_names == ["customer id", *job.frame.columns]
        assert table["customer id"].to_pylist() == job.ids
        values = np.column_stack([table[name].to_numpy() for name in table.column_names[1:]])
        np.testing.assert_allclose(values, expected[:, order.index(label)], rtol=0, atol=1e-9)
    assert sorted(set(run.summary("engineered")["output"])) == sorted(job.labels)
    assert bx.verify_run(output).ok
    assert run.info["outputs"] == order


def test_hive_keys_and_file_names(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "rows/day=..%2F..%2Foutside/kind=%3Cb%3E"
    small.write(folder / "=1+1 'x'.parquet", small.frame[:50])
    output = tmp_path / "out"
    bx.explain_dataset(
        input=tmp_path / "rows", model=small.model, explainer=small.explainer, output=output, id_columns="day,kind",
        scheduler="sync",
    )  # fmt: skip
    found = bx.open_run(output).table("raw").to_table()
    assert set(found["day"].to_pylist()) == {"../../outside"} and set(found["kind"].to_pylist()) == {"<b>"}
    assert not (tmp_path.parent / "outside").exists()


def test_labels_that_differ_only_at_their_ends_have_folders_of_their_own(tmp_path: Path) -> None:
    labels = ["x" * 300 + end for end in "abc"] + ["é" * 100, "plain"]
    job = Hostile(tmp_path, [f"f{i}" for i in range(6)], labels)
    run = bx.explain_dataset(
        input=tmp_path / "rows", model=tmp_path / "model.pkl", explainer=tmp_path / "surrogate.txt",
        output=tmp_path / "out", scheduler="sync",
    )  # fmt: skip
    folders = sorted(path.name for path in (tmp_path / "out/raw").iterdir())
    assert len(folders) == 5 and all(len(name.encode()) < 255 for name in folders)
    for label in labels:
        part = run.table("raw", label).files[0]
        assert json.loads(pq.read_schema(part).metadata[b"batch_explain"])["output"] == label
        assert len(run.table("raw", label).to_table()) == len(job.frame)
