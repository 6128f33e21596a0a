"""The figures in `benchmarks/README.md`, from `results/*.json`: `python benchmarks/figures.py` replaces them.

Each results file has a table between the lines `<!-- NAME -->` and `<!-- /NAME -->`, with the machine and versions that
it was measured on; what `chart.py` writes into the project's README comes from the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from scaling import SIZES

PACKAGES = (
    "python",
    "lightgbm",
    "shap",
    "woodelf-explainer",
    "shapiq",
    "azureml-interpret",
    "dask",
    "pyarrow",
    "numpy",
)
README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class Column:
    """A column of a table: what it is called, and where its value lies in each result (``a.b`` within ``a``)."""

    heading: str
    key: str
    digits: int | None = None  # None: as it is

    def cell(self, result: dict[str, Any]) -> str:
        """A text, a number, or the median of a spread with its range; nothing where there is none."""
        value: Any = result
        for part in self.key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict):
            if value["min"] == value["max"]:
                return self._number(value["median"])
            return f"{self._number(value['median'])} ({self._number(value['min'])}–{self._number(value['max'])})"
        return "" if value is None else self._number(value)

    def _number(self, value: Any) -> str:
        if self.digits is None or isinstance(value, str):
            return f"{value:,}" if isinstance(value, int) else str(value)
        return f"{value:,.{self.digits}f}"


NAME = Column("", "name")
RUNS = (
    Column("rows a second", "rows_per_second", 0),
    Column("µs a row", "us_per_row", 2),
    Column("CPU µs a row, with start", "cpu_us_per_row", 1),
    Column("start s", "startup_seconds", 1),
    Column("closing s", "closing_seconds", 1),
    Column("peak MB", "peak_rss_mb", 0),
)
TABLES: dict[str, tuple[Column, ...]] = {
    "end_to_end": (
        NAME,
        Column("µs a row explained", "us_per_row_explained", 1),
        Column("steady, × predict", "steady_times_predict", 2),
        Column("rows explained", "rows_explained"),
        Column("rows right", "rows_right"),
        Column("of", "rows_checked"),
        Column("start s", "startup_seconds", 1),
        Column("peak MB", "peak_rss_mb", 0),
    ),
    "engineered": (NAME, *RUNS),
    "reasons": (NAME, *RUNS),
    "memory": (
        NAME,
        Column("rows", "rows"),
        Column("columns", "columns"),
        Column("rows of a row group", "row_group"),
        Column("peak MB of a worker", "worker_peak_mb", 0),
        Column("of all processes", "all_processes_peak_mb", 0),
    ),
    "overhead": (
        Column("", "name"),
        Column("partitions", "partitions"),
        Column("planning s", "planning_s", 1),
        Column("explaining s", "explain_s.disk", 1),
        Column("closing s", "closing_s.disk", 1),
        Column("ms a partition", "overhead_ms.disk", 1),
        Column("without the disk", "overhead_ms.memory", 1),
        Column("scheduler MB", "scheduler_peak_mb", 0),
        Column("of a worker", "worker_peak_mb", 0),
        Column("one waits for the other s", "idle_at_the_end_s", 2),
    ),
    "scaling": (
        Column("", "name"),
        Column("s", "seconds", 1),
        Column("× one worker", "times_one_worker", 2),
        *(Column(f"{size:,} rows", f"efficiency.{size}", 2) for size in SIZES),
    ),
    "interventional": (
        Column("trees × leaves", "name"),
        Column("µs a row", "us_per_row", 2),
        Column("× path-dependent", "times_path_dependent", 2),
        Column("shap takes ×", "times_shap_faster", 0),
        Column("tables built s", "tables_built_s", 1),
        Column("MB", "tables_mb", 0),
    ),
    "online": (),
    "online_automl": (),
    "surrogates": (
        NAME,
        Column("agreement", "fidelity.agreement", 3),
        Column("log-loss", "fidelity.log_loss", 3),
        Column("divergence", "fidelity.divergence", 4),
        Column("R²", "fidelity.r2", 4),
        Column("µs a row", "us_per_row", 1),
        Column("fit s", "fit_s", 1),
    ),
}
TABLES["online"] = TABLES["online_automl"] = (
    NAME,
    Column("requests a second", "requests_per_second", 0),
    Column("p50 ms", "p50_ms", 1),
    Column("p99 ms", "p99_ms", 1),
)


def table(content: dict[str, Any], columns: Sequence[Column]) -> str:
    """Markdown: a line for each result, then where it was measured and which targets are met."""
    lines = [
        f"| {' | '.join(column.heading for column in columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(column.cell(each) for column in columns)} |" for each in content["results"]),
    ]
    return "\n".join([*lines, "", *_ending(content)])


def kernel(content: dict[str, Any]) -> str:
    """Markdown: a line for each model, a column for each method."""
    results = content["results"]
    methods = [method["name"] for method in results["cases"][0]["methods"]]
    ours, peers = methods[0], methods[1:]
    lines = [
        f"| model | {ours}, µs a row | {' | '.join(f'{peer} takes ×' for peer in peers)} |",
        "|---" * (len(peers) + 2) + "|",
    ]
    us, times = Column("", "us_per_row", 2), Column("", "times_ours", 1)
    for case in results["cases"]:
        found = {method["name"]: method for method in case["methods"]}
        cells = [times.cell(found[peer]) or found[peer]["status"].partition(":")[0] for peer in peers]
        lines.append(f"| {case['title']} | {us.cell(found[ours])} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_ending(content)])


def _ending(content: dict[str, Any]) -> list[str]:
    machine, versions, targets = content["machine"], content["versions"], content["targets"]
    packages = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    load = machine["load_average"][0]
    said = [
        f"Median (least–most). {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:g} GB, load "
        f"{load:g} before; {packages}; commit {content['commit']}."
    ]
    if targets:
        missed = [f"{each['name']} ({each['reached']:g}, asked {each['asked']})" for each in targets if not each["met"]]
        met = f"{len(targets) - len(missed)} of {len(targets)} targets met"
        said.append(f"{met}; missed: {'; '.join(missed)}." if missed else f"{met}.")
    return said


def main(arguments: list[str]) -> int:
    """Replace the figures of all results that are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE", help="(default: benchmarks/README.md)")
    options = parser.parse_args(arguments)
    for name in ("kernel", *TABLES):
        path = common.RESULTS / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            text = kernel(content) if name == "kernel" else table(content, TABLES[name])
            common.replace_between(options.readme, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
