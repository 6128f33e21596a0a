"""A finished run in an MLflow tracking server; on Azure ML that is the workspace, and the job's own MLflow run.

Address, experiment and credentials come from MLflow's own environment (``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME``, ``MLFLOW_RUN_ID`` and so on).
"""

import contextlib
import logging
import os
import posixpath
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batch_explain.engine.environment import environment
from batch_explain.errors import NotLoggedError, OptionError, first_line, mask_secrets
from batch_explain.integrations.mlflow_record import RUN_TAG, Record, identity, record_of
from batch_explain.results import Run

_logger = logging.getLogger(__name__)

_FOLDER = "batch_explain"  # of the artifacts
_DEFAULT_EXPERIMENT = "Default"
_PARENT_TAG = "mlflow.parentRunId"
_PARAMS, _METRICS = 100, 1_000  # most that one request may hold

# Before a run begins somebody waits for the answer: MLflow's own patience is 7 tries more, four minutes. What the
# environment says counts.
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


@dataclass(frozen=True)
class Tracking:
    """A tracking server that answered.

    Parameters
    ----------
    client : MlflowClient
    uri : str
        Its address, without credentials.
    run_id : str or None
        The MLflow run to log to, which somebody else began and will end; None: a new one.
    """

    client: Any
    uri: str
    run_id: str | None

    @classmethod
    def connect(cls) -> "Tracking":
        """Ask the server that the environment names, without patience.

        Raises
        ------
        OptionError
            If MLflow is not installed, the server does not answer, or the experiment or MLflow run cannot be used.
        """
        try:
            import mlflow
        except ImportError as error:
            raise OptionError(
                f"--mlflow needs MLflow's client, which is not installed here ({error}). Install it with: pip install "
                "'batch-explain[mlflow]', on Azure ML with azureml-mlflow beside it; or leave --mlflow out."
            ) from error
        uri = "the default place"
        try:
            with environment(_IMPATIENT), _told_of_retries("MLflow"):
                uri = mask_secrets(mlflow.get_tracking_uri())
                active = mlflow.active_run()
                run_id = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID") or None
                tracking = cls(mlflow.MlflowClient(), uri, run_id)
                tracking._experiment()
        # MLflow's, requests', a database's or a plugin's: nothing was started, whatever it is
        except Exception as error:
            raise OptionError(
                f"MLflow at {uri} cannot be used: {first_line(error)}. Nothing was started: check "
                "MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID and the credentials in the environment."
            ) from error
        return tracking

    def _experiment(self) -> str | None:
        """The id of the experiment, None where it is not there yet."""
        if self.run_id is not None:
            return str(self.client.get_run(self.run_id).info.experiment_id)
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            found = self.client.get_experiment(given)
        else:
            found = self.client.get_experiment_by_name(_experiment_name())
        if found is not None and found.lifecycle_stage == "deleted":
            raise OptionError(f"the experiment '{found.name}' is deleted")
        return None if found is None else str(found.experiment_id)

    def log(self, run: Run) -> str:
        """Log a finished run, unless it is logged already.

        Parameters
        ----------
        run : Run

        Returns
        -------
        str
            The id of the MLflow run that it is in.

        Raises
        ------
        NotLoggedError
            If the server did not take all of it.
        """
        try:
            with environment(_QUIET), _told_of_retries(f"MLflow at {self.uri}"):
                return self._log(run)
        except Exception as error:  # as above; the run itself is complete
            raise NotLoggedError(
                f"The run is complete, and its results are in {run.location}, but MLflow at {self.uri} did not take "
                f"all of it: {first_line(error)}. When it answers again, log the run with: batch-explain log "
                f"{run.location}, or with the same command and --resume. Nothing is explained again."
            ) from error

    def _log(self, run: Run) -> str:
        digest = identity(run)
        if (found := self._logged(digest)) is not None:
            return found
        with self._mlflow_run(run, digest) as run_id:
            record = record_of(run)
            _log_record(self.client, run_id, record)
            _log_files(self.client, run_id, run, record.files)
            self.client.set_tag(run_id, RUN_TAG, digest)  # last: only what is complete has it
        return run_id

    def _logged(self, digest: str) -> str | None:
        """The MLflow run that has all of a run."""
        if self.run_id is not None and self._tag(self.run_id) == digest:
            return self.run_id
        if (experiment := self._experiment()) is None:
            return None
        wanted = f"tags.`{RUN_TAG}` = '{digest}'"
        if self.run_id is not None:  # a job that logs a finished run again has it in its own MLflow run
            wanted += f" and tags.`{_PARENT_TAG}` = '{self.run_id}'"
        found = self.client.search_runs([experiment], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _tag(self, run_id: str) -> str | None:
        value: str | None = self.client.get_run(run_id).data.tags.get(RUN_TAG)
        return value

    @contextlib.contextmanager
    def _mlflow_run(self, run: Run, digest: str) -> Iterator[str]:
        """The given MLflow run, or a new one: below the given one where that holds another run already."""
        if self.run_id is not None and self._tag(self.run_id) in (None, digest):
            yield self.run_id
            return
        experiment = self._experiment() or self.client.create_experiment(_experiment_name())
        tags = {"mlflow.source.name": "batch-explain"} | ({_PARENT_TAG: self.run_id} if self.run_id else {})
        run_id = self.client.create_run(experiment, tags=tags, run_name=run.location.name).info.run_id
        try:
            yield run_id
        except BaseException:
            with contextlib.suppress(Exception):  # the server that has just failed
                self.client.set_terminated(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id, "FINISHED")


def log_to_mlflow(run: Run) -> str:
    """Log a finished run to the MLflow tracking server that the environment names, unless it is logged there already.

    Parameters
    ----------
    run : Run
        See :func:`batch_explain.open_run`.

    Returns
    -------
    str
        The id of the MLflow run: the active one or that of ``MLFLOW_RUN_ID`` (neither is ended here), or a new one.

    Raises
    ------
    OptionError
        If MLflow is not installed or its server cannot be used.
    NotLoggedError
        If the server did not take all of it.
    """
    return Tracking.connect().log(run)


def _log_record(client: Any, run_id: str, record: Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    for some in _batches([Metric(name, value, now, 0) for name, value in record.metrics.items()], _METRICS):
        client.log_batch(run_id, metrics=some)
    for params in _batches([Param(name, value) for name, value in record.params.items()], _PARAMS):
        client.log_batch(run_id, params=params)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in record.tags.items()])
    if record.features:
        client.log_dict(run_id, record.features, f"{_FOLDER}/metric_names.json")


def _log_files(client: Any, run_id: str, run: Run, files: Sequence[str]) -> None:
    for path in files:
        folder, place = posixpath.join(_FOLDER, posixpath.dirname(path)).rstrip("/"), run.location.join(path)
        if run.location.is_local:
            client.log_artifact(run_id, place.path, folder)
            continue
        with tempfile.TemporaryDirectory() as here:
            copy = os.path.join(here, posixpath.basename(path))
            with open(copy, "wb") as stream:
                stream.write(place.read_bytes())
            client.log_artifact(run_id, copy, folder)


def _batches(entities: list[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(entities), most):
        yield entities[start : start + most]


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT


@contextlib.contextmanager
def _told_of_retries(what: str) -> Iterator[None]:
    """Have MLflow's tries again appear in this package's log, in one line, instead of urllib3's on the terminal."""

    def shown(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            _logger.warning("%s does not answer; it is tried again", what)
        return False

    client = logging.getLogger("urllib3.connectionpool")
    client.addFilter(shown)
    try:
        yield
    finally:
        client.removeFilter(shown)
