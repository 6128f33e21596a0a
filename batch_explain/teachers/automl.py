"""Fitted pipelines of Azure automated ML: datatransformer, then the learner (or ensemble) on engineered features."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.pipeline import Pipeline

from batch_explain.errors import ArtifactError, InterruptedRunError
from batch_explain.teachers.base import Predictions, Series, predict_with
from batch_explain.teachers.columns import Column

FEATURIZER_STEP = "datatransformer"
_KNOWN_KINDS = set("iufbMO")  # others, such as categories, are passed on as they are read
_FILL_NULLS = {"SimpleImputer", "ImputationMarker"}


def is_automl(model: Any) -> bool:
    """Whether a pipeline was made by automated ML (with or without its featurizer)."""
    return isinstance(model, Pipeline) and any(type(step).__module__.startswith("azureml.") for _, step in model.steps)


class AutoMLTeacher:
    """An AutoML pipeline for classification or regression.

    The pipeline is copied shallowly, so that its own ``predict`` code runs on engineered features; label encoders
    (``PipelineWithYTransformations``) are thereby its own as well.
    """

    kind = "AutoML pipeline"
    series: Series | None = None

    def __init__(self, model: Any, raw_features: Sequence[str] | None) -> None:
        steps = list(model.steps)
        self.kind = f"AutoML pipeline ({type(steps[-1][1]).__name__})"
        self._model = model
        self._featurizer: Any = steps[0][1] if steps[0][0] == FEATURIZER_STEP else None
        self.estimator = self._without_featurizer(model)
        self.classes = _classes(model)
        self.task = "regression" if self.classes is None else "classification"
        self.has_probabilities = self.classes is not None and hasattr(self.estimator, "predict_proba")
        self.engineered_features: tuple[str, ...] | None = None
        if self._featurizer is None:
            if raw_features is None:
                raise ArtifactError(
                    "The AutoML model has no datatransformer and the explainer names no raw features, so the input "
                    "columns are unknown. Pass an explainer that was made with raw_features."
                )
            self.columns = tuple(Column(name) for name in raw_features)
        else:
            self.columns = self._featurizer_columns()
            self.engineered_features = tuple(self._featurizer.get_engineered_feature_names())

    def _without_featurizer(self, model: Any) -> Any:
        if self._featurizer is None:
            return model
        rest = Pipeline(model.steps[1:])
        if not hasattr(model, "y_transformer"):
            return rest
        estimator = copy.copy(model)
        estimator.pipeline, estimator.steps = rest, rest.steps
        return estimator

    def _featurizer_columns(self) -> tuple[Column, ...]:
        trained = self._featurizer._columns_types_mapping
        if trained is None:
            return tuple(Column(name) for name in self._featurizer._raw_feature_names)
        imputing, categories = _imputing_columns(self._featurizer), _categories(self._featurizer)
        # The featurizer refuses a whole batch for one null in an integer column although its own imputer would fill
        # it. Telling it that the column is float64 lets the imputer do its work; integers pass through unchanged.
        self._featurizer._columns_types_mapping = {
            name: np.dtype("float64") if dtype.kind in "iu" and name in imputing else dtype
            for name, dtype in trained.items()
        }
        return tuple(
            Column(
                name,
                dtype if isinstance(dtype, np.dtype) and dtype.kind in _KNOWN_KINDS else None,
                imputes_null=name in imputing,
                categories=categories.get(name, frozenset()),
            )
            for name, dtype in trained.items()
        )

    def featurize(self, frame: pd.DataFrame) -> Any:
        """Apply the datatransformer; without one, the raw columns are the engineered ones."""
        if self._featurizer is None:
            return frame
        engineered = self._featurizer.transform(frame)
        expected = len(self.engineered_features or ())
        if engineered.shape[1] != expected:
            raise InterruptedRunError(
                f"The AutoML featurizer returned {engineered.shape[1]} columns instead of {expected}: it leaves out "
                "transformations when the machine is short of memory. Use fewer workers or smaller --batch-rows."
            )
        return engineered

    def predict(self, engineered: Any) -> Predictions:
        """Run the pipeline's later steps (and its label transformer)."""
        return predict_with(self.estimator, engineered, self.classes)

    def predict_raw(self, frame: pd.DataFrame) -> Predictions:
        """Run the whole pipeline."""
        return predict_with(self._model, frame, self.classes)

    def feature_map(self, raw_features: Sequence[str]) -> sp.csr_matrix | None:
        """Weight 1 for each (raw, engineered) pair that the featurizer's own description names.

        The same as ``automl_setup_model_explanations`` computes for ``feature_map``.
        """
        position = {name: i for i, name in enumerate(raw_features)}
        if self._featurizer is None:
            return sp.identity(len(position), format="csr")
        descriptions = self._featurizer.get_json_strs_for_engineered_feature_names()
        pairs = [
            (position[name], column)
            for column, text in enumerate(descriptions)
            for name in json.loads(text)["Transformations"]["Transformer1"]["Input"]
            if name in position
        ]
        rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
        return sp.csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(position), len(descriptions)))


def _classes(model: Any) -> tuple[Any, ...] | None:
    task = getattr(model.steps[0][1], "_task_type", None)
    if task is None:
        from sklearn.base import is_classifier

        task = "classification" if is_classifier(model.steps[-1][1]) else "regression"
    return tuple(np.asarray(model.classes_).tolist()) if task == "classification" else None


def _imputing_columns(featurizer: Any) -> set[str]:
    """Columns whose every transformer begins by filling nulls."""
    first_steps: dict[str, set[str]] = {}
    for column, steps in _transformers(featurizer):
        first_steps.setdefault(column, set()).add(type(steps[0]).__name__)
    return {column for column, names in first_steps.items() if names <= _FILL_NULLS}


def _categories(featurizer: Any) -> dict[str, frozenset[str]]:
    """Column -> the categories that its featurizer learned, in lower case; only of columns that are nothing else."""
    found: dict[str, frozenset[str]] = {}
    for column, steps in _transformers(featurizer):
        vocabulary = getattr(steps[-1], "vocabulary_", None)
        if vocabulary is not None:
            found[column] = frozenset(str(word).lower() for word in vocabulary)
    return found


def _transformers(featurizer: Any) -> Iterator[tuple[str, list[Any]]]:
    """Each column with the steps of each transformer that takes it."""
    mappers = [featurizer.mapper] if featurizer.mapper is not None else [
        entry.mapper for entry in featurizer.transformer_and_mapper_list
    ]  # fmt: skip
    for mapper in mappers:
        for columns, transformer, *_ in mapper.features:
            steps = [step for _, step in transformer.steps] if hasattr(transformer, "steps") else [transformer]
            for column in [columns] if isinstance(columns, str) else columns:
                yield column, steps
