"""The compiled kernel on real matrices: choosing the instruction set, holding the tables, running rows through."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from batch_explain.trees.ensemble import Ensemble
from batch_explain.treeshap.background import check_count, go_left, mean_margins
from batch_explain.treeshap.program import make_program

if TYPE_CHECKING:  # importing it takes longer than to explain the first row
    import scipy.sparse as sp

ISA_VARIABLE = "BATCH_EXPLAIN_ISA"
DEFAULT_TABLE_BYTES = 400_000_000
BLOCK_ROWS = 25_600
SHARE_ROWS = 12_800  # that a thread takes at a time, about

MakeArray: TypeAlias = Callable[[str, int, Callable[[np.ndarray], None]], np.ndarray]

_ALIGNMENT = 64  # bytes: a cache line, and more than any vector needs


class KernelMissingError(Exception):
    """The compiled kernel cannot be used here; the message says why."""


@dataclass(frozen=True)
class ShapValues:
    """Importance values of rows.

    Parameters
    ----------
    engineered : ndarray, shape (output, used feature, row), float64, or None
        Along :attr:`TreeShap.used`; None where only raw values were asked for.
    raw : ndarray, shape (output, raw feature, row), float64, or None
        None where no map was given.
    margins : ndarray, shape (output, row), float64
        Expected value + sum of the engineered values.
    """

    engineered: np.ndarray | None
    raw: np.ndarray | None
    margins: np.ndarray


class TreeShap:
    """Exact path-dependent SHAP values of a tree ensemble.

    Parameters
    ----------
    ensemble : Ensemble
    table_bytes : int
        Bound on the memory of the pattern tables; smaller tables mean more work a row.
    isa : str or None
        ``baseline``, ``avx2`` or ``avx512``: all give the same bits. None: the best that the CPU has, or what the
        environment variable BATCH_EXPLAIN_ISA names.
    make_array : callable, optional
        ``make_array(digest, doubles, fill)`` returns an aligned float64 array, filled by ``fill(array)`` unless one of
        that digest exists already: how processes share the tables. Default: memory of this process, which is also
        taken where it raises OSError.
    background : ndarray of float64, shape (row, feature), optional
        Rows to compare with, 1 to 500: the values are then interventional ones against them; see
        :mod:`batch_explain.treeshap.background`. None: path-dependent ones.

    Raises
    ------
    KernelMissingError
        If the compiled module is not there, or the CPU lacks the instruction set that was asked for.

    Attributes
    ----------
    used : ndarray of int64
        Sorted columns that the trees split on; all others have values of exactly 0.
    expected_values : ndarray, shape (output,), float64
    table_bytes : int
        Size of the tables, and of what is kept of background rows.
    not_shared : str or None
        Why ``make_array`` could not be used, where it was asked for.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        table_bytes: int = DEFAULT_TABLE_BYTES,
        isa: str | None = None,
        make_array: MakeArray | None = None,
        background: np.ndarray | None = None,
    ) -> None:
        self._kernel = load_kernel()
        self.isa = choose_isa(self._kernel.instruction_sets(), isa)
        self.used = ensemble.used
        self.n_features, self.n_outputs = ensemble.n_features, ensemble.n_outputs
        if background is not None:
            check_count(len(background))
        left = None if background is None else go_left(ensemble, background)
        self.expected_values = ensemble.expected_values() if left is None else mean_margins(ensemble, left)
        self.program = make_program(ensemble, max_doubles=table_bytes // 8, background=left)
        self.table_bytes = self.program.doubles * 8 + self.program.answers_bytes
        self.not_shared: str | None = None
        self._tables = self._made(make_array)
        self._position = self.used.astype(np.int32)
        # of a csr column: its place among the used ones
        self._place = np.full(self.n_features, -1, dtype=np.int32)
        self._place[self.used] = np.arange(len(self.used))

    def _made(self, make_array: MakeArray | None) -> np.ndarray:
        if make_array is not None:
            try:
                return make_array(self._digest(), self.program.doubles, self._fill)
            except OSError as error:
                self.not_shared = str(error)
        tables = aligned(self.program.doubles)
        self._fill(tables)
        return tables

    def _fill(self, tables: np.ndarray) -> None:
        self._kernel.build_tables(self.program.arrays, tables)

    def _digest(self) -> str:
        """SHA-256 over everything that the tables depend on."""
        digest = hashlib.sha256(self._kernel.TABLE_FORMAT.encode())
        for name, array in sorted(self.program.arrays.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def explain(
        self,
        rows: "np.ndarray | sp.csr_matrix",
        *,
        feature_map: "sp.csr_matrix | None" = None,
        engineered: bool = True,
        threads: int = 1,
        block_rows: int = BLOCK_ROWS,
    ) -> ShapValues:
        """Importance values of rows.

        Parameters
        ----------
        rows : ndarray or csr_matrix, shape (row, feature)
            float64 of any strides; NaN is missing. A sparse matrix is read in place and never made dense.
        feature_map : csr_matrix, shape (raw, used feature), optional
            Weights from used to raw features; raw values are computed while a block's values are in the cache.
        engineered : bool
            Whether engineered values are wanted.
        threads : int
            Each takes one share of the rows after the other, of some 12,800 rows where there are many: one whose core
            is slower, or is needed elsewhere, takes fewer. The results do not depend on it.
        block_rows : int
            Rows that are worked on together: rounded up to 128, and fewer where features are many. The results do not
            depend on it.

        Raises
        ------
        ValueError
            If the rows do not have the ensemble's columns.
        """
        if rows.shape[1] != self.n_features:
            raise ValueError(f"the rows have {rows.shape[1]} columns; the trees were trained on {self.n_features}")
        count = rows.shape[0]
        found = ShapValues(
            np.empty((self.n_outputs, len(self.used), count)) if engineered else None,
            None if feature_map is None else np.empty((self.n_outputs, feature_map.shape[0], count)),
            np.empty((self.n_outputs, count)),
        )
        source, weights = _Source.of(rows, self._position, self._place), _Weights.of(feature_map)
        shares = _shares(count, max(1, threads))
        untaken = iter(shares)  # the interpreter's lock gives each share to one thread

        def take_shares() -> None:
            try:
                for share in untaken:
                    self._run(source, weights, found, share, block_rows)
            except BaseException:
                for _ in untaken:  # nor do the other threads go on
                    pass
                raise

        helpers = min(threads, len(shares)) - 1
        if helpers < 1:
            take_shares()
        else:
            with ThreadPoolExecutor(helpers) as pool:
                helping = [pool.submit(take_shares) for _ in range(helpers)]
                take_shares()
                for helper in helping:
                    helper.result()
        return found

    def _run(
        self,
        source: "_Source",
        weights: "_Weights",
        found: ShapValues,
        share: tuple[int, int],
        block_rows: int,
    ) -> None:
        self._kernel.explain(
            self.isa,
            block_rows,
            self.program.arrays,
            self._tables,
            source.dense,
            source.indptr,
            source.indices,
            source.values,
            source.position,
            self.expected_values,
            found.engineered,
            found.raw,
            weights.indptr,
            weights.indices,
            weights.data,
            found.margins,
            *share,
        )


@dataclass(frozen=True)
class _Source:
    """Rows as the kernel reads them: a strided matrix, or csr."""

    position: np.ndarray
    dense: np.ndarray | None = None
    indptr: np.ndarray | None = None
    indices: np.ndarray | None = None
    values: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Any, position: np.ndarray, place: np.ndarray) -> "_Source":
        if not hasattr(rows, "tocsr"):
            return cls(position, dense=np.asarray(rows, dtype=np.float64))
        import scipy.sparse as sp

        matrix = sp.csr_matrix(rows, dtype=np.float64)
        return cls(
            place,
            indptr=matrix.indptr.astype(np.int64),
            indices=matrix.indices.astype(np.int32, copy=False),
            values=np.ascontiguousarray(matrix.data),
        )


@dataclass(frozen=True)
class _Weights:
    """A feature map as the kernel reads it: csr, of no rows where there is none."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @classmethod
    def of(cls, feature_map: "sp.csr_matrix | None") -> "_Weights":
        if feature_map is None:
            return cls(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0))
        return cls(
            feature_map.indptr.astype(np.int64),
            feature_map.indices.astype(np.int32),
            feature_map.data.astype(np.float64),
        )


def load_kernel() -> Any:
    """The compiled module.

    Raises
    ------
    KernelMissingError
        If it is not there.
    """
    try:
        from batch_explain.treeshap import _kernel
    except ImportError as error:
        raise KernelMissingError(f"the compiled kernel cannot be loaded ({error})") from error
    return _kernel


def choose_isa(available: list[str], asked: str | None) -> str:
    """The best available instruction set, or the one asked for.

    Raises
    ------
    KernelMissingError
        If the one asked for, or named by BATCH_EXPLAIN_ISA, is not available.
    """
    asked = asked or os.environ.get(ISA_VARIABLE) or None
    if asked is None:
        return available[-1]
    if asked not in available:
        raise KernelMissingError(
            f"the instruction set '{asked}' ({ISA_VARIABLE}) is not one that this CPU has: {', '.join(available)}"
        )
    return asked


def aligned(doubles: int) -> np.ndarray:
    """Zeros that begin at a cache line."""
    raw = np.zeros(doubles * 8 + _ALIGNMENT, dtype=np.uint8)
    skip = -raw.ctypes.data % _ALIGNMENT
    return raw[skip : skip + doubles * 8].view(np.float64)


def _shares(rows: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of rows, of equal sizes: all for one thread, else as many a thread as make them some SHARE_ROWS long."""
    rounds = 1 if threads == 1 else max(1, round(rows / (threads * SHARE_ROWS)))
    size = max(1, -(-rows // (threads * rounds)))
    return [(start, min(rows, start + size)) for start in range(0, rows, size)] or [(0, 0)]
