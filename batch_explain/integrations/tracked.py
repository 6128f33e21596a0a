"""The whole job, and telling others of it."""

from collections.abc import Sequence
from typing import Any

from batch_explain.engine.runner import run
from batch_explain.errors import DriftError, OptionError
from batch_explain.events import Observer
from batch_explain.options import RunOptions
from batch_explain.results import Run, open_run


def explain_dataset(*, mlflow: bool = False, observers: Sequence[Observer] = (), **options: Any) -> Run:
    """Explain every row of a parquet dataset.

    Parameters
    ----------
    mlflow : bool
        Log the finished run to MLflow, as :func:`batch_explain.log_to_mlflow` does; asked before anything is started.
    observers : sequence of callable
        Each is called with every event of the run (see :mod:`batch_explain.events`).
    **options
        The fields of :class:`batch_explain.options.RunOptions`: ``input``, ``output``, ``explainer``, ``model`` and so
        on.

    Returns
    -------
    Run
        The finished run.

    Raises
    ------
    BatchExplainError
        One of its kinds: see :mod:`batch_explain.errors`. A ``DriftError`` or a ``NotLoggedError`` comes after the run
        is finished, and :func:`open_run` opens it.

    Examples
    --------
    >>> run = explain_dataset(  # doctest: +SKIP
    ...     input="rows/", model="model.pkl", explainer="scoring_explainer.pkl", output="out/")
    >>> run.summary("raw")  # doctest: +SKIP
    """
    asked = RunOptions.create(**options)
    if not isinstance(mlflow, bool):
        raise OptionError(f"mlflow is {mlflow!r}. Use true or false.")
    if not mlflow:
        return run(asked, observers)
    from batch_explain.integrations.mlflow import Tracking

    tracking = Tracking.connect()
    try:
        finished = run(asked, observers)
    except DriftError:  # which is what one wants to see there
        tracking.log(open_run(asked.output))
        raise
    tracking.log(finished)
    return finished
