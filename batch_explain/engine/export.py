"""From an explainer (and the model that it explains) to a portable bundle."""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from batch_explain.engine.artifacts import match
from batch_explain.engine.plan import versions
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.explainers.base import Explainer
from batch_explain.explainers.bundle import MANIFEST, bundle_files, open_files, write_bundle
from batch_explain.explainers.direct import DirectExplainer, direct_explainer
from batch_explain.explainers.feature_map import take_feature_map
from batch_explain.explainers.load import load_explainer
from batch_explain.explainers.manifest import Manifest
from batch_explain.explainers.models import load_model
from batch_explain.explainers.skops_file import skops_bytes, untrusted_types
from batch_explain.options import RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.teachers.automl import is_automl
from batch_explain.teachers.base import Teacher
from batch_explain.teachers.load import teacher_of

# A bundle is read by people who may not know the machine that made it: versions, but nothing of the platform.
_NOT_RECORDED = ("platform",)


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Parameters
    ----------
    location : str
        Its folder.
    description : str
        What it explains with.
    task : str or None
    classes : tuple or None
    bytes : int
        Size of all its files.
    notes : tuple of str
        What was decided on the user's behalf.
    """

    location: str
    description: str
    task: str | None
    classes: tuple[Any, ...] | None
    bytes: int
    notes: tuple[str, ...]


def export_bundle(
    explainer: Any,
    output: str | os.PathLike[str],
    *,
    model: Any = None,
    feature_map: str | os.PathLike[str] | None = None,
    with_model: bool = False,
    overwrite: bool = False,
    trust: Iterable[str] = (),
) -> Exported:
    """Write an explainer as a portable bundle: a folder with no code in it.

    Parameters
    ----------
    explainer : str, path or object, or None
        Whatever :func:`batch_explain.load_explainer` takes, or gives. None: the model's own trees, where it is a sum of
        trees.
    output : str or path
        A folder that is empty or does not exist.
    model : str, path or object, optional
        The fitted pipeline, or its pickle. It names the classes and the task, and gives the feature map where the
        explainer has none.
    feature_map : str or path, optional
        Parquet of (raw_feature, engineered_feature, weight), for an explainer that holds no feature map.
    with_model : bool
        Write the model as well, as a skops file: a scikit-learn pipeline whose types skops can write.
    overwrite : bool
        Replace the bundle that is in ``output``.
    trust : iterable of str
        Names that the pickles may use beside those on the list, exactly: ``package.module.Class``.

    Returns
    -------
    Exported

    Raises
    ------
    ArtifactError
        If the explainer cannot be written without code, or does not belong to the model.
    OutputRefusedError
        If the output cannot be taken.

    Examples
    --------
    >>> export_bundle("scoring_explainer.pkl", "bundle/", model="model.pkl")  # doctest: +SKIP
    """
    trust = RunOptions.trusted(trust)
    loaded = None
    if explainer is not None:
        loaded = copy.copy(explainer) if isinstance(explainer, Explainer) else load_explainer(explainer, trust=trust)
    teacher = None
    if model is not None:
        where = str(Location(os.fspath(model))) if isinstance(model, str | os.PathLike) else "The model"
        is_path = isinstance(model, str | os.PathLike)
        fitted = load_model(Location(os.fspath(model)), trust) if is_path else model
        teacher = teacher_of(fitted, None if loaded is None else loaded.raw_features, where)
    if loaded is None:
        loaded = _direct(teacher)
    if feature_map is not None:
        take_feature_map(loaded, os.fspath(feature_map))
    notes = _leave_transformations_out(loaded)
    artifacts = match(loaded, teacher)
    task = loaded.task if teacher is None else teacher.task
    notes += artifacts.feature_notes
    stored = None
    if with_model:
        if teacher is None:
            raise OptionError("--with-model writes the model into the bundle, and there is no --model. Name it.")
        stored, noted = _model_file(fitted)
        notes += noted
    made_by = {name: version for name, version in versions().items() if name not in _NOT_RECORDED}
    files = bundle_files(loaded, task=task, classes=artifacts.classes, notes=notes, made_by=made_by, model=stored)
    # proved before anything is written
    open_files(files, Manifest.from_bytes(files[MANIFEST]), {})
    place = Location(os.fspath(output))
    write_bundle(place, files, overwrite=overwrite)
    size = sum(map(len, files.values()))
    return Exported(str(place), loaded.description, task, artifacts.classes, size, notes)


def _model_file(model: Any) -> tuple[bytes, tuple[str, ...]]:
    """The model as a skops file, and what whoever opens it must know."""
    if is_automl(model):
        raise ArtifactError(
            "The model is an AutoML pipeline, which is the SDK's own code: skops cannot write it. Leave --with-model "
            "out, and keep the engineered features of a run with --outputs features."
        )
    data = skops_bytes(model)
    types = untrusted_types(data, "The model")
    if not types:
        return data, ()
    flags = " ".join(f"--trust {name}" for name in types)
    return data, (f"the model in the bundle opens only with {flags}, because skops does not trust these by itself",)


def _direct(teacher: Teacher | None) -> DirectExplainer:
    """The model's own trees."""
    if teacher is None:
        raise OptionError("There is no explainer to export, nor a model to explain directly. Pass one of them.")
    found = direct_explainer(teacher)
    if found.absent_is_missing:
        raise ArtifactError(
            "The model takes what a sparse row does not hold for missing, which a bundle cannot say yet. Run it from "
            "its own file, without --explainer."
        )
    return found


def _leave_transformations_out(explainer: Explainer) -> tuple[str, ...]:
    """Transformations are code: what remains explains the engineered rows that they made."""
    if explainer.kind == "opaque" or not explainer.featurizes:
        return ()
    if not explainer.engineered_features:
        raise ArtifactError(
            "The explainer was made with transformations and does not name their output, so a bundle could not say "
            "which engineered features it takes. Make it with engineered_features."
        )
    explainer.data_mapper = None
    return (
        "the explainer was made with transformations, which are code and not in the bundle: it takes the engineered "
        "features that they make",
    )
