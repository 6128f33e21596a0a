"""What is measured: a model, its explainer and rows, loaded as a run loads them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.demo import make_demo
from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.explaining import Context, batches_of, explain_good, model_columns
from batch_explain.engine.plan import Plan
from batch_explain.engine.quarantine import explain_good_rows
from batch_explain.engine.rows import Rows
from batch_explain.engine.runner import plan_run, reading_errors
from batch_explain.errors import BadDataError, InputError, OptionError
from batch_explain.explainers.base import Matrix
from batch_explain.explainers.bundle import is_bundle
from batch_explain.explainers.folders import explainer_in
from batch_explain.explainers.load import is_model_text
from batch_explain.explainers.pickles import open_pickle, read_artifact
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import discover
from batch_explain.storage.filesystems import Location
from batch_explain.teachers.threads import keep_to_one_thread

EXAMPLE_ROWS = 200_000
_PASSED_ON = ("model", "explainer", "feature_map", "max_bad_rows")


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Parameters
    ----------
    options : RunOptions
        Of the whole run.
    plan : Plan
        Of all rows.
    artifacts : Artifacts
    table : pyarrow.Table or None
        The first rows' columns, by the model's names; None where rows are not featurized one by one (forecasting).
    matrix : ndarray or csr_matrix, shape (row, engineered)
        The same rows (of forecasting: lines), featurized.
    left_out : int
        Rows among them that cannot be explained, as ``--max-bad-rows`` allows.
    built_in : bool
        Whether it is the built-in example.
    """

    options: RunOptions
    plan: Plan
    artifacts: Artifacts
    table: pa.Table | None
    matrix: Matrix
    left_out: int
    built_in: bool

    @classmethod
    def load(cls, folder: Path, given: dict[str, Any]) -> "Subject":
        """Load what was given, or the built-in example, which is made in the folder.

        Raises
        ------
        BatchExplainError
            As a run: :class:`OptionError`, :class:`InputError`, :class:`ArtifactError`, :class:`BadDataError`.
        """
        given = {name: value for name, value in given.items() if value not in (None, ())}
        built_in = not {"input", "model", "explainer"} & set(given)
        if built_in:
            if "feature_map" in given:
                raise OptionError("--feature-map belongs to an --explainer. Pass that, and the --input, too.")
            paths = make_demo(folder / "example", rows=EXAMPLE_ROWS)
            given |= {"input": paths.input, "model": paths.model, "explainer": paths.explainer}
        elif "input" not in given:
            raise OptionError(
                "The option 'input' is missing. Pass the --input with rows for the model and the explainer, or none of "
                "the three for the built-in example."
            )
        options = RunOptions.create(**given, output=os.fspath(folder / "run"))
        with reading_errors():
            files = discover(options.input)
            plan, artifacts = plan_run(options, files, Artifacts.load(options))
            context = Context(plan, artifacts)
            rows = next((rows for part in plan.partitions for rows in batches_of(plan, part) if len(rows)), None)
        if rows is None:
            raise InputError(f"The input {Location(options.input)} has no rows to measure with. Pass some that has.")
        table, matrix, left_out = _first_rows(context, rows)
        return cls(options, plan, artifacts, table, matrix, left_out, built_in)

    @property
    def arguments(self) -> list[str]:
        """Of ``batch-explain run``, for the same model, explainer and input; without its output."""
        found = ["--input", self.options.input]
        for name in _PASSED_ON:
            if (value := getattr(self.options, name)) is not None:
                found += [f"--{name.replace('_', '-')}", str(value)]
        return [*found, *(part for name in self.options.trust for part in ("--trust", name))]

    def sdk_explainer(self) -> Any:
        """The scoring explainer itself, for its own ``explain``.

        Returns
        -------
        object or str
            Why there is none, as a text.
        """
        if self.options.explainer is None:
            return "the model is explained by its own trees"
        place = explainer_in(Location(self.options.explainer))
        if is_bundle(place):
            return "the explainer is a bundle, not the SDK's pickle"
        data = read_artifact(place, "explainer")
        if is_model_text(data):
            return "the explainer is a LightGBM model text, not the SDK's pickle"
        source = open_pickle(data, place, "explainer", self.options.trust)
        if not callable(getattr(source, "explain", None)):
            return f"the explainer is a {type(source).__name__}, which has no explain()"
        keep_to_one_thread(getattr(source, "_model", None))
        if getattr(source, "_data_mapper", None) is not None:
            source._data_mapper = None  # it gets engineered rows
        return source


def _first_rows(context: Context, rows: Rows) -> tuple[pa.Table | None, Matrix, int]:
    """Columns and engineered form of the rows that can be explained, and how many cannot."""
    plan, artifacts = context.plan, context.artifacts
    allowed = plan.options.bad_rows_allowed(plan.rows)
    if plan.series is not None:
        found = explain_good(context, rows, allowed)
        if found.batch is None:
            raise BadDataError(f"No series of the first rows can be explained: {found.bad[0].reason}.")
        return None, found.batch.matrix, len(found.bad)
    table = model_columns(context, rows.table)
    answer, kept, bad = explain_good_rows(
        lambda part: artifacts.engineered(part, sparse=plan.sparse_rows), table, allowed
    )
    if answer is None:
        at, reason = bad[0] if bad else (0, "no row is left")
        raise BadDataError(
            f"Row {int(rows.numbers[at])} of {rows.path(at)} cannot be explained: {reason}. Mend or remove the row, or "
            "pass --max-bad-rows to go on without."
        )
    return table.take(pa.array(kept)) if len(bad) else table, answer[0], len(table) - len(np.asarray(kept))
