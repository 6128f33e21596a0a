"""The report, in a real browser: what it shows, that it asks for nothing, and that names stay text."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import OptionError, OutputRefusedError
from batch_explain.report.page import LIMIT, report_html
from batch_explain.report.shapes import Counts
from batch_explain.report.verdict import fidelity
from tests.comparing import frame_of
from tests.conftest import Engineered, Small, once
from tests.lightgbm_models import constant_tree, random_tree, written
from tests.test_hostile_names import NAMES, Hostile

pytestmark = once

FIGURES = ("importance", "cohorts", "beeswarm", "dependence", "predictions", "waterfall")
EVIL = "</script><script>window.pwned = 1</script>"
HOSTILE = [
    *NAMES,
    EVIL,
    '<img src=x onerror="window.pwned = 1">',
    '<a href="javascript:window.pwned = 1">click</a>',
    '" onmouseover="window.pwned = 1',
    "<b>bold</b> &lt; $\\frac{1}{2}$ %{x}",
    "<!--data-->",
    "__proto__",
    "constructor",
]


class Opened:
    """A report in the browser.

    Attributes
    ----------
    said : list of str
        Errors, lines of the console, and addresses that were asked for beside the file.
    """

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda asked: asked.url.startswith("file:") or self.said.append(asked.url[:200]))
        self.page.goto(path.as_uri())

    def figure(self, name: str) -> Any:
        """A figure's data and layout, after it has come into view."""
        self.page.locator(f"#plot-{name}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#plot-{name} .main-svg")
        return self.page.evaluate(
            "name => { const {data, layout} = document.getElementById('plot-' + name);"
            " return JSON.parse(JSON.stringify({data, layout})) }",
            name,
        )

    def labels(self, name: str) -> list[str]:
        """What stands beside the rows of a figure."""
        self.figure(name)
        found: list[str] = self.page.locator(f"#plot-{name} .ytick text").all_text_contents()
        return found

    def fits(self) -> bool:
        """Whether nothing lies beyond the right edge."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture(scope="module")
def bank(small: Small, tmp_path_factory: pytest.TempPathFactory) -> bx.Run:
    folder = tmp_path_factory.mktemp("bank")
    return bx.explain_dataset(
        input=small.write(folder / "rows.parquet", small.frame[:700]), model=small.model, explainer=small.explainer,
        output=folder / "out", id_columns="customer_id", cohort="job", sample_rows=300, scheduler="sync",
    )  # fmt: skip


def report_of(run: bx.Run) -> Path:
    return Path(run.location.path) / "report.html"


def waterfall_sum(figure: Any) -> float:
    """Where a waterfall's bars lead, from where the first one begins."""
    bars = figure["data"]
    return float(bars[0]["base"][0] + sum(step or 0 for trace in bars for step in trace["x"]))


def test_what_it_shows(bank: bx.Run, browser: Any) -> None:
    opened = Opened(browser, report_of(bank))
    page = opened.page
    for figure in FIGURES:
        opened.figure(figure)
    sections = page.locator("section").evaluate_all("found => found.map(each => each.id)")
    assert sections == [
        "importance", "cohorts", "beeswarm", "dependence", "predictions", "rows", "quarantine", "run",
    ]  # fmt: skip
    assert page.locator("h1").inner_text() == "700 rows explained"
    assert f"{bank.info['fidelity']['agreement']:.2%}" in page.locator("#overview").inner_text()

    summary = bank.summary("raw")
    bars = opened.figure("importance")["data"][0]["x"]
    np.testing.assert_allclose(bars, summary.mean_abs, rtol=1e-5)
    assert opened.labels("importance") == summary.feature.tolist()
    table = page.locator("details.features:visible")
    table.locator("summary").click()
    cells = table.locator("tbody tr", has_text="duration").locator("th, td").all_text_contents()
    expected = summary.set_index("feature").loc["duration"]
    assert cells[0].strip() == "duration" and float(cells[1]) == pytest.approx(expected.mean_abs, rel=1e-3)
    assert float(cells[4].replace("\u2212", "-")) == pytest.approx(expected.p50, rel=1e-3)

    cohorts = bank.cohorts()
    found = cohorts[(cohorts.cohort == "job") & (cohorts.level == "raw") & (cohorts.feature == summary.feature[0])]
    heat = opened.figure("cohorts")["data"][0]["z"][0]
    np.testing.assert_allclose(sorted(heat), sorted(found.mean_abs), rtol=1e-5)
    classes = opened.figure("predictions")["data"][0]["x"]
    assert sorted(classes) == sorted(frame_of(bank, "predictions").prediction.value_counts())

    page.select_option("#feature", label="job")
    sample, drawn = bank.sample(), opened.figure("dependence")
    ticks = drawn["layout"]["xaxis"]["ticktext"]
    assert set(ticks) == set(sample["value.job"])
    at = np.rint(drawn["data"][0]["x"]).astype(int)
    assert [ticks[place] for place in at] == sample["value.job"].tolist()
    np.testing.assert_allclose(drawn["data"][0]["y"], sample["raw.job"], rtol=1e-5, atol=1e-7)
    page.select_option("#feature", label="balance")
    drawn = opened.figure("dependence")["data"]
    assert len(drawn[1]["y"]) == sample["value.balance"].isna().sum() > 0
    np.testing.assert_array_equal(drawn[0]["x"], sample["value.balance"].dropna())
    assert opened.said == []
    page.close()


def test_rows_are_found_by_id_and_add_up(bank: bx.Run, browser: Any) -> None:
    opened, sample = Opened(browser, report_of(bank)), bank.sample()
    page = opened.page
    base = bank.info["expected_values"][0]
    for row in (17, 211):
        wanted = str(sample.customer_id[row])
        page.fill("#row", wanted)
        page.keyboard.press("Enter")
        figure = opened.figure("waterfall")
        for level in ("raw", "engineered"):
            page.check(f"input[name=level][value='{('raw', 'engineered').index(level)}']")
            figure = opened.figure("waterfall")
            total = base + sample.filter(regex=f"^{level}[.]").iloc[row].sum()
            assert waterfall_sum(figure) == pytest.approx(total, abs=1e-6)
            assert figure["layout"]["annotations"][0]["x"] == pytest.approx(base)
        page.check("input[name=level][value='0']")
        status = page.locator("#row-status").inner_text()
        assert wanted in status and f"{sample.probability_1[row]:.1%}" in status
        largest = sample.filter(regex=r"^raw[.]").iloc[row].abs().idxmax().removeprefix("raw.")
        value = sample[f"value.{largest}"][row]
        line = page.locator("#row-table tbody tr").nth(1).locator("th, td").all_text_contents()
        assert line[:2] == [largest, f"{value:.9g}" if isinstance(value, float) else str(value)]
    page.fill("#row", "nobody")
    page.keyboard.press("Enter")
    assert "No row of the sample has the id nobody" in page.locator("#row-status").inner_text()
    page.select_option("#order", "high")
    highest = str(sample.customer_id[sample.filter(regex=r"^raw[.]").sum(axis=1).idxmax()])
    assert page.locator("#row-status b").inner_text() == highest
    assert opened.said == []
    page.close()


def test_keyboard_dark_mode_and_small_screens(bank: bx.Run, browser: Any) -> None:
    opened = Opened(browser, report_of(bank), viewport={"width": 390, "height": 844})
    page = opened.page
    for figure in FIGURES:
        opened.figure(figure)
        assert opened.fits(), figure
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert opened.fits()
    light = page.evaluate("[getComputedStyle(document.body).backgroundColor, document.getElementById('plot-importance')"
                          ".data[0].marker.color]")  # fmt: skip
    page.emulate_media(color_scheme="dark")
    opened.figure("importance")
    page.wait_for_function("before => document.getElementById('plot-importance').data[0].marker.color !== before",
                           arg=light[1])  # fmt: skip
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light[0]
    page.emulate_media(color_scheme="light")

    page.evaluate("scrollTo(0, 0)")
    for _ in range(60):  # from the beginning, with nothing but the keyboard
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "level":
            break
    page.keyboard.press("ArrowRight")
    assert opened.labels("importance")[0] == bank.summary("engineered").feature[0]
    heads = "document.activeElement.closest('th') && document.activeElement.textContent"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(heads) == "Feature":
            break
    page.keyboard.press("Enter")
    table = page.locator("details.features:visible")
    names = [name.strip() for name in table.locator("tbody th").all_text_contents()]
    assert names == sorted(names) and len(names) == 30
    assert table.locator("thead th").first.get_attribute("aria-sort") == "ascending"
    table.locator("input.filter").fill("MARITAL")
    assert table.locator("tbody tr:visible").count() == 3
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST) >= 4.5
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".controls, .bar, nav").filter(visible=True).count()
    assert opened.said == []
    page.close()


# the least contrast (WCAG 2) of the page's texts against what lies behind them
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255] };
  return Math.min(...Array.from(document.querySelectorAll("h1,h2,h3,p,dt,dd,a,summary,button,th,td,span,label"))
    .filter(e => e.textContent.trim() && e.checkVisibility()).map(e => {
      const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return (a + .05) / (b + .05); }));
}"""


def test_names_are_text_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    labels = ["a", EVIL, HOSTILE[-5], HOSTILE[-4], "__proto__", "y" * 10_000]
    job = Hostile(tmp_path, HOSTILE, labels)
    ended = CliRunner().invoke(cli, job.command)
    assert ended.exit_code == 0, ended.output
    run = bx.open_run(tmp_path / "deep/out")
    opened = Opened(browser, report_of(run), viewport={"width": 390, "height": 844})
    page = opened.page
    assert opened.fits()
    page.select_option("#output", index=1)
    texts = opened.labels("importance") + opened.labels("beeswarm") + opened.labels("waterfall")
    opened.figure("classes")
    opened.figure("dependence")
    opened.figure("predictions")
    page.fill("#row", "<script>alert(1)</script>")
    page.keyboard.press("Enter")
    assert "<script>alert(1)</script>" in page.locator("#row-status").inner_text()
    assert page.locator("script").count() == 3 and not page.locator("img, iframe, a[href^='javascript']").count()
    assert not page.locator("main b:not(#row-status b), svg a, .MathJax").count()
    assert not page.evaluate(
        "Boolean(window.pwned || Object.prototype.values || document.querySelector('[onmouseover]'))"
    )
    whole = page.locator("details.features[data-output='0'] tbody th").all_text_contents()
    printable = {"".join(c if c.isprintable() else " " for c in name).strip() or "“”" for name in HOSTILE}
    assert {name.strip() for name in whole} == printable and any(len(name) == 10_000 for name in whole)
    assert any("<b>bold" in text or "<a href" in text or "<img" in text for text in texts)  # literally, in an SVG
    options = page.locator("#output option").all_text_contents()
    assert "<b>bold</b> &lt; $\\frac{1}{2}$ %{x}" in options and len(options) == len(labels)
    assert opened.fits() and opened.said == []
    page.close()


def test_many_classes_and_features(browser: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 16, 300) for _ in range(40)]
    (tmp_path / "surrogate.txt").write_text(written(trees, 300, 20, "multiclass num_class:20"))
    frame = pd.DataFrame(rng.normal(size=(120, 300)), columns=[f"f{i}" for i in range(300)])
    frame.to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=tmp_path / "surrogate.txt", output=tmp_path / "out", scheduler="sync"
    )
    assert len(run.info["features"]["identically_zero"]) < 60
    assert report_of(run).stat().st_size <= LIMIT
    opened = Opened(browser, report_of(run))
    opened.page.select_option("#output", value="13")
    label = run.info["outputs"][13]
    summary = run.summary("engineered")
    mine = summary[summary.output == label].reset_index()
    figure = opened.figure("importance")
    np.testing.assert_allclose(figure["data"][0]["x"], mine.mean_abs[:20], rtol=1e-5)
    assert opened.labels("importance") == mine.feature[:20].tolist()
    used = 300 - len(run.info["features"]["identically_zero"])
    assert opened.page.locator("details.features:visible tbody tr").count() == used
    assert np.array(opened.figure("classes")["data"][0]["z"]).shape == (15, 20)
    sample = run.sample()
    row = sample[sample.output == label].iloc[0]
    total = run.info["expected_values"][13] + row.filter(regex="^engineered[.]").sum()
    assert waterfall_sum(opened.figure("waterfall")) == pytest.approx(total, abs=1e-6)
    assert opened.said == []
    opened.page.close()

    # a page that would be too large says what it leaves out
    names = [f"{'long' * 300} {i}" for i in range(300)]
    info = {**run.info, "features": {**run.info["features"], "engineered": names, "identically_zero": []}}
    table = run.summary("engineered").assign(feature=[names[int(name[1:])] for name in summary.feature])
    import pyarrow as pa

    page = report_html(info, {"engineered": pa.Table.from_pandas(table)}, None)
    assert len(page) <= LIMIT and b"Names of more than 200 characters are shortened" in page


def test_no_rows_one_feature_and_no_values(engineered: Engineered, browser: Any, tmp_path: Path, small: Small) -> None:
    (tmp_path / "one.txt").write_text(written([random_tree(np.random.default_rng(0), 4, 1)], 1))
    secret = pd.DataFrame({"f0": [0.5, 1234.56789, 3.0], "who": ["a", "b", "c"]})
    for rows, name in ((3, "some"), (0, "none")):
        secret[:rows].to_parquet(tmp_path / f"{name}.parquet")
        run = bx.explain_dataset(
            input=tmp_path / f"{name}.parquet", explainer=tmp_path / "one.txt", output=tmp_path / name,
            id_columns="who", scheduler="sync", no_row_values=True,
        )  # fmt: skip
        assert b"1234.5" not in report_of(run).read_bytes()
        opened = Opened(browser, report_of(run), viewport={"width": 390, "height": 844})
        if rows:
            assert opened.labels("importance") == ["f0"]
            assert opened.page.locator("#dependence-empty").inner_text() == "The run kept no feature values."
            assert waterfall_sum(opened.figure("waterfall")) == pytest.approx(
                run.info["expected_values"][0] + run.sample()["engineered.f0"][0], abs=1e-6
            )
        else:
            assert "no rows" in opened.page.locator("#importance").inner_text()
            assert not opened.page.locator(".plot").count()
        assert opened.fits() and opened.said == []
        opened.page.close()


def test_a_surrogate_without_splits_and_margins_that_hardly_differ(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "constant.txt").write_text(written([constant_tree(1.5)], 1))
    pd.DataFrame({"f0": [0.5, np.inf, np.nan]}).to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=tmp_path / "constant.txt", output=tmp_path / "out", scheduler="sync"
    )
    opened = Opened(browser, report_of(run))
    assert run.info["warnings"] == [] and "never used" in opened.page.locator("#importance").inner_text()
    assert opened.said == []
    opened.page.close()
    alike = Counts.of_numbers("", "", 1.5 + np.arange(5) * 2e-16)
    assert sum(alike.counts) == 5 and alike.edges[0] < 1.5 < alike.edges[-1]


def test_it_is_a_file_of_the_run_and_can_be_made_again(bank: bx.Run, tmp_path: Path) -> None:
    written_file = report_of(bank).read_bytes()
    assert "report.html" in {entry["path"] for entry in bank.info["files"]} and bx.verify_run(bank.location.path).ok
    again = tmp_path / "again.html"
    for _ in range(2):  # the second time in the place of the first
        done = CliRunner().invoke(cli, ["report", bank.location.path, "--output", str(again)])
        assert done.exit_code == 0, done.output
        assert again.read_bytes() == written_file
    (tmp_path / "precious.html").write_text("mine")
    for place in (tmp_path / "precious.html", Path(bank.location.path, "new.html"), tmp_path):
        with pytest.raises(OutputRefusedError):
            bank.report(place)
    assert (tmp_path / "precious.html").read_text() == "mine" and not Path(bank.location.path, "new.html").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(bank.location.path, damaged)
    (damaged / "report.html").write_bytes(written_file[:-100] + b"x" * 100)
    assert [problem.file for problem in bx.verify_run(damaged).problems] == ["report.html"]


def test_a_run_outlives_its_report(engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batch_explain.report import page

    engineered.frame[:50].to_parquet(tmp_path / "rows.parquet")
    options = {"input": tmp_path / "rows.parquet", "explainer": engineered.explainer, "scheduler": "sync"}
    without = bx.explain_dataset(**options, output=tmp_path / "without", report=False)
    assert not report_of(without).exists() and without.info["warnings"] == []
    with monkeypatch.context() as broken:  # a Plotly that is not whole
        empty = tmp_path / "site/plotly"
        empty.mkdir(parents=True)
        (empty / "__init__.py").touch()
        broken.delitem(sys.modules, "plotly", raising=False)
        broken.syspath_prepend(str(empty.parent))
        page._plotly.cache_clear()
        run = bx.explain_dataset(**options, output=tmp_path / "out")
    page._plotly.cache_clear()
    assert not report_of(run).exists() and bx.verify_run(run.location.path).ok
    assert "report.html could not be made (OptionError: Plotly is not installed, or without" in run.info["warnings"][0]
    run.report(tmp_path / "later.html")
    assert (tmp_path / "later.html").stat().st_size > 4_000_000


def test_drift_from_a_baseline(bank: bx.Run, browser: Any, tmp_path: Path) -> None:
    """A run of other rows, against the run of all: the page says what ``drift.json`` says, made again as well."""
    options = {**bank.info["options"], "report": True}
    frame = pd.read_parquet(options["input"])
    frame[frame.duration > frame.duration.median()].to_parquet(tmp_path / "long.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "long.parquet",
        model=options["model"],
        explainer=options["explainer"],
        output=tmp_path / "out",
        baseline=bank.location.path,
        scheduler="sync",
        id_columns="customer_id",
    )
    found = json.loads((tmp_path / "out/summary/drift.json").read_bytes())
    opened = Opened(browser, report_of(run))
    section = opened.page.locator("#drift")
    assert f"{found['drift']:.4f}" in section.inner_text() and bank.location.path in section.inner_text()
    top = max(found["features"], key=lambda each: abs(each["share"] - each["share_baseline"]))
    cells = [cell.strip() for cell in section.locator("tbody tr").first.locator("th, td").all_inner_texts()]
    assert cells[0] == top["feature"] and cells[4] == f"{top['share'] - top['share_baseline']:+.1%}"
    duration = next(each for each in found["features"] if each["feature"] == "duration")
    assert duration["psi_value"] > 0.25  # half of its values are gone
    assert section.locator("td.shift-much", has_text=f"{duration['psi_value']:.3f}").count() == 1
    assert opened.said == []
    opened.page.close()
    run.report(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == report_of(run).read_bytes()
    assert 'id="drift"' not in report_of(bank).read_text()


def test_figures_in_notebooks(bank: bx.Run) -> None:
    plot, sample = bank.plot, bank.sample()
    summary = bank.summary("raw")
    np.testing.assert_allclose(plot.importance(top=5).data[0].x, summary.mean_abs[:5])
    row = plot.waterfall(sample.customer_id[3], "engineered")
    total = bank.info["expected_values"][0] + sample.filter(regex="^engineered[.]").iloc[3].sum()
    bars = [step for trace in row.data for step in trace.x if step is not None]
    assert row.data[0].base[0] + sum(bars) == pytest.approx(total)
    points = plot.beeswarm(top=4)
    assert sum(len(trace.x) for trace in points.data) == 4 * len(sample)
    np.testing.assert_array_equal(plot.dependence("age").data[0].x, sample["value.age"])
    assert sum(plot.predictions().data[0].x) == 700
    for wrong in (lambda: plot.dependence("nothing"), lambda: plot.waterfall("nobody"), lambda: plot.importance("x")):
        with pytest.raises(OptionError):
            wrong()


@pytest.mark.parametrize(
    ("found", "counts", "state"),
    [
        ({"measure": "r2", "r2": 0.99, "rows": 9}, None, "good"),
        ({"measure": "r2", "r2": 0.9, "rows": 9}, None, "fair"),
        ({"measure": "r2", "r2": -2.0, "rows": 9}, None, "bad"),
        ({"measure": "r2", "r2": None, "rows": 9}, None, "unknown"),
        ({"measure": "agreement", "agreement": 0.97, "log_loss": 0.1, "rows": 9}, [60, 40], "good"),
        ({"measure": "agreement", "agreement": 0.97, "log_loss": 0.1, "rows": 9}, [98, 2], "bad"),
        (None, None, "unknown"),
    ],
)  # fmt: skip
def test_a_surrogate_that_does_not_follow_is_called_so(found: Any, counts: Any, state: str) -> None:
    assert fidelity(found, counts).state == state
