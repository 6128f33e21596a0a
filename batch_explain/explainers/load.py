"""From a path or an object to an explainer."""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, combine_maps
from batch_explain.explainers.linear import LinearExplainer
from batch_explain.explainers.opaque import OpaqueExplainer
from batch_explain.explainers.pickles import load_pickle
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.storage.filesystems import Location
from batch_explain.teachers.threads import keep_to_one_thread

_MODEL_TEXT = (b"tree\n", b"tree\r\n")


def load_explainer(source: Any) -> Explainer:
    """Load an explainer.

    Parameters
    ----------
    source : str, path, lightgbm.Booster, lightgbm.LGBMModel, or scoring explainer
        A path or URL names a ``scoring_explainer.pkl`` or a LightGBM model text file.

    Returns
    -------
    Explainer
        With ``explain`` and ``explain_raw``.

    Raises
    ------
    ArtifactError
        If there is no explainer in it.

    Examples
    --------
    >>> load_explainer("scoring_explainer.pkl").explain(X).values  # doctest: +SKIP
    """
    if not isinstance(source, str | os.PathLike):
        return _from_object(source, "The object")
    place = Location(os.fspath(source))
    if place.fs.isdir(place.path):
        raise ArtifactError(
            f"The explainer {place} is a folder. Name a scoring_explainer.pkl or a LightGBM model text file."
        )
    try:
        with place.open() as stream:
            beginning = stream.read(6)
    except OSError as error:
        raise ArtifactError(f"There is no readable explainer at {place}: {error}. Check the path.") from error
    if beginning.startswith(_MODEL_TEXT):
        return TreeExplainer(_booster_of_text(place))
    return _from_object(load_pickle(place, "explainer"), str(place))


def _booster_of_text(place: Location) -> Any:
    import lightgbm

    try:
        text = place.read_bytes().decode("utf-8").replace("\r\n", "\n")
        sizes = re.search(r"^tree_sizes=(.*)\n", text, re.MULTILINE)
        if "\nend of trees" not in text or (sizes and text.count("\nTree=") != len(sizes[1].split())):
            raise ArtifactError(
                f"The LightGBM model text {place} is not complete: trees are missing. Write it again with "
                "Booster.save_model, or copy it again from where it was made."
            )
        # told the sizes, LightGBM reads the trees in threads, where a damaged one ends the whole process
        return lightgbm.Booster(model_str=text.replace(sizes[0], "", 1) if sizes else text)
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"The LightGBM model text {place} cannot be read: {error}. Write it again with Booster.save_model."
        ) from error


def _from_object(source: Any, where: str) -> Explainer:
    names = {base.__name__ for base in type(source).__mro__}
    if "Booster" in names and hasattr(source, "model_to_string"):
        return TreeExplainer(source)
    if "LGBMModel" in names:
        if not hasattr(source, "booster_"):
            raise ArtifactError(f"{where} holds a {type(source).__name__} that is not fitted. Fit it, then save it.")
        return TreeExplainer(source.booster_, surrogate_classes=_classes(source))
    if not callable(getattr(source, "explain", None)):
        raise ArtifactError(
            f"{where} holds a {type(source).__name__}, which is no explainer: it has no explain(). Pass the "
            "scoring_explainer.pkl that azureml-interpret saved (and the fitted pipeline as the model)."
        )
    keep_to_one_thread(getattr(source, "_model", None))
    explainer = _adapter(source)(source)
    raw = getattr(source, "_raw_features", None)
    explainer.raw_features = tuple(str(name) for name in raw) if raw is not None else None
    if getattr(source, "_feature_maps", None) and explainer.engineered_features:
        explainer.set_feature_map(combine_maps(source._feature_maps))
    return explainer


def _adapter(source: Any) -> Callable[[Any], Explainer]:
    model = getattr(source, "_model", None)
    if hasattr(source, "_tree_explainer") and any(base.__name__ == "LGBMModel" for base in type(model).__mro__):
        return _tree
    linear = getattr(source, "_linear_explainer", None)
    if getattr(linear, "feature_perturbation", None) == "interventional" and hasattr(model, "intercept_"):
        return _linear
    return _opaque


def _tree(source: Any) -> Explainer:
    inner = source._tree_explainer
    model = source._model
    classes = _classes(model)
    output = getattr(source._shap_values_output, "value", source._shap_values_output)
    rescaled = output == "probability" and classes is not None
    explainer = TreeExplainer(
        model.booster_,
        engineered_features=_engineered(source),
        iterations=-1,
        sparse_iterations=int(getattr(inner, "_num_iters", -1)),
        surrogate_classes=classes,
        data_mapper=source._data_mapper,
        probability_model=model if rescaled and len(classes or ()) > 2 else None,
    )
    if rescaled:
        explainer.notes += (
            "shap_values_output is 'probability': dense multiclass values are rescaled toward the surrogate's "
            "probabilities by the SDK's heuristic; sparse and single-output values stay margins",
        )
    return explainer


def _linear(source: Any) -> Explainer:
    inner, model = source._linear_explainer, source._model
    classes = _classes(model)
    outputs = np.atleast_2d(inner.coef).shape[0]
    link = "identity" if classes is None else ("softmax" if outputs > 1 else "sigmoid")
    return LinearExplainer(
        inner.coef,
        inner.mean,
        inner.expected_value,
        model.intercept_,
        engineered_features=_engineered(source),
        surrogate_classes=classes,
        link=link,
        data_mapper=source._data_mapper,
    )


def _opaque(source: Any) -> Explainer:
    mapper = getattr(source, "_data_mapper", None)
    return OpaqueExplainer(source, engineered_features=_engineered(source), data_mapper=mapper)


def _engineered(source: Any) -> list[str] | None:
    for name in (
        ("_engineered_features",) if getattr(source, "_data_mapper", None) else ("_engineered_features", "_features")
    ):
        if getattr(source, name, None) is not None:
            return [str(feature) for feature in getattr(source, name)]
    return None


def _classes(model: Any) -> tuple[Any, ...] | None:
    classes = getattr(model, "classes_", None)
    return None if classes is None else tuple(np.asarray(classes).tolist())
