"""From an unpickled model to a teacher."""

from collections.abc import Sequence
from typing import Any

from batch_explain.errors import ArtifactError
from batch_explain.teachers.base import Teacher


def teacher_of(model: Any, raw_features: Sequence[str] | None, where: str) -> Teacher:
    """Wrap a fitted model.

    Parameters
    ----------
    model : object
        What ``model.pkl`` held.
    raw_features : sequence of str or None
        The explainer's raw features, for models that do not record their columns.
    where : str
        Where the model came from, for messages.

    Raises
    ------
    ArtifactError
        If the model is no classification, regression or forecasting model, or has no explanation.
    """
    from batch_explain.teachers.automl import AutoMLTeacher, is_automl
    from batch_explain.teachers.forecasting import ForecastingTeacher, is_forecasting
    from batch_explain.teachers.sklearn import SklearnTeacher

    try:
        if is_forecasting(model):
            return ForecastingTeacher(model)
        return AutoMLTeacher(model, raw_features) if is_automl(model) else SklearnTeacher(model, raw_features)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error
