"""Learners of our own. They live at module level, where a pickle finds its classes again."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class ThresholdClassifier(ClassifierMixin, BaseEstimator):
    """A two-class learner that answers the second class from a probability of `threshold` on.

    So its `predict` is not the argmax of its `predict_proba`, and whoever infers one from the other is wrong.
    """

    def __init__(self, learner: Any, threshold: float = 0.3) -> None:
        self.learner = learner
        self.threshold = threshold

    def fit(self, X: Any, y: np.ndarray) -> ThresholdClassifier:
        self.learner.fit(X, y)
        self.classes_ = self.learner.classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        return self.learner.predict_proba(X)

    def predict(self, X: Any) -> np.ndarray:
        return self.classes_[(self.predict_proba(X)[:, 1] >= self.threshold).astype(int)]
