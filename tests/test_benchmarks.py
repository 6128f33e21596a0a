"""The benchmarks run, tiny: what they time is right, and what they write can be read. No time is asserted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import once

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = [
    once,
    pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of the source distribution"),
]

CASES = ["100x31", "100x63", "100x127", "100x255", "1000x31", "5 classes", "categorical + NaN", "sparse", "12 features"]
ALWAYS = ("batch_explain", "LightGBM predict", "LightGBM pred_contrib")
METHODS = [*ALWAYS, "shap.TreeExplainer", "woodelf-explainer", "shapiq"]


def script(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    calm = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # on a busy machine threads that spin take ten times as long
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=calm)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernel") / "kernel.json"
    script("kernel.py", "--quick", "--json", path)
    return path


FORM = [
    "benchmark", "format_version", "commit", "machine", "versions", "started", "seconds", "settings", "results",
    "targets", "problems",
]  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """What a benchmark wrote, in the form of all of them."""
    found: dict[str, Any] = json.loads(path.read_text())
    assert list(found) == FORM and found["problems"] == [] and found["settings"]["quick"]
    return found


@pytest.fixture
def results(measured: Path) -> dict[str, Any]:
    found: dict[str, Any] = read(measured)["results"]
    return found


def test_kernel_and_peers_agree(results: dict[str, Any]) -> None:
    assert [case["name"] for case in results["cases"]] == CASES
    for case in results["cases"]:
        assert [method["name"] for method in case["methods"]] == METHODS
        for method in case["methods"]:
            if method["name"] in ALWAYS:
                assert method["status"] == "ok"
            elif method["status"] != "ok":
                assert method["status"] == "not installed" or method["status"].startswith("cannot: ")
                continue
            assert method["right"]
            assert method["max_relative_difference"] < (1e-9 if method["name"] in ALWAYS else 1e-3)
            assert set(method["us_per_row"]) == set(method["times_ours"]) == {"min", "median", "max"}
            assert method["rows"] > 0 and method["calls"] > 0
        assert case["fastest_peer"] in METHODS[2:]


def test_kernel_results_say_what_was_measured(results: dict[str, Any], measured: Path) -> None:
    sizes = {case["name"]: (case["outputs"], case["features"]) for case in results["cases"]}
    assert sizes["100x31"] == (1, 50)
    assert sizes["5 classes"] == (5, 50)
    assert sizes["sparse"] == (1, 42_000)
    assert sizes["12 features"] == (1, 12)
    assert [grown["name"] for grown in results["growth"]] == CASES[:4]
    assert [(table["case"], table["divisor"]) for table in results["tables"]] == [
        (name, divisor) for name in ("100x31", "100x255") for divisor in (1, 4, 16)
    ]
    assert all(table["max_relative_difference"] < 1e-9 for table in results["tables"])
    assert results["threads"]["times_faster"]["median"] > 0
    assert [first["name"] for first in results["first_row"]] == ["100x31", "100x255"]
    found = read(measured)
    assert {"python", "numpy", "lightgbm"} <= set(found["versions"])
    assert found["machine"]["cpu"]
    assert found["targets"] == []  # of tiny models there are none


def test_chart_is_deterministic_and_fills_the_readme(measured: Path, tmp_path: Path) -> None:
    readme, first, second = tmp_path / "README.md", tmp_path / "first.svg", tmp_path / "second.svg"
    parts = ("kernel", "end-to-end")
    readme.write_text("before\n" + "".join(f"<!-- {part} -->\nold\n<!-- /{part} -->\nafter\n" for part in parts))
    script("chart.py", "--json", measured, "--svg", second)
    for _ in range(2):
        script("chart.py", "--json", measured, "--svg", first, "--readme", readme)
    assert first.read_bytes() == second.read_bytes()
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- kernel -->"] and lines[-2:] == ["<!-- /end-to-end -->", "after"]
    assert "![µs a row of each method](first.svg)" in lines and "old" not in lines
    kernel, runs = lines[: lines.index("<!-- /kernel -->")], lines[lines.index("<!-- end-to-end -->") :]
    assert sum(line.startswith("| ") for line in kernel) == 1 + len(CASES)
    assert any("batch-explain run |" in line for line in runs) and any("`run --workers 1`" in line for line in runs)


def test_the_figures_of_the_readme_are_those_of_the_results(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes((FOLDER / "README.md").read_bytes())
    script("figures.py", "--readme", readme)
    assert readme.read_bytes() == (FOLDER / "README.md").read_bytes()


def test_chart_refuses_a_readme_without_its_lines(measured: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    command = [sys.executable, str(FOLDER / "chart.py"), "--json", str(measured), "--svg", str(tmp_path / "a.svg")]
    ended = subprocess.run([*command, "--readme", str(readme)], capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and "<!-- kernel -->" in ended.stderr
    assert readme.read_text() == "nothing\n"


def test_interventional_values_are_shaps(tmp_path: Path) -> None:
    pytest.importorskip("shap")
    script("interventional.py", "--quick", "--json", tmp_path / "found.json")
    assert read(tmp_path / "found.json")["results"][0]["relative_difference_to_shap"] < 1e-5


def test_an_online_endpoint_under_load(tmp_path: Path) -> None:
    pytest.importorskip("azureml_inference_server_http")
    script("online.py", "--quick", "--workers", "1", "--json", tmp_path / "found.json")
    [found] = read(tmp_path / "found.json")["results"]
    assert found["requests_per_second"]["median"] > 0 and found["p99_ms"]["median"] >= found["p50_ms"]["median"]
    assert found["rows_of_one_request"] == 100


def test_whole_runs_are_right(tmp_path: Path) -> None:
    script("end_to_end.py", "--engineered", "--quick", "--json", tmp_path / "found.json")
    for found in read(tmp_path / "found.json")["results"]:
        assert found["us_per_row"]["min"] > 0 and found["additivity"]["rows_checked"] > 0


def test_memory_is_told(tmp_path: Path) -> None:
    script("memory.py", "--quick", "--json", tmp_path / "found.json")
    for found in read(tmp_path / "found.json")["results"]:
        assert found["worker_peak_mb"] > 0 and found["rows_explained"] == found["rows"]


def test_overhead_is_told(tmp_path: Path) -> None:
    script("overhead.py", "--quick", "--json", tmp_path / "found.json")
    many, files, skewed = read(tmp_path / "found.json")["results"]
    assert (many["partitions"], files["partitions"], skewed["partitions"]) == (200, 100, 107)
    for found in (many, files, skewed):
        assert found["rows_explained"] == found["rows"] and found["scheduler_peak_mb"] > 50


def test_scaling_is_told(tmp_path: Path) -> None:
    script("scaling.py", "--quick", "--json", tmp_path / "found.json")
    one, two, *played = read(tmp_path / "found.json")["results"]
    assert one["rows_explained"] == two["rows_explained"] == 20_000
    assert all(0 < share < 2 for each in played for share in each["efficiency"].values())


def test_the_simulation_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one can compute by hand what has to come out."""
    monkeypatch.syspath_prepend(FOLDER)
    import scaling

    even = scaling.Times(row=1e-3, partition=0.0, spread=0.0, task=0.0, finalize=0.0)
    nothing = scaling.Assumed(straggler_share=0.0, straggler_factor=1.0, latency=0.0, requests=0, start=0.0)
    for workers in (1, 2, 7):  # 100 partitions of a second each
        found = scaling.simulate(100_000 * 100, 100_000, workers, even, nothing)
        assert found == pytest.approx(100 * -(-100 // workers)), workers
    slow = scaling.Times(row=1e-3, partition=1.0, spread=0.0, task=0.0, finalize=0.5)
    late = scaling.Assumed(straggler_share=0.0, straggler_factor=1.0, latency=0.1, requests=5, start=10.0)
    assert scaling.simulate(200_000, 100_000, 2, slow, late) == pytest.approx(10 + 100 + 1 + 0.5 + 2 * 0.5)
    bound = scaling.Times(row=1e-3, partition=0.0, spread=0.0, task=200.0, finalize=0.0)  # by the scheduler
    assert scaling.simulate(1_000_000, 100_000, 100, bound, nothing) == pytest.approx(10 * 200 + 100)
    one = scaling.Assumed(straggler_share=1.0, straggler_factor=3.0, latency=0.0, requests=0, start=0.0)
    assert scaling.simulate(1_000_000, 100_000, 10, even, one) == pytest.approx(300)


def result(
    path: Path,
    *,
    times: tuple[float, float, float],
    us: float = 2.0,
    shap_us: float = 500,
    cpu: str = "one",
    **other: Any,
) -> Path:
    """A result by hand: us, so many µs a row, and a peer that takes so many times ours."""
    spread = dict(zip(("min", "median", "max"), times, strict=True))
    methods = [
        {"name": "batch_explain", "us_per_row": {"min": us, "median": us, "max": us}},
        {"name": "shap", "times_ours": spread, "us_per_row": {"min": shap_us, "median": shap_us, "max": shap_us}},
    ]
    content = {
        "benchmark": "by hand", "format_version": 2, "commit": None, "machine": {"cpu": cpu, "cores": 2},
        "versions": {"python": "3.12"}, "settings": {}, "results": {"cases": [{"name": "a", "methods": methods}]},
        "targets": [], "problems": [], **other,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and words of compare.py on two files."""
    monkeypatch.syspath_prepend(FOLDER)
    import compare

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = compare.main([str(argument) for argument in arguments])
        return code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize(
    "name",
    [
        "kernel.py",
        "end_to_end.py",
        "memory.py",
        "overhead.py",
        "scaling.py",
        "interventional.py",
        "online.py",
        "surrogates.py",
    ],
)
def test_scripts_have_the_same_options(name: str) -> None:
    helped = script(name, "--help")
    assert "--json FILE" in helped and "--quick" in helped


def test_what_became_worse_is_found(tmp_path: Path, compared: Callable[..., tuple[int, str]]) -> None:
    old = result(tmp_path / "old.json", times=(90, 100, 110))
    for times, asked, code in (
        ((90, 100, 110), "10%", 0),
        ((70, 80, 85), "10%", 1),  # the peer is no longer as much slower
        ((70, 80, 95), "10%", 0),  # but the spreads overlap
        ((70, 80, 85), "30%", 0),
        ((150, 160, 170), "10%", 0),
    ):
        found, said = compared(old, result(tmp_path / "new.json", times=times), "--tolerance", asked)
        assert found == code, said
        assert ("WORSE" in said) == bool(code)
    slower = result(tmp_path / "new.json", times=(90, 100, 110), us=3.0)
    code, said = compared(old, slower)
    assert code == 1 and "a, batch_explain: us_per_row" in said
    assert compared(old, result(tmp_path / "new.json", times=(90, 100, 110), shap_us=900))[0] == 0  # not our doing
    elsewhere = result(tmp_path / "new.json", times=(90, 100, 110), us=3.0, cpu="two")
    code, said = compared(old, elsewhere)
    assert code == 0 and "Not compared: 1 times, rates and sizes: another cpu" in said
    target = {"name": "fast", "reached": 0.3, "asked": "<= 0.35", "met": True}
    met = result(tmp_path / "old.json", times=(1, 1, 1), targets=[target])
    missed = result(tmp_path / "new.json", times=(1, 1, 1), targets=[{**target, "reached": 0.4, "met": False}])
    assert compared(met, missed)[0] == 1 and compared(missed, met)[0] == 0
    other = result(tmp_path / "new.json", times=(1, 1, 1), benchmark="another")
    assert compared(met, other)[0] == 2
    (tmp_path / "new.json").write_text("{}")
    with pytest.raises(SystemExit, match="is no result of these benchmarks"):
        compared(met, tmp_path / "new.json")


def test_the_stored_results_can_be_compared(compared: Callable[..., tuple[int, str]]) -> None:
    stored = sorted((FOLDER / "results").glob("*.json"))
    assert {"kernel.json", "end_to_end.json", "memory.json"} <= {path.name for path in stored}
    for path in stored:
        code, said = compared(path, path)
        assert code == 0 and " 0 figures compared" not in said and "Not compared" not in said, said


def test_a_kernel_half_as_fast_is_seen(tmp_path: Path, compared: Callable[..., tuple[int, str]]) -> None:
    """The stored kernel result, with our times doubled, on another machine: the ratios tell."""
    path = FOLDER / "results" / "kernel.json"
    content = json.loads(path.read_text())
    content["machine"]["cpu"] = "another"
    for case in content["results"]["cases"]:
        for method in case["methods"]:
            if "times_ours" in method and method["name"] != "batch_explain":
                method["times_ours"] = {name: value / 2 for name, value in method["times_ours"].items()}
    (tmp_path / "slow.json").write_text(json.dumps(content))
    code, said = compared(path, tmp_path / "slow.json")
    assert code == 1 and "100x31, LightGBM pred_contrib: times_ours" in said
    assert compared(tmp_path / "slow.json", path)[0] == 0
