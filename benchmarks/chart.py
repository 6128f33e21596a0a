"""The README's chart and tables, from `results/kernel.json`, `results/end_to_end.json` and `results/engineered.json`.

`python benchmarks/chart.py` writes `results/kernel.svg`; `--readme README.md` also replaces what stands between its
lines `<!-- kernel -->` and `<!-- /kernel -->`, and `<!-- end-to-end -->` and `<!-- /end-to-end -->`. The same JSON
gives the same bytes. Needs nothing that was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
from engineered import FEATURES, LEAVES, RAW, TREES

from batch_explain.bench.chart import Bar
from batch_explain.bench.chart import chart as bars_chart

RESULTS = Path(__file__).parent / "results"
CHARTED = ("100x31", "100x255")
OURS, PREDICT = "batch_explain", "LightGBM predict"


def chart(results: dict[str, Any]) -> str:
    """An SVG: µs a row of each method, for the smallest and the largest trees."""
    cases = [case for case in results["results"]["cases"] if case["name"] in CHARTED]
    if not cases:
        raise ValueError(f"the results have none of the cases {', '.join(CHARTED)}")
    note = "µs a row, one thread, logarithmic; in brackets: times batch_explain's"
    return bars_chart([(case["title"], _bars(case)) for case in cases], note)


def _bars(case: dict[str, Any]) -> list[Bar]:
    """The fastest first; what only predicts comes first of all."""
    found = [
        (method["name"], method["us_per_row"]["median"], method["times_ours"]["median"])
        for method in case["methods"]
        if method.get("right")
    ]
    found.sort(key=lambda bar: (bar[0] != PREDICT, bar[1]))
    kinds = {OURS: "ours", PREDICT: "predict"}
    return [Bar(name, us, None if name == OURS else times, kinds.get(name, "peer")) for name, us, times in found]


def table(results: dict[str, Any], chart_path: str) -> str:
    """Markdown: the chart, a line for each case, and on what it was measured."""
    names = [method["name"] for method in results["results"]["cases"][0]["methods"]]
    peers = [name for name in names if name not in (OURS, PREDICT)]
    versions, machine = results["versions"], results["machine"]
    lines = [
        f"![µs a row of each method]({chart_path})",
        "",
        f"| model | µs a row | of `predict`'s time | {' | '.join(f'{_linked(peer)} takes' for peer in peers)} |",
        "|---|---|---|" + "---|" * len(peers),
    ]
    for case in results["results"]["cases"]:
        found = {method["name"]: method for method in case["methods"]}
        predict = found[PREDICT]["times_ours"]["median"]
        cells = [case["title"], f"**{_number(found[OURS]['us_per_row']['median'])}**", f"{1 / predict:.2f}"]
        cells += [_cell(found[peer]) for peer in peers]
        lines.append(f"| {' | '.join(cells)} |")
    distributions = {
        "LightGBM": "lightgbm",
        "shap": "shap",
        "woodelf-explainer": "woodelf-explainer",
        "shapiq": "shapiq",
    }
    measured = ", ".join(f"{name} {versions[key]}" for name, key in distributions.items() if key in versions)
    lines += [
        "",
        f"One thread, float64, one process in which all take turns: medians. {measured}, Python {versions['python']}; "
        f"{machine['cpu'].partition(' (')[0]}, {results['settings']['isa']}.",
    ]
    return "\n".join(lines)


def whole_runs(end_to_end: dict[str, Any], engineered: dict[str, Any]) -> str:
    """Markdown: each kind of AutoML model, then the engineered rows, and on what they were measured."""
    lines = [
        "| AutoML model | rows | way | µs a row explained | of `predict`'s time, steady | rows right | start-up s |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in end_to_end["results"]:
        steady = found["steady_times_predict"]
        cells = [found["kind"], f"{found['rows_asked']:,}", found["way"]]
        cells += [_number(found["us_per_row_explained"]["median"]), "" if steady is None else f"{steady['median']:.2f}"]
        cells += [f"{found['rows_right']:,} of {found['rows_checked']:,}", f"{found['startup_seconds']['median']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Engineered rows in, engineered and raw importances, all summaries and checks out: "
        f"{engineered['settings']['rows']:,} rows, {TREES} trees × {LEAVES} leaves × {FEATURES} features, {RAW} raw "
        "features:",
        "",
        "| way | rows a second | µs a row | start-up s | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for found in engineered["results"]:
        cells = [f"`{found['name']}`"]
        for name, form in (("rows_per_second", ",.0f"), ("us_per_row", ".2f"), ("startup_seconds", ".0f")):
            cells.append(format(found[name]["median"], form))
        cells.append(format(found["peak_rss_mb"]["median"], ",.0f"))
        lines.append(f"| {' | '.join(cells)} |")
    machine, versions, newer = end_to_end["machine"], end_to_end["versions"], engineered["versions"]
    lines += [
        "",
        f"Medians, on {machine['cores']} cores of an {machine['cpu'].partition(' (')[0]}. AutoML: Python "
        f"{versions['python']}, LightGBM {versions['lightgbm']}; engineered: Python {newer['python']}, LightGBM "
        f"{newer['lightgbm']}. Rows right: the SDK's own values at that position, to 1e-9. Start-up is paid once a "
        "run, most of it importing the SDK.",
    ]
    return "\n".join(lines)


def _linked(peer: str) -> str:
    return {"LightGBM pred_contrib": "`pred_contrib`", "shap.TreeExplainer": "`shap.TreeExplainer`"}.get(peer, peer)


def _cell(method: dict[str, Any]) -> str:
    if "times_ours" not in method:
        return method["status"].partition(":")[0]
    return f"×{_number(method['times_ours']['median'])}" if method["right"] else "wrong values"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def main(arguments: list[str]) -> int:
    """Write the chart, and the README's part where one is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "kernel.json", help="(default: results/kernel.json)")
    parser.add_argument("--svg", type=Path, default=RESULTS / "kernel.svg", help="(default: results/kernel.svg)")
    parser.add_argument("--readme", type=Path, metavar="PATH", help="a file with the lines <!-- kernel --> and so on")
    options = parser.parse_args(arguments)
    results = json.loads(options.json.read_text(encoding="utf-8"))
    options.svg.write_text(chart(results), encoding="utf-8")
    if options.readme:
        folder = options.readme.resolve().parent
        shown = options.svg.resolve()
        where = shown.relative_to(folder).as_posix() if shown.is_relative_to(folder) else shown.name
        common.replace_between(options.readme, "kernel", table(results, where))
        end_to_end, engineered = (
            json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in ("end_to_end.json", "engineered.json")
        )
        common.replace_between(options.readme, "end-to-end", whole_runs(end_to_end, engineered))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
