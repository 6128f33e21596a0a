"""Who is measured: each way to predict or explain the subject's rows, in the form that it is fastest with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import issparse

from batch_explain.bench.subject import Subject
from batch_explain.explainers.base import Explainer
from batch_explain.explainers.direct import DirectExplainer
from batch_explain.explainers.opaque import as_array
from batch_explain.explainers.tree import TreeExplainer

MODEL, PREDICT, CONTRIB, SDK = "featurize + predict", "LightGBM predict", "LightGBM pred_contrib", "SDK explain()"
MARGIN = "the model's margin"  # of a model that is explained by its own trees
KERNEL, OWN, RUN = "batch_explain kernel", "batch_explain explainer", "batch_explain whole run"
OURS = (KERNEL, OWN)


@dataclass(frozen=True)
class Method:
    """One way.

    Parameters
    ----------
    name : str
    take : callable
        ``take(n)``: the first ``n`` rows, in its form.
    call : callable or None
        What is timed, of such rows.
    values : callable or None
        From what ``call`` returned for so many rows to importances, shape (output, used feature, row).
    why : str or None
        Why there is nothing to measure.
    """

    name: str
    take: Callable[[int], Any] = lambda rows: rows
    call: Callable[[Any], Any] | None = None
    values: Callable[[Any, int], np.ndarray] | None = None
    why: str | None = None


def methods_of(subject: Subject) -> list[Method]:
    """All that can be measured, and what cannot, with the reason."""
    explainer = subject.artifacts.explainer
    return [_model(subject), *_lightgbm(subject, explainer), _sdk(subject, explainer)]


def _model(subject: Subject) -> Method:
    if subject.artifacts.teacher is None:
        return Method(MODEL, why="there is no --model, the rows are engineered")
    table = subject.table
    if table is None:
        return Method(MODEL, why="a forecasting model takes whole series: the whole run has its time")
    return Method(MODEL, lambda rows: table.slice(0, rows), subject.artifacts.engineered)


def _lightgbm(subject: Subject, explainer: Explainer) -> list[Method]:
    def take(rows: int) -> Any:
        return subject.matrix[:rows]

    ours = Method(
        KERNEL if isinstance(explainer, TreeExplainer) else OWN,
        take,
        explainer.explain_used,
        lambda found, rows: np.asarray(found.values),
    )
    if not isinstance(explainer, TreeExplainer):
        why = f"the explainer has no LightGBM trees: {explainer.description}"
        return [Method(PREDICT, why=why), ours, Method(CONTRIB, why=why)]
    predict = Method(MARGIN if isinstance(explainer, DirectExplainer) else PREDICT, take, explainer.margins)
    if not explainer.same_in_lightgbm:
        return [predict, ours, Method(CONTRIB, why="the trees have weights of rows, which it does not know")]
    probabilities = explainer.probability_iterations is not None and explainer.n_outputs > 1
    rescaled = probabilities and not issparse(subject.matrix)
    of_contrib = None if rescaled else lambda found, rows: np.asarray(found[:, :-1])
    return [predict, ours, Method(CONTRIB, take, explainer.pred_contrib, of_contrib)]


def _sdk(subject: Subject, explainer: Explainer) -> Method:
    source = subject.sdk_explainer()
    if isinstance(source, str):
        return Method(SDK, why=source)
    is_sdk = type(source).__module__.startswith("azureml.")
    options = {"get_raw": False} if is_sdk else {}

    def values(found: Any, rows: int) -> np.ndarray:
        every = as_array(found, rows)
        if every.shape[0] == 2 and explainer.n_outputs == 1:  # mirrored outputs are one
            every = every[1:]
        return np.asarray(every[:, explainer.used])

    name = SDK if is_sdk else f"{type(source).__name__}.explain()"
    return Method(name, lambda rows: subject.matrix[:rows], lambda rows: source.explain(rows, **options), values)
