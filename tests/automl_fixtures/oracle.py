"""What the SDK alone answers for a kind: the numbers that a run has to reproduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .quiet import quiet

if TYPE_CHECKING:
    import pandas as pd

    from .kinds import KindPaths


@dataclass(frozen=True)
class Oracle:
    """The SDK's answer for all rows of raw.parquet.

    Attributes
    ----------
    engineered : float64, (outputs, rows, engineered features)
    raw : float64, (outputs, rows, raw features)
    expected_values : float64, (outputs,)
        What the importances of a row add up from: with them they give `margins`.
    margins : float64, (outputs, rows)
        The explained model's own answer on the scale of the importances, not computed from them.
    prediction : (rows,)
        The teacher's `predict`.
    probabilities : float64, (rows, classes)
        Its `predict_proba`; None for regression.
    engineered_features, raw_features
        Names, in the order of the last axis.
    classes
        The teacher's labels, in the order of the outputs and of the columns of `probabilities`; None for
        regression. Of two classes, the one output pushes toward the second.
    """

    engineered: np.ndarray
    raw: np.ndarray
    expected_values: np.ndarray
    margins: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray | None
    engineered_features: list[str]
    raw_features: list[str]
    classes: list[Any] | None


def sdk_explain(paths: KindPaths, *, sparse: bool | None = None) -> Oracle:
    """Explain every row of `paths.raw` by the documented path, with nothing but the SDK.

    Parameters
    ----------
    paths
        One kind, as `build` returned it.
    sparse
        Give the explainer its features as csr (True) or as an array (False); None: as the featurizer made
        them. It matters to a surrogate with a best iteration: sparse rows are explained by the trees up to
        it, dense ones by all.
    """
    import joblib
    import pandas as pd
    from scipy.sparse import csr_matrix, issparse

    with quiet():
        model, explainer = joblib.load(paths.model), joblib.load(paths.explainer)
        rows = pd.read_parquet(paths.raw)
        if explainer._data_mapper is not None:  # it featurizes by itself
            given, features = rows, explainer._data_mapper.transform(rows)
        else:
            given = features = _automl_features(model, rows, paths.task)
            if sparse is not None and sparse != issparse(features):
                given = features = csr_matrix(features) if sparse else features.toarray()
        return Oracle(
            engineered=_stacked(explainer.explain(given, get_raw=False), paths.outputs),
            raw=_stacked(_explain_raw(explainer, given), paths.outputs),
            expected_values=_expected_values(explainer, features)[-paths.outputs :],
            margins=_margins(explainer, features)[-paths.outputs :],
            prediction=np.asarray(model.predict(rows)),
            probabilities=np.asarray(model.predict_proba(rows)) if paths.task == "classification" else None,
            engineered_features=list(explainer.engineered_features),
            raw_features=list(explainer.raw_features),
            classes=list(model.classes_) if paths.task == "classification" else None,
        )


def _automl_features(model: Any, rows: pd.DataFrame, task: str) -> Any:
    from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations

    return automl_setup_model_explanations(model, X_test=rows, task=task, downsample=False).X_test_transform


def _explain_raw(explainer: Any, given: Any) -> Any:
    from scipy.sparse import issparse

    try:
        return explainer.explain(given, get_raw=True)
    except ValueError:
        if not issparse(given):
            raise
        return explainer.explain(given.toarray(), get_raw=True)  # it cannot do sparse rows of several classes


def _stacked(values: Any, outputs: int) -> np.ndarray:
    """[output, row, feature] from any of the five shapes that `explain` returns."""
    from scipy.sparse import issparse

    if issparse(values):
        stacked = values.toarray()[np.newaxis]
    elif issparse(values[0]):
        stacked = np.stack([output.toarray() for output in values])
    else:
        stacked = np.asarray(values, dtype=np.float64)
        stacked = stacked if stacked.ndim == 3 else stacked[np.newaxis]
    if outputs == 1 and len(stacked) == 2:  # a linear or a kernel explainer of two classes: [-v, v]
        if not np.allclose(stacked[0], -stacked[1], rtol=0, atol=1e-9):
            raise ValueError("two outputs that are not each other's negative, where one was expected")
        stacked = stacked[1:]
    if len(stacked) != outputs:
        raise ValueError(f"{len(stacked)} outputs where {outputs} were expected")
    return stacked


def _iterations(explainer: Any, features: Any) -> int:
    """How many iterations of its LightGBM booster the SDK explains: -1 for all of them."""
    from scipy.sparse import issparse

    return explainer._tree_explainer._num_iters if issparse(features) else -1


def _expected_values(explainer: Any, features: Any) -> np.ndarray:
    """Each output's base value. Not `_tree_explainer.expected_value`: that depends on the calls before."""
    model = explainer._model
    if hasattr(model, "booster_"):
        limit = _iterations(explainer, features)
        contributions = model.booster_.predict(_dense(features[:1]), pred_contrib=True, num_iteration=limit)
        return contributions.reshape(-1, features.shape[1] + 1)[:, -1]
    if hasattr(model, "tree_"):
        return model.tree_.value[0].ravel()  # the mean of the training targets, at the root
    shap_explainer = getattr(explainer, "_linear_explainer", None) or explainer._kernel_explainer
    return np.atleast_1d(shap_explainer.expected_value).astype(np.float64)


def _margins(explainer: Any, features: Any) -> np.ndarray:
    from interpret_community.common.constants import ShapValuesOutput

    model = explainer._model
    if hasattr(model, "booster_"):
        if getattr(explainer, "_shap_values_output", None) == ShapValuesOutput.PROBABILITY:
            answer = model.predict_proba(features)
        else:
            answer = model.booster_.predict(features, raw_score=True, num_iteration=_iterations(explainer, features))
    elif hasattr(explainer, "_kernel_explainer"):
        answer = explainer._model_function(features)
    else:
        answer = getattr(model, "decision_function", model.predict)(features)
    return np.asarray(answer).reshape(features.shape[0], -1).T


def _dense(rows: Any) -> np.ndarray:
    return rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
