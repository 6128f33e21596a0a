"""What the page's script draws from: a run's summaries and sample, cut down to what fits into a page, as JSON."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from batch_explain.report import figures
from batch_explain.report.figures import DARK, LIGHT, Palette, slot
from batch_explain.report.rows import Column, Rows
from batch_explain.report.shapes import SHOWN_CATEGORIES, Counts, axis_of, beside, largest_steps, offsets
from batch_explain.report.summaries import CohortSummary, Level
from batch_explain.report.text import shortened, visible

BARS, HEAT_ROWS, SWARM_ROWS, STEPS, DEPENDENCES = 20, 15, 15, 10, 20
SWARM_POINTS = 400  # of each feature: they are drawn as SVG
LONGEST_NAME = 300  # characters of a name that the script knows; tables have all of them


def templates() -> dict[str, figures.Figure]:
    """Each figure with slots in place of data and colours."""
    colours = Palette.slots()
    kinds: dict[str, tuple[Callable[..., figures.Figure], str]] = {
        "bars": (figures.bars, "values names texts hover title height"),
        "heatmap": (figures.heatmap, "values names groups texts hover height"),
        "beeswarm": (partial(figures.beeswarm, legend=False), "x y shades grey_x grey_y names height"),
        "dependence": (figures.dependence, "x y hover missing_x missing_y axis title"),
        "waterfall": (
            figures.waterfall,
            "base margin starts ups downs texts names hover "
            "base_text margin_text base_anchor margin_anchor span height",
        ),
        "histogram": (figures.histogram, "x y width title hover"),
    }
    return {
        kind: draw(**{name: slot(name) for name in names.split()}, palette=colours)
        for kind, (draw, names) in kinds.items()
    }


def payload(
    outputs: Sequence[str | None],
    levels: Sequence[Level],
    cohorts: Sequence[CohortSummary],
    counts: Sequence[Counts],
    rows: Rows | None,
) -> dict[str, Any]:
    """Everything that the script needs."""
    return {
        "templates": templates(),
        "colours": {"light": LIGHT.to_json(), "dark": DARK.to_json()},
        "bars": BARS,
        "outputs": [None if label is None else name_of(label) for label in outputs],
        "levels": [_level(level, len(outputs), rows) for level in levels],
        "cohorts": _cohorts(cohorts, levels),
        "predictions": [
            {"title": each.title, "note": each.note, "x": _sized(each.middles), "width": each.width}
            | {"counts": each.counts, "labels": [name_of(label) for label in each.labels], "hover": each.hover}
            for each in counts
        ],
        "sample": None if rows is None else _sample(rows),
    }


def name_of(text: str) -> str:
    """A name as the script has it."""
    return shortened(visible(text), LONGEST_NAME)


def fitting(rows: Rows, most_bytes: int) -> Rows:
    """As many rows, evenly spaced, as fit into so many bytes of the page."""
    a_row = sum(column.values.itemsize for column in rows.values.values()) + 24
    texts = sum(len(label.encode()) for column in rows.values.values() for label in column.labels)
    texts += sum(len(each.encode()) for each in rows.ids)
    a_row += -(-texts // len(rows))
    for values in rows.importances.values():
        outputs, features, _ = values.shape
        a_row += outputs * (4 * min(features, DEPENDENCES) + 6 * min(features, STEPS) + 8)
    most = max(int(most_bytes * 3 / 4) // a_row, 0)
    if most >= len(rows):
        return rows
    return rows.take(np.unique(np.linspace(0, len(rows) - 1, most).astype(np.int64)))


def _level(level: Level, outputs: int, rows: Rows | None) -> dict[str, Any]:
    place = {name: at for at, name in enumerate(level.features)}
    kept = {} if rows is None else {name: at for at, name in enumerate(rows.values)}
    content: dict[str, Any] = {
        "name": level.name,
        "features": [name_of(name) for name in level.features],
        "values": [kept.get(name, -1) for name in level.features],
    }
    size = level.statistics["mean_abs"]
    content["importance"] = []
    for output in range(outputs):
        order = level.order(output)
        top, rest = order[:BARS], order[BARS:]
        content["importance"].append(
            {"features": top.tolist(), "values": _sized(size[output, top]), "others": len(rest)}
            | {"others_sum": _plain(size[output, rest].sum())}
        )
    if outputs > 1:
        top = level.order()[:HEAT_ROWS]
        content["classes"] = {"features": top.tolist(), "values": [_sized(line) for line in size[:, top].T]}
    if rows is not None and level.name in rows.importances:
        content["sample"] = _level_sample(level, place, rows)
    return content


def _level_sample(level: Level, place: dict[str, int], rows: Rows) -> list[dict[str, Any]]:
    """Of each output: importances of the largest features, offsets of the beeswarm, and each row's largest steps."""
    here = np.array([place.get(name, -1) for name in rows.names[level.name]])
    column_of = {feature: column for column, feature in enumerate(here)}
    values, margins = rows.importances[level.name], rows.margins(level.name)
    swarm = swarm_rows(len(rows))
    found = []
    for output in range(len(values)):
        top = [int(feature) for feature in level.order(output) if feature in column_of][:DEPENDENCES]
        chosen = values[output][[column_of[feature] for feature in top]]
        steps, sizes = largest_steps(values[output], STEPS)
        lines = [offsets(line[swarm]) for line in chosen[:SWARM_ROWS]]
        expected = rows.expected[output]
        found.append({
            "features": top,
            "values": encoded(chosen.astype(np.float32)),
            "offsets": encoded(np.rint(np.array(lines) * 100).astype(np.int8)),
            "steps": encoded(here[steps].astype(np.uint16 if len(level.features) < 65_536 else np.uint32)),
            "sizes": encoded(sizes.astype(np.float32)),
            "shown": steps.shape[1],
            "margins": encoded(margins[output]),
            "expected": _plain(expected),
        })  # fmt: skip
    return found


def swarm_rows(rows: int) -> np.ndarray:
    """Which rows a beeswarm shows."""
    return np.unique(np.linspace(0, rows - 1, min(rows, SWARM_POINTS)).astype(np.int64))


def _cohorts(cohorts: Sequence[CohortSummary], levels: Sequence[Level]) -> list[dict[str, Any]]:
    by_name: dict[str, dict[str, Any]] = {}
    orders = {level.name: [level.order(output)[:HEAT_ROWS] for output in range(len(level.statistics["mean"]))]
              for level in levels}  # fmt: skip
    for each in cohorts:
        entry = by_name.setdefault(each.cohort, {"name": name_of(each.cohort), "levels": {}})
        entry["groups"] = [None if group is None else name_of(group) for group in each.groups]
        entry["counts"] = each.counts.tolist()
        entry["levels"][each.level] = [
            {"features": top.tolist(), "values": [_sized(line) for line in each.mean_abs[output][:, top].T]}
            for output, top in enumerate(orders[each.level])
        ]
    return list(by_name.values())


def _sample(rows: Rows) -> dict[str, Any]:
    swarm = swarm_rows(len(rows))
    values = []
    for column in rows.values.values():
        shades = column.shades()[swarm]
        codes = np.where(np.isnan(shades), 255, np.rint(np.nan_to_num(shades) * 254)).astype(np.uint8)
        values.append({**_column(column), "shades": encoded(codes), "axis": axis_of(column)})
    return {
        "ids": list(rows.ids),
        "swarm": encoded(swarm.astype(np.int32)),
        "beside": encoded(beside(len(rows)).astype(np.float32)),
        "categories": SHOWN_CATEGORIES,
        "prediction": None if rows.predictions is None else _column(rows.predictions),
        "probabilities": [
            {"class": name_of(label), "values": encoded(found.astype(np.float32))}
            for label, found in rows.probabilities.items()
        ],
        "values": values,
    }


def _column(column: Column) -> dict[str, Any]:
    return {"kind": column.kind, "values": encoded(_smallest(column.values)), "labels": list(column.labels)}


def _smallest(values: np.ndarray) -> np.ndarray:
    """The same numbers in the fewest bytes."""
    if not np.isnan(values).any() and np.array_equal(values, np.rint(values)):
        for kind in (np.int8, np.int16, np.int32):
            if np.abs(values).max(initial=0) <= np.iinfo(kind).max:
                return values.astype(kind)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return single if np.array_equal(single.astype(np.float64), values, equal_nan=True) else values.astype(np.float64)


def encoded(values: np.ndarray) -> dict[str, str]:
    """Numbers as base64 of their little-endian bytes; ``kind`` is numpy's, such as ``f4`` or ``u1``."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return {"kind": little.dtype.str[1:], "data": base64.b64encode(little.tobytes()).decode("ascii")}


def _sized(values: Any) -> list[float | None]:
    """Numbers to six digits; None for NaN."""
    return [_plain(value) for value in values]


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
