"""The sample's rows as plots need them: ids, predictions, values and importances, each of its own kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_explain.report.text import printable, shortened

LONGEST_VALUE = 300  # characters of a category or an id that a report holds


@dataclass(frozen=True)
class Column:
    """A feature's values.

    Parameters
    ----------
    kind : str
        ``number``, ``date`` or ``category``.
    values : ndarray, shape (row,)
        Numbers (NaN: none); milliseconds since 1970 (NaN: none); or positions in ``labels`` (-1: none).
    labels : tuple of str
        A category's values, the most frequent first; shortened.
    """

    kind: str
    values: np.ndarray
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, array: pa.Array) -> "Column":
        """A column as it was read from a file."""
        kind = array.type
        if pa.types.is_boolean(kind):
            array = pc.if_else(array, "true", "false")
        elif pa.types.is_temporal(kind) and not pa.types.is_time(kind) and not pa.types.is_duration(kind):
            milliseconds = array.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
            return cls("date", _floats(milliseconds))
        elif pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
            return cls("number", _floats(array))
        texts = [None if value is None else shortened(printable(str(value)), LONGEST_VALUE) for value in _list(array)]
        encoded = pa.array(texts, pa.string()).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        labels = encoded.dictionary.to_pylist()
        order = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(labels)), kind="stable")
        place = np.append(np.argsort(order), -1)  # the last one is what -1 finds
        return cls("category", place[codes], tuple(labels[at] for at in order))

    @property
    def missing(self) -> np.ndarray:
        """Whether a row has no value, or none that has a place on an axis, shape (row,)."""
        return self.values < 0 if self.kind == "category" else ~np.isfinite(self.values)

    def shades(self) -> np.ndarray:
        """Where each value stands among all, from 0 (lowest) to 1; NaN for categories and where there is none."""
        found = np.full(len(self.values), np.nan)
        known = np.isfinite(self.values)
        if self.kind != "category" and known.any():
            distinct, inverse, counts = np.unique(self.values[known], return_inverse=True, return_counts=True)
            middle = np.cumsum(counts) - (counts + 1) / 2
            span = middle[-1] - middle[0]
            found[known] = 0.5 if len(distinct) == 1 else ((middle - middle[0]) / span)[inverse.ravel()]
        return found

    def text(self, row: int) -> str:
        """A row's value, as people read it."""
        value = self.values[row]
        if np.isnan(value) or (self.kind == "category" and value < 0):
            return "no value"
        if self.kind == "category":
            return self.labels[int(value)]
        return str(np.datetime64(int(value), "ms")).removesuffix(".000") if self.kind == "date" else f"{value:.9g}"

    def take(self, rows: np.ndarray) -> "Column":
        """Some of the rows."""
        return Column(self.kind, self.values[rows], self.labels)


def _floats(array: pa.Array) -> np.ndarray:
    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _list(array: pa.Array) -> list[Any]:
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return [None if value is None else value.decode("utf-8", "replace") for value in array.to_pylist()]
    found: list[Any] = array.to_pylist()
    return found


@dataclass(frozen=True)
class Rows:
    """Sampled rows.

    Parameters
    ----------
    ids : tuple of str
        What people call each row: its id columns, joined by `` · ``.
    predictions : Column or None
        The model's.
    probabilities : dict
        Class -> ndarray of shape (row,).
    values : dict
        Feature -> Column; empty where the run kept none.
    names : dict
        Level -> its features that can be other than 0.
    importances : dict
        Level -> ndarray, shape (output, feature, row).
    expected : ndarray, shape (output,)
        NaN where not known.
    """

    ids: tuple[str, ...]
    predictions: Column | None
    probabilities: dict[str, np.ndarray]
    values: dict[str, Column]
    names: dict[str, tuple[str, ...]]
    importances: dict[str, np.ndarray]
    expected: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, info: Mapping[str, Any], table: pa.Table | None) -> "Rows | None":
        """The rows of ``summary/sample.parquet`` of the run that ``run.json`` describes; None where there are none."""
        if table is None or not table.num_rows:
            return None
        outputs = len(info["outputs"] or [None])
        count = table.num_rows // outputs
        table = table.combine_chunks()
        firsts = pa.array(np.arange(count) * outputs)
        ids = [_texts(table[name].take(firsts)) for name in info["ids"]]
        place = table.column_names.index("source_row") + 1
        names: dict[str, list[str]] = {"engineered": [], "raw": []}
        values, predicted, importances = {}, {}, {}
        for at, name in enumerate(table.column_names[place:], place):
            prefix, _, feature = name.partition(".")
            if (
                prefix in names
                and pa.types.is_floating(table.schema.field(at).type)
                and feature in _known(info, prefix)
            ):
                names[prefix].append(feature)
                importances[prefix, feature] = table.column(at).to_numpy().reshape(count, outputs).T
            elif name.startswith("value."):
                values[feature] = Column.of(_array(table.column(at).take(firsts)))
            else:
                predicted[name] = Column.of(_array(table.column(at).take(firsts)))
        return cls(
            ids=tuple(" · ".join(parts) for parts in zip(*ids, strict=True)),
            predictions=predicted.pop("prediction", None),
            probabilities={
                name.removeprefix("probability_"): column.values
                for name, column in predicted.items()
                if name.startswith("probability_")
            },
            values=values,
            names={level: tuple(found) for level, found in names.items() if found},
            importances={
                level: np.stack([importances[level, name] for name in found], axis=1)
                for level, found in names.items()
                if found
            },
            expected=np.array([np.nan if value is None else value for value in info["expected_values"]], dtype=float),
        )

    def margins(self, level: str) -> np.ndarray:
        """What each row's importances and the expected value add up to, shape (output, row)."""
        base = np.nan_to_num(self.expected)[:, None]
        return np.asarray(base + self.importances[level].sum(axis=1))

    def take(self, rows: np.ndarray) -> "Rows":
        """Some of the rows."""
        return Rows(
            tuple(self.ids[row] for row in rows),
            None if self.predictions is None else self.predictions.take(rows),
            {name: values[rows] for name, values in self.probabilities.items()},
            {name: column.take(rows) for name, column in self.values.items()},
            self.names,
            {level: values[:, :, rows] for level, values in self.importances.items()},
            self.expected,
        )


def _known(info: Mapping[str, Any], level: str) -> frozenset[str]:
    return frozenset(info["features"][level] or ())


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _texts(column: pa.ChunkedArray) -> list[str]:
    return [
        "–" if value is None else shortened(printable(str(value)), LONGEST_VALUE) for value in _list(_array(column))
    ]
