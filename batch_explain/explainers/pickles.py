"""Opening pickles that others wrote."""

import contextlib
import io
import logging
import pickle
import platform
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

from batch_explain.errors import ArtifactError
from batch_explain.storage.filesystems import Location


def load_pickle(place: Location, what: str) -> Any:
    """Unpickle a file written by joblib or pickle.

    Parameters
    ----------
    place : Location
        The file.
    what : str
        ``model`` or ``explainer``, for messages.

    Raises
    ------
    ArtifactError
        If it is missing, is no pickle, or needs packages or versions that are not here.
    """
    import joblib

    try:
        with quiet_imports(), place.open() as stream:
            return joblib.load(io.BytesIO(stream.read()))
    except FileNotFoundError:
        raise ArtifactError(f"There is no {what} at {place}. Check the path.") from None
    except IsADirectoryError:
        raise ArtifactError(f"The {what} {place} is a folder. Name the pickle file in it.") from None
    except ImportError as error:
        raise ArtifactError(
            f"The {what} {place} needs a package that is not installed here ({error}). Models and explainers of "
            f"automated ML need Python 3.10 with 'pip install \"batch-explain[automl]\"'; this is Python "
            f"{platform.python_version()}."
        ) from error
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        IndexError,
        UnicodeDecodeError,
        zlib.error,
        MemoryError,
    ) as error:
        raise ArtifactError(
            f"The {what} {place} is not a readable pickle ({_short(error)}): it is damaged or another kind of file. "
            "Copy it again from where it was made."
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"The {what} {place} cannot be read: {_short(error)}. Check the path and its permissions."
        ) from error
    except Exception as error:
        # unpickling runs the artifact's own code, which may raise anything
        raise ArtifactError(
            f"The {what} {place} cannot be opened with Python {platform.python_version()} and the packages installed "
            f"here: {_short(error)}. Use the Python and package versions it was made with."
        ) from error


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep the Azure stack's import-time chatter (prints, log lines, warnings) off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(record=True),  # recorded, because mlflow resets the filters at import
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300].rstrip(": .")
