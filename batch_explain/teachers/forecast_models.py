"""AutoML's forecasting models that have no explanation, told by name; members of ensembles one by one.

The SDK refuses none of them: for those that read the target alone it explains random numbers, and it looks at an
ensemble's members only all together (``TimeseriesClassicalModelTypeChecker``), and no longer once it was unpickled.
"""

from collections.abc import Iterator
from typing import Any

_TARGET_ALONE = (
    "it forecasts from past values of the target alone, so there is no feature that an importance could be given to "
    "(what the SDK returns for it explains random numbers)"
)
_OWN_STATE = (
    "it forecasts by a model of its own for each series, from that model's state, and cannot be asked about featurized "
    "rows"
)
_NETWORK = "it is a neural network over windows of a series, which has no featurized rows that a surrogate could learn"
_TARGET_ONLY = ("AutoArima", "Average", "ExponentialSmoothing", "Naive", "SeasonalAverage", "SeasonalNaive")
_NETWORKS = ("TCNForecaster", "ForecastTCNWrapper", "Deep4CastWrapper", "DNNForecastWrapper")
_NETWORK_MODULE = "azureml.contrib.automl.dnn.forecasting."

# Class -> what people call it, and why it has no explanation.
WITHOUT_EXPLANATION: dict[str, tuple[str, str]] = {
    **{name: (name, _TARGET_ALONE) for name in _TARGET_ONLY},
    "Arimax": ("Arimax", _OWN_STATE),
    "ProphetModel": ("Prophet", _OWN_STATE),
    **dict.fromkeys(_NETWORKS, ("TCNForecaster", _NETWORK)),
}
CURE = "Pass a forecasting model of the same experiment whose learner is a regression (LightGBM, XGBoost, linear …)"


def refused_by_name(name: str) -> str | None:
    """Why a class that a pickle names has no explanation, as a sentence; None where that is not known of it.

    Parameters
    ----------
    name : str
        ``package.module.Class``.
    """
    if not name.startswith("azureml."):
        return None
    found = WITHOUT_EXPLANATION.get(name.rpartition(".")[2])
    if found is None and name.startswith(_NETWORK_MODULE):
        found = WITHOUT_EXPLANATION["TCNForecaster"]
    return None if found is None else f"holds the forecasting model {found[0]}, which has no explanation: {found[1]}"


def refused_by_model(learner: Any) -> str | None:
    """Why a fitted learner, or an ensemble of some, has no explanation, as a sentence; None where it has one."""
    for path in _leaves(learner, ()):
        found = WITHOUT_EXPLANATION.get(type(path[-1]).__name__)
        if found is not None:
            name, reason = found
            ensemble = "" if len(path) == 1 else f", a member of the ensemble {type(path[0]).__name__}"
            return f"The model's learner is {name}{ensemble}, which has no explanation: {reason}. {CURE}."
    return None


def is_ensemble(learner: Any) -> bool:
    """Whether a learner has members."""
    return bool(_members(learner))


def _leaves(learner: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Each learner at the end of a chain of pipelines and ensembles, with the ensembles that it is in."""
    steps = getattr(learner, "steps", None)
    if steps:
        yield from _leaves(steps[-1][1], above)
        return
    members = _members(learner)
    if not members or len(above) > _DEEPEST:
        yield (*above, learner)
    for member in members:
        yield from _leaves(member, (*above, learner))


_DEEPEST = 10


def _members(learner: Any) -> list[Any]:
    """Members of a voting or stack ensemble; those of a voting regressor lie deeper once it was unpickled."""
    inside = getattr(learner, "_wrappedEnsemble", learner)
    found = [*getattr(inside, "estimators_", [])] if "Voting" in type(inside).__name__ else []
    if "Stack" in type(learner).__name__:
        found += [member for _, member in getattr(learner, "_base_learners", [])]
        found += [learner._meta_learner] if hasattr(learner, "_meta_learner") else []
    return found
