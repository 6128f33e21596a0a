"""A finished run, opened again."""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FSSpecHandler, PyFileSystem

from batch_explain.errors import OptionError
from batch_explain.report.finished import read_summaries, write_report
from batch_explain.storage.atomic import sha256_of
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import read_parquet

if TYPE_CHECKING:
    import dask.dataframe as dd

    from batch_explain.forms.explanation import Explanation
    from batch_explain.forms.row import Row
    from batch_explain.report.plots import Plots


@dataclass(frozen=True)
class Run:
    """A finished run.

    Parameters
    ----------
    location : Location
        Its folder.
    info : dict
        ``run.json``.
    """

    location: Location
    info: dict[str, Any]

    def __repr__(self) -> str:
        rows, tables = self.info["rows"]["explained"], ", ".join(self.info["tables"])
        outputs = f", {len(self.outputs)} outputs" if self.outputs else ""
        return f"<Run {self.location}: {self.info['task']}, {rows:,} rows{outputs}, {tables}>"

    def _repr_html_(self) -> str:
        from batch_explain.forms.card import card_html

        return card_html(self.info, read_summaries(self.location)[0], str(self.location))

    @property
    def outputs(self) -> list[str] | None:
        """Labels of the outputs; None for a single one."""
        labels: list[str] | None = self.info["outputs"]
        return labels

    def summary(self, level: str = "raw") -> pd.DataFrame:
        """The global summary, one row for each output and feature.

        Parameters
        ----------
        level : str
            ``raw`` or ``engineered``.

        Returns
        -------
        pandas.DataFrame
            ``output`` (null for a single one), ``feature``, ``rank``, ``count``, ``mean_abs``, ``mean``, ``std``,
            ``min``, ``max``, ``share_positive``, quantiles ``p01``, ``p05``, ``p25``, ``p50``, ``p75``, ``p95``,
            ``p99``, and those of the absolute value, ``abs_p50`` and ``abs_p95``, with the relative error that
            ``run.json`` states under ``summaries``; NaN where there are too few rows.

        Raises
        ------
        OptionError
            If the run has no such summary.
        """
        found = self._frame(f"summary/{level}.parquet") if level in ("raw", "engineered") else None
        if found is None:
            raise _no_summary(level)
        return found

    def cohorts(self) -> pd.DataFrame:
        """The summaries by cohort, one row for each cohort, group, level, output and feature.

        Returns
        -------
        pandas.DataFrame
            ``cohort``, ``group`` (null: rows without a value), ``output``, ``level``, and the columns of
            :meth:`summary`; ``count`` is the number of the group's rows. Without groups that have no rows, and without
            engineered features that are 0 in every row.

        Raises
        ------
        OptionError
            If the run has no cohorts.
        """
        found = self._frame("summary/cohorts.parquet")
        if found is None:
            raise OptionError(
                "The run has no cohorts: it had no --cohort, and no classifier. Make some with batch-explain summarize."
            )
        return found

    def sample(self) -> pd.DataFrame:
        """A uniform sample of the explained rows, in the order of the input.

        Returns
        -------
        pandas.DataFrame
            One row for each sampled row and output: ``output`` (null for a single one), the ids, ``source_file``,
            ``source_row``, the columns of the predictions, ``value.<feature>`` (as read; not with
            ``--no-row-values``), ``engineered.<feature>`` (those that can be other than 0) and ``raw.<feature>``.

        Raises
        ------
        OptionError
            If the run kept none.
        """
        found: pd.DataFrame = self._sample().to_pandas()
        return found

    def sketches(self) -> pd.DataFrame:
        """The distributions of importances, of the features' own values and of predictions, as counts.

        Returns
        -------
        pandas.DataFrame
            ``kind``, ``level``, ``output``, ``feature``, ``bin``, ``bucket``, ``category``, ``count``: see
            :func:`batch_explain.summary.sketches.sketches_table`.

        Raises
        ------
        OptionError
            If the run, of an earlier version, kept none.
        """
        found = self._frame("summary/sketches.parquet")
        if found is None:
            raise OptionError("The run has no sketches: an earlier version of this program made it. Run again.")
        return found

    @property
    def plot(self) -> "Plots":
        """The report's figures, for notebooks: ``run.plot.importance()``, ``run.plot.waterfall(id)`` and so on."""
        from batch_explain.report.plots import Plots

        return Plots(self.location, self.info)

    def report(self, path: str | os.PathLike[str] = "report.html") -> None:
        """Make the run's report again: one HTML file that asks for nothing from anywhere.

        Parameters
        ----------
        path : str or path
            A file outside the run's folder; an earlier report is replaced, anything else is not.

        Raises
        ------
        OutputRefusedError
            If the place is in the run's folder, or taken.
        """
        write_report(self.location, self.info, Location(os.fspath(path)))

    def row(self, id: Any) -> "Row":
        """One explained row, found by its id without loading a table.

        Parameters
        ----------
        id : object or dict
            The value of the id column; of several, a dict of their values, as also where there are none:
            ``{"source_file": …, "source_row": …}``.

        Returns
        -------
        Row
            ``ids``, ``predictions``, ``expected_values`` (by output), and ``raw`` and ``engineered``: importances, one
            line for each feature and one column for each output.

        Raises
        ------
        OptionError
            If no row has this id, or several have it, or the run wrote no table with a line for each row.

        Notes
        -----
        The id columns are read where the statistics of row groups do not exclude it, then one row group of each table.
        """
        from batch_explain.forms.row import row_of

        several: list[str | None] = [*self.outputs] if self.outputs else [None]
        keys = [("predictions", None), *((level, output) for level in ("raw", "engineered") for output in several)]
        return row_of(self.info, {key: self.table(*key) for key in keys if key[0] in self.info["tables"]}, id)

    def to_dask(self, level: str, output: str | None = None) -> "dd.DataFrame":
        """A table of the run as a Dask dataframe: one partition for each part, in input order.

        Parameters
        ----------
        level, output : str
            As for :meth:`table`.

        Returns
        -------
        dask.dataframe.DataFrame
            Nothing is read yet. Integers and truth values have pandas' nullable types (``Int64``, ``boolean``), which
            are the same in parts with and without nulls.

        Raises
        ------
        OptionError
            If the run has no such table.
        """
        from batch_explain.forms.dask_form import dask_frame

        frame: dd.DataFrame = dask_frame(self._parts(level, output), self.table(level, output).schema)
        return frame

    def to_shap(self, level: str = "raw", rows: int | None = None, output: str | None = None) -> Any:
        """Rows of the run's sample as shap's explanation, from which shap's own plots draw.

        Parameters
        ----------
        level : str
            ``raw`` or ``engineered``.
        rows : int, optional
            How many: drawn uniformly from the sample (``--sample-rows``), always the same ones, in input order. At most
            1,000 where it is left out; all rows where the run has fewer.
        output : str, optional
            Label of one of several outputs; left out, all of them.

        Returns
        -------
        shap.Explanation
            ``values`` of shape (row, feature), or (row, feature, output) for several outputs; ``base_values`` (row,) or
            (row, output), NaN where not known. ``feature_names``: those that can be other than 0. ``data``, the
            features' own values of shape (row, feature): numbers (NaN: missing), dates as days since 1970, and texts
            by their place in the alphabet; ``display_data`` has dates and texts as themselves (``no value``: missing),
            which is how shap's plots show them. Both are None with ``--no-row-values``, and for engineered features
            where a model made them.

        Raises
        ------
        OptionError
            If the run has no such level or output, no sample, or a sample of fewer rows than are asked for; or shap is
            not installed.
        """
        from batch_explain.forms.shap_form import shap_explanation

        return shap_explanation(self.info, self._sample(), level=level, rows=rows, output=output)

    def to_interpret(self, level: str = "raw", rows: int | None = None) -> Any:
        """The run as interpret-community's explanation: global over all rows, local of rows of the sample.

        Parameters
        ----------
        level : str
            ``raw`` or ``engineered``.
        rows : int, optional
            How many local ones, as for :meth:`to_shap`. A run without a sample gives a global explanation only.

        Returns
        -------
        interpret_community.explanation.explanation.GlobalExplanation
            ``global_importance_values``: mean |importance| over all rows, of several outputs their mean, as the library
            has it. For classes also ``per_class_values``; of two classes with one output the first one's local values
            are the second one's with their signs turned. ``features``: those that can be other than 0. ``eval_data``
            and ``eval_y_predicted`` where the sample holds these features' values, as in :meth:`to_shap`, but with
            dates as text. ``raiwidgets.ExplanationDashboard(explanation, dataset=explanation.eval_data)`` shows it,
            and averages the local values for that.

        Raises
        ------
        OptionError
            If the run has no such level, or a sample of fewer rows than are asked for; or interpret-community is not
            installed.
        """
        from batch_explain.forms.interpret_form import interpret_explanation

        return interpret_explanation(self._explanation(level, rows))

    def save_explanation(self, path: str | os.PathLike[str], level: str = "raw", rows: int | None = None) -> None:
        """Save what :meth:`to_interpret` makes as a folder of JSON files, without interpret-community.

        Its ``load_explanation`` and :func:`batch_explain.open_explanation` read the folder, and it can be a baseline.

        Parameters
        ----------
        path : path-like or str
            A new folder, or a URL that fsspec knows.
        level, rows
            As for :meth:`to_interpret`.

        Raises
        ------
        OptionError
            If the run has no such level, or a sample of fewer rows than are asked for; or the folder is there already.
        """
        from batch_explain.forms.saved import save

        save(self._explanation(level, rows), Location(os.fspath(path)))

    def _explanation(self, level: str, rows: int | None) -> "Explanation":
        from batch_explain.forms.explanation import explanation_of

        summary = self._read(f"summary/{level}.parquet") if level in ("raw", "engineered") else None
        if summary is None:
            raise _no_summary(level)
        return explanation_of(self.info, summary, self._read("summary/sample.parquet"), level=level, rows=rows)

    def _read(self, path: str) -> pa.Table | None:
        place = self.location.join(path)
        return read_parquet(place) if place.exists() else None

    def _frame(self, path: str) -> pd.DataFrame | None:
        table = self._read(path)
        frame: pd.DataFrame | None = None if table is None else table.to_pandas()
        return frame

    def _sample(self) -> pa.Table:
        found = self._read("summary/sample.parquet")
        if found is None:
            raise OptionError("The run has no sample: it had no rows, or --sample-rows 0.")
        return found

    def table(self, level: str, output: str | None = None) -> ds.Dataset:
        """A table of the run.

        Parameters
        ----------
        level : str
            ``predictions``, ``engineered``, ``raw``, ``features``, ``reasons``, or ``quarantine``.
        output : str, optional
            Label of the output, where there are several.

        Returns
        -------
        pyarrow.dataset.Dataset
            Its parts in input order; nothing is read yet. Where the run lies on an object store, a program that ends
            right after scanning it may be aborted by Arrow's threads; ``to_dask`` and ``row`` have none.

        Raises
        ------
        OptionError
            If the run has no such table.
        """
        parts = [part.path for part in self._parts(level, output)]
        filesystem = None if self.location.is_local else PyFileSystem(FSSpecHandler(self.location.fs))
        return ds.dataset(parts, format="parquet", filesystem=filesystem)

    def _parts(self, level: str, output: str | None) -> list[Location]:
        """Where the parts of a table lie, in input order."""
        from batch_explain.storage.tables import importance_folder

        tables = {**self.info["tables"], "quarantine": ["quarantine"]}
        if level not in tables:
            raise OptionError(f"The run has no table '{level}'; it has {', '.join(self.info['tables'])}.")
        folder = (
            level if level in ("predictions", "features", "reasons", "quarantine") else importance_folder(level, output)
        )
        if folder not in tables[level]:
            labels = ", ".join(map(repr, self.outputs or []))
            raise OptionError(
                f"The {level} table has several outputs: name one of {labels}." if labels else
                f"The {level} table has a single output: leave 'output' out."
            )  # fmt: skip
        parts = sorted(entry["path"] for entry in self.info["files"] if os.path.dirname(entry["path"]) == folder)
        parts.sort(key=lambda path: (len(path), path))  # part-100000 comes after part-99999
        if not parts:
            raise OptionError("The run has no table 'quarantine': all rows were explained.")
        return [self.location.join(part) for part in parts]


def _no_summary(level: str) -> OptionError:
    return OptionError(
        f"The run has no summary '{level}': it has 'engineered', and 'raw' where there was a feature map."
    )


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a finished run.

    Parameters
    ----------
    path : str or path
        The run's output folder.

    Raises
    ------
    OptionError
        If there is no finished run, or its ``run.json`` was changed after it was closed.
    """
    location = Location(os.fspath(path))
    success = location.join("_SUCCESS")
    if not is_finished(location):
        state = "an unfinished run" if location.join("_run/plan.json").exists() else "no run"
        raise OptionError(
            f"There is {state} in {location}: it has no _SUCCESS. Pass the output folder of a finished run."
        )
    recorded = json.loads(success.read_bytes())["run.json"]
    place = location.join("run.json")
    if not place.exists() or sha256_of(place) != recorded:
        raise OptionError(
            f"The run.json in {location} is not the one that the run was closed with: it is missing or was edited. "
            "Restore it, or run again."
        )
    return Run(location, json.loads(place.read_bytes()))


def open_explanation(path: str | os.PathLike[str]) -> "Explanation":
    """Read an explanation that was saved: by :meth:`Run.save_explanation`, or by interpret-community.

    Parameters
    ----------
    path : path-like or str
        The folder, or a URL that fsspec knows.

    Returns
    -------
    Explanation

    Raises
    ------
    OptionError
        If there is none, or it is damaged.
    """
    from batch_explain.forms.saved import is_saved, read

    location = Location(os.fspath(path))
    try:
        if not is_saved(location):
            raise OptionError(f"There is no explanation in {location}: it has no explanation_metadata.json.")
        return read(location)
    except OSError as error:
        raise OptionError(f"The explanation {location} cannot be read: {error}. Check its permissions.") from error


def is_finished(output: Location) -> bool:
    """Whether the run in a folder has ended well."""
    return output.join("_SUCCESS").exists()
