"""What `kernel.py` measures: the kernel and its peers behind one interface, each in its fastest way on one thread.

A method is made for a model, is handed rows in the form that it likes best, and calculates; only the last is timed.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import scipy.sparse as sp
from kernel_cases import Model

from batch_explain.treeshap.kernel import TreeShap


class Method(ABC):
    """One way to explain (or, for scale, to predict) rows.

    Attributes
    ----------
    needs : str
        The module without which it is not installed.
    explains : bool
        Whether it gives values of features.
    few_rows : int
        How many it is tried with first.
    prepares_each_call : bool
        Whether a call has work that does not depend on the rows: it then gets longer calls, of more rows.
    """

    name: str
    needs = "lightgbm"
    explains = True
    few_rows = 4
    prepares_each_call = False

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    def installed(cls) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(cls.needs) is not None

    def take(self, count: int) -> Any:
        """The first rows, as `run` wants them."""
        return self.model.rows[:count]

    @abstractmethod
    def run(self, rows: Any) -> Any:
        """Calculate."""

    @abstractmethod
    def values(self, result: Any, count: int) -> np.ndarray:
        """The first rows of a result, shape (row, output, feature); of a prediction (row, output)."""


class Ours(Method):
    """The kernel that is measured, on all its defaults."""

    name = "batch_explain"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.shap = TreeShap(model.ensemble)

    def run(self, rows: Any) -> Any:
        """Values of the columns that the trees use, and margins."""
        return self.shap.explain(rows, threads=1)

    def values(self, result: Any, count: int) -> np.ndarray:
        """All columns."""
        found = np.zeros((count, self.shap.n_outputs, self.shap.n_features))
        found[:, :, self.shap.used] = result.engineered[:, :, :count].transpose(2, 0, 1)
        return found


class Predict(Method):
    """LightGBM's margins."""

    name = "LightGBM predict"
    explains = False

    def run(self, rows: Any) -> Any:
        """Without the softmax, which is no work of trees."""
        return self.model.booster.predict(rows, raw_score=True, num_threads=1)

    def values(self, result: Any, count: int) -> np.ndarray:
        """Margins."""
        return result[:count].reshape(count, self.model.case.outputs)


class PredContrib(Method):
    """LightGBM's own TreeSHAP."""

    name = "LightGBM pred_contrib"

    def run(self, rows: Any) -> Any:
        """Values and expected values; csr gives csr."""
        return self.model.booster.predict(rows, pred_contrib=True, num_threads=1)

    def values(self, result: Any, count: int) -> np.ndarray:
        """Without the expected values."""
        return with_expected(self.model, result, count)[:, :, :-1]


def with_expected(model: Model, result: Any, count: int) -> np.ndarray:
    """The first rows of a `pred_contrib`, shape (row, output, feature + 1)."""
    parts = [part[:count].toarray() if sp.issparse(part) else part[:count] for part in _listed(result)]
    return np.concatenate(parts, axis=1).reshape(count, model.case.outputs, model.ensemble.n_features + 1)


class Shap(Method):
    """shap.TreeExplainer: it hands LightGBM's models to their pred_contrib."""

    name = "shap.TreeExplainer"
    needs = "shap"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        import shap

        self.explainer = shap.TreeExplainer(model.booster, feature_perturbation="tree_path_dependent")

    def run(self, rows: Any) -> Any:
        """Without its check of the sums."""
        return self.explainer.shap_values(rows, check_additivity=False)

    def values(self, result: Any, count: int) -> np.ndarray:
        """(row, feature) of one output, (row, feature, output) of several; before shap 0.45 a list of the outputs."""
        result = np.stack(result, axis=-1) if isinstance(result, list) else result
        found = result[:count].toarray() if sp.issparse(result) else result[:count]
        return found.reshape(count, self.model.ensemble.n_features, -1).transpose(0, 2, 1)


class Woodelf(Method):
    """woodelf-explainer: float32 results; frames only, so it gets the columns that the trees use, column by column.

    It explains one class a call, and builds its tables in every call.
    """

    name = "woodelf-explainer"
    needs = "woodelf"
    few_rows = 1_000
    prepares_each_call = True

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        from woodelf import WoodelfExplainer
        from woodelf.core.trees.parse_models import load_decision_tree_ensemble_model

        every = range(model.ensemble.n_features)
        self.used = model.ensemble.used
        self.explainers = [
            WoodelfExplainer(
                load_decision_tree_ensemble_model(model.booster, list(every), class_index=output),
                feature_perturbation="tree_path_dependent",
                GPU=False,
            )
            for output in range(model.case.outputs)
        ]

    def take(self, count: int) -> Any:
        """A frame of contiguous columns: an eighth faster than of rows."""
        import pandas as pd

        columns = self.model.rows[:count][:, self.used]
        dense = columns.toarray() if sp.issparse(columns) else columns
        return pd.DataFrame(np.asfortranarray(dense), columns=self.used.tolist())

    def run(self, rows: Any) -> Any:
        """Its sparing output: no columns of zeros, no copy into an array."""
        return [
            explainer.shap_values(rows, as_df=True, exclude_zero_contribution_features=True, verbose=False)
            for explainer in self.explainers
        ]

    def values(self, result: Any, count: int) -> np.ndarray:
        """All columns."""
        found = np.zeros((count, len(result), self.model.ensemble.n_features))
        for output, frame in enumerate(result):
            found[:, output, frame.columns.to_numpy(dtype=np.int64)] = frame.to_numpy()[:count]
        return found


class Shapiq(Method):
    """shapiq.TreeExplainer: one dense row and one class a call."""

    name = "shapiq"
    needs = "shapiq"
    few_rows = 1

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        import shapiq

        outputs = range(model.case.outputs) if model.case.outputs > 1 else [None]
        self.explainers = [
            shapiq.TreeExplainer(model.booster, mode="pathdependent", index="SV", max_order=1, class_index=output)
            for output in outputs
        ]

    def take(self, count: int) -> Any:
        """Dense rows."""
        rows = self.model.rows[:count]
        return rows.toarray() if sp.issparse(rows) else rows

    def run(self, rows: Any) -> Any:
        """Its explain_X is this loop, with joblib around it."""
        return [[explainer.explain_function(row) for explainer in self.explainers] for row in rows]

    def values(self, result: Any, count: int) -> np.ndarray:
        """Out of dictionaries."""
        found = np.zeros((count, len(self.explainers), self.model.ensemble.n_features))
        for row, outputs in enumerate(result[:count]):
            for output, values in enumerate(outputs):
                for features, value in values.interactions.items():
                    if features:
                        found[row, output, features[0]] = value
        return found


def _listed(result: Any) -> list[Any]:
    """LightGBM gives the csr contributions of several classes as a list."""
    return result if isinstance(result, list) else [result]


PEERS: tuple[type[Method], ...] = (Predict, PredContrib, Shap, Woodelf, Shapiq)
