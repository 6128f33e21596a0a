"""What was measured, as files: JSON, and a chart."""

import json
from pathlib import Path
from typing import Any

from batch_explain.bench import text
from batch_explain.bench.chart import Bar, chart
from batch_explain.bench.methods import MARGIN, MODEL, OURS, PREDICT, RUN
from batch_explain.errors import OptionError, OutputRefusedError

_FORMS = (".svg", ".html")
_NOTE = "µs a row, logarithmic; in brackets: times batch_explain's kernel"


def check_places(output: str | None, chart: str | None) -> None:
    """See before the measuring whether both can be written.

    Raises
    ------
    OptionError
        If the chart's name ends in neither .svg nor .html.
    OutputRefusedError
        If a folder is not there.
    """
    if chart is not None and Path(chart).suffix not in _FORMS:
        raise OptionError(f"--chart is '{chart}'. Use a name that ends in .svg or .html.")
    for place in (output, chart):
        if place is not None and (not Path(place).absolute().parent.is_dir() or Path(place).is_dir()):
            raise OutputRefusedError(f"There is no folder for {place}, or it is one itself. Name a file in a folder.")


def write_files(found: dict[str, Any], output: str | None, chart: str | None) -> None:
    """Write those that were asked for."""
    if output is not None:
        Path(output).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if chart is not None:
        drawn = svg(found) if chart.endswith(".svg") else page(found)
        Path(chart).write_text(drawn, encoding="utf-8")


def svg(found: dict[str, Any]) -> str:
    """A bar for each method, in the table's order."""
    bars = []
    for each in found["results"]["methods"]:
        if each["status"] == "ok":
            kind = (
                "ours"
                if each["name"] in (*OURS, RUN)
                else "predict"
                if each["name"] in (MODEL, PREDICT, MARGIN)
                else "peer"
            )
            times = None if each["name"] in OURS else each["times_ours"]["median"]
            bars.append(Bar(each["name"], each["us_per_row"]["median"], times, kind))
    return chart([(found["settings"]["explainer"], bars)], _NOTE)


def page(found: dict[str, Any]) -> str:
    """The chart with the table and what is said below it, as one page that asks for nothing."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    template = Environment(loader=PackageLoader("batch_explain.bench", "."), autoescape=True).get_template(
        "page.html.j2"
    )
    return template.render(
        title=text.title(found),
        svg=Markup(svg(found)),
        headings=text.HEADINGS,
        lines=text.lines(found),
        notes=text.sentences(found),
    )
