"""Scoring explainers, by the documented steps: set up, mimic (or take the learner itself), wrap."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from .teachers import REPRODUCIBLE

#: Half of LightGBM's default of 100 trees (per class): there is no more to test there, only to wait for.
SURROGATE = {**REPRODUCIBLE, "n_estimators": 50}
BACKGROUND_ROWS = 200


def set_up(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """The SDK's own setup: featurized data, estimator, names, feature map."""
    from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations

    return automl_setup_model_explanations(model, X=X, X_test=X.iloc[:500], y=y, task=task, downsample=False)


def names(setup: Any) -> dict[str, Any]:
    """What a scoring explainer must be told to translate engineered into raw importances."""
    return {
        "feature_maps": [setup.feature_map],
        "raw_features": setup.raw_feature_names,
        "engineered_features": setup.engineered_feature_names,
    }


def mimic(setup: Any, surrogate: type, model_args: dict[str, Any], **options: Any) -> Any:
    """A surrogate of class `surrogate`, fitted to the teacher's answers on the featurized training data."""
    from azureml.interpret import MimicWrapper

    wrapper = MimicWrapper(
        None,  # no workspace: nothing is uploaded
        setup.automl_estimator,
        surrogate,
        init_dataset=setup.X_transform,
        run=None,
        features=setup.engineered_feature_names,
        feature_maps=[setup.feature_map],
        classes=setup.classes,
        explainer_kwargs={"augment_data": False, "explainable_model_args": dict(model_args), **options},
    )
    return wrapper.explainer


def tree(model: Any, X: pd.DataFrame, y: np.ndarray, task: str, **options: Any) -> Any:
    """The explainer that AutoML makes by default: a LightGBM surrogate."""
    from azureml.interpret.scoring.scoring_explainer import TreeScoringExplainer

    setup = set_up(model, X, y, task)
    return TreeScoringExplainer(mimic(setup, setup.surrogate_model, SURROGATE, **options), **names(setup))


def probability_tree(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """The same, with importances rescaled from margins to probabilities."""
    from interpret_community.common.constants import ShapValuesOutput

    return tree(model, X, y, task, shap_values_output=ShapValuesOutput.PROBABILITY)


def early_stopped_tree(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """A LightGBM surrogate that holds more trees than its best iteration.

    `LGBMRegressor.fit` drops the trees after the best iteration; `lightgbm.train` keeps them if asked to, by
    `keep_training_booster`, and there is no other way to ask. Bagging gives the later trees an expected value
    of their own: without it, the limit would not show in the surrogate's.
    """
    import lightgbm
    from azureml.interpret.scoring.scoring_explainer import TreeScoringExplainer
    from interpret_community.mimic.models import LGBMExplainableModel

    class EarlyStopped(LGBMExplainableModel):
        def fit(self, dataset: Any, labels: np.ndarray, **kwargs: Any) -> None:
            held_out = np.arange(len(labels)) % 4 == 0

            def train_and_keep(*args: Any, **options: Any) -> Any:
                return lightgbm.train(*args, **options, keep_training_booster=True)

            with mock.patch("lightgbm.sklearn.train", train_and_keep):
                super().fit(
                    dataset[~held_out],
                    labels[~held_out],
                    eval_set=[(dataset[held_out], labels[held_out])],
                    callbacks=[lightgbm.early_stopping(20, verbose=False)],
                    **kwargs,
                )

    setup = set_up(model, X, y, task)
    options = {"n_estimators": 400, "learning_rate": 0.5, "subsample": 0.5, "subsample_freq": 1}
    explainer = mimic(setup, EarlyStopped, {**REPRODUCIBLE, **options})
    return TreeScoringExplainer(explainer, **names(setup))


def sklearn_tree(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """A single scikit-learn decision tree as the surrogate."""
    from azureml.interpret.scoring.scoring_explainer import TreeScoringExplainer
    from interpret_community.mimic.models import DecisionTreeExplainableModel

    setup = set_up(model, X, y, task)
    explainer = mimic(setup, DecisionTreeExplainableModel, {"max_depth": 6})
    # Its presence makes TreeScoringExplainer call _init_tree_explainer, which this surrogate does not have.
    del explainer.surrogate_model._tree_explainer
    return TreeScoringExplainer(explainer, **names(setup))


def linear(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """A linear surrogate; for several classes, a multinomial logistic regression."""
    from azureml.interpret.scoring.scoring_explainer import LinearScoringExplainer
    from interpret_community.mimic.models import LinearExplainableModel

    setup = set_up(model, X, y, task)
    explainer = mimic(setup, LinearExplainableModel, {})
    return LinearScoringExplainer(
        explainer, initialization_examples=setup.X_transform[:BACKGROUND_ROWS], **names(setup)
    )


def direct_linear(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """No surrogate: the linear learner itself is explained. For two classes, `explain` returns [-v, v]."""
    from azureml.interpret.scoring.scoring_explainer import LinearScoringExplainer
    from interpret_community.shap import LinearExplainer

    setup = set_up(model, X, y, task)
    explainer = LinearExplainer(
        model.steps[-1][1], setup.X_transform, features=setup.engineered_feature_names, classes=setup.classes
    )
    return LinearScoringExplainer(
        explainer, initialization_examples=setup.X_transform[:BACKGROUND_ROWS], **names(setup)
    )


def kernel(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """No surrogate: the teacher's estimator is asked, over and over.

    Up to 11 features all coalitions are tried, so that the values are exact and the same in every run.
    """
    from azureml.interpret.scoring.scoring_explainer import KernelScoringExplainer
    from interpret_community.shap import KernelExplainer

    setup = set_up(model, X, y, task)
    background = setup.X_transform[:10]
    explainer = KernelExplainer(setup.automl_estimator, background, features=setup.engineered_feature_names)
    return KernelScoringExplainer(explainer, initialization_examples=background, **names(setup))


def from_transformations(model: Any, X: pd.DataFrame, y: np.ndarray, task: str) -> Any:
    """An explainer that takes raw columns: it carries the pipeline's ColumnTransformer within itself."""
    from azureml.interpret.scoring.scoring_explainer import TreeScoringExplainer
    from interpret_community.mimic.mimic_explainer import MimicExplainer
    from interpret_community.mimic.models import LGBMExplainableModel

    (_, featurizer), (_, learner) = model.steps
    explainer = MimicExplainer(
        learner,
        X,
        LGBMExplainableModel,
        explainable_model_args=dict(SURROGATE),
        augment_data=False,
        features=list(X.columns),
        classes=list(learner.classes_),
        transformations=featurizer,
    )
    return TreeScoringExplainer(explainer, engineered_features=list(featurizer.get_feature_names_out()))
