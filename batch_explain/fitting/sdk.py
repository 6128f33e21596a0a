"""Scoring explainers of AutoML pipelines, made by the Azure ML SDK itself, offline and with no workspace.

The documented steps: ``automl_setup_model_explanations``, ``MimicWrapper``, ``TreeScoringExplainer`` or
``LinearScoringExplainer``.
"""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from batch_explain.errors import ArtifactError, first_line
from batch_explain.fitting.mimic import REPRODUCIBLE, threads_for
from batch_explain.fitting.options import FitOptions
from batch_explain.teachers.base import Teacher

_SETUP_ROWS = 100  # of X_test, by whose format alone the setup chooses the surrogate


def scoring_explainer(
    model: Any, teacher: Teacher, frame: pd.DataFrame, labels: np.ndarray, options: FitOptions
) -> tuple[Any, tuple[str, ...]]:
    """Make the scoring explainer of a fitted AutoML pipeline.

    Parameters
    ----------
    model : object
        The pipeline.
    teacher : Teacher
        The same, for its task and classes.
    frame : pandas.DataFrame
        Raw training rows.
    labels : ndarray, shape (row,)
    options : FitOptions

    Returns
    -------
    explainer : azureml.interpret.scoring.scoring_explainer.ScoringExplainer
    notes : tuple of str
        What the SDK's defaults were changed to.

    Raises
    ------
    ArtifactError
        If the SDK is not installed, or refuses the model, the rows or an argument.
    """
    try:
        with quiet():
            return _made(model, teacher, frame, labels, options)
    except ImportError as error:
        raise ArtifactError(
            f"The surrogate of an AutoML pipeline is made by the Azure ML SDK, of which a part is missing here "
            f"({error}). Install it on Python 3.10 with: pip install '.[automl]'; or choose --surrogate faithful."
        ) from error
    except Exception as error:
        raise ArtifactError(
            f"The Azure ML SDK does not make a surrogate of this model: {type(error).__name__}: {first_line(error)}. "
            "Choose other --surrogate-arg, or --surrogate faithful."
        ) from error


def _made(
    model: Any, teacher: Teacher, frame: pd.DataFrame, labels: np.ndarray, options: FitOptions
) -> tuple[Any, tuple[str, ...]]:
    from azureml.interpret import MimicWrapper
    from azureml.interpret.scoring.scoring_explainer import LinearScoringExplainer, TreeScoringExplainer
    from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations
    from interpret_community.common.constants import ShapValuesOutput
    from interpret_community.mimic.models import LGBMExplainableModel, LinearExplainableModel

    forecasting = teacher.series is not None  # whose rows only make sense after those of training
    setup = automl_setup_model_explanations(
        model,
        X=frame,
        X_test=None if forecasting else frame.iloc[:_SETUP_ROWS],
        y=labels,
        task="forecasting" if forecasting else teacher.task,
        downsample=False,
    )
    linear = options.surrogate_model == "linear"
    given = dict(setup.surrogate_model_params.get("explainable_model_args", {}))
    arguments = {} if linear else {**given, "n_jobs": threads_for(setup.X_transform), **REPRODUCIBLE}
    extra: dict[str, Any] = {
        "augment_data": options.augment_data,
        "max_num_of_augmentations": options.max_augmentations,
        "explainable_model_args": {**arguments, **options.arguments},
    }
    if options.categorical_features:
        extra["categorical_features"] = list(options.categorical_features)
    if options.shap_values_output == "probability":
        extra["shap_values_output"] = ShapValuesOutput.PROBABILITY
    wrapper = MimicWrapper(
        None,  # no workspace: nothing is uploaded
        setup.automl_estimator,
        LinearExplainableModel if linear else LGBMExplainableModel,
        init_dataset=setup.X_transform,
        run=None,
        features=setup.engineered_feature_names,
        feature_maps=[setup.feature_map],
        # the setup's classes are those of the rows that it is given, which may lack some
        classes=None if teacher.classes is None else list(teacher.classes),
        model_task=teacher.task,
        explainer_kwargs=extra,
    )
    names = {
        "feature_maps": [setup.feature_map],
        "raw_features": setup.raw_feature_names,
        "engineered_features": setup.engineered_feature_names,
    }
    if not linear:
        note = "the surrogate's LightGBM is deterministic and force_col_wise, which the SDK's default is not"
        return TreeScoringExplainer(wrapper.explainer, **names), (note,)
    # the surrogate's own, by which MimicWrapper explains; from examples the SDK would take another mean, at random
    background = wrapper.explainer.surrogate_model._background
    background = np.asarray(background.toarray() if hasattr(background, "toarray") else background, dtype=np.float64)
    note = "the background of the linear surrogate is the one that the SDK summarised the training rows to"
    return LinearScoringExplainer(wrapper.explainer, initialization_examples=background.reshape(1, -1), **names), (
        note,
    )


def saved(explainer: Any) -> bytes:
    """What the SDK's ``save`` writes: ``scoring_explainer.pkl``."""
    from azureml.interpret.scoring.scoring_explainer import save

    with quiet(), tempfile.TemporaryDirectory() as folder:
        save(explainer, directory=folder, exist_ok=True)
        with open(os.path.join(folder, "scoring_explainer.pkl"), "rb") as stream:
            return stream.read()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the SDK prints, logs and warns of. Exceptions and logged errors come through."""
    threshold = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # recorded as well as ignored: the SDK resets the filters, but not where warnings go
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(threshold)
