"""The models that `kernel.py` measures: data made from seeds, trained here, and held to the sizes that they promise."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import lightgbm
import numpy as np
import scipy.sparse as sp

from batch_explain.trees.ensemble import MISSING_NAN, Ensemble
from batch_explain.trees.lightgbm_text import read_model_text

Rows: TypeAlias = "np.ndarray | sp.csr_matrix"

SPARSE_WIDTH, SPARSE_PER_ROW = 42_000, 60
CATEGORICAL = tuple(range(35, 50))
_TRAINING, _EXPLAINED, _WEIGHTS = 1, 2, 3  # seeds


@dataclass(frozen=True)
class Case:
    """One model and its rows.

    Attributes
    ----------
    make : callable
        ``make(random, rows)``: the rows, and a score of each that the target is made of, shape (row, output).
    trees : int
        An output.
    """

    name: str
    make: Callable[[np.random.Generator, int], tuple[Rows, np.ndarray]]
    leaves: int = 31
    trees: int = 100
    outputs: int = 1
    training_rows: int = 50_000
    categorical: tuple[int, ...] = ()

    def quick(self) -> Case:
        """The same kind of model, tiny."""
        return replace(self, leaves=max(7, self.leaves // 16), trees=3, training_rows=1_000)


@dataclass(frozen=True)
class Model:
    """A trained case.

    Attributes
    ----------
    rows : ndarray or csr_matrix
        To be explained; none of them was trained on.
    path : float
        Mean number of splits from the root to a leaf, over all leaves of all trees.
    """

    case: Case
    booster: lightgbm.Booster
    text: str
    ensemble: Ensemble
    rows: Rows
    path: float
    training_seconds: float

    @property
    def sparse(self) -> bool:
        """Whether the rows are a csr matrix."""
        return sp.issparse(self.rows)

    def describe(self) -> str:
        """The case in a line."""
        classes = f"{self.case.outputs} classes × " if self.case.outputs > 1 else ""
        kind = (
            " sparse columns"
            if self.sparse
            else " features, categories and NaN"
            if self.case.categorical
            else " features"
        )
        return f"{classes}{self.case.trees:,} trees × {self.case.leaves} leaves × {self.ensemble.n_features:,}{kind}"


def train(case: Case, rows: int, threads: int) -> Model:
    """Train a case, check its size, and make the rows to explain."""
    X, score = case.make(np.random.default_rng(_TRAINING), case.training_rows)
    noise = np.random.default_rng([_TRAINING, 1])
    if case.outputs > 1:
        target = np.argmax(score + noise.gumbel(size=score.shape), axis=1)
        objective: dict[str, object] = {"objective": "multiclass", "num_class": case.outputs}
    else:
        target = score[:, 0] + noise.normal(size=len(score))
        objective = {"objective": "regression"}
    options = {"num_leaves": case.leaves, "num_threads": threads, "verbosity": -1, "seed": 0, "deterministic": True}
    started = time.perf_counter()
    data = lightgbm.Dataset(X, target, categorical_feature=list(case.categorical))
    text = lightgbm.train({**options, **objective, "force_col_wise": True}, data, case.trees).model_to_string()
    seconds = time.perf_counter() - started
    text = re.sub(r"^\[num_threads: \d+\]$", "[num_threads: 1]", text, flags=re.MULTILINE)
    ensemble = read_model_text(text)
    _check(case, ensemble)
    return Model(
        case=case,
        booster=lightgbm.Booster(model_str=text),
        text=text,
        ensemble=ensemble,
        rows=_explained(case.make, rows),
        path=float(_depths(ensemble).mean()),
        training_seconds=seconds,
    )


@lru_cache(maxsize=2)  # several cases have the same rows
def _explained(make: Callable[[np.random.Generator, int], tuple[Rows, np.ndarray]], rows: int) -> Rows:
    return make(np.random.default_rng(_EXPLAINED), rows)[0]


def _check(case: Case, ensemble: Ensemble) -> None:
    """A model that is smaller than its name says would be measured as something that it is not."""
    leaves = np.diff(ensemble.leaf_offset)
    if ensemble.n_trees != case.trees * case.outputs or not np.all(leaves == case.leaves):
        raise RuntimeError(
            f"{case.name}: LightGBM made {ensemble.n_trees} trees of {leaves.min()} to {leaves.max()} leaves, "
            f"not {case.trees * case.outputs} of {case.leaves}"
        )
    if case.categorical and not (ensemble.category_sets and np.any(ensemble.missing == MISSING_NAN)):
        raise RuntimeError(f"{case.name}: no tree asks for a category, or none for NaN")


def _depths(ensemble: Ensemble) -> np.ndarray:
    """Splits above each leaf."""
    found = np.zeros(len(ensemble.leaf_value), dtype=np.int64)
    for first, last, leaf in zip(
        ensemble.node_offset[:-1], ensemble.node_offset[1:], ensemble.leaf_offset[:-1], strict=True
    ):
        depth = np.zeros(last - first, dtype=np.int64)
        for node in range(last - first):  # children come after their parent
            for child in (ensemble.left[first + node], ensemble.right[first + node]):
                if child >= 0:
                    depth[child] = depth[node] + 1
                else:
                    found[leaf + ~child] = depth[node] + 1
    return found


# Rows, with scores that trees can learn but not finish learning: every tree then uses all its leaves.


def _gaussian(random: np.random.Generator, rows: int, features: int) -> np.ndarray:
    """Normal columns, of which the second half is correlated with the first."""
    X = random.normal(size=(rows, features))
    half = features // 2
    X[:, half : 2 * half] = 0.6 * X[:, :half] + 0.8 * X[:, half : 2 * half]
    return X


def _score(X: np.ndarray, outputs: int) -> np.ndarray:
    random = np.random.default_rng(_WEIGHTS)
    signs = random.choice([-1, 1], size=(X.shape[1], outputs))
    weights = signs * random.uniform(0.5, 1.5, size=signs.shape)  # none so small that its column would not be used
    return X @ weights + 3 * np.sin(2 * X[:, :1]) + X[:, 1:2] * X[:, 2:3] * np.linspace(1, -1, outputs)


def dense_50(random: np.random.Generator, rows: int) -> tuple[Rows, np.ndarray]:
    """50 normal columns."""
    X = _gaussian(random, rows, 50)
    return X, _score(X, 1)


def dense_12(random: np.random.Generator, rows: int) -> tuple[Rows, np.ndarray]:
    """12 normal columns."""
    X = _gaussian(random, rows, 12)
    return X, _score(X, 1)


def five_classes(random: np.random.Generator, rows: int) -> tuple[Rows, np.ndarray]:
    """50 normal columns, a score for each of five classes."""
    X = _gaussian(random, rows, 50)
    return X, _score(X, 5)


def mixed(random: np.random.Generator, rows: int) -> tuple[Rows, np.ndarray]:
    """35 normal columns, of which 15 with 10% NaN; 15 of 3 to 200 categories, the rarer ones seldom, with 5% NaN."""
    X = _gaussian(random, rows, 50)
    score = _score(X[:, :35], 1) / 2
    X[:, 20:35][random.random((rows, 15)) < 0.1] = np.nan
    effects = np.random.default_rng([_WEIGHTS, 1])
    for column, categories in zip(CATEGORICAL, np.geomspace(3, 200, len(CATEGORICAL)).astype(int), strict=True):
        drawn = np.minimum(random.geometric(min(0.5, 4 / categories), size=rows) - 1, categories - 1)
        score[:, 0] += effects.normal(size=categories, scale=2)[drawn]
        X[:, column] = np.where(random.random(rows) < 0.05, np.nan, drawn)
    return X, score


def sparse(random: np.random.Generator, rows: int) -> tuple[Rows, np.ndarray]:
    """42,000 columns as texts give them: counts of 60 tokens a row, drawn by Zipf's law."""
    law = 1 / (np.arange(SPARSE_WIDTH) + 10)
    tokens = np.searchsorted(np.cumsum(law / law.sum()), random.random((rows, SPARSE_PER_ROW)))
    tokens = np.minimum(tokens, SPARSE_WIDTH - 1)
    starts = np.arange(rows + 1) * SPARSE_PER_ROW
    X = sp.csr_matrix((np.ones(tokens.size), tokens.ravel(), starts), shape=(rows, SPARSE_WIDTH))
    X.sum_duplicates()
    weights = np.random.default_rng(_WEIGHTS).normal(size=SPARSE_WIDTH)
    return X, np.asarray(X @ weights).reshape(-1, 1)


GROWTH = ("100x31", "100x63", "100x127", "100x255")
CASES = {
    case.name: case
    for case in (
        *(Case(name, dense_50, leaves=int(name.partition("x")[2])) for name in GROWTH),
        Case("1000x31", dense_50, trees=1_000),
        Case("5 classes", five_classes, outputs=5),
        Case("categorical + NaN", mixed, categorical=CATEGORICAL),
        Case("sparse", sparse, training_rows=20_000),
        Case("12 features", dense_12),
    )
}
