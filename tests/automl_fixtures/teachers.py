"""Fitted pipelines as AutoML leaves them: its featurizer, then its own learner wrappers and ensembles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

#: One thread, one histogram layout: LightGBM else picks the layout by timing, and adds up in another order.
REPRODUCIBLE = {"n_jobs": 1, "deterministic": True, "force_col_wise": True}

CLASSIFICATION, REGRESSION = "classification", "regression"


def automl_featurizer(task: str, X: pd.DataFrame, y: np.ndarray) -> Any:
    """What AutoML's featurization would pick for these columns, not yet fitted."""
    from azureml.automl.runtime.data_transformation import _suggest_featurizers_and_create_datatransformer

    return _suggest_featurizers_and_create_datatransformer(task, X, y, enable_feature_sweeping=False)


def lightgbm(task: str, trees: int = 60) -> Any:
    """AutoML's LightGBM wrapper, not yet fitted.

    It reads min_data_in_leaf as a fraction of the rows unless it is exactly 20: at 10 no tree would split.
    """
    from azureml.automl.runtime.shared import model_wrappers

    name = "LightGBMClassifier" if task == CLASSIFICATION else "LightGBMRegressor"
    wrapper = getattr(model_wrappers, name)
    return wrapper(n_estimators=trees, min_data_in_leaf=20, random_state=0, **REPRODUCIBLE)


def pipeline(task: str, X: pd.DataFrame, y: np.ndarray, learner: Any) -> Any:
    """Featurizer and learner, both fitted, under the step names that the SDK goes by."""
    from sklearn.pipeline import Pipeline

    featurizer = automl_featurizer(task, X, y)
    learner.fit(featurizer.fit_transform(X, y), y)
    return Pipeline([("datatransformer", featurizer), (type(learner).__name__, learner)])


def label_encoding_pipeline(X: pd.DataFrame, y: np.ndarray) -> Any:
    """The classes are numbers inside and text outside: only `y_transformer` knows both."""
    from azureml.training.tabular.models.pipeline_with_ytransformations import PipelineWithYTransformations
    from sklearn.preprocessing import LabelEncoder

    encoder = LabelEncoder()
    inner = pipeline(CLASSIFICATION, X, encoder.fit_transform(y), lightgbm(CLASSIFICATION))
    return PipelineWithYTransformations(inner, "LabelEncoder", encoder)


def voting_pipeline(X: pd.DataFrame, y: np.ndarray) -> Any:
    """AutoML's voting ensemble over LightGBM and a linear learner, each behind a scaler."""
    from azureml.automl.runtime.shared import model_wrappers
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    featurizer = automl_featurizer(CLASSIFICATION, X, y)
    Xt = featurizer.fit_transform(X, y)
    members = []
    for number, learner in enumerate([lightgbm(CLASSIFICATION, trees=20), LogisticRegression(max_iter=200)]):
        scaler = model_wrappers.StandardScalerWrapper(with_mean=False, with_std=True)
        member = Pipeline([("StandardScalerWrapper", scaler), (type(learner).__name__, learner)])
        members.append((str(number), member.fit(Xt, y)))
    vote = model_wrappers.PreFittedSoftVotingClassifier(
        estimators=members, weights=[0.6, 0.4], classification_labels=np.unique(y)
    )
    return Pipeline([("datatransformer", featurizer), ("prefittedsoftvotingclassifier", vote)])


def stack_pipeline(X: pd.DataFrame, y: np.ndarray) -> Any:
    """AutoML's stack ensemble: a linear learner on the answers of LightGBM and of another linear one."""
    from azureml.automl.runtime.shared import model_wrappers
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    featurizer = automl_featurizer(CLASSIFICATION, X, y)
    learners = [lightgbm(CLASSIFICATION, trees=20), LogisticRegression(max_iter=200)]
    members = [(str(i), Pipeline([(type(learner).__name__, learner)])) for i, learner in enumerate(learners)]
    stack = model_wrappers.StackEnsembleClassifier(
        base_learners=members, meta_learner=LogisticRegression(), training_cv_folds=3
    )
    stack.fit(featurizer.fit_transform(X, y), y)
    return Pipeline([("datatransformer", featurizer), ("stackensembleclassifier", stack)])


def sklearn_pipeline(X: pd.DataFrame, y: np.ndarray) -> Any:
    """No AutoML: LightGBM behind a ColumnTransformer that keeps the gaps in "balance" and drops the rest."""
    from lightgbm import LGBMClassifier
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    featurizer = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["age", "balance"]),
            ("job", OneHotEncoder(handle_unknown="ignore"), ["job"]),
        ]
    )
    learner = LGBMClassifier(n_estimators=60, random_state=0, verbose=-1, **REPRODUCIBLE)
    learner.fit(featurizer.fit_transform(X), y)
    return Pipeline([("columntransformer", featurizer), ("lgbmclassifier", learner)])


def boosters(model: Any) -> Iterator[Any]:
    """Every LightGBM booster inside a fitted pipeline or ensemble."""
    if hasattr(model, "booster_"):
        yield model.booster_
    parts = [getattr(model, name) for name in ("learner", "model") if hasattr(model, name)]
    for name in ("steps", "estimators_", "_base_learners"):
        parts += getattr(model, name, [])
    for part in parts:
        yield from boosters(part[1] if isinstance(part, tuple) else part)
