"""Models that are sums of trees, whatever library made them: read, or refused with the reason."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batch_explain.trees.assemble import Nodes, NotTreesError, Sum
from batch_explain.trees.catboost_trees import read_catboost
from batch_explain.trees.lightgbm_trees import read_lightgbm
from batch_explain.trees.rounding import before_scaling
from batch_explain.trees.sklearn_trees import read_forest, read_gradient_boosting, read_hist_gradient_boosting
from batch_explain.trees.xgboost_trees import read_xgboost

_FORESTS = ("BaseForest", "BaseDecisionTree")
_SCALERS = ("StandardScaler", "MaxAbsScaler", "MinMaxScaler", "RobustScaler")


def additive(estimator: Any) -> Sum:
    """Read an estimator as a sum of trees.

    Parameters
    ----------
    estimator : object
        A fitted model of LightGBM, XGBoost, CatBoost or scikit-learn, AutoML's wrapper of one, a pipeline of per-column
        scalers before one, or a voting ensemble of such whose average is itself a sum of trees.

    Raises
    ------
    NotTreesError
        If it is none; the message completes "… cannot be explained directly: ".
    """
    names = {base.__name__ for base in type(estimator).__mro__}
    if hasattr(estimator, "y_transformer") and not hasattr(estimator, "classes_"):
        raise NotTreesError("it transforms its target, so its prediction is not the sum of its trees")
    if "Pipeline" in names:
        return _behind_scalers([step for _, step in estimator.steps[:-1]], additive(estimator.steps[-1][1]))
    if hasattr(estimator, "_wrappedEnsemble"):  # AutoML's voting regressor
        return additive(estimator._wrappedEnsemble)
    if names & {"VotingClassifier", "VotingRegressor"}:
        return _vote(estimator)
    if type(estimator).__module__.startswith("azureml.") and getattr(estimator, "model", None) is not None:
        return additive(estimator.model)
    for known, read in _READERS.items():
        if known in names:
            return read(estimator)
    raise NotTreesError(f"a {type(estimator).__name__} is no sum of trees that this program knows")


def _lightgbm(model: Any) -> Sum:
    return read_lightgbm(model.booster_, model.best_iteration_ or -1)


def _xgboost(model: Any) -> Sum:
    if not (model.missing is None or np.isnan(model.missing)):
        raise NotTreesError(f"it takes {model.missing} for a missing value")
    booster = model.get_booster()
    best = booster.attr("best_iteration") if hasattr(booster, "attr") else None
    return read_xgboost(booster, None if best is None else int(best) + 1)


_READERS: dict[str, Callable[[Any], Sum]] = {
    "LGBMModel": _lightgbm,
    "XGBModel": _xgboost,
    "CatBoost": read_catboost,
    "BaseHistGradientBoosting": read_hist_gradient_boosting,
    "BaseGradientBoosting": read_gradient_boosting,
    **dict.fromkeys(_FORESTS, read_forest),
}


def _vote(ensemble: Any) -> Sum:
    classifier = hasattr(ensemble, "classes_")
    if classifier and ensemble.voting != "soft":
        raise NotTreesError("it counts votes instead of averaging probabilities (voting='hard')")
    weights = [1.0] * len(ensemble.estimators_) if ensemble.weights is None else list(ensemble.weights)
    members = []
    for member, weight in zip(ensemble.estimators_, weights, strict=True):
        if weight == 0:
            continue
        found = additive(member)
        if found.link != ("probability" if classifier else "identity"):
            raise NotTreesError(
                f"it averages the probabilities of a {_learner(member)}, which are no sums of trees (its margins are)"
            )
        if classifier and len(member.classes_) != len(ensemble.classes_):
            raise NotTreesError("one of its members knows fewer classes than it has")
        members.append(found.scaled(weight / sum(weights)))
    first = members[0]
    if len({each.absent_is_missing for each in members}) > 1:
        raise NotTreesError("its members do not agree on what a missing value is in sparse rows")
    outputs = [[tree for each in members for tree in each.outputs[at]] for at in range(len(first.outputs))]
    base = np.sum([each.base for each in members], axis=0)
    return replace(
        first,
        outputs=outputs,
        base=base,
        missing=any(each.missing for each in members),  # a member that takes none refuses the row
        single=any(each.single for each in members),
    )


def _learner(member: Any) -> str:
    return type(member.steps[-1][1] if hasattr(member, "steps") else member).__name__


def _behind_scalers(steps: Sequence[Any], found: Sum) -> Sum:
    for step in reversed(steps):
        if step is None or step == "passthrough":
            continue
        scaler = getattr(step, "model", step)
        if type(scaler).__name__ not in _SCALERS:
            raise NotTreesError(
                f"its {type(scaler).__name__} mixes columns or rows, or is no scaler that is known here"
            )
        found = _before(scaler, found)
    return found


def _before(scaler: Any, found: Sum) -> Sum:
    """Thresholds of what the scaler takes, for those of what it gives: the same decision for every double."""
    width = scaler.n_features_in_
    ends = scaler.inverse_transform(np.vstack([np.zeros(width), np.ones(width)]))
    if not (ends[1] > ends[0]).all():
        raise NotTreesError(f"its {type(scaler).__name__} turns the order of a column's values around")
    if getattr(scaler, "clip", False):
        raise NotTreesError(f"its {type(scaler).__name__} clips values")

    def moved(tree: Nodes) -> Nodes:
        if tree.categories:
            raise NotTreesError("it splits on categories behind a scaler")
        inner = np.flatnonzero(tree.left >= 0)
        features, thresholds = tree.feature[inner], tree.threshold[inner]
        rows = np.zeros((len(inner), width))

        def scaled(values: np.ndarray) -> np.ndarray:
            rows[np.arange(len(inner)), features] = values
            given: np.ndarray = np.asarray(scaler.transform(rows))[np.arange(len(inner)), features]
            return given

        guess = thresholds * (ends[1] - ends[0])[features] + ends[0][features]
        new = tree.threshold.copy()
        if len(inner):
            new[inner] = before_scaling(thresholds, scaled, guess)
        return replace(tree, threshold=new)

    return replace(found, outputs=[[moved(tree) for tree in trees] for trees in found.outputs])
