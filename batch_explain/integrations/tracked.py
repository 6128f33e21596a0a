"""The whole job, and telling others of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from batch_explain.engine import steps
from batch_explain.engine.runner import run
from batch_explain.engine.steps import Planned
from batch_explain.errors import DriftError, NotLoggedError, OptionError
from batch_explain.events import Observer
from batch_explain.options import RunOptions
from batch_explain.results import Run, open_run
from batch_explain.storage.registered import is_registered


def explain_dataset(
    *, mlflow: bool = False, azure_run: str | None = None, observers: Sequence[Observer] = (), **options: Any
) -> Run:
    """Explain every row of a parquet dataset.

    Parameters
    ----------
    mlflow : bool
        Log the finished run to MLflow, as :func:`batch_explain.log_to_mlflow` does; asked before anything is started.
    azure_run : str, optional
        Id of an Azure ML run (``current``: this job's own), which the finished run's explanations are uploaded to; it
        is looked up, in the workspace of the nearest ``config.json``, before anything is started.
    observers : sequence of callable
        Each is called with every event of the run (see :mod:`batch_explain.events`).
    **options
        The fields of :class:`batch_explain.options.RunOptions`: ``input``, ``output``, ``explainer``, ``model`` and so
        on. ``scheduler`` may also be a ``distributed.Client``, or a cluster of Dask; it is left open.

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
    with _client(options.get("scheduler", "processes")) as client:
        if client is not None:
            options = {**options, "scheduler": client.scheduler.address}
        return _explain_dataset(mlflow, azure_run, observers, client, options)


def _explain_dataset(
    mlflow: bool, azure_run: str | None, observers: Sequence[Observer], client: Any, options: dict[str, Any]
) -> Run:
    asked = RunOptions.create(**{name: _pinned(name, value) for name, value in options.items()})
    if not isinstance(mlflow, bool):
        raise OptionError(f"mlflow is {mlflow!r}. Use true or false.")
    told = _told(mlflow, azure_run)
    if not told:
        return run(asked, observers, client)
    drifted: DriftError | None = None
    try:
        finished = run(asked, observers, client)
    except DriftError as error:  # which is what one wants to see there
        finished, drifted = open_run(asked.output), error
    refused: NotLoggedError | None = None
    for tell in told:
        try:
            tell(finished)
        except NotLoggedError as error:  # the others are told all the same
            refused = refused or error
    if refused is not None:
        raise refused
    if drifted is not None:
        raise drifted
    return finished


def _client(scheduler: Any) -> AbstractContextManager[Any]:
    """The Dask client that was passed, or one of the cluster that was; None of a name or an address."""
    if scheduler is None or isinstance(scheduler, str | int | float):  # of a configuration: RunOptions refuses numbers
        return nullcontext()
    from batch_explain.engine.cluster import client_of

    return client_of(scheduler)


def plan_dataset(
    *, mini_batch_timeout: float | None = None, observers: Sequence[Observer] = (), **options: Any
) -> Planned:
    """Plan a run and explain nothing; see :func:`batch_explain.engine.steps.plan_dataset`.

    Registered models are planned by their version, as in :func:`explain_dataset`.
    """
    pinned = {name: _pinned(name, value) for name, value in options.items()}
    return steps.plan_dataset(mini_batch_timeout=mini_batch_timeout, observers=observers, **pinned)


def _pinned(name: str, value: Any) -> Any:
    """A registered model by its version, so that all workers, and --resume, mean the same one."""
    if name not in ("model", "explainer") or not isinstance(value, str) or not is_registered(value):
        return value
    from batch_explain.integrations.registry import pinned

    return pinned(value)


def _told(mlflow: bool, azure_run: str | None) -> list[Callable[[Run], Any]]:
    """Who is told of the finished run; each has answered."""
    told: list[Callable[[Run], Any]] = []
    if mlflow:
        from batch_explain.integrations.mlflow import Tracking

        told.append(Tracking.connect().log)
    if azure_run is not None:
        from batch_explain.integrations.azure_runs import AzureRun

        told.append(AzureRun.find(azure_run).upload)
    return told
