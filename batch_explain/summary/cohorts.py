"""Cohorts: groups of rows by the values of a column, fixed before any row is explained.

Which groups there are is decided once, from the column's values in a sample of the rows (or in all of them), so that
every task counts the same groups and merging them needs no further decision.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_explain.errors import OptionError

PREDICTED_CLASS = "predicted class"
MAX_GROUPS = 50
_PARTS = 4  # of a column of many numbers that no edges are given for


@dataclass(frozen=True)
class Cohort:
    """A column whose groups of rows are summarised apart.

    Parameters
    ----------
    name : str
        The column, or ``predicted class``.
    groups : tuple of str
        Labels. Beside them there are the rows without a value, whose label is null, and where groups are values, all
        other values.
    edges : tuple of float or None
        Numbers that cut the column's: group i holds values from edge i - 1 to below edge i. None: groups are values.
    predicted : bool
        Whether it is the model's prediction and no column of the input.
    """

    name: str
    groups: tuple[str, ...]
    edges: tuple[float, ...] | None = None
    predicted: bool = False

    @property
    def labels(self) -> tuple[str | None, ...]:
        """Of all groups, in their order; None: rows without a value."""
        if self.edges is not None:
            return (*self.groups, None)
        other = "other"
        while other in self.groups:
            other = f"({other})"
        return (*self.groups, other, None)

    def codes(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """The number of each row's group among :attr:`labels`."""
        null = len(self.labels) - 1
        array = _plain(column)
        if self.edges is not None:
            numbers = _numbers(array)
            codes = np.searchsorted(np.array(self.edges), numbers, side="right")
            return np.asarray(np.where(np.isnan(numbers), null, codes))
        encoded = array.dictionary_encode()
        place = {label: number for number, label in enumerate(self.groups)}
        of_value = [place.get(text, null - 1) if text is not None else null for text in _texts(encoded.dictionary)]
        found = encoded.indices.fill_null(len(of_value)).to_numpy(zero_copy_only=False)
        return np.asarray(np.array([*of_value, null], dtype=np.int64)[found])

    def to_json(self) -> dict[str, Any]:
        """For the plan."""
        content = asdict(self)
        content["groups"] = list(self.groups)
        content["edges"] = None if self.edges is None else list(self.edges)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Cohort":
        """Read :meth:`to_json`'s form."""
        edges = content["edges"]
        return cls(
            content["name"], tuple(content["groups"]), None if edges is None else tuple(edges), content["predicted"]
        )


@dataclass(frozen=True)
class Asked:
    """A cohort as it was asked for.

    Parameters
    ----------
    text : str
        What ``--cohort`` says.
    column : str
    edges : tuple of float or None
    parts : int or None
        Cut at so many quantiles.
    """

    text: str
    column: str
    edges: tuple[float, ...] | None = None
    parts: int | None = None

    @classmethod
    def parse(cls, text: str, columns: Sequence[str]) -> "Asked":
        """Read ``COLUMN``, ``COLUMN:18,30,50`` or ``COLUMN@4``; a text that names a column is that column.

        Raises
        ------
        OptionError
            If it is none of these.
        """
        if text in columns:
            return cls(text, text)
        if found := re.fullmatch(r"(.+)@(\d+)", text, re.DOTALL):
            parts = int(found[2])
            if not 2 <= parts <= MAX_GROUPS:
                raise OptionError(f"--cohort is '{text}'. Cut a column into 2 to {MAX_GROUPS} parts, such as 'age@4'.")
            return cls(text, found[1], parts=parts)
        if found := re.fullmatch(r"(.+):([^:]*)", text, re.DOTALL):
            try:
                edges = tuple(float(edge) for edge in found[2].split(","))
            except ValueError:
                edges = ()
            if not edges or len(edges) >= MAX_GROUPS or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
                raise OptionError(
                    f"--cohort is '{text}', which is no column of the input. To cut a column of numbers, write its "
                    f"name and rising edges, such as 'age:18,30,50' (fewer than {MAX_GROUPS})."
                )
            return cls(text, found[1], edges=edges)
        return cls(text, text)

    def decide(self, kind: pa.DataType, values: pa.ChunkedArray, read: str) -> tuple[Cohort, str]:
        """The groups, and what was decided on the user's behalf.

        Parameters
        ----------
        kind : pyarrow.DataType
            The column's type.
        values : pyarrow.ChunkedArray
            Its values in the rows that were looked at.
        read : str
            Which rows these are, for the decision.

        Raises
        ------
        OptionError
            If the column cannot be cut in this way.
        """
        numeric = is_number(kind)
        if not numeric and (self.edges or self.parts):
            raise OptionError(
                f"--cohort '{self.text}' cuts the column '{self.column}', which holds no numbers but {kind}. Name the "
                "column alone: its values are the groups."
            )
        if self.edges is not None:
            return Cohort(self.column, interval_labels(self.edges), self.edges), (
                f"cohort '{self.column}': cut at the given edges"
            )
        array = _plain(values)
        by_text = None if numeric and pa.types.is_floating(kind) else count_labels(array)
        parts = self.parts
        if numeric and parts is None and (by_text is None or len(by_text) > MAX_GROUPS):
            parts = _PARTS
        if parts is not None:
            edges = _quantile_edges(array, parts)
            shown = ", ".join(map(_number, edges)) or "none"
            return Cohort(self.column, interval_labels(edges), edges), (
                f"cohort '{self.column}': cut at {parts}-quantiles of {read}: {shown}"
            )
        assert by_text is not None
        kept = most_frequent(by_text, MAX_GROUPS)
        if numeric:
            kept.sort(key=float)
        else:
            kept.sort()
        rest = f"; {len(by_text) - len(kept)} rarer ones are under 'other'" if len(by_text) > len(kept) else ""
        return Cohort(self.column, tuple(kept)), f"cohort '{self.column}': {len(kept)} values found in {read}{rest}"


def count_labels(values: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """How often each label occurs; rows without a value are left out."""
    counted = _plain(values).drop_null().value_counts()
    found: Counter[str] = Counter()
    for label, count in zip(_texts(counted.field(0)), counted.field(1).to_pylist(), strict=True):
        if label is not None:
            found[label] += count
    return found


def most_frequent(counts: Mapping[str, int], most: int) -> list[str]:
    """The labels that occur most often; of equally frequent ones the first by name."""
    return sorted(counts, key=lambda label: (-counts[label], label))[:most]


def by_class(classes: Sequence[Any]) -> Cohort | None:
    """The cohort of the predicted class; None for more classes than a cohort has groups."""
    labels = tuple(dict.fromkeys(map(str, classes)))
    return Cohort(PREDICTED_CLASS, labels, predicted=True) if len(labels) <= MAX_GROUPS else None


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can be cut at edges."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_groupable(kind: pa.DataType) -> bool:
    """Whether a column of this type has groups at all."""
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def interval_labels(edges: Sequence[float]) -> tuple[str, ...]:
    """``< 18``, ``18 to < 30``, … ``≥ 50``."""
    shown = [_number(edge) for edge in edges]
    if not shown:
        return ("any number",)
    between = (f"{low} to < {high}" for low, high in pairwise(shown))
    return (f"< {shown[0]}", *between, f"≥ {shown[-1]}")


def _quantile_edges(array: pa.Array, parts: int) -> tuple[float, ...]:
    numbers = _numbers(array)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    if not len(numbers):
        return ()
    edges = np.unique(numbers[[len(numbers) * part // parts for part in range(1, parts)]])
    # nothing lies below the smallest
    return tuple(float(edge) for edge in edges if edge > numbers[0])


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _numbers(array: pa.Array) -> np.ndarray:
    """As float64; NaN where there is no value."""
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    return np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _texts(values: pa.Array) -> list[str | None]:
    """The label of each value."""
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.string())
    return [None if value is None or value != value else str(value) for value in values.to_pylist()]


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
