"""Explanations made when a model is trained: in a folder, and in Azure ML runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import NotLoggedError, OptionError
from tests.conftest import Engineered, Small
from tests.lightgbm_models import random_tree, written


@pytest.fixture(scope="module")
def runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bx.Run]:
    """Two classes with one output and raw features that have missing values; three outputs and no model."""
    folder, rng = tmp_path_factory.mktemp("explained"), np.random.default_rng(0)
    (folder / "surrogate.txt").write_text(
        written([random_tree(rng, 8, 5) for _ in range(9)], 5, 3, "multiclass num_class:3")
    )
    frame = pd.DataFrame(rng.normal(size=(120, 5)), columns=[f"f{i}" for i in range(5)])
    frame.loc[::7, "f1"] = np.nan
    frame.to_parquet(folder / "classes.parquet", index=False)
    common: dict[str, Any] = {"scheduler": "sync", "report": False}
    return {
        "bank": bx.explain_dataset(
            input=small.write(folder / "bank.parquet", small.frame[:300]), model=small.model, explainer=small.explainer,
            output=folder / "bank", id_columns="customer_id", sample_rows=200, **common,
        ),
        "classes": bx.explain_dataset(
            input=folder / "classes.parquet", explainer=folder / "surrogate.txt", output=folder / "classes", **common
        ),
    }  # fmt: skip


@pytest.mark.parametrize(("which", "level"), [("bank", "raw"), ("bank", "engineered"), ("classes", "engineered")])
def test_saved_and_opened_again(runs: dict[str, bx.Run], which: str, level: str, tmp_path: Path) -> None:
    run = runs[which]
    run.save_explanation(tmp_path / "saved", level, rows=50)
    found = bx.open_explanation(tmp_path / "saved")
    assert (found.level, found.task) == (level, "classification")
    summary = run.summary(level)
    for output, mine in found.summary().groupby("output", sort=False):
        theirs = summary[summary.output == output] if run.outputs else summary
        theirs = theirs.set_index("feature").mean_abs
        np.testing.assert_allclose(mine.mean_abs, theirs[mine.feature], rtol=1e-12)
        assert mine.mean_abs.is_monotonic_decreasing and mine["rank"].tolist() == list(range(1, len(mine) + 1))
        assert (theirs.drop(mine.feature) == 0).all() and theirs.max() > 0
    explanation = run.to_shap(level, rows=50)
    values = explanation.values
    values = np.moveaxis(values, -1, 0) if values.ndim == 3 else np.stack((-values, values))
    assert found.local_values is not None
    np.testing.assert_array_equal(found.local_values, values)
    comparison = bx.compare_runs(run, tmp_path / "saved")
    assert comparison.drift == pytest.approx(0, abs=1e-12)
    again = ["explanation", "save", str(run.location), "--output", str(tmp_path / "again"), "--level", level]
    assert CliRunner().invoke(cli, [*again, "--rows", "50"]).exit_code == 0
    assert (tmp_path / "again/features.json").read_bytes() == (tmp_path / "saved/features.json").read_bytes()
    with pytest.raises(OptionError, match="there already"):
        run.save_explanation(tmp_path / "saved", level)


@pytest.mark.automl
@pytest.mark.parametrize(("which", "level"), [("bank", "raw"), ("bank", "engineered"), ("classes", "engineered")])
def test_the_files_are_those_of_interpret_community(
    runs: dict[str, bx.Run], which: str, level: str, tmp_path: Path
) -> None:
    from interpret_community.explanation.explanation import load_explanation, save_explanation

    runs[which].save_explanation(tmp_path / "ours", level, rows=50)
    save_explanation(runs[which].to_interpret(level, rows=50), str(tmp_path / "theirs"))
    ours, theirs = (
        {path.name: json.loads(path.read_text()) for path in (tmp_path / name).iterdir()} for name in ("ours", "theirs")
    )
    for each in (ours, theirs):
        each["explanation_metadata.json"].pop("explanation_id")
    # NaN is not equal to itself
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    again = load_explanation(str(tmp_path / "ours"))
    assert again.get_ranked_global_names() == runs[which].to_interpret(level).get_ranked_global_names()


@pytest.mark.automl
@pytest.mark.parametrize("classes", [None, 3])
def test_sparse_local_explanations_of_interpret_community(classes: int | None, tmp_path: Path) -> None:
    from interpret_community.explanation.explanation import _create_local_explanation, save_explanation

    rng = np.random.default_rng(0)
    parts = [sp.random(30, 7, 0.3, "csr", random_state=rng) for _ in range(classes or 1)]
    names = [f"f{i}" for i in range(7)]
    explanation = _create_local_explanation(
        local_importance_values=parts if classes else parts[0], classification=classes is not None, method="mimic",
        features=names, num_features=7, expected_values=np.zeros(3),
        **({"classes": ["a", "b", "c"]} if classes else {}),
    )  # fmt: skip
    save_explanation(explanation, str(tmp_path / "saved"))
    found = bx.open_explanation(tmp_path / "saved")
    expected = np.array([part.toarray() for part in parts])
    np.testing.assert_array_equal(found.local_values, expected if classes else expected[0])
    np.testing.assert_allclose(found.global_values, np.abs(expected).mean(axis=(0, 1)), rtol=1e-12)
    assert found.features == tuple(names) and found.level is None


def test_a_damaged_explanation_is_one_paragraph(
    runs: dict[str, bx.Run], engineered: Engineered, tmp_path: Path
) -> None:
    damages: list[tuple[str, str, str]] = [
        ("explanation_metadata.json", "{}", "it has no 'model_type'"),
        ("explanation_metadata.json", "{", "cannot be used"),
        ("features.json", '{"data": ["a", "a"]}', "have no names, or some the same"),
        ("features.json", "[]", "cannot be used"),
        ("features.json", '{"data": 5}', "cannot be used"),
        ("global_importance_values.json", '{"data": [1, 2]}', "has the shape"),
        ("per_class_values.json", '{"data": [[1], [2]]}', "has the shape"),
        ("global_importance_values.json", '{"data": "text"}', "cannot be used"),
        ("local_importance_values.json", '{"data": [[1, 2], [3]]}', "cannot be used"),
        ("local_importance_values.json", '{"data": [[[1]], [[2]]]}', "has the shape"),
        ("expected_values.json", '{"data": [NaN, 1]}', "no number"),
    ]
    runs["bank"].save_explanation(tmp_path / "whole", rows=5)
    for at, (name, content, message) in enumerate(damages):
        damaged = shutil.copytree(tmp_path / "whole", tmp_path / str(at))
        (damaged / name).write_text(content)
        for use in (bx.open_explanation, lambda path: bx.compare_runs(runs["bank"], path)):
            with pytest.raises(OptionError, match=message):
                use(damaged)
    with pytest.raises(OptionError, match="no explanation"):
        bx.open_explanation(tmp_path)
    with pytest.raises(OptionError, match="does not name its classes"):
        (tmp_path / "whole" / "classes.json").unlink()
        (tmp_path / "whole" / "local_importance_values.json").unlink()
        bx.compare_runs(runs["classes"], tmp_path / "whole")


class Assets:
    """The service's list of assets, in memory: all that is put in place of the SDK."""

    kept: list[Any]

    def __init__(self, context: Any) -> None:
        pass

    def create_asset(self, name: str, artifacts: Any, **about: Any) -> Any:
        properties = {key: str(value) for key, value in about["properties"].items() if value is not None}
        asset = SimpleNamespace(
            id=f"asset-{len(self.kept)}", name=name, properties=properties, meta={}, created_time=len(self.kept),
            run_id=about["run_id"], runid=about["run_id"], type=about["asset_type"],
        )  # fmt: skip
        self.kept.append(asset)
        return asset

    def list_assets_with_query(
        self, run_id: str, name: Any = None, properties: Any = None, asset_type: Any = None
    ) -> list[Any]:
        wanted = {key: str(value) for key, value in (properties or {}).items()}
        return [
            each for each in self.kept if each.run_id == run_id and wanted.items() <= each.properties.items()
        ]  # fmt: skip

    def list_assets_by_properties_run_id_name(self, run_id: str, name: str, properties: Any) -> list[Any]:
        return self.list_assets_with_query(run_id, properties=properties)


class Stored:
    """A run whose artifacts are a folder."""

    id, type = "AutoML_1", "azureml.scriptrun"

    def __init__(self, folder: Path) -> None:
        self.folder, self.tags, self.down = folder, {}, False  # type: tuple[Path, dict[str, str], bool]
        context = SimpleNamespace(_add_user_agent=lambda *_: None, _get_assets_restclient=lambda: None)
        self.experiment = SimpleNamespace(workspace=SimpleNamespace(service_context=context), id="e", name="e")

    def upload_folder(self, name: str, path: str, datastore_name: Any = None) -> None:
        if self.down:
            raise ConnectionError("the service is not there.\nhttps://x.blob.core.windows.net/c?sig=SECRET")
        shutil.copytree(path, self.folder / name, dirs_exist_ok=True)

    def download_files(self, prefix: str, output_directory: str) -> None:
        shutil.copytree(self.folder / prefix, Path(output_directory) / prefix, dirs_exist_ok=True)

    def download_file(self, name: str, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / name, path)

    def tag(self, key: str, value: str) -> None:
        self.tags[key] = value


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stored]:
    """A run with the SDK's own client over it, and the workspace that finds it."""
    from azureml.core import Workspace
    from azureml.interpret._internal import explanation_client

    monkeypatch.setattr(Assets, "kept", [], raising=False)
    monkeypatch.setattr(explanation_client, "AssetsClient", Assets)
    run = Stored(tmp_path / "artifacts")
    workspace = SimpleNamespace(get_run=lambda run_id: {run.id: run}[run_id])
    monkeypatch.setattr(Workspace, "from_config", staticmethod(lambda path=None: workspace))
    yield run


@pytest.mark.automl
def test_uploaded_and_downloaded_by_the_sdks_own_client(
    runs: dict[str, bx.Run], stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batch_explain.integrations.azure_runs import AzureRun

    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    place = AzureRun.find("AutoML_1")
    comments = place.upload(runs["bank"])
    assert place.upload(runs["bank"]) == comments and len(Assets.kept) == 2, "what is there is not sent again"
    assert set(tmp_path.iterdir()) - before == {tmp_path / "artifacts"}, "the client's files are not left here"
    found = place.download(tmp_path / "fetched")
    assert set(found) == {"raw", "engineered"}
    for level, folder in found.items():
        explanation = bx.open_explanation(folder)
        assert explanation.level == level and explanation.classes == ("0", "1")
        comparison = bx.compare_runs(runs["bank"], folder)
        assert comparison.drift == pytest.approx(0, abs=1e-12)
        shapley = runs["bank"].to_shap(level).values
        assert explanation.local_values is not None and len(shapley) == 200
        np.testing.assert_allclose(explanation.local_values, np.stack((-shapley, shapley)), rtol=0, atol=0)
    with pytest.raises(OptionError, match="there already"):
        place.download(tmp_path / "fetched")
    (shown,) = [each for each in Assets.kept if each.properties["is_raw"] == "True"]
    folder = stored.folder / "explanation" / shown.properties["explanation_id"][:8]
    predicted = json.loads((folder / "ys_pred_viz.interpret.json").read_text())
    assert set(predicted) == {0, 1}, "the studio takes positions of classes"
    with pytest.raises(OptionError, match="'other' cannot be used"):
        AzureRun.find("other")
    with pytest.raises(OptionError, match="no AutoML experiment"):
        stored.get_properties = dict  # type: ignore[attr-defined]
        AzureRun.find("AutoML_1", best="primary")


@pytest.mark.automl
def test_a_run_whose_explanations_are_not_taken_is_complete_and_says_so(
    small: Small, stored: Stored, tmp_path: Path
) -> None:
    stored.down = True
    given: dict[str, Any] = {
        "input": small.write(tmp_path / "rows.parquet", small.frame[:50]), "model": small.model, "scheduler": "sync",
        "explainer": small.explainer, "output": tmp_path / "out", "azure_run": "AutoML_1", "report": False,
    }  # fmt: skip
    with pytest.raises(NotLoggedError, match=r"not take all .* the service is not there\. Send") as caught:
        bx.explain_dataset(**given)
    assert "SECRET" not in str(caught.value) and bx.verify_run(tmp_path / "out").ok and not Assets.kept
    stored.down = False
    bx.explain_dataset(**given, resume=True)
    assert [each.properties["is_raw"] for each in Assets.kept] == ["True", "False"]
    with pytest.raises(OptionError, match="'none' cannot be used"):
        bx.explain_dataset(**{**given, "output": tmp_path / "other", "azure_run": "none"})
    assert not (tmp_path / "other").exists()
