"""A run in a notebook: what is shown of it, single rows, and the forms that Dask, shap and interpret-community take."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import batch_explain as bx
from batch_explain.errors import OptionError
from batch_explain.forms.card import card_html
from batch_explain.forms.local import Values
from batch_explain.report.finished import read_summaries
from tests.comparing import frame_of
from tests.conftest import ROOT, Engineered, Small, once
from tests.lightgbm_models import random_tree, written
from tests.test_hostile_names import NAMES

HUGE = 2**60 + 1  # no float has it


@pytest.fixture(scope="module")
def bank(small: Small, tmp_path_factory: pytest.TempPathFactory) -> bx.Run:
    folder = tmp_path_factory.mktemp("bank")
    return bx.explain_dataset(
        input=small.write(folder / "rows.parquet", small.frame[:700]), model=small.model, explainer=small.explainer,
        output=folder / "out", id_columns="customer_id", sample_rows=300, partition_rows=200, batch_rows=70,
        scheduler="sync", report=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> bx.Run:
    """Three outputs, no model, two id columns: integers beyond floats, null in the second part alone."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    (folder / "surrogate.txt").write_text(
        written([random_tree(rng, 8, 5) for _ in range(9)], 5, 3, "multiclass num_class:3")
    )
    frame = pd.DataFrame(rng.normal(size=(120, 5)), columns=[f"f{i}" for i in range(5)])
    frame["who"] = pd.array([HUGE + i for i in range(120)], dtype="Int64")
    frame["day"] = "monday"
    frame.loc[70, "who"] = None
    frame.loc[90, "who"] = HUGE + 89
    frame.to_parquet(folder / "rows.parquet", index=False)
    return bx.explain_dataset(
        input=folder / "rows.parquet", explainer=folder / "surrogate.txt", output=folder / "out", id_columns="who,day",
        partition_rows=60, scheduler="sync", report=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def margins(small: Small) -> "pd.Series[float]":
    """The surrogate's own answer by customer, not computed from importances."""
    import joblib

    frame = small.frame[:700]
    engineered = joblib.load(small.model)[:-1].transform(frame)
    return pd.Series(lightgbm.Booster(model_file=small.explainer).predict(engineered), index=frame.customer_id)


class Tags(HTMLParser):
    """Tags, attributes and text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


def test_what_is_shown(bank: bx.Run, classes: bx.Run) -> None:
    assert repr(bank) == f"<Run {bank.location}: classification, 700 rows, predictions, engineered, raw>"
    assert "120 rows, 3 outputs, engineered>" in repr(classes)
    found = Tags(bank._repr_html_())
    summary = bank.summary("raw")
    assert {"700 rows explained", str(bank.location), *summary.feature[:8]} <= set(found.texts)
    assert f"{summary.mean_abs[0]:.3g}" in found.texts
    assert any(f"{bank.info['fidelity']['agreement']:.2%}" in text for text in found.texts)
    assert "The surrogate follows the model" in found.texts
    assert "Mean |importance| of engineered features, mean of all outputs" in Tags(classes._repr_html_()).texts


@once
def test_names_are_text_in_what_is_shown(bank: bx.Run) -> None:
    names = ["<img src=x onerror='alert(1)'>", "</div><script>alert(1)</script>", "{{ 7 * 7 }}", *NAMES]
    features = bank.info["features"]["raw"]
    tables = read_summaries(bank.location)[0]
    for at in range(0, len(names), 7):  # eight features have a bar
        renamed = dict(zip(bank.summary("raw").feature, names[at : at + 7], strict=False))
        info = {**bank.info, "features": {**bank.info["features"], "raw": [renamed.get(f, f) for f in features]}}
        column = pa.array([renamed.get(f, f) for f in tables["raw"]["feature"].to_pylist()])
        raw = tables["raw"].set_column(1, "feature", column)
        html = card_html(info, {"raw": raw}, "<b>/place</b>")
        found = Tags(html)
        assert found.tags == {"div", "span", "b", "bdi"} and found.attributes == {"style"}
        assert "<b>/place</b>" in found.texts and len(html) < 10_000
        assert all(f.strip()[:50] in " ".join(found.texts) for f in names[at : at + 7] if f.isprintable() and f)


def test_a_row_is_found_by_its_id(bank: bx.Run, classes: bx.Run, margins: "pd.Series[float]") -> None:
    tables = {level: frame_of(bank, level).set_index("customer_id") for level in ("predictions", "raw", "engineered")}
    for id in (10_000_000, np.int64(10_000_333), "10000699"):
        row = bank.row(id)
        number = int(id)
        assert row.ids == {"customer_id": number}
        assert row.predictions == tables["predictions"].loc[number].to_dict()
        for level in ("raw", "engineered"):
            importances = getattr(row, level).importance
            pd.testing.assert_series_equal(importances, tables[level].loc[number], check_names=False)
            assert row.expected_values.importance + importances.sum() == pytest.approx(margins[number], abs=1e-9)
    assert "customer_id=10000699" in repr(row) and f"{row.raw.importance.abs().idxmax()} " in repr(row)

    row = classes.row({"who": HUGE + 100, "day": "monday"})
    assert row.predictions == {} and row.raw is None and row.ids["who"] == HUGE + 100
    assert list(row.engineered) == list(row.expected_values.index) == classes.outputs
    for label in classes.outputs or []:
        assert row.engineered[label].tolist() == frame_of(classes, "engineered", label).iloc[100, 2:].tolist()
    nobody = classes.row({"who": None, "day": "monday"}).engineered[classes.outputs[0]]
    assert nobody.tolist() == frame_of(classes, "engineered", classes.outputs[0]).iloc[70, 2:].tolist()


@once
@pytest.mark.parametrize(
    ("which", "id", "words"),
    [
        ("bank", 17, "no row with customer_id = 17. Rows in quarantine"),
        ("bank", "<nobody>", "no row with customer_id = '<nobody>'"),
        ("bank", 10_000_000.5, "no row with"),
        ("bank", {"name": 1}, "identified by 'customer_id', and not by 'name'"),
        ("classes", HUGE, "2 columns: pass {'who': …, 'day': …}"),
        ("classes", {"who": HUGE + 89, "day": "monday"}, "More than one row has who = "),
    ],
)
def test_a_row_that_cannot_be_told(which: str, id: Any, words: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(OptionError) as refused:
        request.getfixturevalue(which).row(id)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@once
def test_rows_without_ids_of_their_own(engineered: Engineered, tmp_path: Path) -> None:
    engineered.frame[:40].to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=engineered.explainer, output=tmp_path / "out", scheduler="sync",
        report=False, no_row_values=True,
    )  # fmt: skip
    path = frame_of(run, "engineered").source_file[0]
    found = run.row({"source_file": path, "source_row": 17}).engineered.importance
    expected = engineered.booster.predict(engineered.frame[17:18], pred_contrib=True)[0, :-1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert run.to_shap("engineered").data is None


def test_dask_has_every_row_in_order(bank: bx.Run, classes: bx.Run) -> None:
    import dask

    with dask.config.set(scheduler="sync"):
        frame = bank.to_dask("raw")
        assert frame.npartitions == 4
        found = frame.compute()
        expected = frame_of(bank, "raw").astype({"customer_id": "Int64"})
        pd.testing.assert_frame_equal(found.reset_index(drop=True), expected)
        assert dict(frame.dtypes) == dict(found.dtypes)
        means = frame[["age", "job"]].abs().mean().compute()
        np.testing.assert_allclose(means, expected[["age", "job"]].abs().mean())
        frame = classes.to_dask("engineered", classes.outputs[1])
        for part in range(2):
            assert str(frame.get_partition(part).compute().who.dtype) == str(frame.dtypes["who"]) == "Int64"
        assert frame.who.compute().tolist()[-1] == HUGE + 119
    with pytest.raises(OptionError, match="several outputs"):
        classes.to_dask("engineered")


def test_shap_gets_rows_of_the_tables(bank: bx.Run, classes: bx.Run, small: Small, margins: "pd.Series[float]") -> None:
    sample = bank.sample()
    for level in ("raw", "engineered"):
        found = bank.to_shap(level)
        assert found.shape[0] == len(sample) == 300
        rows = frame_of(bank, level).set_index("customer_id").loc[sample.customer_id]
        assert set(rows) - set(found.feature_names) <= set(bank.info["features"]["identically_zero"])
        np.testing.assert_array_equal(found.values, rows[list(found.feature_names)])
        np.testing.assert_allclose(
            found.base_values + found.values.sum(axis=1), margins[sample.customer_id], rtol=0, atol=1e-9
        )
    assert found.data is None  # the model made them
    few, whole = bank.to_shap(rows=50), bank.to_shap()
    at = [int(np.flatnonzero((whole.values == line).all(axis=1))[0]) for line in few.values]
    assert at == sorted(set(at)) and len(at) == 50 and min(at) < 60 and max(at) > 240
    read = small.frame.set_index("customer_id").loc[sample.customer_id].reset_index(drop=True)
    shown = pd.DataFrame(whole.display_data, columns=whole.feature_names)
    values = pd.DataFrame(whole.data, columns=whole.feature_names)
    np.testing.assert_array_equal(values.balance, read.balance)
    assert values.balance.isna().any()
    assert (shown.job == read.job).all()
    order = sorted(set(read.job))
    assert [order[int(code)] for code in values.job] == read.job.tolist()
    gaps = Values.of(pa.chunked_array([["z", None], ["", "z"]]))
    assert gaps.values.tolist() == [1, 2, 0, 1] and gaps.shown.tolist() == ["z", "no value", "", "z"]
    assert (pd.to_datetime(shown.last_contact) == read.last_contact).all()
    assert (pd.to_datetime(values.last_contact, unit="D").dt.round("s") == read.last_contact).all()

    found = classes.to_shap("engineered")
    assert found.shape == (120, 5, 3) and found.base_values.shape == (120, 3)
    frames = [frame_of(classes, "engineered", label) for label in classes.outputs or []]
    for at, frame in enumerate(frames):
        np.testing.assert_array_equal(found.values[:, :, at], frame[list(found.feature_names)])
        one = classes.to_shap("engineered", output=classes.outputs[at])
        np.testing.assert_array_equal(one.values, found[..., at].values)
        assert one.base_values.tolist() == [classes.info["expected_values"][at]] * 120
    rows = pd.read_parquet(Path(classes.location.path).parent / "rows.parquet")
    np.testing.assert_array_equal(found.data, rows[list(found.feature_names)])
    assert found.display_data is None


@pytest.mark.parametrize(
    ("which", "options", "words"),
    [
        ("bank", {"rows": 301}, "301 rows were asked for, and the sample has 300 of the 700"),
        ("bank", {"rows": 0}, "'rows' is 0"),
        ("bank", {"level": "reasons"}, "no level 'reasons'"),
        ("bank", {"output": "1"}, "no output '1'; it has a single one"),
        ("classes", {"level": "engineered", "output": "<9>"}, "no output '<9>'; it has '0', '1', '2'"),
        ("classes", {}, "no level 'raw'"),
    ],
)
def test_what_shap_cannot_have(which: str, options: Any, words: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(OptionError) as refused:
        request.getfixturevalue(which).to_shap(**options)
    assert words in str(refused.value)


@pytest.fixture
def plt() -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_shap_draws_its_own_plots(bank: bx.Run, classes: bx.Run, plt: Any) -> None:
    import shap

    found = bank.to_shap()
    shap.plots.bar(found, show=False, max_display=20)
    widths = sorted((bar.get_width() for bar in plt.gca().patches), reverse=True)[:3]
    np.testing.assert_allclose(widths, sorted(np.abs(found.values).mean(axis=0), reverse=True)[:3])
    plt.figure()
    shap.plots.beeswarm(found, show=False, max_display=20)
    points = sum(len(drawn.get_offsets()) for drawn in plt.gca().collections)
    assert points == found.values.size
    for feature in ("balance", "job", "last_contact"):  # with missing values, a text, a date
        shap.plots.scatter(found[:, feature], color=found[:, "age"], x_jitter=0, show=False)
        at = list(found.feature_names).index(feature)
        drawn = np.sort(plt.gcf().axes[0].collections[0].get_offsets().data[:, 0])
        np.testing.assert_allclose(drawn, np.sort(found.data[:, at][~np.isnan(found.data[:, at])]))
        if feature == "job":
            names = {label.get_text() for label in plt.gcf().axes[0].get_xticklabels()}
            assert names == set(found.display_data[:, at])
    plt.figure()
    shap.plots.waterfall(found[3], show=False, max_display=20)
    texts = " ".join(text.get_text() for axes in plt.gcf().axes for text in axes.get_yticklabels())
    assert f"{found.display_data[3][list(found.feature_names).index('job')]} = job" in texts
    plt.figure()
    shap.plots.beeswarm(classes.to_shap("engineered", output=classes.outputs[0]), show=False)
    plt.gcf().canvas.draw()


@once
def test_the_notebook_runs(bank: bx.Run, classes: bx.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real kernel, as a notebook's own program does; on runs of one and of several outputs."""
    import nbformat
    from nbclient import NotebookClient

    path = ROOT / "jobs/explore.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert str(Path.home()) not in path.read_text() and "/tmp" not in path.read_text()
    monkeypatch.setenv("BATCH_EXPLAIN_RUN", bank.location.path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    assert "700 rows explained" in outputs[0]["text/html"]
    assert sum("image/png" in data for data in outputs) == 3
    assert any("application/vnd.plotly.v1+json" in data for data in outputs)
    first = frame_of(bank, "predictions").customer_id[0]
    assert any(f"<Row customer_id={first}" in data.get("text/plain", "") for data in outputs)


@pytest.mark.automl
@pytest.mark.parametrize("which", ["bank", "classes"])
def test_interpret_community_saves_and_reads_it(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from interpret_community.explanation.explanation import load_explanation, save_explanation

    run = request.getfixturevalue(which)
    level = "raw" if which == "bank" else "engineered"
    found = run.to_interpret(level, rows=100)
    summary = run.summary(level)
    means = summary.groupby("feature", sort=False).mean_abs.mean()
    np.testing.assert_allclose(found.global_importance_values, means[found.features], rtol=1e-12)
    assert found.get_ranked_global_names() == means.sort_values(ascending=False).index.tolist()
    explanation = run.to_shap(level, rows=100)
    values = explanation.values
    values = np.moveaxis(values, -1, 0) if values.ndim == 3 else np.stack((-values, values))
    np.testing.assert_array_equal(found.local_importance_values, values)
    assert found.classes == (run.outputs or ["0", "1"]) and len(found.eval_data) == 100
    for label, expected in zip(found.classes, found.per_class_values, strict=True):
        mine = summary[summary.output == label] if run.outputs else summary
        np.testing.assert_array_equal(expected, mine.set_index("feature").mean_abs[found.features])
    save_explanation(found, str(tmp_path / "saved"))
    again = load_explanation(str(tmp_path / "saved"))
    assert again.global_importance_values == found.global_importance_values
    assert again.local_importance_values == found.local_importance_values and again.features == found.features
    comparison = bx.compare_runs(run, tmp_path / "saved")
    assert comparison.drift == pytest.approx(0, abs=1e-12)


DASHBOARD = """
import sys
import batch_explain as bx
from raiwidgets import ExplanationDashboard
explanation = bx.open_run(sys.argv[1]).to_interpret("raw", rows=60)
shown = ExplanationDashboard(explanation, dataset=explanation.eval_data)
print("address", shown.config["baseUrl"], flush=True)
sys.stdin.read()
"""


@pytest.mark.automl
@pytest.mark.soak  # its imports alone take as long as all other tests here, and it wants another scikit-learn
@pytest.mark.skipif(find_spec("raiwidgets") is None, reason="needs the [dashboard] extra")
def test_the_dashboard_shows_it(bank: bx.Run, browser: Any) -> None:
    """raiwidgets' own page, from its own server, in a browser."""
    program = [sys.executable, "-W", "ignore", "-c", DASHBOARD, bank.location.path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stdin=-1, stdout=-1, text=True, env=environment) as serving:
        assert serving.stdin is not None and serving.stdout is not None
        address = next((line.split()[1] for line in serving.stdout if line.startswith("address ")), None)
        assert address is not None, "the program ended"
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.route(lambda url: not url.startswith(address), lambda route: route.abort())  # it asks for fonts
        page.goto(address, wait_until="commit")
        page.get_by_text("Binary classifier").wait_for()
        page.get_by_text("60 datapoints").first.wait_for()
        for feature in bank.summary("raw").feature[:2]:
            page.locator("svg").get_by_text(feature, exact=True).first.wait_for()
        page.close()
        serving.kill()
