"""What each figure looks like, as plain dicts in Plotly's form.

Whatever stands for data may be a slot instead of values: the report's page holds each figure once, and its script puts
the chosen class, feature or row into the slots. Notebooks get the same figures with the values in them. Positions on an
axis are numbers and names are their labels, so that two names that are shortened to the same text stay apart.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

Figure = dict[str, Any]

ROW_HEIGHT = 26  # pixels of a bar
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Helvetica Neue', Arial, sans-serif"


def slot(name: str) -> Any:
    """A place that the page's script fills."""
    return {"$": name}


@dataclass(frozen=True)
class Palette:
    """Colours that differ for all kinds of colour vision (blue and orange), and in grey by their lightness."""

    ink: str = "#1c2430"
    quiet: str = "#5b6675"
    line: str = "#dfe3e8"
    paper: str = "#ffffff"
    bar: str = "#33658a"
    high: str = "#d1541f"
    low: str = "#2878b8"
    middle: str = "#b9b3b0"
    none: str = "#9aa3ae"
    faint: str = "#eef3f7"

    @classmethod
    def slots(cls) -> Any:
        """Colours that the page's script fills, by the reader's choice of light or dark."""
        return cls(**{field.name: slot(f"colour.{field.name}") for field in fields(cls)})

    def to_json(self) -> dict[str, str]:
        """Role -> colour."""
        return asdict(self)


LIGHT = Palette()
DARK = Palette(
    ink="#e8ebef",
    quiet="#a3adba",
    line="#333b46",
    paper="#181d24",
    bar="#7fb2d9",
    high="#f28a54",
    low="#62aee8",
    middle="#857f7d",
    none="#6f7985",
    faint="#222a33",
)


def bars(
    *, values: Any, names: Any, texts: Any, hover: Any, title: Any, height: Any, palette: Palette = LIGHT
) -> Figure:
    """A bar for each name, from top to bottom: mean |importance| of features, or rows of classes."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "text": texts,
        "textposition": "outside",
        "textfont": {"color": palette.quiet, "size": 12},
        "cliponaxis": False,
        "hovertext": hover,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"color": palette.bar},
        "width": 0.62,
    }
    layout = _layout(palette, height, title)
    layout["xaxis"]["rangemode"] = "tozero"
    layout["yaxis"] = _named_rows(palette, names)
    layout["margin"]["r"] = 56
    return {"data": [trace], "layout": layout}


def heatmap(
    *, values: Any, names: Any, groups: Any, texts: Any, hover: Any, height: Any, palette: Palette = LIGHT
) -> Figure:
    """Mean |importance| of features (rows) in groups (columns): the stronger the colour, the larger."""
    cells = {
        "type": "heatmap",
        "z": values,
        "text": texts,
        "texttemplate": "%{text}",
        "textfont": {"size": 12},
        "hovertext": hover,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "colorscale": [[0, palette.faint], [1, palette.bar]],
        "zmin": 0,
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
    }
    layout = _layout(palette, height, "")
    layout["xaxis"] |= {"showgrid": False, "side": "top", "tickangle": "auto", **_ticks(groups)}
    layout["yaxis"] = _named_rows(palette, names)
    layout["margin"] |= {"t": 30, "b": 8}
    return {"data": [cells], "layout": layout}


def beeswarm(
    *,
    x: Any,
    y: Any,
    shades: Any,
    grey_x: Any,
    grey_y: Any,
    names: Any,
    height: Any,
    legend: bool = True,
    palette: Palette = LIGHT,
) -> Figure:
    """One point for each row and feature at its importance; the higher the feature's value, the more orange.

    Points without a place on that scale (categories, missing values, values not kept) are grey.
    """
    scale = [[0, palette.low], [0.5, palette.middle], [1, palette.high]]
    bar = _colour_bar(palette, "Value") | {"tickvals": [0, 1], "ticktext": ["low", "high"]}
    grey = _points(grey_x, grey_y, {"color": palette.none, "size": 5, "opacity": 0.65})
    marker = {"color": shades, "colorscale": scale, "cmin": 0, "cmax": 1, "size": 5, "opacity": 0.85}
    marker |= {"colorbar": bar} if legend else {"showscale": False}
    coloured = _points(x, y, marker)
    for trace in (grey, coloured):
        trace["hovertemplate"] = "%{x:.4g}<extra></extra>"
    layout = _layout(palette, height, "Importance (pushes down ← 0 → up)")
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": palette.quiet}
    layout["yaxis"] = _named_rows(palette, names)
    return {"data": [grey, coloured], "layout": layout}


def dependence(
    *,
    x: Any,
    y: Any,
    hover: Any,
    missing_x: Any,
    missing_y: Any,
    axis: Any,
    title: Any,
    height: Any = 380,
    palette: Palette = LIGHT,
) -> Figure:
    """A feature's value (x) against its importance (y), a point for each row.

    Parameters
    ----------
    x, y, hover
        Rows with a value, and what each is. A category's points lie beside its number.
    missing_x, missing_y
        Rows without one; they get a column of their own.
    axis
        Type and ticks of the x axis.
    title
        The feature's name.
    height : int
        Pixels.
    palette : Palette
    """
    known = _points(x, y, {"color": palette.bar, "size": 6, "opacity": 0.5})
    unknown = _points(missing_x, missing_y, {"color": palette.none, "size": 6, "opacity": 0.6, "symbol": "diamond"})
    known |= {"hovertext": hover, "hovertemplate": "%{hovertext}<br>importance %{y:.4g}<extra></extra>"}
    unknown["hovertemplate"] = "no value<br>importance %{y:.4g}<extra></extra>"
    layout = _layout(palette, height, title)
    _spread(layout["xaxis"], axis)
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": palette.quiet, "title": _title("Importance", palette)}
    return {"data": [known, unknown], "layout": layout}


def waterfall(
    *,
    base: Any,
    margin: Any,
    starts: Any,
    ups: Any,
    downs: Any,
    texts: Any,
    names: Any,
    hover: Any,
    base_text: Any,
    margin_text: Any,
    base_anchor: Any,
    margin_anchor: Any,
    span: Any,
    height: Any,
    palette: Palette = LIGHT,
) -> Figure:
    """How a row's importances lead from the expected value to its margin, step by step, the largest first.

    Parameters
    ----------
    base, margin
        Expected value and margin, as lines; ``base_text`` and ``margin_text`` stand at them, with their end that
        ``base_anchor`` and ``margin_anchor`` name (``left`` or ``right``).
    starts, ups, downs
        Where each bar begins, and how far it goes, up or down: None in the other of the two.
    texts, names, hover
        Beside each bar.
    span
        Of the axis, with room for the texts.
    height : int
        Pixels.
    palette : Palette
    """
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "base": starts,
            "x": steps,
            "text": texts,
            "textposition": "outside",
            "textfont": {"color": palette.quiet, "size": 12},
            "cliponaxis": False,
            "hovertext": hover,
            "hovertemplate": "%{hovertext}<extra></extra>",
            "marker": {"color": colour},
            "width": 0.62,
        }
        for steps, colour in ((ups, palette.high), (downs, palette.low))
    ]
    layout = _layout(palette, height, "Margin of the surrogate")
    layout["yaxis"] = _named_rows(palette, names)
    layout["shapes"] = [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at, "layer": "below"}
        | {"line": {"color": palette.quiet, "width": 1, "dash": dash}}
        for at, dash in ((base, "dot"), (margin, "solid"))
    ]
    layout["xaxis"] |= {"range": span, "nticks": 5, "tickangle": 0}
    layout["annotations"] = [
        {"x": at, "xanchor": side, "yref": "paper", "y": y, "yanchor": end, "yshift": shift, "text": text}
        | {"showarrow": False, "font": {"color": palette.ink, "size": 12}}
        for at, side, y, end, shift, text in (
            (base, base_anchor, 1, "bottom", 0, base_text),
            (margin, margin_anchor, 0, "top", -20, margin_text),
        )
    ]
    layout["barmode"] = "overlay"
    layout["margin"] |= {"t": 30, "b": 64}
    layout["xaxis"]["title"]["standoff"] = 26
    return {"data": traces, "layout": layout}


def histogram(
    *, x: Any, y: Any, width: Any, title: Any, hover: Any, height: Any = 280, palette: Palette = LIGHT
) -> Figure:
    """How many rows (y) lie in which interval, the middle of which is at ``x``."""
    trace = {
        "type": "bar",
        "x": x,
        "y": y,
        "width": width,
        "hovertext": hover,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"color": palette.bar},
    }
    layout = _layout(palette, height, title)
    layout["xaxis"]["showgrid"] = False
    layout["yaxis"] |= {"title": _title("Rows", palette), "rangemode": "tozero"}
    return {"data": [trace], "layout": layout}


def _points(x: Any, y: Any, marker: dict[str, Any]) -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": {**marker, "line": {"width": 0}}}


def _layout(palette: Palette, height: Any, x_title: Any) -> dict[str, Any]:
    axis = {"gridcolor": palette.line, "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13, "color": palette.ink},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": palette.paper,
            "bordercolor": palette.line,
            "font": {"family": _FONT, "color": palette.ink, "size": 13},
            "align": "left",
        },
        "xaxis": {**axis, "title": _title(x_title, palette)},
        "yaxis": dict(axis),
    }


def _title(text: Any, palette: Palette) -> dict[str, Any]:
    return {"text": text, "font": {"color": palette.quiet, "size": 12}, "standoff": 8}


def _named_rows(palette: Palette, names: Any) -> dict[str, Any]:
    """An axis of rows from top to bottom, with their names."""
    return {
        "autorange": "reversed",
        "automargin": True,
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 7,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"color": palette.ink},
        **_ticks(names),
    }


def _ticks(names: Any) -> dict[str, Any]:
    at = {"$": f"{names['$']}.at"} if _is_slot(names) else list(range(len(names)))
    return {"tickmode": "array", "tickvals": at, "ticktext": names}


def _spread(axis: dict[str, Any], extra: Any) -> None:
    """Add settings to an axis; those in a slot are added when it is filled."""
    if _is_slot(extra):
        axis["..."] = extra
    else:
        axis.update(extra)


def _is_slot(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"$"}


def _colour_bar(palette: Palette, title: str) -> dict[str, Any]:
    font = {"color": palette.quiet, "size": 12}
    return {
        "title": {"text": title, "side": "right", "font": font},
        "tickfont": font,
        "thickness": 8,
        "outlinewidth": 0,
        "len": 0.6,
        "lenmode": "fraction",
    }
