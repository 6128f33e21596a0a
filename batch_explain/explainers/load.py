"""From a path or an object to an explainer."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, as_matrix, combine_maps
from batch_explain.explainers.bundle import is_bundle, read_bundle
from batch_explain.explainers.folders import explainer_in
from batch_explain.explainers.linear import LinearExplainer
from batch_explain.explainers.opaque import OpaqueExplainer
from batch_explain.explainers.pickles import open_pickle, read_artifact
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.storage.filesystems import Location
from batch_explain.teachers.threads import keep_to_one_thread
from batch_explain.treeshap.kernel import DEFAULT_TABLE_BYTES, MakeArray

_MODEL_TEXT = (b"tree\n", b"tree\r\n")


def load_explainer(
    source: Any,
    *,
    trust: Iterable[str] = (),
    sha256: str | None = None,
    table_bytes: int = DEFAULT_TABLE_BYTES,
    make_array: MakeArray | None = None,
    background: Any = None,
) -> Explainer:
    """Load an explainer.

    Parameters
    ----------
    source : str, path, lightgbm.Booster, lightgbm.LGBMModel, or scoring explainer
        A path or URL names a ``scoring_explainer.pkl``, a bundle's folder, a LightGBM model text file, or a folder that
        holds one of these under its usual name, such as a registered model's (``models:/NAME/VERSION``).
    trust : iterable of str
        Names that a pickle may use beside those that genuine explainers need, exactly: ``package.module.Class``.
    sha256 : str, optional
        What the file's SHA-256 must be; a bundle's is that of its ``bundle.json``.
    table_bytes : int
        Bound on the memory of TreeSHAP's tables.
    make_array : callable, optional
        Where the tables are held: see :class:`batch_explain.treeshap.kernel.TreeShap`.
    background : ndarray, csr_matrix or DataFrame, shape (row, engineered feature), optional
        1 to 500 rows of finite or missing values: importances are interventional SHAP values against them.

    Returns
    -------
    Explainer
        With ``explain`` and ``explain_raw``.

    Raises
    ------
    ArtifactError
        If there is no explainer in it, or the pickle asks for anything else than an explainer needs.
    OptionError
        If the background has no rows, or too many, or some with infinite values.

    Examples
    --------
    >>> load_explainer("scoring_explainer.pkl").explain(X).values  # doctest: +SKIP
    """
    found = _load(source, trust, sha256, {"table_bytes": table_bytes, "make_array": make_array})
    if background is not None:
        found.set_background(as_matrix(background))
    return found


def _load(source: Any, trust: Iterable[str], sha256: str | None, tables: dict[str, Any]) -> Explainer:
    if not isinstance(source, str | os.PathLike):
        return _from_object(source, "The object", tables)
    place = Location(os.fspath(source))
    try:
        place = explainer_in(place)
        if is_bundle(place):
            return read_bundle(place, tables, sha256)
    except OSError as error:
        raise ArtifactError(f"There is no readable explainer at {place}: {error}. Check the path.") from error
    data = read_artifact(place, "explainer", sha256)
    if is_model_text(data):
        with _named(str(place)):
            return TreeExplainer(model_text(data), **tables)
    return _from_object(open_pickle(data, place, "explainer", trust), str(place), tables)


def is_model_text(data: bytes) -> bool:
    """Whether a file is a LightGBM model text."""
    return data.startswith(_MODEL_TEXT)


def model_text(data: bytes) -> str:
    """The text of such a file.

    Raises
    ------
    ArtifactError
        If it is not UTF-8.
    """
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"The LightGBM model text cannot be read: {error}. Write it again with Booster.save_model."
        ) from error


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Say in messages which explainer they are about."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error


def _from_object(source: Any, where: str, tables: dict[str, Any]) -> Explainer:
    names = {base.__name__ for base in type(source).__mro__}
    if "Booster" in names and hasattr(source, "model_to_string"):
        with _named(where):
            return _of_booster(source, **tables)
    if "LGBMModel" in names:
        if not hasattr(source, "booster_"):
            raise ArtifactError(f"{where} holds a {type(source).__name__} that is not fitted. Fit it, then save it.")
        with _named(where):
            return _of_booster(source.booster_, surrogate_classes=_classes(source), **tables)
    if not callable(getattr(source, "explain", None)):
        raise ArtifactError(
            f"{where} holds a {type(source).__name__}, which is no explainer: it has no explain(). Pass the "
            "scoring_explainer.pkl that azureml-interpret saved (and the fitted pipeline as the model)."
        )
    keep_to_one_thread(getattr(source, "_model", None))
    with _named(where):
        explainer = _adapter(source)(source, tables)
    raw = getattr(source, "_raw_features", None)
    explainer.raw_features = tuple(str(name) for name in raw) if raw is not None else None
    if getattr(source, "_feature_maps", None) and explainer.engineered_features:
        explainer.set_feature_map(combine_maps(source._feature_maps))
    return explainer


def _of_booster(booster: Any, **options: Any) -> TreeExplainer:
    return TreeExplainer(booster.model_to_string(num_iteration=-1), booster=booster, **options)


def _adapter(source: Any) -> Callable[[Any, dict[str, Any]], Explainer]:
    model = getattr(source, "_model", None)
    if hasattr(source, "_tree_explainer") and any(base.__name__ == "LGBMModel" for base in type(model).__mro__):
        return _tree
    linear = getattr(source, "_linear_explainer", None)
    if getattr(linear, "feature_perturbation", None) == "interventional" and hasattr(model, "intercept_"):
        return _linear
    return _opaque


def _tree(source: Any, tables: dict[str, Any]) -> Explainer:
    inner = source._tree_explainer
    model = source._model
    classes = _classes(model)
    output = getattr(source._shap_values_output, "value", source._shap_values_output)
    rescaled = output == "probability" and classes is not None
    return _of_booster(
        model.booster_,
        engineered_features=_engineered(source),
        iterations=-1,
        sparse_iterations=int(getattr(inner, "_num_iters", -1)),
        surrogate_classes=classes,
        data_mapper=source._data_mapper,
        probability_iterations=int(model.booster_.best_iteration) if rescaled else None,  # predict_proba's default
        **tables,
    )


def _linear(source: Any, _tables: dict[str, Any]) -> Explainer:
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


def _opaque(source: Any, _tables: dict[str, Any]) -> Explainer:
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
