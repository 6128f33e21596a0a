"""Explanations of Azure ML runs (SDK v1): those of training fetched, and those of a finished run put beside them."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch_explain.errors import NotLoggedError, OptionError, first_line
from batch_explain.forms.explanation import Explanation
from batch_explain.forms.interpret_form import interpret_explanation
from batch_explain.integrations.mlflow_record import identity
from batch_explain.results import Run

LEVELS = ("raw", "engineered")

_CURRENT = "current"  # instead of an id: the run of the job that this process belongs to
_LOCAL_BYTES, _LOCAL_ROWS = 10_000_000, 5_000  # beyond either the client draws rows by itself, unseeded


@dataclass(frozen=True)
class AzureRun:
    """A run of an Azure ML workspace.

    Parameters
    ----------
    run : azureml.core.Run
    """

    run: Any

    @classmethod
    def find(cls, run_id: str, *, best: str | None = None, workspace: str | None = None) -> "AzureRun":
        """Look a run up.

        Parameters
        ----------
        run_id : str
            Its id, or ``current``: that of the job that this process is a part of.
        best : str, optional
            The run is that of a whole AutoML experiment, and its child that is best by this metric is meant;
            ``primary``: by the metric that it was trained for.
        workspace : str, optional
            The workspace's ``config.json``, or a folder that holds it; None: here or in a folder above.

        Raises
        ------
        OptionError
            If the SDK is not installed, or there is no such workspace, run or metric.
        """
        try:
            from azureml.core import Run as SdkRun
            from azureml.core import Workspace
        except ImportError as error:
            raise OptionError(
                f"--azure-run needs Azure ML's SDK v1, which is not installed here ({error}). Install "
                "batch_explain[automl] on Python 3.10."
            ) from error
        try:
            if run_id == _CURRENT:
                run = SdkRun.get_context(allow_offline=False)
            else:
                run = Workspace.from_config(path=workspace).get_run(run_id)
            return cls(run if best is None else _best_child(run, None if best == "primary" else best))
        except OptionError:
            raise
        except Exception as error:  # the SDK's, msrest's, the identity's or the network's: nothing was started
            raise OptionError(
                f"The Azure ML run '{run_id}' cannot be used: {_said(error)}. Nothing was started: "
                "check the id, the workspace's config.json (--workspace) and your login."
            ) from error

    def download(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Fetch the newest explanation of each level that the run has.

        Parameters
        ----------
        folder : path-like or str
            New, on this machine; each level gets a folder in it, which :func:`batch_explain.open_explanation` reads.

        Returns
        -------
        dict
            Level -> its folder.

        Raises
        ------
        OptionError
            If the run has none, or the folder is there already.
        """
        from azureml.interpret import ExplanationClient
        from azureml.interpret.common.exceptions import ExplanationNotFoundException
        from interpret_community.explanation.explanation import save_explanation

        place = Path(folder).absolute()
        if place.exists():
            raise OptionError(f"{place} is there already. Choose a new folder for the explanations.")
        found = {}
        try:
            with _scratch():
                client = ExplanationClient.from_run(self.run)
                for level in LEVELS:
                    with contextlib.suppress(ExplanationNotFoundException):
                        asked = {"raw": True} if level == "raw" else {"raw": False, "engineered": True}
                        found[level] = client.download_model_explanation(**asked)
        except Exception as error:
            raise OptionError(
                f"The explanations of the Azure ML run '{self.run.id}' cannot be fetched: "
                f"{_said(error)}. Check that you may read the run and its artifacts, and ask again."
            ) from error
        if not found:
            raise OptionError(
                f"The Azure ML run '{self.run.id}' has no raw and no engineered explanation. Name the run that was "
                "explained: of an AutoML experiment that is a child, usually the best one (--best primary)."
            )
        for level, explanation in found.items():
            save_explanation(explanation, str(place / level))
        return {level: place / level for level in found}

    def upload(self, run: Run) -> list[str]:
        """Put a finished run's explanations beside the Azure ML run's own: global of all rows, local of sampled ones.

        The studio shows them in the run's Explanations tab, by the comment ``batch_explain LEVEL DIGEST``. What is
        there already is not sent again.

        Parameters
        ----------
        run : Run

        Returns
        -------
        list of str
            The comments.

        Raises
        ------
        NotLoggedError
            If the workspace did not take all of it.
        """
        from azureml.interpret import ExplanationClient

        comments = []
        try:
            with _scratch():
                client = ExplanationClient.from_run(self.run)
                for level in LEVELS:
                    if not run.location.join(f"summary/{level}.parquet").exists():
                        continue
                    comment = f"batch_explain {level} {identity(run)[:12]}"
                    if not client.list_model_explanations(comment=comment):
                        explanation = interpret_explanation(_for_studio(run, level))
                        client.upload_model_explanation(explanation, comment=comment, visualization_points=_LOCAL_ROWS)
                    comments.append(comment)
        except Exception as error:
            raise NotLoggedError(
                f"The run is complete, and its results are in {run.location}, but the Azure ML run '{self.run.id}' did "
                f"not take all of its explanations: {_said(error)}. Send them again with: batch-explain "
                f"explanation upload {run.location} --azure-run {self.run.id}. Nothing is explained again."
            ) from error
        return comments


def _said(error: Exception) -> str:
    """What an exception of the SDK says: its text begins with its type."""
    return first_line(Exception(getattr(error, "message", error)))


def _best_child(run: Any, metric: str | None) -> Any:
    from azureml.train.automl.run import AutoMLRun

    if str(run.get_properties().get("runTemplate", "")).lower() != "automl" and run.type != "automl":
        raise OptionError(
            f"The Azure ML run '{run.id}' is no AutoML experiment, so it has no best child. Pass the id of the run "
            "that was explained, without --best."
        )
    return AutoMLRun(experiment=run.experiment, run_id=run.id).get_best_child(metric=metric)


def _for_studio(run: Run, level: str) -> Explanation:
    """As the studio reads it: no more rows than the client sends, classes as text, no NaN, which it would send as 0."""
    explanation = run._explanation(level, None)
    if (local := explanation.local_values) is not None:
        rows = local.shape[-2]
        most = min(_LOCAL_ROWS, _LOCAL_BYTES * rows // max(1, local.nbytes))
        if rows > most:
            kept = np.linspace(0, rows - 1, most).astype(int)
            explanation = explanation.rows(kept)
    data, predictions = explanation.eval_data, explanation.eval_predictions
    if data is not None and data.dtype.kind == "f":
        data = data.astype(object)
        data[data != data] = None
    if predictions is not None and explanation.classes is not None:
        predictions = [str(label) for label in predictions]
    return replace(explanation, eval_data=data, eval_predictions=predictions)


@contextlib.contextmanager
def _scratch() -> Iterator[None]:
    """A working folder of its own, where the client leaves its files, and its log lines kept off the terminal."""
    before, logger = os.getcwd(), logging.getLogger("azureml")
    level = logger.level
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            os.chdir(before)
