"""Forecasting pipelines as AutoML leaves them, their explainers by the SDK's own steps, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .explainers import REPRODUCIBLE, mimic, names
from .kinds import EXPLAINER, MODEL, VacuousModelError, features_used
from .quiet import quiet
from .teachers import REGRESSION, boosters, lightgbm

if TYPE_CHECKING:
    from collections.abc import Callable

TIME, TARGET, HORIZON = "when", "demand", 5
TRAINED, LATER = 100, 20  # days

#: What AutoML finds by itself: the target of one and of two days ago, and a window over three days.
LOOKING_BACK = {
    "lags": {"_automl_target_col": [1, 2]},
    "window_size": 3,
    "transform_dictionary": dict.fromkeys(("max", "min", "mean"), "_automl_target_col"),
}


@dataclass(frozen=True)
class Forecasting:
    """A forecasting pipeline and its scoring explainer.

    Attributes
    ----------
    model, explainer : Path
    train, later : DataFrame
        Rows with their target: those it was trained on, and the days after them.
    grain : list of str
        Columns that name a series.
    """

    model: Path
    explainer: Path
    train: pd.DataFrame
    later: pd.DataFrame
    grain: list[str]


def demand(stores: int = 4, grain: int = 1, seed: int = 0) -> pd.DataFrame:
    """Daily sales of some stores: a weekly wave, a trend of the store's own, a price and a promotion."""
    rng = np.random.default_rng(seed)
    days = TRAINED + LATER
    frames = []
    for number in range(stores):
        price, promotion = rng.normal(10, 2, days), rng.choice(["none", "flyer", "radio"], days)
        wave = 5 * np.sin(np.arange(days) / 7 * 2 * np.pi) + 0.05 * number * np.arange(days)
        value = 50 + 10 * number + wave - 2 * price + 6 * (promotion == "radio") + rng.normal(0, 1, days)
        frame = pd.DataFrame(
            {
                TIME: pd.date_range("2021-01-01", periods=days, freq="D"),
                "price": price,
                "promotion": promotion,
                TARGET: value,
            }
        )
        if grain:
            frame.insert(1, "store", f"s{number // 2 if grain > 1 else number}")
        if grain > 1:
            frame.insert(2, "shelf", number % 2)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def pipeline(
    frame: pd.DataFrame,
    *,
    looks_back: bool,
    wrap: Callable[[Any, np.ndarray, Any], Any] | None = None,
) -> tuple[Any, pd.DataFrame, pd.DataFrame, list[str]]:
    """Featurizer and learner, fitted on the first days of each series."""
    from azureml.automl.core.featurization import FeaturizationConfig
    from azureml.automl.runtime import _featurization_execution_timeseries as featurization
    from azureml.training.tabular.models.forecasting_pipeline_wrapper import ForecastingPipelineWrapper
    from sklearn.pipeline import Pipeline

    grain = [name for name in ("store", "shelf") if name in frame]
    first = frame[TIME] < frame[TIME].min() + pd.Timedelta(days=TRAINED)
    train, later = frame[first].reset_index(drop=True), frame[~first].reset_index(drop=True)
    settings = {"time_column_name": TIME, "grain_column_names": grain, "max_horizon": HORIZON, "drop_column_names": []}
    X, y = train.drop(columns=TARGET), train[TARGET].to_numpy()
    transformer, features = featurization._get_ts_transformer_x(
        X.copy(),
        y,
        {**settings, **(LOOKING_BACK if looks_back else {})},
        for_cv=False,
        featurization_config=FeaturizationConfig(),
    )
    target = features.pop(transformer.target_column_name).to_numpy()
    if looks_back:
        features, target = transformer._remove_nans_from_look_back_features(features, target)
    learner = lightgbm(REGRESSION).fit(features, target)
    learner = wrap(features, target, learner) if wrap else learner
    steps = [("timeseriestransformer", transformer), (type(learner).__name__, learner)]
    return ForecastingPipelineWrapper(Pipeline(steps), stddev=[1.0]), train, later, grain


def build_forecasting(folder: Path, *, looks_back: bool, grain: int = 1, **options: Any) -> Forecasting:
    """Build a pipeline and its explainer."""
    import joblib
    from azureml.interpret.scoring.scoring_explainer import TreeScoringExplainer, save

    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model, train, later, keys = pipeline(
            demand(grain=grain, stores=4 if grain else 1), looks_back=looks_back, **options
        )
        setup = set_up(model, train, later)
        surrogate = mimic(setup, setup.surrogate_model, {**REPRODUCIBLE, "n_estimators": 50, "min_data_in_leaf": 20})
        explainer = TreeScoringExplainer(surrogate, **names(setup))
        if not features_used(explainer):
            raise VacuousModelError("the trees of the surrogate never split")
        if not all(booster.feature_importance().any() for booster in boosters(model)):
            raise VacuousModelError("the trees of a LightGBM learner never split")
        joblib.dump(model, folder / MODEL)
        save(explainer, directory=str(folder), exist_ok=True)
    return Forecasting(folder / MODEL, folder / EXPLAINER, train, later, keys)


def set_up(model: Any, history: pd.DataFrame, rows: pd.DataFrame) -> Any:
    """The SDK's own setup, of rows whose target is unknown."""
    from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations

    return automl_setup_model_explanations(
        model,
        X=history.drop(columns=TARGET),
        X_test=rows.drop(columns=TARGET),
        y=history[TARGET].to_numpy(),
        task="forecasting",
        downsample=False,
    )


def sdk_lines(paths: Forecasting, history: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The SDK's engineered and raw importances, one line for each time, series and origin, by its index."""
    import joblib

    with quiet():
        model, explainer = joblib.load(paths.model), joblib.load(paths.explainer)
        features = set_up(model, history, rows).X_test_transform
        engineered = np.array(explainer.explain(features))
        raw = np.array(explainer.explain(features, get_raw=True))
    return (
        pd.DataFrame(engineered.reshape(len(features), -1), features.index, columns=list(features.columns)),
        pd.DataFrame(raw.reshape(len(features), -1), features.index, columns=list(explainer.raw_features)),
    )


def classical_learner(name: str) -> Callable[[Any, np.ndarray, Any], Any]:
    """Fit one of AutoML's models that forecast each series from its past."""

    def fit(features: pd.DataFrame, target: np.ndarray, _: Any) -> Any:
        from azureml.training.tabular.models import forecasting_models

        settings = {
            "time_column_name": TIME,
            "grain_column_names": ["store"],
            "max_horizon": HORIZON,
            "freq": "D",
            "seasonality": 7,
            "arimax_raw_columns": ["price"],
        }
        return getattr(forecasting_models, name)(settings).fit(features, target)

    return fit


def voting(features: pd.DataFrame, target: np.ndarray, member: Any) -> Any:
    """AutoML's voting ensemble of a fitted learner and one more LightGBM."""
    from azureml.automl.runtime.shared import model_wrappers
    from sklearn.pipeline import Pipeline

    members = [member, lightgbm(REGRESSION, trees=20).fit(features, target)]
    named = [(str(number), Pipeline([(type(each).__name__, each)])) for number, each in enumerate(members)]
    return model_wrappers.PreFittedSoftVotingRegressor(estimators=named, weights=[0.5, 0.5])
