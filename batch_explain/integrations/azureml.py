"""What an entry script of Azure ML calls: ParallelRunStep (v1), parallel jobs and batch endpoints (v2)."""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batch_explain.engine.brought import begin, run_brought
from batch_explain.engine.explaining import Context
from batch_explain.engine.partitions import FilePartition
from batch_explain.engine.steps import finalize_run, of_files, planned_context, planned_options
from batch_explain.engine.task import run_partition
from batch_explain.engine.workers import loaded_artifacts
from batch_explain.errors import BatchExplainError, InputError, OptionError
from batch_explain.integrations.minibatches import file_of_frame, match, name_of, read_file, rows_of
from batch_explain.options import RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.storage.output import PLAN_FILE
from batch_explain.storage.receipts import Receipt

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger("batch_explain.azureml")
_SEVERAL = ("columns_map", "cohort", "trust", "sha256")
_COMMAS = ("id_columns", "outputs", "exclude_features")
_NOT_HERE = ("limit", "overwrite", "resume", "scheduler", "workers")


class EntryScript:
    """``init``, ``run`` and ``shutdown`` of an entry script, one object a process.

    Explains the files or rows of each mini-batch into the run's folder, as the plan there says (``batch-explain plan``,
    as a first step), or without a plan: parts are then numbered by their file's name and row range, or by the ids of a
    DataFrame's rows. Whatever is done already is not done again, whoever did it.

    Parameters
    ----------
    append : sequence of str
        Tables (``predictions``, ``raw`` …) that ``run`` returns the rows of, for ``append_row``; empty: it returns one
        text for each item, for ``summary_only``. The argument ``--append predictions,raw`` wins.
    finalize : bool
        Whether ``shutdown`` ends the run, where all its partitions are done.
    **options
        As of :func:`batch_explain.explain_dataset`; the script's arguments win. With a plan, only places need be given.
        ``input_root``: the folder that files' names are relative to, without a plan.

    Examples
    --------
    >>> script = EntryScript()
    >>> init, run, shutdown = script.init, script.run, script.shutdown
    """

    def __init__(self, *, append: Sequence[str] = (), finalize: bool = True, **options: Any) -> None:
        self._append = tuple(append)
        self._finalize = finalize
        self._given = options
        self._context: Context | None = None

    def init(self, arguments: Sequence[str] | None = None) -> None:
        """Read the script's arguments and load the artifacts; unknown arguments are logged and ignored.

        Raises
        ------
        OptionError, ArtifactError
            If arguments are missing or wrong, or the artifacts cannot be loaded.
        """
        given = {**_of_the_environment(), **self._given, **_parsed(sys.argv[1:] if arguments is None else arguments)}
        self._root = given.pop("input_root", None)
        if (append := given.pop("append", None)) is not None:
            self._append = tuple(str(append).split(","))
        if given.get("output") is None:
            raise OptionError(
                "The entry script was not told where to write. Pass --output-folder, which all nodes share (batch "
                "endpoints have AZUREML_BI_OUTPUT_PATH)."
            )
        self._given, self._output = given, Location(str(given["output"]))
        if self._output.join(PLAN_FILE).exists():
            self._context = self._planned()
        else:
            loaded_artifacts(self._options())

    def run(self, mini_batch: Any, context: Any = None) -> "list[str] | pd.DataFrame":
        """Explain a mini-batch.

        Parameters
        ----------
        mini_batch : sequence of str, or DataFrame
            Paths of files, or rows.
        context : object, optional
            The platform's; not needed.

        Returns
        -------
        list of str or DataFrame
            At least one element for each file or row that came in.

        Raises
        ------
        BatchExplainError
            If rows cannot be explained: the platform tries again, and then gives the mini-batch up.
        """
        del context
        if not len(mini_batch):
            return []
        if hasattr(mini_batch, "columns"):
            done, answers = self._explain_frame(mini_batch)
        else:
            done, answers = [], []
            for item in map(str, mini_batch):
                parts = self._explain_file(item)
                done += parts
                answers.append(f"{item}: {sum(part.rows for part, _ in parts)} rows in {len(parts)} partitions")
        if not self._append:
            return answers
        assert self._context is not None
        return rows_of(self._context.plan, done, self._append)

    def shutdown(self) -> None:
        """End the run where all its partitions are done; else another process, or batch-explain finalize, does."""
        if not self._finalize or self._context is None:
            return
        listed = self._given.get("input")
        if not self._context.plan.partitions and listed is None:
            _LOG.warning("The run is to be ended by batch-explain finalize: nobody here knows all files.")
            return
        places = {name: value for name, value in self._given.items() if name != "output"}
        try:
            finalize_run(str(self._given["output"]), **places)
        except BatchExplainError as error:
            _LOG.warning("The run is not ended here: %s", error)

    def _explain_file(self, path: str) -> list[tuple[FilePartition, Receipt]]:
        if self._context is None or not self._context.plan.partitions or self._context.plan.numbers:
            file = read_file(path, name_of(path, self._root))
            return run_brought(self._begun(file), file)
        context = self._context
        file = match(context.plan.files, path, self._root)
        parts = [dataclasses.replace(part, file=file) for part in of_files(context.plan) if part.file.path == file.path]
        return [(part, run_partition(context, part)) for part in parts]

    def _explain_frame(self, frame: "pd.DataFrame") -> tuple[list[tuple[FilePartition, Receipt]], list[str]]:
        if self._context is not None and self._context.plan.partitions and not self._context.plan.numbers:
            raise InputError(
                f"The mini-batch is a DataFrame, but the plan in {self._output} is of files. Leave the plan step out, "
                "or give the parallel step a file dataset."
            )
        ids = self._context.plan.ids if self._context is not None else self._options().id_columns
        with file_of_frame(frame, ids) as file:
            done = run_brought(self._begun(file), file)
        return done, [file.path] * len(frame)

    def _begun(self, file: Any) -> Context:
        if self._context is None:
            begin(self._options(), file)
            self._context = self._planned()
        return self._context

    def _planned(self) -> Context:
        places = {name: value for name, value in self._given.items() if name != "output"}
        return planned_context(planned_options(str(self._output.url), **places))

    def _options(self) -> RunOptions:
        known = {"input": self._root or ".", **self._given}
        return RunOptions.create(**{**known, "scheduler": "sync"})


def _of_the_environment() -> dict[str, Any]:
    """What a batch endpoint tells: the registered model's folder, and where files are to be written."""
    found: dict[str, Any] = {}
    if folder := os.environ.get("AZUREML_MODEL_DIR"):
        entries = sorted(entry.path for entry in os.scandir(folder))
        if len(entries) == 1 and os.path.isdir(entries[0]) and not os.path.exists(f"{entries[0]}/bundle.json"):
            folder = entries[0]  # the folder that was registered
        found = {"model": folder, "explainer": folder}
    if output := os.environ.get("AZUREML_BI_OUTPUT_PATH"):
        found["output"] = output
    return found


def _parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The options among a script's arguments, spelled as on the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for field in dataclasses.fields(RunOptions):
        flag = f"--{field.name.replace('_', '-')}"
        if field.name in _NOT_HERE:
            continue
        if field.name == "report":
            parser.add_argument("--no-report", dest="report", action="store_false", default=None)
        elif field.type is bool:
            parser.add_argument(flag, action="store_true", default=None)
        else:
            parser.add_argument(flag, action="append" if field.name in _SEVERAL else "store")
    parser.add_argument("--input-root")
    parser.add_argument("--append")
    parser.add_argument("--output-folder")
    try:
        found, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise OptionError(f"The entry script's arguments are wrong: {error}. They are spelled as in run.") from error
    if unknown:
        _LOG.warning("Arguments that batch_explain does not know are ignored: %s", " ".join(unknown))
    given = {name: value for name, value in vars(found).items() if value is not None}
    if (folder := given.pop("output_folder", None)) is not None:  # v1 has an --output of its own, and reserves the name
        given["output"] = folder
    return given
