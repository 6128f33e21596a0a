"""The report's figures for notebooks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from batch_explain.errors import OptionError
from batch_explain.report import figures
from batch_explain.report.figures import ROW_HEIGHT, Figure
from batch_explain.report.finished import read_summaries
from batch_explain.report.page import counts_of
from batch_explain.report.rows import Rows
from batch_explain.report.shapes import SHOWN_CATEGORIES, axis_of, beside, largest_steps, offsets
from batch_explain.report.summaries import Level, cohort_summaries
from batch_explain.report.text import isolated, number, plot_label
from batch_explain.storage.filesystems import Location

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure


class Plots:
    """Figures of a finished run; each method returns a ``plotly.graph_objects.Figure``.

    Parameters
    ----------
    location : Location
    info : mapping
        ``run.json``.

    Notes
    -----
    ``level`` is ``raw`` or ``engineered``; left out, ``raw`` where the run has it. ``output`` is the label of one of
    several outputs; left out, the first.
    """

    def __init__(self, location: Location, info: Mapping[str, Any]) -> None:
        self._info = info
        tables, sample = read_summaries(location)
        self._levels = {name: Level.of(name, info, tables[name]) for name in ("raw", "engineered") if name in tables}
        self._cohorts = cohort_summaries(info, tables.get("cohorts"), list(self._levels.values()))
        self._sample = sample

    def importance(self, level: str | None = None, output: str | None = None, *, top: int = 20) -> "PlotlyFigure":
        """Mean |importance| over all rows, the ``top`` largest features."""
        found, at = self._level(level), self._output(output)
        chosen = found.order(at)[:top]
        values = found.statistics["mean_abs"][at, chosen]
        names = [plot_label(found.features[i]) for i in chosen]
        return _drawn(
            figures.bars(
                values=values.tolist(),
                names=names,
                texts=[number(value, 3) for value in values],
                hover=[
                    f"{name}<br>mean |importance| {number(value)}" for name, value in zip(names, values, strict=True)
                ],
                title="Mean |importance|",
                height=len(names) * ROW_HEIGHT + 64,
            )
        )

    def beeswarm(self, level: str | None = None, output: str | None = None, *, top: int = 15) -> "PlotlyFigure":
        """Importances of the sampled rows, one line for each of the ``top`` largest features."""
        found, at, rows = self._level(level), self._output(output), self._rows()
        values = self._importances(rows, found)
        chosen = [found.features[i] for i in found.order(at) if found.features[i] in values][:top]
        x = np.array([values[name][at] for name in chosen])
        y = np.array([line + offsets(values[name][at]) for line, name in enumerate(chosen)])
        blank = np.full(len(rows), np.nan)
        shades = np.array([rows.values[name].shades() if name in rows.values else blank for name in chosen])
        known = ~np.isnan(shades)
        return _drawn(
            figures.beeswarm(
                x=x[known].tolist(),
                y=y[known].tolist(),
                shades=shades[known].tolist(),
                grey_x=x[~known].tolist(),
                grey_y=y[~known].tolist(),
                names=[plot_label(name) for name in chosen],
                height=len(chosen) * ROW_HEIGHT * 1.25 + 70,
            )
        )

    def dependence(self, feature: str, level: str | None = None, output: str | None = None) -> "PlotlyFigure":
        """A feature's importance against its value, in the sampled rows.

        Raises
        ------
        OptionError
            If the sample has no importance or no values of the feature.
        """
        found, at, rows = self._level(level), self._output(output), self._rows()
        values = self._importances(rows, found)
        if feature not in values or feature not in rows.values:
            known = [name for name in values if name in rows.values]
            raise OptionError(
                f"The sample has no {'values' if feature in values else found.name + ' importances'} of '{feature}'. "
                + (
                    f"It has those of {', '.join(map(repr, known[:10]))}."
                    if known
                    else "The run kept no feature values."
                )
            )
        column, y, missing = rows.values[feature], values[feature][at], rows.values[feature].missing
        aside, axis = beside(len(rows)), axis_of(column)
        category = column.kind == "category"
        x = np.minimum(column.values, SHOWN_CATEGORIES) + aside if category else column.values
        low, high = (float(x[~missing].min()), float(x[~missing].max())) if (~missing).any() else (0.0, 0.0)
        gap = (high - low) * 0.07 or 1.0
        labels = [plot_label(label, 16) for label in axis.pop("labels", [])]
        place = aside + len(labels) if category else low - gap + aside * gap * 0.4
        if category:
            labels += ["no value"] * bool(missing.any())
            axis |= {"tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": labels}
        return _drawn(
            figures.dependence(
                x=x[~missing].tolist(),
                y=y[~missing].tolist(),
                hover=[plot_label(column.text(row), 60) for row in np.flatnonzero(~missing).tolist()],
                missing_x=place[missing].tolist(),
                missing_y=y[missing].tolist(),
                axis=axis,
                title=plot_label(feature, 60),
            )
        )

    def waterfall(
        self, row: str | int, level: str | None = None, output: str | None = None, *, top: int = 10
    ) -> "PlotlyFigure":
        """How one sampled row's importances lead from the expected value to its margin.

        Parameters
        ----------
        row : str or int
            Its id, as in the tables; several id columns joined by `` · ``.
        level, output : str, optional
        top : int
            Features that have a bar each; the others have one together.

        Raises
        ------
        OptionError
            If the sample has no such row.
        """
        found, at, rows = self._level(level), self._output(output), self._rows()
        if str(row) not in rows.ids:
            raise OptionError(
                f"The sample has no row with the id '{row}' ({' · '.join(self._info['ids'])}). It has for example "
                f"{', '.join(map(repr, rows.ids[:3]))}."
            )
        place = rows.ids.index(str(row))
        values, names = rows.importances[found.name][at, :, place], rows.names[found.name]
        base, margin = float(np.nan_to_num(rows.expected[at])), float(rows.margins(found.name)[at, place])
        order, sizes = largest_steps(values[:, None], top)
        steps = sizes[0].tolist()
        labels = [self._named(rows, names[i], place) for i in order[0]]
        if len(names) > len(steps):
            labels.append(f"{len(names) - len(steps):,} other features")
            steps.append(margin - base - sum(steps))
        starts = [base + sum(steps[:count]) for count in range(len(steps))]
        ends = [base, margin, *starts]
        low, high = min(ends), max(ends)
        room = (high - low or 1.0) * 0.12
        middle = (low + high) / 2
        signed = [("+" if step > 0 else "") + number(step, 3) for step in steps]
        return _drawn(
            figures.waterfall(
                base=base,
                margin=margin,
                starts=starts,
                ups=[step if step > 0 else None for step in steps],
                downs=[None if step > 0 else step for step in steps],
                texts=signed,
                names=labels,
                hover=[f"{label}<br>importance {text}" for label, text in zip(labels, signed, strict=True)],
                base_text="0 (expected value not known)"
                if np.isnan(rows.expected[at])
                else f"expected value {number(base)}",
                margin_text=f"margin {number(margin)}",
                base_anchor="right" if base > middle else "left",
                margin_anchor="right" if margin > middle else "left",
                span=[low - room, high + room],
                height=len(steps) * ROW_HEIGHT * 1.15 + 110,
            )
        )

    def predictions(self) -> "PlotlyFigure":
        """How many rows have which prediction: classes of all rows, or intervals in the sample."""
        found = counts_of(self._info, self._cohorts, Rows.of(self._info, self._sample))
        if not found:
            raise OptionError("The run has neither predictions nor a sample to show.")
        counts = found[0]
        if not counts.labels:
            return _drawn(
                figures.histogram(
                    x=counts.middles, y=list(counts.counts), width=counts.width, title=counts.title, hover=counts.hover
                )
            )
        names = [plot_label(label) for label in counts.labels]
        return _drawn(
            figures.bars(
                values=list(counts.counts),
                names=names,
                texts=[f"{count:,}" for count in counts.counts],
                hover=[f"{name}: {text}" for name, text in zip(names, counts.hover, strict=True)],
                title="Rows",
                height=len(names) * ROW_HEIGHT + 64,
            )
        )

    def _level(self, level: str | None) -> Level:
        name = next(iter(self._levels), None) if level is None else level
        if name not in self._levels:
            raise OptionError(f"The run has no summary '{name}'; it has {', '.join(self._levels) or 'none'}.")
        return self._levels[name]

    def _output(self, output: str | None) -> int:
        labels = self._info["outputs"] or [None]
        if output is not None and output not in labels:
            raise OptionError(f"The run has no output '{output}'; it has {', '.join(map(repr, labels))}.")
        return 0 if output is None else labels.index(output)

    def _rows(self) -> Rows:
        rows = Rows.of(self._info, self._sample)
        if rows is None:
            raise OptionError("The run has no sample: it had no rows, or --sample-rows 0.")
        return rows

    @staticmethod
    def _importances(rows: Rows, level: Level) -> dict[str, np.ndarray]:
        """Feature -> shape (output, row)."""
        values = rows.importances.get(level.name)
        if values is None:
            return {}
        return {name: values[:, at] for at, name in enumerate(rows.names[level.name])}

    @staticmethod
    def _named(rows: Rows, name: str, row: int) -> str:
        column = rows.values.get(name)
        if column is None:
            return plot_label(name)
        return f"{isolated(plot_label(name, 26))} = {isolated(plot_label(column.text(row), 18))}"


def _drawn(figure: Figure) -> "PlotlyFigure":
    """Plotly's own object, which takes long to import."""
    from plotly.graph_objects import Figure as PlotlyFigure

    return PlotlyFigure(figure)
