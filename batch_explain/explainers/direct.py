"""The teacher itself as its own explainer, where it is a sum of trees: no surrogate, and nothing to be faithful to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.explainers.additive import additive
from batch_explain.explainers.base import Matrix, UsedValues
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.teachers.base import Teacher
from batch_explain.trees.assemble import NotTreesError, Sum, ensemble_of
from batch_explain.trees.write_text import write_model_text
from batch_explain.treeshap.kernel import KernelMissingError, load_kernel

_OBJECTIVES = {
    "identity": "regression",
    "sigmoid": "binary sigmoid:1",
    "softmax": "multiclass num_class:{}",
    "probability": "custom probability",
}
_MARGINS: dict[str, dict[str, Any]] = {
    "LGBMModel": {"raw_score": True},
    "XGBModel": {"output_margin": True},
    "CatBoost": {"prediction_type": "RawFormulaVal"},
}
_SINGLE_TOLERANCE = 1e-4  # relative: sums of float32, as XGBoost makes them


class DirectExplainer(TreeExplainer):
    """A teacher that is a sum of trees.

    Parameters
    ----------
    found : Sum
        Its trees.
    estimator : object
        What predicts from engineered rows, for margins that are the library's own.
    names : sequence of str
        Engineered features.
    classes : tuple or None
        The teacher's.
    **tables
        As :class:`TreeExplainer` takes them.

    Raises
    ------
    ArtifactError
        If the compiled kernel is missing: nothing else explains trees of every library.
    """

    def __init__(
        self, found: Sum, estimator: Any, names: Sequence[str], classes: tuple[Any, ...] | None, **tables: Any
    ) -> None:
        try:
            load_kernel()
        except KernelMissingError as error:
            raise ArtifactError(
                f"The model cannot be explained directly: {error}. Install the package again, with a compiler, or pass "
                "--explainer."
            ) from error
        outputs = len(found.outputs)
        columns = [f"Column_{number}" for number in range(len(names))]  # LightGBM takes no name with a blank
        text = write_model_text(ensemble_of(found, columns, _OBJECTIVES[found.link].format(outputs)))
        super().__init__(
            text, engineered_features=names, surrogate_classes=classes if outputs > 1 else None, **tables
        )  # fmt: skip
        self._sum, self._estimator = found, estimator
        self.margin_tolerance = _SINGLE_TOLERANCE if found.single else self.margin_tolerance
        learner = type(estimator).__name__
        self.description = f"the model itself ({learner}), {self._trees} trees, {len(self.used)} features used"
        self.notes += (_meaning(found, learner),)

    @property
    def absent_is_missing(self) -> bool:
        """Whether what a sparse row does not hold is missing, rather than 0."""
        return self._sum.absent_is_missing

    def explain_used(self, engineered: Matrix, *, values: bool = True, raw: bool = False) -> UsedValues:
        """See :meth:`Explainer.explain_used`."""
        return super().explain_used(self._filled(engineered), values=values, raw=raw)

    def values_of(self, engineered: Matrix) -> UsedValues:
        """See :meth:`Explainer.values_of`."""
        return super().values_of(self._filled(engineered))

    def _filled(self, engineered: Matrix) -> Matrix:
        """Dense rows with NaN where a sparse row holds nothing, for a library that takes that for missing."""
        if not (self.absent_is_missing and sp.issparse(engineered)):
            return engineered
        filled = np.full(engineered.shape, np.nan)
        entries = sp.coo_matrix(engineered)
        filled[entries.row, entries.col] = entries.data
        return filled

    def set_background(self, engineered: Matrix) -> None:
        """See :meth:`Explainer.set_background`."""
        super().set_background(self._filled(engineered))

    def margins(self, engineered: Matrix) -> np.ndarray:
        """The library's own, from which importances are not computed; see :meth:`Explainer.margins`."""
        found = _own_output(self._estimator, engineered, self._sum)
        if found is None:
            return super().margins(self._filled(engineered))
        return np.asarray(found, dtype=np.float64).reshape(engineered.shape[0], -1).T


def direct_explainer(teacher: Teacher, **tables: Any) -> DirectExplainer:
    """Explain a teacher by its own trees.

    Parameters
    ----------
    teacher : Teacher
    **tables
        As :class:`TreeExplainer` takes them.

    Raises
    ------
    ArtifactError
        If it is no sum of trees that can be read exactly; the message says why.
    """
    estimator = teacher.estimator
    names = teacher.engineered_features
    try:
        if names is None:
            raise NotTreesError("the model does not name its engineered features")
        found = additive(estimator)
    except NotTreesError as error:
        raise ArtifactError(
            f"The model, a {teacher.kind}, cannot be explained directly: {error}. Pass the --explainer that was made "
            "for it."
        ) from error
    if teacher.classes is not None and len(found.outputs) not in (1, len(teacher.classes)):
        raise ArtifactError(
            f"The model has {len(teacher.classes)} classes and trees for {len(found.outputs)} outputs: it cannot be "
            "explained directly. Pass the --explainer that was made for it."
        )
    return DirectExplainer(found, estimator, names, teacher.classes, **tables)


def _meaning(found: Sum, learner: str) -> str:
    what = {
        "identity": "its prediction",
        "sigmoid": "its margin, the logit of the second class",
        "softmax": "its margins before softmax, one a class",
        "probability": "its probabilities, one a class",
    }[found.link]
    return f"the model ({learner}) is explained itself, not by a surrogate: importances add up to {what}"


def _own_output(estimator: Any, engineered: Any, found: Sum) -> Any:
    """Margins, predictions or probabilities as the library computes them; None where it has none to ask for."""
    if hasattr(estimator, "steps"):
        for _, step in estimator.steps[:-1]:
            engineered = engineered if step in (None, "passthrough") else step.transform(engineered)
        return _own_output(estimator.steps[-1][1], engineered, found)
    if found.link == "probability":
        return estimator.predict_proba(engineered)
    if found.link == "identity":
        return estimator.predict(engineered)
    if type(estimator).__module__.startswith("azureml.") and getattr(estimator, "model", None) is not None:
        return _own_output(estimator.model, engineered, found)
    names = {base.__name__ for base in type(estimator).__mro__}
    for known, options in _MARGINS.items():
        if known in names:
            return estimator.predict(engineered, **options)
    return estimator.decision_function(engineered) if hasattr(estimator, "decision_function") else None
