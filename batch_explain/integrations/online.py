"""Scoring rows of requests: predictions, importances and reasons of each, the numbers that a run writes."""

import gc
import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.engine.additivity import check_additivity
from batch_explain.engine.artifacts import Artifacts, Batch, name_outputs
from batch_explain.engine.quarantine import NOT_THE_ROWS, first_refused, short
from batch_explain.engine.reason_lines import reason_lines
from batch_explain.engine.reasons import Reasons, decide_reasons
from batch_explain.errors import ArtifactError, BadDataError, InputError, IntegrityError
from batch_explain.explainers.folders import explainer_in, model_in
from batch_explain.explainers.manifest import MODEL as MODEL_IN_BUNDLE
from batch_explain.integrations.online_rows import Rows, parse, rows_of
from batch_explain.integrations.online_together import Together
from batch_explain.options import REASONS, RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.teachers.columns import BadValueError

MAX_NUMBERS = 10_000_000  # of an answer: some 200 MB of text
_SHOWN = 2_000  # characters of a message
_DEPTH = 3  # of folders that hold nothing but a folder, as a registered model's do


def load_scorer(
    folder: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    explainer: str | os.PathLike[str] | None = None,
    sparse: bool = False,
    **options: Any,
) -> "Scorer":
    """Load what an online endpoint serves.

    Parameters
    ----------
    folder : str or path, optional
        Where the artifacts lie under their usual names: ``AZUREML_MODEL_DIR``, or what ``register`` made. An
        explainer (``bundle``, ``scoring_explainer.pkl``, ``explainer.txt``), a model (``model.pkl``,
        ``pipeline.skops``), or both.
    model, explainer : str or path, optional
        Where they lie elsewhere. Without a model the requests hold the engineered features.
    sparse : bool
        Whether engineered rows count as sparse: of explainers that explain sparse rows by other trees than dense ones.
    options
        Of a run: ``trust``, ``sha256``, ``feature_map``, ``background``, ``table_memory``; of its reasons: ``top_k``,
        ``reasons``, ``reasons_level``, ``reasons_for``, ``reason_codes``, ``missing_code``, ``exclude_features``,
        ``group_features``.

    Returns
    -------
    Scorer

    Raises
    ------
    ArtifactError
        If there is nothing to serve, or it cannot be loaded.
    OptionError
        If an option cannot be.

    Examples
    --------
    >>> load_scorer("bundle").score([{"age": 41, "balance": 1200.0}])  # doctest: +SKIP
    """
    if folder is not None:
        found_model, found_explainer = _artifacts_in(Location(os.fspath(folder)))
        model, explainer = model or found_model, explainer or found_explainer
    chosen = RunOptions.create(
        input="request", output="answer", scheduler="sync", outputs=("raw", REASONS), no_row_values=True,
        model=model, explainer=explainer, **options,
    )  # fmt: skip
    return Scorer(Artifacts.load(chosen), chosen, sparse=sparse)


def _artifacts_in(place: Location) -> tuple[str | None, str | None]:
    """The model and the explainer in a folder, which may lie in others that hold nothing else."""
    for _ in range(_DEPTH):
        try:
            model, explainer = model_in(place), explainer_in(place)
            inside = place.fs.ls(place.path, detail=False) if place.fs.isdir(place.path) else []
        except OSError as error:
            raise ArtifactError(f"The models in {place} cannot be read: {error}. Check AZUREML_MODEL_DIR.") from error
        if explainer.join("bundle.json").exists():
            has_model = model.url != explainer.url or explainer.join(MODEL_IN_BUNDLE).exists()
            return (model.url if has_model else None), explainer.url
        if model.url != place.url or explainer.url != place.url:
            return tuple(None if each.url == place.url else each.url for each in (model, explainer))  # type: ignore[return-value]
        if len(inside) != 1:
            break
        place = place.at(inside[0])
    raise ArtifactError(
        f"There is neither a model nor an explainer in {place} under its usual name: a bundle, scoring_explainer.pkl "
        "or explainer.txt; model.pkl or pipeline.skops. Register the folder that holds them, or pass model= and "
        "explainer=."
    )


class Scorer:
    """A model and its explainer, ready for requests. May be shared by threads.

    Parameters
    ----------
    artifacts : Artifacts
    options : RunOptions
        Of the reasons.
    sparse : bool
        Whether engineered rows count as sparse.

    Attributes
    ----------
    artifacts : Artifacts
    example : list of dict
        A made-up record of the right types, the body of a request.
    """

    def __init__(self, artifacts: Artifacts, options: RunOptions, *, sparse: bool = False) -> None:
        self.artifacts = artifacts
        self._options, self._sparse = options, sparse
        self._columns = artifacts.columns
        self._names = [column.name for column in self._columns]
        self._lock = threading.Lock()
        self._reasons: Reasons | None = None
        if artifacts.takes_engineered:
            self._cure = "Send the engineered features by name, or deploy the model too."
        else:
            self._cure = "Send it in every record, null where there is no value."
        teacher = artifacts.teacher
        self._numeric = teacher is not None and teacher.engineered_features == tuple(self._names)
        artifacts.explainer.prepare()
        # requests of several threads at once, where what is said of a row does not depend on the others
        alone = artifacts.explainer.kind == "opaque" or artifacts.explainer.depends_on_format
        self._together = self._explain if alone else Together(self._explain)
        if not artifacts.explainer.learns_from_rows:
            self._settle()
        self.example = [{column.name: _example(column.dtype) for column in self._columns}]
        _one_thread()
        with suppress(Exception):  # it may refuse what is made up; the first request is then the slow one
            if not artifacts.explainer.learns_from_rows:
                self.score(self.example)
        _for_requests()

    def _settle(self) -> None:
        """What depends on the number of outputs and on the feature map."""
        self.artifacts = name_outputs(self.artifacts)
        self._reasons, _ = decide_reasons(self._options, self.artifacts, (), {})

    def score(self, data: Any) -> dict[str, Any]:
        """Predict and explain rows.

        Parameters
        ----------
        data : list or dict
            Records, columns, or pandas' split form, as ``json.loads`` gives them; columns that the model does not need
            are left out.

        Returns
        -------
        dict
            JSON: ``predictions`` (null without a model), ``engineered_local_importance_values`` and
            ``raw_local_importance_values`` by row, then feature, and for several outputs by output first (null without
            a feature map), as the SDK's scoring explainers give them; of classifiers ``probabilities`` and ``classes``;
            ``engineered_features`` and ``raw_features``, the names; ``outputs``, their names, null for a single one;
            ``expected_values`` by output, which with a row's values add up to ``margins``, the surrogate's own answer,
            by output, then row; ``reasons``, of each row its most important features, the most important first. What
            is no number is null.

        Raises
        ------
        InputError
            If the rows' form or columns are not what the model takes.
        BadDataError
            If a value is not, or the model refuses a row.
        IntegrityError
            If importances do not add up to the surrogate's margin.
        """
        rows = rows_of(data, self._names, cure=self._cure)
        self._refuse_too_many(rows.count)
        batch = self._explained(rows)
        if self._reasons is None:
            with self._lock:
                self._settle()
        check = check_additivity(self.artifacts.explainer, batch, check_all=False)
        if self.artifacts.explainer.additive and check.violated:
            raise IntegrityError(
                f"The importances of row {check.worst_row} of the request miss the surrogate's margin by "
                f"{check.largest:.3g}. The explainer is damaged: make it again."
            )
        return self._answer(rows, batch)

    def answer(self, body: str | bytes) -> tuple[int, str]:
        """Answer a request.

        Parameters
        ----------
        body : str or bytes
            JSON: see :meth:`score`.

        Returns
        -------
        status : int
            200; 400 where the request cannot be answered.
        text : str
            JSON: :meth:`score`'s answer, or ``{"message": …}``, what is wrong, where, and what to do.
        """
        try:
            return 200, json.dumps(self.score(parse(body)), allow_nan=False, default=_plain)
        except (InputError, BadDataError) as error:
            text = str(error)
            return 400, json.dumps({"message": text if len(text) <= _SHOWN else text[:_SHOWN] + " …"})

    def describe(self, run: Callable[..., Any], parameter: str = "data") -> None:
        """Have ``/swagger.json`` describe a scoring script's ``run``; call it from ``init``.

        Parameters
        ----------
        run : callable
            The script's own.
        parameter : str
            Its parameter: the name that requests may have their rows under.
        """
        from batch_explain.integrations.online_schema import describe

        describe(run, parameter, self)

    def _refuse_too_many(self, rows: int) -> None:
        explainer = self.artifacts.explainer
        features = len(self.artifacts.written) + len(explainer.raw_features or ())
        numbers = rows * explainer.n_outputs * max(1, features)
        if numbers > MAX_NUMBERS:
            raise InputError(
                f"The answer to {rows:,} rows would hold {numbers:,} numbers, and the most is {MAX_NUMBERS:,}. Send at "
                f"most {MAX_NUMBERS * rows // numbers:,} rows at once, or explain them with batch-explain run."
            )

    def _explained(self, rows: Rows) -> Batch:
        artifacts, explainer = self.artifacts, self.artifacts.explainer
        if artifacts.takes_engineered and not self._sparse and (numbers := rows.numbers()) is not None:
            matrix = np.zeros((rows.count, len(explainer.engineered_features)))
            matrix[:, artifacts.features] = numbers
            explainer.learn(matrix[:1])
            found = explainer.explain_used(matrix, raw=True)
            return Batch(matrix, found.values, found.raw, found.margins, None, {}, {})
        table = rows.table(self._columns, engineered=artifacts.takes_engineered, numeric=self._numeric)
        try:
            return self._together(table)
        except NOT_THE_ROWS:
            raise
        except BadValueError as error:
            raise BadDataError(
                f"Column '{error.column}' of the request {error.reason} in row {error.row} (counted from 0). Mend the "
                "row or leave it out."
            ) from error
        except Exception as error:  # models refuse rows with exceptions of any type
            row, reason = first_refused(self._explain, table, error)
            which = f"row {row} (counted from 0)" if row is not None else f"these {rows.count} rows together"
            raise BadDataError(
                f"The model cannot take {which} of the request: {short(reason)}. Mend or leave out what it refuses."
            ) from error

    def _explain(self, table: pa.Table) -> Batch:
        return self.artifacts.explain(table, sparse=self._sparse)

    def _answer(self, rows: Rows, batch: Batch) -> dict[str, Any]:
        artifacts, explainer = self.artifacts, self.artifacts.explainer
        written = artifacts.written
        engineered = batch.engineered
        assert engineered is not None
        if len(written) > engineered.shape[1]:
            engineered = np.zeros((len(engineered), len(written), rows.count))
            engineered[:, explainer.used] = batch.engineered
        predictions = batch.predictions
        found: dict[str, Any] = {"predictions": None if predictions is None else _listed(predictions.prediction)}
        if artifacts.classes is not None:
            found["classes"] = list(artifacts.classes)
        if predictions is not None and predictions.probabilities is not None:
            found["probabilities"] = _listed(predictions.probabilities)
        return {
            **found,
            "engineered_local_importance_values": _by_row(engineered),
            "raw_local_importance_values": None if batch.raw is None else _by_row(batch.raw),
            "engineered_features": [explainer.engineered_features[at] for at in written],
            "raw_features": None if explainer.raw_features is None else list(explainer.raw_features),
            "outputs": None if artifacts.labels is None else list(artifacts.labels),
            "expected_values": _listed(explainer.expected_values),
            "margins": _listed(batch.margins),
            "reasons": self._reasons_of(rows, batch),
        }

    def _reasons_of(self, rows: Rows, batch: Batch) -> list[list[dict[str, Any]]]:
        reasons = self._reasons
        assert reasons is not None
        lines = reason_lines(reasons, batch, pa.table({}), self.artifacts)
        names = [field.name for field in reasons.fields]
        texts = {name: column for name, column in zip(names, lines.columns, strict=True) if name != "rank"}
        values = {name: _plainly(column) for name, column in texts.items()}
        if self.artifacts.labels is None and not reasons.predicted:
            del values["output"]
        found: list[list[dict[str, Any]]] = [[] for _ in range(rows.count)]
        of_feature = {each.name: each for each in reasons.candidates}
        keys = list(values)
        for row, *each in zip(lines.rows.tolist(), *values.values(), strict=True):
            reason = dict(zip(keys, each, strict=True))
            candidate = of_feature[reason["feature"]]
            if candidate.column is not None:
                reason["value"] = rows.columns[candidate.column][row]
            elif reasons.level == "engineered" and not candidate.group:
                value = float(batch.matrix[row, self.artifacts.explainer.used[candidate.members[0]]])
                reason["value"] = value if np.isfinite(value) else None
            found[row].append(reason)
        return found


def _for_requests() -> None:
    """Settings of a process that answers requests: a tenth of a genuine AutoML model's time."""
    for name, logger in logging.root.manager.loggerDict.items():  # a featurizer makes twenty records a request
        if isinstance(logger, logging.Logger) and name.startswith(("azureml.", "automl.")):
            logger.setLevel(max(logging.WARNING, logger.level))
    gc.collect()
    gc.freeze()  # the garbage collector need not walk through the libraries and the model again and again


def _by_row(values: np.ndarray) -> list[Any]:
    """Importances, shape (output, feature, row), as lists: by row, then feature; of several outputs by output first."""
    found = _listed(values.transpose(0, 2, 1))
    return found[0] if len(found) == 1 else found


def _listed(values: np.ndarray) -> list[Any]:
    """Lists; what is no finite number in an array of numbers is None."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        finite, values = np.isfinite(values), values.astype(object)
        values[~finite] = None
    return list(values.tolist())


def _plainly(column: pa.Array) -> list[Any]:
    if not pa.types.is_dictionary(column.type):
        return list(column.to_numpy().tolist())
    names = [*column.dictionary.to_pylist(), None]
    return [names[at] for at in column.indices.fill_null(-1).to_numpy().tolist()]


def _plain(value: Any) -> Any:
    """For labels that JSON has no form for."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _example(dtype: np.dtype[Any] | None) -> Any:
    kind = "f" if dtype is None else dtype.kind
    return {"f": 0.0, "i": 0, "u": 0, "b": False, "M": "2020-12-31T23:59:59"}.get(kind, "text")


def _one_thread() -> None:
    """Workers are processes, one a core: native libraries that start threads of their own only get in their way."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)
