"""Opening a model: a pickle, a skops file, or the skops file in a bundle."""

from collections.abc import Iterable
from typing import Any

from batch_explain.errors import ArtifactError
from batch_explain.explainers.bundle import is_bundle, read_manifest, read_model
from batch_explain.explainers.folders import model_in
from batch_explain.explainers.origins import differs, installed
from batch_explain.explainers.pickles import open_pickle, read_artifact
from batch_explain.explainers.skops_file import is_skops, open_skops
from batch_explain.storage.filesystems import Location


def load_model(place: Location, trust: Iterable[str] = (), sha256: str | None = None) -> Any:
    """Open a model.

    Parameters
    ----------
    place : Location
        A pickle or what joblib wrote, a skops file, the folder of a bundle that holds a model, or a folder with one of
        these under its usual name (``model.pkl``, ``pipeline.skops``, ``bundle``).
    trust : iterable of str
        Names that it may use beside those on the list, exactly: ``package.module.Class``.
    sha256 : str, optional
        What the SHA-256 of the file must be; of a bundle, that of its ``bundle.json``.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or another file than ``sha256``, asks for a name that is neither on the list nor
        trusted, or needs packages or versions that are not here.
    """
    place = _found(place)
    in_bundle = is_bundle(place)
    data = read_model(place, sha256) if in_bundle else read_artifact(place, "model", sha256)
    if in_bundle or is_skops(data):
        return open_skops(data, f"The model {place}", trust)
    return open_pickle(data, place, "model", trust)


def _found(place: Location) -> Location:
    try:
        return model_in(place)
    except OSError as error:
        raise ArtifactError(f"There is no readable model at {place}: {error}. Check the path.") from error


def version_notes(place: Location) -> tuple[str, ...]:
    """What whoever reads the predictions of a bundle's model must know of versions."""
    place = _found(place)
    if not is_bundle(place):
        return ()
    made = read_manifest(place).made_by
    return tuple(
        f"the model in the bundle was made with {package} {made[package]}, and {installed(package)} is here: "
        "scikit-learn does not promise the same predictions across versions"
        for package in ("scikit-learn",)
        if package in made and differs(made[package], installed(package))
    )
