"""The plan: input, partitions, tables and fingerprints, fixed before any work."""

import base64
import dataclasses
import difflib
import hashlib
import itertools
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts
from batch_explain.errors import InputError, OptionError, mask_secrets
from batch_explain.options import RunOptions
from batch_explain.storage.atomic import new_file, sha256_of, write_json
from batch_explain.storage.dataset import InputFile, dataset_root, hive_keys, hive_types
from batch_explain.storage.filesystems import Location
from batch_explain.storage.output import PLAN_FILE, RUN_ID_FILE
from batch_explain.storage.tables import SOURCE_IDS, TableSpec, importance_folder
from batch_explain.teachers.columns import Column, conversion_note, kind_of, type_problem

VERSION = 1

# Features that no tree splits on are written as columns of zeros while there are at most so many of them: the table's
# schema then stays the same when a retrained surrogate uses others. Beyond it they are only named in run.json.
MAX_ZERO_COLUMNS = 1_000

# A batch is made smaller than --batch-rows where its importances would take more memory than this.
MAX_BATCH_BYTES = 256 << 20

_STORED = {"float64": pa.float64(), "float32": pa.float32()}


@dataclass(frozen=True)
class Partition:
    """Contiguous rows of one file: one task, one part of each table."""

    index: int
    file: InputFile
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Everything that a task must know beside the artifacts.

    Parameters
    ----------
    options : RunOptions
    files : tuple of InputFile
        All files of the dataset, sorted by path; their schemas are not kept.
    partitions : tuple of Partition
    tables : dict
        Level (``predictions``, ``engineered``, ``raw``) -> its tables, one an output.
    ids : tuple of str
        Id columns as they are in the input; empty: ``source_file`` and ``source_row``.
    hive : dict
        Hive key -> type.
    model_columns : tuple of str
        File columns that the model needs, in the model's order.
    written, used : ndarray of int
        Positions of the engineered features that have a column, and of those that can be other than zero.
    batch_rows : int
        Rows of a batch: ``--batch-rows``, or fewer where rows are wide.
    learned : dict
        What the explainer learned from the first row.
    run_id : str
        Another one for every run, so that no task, receipt or part of an earlier run is taken for this one's.
    artifacts : dict
        ``model`` and ``explainer`` -> SHA-256.
    decisions : tuple of str
        What was decided on the user's behalf.
    """

    options: RunOptions
    files: tuple[InputFile, ...]
    partitions: tuple[Partition, ...]
    tables: dict[str, tuple[TableSpec, ...]]
    ids: tuple[str, ...]
    hive: dict[str, pa.DataType]
    model_columns: tuple[str, ...]
    written: np.ndarray
    used: np.ndarray
    batch_rows: int
    learned: dict[str, Any]
    run_id: str
    artifacts: dict[str, str]
    decisions: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows to explain."""
        return sum(partition.rows for partition in self.partitions)

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
        place = {file.path: number for number, file in enumerate(self.files)}
        return {
            "version": VERSION,
            "rows": self.rows,
            "options": options,
            "artifacts": self.artifacts,
            "decisions": list(self.decisions),
            "ids": list(self.ids),
            "model_columns": list(self.model_columns),
            "hive": {key: str(kind) for key, kind in self.hive.items()},
            "written": self.written.tolist(),
            "used": self.used.tolist(),
            "batch_rows": self.batch_rows,
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
            "files": [
                {
                    "path": file.path,
                    "bytes": file.bytes,
                    "rows": file.rows,
                    "row_groups": list(file.row_groups),
                    "fingerprint": file.fingerprint,
                }
                for file in self.files
            ],
            "partitions": [[place[part.file.path], part.start, part.stop] for part in self.partitions],
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
                f"{VERSION}. Plan the run again with this program."
            )
        root = dataset_root(options.input)
        files = tuple(
            InputFile(
                **{**file, "row_groups": tuple(file["row_groups"])},
                url=root.join(file["path"]).url,
                hive=hive_keys(file["path"]),
            )
            for file in content["files"]
        )
        return cls(
            options=options,
            files=files,
            partitions=tuple(
                Partition(index, files[file], start, stop)
                for index, (file, start, stop) in enumerate(content["partitions"])
            ),
            tables={
                level: tuple(
                    TableSpec(spec["folder"], pa.ipc.read_schema(pa.py_buffer(base64.b64decode(spec["schema"]))))
                    for spec in specs
                )
                for level, specs in content["tables"].items()
            },
            ids=tuple(content["ids"]),
            hive={key: pa.type_for_alias(kind) for key, kind in content["hive"].items()},
            model_columns=tuple(content["model_columns"]),
            written=np.array(content["written"], dtype=np.int64),
            used=np.array(content["used"], dtype=np.int64),
            batch_rows=content["batch_rows"],
            learned=content["learned"],
            run_id=content["run_id"],
            artifacts=content["artifacts"],
            decisions=tuple(content["decisions"]),
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
    return Plan.from_json(json.loads(Location(options.output).join(PLAN_FILE).read_bytes()), options)


def make_plan(
    options: RunOptions, files: Sequence[InputFile], artifacts: Artifacts, prediction: pa.DataType | None
) -> Plan:
    """Check the dataset against the artifacts and cut it into partitions.

    Parameters
    ----------
    options : RunOptions
    files : sequence of InputFile
        From :func:`batch_explain.storage.dataset.discover`.
    artifacts : Artifacts
    prediction : pyarrow.DataType or None
        Type of the prediction column. None: a plan without tables, for a look at the first row, after which the type
        and the outputs are known.

    Raises
    ------
    InputError, OptionError
        If columns are missing, doubled or of the wrong type, or ids collide with features.
    """
    keys = hive_types(list(files))
    decisions = [*artifacts.notes]
    ids = id_fields(options, files, keys)
    decisions += check_columns(options, files, artifacts.columns, keys, engineered=artifacts.takes_engineered)
    levels = artifacts.tables(options.outputs)
    if options.outputs is None:
        decisions += [
            f"{level} is not written: it cannot be made" for level in ("predictions", "raw") if level not in levels
        ]
    written = _written_columns(artifacts)
    zeros = len(artifacts.explainer.engineered_features) - len(written)
    if zeros and "engineered" in levels:
        decisions.append(
            f"{zeros} engineered features that the surrogate cannot use are not written: they are 0 everywhere"
        )
    batch_rows = min(options.batch_rows, max(1, MAX_BATCH_BYTES // artifacts.row_bytes))
    if batch_rows < options.batch_rows:
        decisions.append(f"batches have {batch_rows} rows instead of {options.batch_rows}, because the rows are wide")
    if options.limit is not None:
        decisions.append(f"a trial: only the first {options.limit} rows are explained")
    if not options.id_columns:
        decisions.append("rows are identified by source_file and source_row, because no --id-columns were given")
    return Plan(
        options=options,
        files=tuple(files),
        partitions=tuple(cut(files, options.partition_rows, options.limit)),
        tables={}
        if prediction is None
        else _tables(artifacts, levels, ids, written, prediction=prediction, stored=_STORED[options.dtype]),
        ids=options.id_columns,
        hive=keys,
        model_columns=tuple(dict(options.columns_map).get(c.name, c.name) for c in artifacts.columns),
        written=written,
        used=artifacts.explainer.used,
        batch_rows=batch_rows,
        learned=artifacts.explainer.learned(),
        run_id=uuid.uuid4().hex,
        artifacts={} if prediction is None else artifact_digests(options),
        decisions=tuple(decisions),
    )


def artifact_digests(options: RunOptions) -> dict[str, str]:
    """``model`` and ``explainer`` -> SHA-256 of the file."""
    given = (("model", options.model), ("explainer", options.explainer))
    return {name: sha256_of(Location(path)) for name, path in given if path is not None}


def cut(files: Sequence[InputFile], partition_rows: int, limit: int | None = None) -> list[Partition]:
    """Cut files into partitions of whole row groups, or of row ranges where a row group is too large.

    An empty dataset gets one partition without rows, so that its tables exist with their columns.
    """
    partitions: list[Partition] = []
    left = sum(file.rows for file in files) if limit is None else limit
    for file in files:
        for start, stop in _ranges(file.row_groups, partition_rows):
            stop = min(stop, start + left)
            if not left:
                return partitions
            if stop > start:
                partitions.append(Partition(len(partitions), file, start, stop))
                left -= stop - start
    return partitions or [Partition(0, files[0], 0, 0)]


def _ranges(row_groups: Sequence[int], largest: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    for rows in row_groups:
        if stop > start and stop + rows - start > largest:
            ranges.append((start, stop))
            start = stop
        stop += rows
        while stop - start > largest:
            ranges.append((start, start + largest))
            start += largest
    if stop > start:
        ranges.append((start, stop))
    return ranges


def id_fields(options: RunOptions, files: Sequence[InputFile], keys: dict[str, pa.DataType]) -> list[pa.Field]:
    """Fields of the id columns, first in every table.

    Raises
    ------
    InputError
        If one is missing from a file, or its type differs between files.
    """
    if not options.id_columns:
        return list(SOURCE_IDS)
    fields = []
    for name in options.id_columns:
        _require(options, files, [name], keys, what="id column")
        types = {keys.get(name) or file.schema.field(name).type for file in files}
        plain = {t.value_type if pa.types.is_dictionary(t) else t for t in types}
        if len(plain) > 1:
            raise InputError(
                f"The id column '{name}' has different types in different files "
                f"({', '.join(sorted(map(str, plain)))}). Write the files with one type, or leave it out of "
                "--id-columns."
            )
        fields.append(pa.field(name, plain.pop()))
    return fields


def check_columns(
    options: RunOptions,
    files: Sequence[InputFile],
    columns: Sequence[Column],
    keys: dict[str, pa.DataType],
    *,
    engineered: bool,
) -> list[str]:
    """Check every file's columns against what the model needs; return the conversions that will be made.

    Raises
    ------
    InputError
        Naming all columns that are missing, doubled or of a type that cannot become the trained one.
    OptionError
        If ``--columns-map`` names a column that the model does not have.
    """
    in_file = dict(options.columns_map)
    if unknown := sorted(set(in_file) - {column.name for column in columns}):
        raise OptionError(
            f"--columns-map names {', '.join(map(repr, unknown))}, which the model does not need. It needs "
            f"{_some([column.name for column in columns])}."
        )
    names = [in_file.get(column.name, column.name) for column in columns]
    _require(options, files, names, keys, what="column that the model needs", engineered=engineered)
    notes: dict[str, None] = {}
    schemas: dict[Any, str] = {}
    for file in files:
        schemas.setdefault(file.schema, file.path)
    kinds: dict[str, tuple[str, str]] = {}
    problems = []
    for schema, path in schemas.items():
        for column, name in zip(columns, names, strict=True):
            found = keys[name] if name in keys else schema.field(name).type
            problem = type_problem(column, found)
            if engineered and kind_of(found) not in ("integer", "float", "bool", "null"):
                problem = f"has type {found}, but engineered features are numbers"
            if problem:
                problems.append(f"'{name}' in {path} {problem}")
                continue
            if note := conversion_note(column, found):
                notes[note] = None
            kind = kind_of(found)
            first_kind, first_path = kinds.setdefault(name, (kind, path))
            if column.dtype is None and not engineered and not _may_mix(kind, first_kind):
                problems.append(f"'{name}' is {first_kind} in {first_path} but {kind} in {path}")
    if problems:
        raise InputError(
            f"{len(problems)} column{'s' * (len(problems) > 1)} cannot become what the model was trained on: "
            f"{'; '.join(problems[:8])}{'; …' * (len(problems) > 8)}. Write the files with the trained types, or point "
            "--columns-map at the right column."
        )
    return list(notes)


def _may_mix(kind: str, other: str) -> bool:
    """Whether files may hold a column in two families where the model does not say what it was trained on."""
    return kind == other or "null" in (kind, other) or {kind, other} == {"integer", "float"}


def _require(
    options: RunOptions,
    files: Sequence[InputFile],
    names: Sequence[str],
    keys: dict[str, pa.DataType],
    *,
    what: str,
    engineered: bool = False,
) -> None:
    for file in files:
        have = file.schema.names
        present = set(have)
        missing = [name for name in names if name not in present and name not in keys]
        if missing:
            close = {name: _closest(name, have) for name in missing[:5]}
            hints = [f"'{name}' may be '{match}'" for name, match in close.items() if match]
            cure = "Add them to the files, or name the file's own column by --columns-map MODEL=FILE."
            if what == "id column":
                cure = "Name columns that the files have by --id-columns."
            elif engineered:
                cure = "Without --model the input must hold the engineered features by name: pass the --model too."
            raise InputError(
                f"{len(missing)} {what if len(missing) == 1 else what.replace('column', 'columns', 1)} "
                f"{'is' if len(missing) == 1 else 'are'} missing from {file.path}: {_some(missing)}"
                f"{' (' + ', '.join(hints) + ')' if hints else ''}. {cure}"
            )
        counted = [name for name in names if have.count(name) > 1] if len(present) < len(have) else []
        if counted:
            raise InputError(
                f"{file.path} has more than one column named {_some(counted)}. Which one is meant cannot be known: "
                "write the file with distinct names."
            )
        if both := [name for name in names if name in keys and name in present]:
            raise InputError(
                f"{_some(both)} is a column of {file.path} and a key of its folder as well. Remove one of the two."
            )
        if keyless := [name for name in names if name in keys and name not in dict(file.hive)]:
            raise InputError(
                f"{file.path} does not lie in a folder '{keyless[0]}=…', as other files of the dataset do. Move it "
                "there, or leave it out by a glob."
            )


def _closest(name: str, have: Sequence[str]) -> str | None:
    folded = {other.casefold().strip(): other for other in have}
    found = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.8)
    return folded[found[0]] if found else None


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(f"'{name}'" for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _written_columns(artifacts: Artifacts) -> np.ndarray:
    features, used = len(artifacts.explainer.engineered_features), artifacts.explainer.used
    return np.arange(features) if features - len(used) <= MAX_ZERO_COLUMNS else used


def _tables(
    artifacts: Artifacts,
    levels: Sequence[str],
    ids: list[pa.Field],
    written: np.ndarray,
    *,
    prediction: pa.DataType,
    stored: pa.DataType,
) -> dict[str, tuple[TableSpec, ...]]:
    explainer, teacher = artifacts.explainer, artifacts.teacher
    classes = None if teacher is None or teacher.classes is None else [str(label) for label in teacher.classes]
    common = {"format_version": VERSION, "task": artifacts.task, "classes": classes}
    features = {
        "engineered": [explainer.engineered_features[i] for i in written],
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
        _refuse_collisions(ids, features[level], level)
        values = [pa.field(name, stored) for name in features[level]]
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
            f"The id column{'s' * (len(both) > 1)} {_some(both)} would collide with a column of the same name in the "
            f"{level} table. Use another id column, or leave --id-columns out: rows are then identified by source_file "
            "and source_row."
        )
    repeated = [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1]
    if repeated:
        raise OptionError(
            f"The {level} table would have two columns named {_some(repeated)}: the explainer's feature names repeat. "
            f"Leave '{level}' out of --outputs, or make the explainer with distinct names."
        )


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
