"""Model and explainer, loaded, matched to each other, and applied to batches."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from batch_explain.engine.features import needed, read_features
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.explainers.base import Explainer, Matrix, as_matrix, combine_maps
from batch_explain.explainers.direct import direct_explainer
from batch_explain.explainers.feature_map import take_feature_map
from batch_explain.explainers.load import load_explainer
from batch_explain.explainers.models import load_model, version_notes
from batch_explain.options import ALL_TABLES, TABLES, RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.storage.shared import shared_array
from batch_explain.teachers.base import Predictions, Teacher
from batch_explain.teachers.columns import Column, count_padded, to_frame
from batch_explain.teachers.load import teacher_of
from batch_explain.teachers.threads import keep_to_one_thread

# Raw feature of forecasting models, for engineered features that come from no column; "_" is added where one has it.
PAST_TARGETS = "past_targets"

# Features that no tree splits on are written as columns of zeros while there are at most so many of them: the table's
# schema then stays the same when a retrained surrogate uses others. Beyond it they are only named in run.json.
MAX_ZERO_COLUMNS = 1_000


@dataclass(frozen=True)
class Batch:
    """A batch, explained.

    Parameters
    ----------
    matrix : ndarray or csr_matrix, shape (row, engineered)
        The featurizer's output.
    engineered : ndarray, shape (output, used feature, row), float64, or None
    raw : ndarray, shape (output, raw feature, row), float64, or None
        None where they were not asked for; raw ones also where there is no feature map.
    margins : ndarray, shape (output, row), float64
    predictions : Predictions or None
    imputed : dict
        Integer columns with nulls that the featurizer filled -> how many.
    padded : dict
        Columns with categories that have surrounding blanks -> how many.
    """

    matrix: Matrix
    engineered: np.ndarray | None
    raw: np.ndarray | None
    margins: np.ndarray
    predictions: Predictions | None
    imputed: dict[str, int]
    padded: dict[str, int]


@dataclass(frozen=True)
class Artifacts:
    """A teacher (or none) and an explainer that belong together.

    Parameters
    ----------
    explainer : Explainer
    teacher : Teacher or None
        None: the input holds engineered features.
    labels : tuple of str or None
        Name of each output; None for a single one.
    surrogate_labels : tuple or None
        The teacher's label for each class that the surrogate knows; None for regression and without a teacher.
    link : str
        From the surrogate's margins to predictions.
    feature_notes, output_notes : tuple of str
        Decisions made while matching features, and while naming outputs.
    """

    explainer: Explainer
    teacher: Teacher | None
    labels: tuple[str, ...] | None = None
    surrogate_labels: tuple[Any, ...] | None = None
    link: str = "unknown"
    feature_notes: tuple[str, ...] = ()
    output_notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, options: RunOptions) -> "Artifacts":
        """Load both and match them.

        Raises
        ------
        ArtifactError
            If one is missing or unreadable, or they do not belong together.
        """
        tables: dict[str, Any] = {
            "table_bytes": options.table_memory,
            "make_array": shared_array if options.has_processes else None,
        }
        explainer = None
        if options.explainer is not None:
            fingerprint = options.fingerprints.get("explainer")
            explainer = load_explainer(options.explainer, trust=options.trust, sha256=fingerprint, **tables)
        teacher = None
        notes: tuple[str, ...] = ()
        if options.model is not None:
            place = Location(options.model)
            model = load_model(place, options.trust, options.fingerprints.get("model"))
            keep_to_one_thread(model)
            teacher = teacher_of(model, None if explainer is None else explainer.raw_features, str(place))
            notes = version_notes(place)
        if explainer is None:
            assert teacher is not None  # one of them is there
            explainer = direct_explainer(teacher, **tables)
        if options.feature_map is not None:
            take_feature_map(explainer, options.feature_map)
        artifacts = match(explainer, teacher)
        artifacts = replace(artifacts, feature_notes=artifacts.feature_notes + notes)
        if options.background is not None:
            from batch_explain.engine.background import take_background  # which applies artifacts to rows

            take_background(options, artifacts)
        return artifacts

    @property
    def notes(self) -> tuple[str, ...]:
        """All decisions, for ``run.json``."""
        of_teacher = getattr(self.teacher, "notes", ())
        return (*self.explainer.notes, *of_teacher, *self.feature_notes, *self.output_notes)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The input columns needed, by the model's names."""
        if self.teacher is not None:
            return self.teacher.columns
        if self.explainer.featurizes:
            return tuple(Column(name) for name in self.explainer.raw_features or ())
        return tuple(Column(self.explainer.engineered_features[i]) for i in self.features)

    @property
    def features(self) -> np.ndarray:
        """Engineered features that are needed to explain a row again: the used ones, but at least one column."""
        return needed(self.explainer.used)

    @property
    def written(self) -> np.ndarray:
        """Positions of the engineered features that tables have a column for: all, or the used ones of very many."""
        features, used = len(self.explainer.engineered_features), self.explainer.used
        return np.arange(features) if features - len(used) <= MAX_ZERO_COLUMNS else used

    @property
    def takes_engineered(self) -> bool:
        """Whether the input columns are the engineered features themselves."""
        return self.teacher is None and not self.explainer.featurizes

    @property
    def task(self) -> str:
        """``classification``, ``regression``, or ``unknown`` where neither a model nor a bundle says."""
        return (self.explainer.task or "unknown") if self.teacher is None else self.teacher.task

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The model's class labels; None for regression, and where neither a model nor a bundle says."""
        return self.explainer.classes if self.teacher is None else self.teacher.classes

    @property
    def row_bytes(self) -> int:
        """Estimate of the memory that one row's importances take while they are computed and written."""
        explainer = self.explainer
        used, raw = len(explainer.used), len(explainer.raw_features or ())
        # the row, its values as they are computed, and as they are encoded for their parts
        of_a_line = 8 * (used + explainer.n_outputs * (2 * used + 2 * raw + 1)) + explainer.scratch_bytes
        return of_a_line * self.lines_of_a_row

    @property
    def lines_of_a_row(self) -> int:
        """Most lines that a row becomes: more than one in forecasting with lags."""
        series = None if self.teacher is None else self.teacher.series
        return 1 if series is None else series.lines_of_a_row

    def tables(self, asked: tuple[str, ...] | None) -> tuple[str, ...]:
        """The tables that will be written.

        Raises
        ------
        OptionError
            If one that was asked for by name cannot be made.
        """
        missing = {}
        if self.teacher is None:
            missing["predictions"] = "there is no --model to predict with"
        if self.explainer.feature_map is None and not self.explainer.featurizes:
            missing["raw"] = "neither the explainer nor the model has a feature map from raw to engineered features"
        if self.takes_engineered:
            missing["features"] = "the input holds the engineered features already"
        for table in asked or ():
            if table in missing:
                raise OptionError(
                    f"--outputs names '{table}', which cannot be made: {missing[table]}. Leave it out of --outputs."
                )
        wanted = TABLES if asked is None else asked
        return tuple(table for table in ALL_TABLES if table not in missing and table in wanted)

    def levels(self, tables: tuple[str, ...], reasons: str | None = None) -> tuple[str, ...]:
        """The importances that are computed and summarised for a run that writes these tables.

        Raw ones always, where there is a map; engineered ones where their table is written, the reasons are of this
        level, or there are no others.
        """
        raw = self.explainer.feature_map is not None or self.explainer.featurizes
        engineered = "engineered" in (*tables, reasons) or not raw
        return tuple(level for level, wanted in (("engineered", engineered), ("raw", raw)) if wanted)

    def engineered(self, table: pa.Table, *, sparse: bool = False) -> tuple[Matrix, Predictions | None, dict[str, int]]:
        """Rows as the explainer takes them, the teacher's predictions of them, and columns whose nulls were filled.

        Parameters
        ----------
        table : pyarrow.Table
        sparse : bool
            As for :meth:`explain`.
        """
        if self.takes_engineered:
            names = [column.name for column in self.columns]
            width = len(self.explainer.engineered_features)
            return read_features(table, names, self.features, width, sparse=sparse), None, {}
        frame, imputed = to_frame(table, self.columns)
        if self.explainer.featurizes:
            matrix = self.explainer.featurize(frame)
            # the explainer's transformations feed the explanation; the model featurizes by itself
            return matrix, None if self.teacher is None else self.teacher.predict_raw(frame), imputed
        assert self.teacher is not None
        featurized = self.teacher.featurize(frame)
        return as_matrix(featurized), self.teacher.predict(featurized), imputed

    def explain(
        self, table: pa.Table, levels: tuple[str, ...] = ("engineered", "raw"), *, sparse: bool = False
    ) -> Batch:
        """Featurize once, predict, and explain.

        Parameters
        ----------
        table : pyarrow.Table
            The needed columns, by the model's names.
        levels : tuple of str
            The importances wanted.
        sparse : bool
            Where the input holds engineered features: whether they were sparse when they were made.

        Raises
        ------
        BadValueError
            At the first value that the model cannot take.
        """
        matrix, predictions, imputed = self.engineered(table, sparse=sparse)
        if table.num_rows:
            self.explainer.learn(matrix[:1])
        found = self.explainer.explain_used(matrix, values="engineered" in levels, raw="raw" in levels)
        counted = {column.name: count_padded(table[column.name], column) for column in self.columns}
        padded = {name: count for name, count in counted.items() if count}
        return Batch(matrix, found.values, found.raw, found.margins, predictions, imputed, padded)


def match(explainer: Explainer, teacher: Teacher | None) -> Artifacts:
    """Check that an explainer and a model belong together, and name the outputs.

    Raises
    ------
    ArtifactError
        If they do not.
    """
    notes: list[str] = []
    names = explainer.raw_features if explainer.featurizes else explainer.engineered_features
    if teacher is None and not names:
        raise ArtifactError(
            "The explainer does not name its features, so the input columns are unknown without a model. Pass the "
            "--model too, or make the explainer with features."
        )
    if teacher is not None:
        _match_recorded(explainer, teacher)
    if teacher is not None and not explainer.featurizes:
        _match_features(explainer, teacher, notes)
        if explainer.feature_map is None:
            _borrow_map(explainer, teacher, notes)
        if teacher.series is not None:
            _keep_unmapped(explainer, teacher, notes)
    return name_outputs(Artifacts(explainer, teacher, feature_notes=tuple(notes)))


def name_outputs(artifacts: Artifacts) -> Artifacts:
    """Name the outputs; again after the explainer has learned their number from a first row.

    Raises
    ------
    ArtifactError
        If their number does not fit the model's classes.
    """
    explainer, teacher = artifacts.explainer, artifacts.teacher
    artifacts = replace(artifacts, link=explainer.link, output_notes=())
    if explainer.learns_from_rows and explainer.kind == "opaque":
        return artifacts
    if teacher is not None:
        return _match_outputs(artifacts, explainer, teacher.classes)
    if explainer.task is None:
        return replace(artifacts, labels=_numbered(explainer.n_outputs, explainer.surrogate_classes))
    return replace(_match_outputs(artifacts, explainer, explainer.classes), output_notes=())


def _match_recorded(explainer: Explainer, teacher: Teacher) -> None:
    """What a bundle records of its model against the model that is given."""
    if explainer.task is None:
        return
    for what, recorded, found in (
        ("task", explainer.task, teacher.task),
        ("classes", _typed(explainer.classes), _typed(teacher.classes)),
    ):
        if recorded != found:
            shown = [
                value if isinstance(value, str) else ", ".join(label for _, label in value or ()) or "none"
                for value in (recorded, found)
            ]
            raise ArtifactError(
                f"The bundle was exported for another model: its {what} {'are' if what == 'classes' else 'is'} "
                f"{shown[0]}, and the model's {shown[1]}. Pass the model that it was exported with, or the bundle that "
                "was exported with this very model."
            )


def _typed(classes: tuple[Any, ...] | None) -> tuple[tuple[str, str], ...] | None:
    """Labels with their types, so that 1, True and '1' differ."""
    return None if classes is None else tuple((type(label).__name__, repr(label)) for label in classes)


def _match_features(explainer: Explainer, teacher: Teacher, notes: list[str]) -> None:
    model = teacher.engineered_features
    known = {column.name for column in teacher.columns}
    known |= set() if teacher.series is None else {past_targets(known)}
    if model is not None and explainer.engineered_features:
        if len(model) != len(explainer.engineered_features):
            raise ArtifactError(
                f"The model makes {len(model)} engineered features, but the explainer explains "
                f"{len(explainer.engineered_features)}. They do not belong together: pass the explainer that was made "
                "for this very model."
            )
        wrong = [i for i, name in enumerate(model) if name != explainer.engineered_features[i]]
        if wrong and teacher.kind.startswith("AutoML"):
            first = wrong[0]
            raise ArtifactError(
                f"{len(wrong)} of {len(model)} engineered features have another name in the model than in the "
                f"explainer (number {first}: '{model[first]}' and '{explainer.engineered_features[first]}'). They do "
                "not belong together: pass the explainer that was made for this very model."
            )
        if wrong and sorted(model) == sorted(explainer.engineered_features):
            raise ArtifactError(
                f"The explainer has the model's engineered features in another order (number {wrong[0]}: "
                f"'{model[wrong[0]]}' in the model, '{explainer.engineered_features[wrong[0]]}' in the explainer). "
                "They do not belong together: pass the explainer that was made for this very model."
            )
        if wrong and all(name.startswith("Column_") for name in explainer.engineered_features):
            explainer.engineered_features = model
            notes.append("the explainer numbers its features: they bear the names that the model's featurizer gives")
        elif wrong:
            notes.append(
                f"{len(wrong)} engineered features have another name in the explainer than in the model's featurizer "
                f"(number {wrong[0]}: '{explainer.engineered_features[wrong[0]]}' and '{model[wrong[0]]}'): they are "
                "matched by position"
            )
    elif model is not None:
        explainer.engineered_features = model
        explainer.used = np.arange(len(model))
    if strange := [name for name in explainer.raw_features or () if name not in known]:
        raise ArtifactError(
            f"The explainer's raw features {', '.join(map(repr, strange[:5]))} are not among the {len(known)} input "
            "columns of the model. They do not belong together: pass the explainer that was made for this very model."
        )


def _borrow_map(explainer: Explainer, teacher: Teacher, notes: list[str]) -> None:
    raw = explainer.raw_features or tuple(column.name for column in teacher.columns)
    weights = teacher.feature_map(raw)
    if weights is not None and weights.shape[1] == len(explainer.engineered_features):
        explainer.raw_features = raw
        explainer.set_feature_map(combine_maps([weights]))
        notes.append("the explainer has no feature map: the raw importances use the one of the model's featurizer")


def past_targets(columns: Iterable[str]) -> str:
    """Name of the raw feature that stands for past targets: one that no column has."""
    name, taken = PAST_TARGETS, set(columns)
    while name in taken:
        name += "_"
    return name


def _keep_unmapped(explainer: Explainer, teacher: Teacher, notes: list[str]) -> None:
    """Give features that come from no raw column one of their own: raw importances then add up to engineered ones."""
    weights, name = explainer.feature_map, past_targets(column.name for column in teacher.columns)
    if weights is None or name in (explainer.raw_features or ()):
        return
    lost = np.asarray(weights.sum(axis=0)).ravel() == 0
    if not lost.any():
        return
    explainer.raw_features = (*(explainer.raw_features or ()), name)
    explainer.set_feature_map(sp.vstack([weights, sp.csr_matrix(lost.astype(np.float64))], format="csr"))
    notes.append(
        f"{int(lost.sum())} engineered features come from no raw column, but from past values of the target (lags, "
        f"windows, whether it was missing): their importance is that of the raw feature '{name}'"
    )


def _match_outputs(result: Artifacts, explainer: Explainer, classes: tuple[Any, ...] | None) -> Artifacts:
    outputs = explainer.n_outputs
    if classes is None:
        if outputs > 1:
            raise ArtifactError(
                f"The model is a regression, but the explainer has {outputs} outputs. They do not belong together: "
                "pass the explainer that was made for this very model."
            )
        return result
    if outputs == 1:
        if len(classes) > 2 and explainer.kind != "opaque":
            raise ArtifactError(
                f"The model has {len(classes)} classes, but the explainer has one output. They do not belong together: "
                "pass the explainer that was made for this very model."
            )
        if explainer.link == "identity" and len(classes) == 2:
            note = "the surrogate's margin is taken as the logit of the second class (fidelity)"
            return replace(result, surrogate_labels=classes, link="sigmoid", output_notes=(note,))
        return replace(result, surrogate_labels=classes)
    surrogate = explainer.surrogate_classes
    if outputs == len(classes):
        return replace(result, labels=_distinct(classes), surrogate_labels=classes)
    if surrogate is not None and all(isinstance(i, int) and 0 <= i < len(classes) for i in surrogate):
        seen = tuple(classes[i] for i in surrogate)
        note = f"the surrogate knows {len(seen)} of the model's {len(classes)} classes: the others have no output"
        return replace(result, labels=_distinct(seen), surrogate_labels=seen, output_notes=(note,))
    raise ArtifactError(
        f"The model has {len(classes)} classes, but the explainer has {outputs} outputs. They do not belong together: "
        "pass the explainer that was made for this very model."
    )


def _numbered(outputs: int, classes: tuple[Any, ...] | None) -> tuple[str, ...] | None:
    if outputs == 1:
        return None
    return _distinct(classes if classes is not None and len(classes) == outputs else tuple(range(outputs)))


def _distinct(classes: tuple[Any, ...]) -> tuple[str, ...]:
    labels = tuple(str(label) for label in classes)
    if len(set(labels)) < len(labels):
        raise ArtifactError(
            f"Two class labels read the same as text ({', '.join(labels)}), so their tables would overwrite each "
            "other. Train the model with distinct labels."
        )
    return labels
