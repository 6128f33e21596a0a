"""A run as one HTML file that asks for nothing: styles, script, Plotly and data are in it."""

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.errors import OptionError, mask_secrets
from batch_explain.report import verdict
from batch_explain.report.drift_text import columns, headlines, moved_most
from batch_explain.report.payload import LONGEST_NAME, fitting, payload
from batch_explain.report.rows import Rows
from batch_explain.report.shapes import Counts
from batch_explain.report.summaries import PREDICTED, CohortSummary, Level, cohort_summaries
from batch_explain.report.text import duration, file_size, number, printable, shortened, visible

REPORT_PATH = "report.html"
LIMIT = 8_000_000  # bytes of a page
MARK = b'<meta name="generator" content="batch-explain">'

_PLOTLY_FILE = ("package_data", "plotly.min.js")
_HERE = Path(__file__).parent
_MOST_DATA = 2_200_000
_MOVED = 50  # features in the table of drift
_TABLE_ROWS = 14_000  # in all tables of features
_LONG_NAMES = 400_000  # characters of names in all tables; beyond that they are shortened
_DATA, _PLOTLY = b"<!--data-->", b"<!--plotly-->"
_UNSAFE = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


@dataclass(frozen=True)
class FeatureTable:
    """A table of all features of one level and output, as text.

    Parameters
    ----------
    level : str
    output : str or None
    rows : tuple of (str, Markup)
        A name, and its cells.
    left_out : int
        Features that the page has no room for.
    """

    level: str
    output: str | None
    rows: tuple[tuple[str, Any], ...]
    left_out: int


def report_html(
    info: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    sample: pa.Table | None,
    *,
    drift: Mapping[str, Any] | None = None,
) -> bytes:
    """The report of a run.

    Parameters
    ----------
    info : mapping
        ``run.json``.
    tables : mapping
        ``raw``, ``engineered``, ``cohorts`` -> that summary, as far as there is one.
    sample : pyarrow.Table or None
        ``summary/sample.parquet``.
    drift : mapping, optional
        ``summary/drift.json``. Without it there is no section on drift.

    Returns
    -------
    bytes
        HTML in UTF-8, at most 8 MB: what does not fit is left out, and the page says so.
    """
    levels = [Level.of(name, info, tables[name]) for name in ("raw", "engineered") if name in tables]
    cohorts = cohort_summaries(info, tables.get("cohorts"), levels)
    rows = Rows.of(info, sample)
    counts = counts_of(info, cohorts, rows)
    outputs = info["outputs"] or [None]
    feature_tables, shortened_names = _feature_tables(levels, outputs)
    from markupsafe import Markup

    plotly = _plotly()
    context = {
        "info": info,
        "levels": levels,
        "cohorts": cohorts,
        "outputs": outputs,
        "tables": feature_tables,
        "shortened_names": shortened_names,
        "counts": counts,
        "sampled": 0 if rows is None else len(rows),
        "fidelity": verdict.fidelity(info["fidelity"], class_counts(cohorts)),
        "additivity": verdict.additivity(info["additivity"]),
        "groups": _groups(info, cohorts),
        "cohort_names": list(dict.fromkeys(each.cohort for each in cohorts)),
        "details": _details(info),
        "duration_note": _explaining(info),
        "quarantine": info["quarantine"],
        "drift": None if drift is None else _drift(drift),
        "policy": _policy(),
        "style": Markup(_text("report.css")),
        "script": Markup(_script()),
    }
    template = _template()
    drawn = rows if rows is not None and rows.importances else None  # no features that can be other than 0: no figures
    shown = 0 if drawn is None else len(drawn)
    page = _encoded(template.render(context, shown=shown))
    room = min(_MOST_DATA, LIMIT - len(plotly) - len(page) - 10_000)
    while True:
        kept = fitting(drawn, room) if drawn is not None and room > 0 else None
        kept = kept if kept is not None and len(kept) else None
        if shown != (shown := 0 if kept is None else len(kept)):
            page = _encoded(template.render(context, shown=shown))
        data = json.dumps(payload(outputs, levels, cohorts, counts, kept), ensure_ascii=False, separators=(",", ":"))
        for letter, escape in _UNSAFE:
            data = data.replace(letter, escape)
        before, _, after = page.partition(_DATA)
        between, _, end = after.partition(_PLOTLY)
        content = b"".join((before, _encoded(data), between, plotly, end))
        if len(content) <= LIMIT or kept is None:
            return content
        room //= 2


def _drift(found: Mapping[str, Any]) -> dict[str, Any]:
    """The section on drift."""
    moved = moved_most(found, _MOVED)
    return {
        "facts": [(printable(name), printable(mask_secrets(text))) for name, text in headlines(found)],
        "columns": columns(found),
        "texts": columns(found).index("rank"),
        "rows": [list(zip(map(_cell, each.cells), each.shifts, strict=True)) for each in moved],
        "left_out": len(found["features"]) - len(moved),
    }


def _cell(text: str) -> str:
    return shortened(visible(text), LONGEST_NAME)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _feature_tables(levels: Sequence[Level], outputs: Sequence[str | None]) -> tuple[list[FeatureTable], bool]:
    """All features with their statistics; whether their names had to be shortened."""
    from markupsafe import Markup

    count = max(1, len(levels) * len(outputs))
    letters = sum(len(name) for level in levels for name in level.features) * len(outputs)
    most = 200 if letters > _LONG_NAMES else None
    found = []
    for level in levels:
        names = [visible(name) if most is None else shortened(visible(name), most) for name in level.features]
        for at, output in enumerate(outputs):
            order = level.order(at)
            kept = order[: _TABLE_ROWS // count]
            columns = [
                ["–" if value != value else f"{value:.1%}" for value in values[at].tolist()]
                if name == "share_positive"
                else [number(value) for value in values[at].tolist()]
                for name, values in level.statistics.items()
            ]
            cells = [Markup("<td>" + "<td>".join(line)) for line in zip(*columns, strict=True)]
            rows = tuple((names[feature], cells[feature]) for feature in kept)
            found.append(FeatureTable(level.name, output, rows, len(order) - len(kept)))
    return found, most is not None


def class_counts(cohorts: Sequence[CohortSummary]) -> list[int] | None:
    """Rows of each predicted class; None where they were not counted."""
    for each in cohorts:
        if each.cohort == PREDICTED:
            return [int(count) for count in each.counts]
    return None


def counts_of(info: Mapping[str, Any], cohorts: Sequence[CohortSummary], rows: Rows | None) -> list[Counts]:
    """The distributions of predictions: of all rows where these are known, else of the sample."""
    found = []
    of_sample = "" if rows is None else f"in the {len(rows):,} rows of the sample"
    for each in cohorts:
        if each.cohort == PREDICTED:
            labels = tuple("no value" if group is None else group for group in each.groups)
            of_all = f"in all {sum(each.counts.tolist()):,} rows"
            found.append(Counts("Predicted class", of_all, labels, (), tuple(each.counts.tolist())))
            break
    if rows is None:
        return found
    predicted = rows.predictions
    if predicted is not None and predicted.kind == "category" and not found:
        tally = [int((predicted.values == at).sum()) for at in range(min(len(predicted.labels), 50))]
        found.append(Counts("Predicted class", of_sample, predicted.labels[:50], (), tuple(tally)))
    if predicted is not None and predicted.kind == "number" and info["classes"] is None:
        found.append(Counts.of_numbers("Prediction", of_sample, predicted.values))
    classes = list(rows.probabilities)
    for label in classes[1:] if len(classes) == 2 else classes:
        title = f"Probability of {shortened(label, 40)}"
        found.append(Counts.of_numbers(title, of_sample, rows.probabilities[label], (0.0, 1.0)))
    if not found:
        level = next(iter(rows.importances), None)
        for output, label in enumerate(info["outputs"] or [None] if level else []):
            title = "Margin of the surrogate" + ("" if label is None else f", {shortened(label, 40)}")
            found.append(Counts.of_numbers(title, of_sample, rows.margins(level or "")[output]))
    return found


def _groups(info: Mapping[str, Any], cohorts: Sequence[CohortSummary]) -> list[tuple[str, str, int, str]]:
    """Each group with its rows and its largest features, by their mean over the outputs."""
    found = []
    first = cohorts[0].level if cohorts else ""
    zero = set(info["features"]["identically_zero"]) if first == "engineered" else set()
    features = [name for name in info["features"].get(first) or () if name not in zero]
    for each in cohorts:
        if each.level != first:
            continue
        means = np.nan_to_num(each.mean_abs.mean(axis=0))
        for at, (group, count) in enumerate(zip(each.groups, each.counts.tolist(), strict=True)):
            top = np.argsort(-means[at], kind="stable")[:3]
            largest = ", ".join(f"{shortened(printable(features[i]), 40)} {number(means[at, i], 3)}" for i in top)
            label = "no value" if group is None else shortened(printable(group), LONGEST_NAME)
            found.append((shortened(printable(each.cohort), LONGEST_NAME), label, count, largest))
    return found


def _explaining(info: Mapping[str, Any]) -> str:
    seconds = sum(info["timings_s"].values())
    return f"{duration(seconds)} in all" if seconds else ""


def _details(info: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """How the run was made: groups of (name, text)."""
    model, explainer = info["artifacts"]["model"], info["artifacts"]["explainer"]
    what = [
        ("Model", "none: the input holds engineered features" if model is None else model["kind"]),
        ("Explainer", explainer["description"]),
        ("Task", info["task"] or "not known"),
        (
            "Input",
            f"{info['input']['location']} ({info['input']['files']:,} files, {file_size(info['input']['bytes'])})",
        ),
        ("Id columns", ", ".join(info["ids"])),
    ]
    if model is not None:
        what.append(("SHA-256 of the model", model["sha256"]))
    what.append(("SHA-256 of the explainer", explainer["sha256"]))
    how = [(f"Time to {name.replace('_', ' ')}", duration(seconds)) for name, seconds in info["timings_s"].items()]
    if info["rows_per_second"]:
        how.append(("Rows a second", number(info["rows_per_second"], 3)))
    how.append(("Worker processes", str(info["worker_processes"])))
    if info["peak_rss_bytes"]:
        how.append(("Most memory of a process", file_size(info["peak_rss_bytes"])))
    how.append(("Partitions", f"{info['partitions']:,}"))
    options = [
        (f"--{name.replace('_', '-')}", _option(value))
        for name, value in info["options"].items()
        if value is not None and value is not False and value not in ([], ())
    ]
    groups = [("What ran", what), ("How fast", how), ("Options", options), ("Versions", list(info["versions"].items()))]
    return [(title, [(name, printable(mask_secrets(str(text)))) for name, text in pairs]) for title, pairs in groups]


def _option(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join("=".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _policy() -> str:
    """Nothing is fetched, and only the page's own scripts run: those with these digests."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode('ascii')}'"
        for script in (_plotly(), _script().encode())
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(
        number=number, duration=duration, file_size=file_size,
        line=lambda text: printable(mask_secrets(str(text))), short=lambda text: shortened(visible(str(text)), 60),
    )  # fmt: skip
    return environment.from_string(_text("template.html.j2"))


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return _inline(_text("report.js"))


@cache
def _plotly() -> bytes:
    """Plotly's own file, from the installed package, which is not imported: that takes longer than the whole report."""
    spec = importlib.util.find_spec("plotly")
    places = [] if spec is None else spec.submodule_search_locations or []
    path = next((found for place in places if (found := Path(place, *_PLOTLY_FILE)).exists()), None)
    if path is None:
        raise OptionError(
            f"Plotly is not installed, or without its {_PLOTLY_FILE[-1]}, which a report needs. Install it again: "
            "pip install --force-reinstall plotly."
        )
    return _inline(path.read_text(encoding="utf-8")).encode()


def _inline(script: str) -> str:
    """A script such that nothing in it ends the element that it stands in; it means the same."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")
