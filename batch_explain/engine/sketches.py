"""What is sketched of the features' values and of the predictions: decided before any task, counted by each."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts, Batch
from batch_explain.engine.cohorts import ranges_to_read
from batch_explain.engine.schema import some_of
from batch_explain.errors import UnreadableFileError
from batch_explain.storage.dataset import InputFile, hive_value
from batch_explain.storage.reading import read_batches
from batch_explain.summary.cohorts import count_labels, most_frequent
from batch_explain.summary.sketches import (
    CATEGORY,
    LOG,
    LONGEST_CATEGORY,
    MAX_CATEGORIES,
    MAX_FEATURES,
    PREDICTION,
    VALUE,
    WEEK,
    Sketch,
    SketchTally,
)
from batch_explain.teachers.columns import Column, as_numbers, as_weeks, kind_of

LOOKED_AT = 100_000  # rows, for the categories that have counts of their own
_BATCH_ROWS = 10_000
_THREADS = 8
_SCALES = {"f": LOG, "i": LOG, "u": LOG, "M": WEEK, "b": CATEGORY, "O": CATEGORY}
_OF_FILES = ((LOG, {"integer", "float"}), (WEEK, {"date", "datetime"}), (CATEGORY, {"text", "bool"}))


def decide_sketches(
    artifacts: Artifacts,
    files: Sequence[InputFile],
    keys: dict[str, pa.DataType],
    names: dict[str, str],
    *,
    limit: int | None,
    row_values: bool,
) -> tuple[tuple[Sketch, ...], list[str]]:
    """What is sketched beside the importances.

    Parameters
    ----------
    artifacts : Artifacts
    files : sequence of InputFile
        Those that can be read.
    keys : dict
        Hive key -> type.
    names : dict
        Model column -> file column, where the two differ.
    limit : int or None
        Only the first rows count.
    row_values : bool
        Whether categories, which are values of rows, may be kept.

    Returns
    -------
    sketches : tuple of Sketch
    decisions : list of str
        What is left out.
    """
    columns, decisions = _chosen(artifacts)
    scales = {column.name: _scale(column, artifacts, _kinds(names.get(column.name, column.name), files, keys))
              for column in columns}  # fmt: skip
    if unknown := [name for name, scale in scales.items() if scale is None]:
        decisions.append(f"values of several kinds are not sketched: columns {some_of(unknown)}")
    texts = [name for name, scale in scales.items() if scale == CATEGORY]
    if texts and not row_values:
        decisions.append(f"the values of {len(texts)} columns of categories are not sketched: --no-row-values")
        texts = []
    groups = _categories([names.get(name, name) for name in texts], files, keys, limit) if texts else {}
    level = "engineered" if artifacts.takes_engineered else "raw"
    found = [
        Sketch(VALUE, name, scale, level, groups=groups.get(names.get(name, name), ()))
        for name, scale in scales.items()
        if scale is not None and (scale != CATEGORY or name in texts)
    ]
    return (*found, *_of_predictions(artifacts)), decisions


def count_sketches(
    tally: SketchTally,
    sketches: Sequence[Sketch],
    artifacts: Artifacts,
    rows: pa.Table,
    batch: Batch,
    predicted: pa.Array | None,
) -> None:
    """Add a batch up.

    Parameters
    ----------
    tally : SketchTally
    sketches : sequence of Sketch
    artifacts : Artifacts
    rows : pyarrow.Table
        The model's columns, by its names.
    batch : Batch
    predicted : pyarrow.Array or None
        The prediction, where there is one.
    """
    first = 0
    if artifacts.takes_engineered and isinstance(batch.matrix, np.ndarray):  # values stand first, and are numbers
        names = {column.name: at for column, at in zip(artifacts.columns, artifacts.features, strict=True)}
        at = np.array([names[sketch.feature] for sketch in sketches if sketch.kind == VALUE], dtype=np.int64)
        tally.add_numbers(0, batch.matrix.T[at] if len(at) != len(batch.matrix.T) else batch.matrix.T)
        first = len(at)
    columns = {column.name: column for column in artifacts.columns}
    # probabilities stand in the order of the classes, margins in that of the outputs: so do their sketches
    place: Counter[str] = Counter()
    for number, sketch in enumerate(sketches[first:], first):
        if sketch.kind == VALUE:
            values = rows[sketch.feature]
            if sketch.scale == CATEGORY:
                found = sketch.categories.codes(values)
            else:
                read = as_numbers if sketch.scale == LOG else as_weeks
                found = read(values, columns[sketch.feature])
        elif sketch.feature == "margin":
            found = batch.margins[place["margin"]]
        elif sketch.feature == "class":
            found = sketch.categories.codes(predicted)
        else:
            assert batch.predictions is not None
            if sketch.feature == "probability":
                assert batch.predictions.probabilities is not None
                found = batch.predictions.probabilities[:, place["probability"]]
            else:
                found = batch.predictions.prediction.astype(np.float64)
        place[sketch.feature] += sketch.kind == PREDICTION
        tally.add(number, found)


def _chosen(artifacts: Artifacts) -> tuple[list[Column], list[str]]:
    """The columns whose values are sketched: of many, those first that the surrogate can use."""
    columns, explainer = list(artifacts.columns), artifacts.explainer
    if len(columns) <= MAX_FEATURES:
        return columns, []
    used: set[str] = set()
    if explainer.feature_map is not None and not artifacts.takes_engineered:
        weights = explainer.feature_map.tocsr()[:, explainer.used]
        used = {name for name, some in zip(explainer.raw_features or (), weights.getnnz(axis=1), strict=True) if some}
    first = sorted(range(len(columns)), key=lambda at: (columns[at].name not in used, at))[:MAX_FEATURES]
    return [columns[at] for at in sorted(first)], [
        f"the values of {MAX_FEATURES} of {len(columns)} columns are sketched, those first that the surrogate can use"
    ]


def _of_predictions(artifacts: Artifacts) -> list[Sketch]:
    teacher = artifacts.teacher
    if teacher is None:
        return [
            Sketch(PREDICTION, "margin", LOG, output=label) for label in (artifacts.labels or [None])[:MAX_FEATURES]
        ]
    if teacher.classes is None:
        return [Sketch(PREDICTION, "prediction", LOG)]
    labels = tuple(dict.fromkeys(map(str, teacher.classes)))
    found = [Sketch(PREDICTION, "class", CATEGORY, groups=labels)]
    if teacher.has_probabilities:
        found += [Sketch(PREDICTION, "probability", LOG, output=str(c)) for c in teacher.classes[:MAX_FEATURES]]
    return found


def _kinds(name: str, files: Sequence[InputFile], keys: dict[str, pa.DataType]) -> set[str]:
    """Families of the column's types in the files."""
    if name in keys:
        return {kind_of(keys[name])}
    types = {file.schema.field(name).type for file in files if name in file.schema.names}
    return {kind_of(kind) for kind in types} - {"null"}


def _scale(column: Column, artifacts: Artifacts, kinds: set[str]) -> str | None:
    """How its values are counted: as the model reads them, or else as the files hold them."""
    if artifacts.takes_engineered:
        return LOG
    if column.dtype is not None:
        return _SCALES[column.dtype.kind]
    return next((scale for scale, fitting in _OF_FILES if kinds <= fitting), None)


def _categories(
    names: Sequence[str], files: Sequence[InputFile], keys: dict[str, pa.DataType], limit: int | None
) -> dict[str, tuple[str, ...]]:
    """The most frequent values of each column in the rows that are looked at."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    in_files = [name for name in names if name not in keys]

    def count(of: tuple[InputFile, int, int]) -> dict[str, Counter[str]]:
        file, start, stop = of
        here = {name: Counter[str]() for name in names}
        for name in set(names).difference(in_files):
            here[name].update(count_labels(pa.repeat(hive_value(file, name, keys[name]), stop - start)))
        try:
            batches = read_batches(file, start=start, stop=stop, columns=in_files, batch_rows=_BATCH_ROWS)
            for table in batches if in_files else ():
                for name in in_files:
                    here[name].update(count_labels(table[name]))
        except UnreadableFileError:  # its task will say so
            pass
        return here

    ranges, _ = ranges_to_read(files, limit, LOOKED_AT)
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(count, ranges):
            for name, some in found.items():
                counts[name].update(some)
    return {name: _kept(some) for name, some in counts.items()}


def _kept(counts: Counter[str]) -> tuple[str, ...]:
    short = {label: count for label, count in counts.items() if len(label) <= LONGEST_CATEGORY}
    return tuple(sorted(most_frequent(short, MAX_CATEGORIES)))
