"""Engineered feature values as a table, and as the input of a later run that has no model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from batch_explain.errors import InputError
from batch_explain.explainers.base import Matrix
from batch_explain.storage.dataset import InputFile
from batch_explain.teachers.columns import to_matrix

FEATURES = "features"


@dataclass(frozen=True)
class Origin:
    """What the parts of a features table say of their rows.

    Parameters
    ----------
    ids : tuple of str
        The columns that identify them.
    sparse : bool
        Whether the rows were sparse when the featurizer made them: explainers may tell the two apart.
    """

    ids: tuple[str, ...] = ()
    sparse: bool = False


def origin_of(files: Sequence[InputFile]) -> Origin:
    """Where engineered rows come from; without ids where no run of this tool wrote them as features.

    Raises
    ------
    InputError
        If files say different things.
    """
    found: dict[Origin, str] = {}
    for file in files:
        found.setdefault(_origin(file), file.path)
    if len(found) > 1:
        (first, here), (other, there), *_ = found.items()
        what = "ids" if first.ids != other.ids else "formats (sparse or dense)"
        raise InputError(
            f"{here} and {there} hold engineered rows with different {what}: they come from different runs, or one of "
            "them was not written by a run. Explain them one after the other."
        )
    return next(iter(found), Origin())


def _origin(file: InputFile) -> Origin:
    try:
        content = json.loads(file.description or "{}")
        if isinstance(content, dict) and content.get("table") == FEATURES:
            return Origin(tuple(map(str, content["ids"])), bool(content["sparse"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # another program's
    return Origin()


def needed(used: np.ndarray) -> np.ndarray:
    """Positions of the features that explain a row again: the used ones, but at least one column."""
    return used if len(used) else np.array([0])


def feature_arrays(matrix: Matrix, positions: np.ndarray) -> list[pa.Array]:
    """Values of some engineered features, a column each; NaN is NaN, not null."""
    if not isinstance(matrix, np.ndarray):
        matrix = matrix[:, positions].toarray(order="F")
        positions = np.arange(len(positions))
    return [pa.array(np.ascontiguousarray(matrix[:, position], dtype=np.float64)) for position in positions]


def read_features(table: pa.Table, names: Sequence[str], positions: np.ndarray, width: int, *, sparse: bool) -> Matrix:
    """The engineered matrix of columns that hold the features themselves; those that are not named are 0."""
    if not sparse:
        return to_matrix(table, names, positions, width)
    narrow = sp.csr_matrix(to_matrix(table, names, np.arange(len(names)), len(names)))
    return sp.csr_matrix((narrow.data, positions[narrow.indices], narrow.indptr), shape=(table.num_rows, width))
