"""Rows of a run's sample as arrays: importances, and the features' own values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.errors import OptionError

DEFAULT_ROWS = 1_000
NO_VALUE = "no value"


@dataclass(frozen=True)
class Values:
    """What some rows have in one feature, as shap's ``data`` and ``display_data`` have it.

    Parameters
    ----------
    values : ndarray of float64, shape (row,)
        Numbers; dates and times as days since 1970; NaN where missing. Of all else the position among the sorted texts,
        ``no value`` being the last one.
    shown : ndarray of object, shape (row,)
        Numbers; dates and times as themselves (None: missing); texts.
    """

    values: np.ndarray
    shown: np.ndarray

    @property
    def numeric(self) -> bool:
        """Whether both are the same."""
        return all(isinstance(value, float) for value in self.shown)

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Values":
        """A feature's values as they were read from a file."""
        kind = column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            moments = column.cast(pa.timestamp("us"), safe=False)
            days = np.asarray(moments.cast(pa.int64()).to_numpy(), dtype=np.float64) / 86_400e6
            return cls(days, _objects((column if pa.types.is_date(kind) else moments).to_pylist()))
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
            numbers = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
            return cls(numbers, _objects(numbers.tolist()))
        texts = [NO_VALUE if value is None else _text(value) for value in column.to_pylist()]
        code = {text: at for at, text in enumerate(sorted(set(texts), key=lambda text: (text == NO_VALUE, text)))}
        return cls(np.array([code[text] for text in texts], dtype=np.float64), _objects(texts))


@dataclass(frozen=True)
class Local:
    """Sampled rows of one level.

    Parameters
    ----------
    features : tuple of str
        Those that can be other than 0, in the order of the model.
    importances : ndarray of float64, shape (output, row, feature)
    values : tuple of Values, or None
        Of each feature; None where the run kept no values of this level's features.
    predictions : list or None
        One for each row.
    """

    features: tuple[str, ...]
    importances: np.ndarray
    values: tuple[Values, ...] | None
    predictions: list[Any] | None


def local_of(info: Mapping[str, Any], sample: pa.Table, level: str, rows: int | None) -> Local:
    """Rows drawn from a run's sample.

    Parameters
    ----------
    info : mapping
        ``run.json``.
    sample : pyarrow.Table
        ``summary/sample.parquet``.
    level : str
        ``raw`` or ``engineered``.
    rows : int or None
        How many are wanted; None: at most :data:`DEFAULT_ROWS`.

    Raises
    ------
    OptionError
        If the run has no such level, or the sample not as many rows while the run has more.
    """
    known = info["features"].get(level) if level in ("raw", "engineered") else None
    if known is None:
        raise OptionError(
            f"The run has no level '{level}': it has 'engineered', and 'raw' where there was a feature map."
        )
    outputs = len(info["outputs"] or [None])
    there = sample.num_rows // outputs
    chosen = draw(there, info["rows"]["explained"], rows)
    place = {name: at for at, name in enumerate(sample.column_names)}
    features = tuple(name for name in known if f"{level}.{name}" in place)
    importances = np.empty((outputs, len(chosen), len(features)))
    for at, name in enumerate(features):
        column = sample.column(place[f"{level}.{name}"]).to_numpy().reshape(there, outputs)
        importances[:, :, at] = column[chosen].T
    firsts = sample.take(pa.array(chosen * outputs))
    # without a model the input holds the engineered features; with one, an engineered feature may bear a raw one's name
    own = level == ("engineered" if info["artifacts"]["model"] is None else "raw")
    kept = own and any(f"value.{name}" in place for name in features)
    return Local(
        features=features,
        importances=importances,
        values=tuple(_values(firsts, place.get(f"value.{name}")) for name in features) if kept else None,
        predictions=firsts["prediction"].to_pylist() if "predictions" in info["tables"] else None,
    )


def draw(there: int, explained: int, rows: int | None) -> np.ndarray:
    """Positions of rows drawn uniformly from a sample of ``there`` rows, always the same ones, in the input's order."""
    if rows is not None and (isinstance(rows, bool) or rows < 1):
        raise OptionError(f"'rows' is {rows}: ask for at least one row.")
    wanted = min(there, DEFAULT_ROWS) if rows is None else min(rows, explained)
    if wanted > there:
        raise OptionError(
            f"{wanted:,} rows were asked for, and the sample has {there:,} of the {explained:,} that were explained. "
            "Ask for fewer, or run with a larger --sample-rows."
        )
    return np.sort(np.random.default_rng(0).permutation(there)[:wanted])


def at_output(info: Mapping[str, Any], output: str | None) -> int | None:
    """Position of an output; None for all of several.

    Raises
    ------
    OptionError
        If the run has no such output.
    """
    labels: Sequence[str] = info["outputs"] or []
    if output is None:
        return None if labels else 0
    if output not in labels:
        known = ", ".join(map(repr, labels)) or "a single one, without a label: leave 'output' out"
        raise OptionError(f"The run has no output '{output}'; it has {known}.")
    return labels.index(output)


def _values(table: pa.Table, place: int | None) -> Values:
    if place is None:  # a column that the input did not have
        return Values.of(pa.chunked_array([pa.nulls(table.num_rows, pa.float64())]))
    return Values.of(table.column(place))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
