"""Opening pickles that others wrote: what is not on the list is refused before it runs."""

import contextlib
import hashlib
import io
import logging
import lzma
import pickle
import platform
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from batch_explain.errors import ArtifactError
from batch_explain.explainers.guard import GuardedReader, RefusedError, is_listed
from batch_explain.explainers.origins import made_with
from batch_explain.explainers.skeleton import imports_of
from batch_explain.explainers.stream import PickleStream
from batch_explain.storage.filesystems import Location
from batch_explain.teachers.forecast_models import CURE, refused_by_name

_SHOWN = 5
_DAMAGED = (pickle.UnpicklingError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError, MemoryError)


def read_artifact(place: Location, what: str, sha256: str | None = None) -> bytes:
    """Read a file whole, and compare its fingerprint.

    Raises
    ------
    ArtifactError
        If it cannot be read, or is another file than ``sha256``.
    """
    try:
        with place.open() as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise ArtifactError(f"There is no {what} at {place}. Check the path.") from None
    except IsADirectoryError:
        raise ArtifactError(f"The {what} {place} is a folder. Name the pickle file in it.") from None
    except OSError as error:
        raise ArtifactError(
            f"The {what} {place} cannot be read: {short_error(error)}. Check the path and its permissions."
        ) from error
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise ArtifactError(
            f"The {what} {place} has the SHA-256 {found}, not {sha256} as --sha256 asks: it is another file, and was "
            "not opened. Get the right one, or pass the fingerprint of this one if it is meant."
        )
    return data


def open_pickle(data: bytes, place: Location, what: str, trust: Iterable[str] = ()) -> Any:
    """Open a file written by joblib or pickle.

    Parameters
    ----------
    data : bytes
        The file.
    place : Location
        Where it was read from, for messages.
    what : str
        ``model`` or ``explainer``, for messages.
    trust : iterable of str
        Names that it may use beside those on the list, exactly: ``package.module.Class``.

    Raises
    ------
    ArtifactError
        If it is no pickle, asks for a name that is neither on the list nor trusted, or needs packages or versions that
        are not here.
    """
    trust = tuple(trust)
    try:
        with quiet_imports():
            return GuardedReader(PickleStream(data), trust).load()
    except RefusedError as error:
        raise ArtifactError(_refusal(error, data, place, what, trust)) from None
    except ArtifactError as error:
        raise ArtifactError(f"The {what} {place} is refused: {error}.") from None
    except ImportError as error:
        if error.name is None or "." in error.name:  # the package is there, but not this part of it
            raise ArtifactError(
                f"The {what} {place} cannot be opened with Python {platform.python_version()} and the packages "
                f"installed here: {short_error(error)}. {_elsewhere(data)}"
            ) from error
        raise ArtifactError(
            f"The {what} {place} needs a package that is not installed here ({error}). {_elsewhere(data)}"
        ) from error
    except RecursionError as error:
        raise ArtifactError(
            f"The {what} {place} is not a readable pickle: its objects lie too deep in one another. Copy it again from "
            "where it was made."
        ) from error
    except Exception as error:
        if not isinstance(error, _DAMAGED) and (made := made_with(data)):
            raise ArtifactError(
                f"The {what} {place} cannot be opened with Python {platform.python_version()} and the packages "
                f"installed here: {short_error(error)}. {_elsewhere(data, made)}"
            ) from error
        raise ArtifactError(
            f"The {what} {place} is not a readable pickle ({short_error(error)}): it is damaged or another kind of "
            "file. Copy it again from where it was made."
        ) from error


def _refusal(error: RefusedError, data: bytes, place: Location, what: str, trust: tuple[str, ...]) -> str:
    if not error.named:
        return (
            f"The {what} {place} is refused: it tries {error.name}, as no genuine model or explainer does. Nothing of "
            "it was used. Ask for the file again from whoever made it."
        )
    if error.name.partition(".")[0] in sys.stdlib_module_names:
        return (
            f"The {what} {place} asks for {error.name}, which no model and no explainer needs; it was refused before "
            "it ran. A pickle can run any program as you, and this one was made to do something else than to be a "
            f"{what}: do not use the file, and tell whoever made it."
        )
    if (without := refused_by_name(error.name)) is not None:
        return f"The {what} {place} {without}. {CURE}."
    others = [name for name in imports_of(data) if not is_listed(name) and name not in {*trust, error.name}]
    also = f" Not on the list are also {', '.join(others[:_SHOWN])}{' …' * (len(others) > _SHOWN)}." if others else ""
    flags = " ".join(f"--trust {name}" for name in [error.name, *others][:_SHOWN])
    return (
        f"The {what} {place} asks for {error.name}, which is not on the list of what models and explainers of AutoML, "
        f"scikit-learn, LightGBM, XGBoost and shap need; it was refused before it ran.{also} A pickle can run any "
        f"program as you. If you know this code and trust whoever made the file, pass {flags} (load_explainer(trust=…) "
        "in Python); otherwise do not use the file."
    )


def _elsewhere(data: bytes, made: dict[str, str] | None = None) -> str:
    """How to go on with a pickle that belongs to another Python or to other packages."""
    made = made_with(data) if made is None else made
    written = f"It was made with {', '.join(f'{k} {v}' for k, v in made.items())}. " if made else ""
    here = platform.python_version()
    automl = any(name.startswith(("azureml.", "interpret_community.")) for name in imports_of(data))
    if not automl:
        return f"{written}Use the Python and package versions it was made with; this is Python {here}."
    where = "Install what it needs" if sys.version_info < (3, 11) else "AutoML's pickles open on Python 3.10 only,"
    return (
        f"{written}{where} with 'pip install \"batch-explain[automl]\"'; this is Python {here}. Open it there"
        ", or export it there to a bundle, which opens everywhere: batch-explain export --explainer "
        "scoring_explainer.pkl --model model.pkl --output BUNDLE."
    )


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


def short_error(error: BaseException) -> str:
    """Its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300].rstrip(": .")
