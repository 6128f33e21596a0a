"""`batch-explain bench`: what it times is right, and what it says can be read. No time is asserted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batch_explain.cli import cli
from tests.conftest import Engineered, Small, once

KERNEL, CONTRIB, SDK, RUN = (
    "batch_explain kernel",
    "LightGBM pred_contrib",
    "SDK explain()",
    "batch_explain whole run",
)
SPREAD = {"min", "median", "max"}


def bench(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of the verb."""
    code = 0
    try:
        cli(["bench", "--seconds", "1", *map(str, arguments)], standalone_mode=False)
    except SystemExit as ended:
        code = int(str(ended.code))
    return code, *capsys.readouterr()


def measured(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    code, output, errors = bench(capsys, "--json", *arguments)
    assert code == 0, errors
    found: dict[str, Any] = json.loads(output)
    assert {"benchmark", "machine", "versions", "started", "seconds", "settings", "results", "targets"} <= set(found)
    assert found["problems"] == []
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in found["results"]["methods"]}


def assert_whole(each: dict[str, Any]) -> None:
    assert each["status"] == "ok", each
    for name in ("us_per_row", "rows_per_second", "times_predict", "times_ours"):
        assert set(each[name]) == SPREAD and each[name]["min"] > 0
    assert each["rows"] > 0 and each["calls"] > 0 and each["memory_mb"] >= 0


@once
def test_the_built_in_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, sentences, JSON and chart of one measurement."""
    asked = ("--rows", "5000000", "--cores", "8", "--output", tmp_path / "a.json", "--chart", tmp_path / "a.html")
    code, output, errors = bench(capsys, *asked)
    assert code == 0, errors
    found = json.loads((tmp_path / "a.json").read_text())
    methods = by_name(found)
    for name in ("featurize + predict", "LightGBM predict", KERNEL, CONTRIB, RUN):
        assert_whole(methods[name])
        shown = "whole run, " if name == RUN else name
        assert shown in output and shown.split(",")[0] in (tmp_path / "a.html").read_text()
    assert "model text" in methods[SDK]["status"] and SDK in output
    assert max(map(len, output.splitlines())) <= 100
    for name in (KERNEL, RUN):
        assert methods[name]["compared_with"] == CONTRIB and methods[name]["largest_difference"] < 1e-12
    estimate = found["results"]["estimate"]
    assert (estimate["rows"], estimate["cores"]) == (5_000_000, 8) and set(estimate["seconds"]) == SPREAD
    assert "5,000,000 rows on 8 cores: about" in output and "How sure: " in output
    assert "8 cores were not tried" in output
    assert (tmp_path / "a.html").read_text().count("<rect") == 5


@pytest.mark.automl
def test_a_genuine_automl_model_beside_the_sdk(
    automl: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_explain.bench.runs.cores", lambda: 1)  # each worker imports the SDK for many seconds
    paths = automl("multiclass")
    given = ("--input", paths.raw, "--model", paths.model, "--explainer", paths.explainer)
    found = measured(capsys, *given, "--chart", tmp_path / "a.svg")
    methods = by_name(found)
    for each in methods.values():
        assert_whole(each)
    for name in (KERNEL, SDK, RUN):
        assert methods[name]["compared_with"] == CONTRIB and methods[name]["right"]
        assert methods[name]["largest_difference"] < 1e-9
    assert found["settings"]["outputs"] == paths.outputs
    assert (tmp_path / "a.svg").read_text().count("<rect") == 6


@pytest.mark.automl
@pytest.mark.parametrize("kind", ["linear_regression", "transformations_binary", "probability_multiclass"])
def test_other_explainers_beside_the_sdk(kind: str, automl: Callable[[str], Any], tmp_path: Path) -> None:
    """What cannot be is marked, and the values are those of the SDK's own explain()."""
    from batch_explain.bench.methods import methods_of
    from batch_explain.bench.subject import Subject
    from batch_explain.bench.turns import difference, take_turns

    paths = automl(kind)
    given = {"input": paths.raw, "model": paths.model, "explainer": paths.explainer}
    methods = methods_of(Subject.load(tmp_path, given))
    refused = {method.name: method.why for method in methods if method.why}
    assert all("has no LightGBM trees" in why for why in refused.values()) and (CONTRIB in refused) == (
        "linear" in kind
    )
    timed = {each.method.name: each for each in take_turns(methods, 300, 1, lambda what: None)}
    ours, theirs = timed.get(KERNEL) or timed["batch_explain explainer"], timed[SDK]
    assert ours.checked is not None and theirs.checked is not None
    assert ours.checked.shape[2] > 0 and difference(ours.checked, theirs.checked) < 1e-9


def test_a_wrong_run_would_be_seen(engineered: Engineered, tmp_path: Path) -> None:
    """The difference is measured from what is given: LightGBM's values of other rows are not ours."""
    from batch_explain.bench.turns import difference

    values = np.asarray(engineered.booster.predict(engineered.frame[:50], pred_contrib=True))[:, :-1].T[None]
    moved = values.copy()
    moved[0, 3, 7] += 1e-6
    assert difference(values, values) == 0
    assert difference(moved, values) == pytest.approx(1e-6 / max(1, np.abs(values[0, :, 7]).max()))
    assert difference(np.full_like(values, np.nan), values) == np.inf


@once
def test_engineered_rows_and_bad_ones(
    small: Small, engineered: Engineered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = small.write(tmp_path / "rows.parquet", engineered.frame)
    methods = by_name(measured(capsys, "--input", rows, "--explainer", engineered.explainer))
    assert "no --model" in methods["featurize + predict"]["status"]
    assert_whole(methods[KERNEL])
    frame: pd.DataFrame = small.frame.copy()
    frame["balance"] = frame["balance"].astype(object)
    frame.loc[5, "balance"] = "much"
    bad = small.write(tmp_path / "bad.parquet", frame.astype({"balance": str}))
    for arguments, code, said in (
        (["--input", rows], 2, "explainer"),
        (["--explainer", engineered.explainer], 2, "The option 'input' is missing"),
        (["--input", tmp_path / "none", "--explainer", engineered.explainer], 2, "none"),
        (["--input", bad, "--model", small.model, "--explainer", small.explainer], 3, "Row 5 of bad.parquet cannot"),
        (["--chart", "a.png"], 2, ".svg or .html"),
        (["--output", tmp_path / "none" / "a.json"], 2, "There is no folder"),
        (["--seconds", "0"], 2, "--seconds"),
    ):
        found, _, errors = bench(capsys, *arguments)
        assert found == code, errors
        told = [line for line in errors.splitlines() if line.startswith("batch-explain:")]
        assert len(told) == 1 and said in told[0]


def test_an_estimate_is_arithmetic_on_what_was_measured() -> None:
    from batch_explain.bench.foretell import foretell
    from batch_explain.bench.measuring import Measured
    from batch_explain.bench.runs import Way
    from batch_explain.bench.whole_run import EngineRun

    def run(explain: float) -> EngineRun:
        whole = Measured(0, explain + 5, 1, 1, 1, 1)
        return EngineRun(whole, {"timings_s": {"load": 1, "explain": explain}}, explain + 3)

    ways = [Way(2, 1_000_000, [run(5), run(6), run(5.5)]), Way(1, 1_000_000, [run(11), run(10), run(10)])]
    two = foretell(ways, 10_000_000, 2)
    assert two is not None and two.gain == pytest.approx(10 / 5.5 - 1)
    assert (two.least, two.seconds, two.most) == pytest.approx((5 + 50, 5 + 55, 5 + 60))
    four = foretell(ways, 10_000_000, 4)
    assert four is not None and four.seconds == pytest.approx(5 + 100 / (1 + 3 * (10 / 5.5 - 1)))
    one = foretell(ways, 10_000_000, 1)
    assert one is not None and one.seconds == pytest.approx(5 + 100)
    assert foretell([Way(1, 10)], 10, 1) is None
