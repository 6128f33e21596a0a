"""One fit: rows, surrogate, explainer, the run over rows that were held out, and the record of it all, written last."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from batch_explain.engine.artifacts import match
from batch_explain.engine.export import export_bundle
from batch_explain.engine.plan import versions
from batch_explain.engine.runner import run
from batch_explain.errors import (
    BadDataError,
    InputError,
    InterruptedRunError,
    OptionError,
    OutputRefusedError,
    mask_secrets,
)
from batch_explain.events import Observer, Waiting
from batch_explain.explainers.base import Explainer
from batch_explain.explainers.direct import direct_explainer
from batch_explain.explainers.load import load_explainer
from batch_explain.explainers.models import load_model, version_notes
from batch_explain.fitting.accuracy import accuracy, labels_of
from batch_explain.fitting.faithful import faithful
from batch_explain.fitting.folder import (
    BUNDLE,
    EXPLANATIONS,
    HELD_OUT,
    HELD_OUT_ROWS,
    PICKLE,
    RECORD,
    checksums,
    refuse_taken,
    remove,
)
from batch_explain.fitting.mimic import mimic
from batch_explain.fitting.options import FitOptions
from batch_explain.fitting.rows import FILE, ROW, Dataset, Rows, find, read, split
from batch_explain.fitting.sdk import saved, scoring_explainer
from batch_explain.fitting.targets import lesson
from batch_explain.options import RunOptions
from batch_explain.results import Run, open_run
from batch_explain.storage.atomic import json_bytes, new_file, write_bytes
from batch_explain.storage.dataset import discover
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import take_lock
from batch_explain.teachers.automl import is_automl
from batch_explain.teachers.base import Teacher
from batch_explain.teachers.load import teacher_of

VERSION = 1
_MANY_ROWS = 100_000  # beyond which the held-out rows are explained in processes


@dataclass(frozen=True)
class Fitted:
    """A finished fit.

    Parameters
    ----------
    location : Location
        Its folder, which ``run`` takes as its explainer.
    info : dict
        ``fit.json``: options, rows, surrogate, fidelity, accuracy, decisions, warnings, versions, checksums.
    held_out : Run
        The rows that the surrogate was not fitted on, explained: a baseline for later runs.
    """

    location: Location
    info: dict[str, Any]
    held_out: Run

    @property
    def explainer(self) -> Explainer:
        """The explainer in the bundle."""
        return load_explainer(self.location.join(BUNDLE).url)


@dataclass(frozen=True)
class _Made:
    """An explainer, and what is told of it."""

    explainer: Explainer
    pickle: bytes | None
    notes: tuple[str, ...]
    how: dict[str, Any]


def fit(*, observers: Sequence[Observer] = (), **options: Any) -> Fitted:
    """Make an explainer of a fitted model, and judge it on rows that it was not fitted on.

    Parameters
    ----------
    observers : sequence of callable
        Each is called with what happens (see :mod:`batch_explain.events`).
    **options
        The fields of :class:`batch_explain.fitting.options.FitOptions`: ``model``, ``train``, ``label``, ``output``
        and so on.

    Returns
    -------
    Fitted

    Raises
    ------
    BatchExplainError
        One of its kinds: see :mod:`batch_explain.errors`. Where the exit code is 2 nothing was written.

    Examples
    --------
    >>> fitted = fit(model="model.pkl", train="train.parquet", label="y", output="fitted/")  # doctest: +SKIP
    >>> fitted.held_out.summary("raw")  # doctest: +SKIP
    """
    asked = FitOptions.create(**options)

    def say(what: str) -> None:
        for observer in observers:
            observer(Waiting(what))

    output = Location(asked.output)
    leftovers = refuse_taken(output, asked)
    model, teacher = _model(asked)
    train = find(asked.train, teacher, asked.label, option="--train")
    if teacher.series is not None:
        _check_forecasting(asked, train)
    test = None if asked.test is None else find(asked.test, teacher, asked.label, option="--test", needs_label=False)
    fitted_on, held = split(train, asked.max_train_rows, hold_out=test is None)
    rows = read(train, fitted_on, teacher)
    held_rows = read(train, held, teacher) if test is None else None
    for each in (rows, held_rows):
        if each is not None:
            _check_labels(teacher, each.labels, asked.label)
    told = _rows_told(train, rows, held_rows, test)
    say(told["said"])
    made = _make(model, teacher, rows, asked)
    made = _matched(made, teacher, Location(asked.model))
    for warning in _warnings(made.explainer):
        say(f"warning: {warning}")
    try:
        with take_lock(output) as lock:
            remove(output, leftovers)
            if made.pickle is not None:
                write_bytes(output, PICKLE, made.pickle)
            export_bundle(made.explainer, output.join(BUNDLE).url, model=model)
            if held_rows is not None:
                with new_file(output, HELD_OUT_ROWS) as stream:
                    pq.write_table(held_rows.table, stream)
            lock.check()
            finished = _explain(asked, test, held_rows, output, observers)
            for level in ("engineered", "raw"):
                if finished.info["features"][level]:
                    finished.save_explanation(output.join(EXPLANATIONS, level).url, level)
            info = _record(asked, teacher, made, told, finished, _accuracy(teacher, finished, held_rows, test))
            info["files"] = checksums(output)
            lock.check()
            write_bytes(output, RECORD, json_bytes(info))
    except OSError as error:
        raise OutputRefusedError(
            f"The fit cannot be written to {output}: {error}. Choose another place, or mend its permissions."
        ) from error
    return Fitted(output, info, finished)


def open_fit(path: str | os.PathLike[str]) -> Fitted:
    """Open a finished fit.

    Raises
    ------
    OptionError
        If there is none, or it was not finished.
    """
    location = Location(os.fspath(path))
    try:
        info = json.loads(location.join(RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(
            f"There is no finished fit in {location}: it has no readable {RECORD}. Make one with batch-explain fit."
        ) from error
    return Fitted(location, info, open_run(location.join(HELD_OUT).url))


def _model(options: FitOptions) -> tuple[Any, Teacher]:
    """The model, and what it is asked through."""
    place = Location(options.model)
    names = discover(options.train)[0].schema.names
    model = load_model(place, options.trust)
    teacher = teacher_of(model, [name for name in names if name != options.label], str(place))
    if options.task not in (None, teacher.task):
        raise OptionError(
            f"--task is {options.task}, and the model {place} is a {teacher.task} model. Leave --task out, or pass the "
            "right model."
        )
    return model, teacher


def _check_forecasting(options: FitOptions, train: Dataset) -> None:
    """Series cannot be sampled by rows, and what was trained on cannot be forecast."""
    if options.test is None:
        raise OptionError(
            "The model forecasts, so the explainer is judged on rows after those of its training, and none can be held "
            "out of these. Pass the rows that follow, as far as the model's horizon, by --test."
        )
    if options.surrogate != "sdk":
        raise OptionError(
            f"--surrogate is {options.surrogate}, and the model forecasts: the SDK's surrogate already learns what its "
            "learner predicts. Leave --surrogate out, or pass --direct where the learner is made of trees."
        )
    if train.rows > options.max_train_rows and not options.direct:
        raise OptionError(
            f"The training data has {train.rows:,} rows, and --max-train-rows is {options.max_train_rows:,}: series "
            "are not cut. Pass fewer series by --train, or a larger --max-train-rows."
        )


def _accuracy(teacher: Teacher, run: Run, held: Rows | None, test: Dataset | None) -> dict[str, Any] | None:
    """How right the model is; not asked of forecasts, whose lines stand in another order than the rows."""
    if teacher.series is not None:
        return None
    return accuracy(run, [held.labels] if held is not None else labels_of(test) if test and test.label else ())


def _check_labels(teacher: Teacher, labels: pd.Series, name: str) -> None:
    if teacher.classes is None:
        if not (pd.api.types.is_numeric_dtype(labels) or labels.map(lambda v: hasattr(v, "as_tuple")).all()):
            raise InputError(
                f"The label column '{name}' is of type {labels.dtype}, and the model is a regression. Name the column "
                "with the true answer by --label."
            )
        return
    unseen = [label for label in pd.unique(labels) if label not in set(teacher.classes)]
    if unseen:
        listed = ", ".join(map(repr, teacher.classes[:10]))
        raise InputError(
            f"The label column '{name}' holds {unseen[0]!r}, which is none of the model's {len(teacher.classes)} "
            f"classes ({listed}). Name the column that the model predicts by --label, in the values that "
            "it was trained on."
        )


def _make(model: Any, teacher: Teacher, rows: Rows, options: FitOptions) -> _Made:
    """The explainer that was asked for."""
    automl = is_automl(model)
    names = teacher.engineered_features
    if options.direct:
        return _Made(direct_explainer(teacher), None, (), {"kind": "direct"})
    how: dict[str, Any] = {"kind": options.surrogate, "model": options.surrogate_model}
    if automl and options.surrogate == "sdk":
        made, notes = scoring_explainer(model, teacher, rows.frame, rows.labels.to_numpy(), options)
        return _Made(load_explainer(made), saved(made), notes, {**how, "made_by": "the Azure ML SDK"})
    if options.augment_data:
        raise OptionError(
            "--augment-data is done by the Azure ML SDK, for AutoML pipelines. Leave it out: pass more training rows."
        )
    known = lesson(teacher, rows)
    if names is None:
        names = tuple(f"Column_{at}" for at in range(known.matrix.shape[1]))
    if options.surrogate == "sdk":
        return _Made(mimic(known, names, options), None, (), how)
    found = faithful(known, names, options)
    notes = _how_learned(known.task, known.outputs, known.decisions is not None, found.chosen.floor)
    return _Made(found.explainer, None, notes, {**how, **found.describe()})


def _how_learned(task: str, outputs: int, decides: bool, floor: float | None) -> tuple[str, ...]:
    if task == "regression":
        return ("the surrogate learned the model's predictions",)
    if decides:
        return ("the model has no probabilities: the surrogate learned its decision_function",)
    what = "the log-odds of the second class" if outputs == 1 else (
        "each class's log-probability less the mean over the classes"
    )  # fmt: skip
    return (f"the surrogate learned {what}; probabilities below {floor:g} counted as {floor:g}",)


def _matched(made: _Made, teacher: Teacher, place: Location) -> _Made:
    """With the model's feature map, where the explainer has none."""
    explainer = made.explainer
    if explainer.raw_features is None:
        explainer.raw_features = tuple(column.name for column in teacher.columns)
        if teacher.feature_map(explainer.raw_features) is None:
            explainer.raw_features = None
    found = match(explainer, teacher)
    notes = tuple(dict.fromkeys((*made.notes, *found.notes, *version_notes(place))))
    if explainer.feature_map is None:
        notes += ("which raw column each engineered feature comes from is not known: there are no raw importances",)
    return replace(made, notes=notes)


def _warnings(explainer: Explainer) -> list[str]:
    if len(explainer.used):
        return []
    what = "never splits" if explainer.kind == "tree" else "has no coefficient but 0"
    return [
        f"the surrogate {what}, so every importance is 0: the model answers the same for all training rows, or they "
        "are too few, or an argument of the surrogate forbids it"
    ]


def _rows_told(train: Dataset, rows: Rows, held: Rows | None, test: Dataset | None) -> dict[str, Any]:
    """Which rows were used, for ``fit.json`` and for people."""
    without = rows.without_label + (0 if held is None else held.without_label)
    held_rows = 0 if held is None else len(held.labels)
    sampled = len(rows.labels) + held_rows + without < train.rows
    said = f"fitting on {len(rows.labels):,} of {train.rows:,} training rows"
    if sampled:
        said += ", a sample that depends on the files' names and the rows' places alone"
    if without:
        said += f"; {without:,} rows without a label are left out"
    if held is not None:
        said += f"; {held_rows:,} others are held out"
    return {
        "said": said,
        "train": {
            "files": len(train.files),
            "rows": train.rows,
            "fitted_on": len(rows.labels),
            "sampled": sampled,
            "without_label": without,
        },
        "held_out": {"rows": held_rows, "of": "train"} if test is None else {"rows": test.rows, "of": "test"},
    }


def _explain(
    options: FitOptions, test: Dataset | None, held: Rows | None, output: Location, observers: Sequence[Observer]
) -> Run:
    """The run over the rows that the surrogate was not fitted on."""
    count = len(held.labels) if held is not None else test.rows if test is not None else 0
    source = {"input": options.test} if held is None else {
        "input": output.join(HELD_OUT_ROWS).url,
        "id_columns": (FILE, ROW),
    }  # fmt: skip
    bundle = output.join(BUNDLE)
    asked = RunOptions.create(
        **source,
        model=options.model,
        explainer=bundle.url,
        output=output.join(HELD_OUT).url,
        scheduler=options.scheduler or ("processes" if count > _MANY_ROWS else "sync"),
        trust=options.trust,
    )
    try:
        return run(asked, observers)
    except (BadDataError, InterruptedRunError) as error:
        raise type(error)(
            f"{error} So the explainer could not be judged, and the fit is not finished: a fit has neither "
            "--max-bad-rows nor --resume. Mend what is said above and fit again with --overwrite; what was made, "
            f"{bundle}, is whole."
        ) from error


def _record(
    options: FitOptions,
    teacher: Teacher,
    made: _Made,
    told: dict[str, Any],
    finished: Run,
    right: dict[str, Any] | None,
) -> dict[str, Any]:
    """``fit.json``, but for the files' checksums."""
    explainer = made.explainer
    rows = {name: told[name] for name in ("train", "held_out")}
    return {
        "format": "batch-explain fit",
        "format_version": VERSION,
        "task": teacher.task,
        "classes": finished.info["classes"],
        "model": {"kind": teacher.kind, "sha256": finished.info["artifacts"]["model"]["sha256"]},
        "surrogate": {
            **made.how,
            "description": explainer.description,
            "features_used": len(explainer.used),
            "engineered_features": len(explainer.engineered_features),
        },
        "rows": rows,
        "fidelity": finished.info["fidelity"],
        "accuracy": right,
        "decisions": [told["said"], *made.notes],
        "warnings": _warnings(explainer),
        "options": {name: _masked(value) for name, value in options.to_json().items()},
        "versions": versions(),
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def _masked(value: Any) -> Any:
    return mask_secrets(value) if isinstance(value, str) else value
