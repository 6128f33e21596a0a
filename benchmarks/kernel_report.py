"""What `kernel.py` measured, as tables for people, and held against the targets."""

from __future__ import annotations

from typing import Any

import common

SMALL, LARGE = "100x31", "100x255"
LIMITS = {SMALL: (1, 150), LARGE: (10, 400)}  # of the tables: seconds, MB


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the kernel has to reach, and whether it did."""
    found: list[dict[str, Any]] = []

    def target(what: str, value: float | None, **limit: float) -> None:
        if value is not None:
            found.append(common.target(what, value, **limit))

    cases = {case["name"]: case for case in results["cases"]}
    for name, predict, contrib, woodelf in ((SMALL, 0.35, 200, 10), (LARGE, 8, 100, 7)):
        if name in cases:
            times = _times_ours(cases[name])
            target(f"{name}: of predict's time", round(1 / times["LightGBM predict"], 3), at_most=predict)
            target(f"{name}: faster than pred_contrib", times["LightGBM pred_contrib"], at_least=contrib)
            target(f"{name}: faster than woodelf", times.get("woodelf-explainer"), at_least=woodelf)
    for name, case in cases.items():
        fastest = case["fastest_peer"]
        target(f"{name}: faster than the fastest, {fastest}", _times_ours(case)[fastest], at_least=5)
    for grown in results["growth"][1:]:
        relative = grown["per_leaf_and_split_of_first"]["median"]
        target(f"{grown['name']}: time / (leaves × path), of {results['growth'][0]['name']}", relative, at_most=1)
    for table in results["tables"]:
        seconds, memory = LIMITS[table["case"]]
        what = f"{table['case']}, bound {table['bound_mb']:,.0f} MB: tables,"
        target(f"{what} s", table["build_seconds"]["median"], at_most=seconds)
        target(f"{what} MB", table["table_mb"], at_most=min(memory, table["bound_mb"]))
    threads = results["threads"]
    if threads is not None and threads["cores"] > 1:
        target("2 threads: faster than 1", threads["times_faster"]["median"], at_least=1.8)
    for first in results["first_row"]:
        if first["name"] == SMALL:
            target(f"{SMALL}: first row of a fresh process, s", first["seconds"]["median"], at_most=1)
    return found


def _times_ours(case: dict[str, Any]) -> dict[str, float]:
    """How many times as long each method takes, of those whose values are right."""
    return {found["name"]: found["times_ours"]["median"] for found in case["methods"] if found.get("right")}


def print_case(case: dict[str, Any]) -> None:
    """One model: a line for each method."""
    headings = [
        "method", "rows", "calls", "µs a row", "× ours", "max rel. difference\nto pred_contrib", "CPU s\na second",
        "prepared\nin s",
    ]  # fmt: skip
    lines, notes = [], []
    for found in case["methods"]:
        status, _, why = found["status"].partition(":")
        if "us_per_row" not in found:
            lines.append([found["name"], "", "", status, "", "", "", ""])
            notes += [f"{found['name']}:{why}"] if why else []
            continue
        lines.append(
            [
                found["name"],
                f"{found['rows']:,}",
                str(found["calls"]),
                _range(found["us_per_row"]),
                _range(found["times_ours"]),
                f"{found['max_relative_difference']:.1e}",
                f"{found['cpu_per_second']:.2f}",
                f"{found['prepare_seconds']:.2f}",
            ]
        )
    size = f"mean path {case['mean_path_splits']:.1f} splits, {case['used_features']} columns used"
    common.print_table(f"{case['title']} ({size})", headings, lines)
    print("\n".join([*notes, ""]), flush=True)


def print_rest(results: dict[str, Any]) -> None:
    """What is not in the cases' tables, the targets, and what is wrong."""
    if results["growth"]:
        first = results["growth"][0]["name"]
        headings = ["growth", "mean path\nsplits", "µs a row", f"µs / (leaves × path),\nof {first}'s"]
        lines = [
            [
                grown["name"],
                f"{grown['mean_path_splits']:.1f}",
                _range(grown["us_per_row"]),
                _range(grown["per_leaf_and_split_of_first"]),
            ]
            for grown in results["growth"]
        ]
        common.print_table("", headings, lines)
    if results["tables"]:
        headings = ["tables", "MB", "built in s", "µs a row", "× default's\ntime", "max rel. difference\nto default's"]
        lines = [
            [
                f"{table['case']}, bound {table['bound_mb']:,.1f} MB",
                f"{table['table_mb']:,.1f}",
                _range(table["build_seconds"]),
                _range(table["us_per_row"]),
                _range(table["times_default"]),
                f"{table['max_relative_difference']:.1e}",
            ]
            for table in results["tables"]
        ]
        common.print_table("", headings, lines)
    if (threads := results["threads"]) is not None:
        one, two = _range(threads["one_us_per_row"]), _range(threads["two_us_per_row"])
        times = _range(threads["times_faster"])
        apart = _range(threads["processes_times_faster"])
        print(f"\n2 threads on {threads['cores']} cores: {times} times as fast as 1 ({two} µs a row after {one});")
        print(f"2 processes of one thread, which share nothing: {apart} times")
    for fresh in results["first_row"]:
        print(f"{fresh['name']}: first row of a fresh process, model text to values, in {_range(fresh['seconds'])} s")
    print("\nMedians (min–max) of calls that took turns. × ours: of the same round.")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _range(found: dict[str, float]) -> str:
    """Median, with the range where there is one."""
    low, middle, high = (_number(found[name]) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"
