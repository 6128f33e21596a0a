"""Our own surrogates of the kind that azureml-interpret makes, for models that are not AutoML's."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.engine.environment import cores
from batch_explain.errors import ArtifactError, OptionError, first_line
from batch_explain.explainers.base import Explainer, Matrix, dense
from batch_explain.explainers.linear import LinearExplainer
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.fitting.options import FitOptions
from batch_explain.fitting.targets import Lesson, soft_logits

RANDOM_STATE = 123  # interpret-community's DEFAULT_RANDOM_STATE
SMALL_ROWS = 50  # below so many rows every leaf may hold one, as in MimicExplainer
_SMALL_CELLS = 2_000_000  # rows × columns
# One histogram layout and one order of additions: LightGBM else picks the layout by timing.
REPRODUCIBLE = {"deterministic": True, "force_col_wise": True}


def mimic(known: Lesson, names: tuple[str, ...] | None, options: FitOptions) -> Explainer:
    """Fit a surrogate to what ``interpret_community.mimic`` would fit it to.

    A regressor on the predictions; of two classes on the log-odds clipped at 5 either way; of more a classifier on the
    most probable class.

    Parameters
    ----------
    known : Lesson
    names : tuple of str or None
        The engineered features'.
    options : FitOptions

    Raises
    ------
    OptionError
        If an argument is none of the surrogate's model.
    ArtifactError
        If it cannot be fitted.
    """
    matrix, targets = known.matrix, np.asarray(known.prediction)
    if known.outputs > 1:
        assert known.probabilities is not None
        matrix, targets = _with_all_classes(matrix, known.probabilities)
    elif known.probabilities is not None:
        targets = soft_logits(known.probabilities)
    else:
        targets = targets.astype(np.float64)
    if options.surrogate_model == "linear":
        return _linear(matrix, targets, known, names, options.arguments)
    return _lightgbm(matrix, targets, known, names, options)


def threads_for(matrix: Matrix) -> int:
    """Threads for LightGBM: small data is done sooner by one, above all where others use the machine."""
    return cores() if matrix.shape[0] * matrix.shape[1] > _SMALL_CELLS else 1


def lightgbm_arguments(matrix: Matrix, names: tuple[str, ...] | None, options: FitOptions) -> dict[str, Any]:
    """Arguments of LightGBM's estimators: the SDK's defaults, what makes them reproducible, and the user's own."""
    small = {"min_data_in_leaf": 1} if matrix.shape[0] < SMALL_ROWS else {}
    found: dict[str, Any] = {
        "random_state": RANDOM_STATE,
        "n_jobs": threads_for(matrix),
        "verbosity": -1,
        **REPRODUCIBLE,
        **small,
    }
    if options.categorical_features:
        found["categorical_feature"] = positions(options.categorical_features, names)
    return {**found, **options.arguments}


def positions(features: tuple[str, ...], names: tuple[str, ...] | None) -> list[int]:
    """Where engineered features stand.

    Raises
    ------
    OptionError
        If the model makes none of such a name.
    """
    place = {name: at for at, name in enumerate(names or ())}
    if unknown := [name for name in features if name not in place]:
        raise OptionError(
            f"--categorical-features names '{unknown[0]}', which is none of the {len(place)} engineered features that "
            "the model makes."
        )
    return [place[name] for name in features]


def fitted(estimator: Any, matrix: Matrix, targets: np.ndarray) -> Any:
    """Fit an estimator; what it says against its data or arguments becomes one paragraph."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return estimator.fit(matrix, targets)
    except Exception as error:
        raise ArtifactError(
            f"The surrogate cannot be fitted: {type(error).__name__}: {first_line(error)}. Choose other "
            "--surrogate-arg, or another --surrogate-model."
        ) from error


def _with_all_classes(matrix: Matrix, probabilities: np.ndarray) -> tuple[Matrix, np.ndarray]:
    """Most probable classes; one that is never it is learned from the row where it is most probable."""
    labels = probabilities.argmax(axis=1)
    absent = np.setdiff1d(np.arange(probabilities.shape[1]), labels)
    extra = probabilities[:, absent].argmax(axis=0)
    if len(absent):
        stack = sp.vstack if sp.issparse(matrix) else np.vstack
        matrix = stack([matrix, matrix[extra]])
        matrix = sp.csr_matrix(matrix) if sp.issparse(matrix) else matrix
    return matrix, np.concatenate([labels, absent])


def _lightgbm(
    matrix: Matrix, targets: np.ndarray, known: Lesson, names: tuple[str, ...] | None, options: FitOptions
) -> Explainer:
    import lightgbm

    several = known.outputs > 1
    made = estimator(
        lightgbm.LGBMClassifier if several else lightgbm.LGBMRegressor,
        lightgbm_arguments(matrix, names, options),
    )
    booster = fitted(made, matrix, targets).booster_
    rescaled = options.shap_values_output == "probability" and several
    return TreeExplainer(
        booster.model_to_string(num_iteration=-1),
        engineered_features=names,
        surrogate_classes=tuple(range(known.outputs)) if several else None,
        probability_iterations=int(booster.best_iteration) if rescaled else None,
    )


def _linear(
    matrix: Matrix, targets: np.ndarray, known: Lesson, names: tuple[str, ...] | None, arguments: dict[str, Any]
) -> Explainer:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    if known.outputs > 1:
        made = estimator(LogisticRegression, {"random_state": RANDOM_STATE, "solver": "lbfgs", **arguments})
    else:
        made = estimator(LinearRegression, arguments)
    found = fitted(made, matrix, targets)
    return linear_explainer(known, names, found.coef_, found.intercept_)


def linear_explainer(
    known: Lesson, names: tuple[str, ...] | None, coefficients: np.ndarray, intercepts: np.ndarray
) -> LinearExplainer:
    """A linear surrogate against the mean of the rows that it was fitted on."""
    coefficients = np.atleast_2d(np.asarray(coefficients, dtype=np.float64))
    intercepts = np.broadcast_to(np.asarray(intercepts, dtype=np.float64), len(coefficients)).copy()
    means = np.asarray(dense(known.matrix.mean(axis=0)) if sp.issparse(known.matrix) else known.matrix.mean(axis=0))
    means = means.ravel()
    several = len(coefficients) > 1
    return LinearExplainer(
        coefficients,
        means,
        coefficients @ means + intercepts,
        intercepts,
        engineered_features=names,
        surrogate_classes=tuple(range(len(coefficients))) if several else None,
        link="softmax" if several else "identity",
    )


def estimator(kind: Any, arguments: dict[str, Any]) -> Any:
    """Make an estimator."""
    try:
        return kind(**arguments)
    except TypeError as error:
        raise OptionError(
            f"--surrogate-arg: {kind.__name__} does not take this ({first_line(error)}). Its documentation lists what "
            "it takes."
        ) from error
