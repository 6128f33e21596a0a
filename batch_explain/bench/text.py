"""What was measured, in a table of at most 100 columns and some sentences."""

import textwrap
from typing import Any

from batch_explain.bench.methods import RUN

HEADINGS = ("", "µs a row (min–max)", "rows/s", "×predict", "×kernel", "MB", "apart", "rows × calls")
WIDTH = 100


def title(found: dict[str, Any]) -> str:
    """What was measured, in a line or two."""
    settings = found["settings"]
    model = settings["model"] or "no model, engineered rows"
    where = "the built-in example" if settings["built_in"] else settings["input"]
    return (
        f"{where}: {model}; {settings['explainer']}; {settings['engineered_features']:,} engineered features, "
        f"{settings['outputs']} output{'s' * (settings['outputs'] > 1)}"
    )


def lines(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line of the table for each method that was measured."""
    return [_line(each) for each in found["results"]["methods"] if each["status"] == "ok"]


def _line(each: dict[str, Any]) -> tuple[str, ...]:
    difference = each["largest_difference"]
    whole = each["name"] == RUN
    return (
        f"whole run, {each['workers']} worker{'s' * (each['workers'] > 1)}" if whole else each["name"],
        _range(each["us_per_row"]),
        number(each["rows_per_second"]["median"]),
        _median(each["times_predict"]),
        _median(each["times_ours"]),
        f"{each['memory_mb']:,.0f}" if whole else f"+{each['memory_mb']:,.0f}",
        "" if difference is None else f"{difference:.0e}" + ("" if each["right"] else " WRONG"),
        f"{each['rows']:,} × {each['calls']:,}",
    )


def sentences(found: dict[str, Any]) -> list[str]:
    """What was not measured, how the table is meant, the estimate, and how sure it is."""
    results, machine = found["results"], found["machine"]
    said = [
        f"{each['name']}: {each['status']}."
        if not each["status"].endswith(".")
        else f"{each['name']}: {each['status']}"
        for each in results["methods"]
        if each["status"] != "ok"
    ]
    reference = next((each["compared_with"] for each in results["methods"] if each.get("compared_with")), None)
    compared = (
        "There is nothing here that values can be compared with"
        if reference is None
        else f"Apart: largest difference from {reference}, relative to a row's largest value or 1"
    )
    said += [
        "One thread each, taking turns; ratios are of the same round. The whole run: from when its workers are ready "
        "to the last part, reading and writing too. MB: what this process grew by during a call; of the whole "
        f"run the peak of all its processes together. {compared}.",
        f"{machine['cores']} cores, {machine['cpu']}, Python {found['versions']['python']}, LightGBM "
        f"{found['versions'].get('lightgbm', 'none')}, in {found['seconds']:.0f} s.",
    ]
    return said + _estimate(found)


def wrapped(found: dict[str, Any]) -> list[str]:
    """The same in lines for a terminal."""
    return [line for text in sentences(found) for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _estimate(found: dict[str, Any]) -> list[str]:
    """The estimate, and how sure everything is."""
    results = found["results"]
    if results["estimate"] is None:
        return ["There is no estimate: no whole run ended well."]
    said = [results["estimate_in_words"] + ".", f"Assumed: {'; '.join(results['estimate']['assumed'])}."]
    doubts = results["doubts"]
    rounds = max(each["rounds"] for each in results["methods"] if each["status"] == "ok")
    sure = f"medians of up to {rounds} rounds, no round further than 20% apart" if not doubts else "; ".join(doubts)
    return [*said, f"How sure: {sure}."]


def number(value: float) -> str:
    """Three digits or more, as one reads it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _median(found: dict[str, float] | None) -> str:
    return "" if found is None else number(found["median"])


def _range(found: dict[str, float]) -> str:
    low, middle, high = (number(found[name]) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"
