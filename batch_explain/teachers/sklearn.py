"""scikit-learn pipelines and bare estimators."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from batch_explain.errors import ArtifactError
from batch_explain.teachers.base import Predictions, Series, predict_with
from batch_explain.teachers.columns import Column


class SklearnTeacher:
    """A scikit-learn ``Pipeline`` (all steps but the last featurize), or an estimator on engineered features."""

    series: Series | None = None

    def __init__(self, model: Any, raw_features: Sequence[str] | None) -> None:
        if isinstance(model, type) or not hasattr(model, "predict"):
            raise ArtifactError(
                f"The model is a {type(model).__name__}, which has no predict. Pass the fitted pipeline that automated "
                "ML or scikit-learn made."
            )
        self._model = model
        self._featurizer, self.estimator = None, model
        if isinstance(model, Pipeline):
            self.estimator = model.steps[-1][1]
            self._featurizer = model[:-1] if len(model.steps) > 1 else None
        self.kind = f"scikit-learn {type(model).__name__} ({type(self.estimator).__name__})"
        self.task = "classification" if is_classifier(self.estimator) else "regression"
        if self.task == "classification" and not hasattr(model, "classes_"):
            raise ArtifactError(
                f"The model is a {type(model).__name__} that is not fitted: it has no classes_. Pass the fitted "
                "pipeline."
            )
        self.classes = tuple(np.asarray(model.classes_).tolist()) if self.task == "classification" else None
        self.has_probabilities = self.classes is not None and hasattr(self.estimator, "predict_proba")
        names = getattr(model, "feature_names_in_", raw_features)
        if names is None:
            raise ArtifactError(
                "The model does not record the names of its input columns and the explainer names none either. Fit "
                "the pipeline on a DataFrame, or make the explainer with raw_features."
            )
        self.columns = tuple(Column(str(name)) for name in names)
        self.engineered_features = _names_out(self._featurizer, [column.name for column in self.columns])

    def featurize(self, frame: pd.DataFrame) -> Any:
        """Apply all steps but the last."""
        return frame if self._featurizer is None else self._featurizer.transform(frame)

    def predict(self, engineered: Any) -> Predictions:
        """Apply the last step."""
        return predict_with(self.estimator, engineered, self.classes)

    def decisions(self, engineered: Any) -> np.ndarray | None:
        """``decision_function``'s answer, shape (row, output); None where it has not one number for each output."""
        if self.classes is None or not hasattr(self.estimator, "decision_function"):
            return None
        found = np.asarray(self.estimator.decision_function(engineered), dtype=np.float64)
        found = found.reshape(len(found), -1)
        return found if found.shape[1] == (1 if len(self.classes) == 2 else len(self.classes)) else None

    def predict_raw(self, frame: pd.DataFrame) -> Predictions:
        """Run the whole pipeline."""
        return predict_with(self._model, frame, self.classes)

    def feature_map(self, raw_features: Sequence[str]) -> sp.csr_matrix | None:
        """Which raw column each engineered one comes from, read off the fitted transformers."""
        names = [column.name for column in self.columns]
        found = sp.identity(len(names), format="csr")
        if self._featurizer is not None:
            for _, step in self._featurizer.steps:
                weights = _step_map(step, found.shape[1], names if found.shape[0] == found.shape[1] else None)
                if weights is None or weights.shape[0] != found.shape[1]:
                    return None
                found = found @ weights
        rows = [names.index(name) if name in names else None for name in raw_features]
        if None in rows:
            return None
        return sp.csr_matrix(found[rows])


def _names_out(featurizer: Any, names: list[str]) -> tuple[str, ...] | None:
    if featurizer is None:
        return tuple(names)
    try:
        return tuple(str(name) for name in featurizer.get_feature_names_out())
    except (AttributeError, ValueError, NotImplementedError):
        return None  # a transformer without names: the explainer's names are taken


def _step_map(step: Any, inputs: int, names: list[str] | None) -> sp.csr_matrix | None:
    """Weights, shape (input, output), of one fitted transformer; None where its outputs cannot be traced."""
    if step is None or step == "passthrough":
        return sp.identity(inputs, format="csr")
    if isinstance(step, Pipeline):
        product = sp.identity(inputs, format="csr")
        for _, inner in step.steps:
            weights = _step_map(inner, product.shape[1], None)
            if weights is None or weights.shape[0] != product.shape[1]:
                return None
            product = product @ weights
        return product
    if isinstance(step, ColumnTransformer):
        return _column_transformer_map(step, inputs, names)
    if hasattr(step, "categories_"):
        return _encoder_map(step, inputs)
    outputs = _outputs_of(step, inputs)
    if outputs is None:
        return None
    if inputs == 1:
        return sp.csr_matrix(np.ones((1, outputs)))
    if outputs == inputs and _keeps_columns(step):
        return sp.identity(inputs, format="csr")
    return None


def _keeps_columns(step: Any) -> bool:
    """Scalers, imputers and the like: output i comes from input i alone."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import FunctionTransformer

    if isinstance(step, SimpleImputer):
        return step.indicator_ is None
    one_to_one = any(base.__name__ in ("OneToOneFeatureMixin", "_OneToOneFeatureMixin") for base in type(step).__mro__)
    return one_to_one or (isinstance(step, FunctionTransformer) and step.func is None)


def _outputs_of(step: Any, inputs: int) -> int | None:
    try:
        return len(step.get_feature_names_out())
    except (AttributeError, ValueError, NotImplementedError):
        one_to_one = any(base.__name__.endswith("OneToOneFeatureMixin") for base in type(step).__mro__)
        return inputs if one_to_one else None


def _encoder_map(step: Any, inputs: int) -> sp.csr_matrix | None:
    """One-hot and ordinal encoders: outputs stand input by input."""
    if len(step.categories_) != inputs:
        return None
    widths = getattr(step, "_n_features_outs", None) or [1] * inputs
    columns = np.repeat(np.arange(inputs), widths)
    return sp.csr_matrix((np.ones(len(columns)), (columns, np.arange(len(columns)))), shape=(inputs, len(columns)))


def _column_transformer_map(step: Any, inputs: int, names: list[str] | None) -> sp.csr_matrix | None:
    known = [str(name) for name in getattr(step, "feature_names_in_", names if names is not None else [])]
    outputs = max((part.stop for part in step.output_indices_.values()), default=0)
    weights = sp.lil_matrix((inputs, outputs))
    for name, transformer, columns in step.transformers_:
        part = step.output_indices_[name]
        if transformer == "drop" or part.stop == part.start:
            continue
        if isinstance(columns, str | int | np.integer):
            columns = [columns]
        if isinstance(columns, slice) or callable(columns) or np.asarray(columns).dtype == bool:
            return None
        try:
            rows = [known.index(column) if isinstance(column, str) else int(column) for column in columns]
        except ValueError:
            return None
        inner = _step_map(transformer, len(rows), None)
        if inner is None or inner.shape[1] != part.stop - part.start:
            return None
        weights[np.ix_(rows, range(part.start, part.stop))] = inner.toarray()
    return sp.csr_matrix(weights)
