"""Errors, grouped by who must act; each carries the exit code of the command line.

A message is one paragraph: what is wrong, where, and what to do. Credentials in it are masked.
Every error is built from its message alone, so that it survives the way back from a worker process.
"""

import re

_SECRETS = (
    (re.compile(r"(://[^/\s:@]+):[^/\s@]+@"), r"\1:***@"),
    (
        re.compile(r"(?i)([?&;]|\b)(sig|signature|token|password|secret|x-amz-[a-z-]+|sas)=[^&\s;'\"]+"),
        r"\1\2=***",
    ),
    (re.compile(r"(?i)(account_?key|shared_?access_?key|shared_?access_?signature)=[^;\s'\"]+"), r"\1=***"),
)


def mask_secrets(text: str) -> str:
    """Replace passwords, account keys and the secret parts of SAS tokens by ``***``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def first_line(error: BaseException) -> str:
    """What an exception says, for a sentence: its first line without a full stop, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class BatchExplainError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(mask_secrets(message))


# The user must act: nothing was started.


class OptionError(BatchExplainError):
    """An option has a value that cannot be, or two options contradict each other."""

    exit_code = 2


class OutputRefusedError(BatchExplainError):
    """The output place cannot be taken: not empty, inside the input, not a run's, not writable."""

    exit_code = 2


# Whoever made the data must act.


class InputError(BatchExplainError):
    """The dataset as a whole does not fit: nothing there, not parquet, columns or types missing."""

    exit_code = 2


class BadDataError(BatchExplainError):
    """Values met while the run was going on cannot be explained (rows or files above their limit)."""

    exit_code = 3


class UnreadableFileError(BadDataError):
    """A file is damaged: what its footer promises cannot be read."""


# Whoever made the model or the explainer must act.


class ArtifactError(BatchExplainError):
    """A model or an explainer is missing, is not one, or the two do not belong together."""

    exit_code = 2


# Whoever watches the model must act: the results are complete.


class DriftError(BatchExplainError):
    """The run is finished, and further from its baseline than ``--max-drift`` allows."""

    exit_code = 4


# Whoever runs the machines must act: started, stopped half-way.


class InterruptedRunError(BatchExplainError):
    """Storage, the cluster or a signal stopped the run half-way."""

    exit_code = 5


class NotLoggedError(InterruptedRunError):
    """The run is finished, but the tracking server did not take all that is logged; ``--resume`` logs it."""


class StoppedError(InterruptedRunError):
    """A task was given up because its run stops; it did not fail."""


# Nobody should trust the result.


class IntegrityError(BatchExplainError):
    """Rows in are not rows out, or importances do not add up to the margin."""

    exit_code = 6
