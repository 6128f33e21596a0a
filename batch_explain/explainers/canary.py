"""Rows with their expected importances, made from the explainer alone: whoever opens a bundle computes them again."""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from pyarrow.parquet import ParquetFile  # noqa: TID251 - the type

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, Matrix
from batch_explain.explainers.linear import LinearExplainer
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.storage.parquet_files import open_parquet
from batch_explain.trees.ensemble import Ensemble
from batch_explain.trees.lightgbm_text import read_model_text

TOLERANCE = 1e-9  # |difference| <= tolerance x max(1, the row's largest |value|)

MAX_ROWS = 512
_FEWEST_ROWS = 16
_MAX_NUMBERS = 20_000  # of all rows together: 160 kB
_LISTS = ("row", "engineered", "raw")
_SCHEMA = pa.schema([("sparse", pa.bool_()), *((name, pa.list_(pa.float64())) for name in _LISTS)])


@dataclass(frozen=True)
class Canary:
    """Rows and what they give.

    Parameters
    ----------
    sparse : ndarray of bool, shape (row,)
        In which format the row is explained: the iteration limits can differ.
    rows : ndarray, shape (row, used feature), float64
        Values of the explainer's used features; NaN is missing.
    engineered : ndarray, shape (row, output x used feature), float64
    raw : ndarray, shape (row, output x raw feature), float64
        Without a feature map it has no columns.
    """

    sparse: np.ndarray
    rows: np.ndarray
    engineered: np.ndarray
    raw: np.ndarray


def make_canary(explainer: Explainer) -> Canary:
    """Choose rows and explain them.

    A tree's rows stand at its own thresholds and just above them, in no one's data: as far as ``MAX_ROWS`` go, each
    threshold of a feature has a row on either side. NaN, zeros, known and unknown categories are among them.
    """
    formats = (False, True) if explainer.depends_on_format else (True,)
    width = len(explainer.used) * (1 + explainer.n_outputs) + explainer.n_outputs * len(explainer.raw_features or ())
    most = int(np.clip(_MAX_NUMBERS // (len(formats) * max(1, width)), _FEWEST_ROWS, MAX_ROWS))
    values = _columns(_candidates(explainer), most)
    found = [_explained(explainer, values, sparse) for sparse in formats]
    return Canary(
        sparse=np.repeat(np.array(formats), len(values)),
        rows=np.concatenate([values] * len(formats)),
        engineered=np.concatenate([engineered for engineered, _ in found]),
        raw=np.concatenate([raw for _, raw in found]),
    )


def canary_bytes(canary: Canary) -> bytes:
    """As parquet without compression: three lists a row."""
    arrays = [pa.array(canary.sparse)]
    for values in (canary.rows, canary.engineered, canary.raw):
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).ravel())))
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), buffer, compression="none", use_dictionary=False)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def check_canary(explainer: Explainer, content: bytes) -> None:
    """Explain the rows in a file again.

    Raises
    ------
    ArtifactError
        If they have other importances than the file says, or it is no file of such rows.
    """
    canary = _read(explainer, content)
    for sparse in np.unique(canary.sparse):
        here = canary.sparse == sparse
        found = _explained(explainer, canary.rows[here], sparse)
        for kind, values, expected in zip(("engineered", "raw"), found, (canary.engineered, canary.raw), strict=True):
            wrong = ~_close(values, expected[here]).all(axis=1)
            if wrong.any():
                raise ArtifactError(
                    f"{int(wrong.sum())} of its {len(wrong)} canary rows do not get the {kind} importances that they "
                    "had when it was exported: its files were changed, or something on this machine computes "
                    "otherwise. Export it again from the explainer; if that is refused too, look at the versions of "
                    "LightGBM and batch-explain."
                )


def _explained(explainer: Explainer, values: np.ndarray, sparse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Engineered and raw importances, each of shape (row, output x feature)."""
    found = explainer.explain_used(_matrix(explainer, values, sparse), raw=True)
    assert found.values is not None
    raw = np.empty((explainer.n_outputs, 0, len(values))) if found.raw is None else found.raw
    return _by_row(found.values), _by_row(raw)


def _by_row(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.transpose(2, 0, 1)).reshape(values.shape[2], values.shape[0] * values.shape[1])


def _matrix(explainer: Explainer, values: np.ndarray, sparse: bool) -> Matrix:
    """Rows of all engineered features: 0 where a feature cannot matter."""
    shape = (len(values), len(explainer.engineered_features))
    if not sparse:
        wide = np.zeros(shape)
        wide[:, explainer.used] = values
        return wide
    narrow = sp.csr_matrix(values)
    return sp.csr_matrix((narrow.data, explainer.used[narrow.indices], narrow.indptr), shape=shape)


def _close(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    scale = np.maximum(1.0, np.abs(expected).max(axis=1, initial=0.0, keepdims=True))
    return np.asarray(np.abs(found - expected) <= TOLERANCE * scale)


def _candidates(explainer: Explainer) -> list[np.ndarray]:
    """Of each used feature, values that its splits tell apart."""
    if isinstance(explainer, LinearExplainer):
        means = explainer.means[explainer.used]
        steps = np.array([0.0, 1.0, -1.0, 0.5, -2.0, 3.0])
        return [np.append(mean + (1 + abs(mean)) * steps, 0.0) for mean in means]
    assert isinstance(explainer, TreeExplainer)
    ensemble = read_model_text(explainer.text)
    return [_at_splits(ensemble, feature) for feature in explainer.used]


def _at_splits(ensemble: Ensemble, feature: int) -> np.ndarray:
    nodes = ensemble.feature == feature
    thresholds = np.unique(ensemble.threshold[nodes & (ensemble.category_set < 0)])
    sets = [ensemble.category_sets[number] for number in np.unique(ensemble.category_set[nodes]) if number >= 0]
    categories = np.unique(np.concatenate(sets)) if sets else np.empty(0)
    unknown = [categories.max() + 1, -1.0] if len(categories) else []
    values = np.concatenate([[np.nan, 0.0], unknown, thresholds, np.nextafter(thresholds, np.inf), categories])
    return np.asarray(values[~np.isinf(values)])


def _columns(candidates: list[np.ndarray], most: int) -> np.ndarray:
    """Each feature's candidates in an order of its own, again and again; shape (row, feature)."""
    rows = int(np.clip(max((len(values) for values in candidates), default=0), _FEWEST_ROWS, most))
    random = np.random.default_rng(0)
    columns = [np.resize(random.permutation(values), rows) for values in candidates]
    return np.column_stack(columns) if columns else np.empty((rows, 0))


def _read(explainer: Explainer, content: bytes) -> Canary:
    features, outputs = len(explainer.used), explainer.n_outputs
    raw = 0 if explainer.feature_map is None else explainer.feature_map.shape[0]
    widths = {"sparse": 1, "row": features, "engineered": outputs * features, "raw": outputs * raw}
    try:
        file = open_parquet(pa.BufferReader(content))
        _refuse_claims(file, widths, len(content))
        table = file.read(use_threads=False)
        numbers = [
            table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, width)
            for name, width in widths.items()
            if name != "sparse"
        ]
        return Canary(table["sparse"].to_numpy(), *numbers)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        _refuse(str(error))


def _refuse_claims(file: ParquetFile, widths: dict[str, int], size: int) -> None:
    """Know from the footer that reading takes no more memory than the file has bytes."""
    footer = file.metadata
    if not file.schema_arrow.equals(_SCHEMA):
        _refuse("it has other columns")
    if not 0 < footer.num_rows <= 2 * MAX_ROWS or footer.num_row_groups != 1:
        _refuse(f"it has {footer.num_rows} rows")
    for number, width in enumerate(widths.values()):
        column = footer.row_group(0).column(number)
        # a list without elements counts as one value
        if column.compression != "UNCOMPRESSED" or column.num_values != footer.num_rows * max(1, width):
            _refuse(f"its column {column.path_in_schema} has {column.num_values} values")
        if column.total_uncompressed_size > size:
            _refuse(f"its column {column.path_in_schema} is larger than the file")


def _refuse(reason: str) -> NoReturn:
    first = (reason.splitlines() or ["unreadable"])[0].rstrip(".")
    raise ArtifactError(
        f"canary.parquet is damaged: {first}. Export the bundle again, or copy it again from where it was made."
    )
