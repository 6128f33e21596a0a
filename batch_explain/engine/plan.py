"""The plan: input, partitions, tables and fingerprints, fixed before any work."""

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import platform
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.background import background_digest
from batch_explain.engine.cohorts import decide_cohorts, refuse_two_meanings
from batch_explain.engine.estimate import batch_rows
from batch_explain.engine.features import FEATURES, Origin, origin_of
from batch_explain.engine.partitions import Partition
from batch_explain.engine.reasons import Reasons, decide_reasons, level_of_reasons
from batch_explain.engine.schema import some_of
from batch_explain.engine.series import SeriesColumns
from batch_explain.engine.series_plan import (
    Division,
    divide,
    partition_from_json,
    partition_to_json,
    series_from_json,
    series_to_json,
)
from batch_explain.engine.sketches import decide_sketches
from batch_explain.errors import OptionError, mask_secrets
from batch_explain.explainers.bundle import artifact_digest
from batch_explain.explainers.folders import explainer_in, model_in
from batch_explain.options import REASONS, RunOptions
from batch_explain.storage.atomic import new_file, write_json
from batch_explain.storage.dataset import InputFile, hive_types, input_files, types_to_json
from batch_explain.storage.delta import DeltaAddress
from batch_explain.storage.filesystems import Location
from batch_explain.storage.output import PLAN_FILE, RUN_ID_FILE
from batch_explain.storage.tables import TableSpec, importance_folder
from batch_explain.summary import sample
from batch_explain.summary.cohorts import Cohort, by_class
from batch_explain.summary.sketches import Sketch
from batch_explain.summary.tally import Layout

VERSION = 8

_PACKAGES = (
    "batch-explain", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "lightgbm", "dask", "distributed",
    "fsspec", "shap", "interpret-community", "azureml-interpret", "azureml-train-automl-runtime",
)  # fmt: skip

_STORED = {"float64": pa.float64(), "float32": pa.float32()}


@dataclass(frozen=True)
class Plan:
    """Everything that a task must know beside the artifacts.

    Parameters
    ----------
    options : RunOptions
    files : tuple of InputFile
        All files of the dataset, sorted by path; of their schemas, those of text are kept.
    partitions : tuple of Partition
        Of files, or of series where there are any.
    tables : dict
        Level (``predictions``, ``engineered``, ``raw``, ``features``, ``reasons``) -> its tables; importances have
        one an output.
    levels : tuple of str
        The importances (``engineered``, ``raw``) that are computed and summarised.
    series : SeriesColumns or None
        How series are known, for forecasting; None: each row is explained for itself.
    ids : tuple of str
        Id columns as they are in the input; empty: ``source_file`` and ``source_row``. Of series, first those that say
        of which time, series and origin a line is.
    hive : dict
        Hive key -> type.
    model_columns : tuple of str
        File columns that the model needs, in the model's order.
    written, used : ndarray of int
        Positions of the engineered features that have a column, and of those that can be other than zero.
    cohorts : tuple of Cohort
        Columns by whose values rows are summarised apart.
    sketches : tuple of Sketch
        Distributions of values and predictions that are kept.
    sample_rows : int
        Rows of the sample; 0: there is none.
    reasons : Reasons or None
        What the reasons are; None: there are none.
    batch_rows : int
        Rows of a batch: ``--batch-rows``, or fewer where rows are wide.
    sparse_rows : bool
        Whether engineered rows are sparse: as the featurizer makes them, or made those that the input holds.
    learned : dict
        What the explainer learned from the first row.
    run_id : str
        Another one for every run, so that no task, receipt or part of an earlier run is taken for this one's.
    artifacts : dict
        ``model`` and ``explainer`` -> SHA-256.
    decisions : tuple of str
        What was decided on the user's behalf.
    versions : dict
        Of Python and the packages that values and bytes depend on.
    numbers : tuple of int
        The partitions' own numbers, where a platform brought them one by one; empty: 0, 1, 2 …
    """

    options: RunOptions
    files: tuple[InputFile, ...]
    partitions: tuple[Partition, ...]
    tables: dict[str, tuple[TableSpec, ...]]
    levels: tuple[str, ...]
    series: SeriesColumns | None
    ids: tuple[str, ...]
    hive: dict[str, pa.DataType]
    model_columns: tuple[str, ...]
    written: np.ndarray
    used: np.ndarray
    cohorts: tuple[Cohort, ...]
    sketches: tuple[Sketch, ...]
    sample_rows: int
    reasons: Reasons | None
    batch_rows: int
    sparse_rows: bool
    learned: dict[str, Any]
    run_id: str
    artifacts: dict[str, str]
    decisions: tuple[str, ...]
    versions: dict[str, str]
    numbers: tuple[int, ...] = ()

    def partition(self, number: int) -> Partition:
        """The partition of that number."""
        return self._by_number[number]

    @functools.cached_property
    def _by_number(self) -> dict[int, Partition]:
        return {partition.index: partition for partition in self.partitions}

    @functools.cached_property
    def rows(self) -> int:
        """Rows to explain."""
        return sum(partition.rows for partition in self.partitions)

    @property
    def sampling(self) -> sample.Sampling:
        """Which rows are kept for plots."""
        return sample.Sampling(self.sample_rows, self.rows)

    def layout(self, raw: int, outputs: int) -> Layout:
        """What is summarised, for so many raw features and outputs."""
        return _layout(self.cohorts, self.levels, len(self.used), raw, outputs)

    def position_of_written(self, level: str, features: int) -> np.ndarray:
        """For each feature column of a table, its place among the computed features; -1: identically zero."""
        if level == "raw":
            return np.arange(features)
        place = np.full(max(self.written.max(initial=-1), self.used.max(initial=-1)) + 1, -1)
        place[self.used] = np.arange(len(self.used))
        return np.asarray(place[self.written])

    def to_json(self) -> dict[str, Any]:
        """The stored form, ``_run/plan.json``: no credentials, no schemas of the input."""
        options = {
            key: mask_secrets(value) if isinstance(value, str) else value
            for key, value in dataclasses.asdict(self.options).items()
        }
        return {
            "version": VERSION,
            "rows": self.rows,
            "options": options,
            "artifacts": self.artifacts,
            "decisions": list(self.decisions),
            "versions": self.versions,
            "levels": list(self.levels),
            "series": None if self.series is None else series_to_json(self.series),
            "ids": list(self.ids),
            "model_columns": list(self.model_columns),
            "hive": {key: str(kind) for key, kind in self.hive.items()},
            "written": self.written.tolist(),
            "used": self.used.tolist(),
            "cohorts": [cohort.to_json() for cohort in self.cohorts],
            "sketches": [sketch.to_json() for sketch in self.sketches],
            "sample_rows": self.sample_rows,
            "reasons": None if self.reasons is None else self.reasons.to_json(),
            "batch_rows": self.batch_rows,
            "sparse_rows": self.sparse_rows,
            "learned": self.learned,
            "run_id": self.run_id,
            "tables": {
                level: [
                    {
                        "folder": spec.folder,
                        "schema": base64.b64encode(spec.schema.serialize().to_pybytes()).decode(),
                    }
                    for spec in specs
                ]
                for level, specs in self.tables.items()
            },
            "files": [file.to_json() for file in self.files],
            "types": types_to_json(self.files),
            "partitions": [partition_to_json(part, self.files, self.series) for part in self.partitions],
            "numbers": list(self.numbers),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], options: RunOptions) -> "Plan":
        """Read the stored form back.

        Parameters
        ----------
        content : dict
        options : RunOptions
            The run's options, with the credentials that the stored form leaves out.

        Raises
        ------
        OptionError
            If the plan has another format version.
        """
        if content["version"] != VERSION:
            raise OptionError(
                f"The plan in {Location(options.output)} has format version {content['version']}; this program reads "
                f"{VERSION}. Finish the run with the program that began it, or start anew with --overwrite."
            )
        files, numbers = (
            input_files(content["files"], options.input, content["types"], options.where),
            tuple(content.get("numbers", ())),
        )
        series = series_from_json(content["series"], options)
        return cls(
            options=options,
            files=files,
            partitions=tuple(
                partition_from_json(index, found, files, series)
                for index, found in zip(
                    numbers or range(len(content["partitions"])), content["partitions"], strict=True
                )
            ),
            tables={
                level: tuple(
                    TableSpec(spec["folder"], pa.ipc.read_schema(pa.py_buffer(base64.b64decode(spec["schema"]))))
                    for spec in specs
                )
                for level, specs in content["tables"].items()
            },
            levels=tuple(content["levels"]),
            series=series,
            ids=tuple(content["ids"]),
            hive={key: pa.type_for_alias(kind) for key, kind in content["hive"].items()},
            model_columns=tuple(content["model_columns"]),
            written=np.array(content["written"], dtype=np.int64),
            used=np.array(content["used"], dtype=np.int64),
            cohorts=tuple(map(Cohort.from_json, content["cohorts"])),
            sketches=tuple(map(Sketch.from_json, content["sketches"])),
            sample_rows=content["sample_rows"],
            reasons=Reasons.from_json(content["reasons"]),
            batch_rows=content["batch_rows"],
            sparse_rows=content["sparse_rows"],
            learned=content["learned"],
            run_id=content["run_id"],
            artifacts=content["artifacts"],
            decisions=tuple(content["decisions"]),
            versions=content["versions"],
            numbers=numbers,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the stored form."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def write_plan(plan: Plan) -> None:
    """Store the plan in the run's folder, and the run's id, which tasks compare before they finish."""
    output = Location(plan.options.output)
    write_json(output, PLAN_FILE, plan.to_json())
    with new_file(output, RUN_ID_FILE) as stream:
        stream.write(plan.run_id.encode())


def read_plan(options: RunOptions) -> Plan:
    """Read the plan of the run in ``options.output``."""
    return Plan.from_json(read_plan_json(Location(options.output)), options)


def read_plan_json(output: Location) -> dict[str, Any]:
    """Read the stored form of the plan of the run in a folder."""
    content: dict[str, Any] = json.loads(output.join(PLAN_FILE).read_bytes())
    return content


def division_of(options: RunOptions, files: Sequence[InputFile], artifacts: Artifacts) -> Division:
    """Check the dataset's columns against the artifacts, and cut it into partitions.

    Parameters
    ----------
    options : RunOptions
    files : sequence of InputFile
        From :func:`batch_explain.storage.dataset.discover`.
    artifacts : Artifacts

    Raises
    ------
    InputError, OptionError
        If columns are missing, doubled or of the wrong type.
    """
    readable = [file for file in files if file.problem is None]
    origin = origin_of(readable) if artifacts.takes_engineered else Origin((), False)
    return divide(options, readable, artifacts, hive_types(readable), options.id_columns or origin.ids)


def make_plan(
    options: RunOptions,
    files: Sequence[InputFile],
    artifacts: Artifacts,
    division: Division,
    prediction: pa.DataType | None,
    *,
    sparse_rows: bool = False,
) -> Plan:
    """Decide all that tasks must know.

    Parameters
    ----------
    options : RunOptions
    files : sequence of InputFile
        From :func:`batch_explain.storage.dataset.discover`.
    artifacts : Artifacts
    division : Division
        From :func:`division_of`.
    prediction : pyarrow.DataType or None
        Type of the prediction column. None: a plan without tables, for a look at the first row, after which the type
        and the outputs are known.
    sparse_rows : bool
        Whether the featurizer made a sparse row of the first one.

    Raises
    ------
    OptionError
        If ids collide with features.
    """
    readable = [file for file in files if file.problem is None]
    keys = hive_types(readable)
    decisions = [*artifacts.notes]
    if options.trust:
        decisions.append(f"trusted in the pickles, beside what is on the list: {', '.join(options.trust)}")
    origin = origin_of(readable) if artifacts.takes_engineered else Origin((), sparse_rows)
    id_columns = options.id_columns or origin.ids
    decisions += division.decisions
    if (table := DeltaAddress.parse(options.input)) is not None:
        decisions.append(f"the Delta table is read at version {table.version}")
    decisions += _inferred(readable) + _not_in_the_input(artifacts, readable)
    tables = artifacts.tables(options.outputs)
    levels = artifacts.levels(tables, level_of_reasons(options, artifacts))
    if options.outputs is None:
        decisions += [
            f"{level} is not written: it cannot be made" for level in ("predictions", "raw") if level not in tables
        ]
    if "engineered" not in levels:
        decisions.append("engineered importances are neither computed nor summarised: --outputs does not name them")
    written = artifacts.written
    zeros = len(artifacts.explainer.engineered_features) - len(written)
    if zeros and "engineered" in tables:
        decisions.append(
            f"{zeros} engineered features that the surrogate cannot use are not written: they are 0 everywhere"
        )
    of_a_batch = batch_rows(options, artifacts)
    if of_a_batch < options.batch_rows:
        why = "the rows are wide" if options.memory_limit is None else "memory is limited or the rows are wide"
        decisions.append(f"batches have {of_a_batch} rows instead of {options.batch_rows}, because {why}")
    decisions += [f"{file.path} is left out: it cannot be read ({file.problem})" for file in files if file.problem]
    decisions += _filtered(options, readable)
    if options.limit is not None:
        whole = "" if division.series is None else " (of whole series, but at least one of these)"
        filtered = "" if options.filter is None else ", or left out by the filter"
        decisions.append(f"a trial: only the first {options.limit} rows are explained{filtered}{whole}")
    cohorts: tuple[Cohort, ...] = ()
    sketches: tuple[Sketch, ...] = ()
    sample_rows = 0
    reasons = None
    if prediction is not None:
        reasons, noted_of_reasons = decide_reasons(options, artifacts, readable, keys)
        cohorts, noted = _cohorts(options, readable, keys, artifacts, levels)
        sample_rows, noted_too = _sample_rows(options, artifacts)
        sketches, left_out = decide_sketches(
            artifacts,
            readable,
            keys,
            dict(options.columns_map),
            limit=options.limit,
            row_values=not options.no_row_values,
        )
        decisions += noted_of_reasons + noted + noted_too + left_out
    if not id_columns and division.series is None:
        decisions.append("rows are identified by source_file and source_row, because no --id-columns were given")
    elif id_columns and not options.id_columns:
        decisions.append(f"rows are identified by {', '.join(id_columns)}, as in the run that wrote the features")
    return Plan(
        options=options,
        files=tuple(files),
        partitions=division.partitions,
        tables={}
        if prediction is None
        else _tables(
            artifacts,
            tables,
            division.ids,
            written,
            origin,
            reasons,
            prediction=prediction,
            stored=_STORED[options.dtype],
        ),
        levels=levels,
        series=division.series,
        ids=id_columns if division.series is None else (*division.series.keys, *id_columns),
        hive=keys,
        model_columns=tuple(dict(options.columns_map).get(c.name, c.name) for c in artifacts.columns),
        written=written,
        used=artifacts.explainer.used,
        cohorts=cohorts,
        sketches=sketches,
        sample_rows=sample_rows,
        reasons=reasons,
        batch_rows=of_a_batch,
        sparse_rows=origin.sparse,
        learned=artifacts.explainer.learned(),
        run_id=uuid.uuid4().hex,
        artifacts={} if prediction is None else artifact_digests(options),
        decisions=tuple(decisions),
        versions=versions(),
    )


def artifact_digests(options: RunOptions) -> dict[str, str]:
    """``model``, ``explainer`` and ``feature map``, those that were given -> SHA-256 of the file or bundle."""
    found = {}
    if options.model is not None:
        found["model"] = found["explainer"] = artifact_digest(model_in(Location(options.model)))  # maybe its own
    if options.explainer is not None:
        found["explainer"] = artifact_digest(explainer_in(Location(options.explainer)))
    if options.feature_map is not None:
        found["feature map"] = artifact_digest(Location(options.feature_map))
    if options.background is not None:
        found["background"] = background_digest(options.background)
    return found


def _filtered(options: RunOptions, files: Sequence[InputFile]) -> list[str]:
    """What the filter left out before any row is read."""
    if options.filter is None:
        return []
    groups, of = sum(len(file.skipped) for file in files), sum(len(file.row_groups) for file in files)
    rows = sum(file.rows_skipped for file in files)
    return [
        f"only rows for which {options.filter} are explained: {groups} of {of} row groups, with {rows} rows, are not "
        "read, because their statistics say that they hold none"
    ]


def _inferred(files: Sequence[InputFile]) -> list[str]:
    """That types were inferred, where the files do not tell them."""
    if not files or not files[0].format.types_are_inferred:
        return []
    moments = sorted({found.name for file in files for found in file.schema if pa.types.is_timestamp(found.type)})
    noted = f"; {some_of(moments)} held dates and times alone, and were read as such" if moments else ""
    return [f"{files[0].format.name} does not tell types: those that fit all rows of all files were taken{noted}"]


def _not_in_the_input(artifacts: Artifacts, files: Sequence[InputFile]) -> list[str]:
    """Engineered features that the input need not hold, because the surrogate cannot use them, and does not."""
    if not artifacts.takes_engineered:
        return []
    needed, names = set(artifacts.features.tolist()), artifacts.explainer.engineered_features
    unused = {name for i, name in enumerate(names) if i not in needed}
    absent = set().union(*(unused.difference(schema.names) for schema in {file.schema for file in files}))
    if not absent:
        return []
    return [
        f"{len(absent)} engineered features are not in the input: the surrogate cannot use them, so that their "
        "importance is 0 whatever they are"
    ]


def _cohorts(
    options: RunOptions,
    files: Sequence[InputFile],
    keys: dict[str, pa.DataType],
    artifacts: Artifacts,
    levels: Sequence[str],
) -> tuple[tuple[Cohort, ...], list[str]]:
    """The cohorts asked for, and the predicted class where there is one."""
    cohorts, decisions = decide_cohorts(options.cohort, files, keys, options.limit)
    explainer, teacher = artifacts.explainer, artifacts.teacher
    if teacher is not None and teacher.classes is not None:
        refuse_two_meanings(cohorts)
        if (predicted := by_class(teacher.classes)) is not None:
            cohorts = (*cohorts, predicted)
        else:
            decisions.append(f"no summaries by predicted class: there are {len(teacher.classes)} classes")
    layout = _layout(cohorts, levels, len(explainer.used), len(explainer.raw_features or ()), explainer.n_outputs)
    return cohorts, decisions + layout.decisions()


def _layout(cohorts: tuple[Cohort, ...], levels: Sequence[str], used: int, raw: int, outputs: int) -> Layout:
    sizes = {"engineered": used, "raw": raw}
    return Layout.of(cohorts, {level: sizes[level] for level in levels}, outputs)


def _sample_rows(options: RunOptions, artifacts: Artifacts) -> tuple[int, list[str]]:
    """Size of the sample: fewer rows than asked for where they are wide."""
    explainer = artifacts.explainer
    features = len(explainer.used) + len(explainer.raw_features or ())
    cells = explainer.n_outputs * (features + len(artifacts.columns))
    rows = sample.cut(options.sample_rows, cells * artifacts.lines_of_a_row)
    if rows == options.sample_rows:
        return rows, []
    return rows, [f"the sample has {rows} rows instead of {options.sample_rows}, because the rows are wide"]


def _tables(
    artifacts: Artifacts,
    levels: Sequence[str],
    ids: list[pa.Field],
    written: np.ndarray,
    origin: Origin,
    reasons: Reasons | None,
    *,
    prediction: pa.DataType,
    stored: pa.DataType,
) -> dict[str, tuple[TableSpec, ...]]:
    explainer, teacher = artifacts.explainer, artifacts.teacher
    classes = None if artifacts.classes is None else [str(label) for label in artifacts.classes]
    common = {"format_version": VERSION, "task": artifacts.task, "classes": classes}
    features = {
        "engineered": [explainer.engineered_features[i] for i in written],
        FEATURES: [explainer.engineered_features[i] for i in artifacts.features],
        "raw": list(explainer.raw_features or ()),
    }
    tables: dict[str, tuple[TableSpec, ...]] = {}
    for level in levels:
        if level == "predictions":
            values = [pa.field("prediction", prediction)]
            if teacher is not None and teacher.has_probabilities:
                values += [pa.field(f"probability_{label}", pa.float64()) for label in classes or ()]
            _refuse_collisions(ids, [value.name for value in values], level)
            tables[level] = (TableSpec.create(level, [*ids, *values], {**common, "table": level}),)
            continue
        if level == REASONS:
            assert reasons is not None
            _refuse_collisions(ids, [value.name for value in reasons.fields], level)
            about = {"level": reasons.level, "for": "predicted" if reasons.predicted else "all"}
            tables[level] = (TableSpec.create(level, [*ids, *reasons.fields], {**common, "table": level, **about}),)
            continue
        _refuse_collisions(ids, features[level], level)
        if level == FEATURES:
            made = {"ids": [field.name for field in ids], "sparse": origin.sparse, "features": features[level]}
            values = [pa.field(name, pa.float64()) for name in features[level]]
            tables[level] = (TableSpec.create(level, [*ids, *values], {**common, "table": level, **made}),)
            continue
        # never null: without levels of nullability, a third of the time to write goes
        values = [pa.field(name, stored, nullable=False) for name in features[level]]
        tables[level] = tuple(
            TableSpec.create(
                importance_folder(level, label),
                [*ids, *values],
                {
                    **common,
                    "table": level,
                    "output": label,
                    "expected_value": None if np.isnan(expected) else float(expected),
                    "features": features[level],
                    "feature_map_sha256": map_digest(explainer.feature_map),
                },
            )
            for label, expected in zip(artifacts.labels or (None,), explainer.expected_values, strict=True)
        )
    return tables


def _refuse_collisions(ids: list[pa.Field], names: Sequence[str], level: str) -> None:
    columns = [field.name for field in ids]
    if both := [name for name in columns if name in set(names)]:
        raise OptionError(
            f"The id column{'s' * (len(both) > 1)} {some_of(both)} would collide with a column of the same name in the "
            f"{level} table. Use another id column, or leave --id-columns out: rows are identified without it."
        )
    repeated = [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1]
    if repeated:
        raise OptionError(
            f"The {level} table would have two columns named {some_of(repeated)}: the explainer's feature names "
            f"repeat. Leave '{level}' out of --outputs, or make the explainer with distinct names."
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that values and bytes depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    """Looked up once a process: it takes 40 ms."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def changed_versions(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs between two answers of :func:`versions`, a line each."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name} {now.get(name, 'none')} after {before.get(name, 'none')}" for name in names]


def map_digest(weights: Any) -> str | None:
    """SHA-256 over a feature map's non-zero entries."""
    if weights is None:
        return None
    entries = weights.tocoo()
    order = np.lexsort((entries.col, entries.row))
    digest = hashlib.sha256(repr(weights.shape).encode())
    for array, kind in ((entries.row, "<i8"), (entries.col, "<i8"), (entries.data, "<f8")):
        digest.update(np.ascontiguousarray(array[order].astype(kind)).tobytes())
    return digest.hexdigest()
