"""Surrogates that see the model's confidence: its own margins or log-probabilities are learned, one output each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError, InputError
from batch_explain.explainers.base import Explainer
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.fitting.joined import joined
from batch_explain.fitting.mimic import estimator, fitted, lightgbm_arguments, linear_explainer
from batch_explain.fitting.options import FitOptions
from batch_explain.fitting.targets import Lesson, loss, margins

FLOORS = (1e-3, 1e-2, 1e-4)  # of probabilities; the first is tried first
LEAVES = (31, 15, 63)
MAX_TREES, PATIENCE = 500, 20
WORSE = 1.02  # a smaller size is taken where it is not worse than the best by more
_VALIDATION = 5  # every fifth row


@dataclass(frozen=True)
class Trial:
    """A size that was tried.

    Parameters
    ----------
    floor : float or None
        Probabilities below it counted as it; None: there are no probabilities.
    leaves : int or None
        Most of a tree; None: no trees.
    trees : tuple of int
        Of each output, where early stopping ended.
    loss : float
        On rows that it was not fitted on: see :func:`batch_explain.fitting.targets.loss`.
    """

    floor: float | None
    leaves: int | None
    trees: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class Faithful:
    """A faithful surrogate, and how it was chosen."""

    explainer: Explainer
    chosen: Trial
    trials: tuple[Trial, ...]

    def describe(self) -> dict[str, Any]:
        """For ``fit.json``."""
        return {"chosen": asdict(self.chosen), "trials": [asdict(trial) for trial in self.trials]}


def faithful(known: Lesson, names: tuple[str, ...] | None, options: FitOptions) -> Faithful:
    """Fit a surrogate to the model's own margins.

    Every fifth row is kept back for early stopping and for choosing between sizes: first the floor of probabilities,
    then the leaves of a tree, the smallest that is not 2% worse than the best.

    Raises
    ------
    InputError
        If there are too few rows.
    ArtifactError
        If the model has neither probabilities nor a decision function with one number for each class.
    """
    if known.rows < 2 * _VALIDATION:
        raise InputError(f"The training data has {known.rows} rows, too few for a faithful surrogate. Pass more.")
    if known.only_labels:
        raise ArtifactError(
            "The model has neither probabilities nor a decision function with one number for each class, so there is "
            "no margin that a faithful surrogate could learn. Choose --surrogate sdk."
        )
    kept = np.arange(known.rows) % _VALIDATION == _VALIDATION - 1
    halves = known.take(np.flatnonzero(~kept)), known.take(np.flatnonzero(kept))
    floors: Sequence[float | None] = FLOORS if known.classes is not None and known.decisions is None else (None,)
    fit = _fit_linear if options.surrogate_model == "linear" else _fit_trees
    leaves: Sequence[int | None] = LEAVES
    if options.surrogate_model == "linear":
        leaves = (None,)
    elif given := [options.arguments[name] for name in ("num_leaves", "max_leaves") if name in options.arguments]:
        leaves = (int(given[0]),)
    found = [fit(*halves, floor, leaves[0], names, options) for floor in floors]
    floor = min(found, key=lambda each: each[1].loss)[1].floor
    found += [fit(*halves, floor, size, names, options) for size in leaves[1:]]
    best = min(trial.loss for _, trial in found)
    explainer, chosen = min(
        (each for each in found if each[1].loss <= best * WORSE and each[1].floor == floor),
        key=lambda each: (each[1].leaves or 0, each[1].loss),
    )
    return Faithful(explainer, chosen, tuple(trial for _, trial in found))


def _fit_trees(
    taught: Lesson,
    kept: Lesson,
    floor: float | None,
    leaves: int | None,
    names: tuple[str, ...] | None,
    options: FitOptions,
) -> tuple[Explainer, Trial]:
    """One regressor for each output, with early stopping, joined into one model."""
    import lightgbm

    wanted, checked = (margins(each, floor or 0.0) for each in (taught, kept))
    arguments = {"n_estimators": MAX_TREES, "num_leaves": leaves}
    arguments |= lightgbm_arguments(taught.matrix, names, options)
    texts, trees = [], []
    for output in range(wanted.shape[1]):
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        made = _Stopping(estimator(lightgbm.LGBMRegressor, arguments), (kept.matrix, checked[:, output]), stop)
        booster = fitted(made, taught.matrix, wanted[:, output]).booster_
        rounds = booster.best_iteration if booster.best_iteration > 0 else booster.num_trees()
        texts.append(booster.model_to_string(num_iteration=rounds))
        trees.append(int(rounds))
    explainer = TreeExplainer(
        texts[0] if len(texts) == 1 else joined(texts),
        engineered_features=names,
        surrogate_classes=tuple(range(len(texts))) if len(texts) > 1 else None,
    )
    found = explainer.margins(kept.matrix).T
    return explainer, Trial(floor, leaves, tuple(trees), loss(kept, found))


class _Stopping:
    """An estimator that stops early, behind the ``fit`` of all others."""

    def __init__(self, model: Any, checked: tuple[Any, np.ndarray], stop: Any) -> None:
        self._model, self._checked, self._stop = model, checked, stop

    def fit(self, matrix: Any, targets: np.ndarray) -> Any:
        return self._model.fit(matrix, targets, eval_set=[self._checked], callbacks=[self._stop])


def _fit_linear(
    taught: Lesson,
    kept: Lesson,
    floor: float | None,
    _leaves: int | None,
    names: tuple[str, ...] | None,
    options: FitOptions,
) -> tuple[Explainer, Trial]:
    """Least squares, all outputs at once."""
    from sklearn.linear_model import LinearRegression

    found = fitted(estimator(LinearRegression, options.arguments), taught.matrix, margins(taught, floor or 0.0))
    explainer = linear_explainer(taught, names, found.coef_, found.intercept_)
    return explainer, Trial(floor, None, (), loss(kept, np.asarray(explainer.margins(kept.matrix)).T))
