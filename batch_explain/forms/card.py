"""What a notebook shows of a finished run."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from batch_explain.report import verdict
from batch_explain.report.page import class_counts
from batch_explain.report.summaries import Level, cohort_summaries
from batch_explain.report.text import number, shortened, visible

_TOP = 8  # features with a bar
_COLOURS = {"good": "#2e9e5b", "fair": "#c98a00", "bad": "#d64545", "unknown": "#888888"}


def card_html(info: Mapping[str, Any], tables: Mapping[str, Any], place: str) -> str:
    """A small piece of HTML: numbers, verdict, the largest features, and where the run lies.

    Styles are inline and colours those of what surrounds it, so that it can be read in a dark notebook and survives
    one that takes out scripts and style sheets, of which it has none.

    Parameters
    ----------
    info : mapping
        ``run.json``.
    tables : mapping
        Name -> summary, as :func:`batch_explain.report.finished.read_summaries` gives them.
    place : str
        The run's folder.
    """
    levels = [Level.of(name, info, tables[name]) for name in ("raw", "engineered") if name in tables]
    cohorts = cohort_summaries(info, tables.get("cohorts"), levels[:1])
    faith = verdict.fidelity(info["fidelity"], class_counts(cohorts))
    return str(
        _template().render(
            info=info,
            place=place,
            fidelity=faith,
            colour=_COLOURS[faith.state],
            level=levels[0].name if levels else None,
            bars=_bars(levels[0]) if levels else [],
            left=max(0, len(levels[0].features) - _TOP) if levels else 0,
        )
    )


def _bars(level: Level) -> list[tuple[str, str, float]]:
    """Name, number and width (per cent) of the largest features; of several outputs, their mean."""
    sizes = level.statistics["mean_abs"].mean(axis=0)
    order = level.order()[:_TOP]
    largest = sizes[order[0]] if len(order) else 0.0
    return [
        (level.features[at], number(sizes[at], 3), float(100 * sizes[at] / largest))
        for at in order
        if sizes[at] > 0  # NaN: there were no rows
    ]


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["short"] = lambda text: shortened(visible(str(text)), 60)
    return environment.from_string((files(__package__) / "card.html.j2").read_text("utf-8"))
