"""Where the artifacts lie in a folder that holds several: a registered model's, or what a training run left."""

from batch_explain.storage.filesystems import Location

# none of a bundle's own: where its export was stopped, nothing may be taken for an artifact
BUNDLE, EXPLAINER, TEXT = "bundle", "scoring_explainer.pkl", "explainer.txt"
MODEL, SKOPS = "model.pkl", "pipeline.skops"
_MANIFEST = "bundle.json"


def explainer_in(place: Location) -> Location:
    """The explainer in a folder: a bundle, before a pickle, before a model text; the place itself where it is one.

    Raises
    ------
    OSError
        If the storage does not answer.
    """
    return _first(place, (BUNDLE, EXPLAINER, TEXT))


def model_in(place: Location) -> Location:
    """The fitted model in a folder, as :func:`explainer_in`: a pickle, a skops file, or a bundle that may hold one."""
    return _first(place, (MODEL, SKOPS, BUNDLE))


def _first(place: Location, names: tuple[str, ...]) -> Location:
    if not place.fs.isdir(place.path) or place.join(_MANIFEST).exists():
        return place
    return next((found for name in names if (found := place.join(name)).exists()), place)
