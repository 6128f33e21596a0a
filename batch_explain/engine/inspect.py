"""What a model or an explainer is, told from its file without running anything of it."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import combine_maps
from batch_explain.explainers.bundle import (
    MANIFEST,
    artifact_digest,
    is_bundle,
    read_bundle,
    read_manifest,
    read_model,
)
from batch_explain.explainers.folders import explainer_in
from batch_explain.explainers.guard import is_listed
from batch_explain.explainers.load import is_model_text, model_text
from batch_explain.explainers.manifest import KINDS, MODEL, VERSION
from batch_explain.explainers.origins import differs, installed, made_with
from batch_explain.explainers.pickles import read_artifact
from batch_explain.explainers.skeleton import Name, Skeleton, Thing, skeleton_of
from batch_explain.explainers.skops_file import is_skops, untrusted_types
from batch_explain.storage.filesystems import Location
from batch_explain.trees.ensemble import Ensemble
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.treeshap.kernel import DEFAULT_TABLE_BYTES
from batch_explain.treeshap.program import make_program

_MOST = 10_000_000  # features
_CYCLES = 3_000  # a microsecond, of a processor of 3 GHz
_EITHER = "regression or two classes"
_BOOSTERS = ("Booster",)
_COMPILED = "numba.core.serialize."


@dataclass(frozen=True)
class Trees:
    """A LightGBM model.

    Attributes
    ----------
    trees, iterations, leaves, most_leaves, used_features : int
    best_iteration : int or None
        Where early stopping chose one.
    sparse_iterations : int or None
        Where an explainer limits them: the SDK uses so many for sparse rows, all for dense ones.
    objective : str
    outputs : int
    expected_values : tuple of float
    groups, direct_groups, table_bytes : int
        Of the TreeSHAP kernel's plan.
    microseconds : float
        What a row is estimated to cost on one core of 3 GHz.
    not_planned : str or None
        Why there is no plan.
    """

    trees: int
    iterations: int
    leaves: int
    most_leaves: int
    used_features: int
    best_iteration: int | None
    objective: str
    outputs: int
    expected_values: tuple[float, ...]
    groups: int = 0
    direct_groups: int = 0
    table_bytes: int = 0
    microseconds: float = 0.0
    not_planned: str | None = None
    sparse_iterations: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What is in an artifact.

    Attributes
    ----------
    place, kind, task : str
        ``task``: ``classification``, ``regression``, ``unknown``, or ``regression or two classes`` of an explainer,
        whose surrogate is a regression in both cases.
    bytes : int
    sha256 : str
    outputs : int or None
    classes : tuple or None
    steps : tuple of str
        Of a pipeline.
    engineered_features, raw_features : tuple of str or None
    feature_map : tuple of (int, int, float) or None
        Raw features, engineered features, and the share of weights that are not 0.
    trees : Trees or None
    format : str
        Pickle protocol and compression, or another format's name.
    imports : tuple of str
        All that the pickle names.
    refused : tuple of str
        Those that are not on the list; of a skops file, the types that skops does not trust by itself.
    made_with, here : dict
        Package -> version recorded in the file, and installed.
    warnings : tuple of str
    """

    place: str
    kind: str
    task: str
    bytes: int
    sha256: str
    format: str
    outputs: int | None = None
    classes: tuple[Any, ...] | None = None
    steps: tuple[str, ...] = ()
    engineered_features: tuple[str, ...] | None = None
    raw_features: tuple[str, ...] | None = None
    feature_map: tuple[int, int, float] | None = None
    trees: Trees | None = None
    imports: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    made_with: dict[str, str] = dataclasses.field(default_factory=dict)
    here: dict[str, str | None] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As ``batch-explain inspect --json`` prints it."""
        return dataclasses.asdict(self)


def inspect_artifact(path: str | os.PathLike[str], *, table_bytes: int = DEFAULT_TABLE_BYTES) -> Inspection:
    """Look at a model or an explainer without running anything of it.

    Parameters
    ----------
    path : str or path
        A pickle of a model or an explainer, what joblib wrote, a bundle's folder, a skops file, or a LightGBM model
        text file.
    table_bytes : int
        Bound on the memory of TreeSHAP's tables, for the kernel's plan.

    Returns
    -------
    Inspection

    Raises
    ------
    ArtifactError
        If there is no such file, or it is none of these.
    """
    place = explainer_in(Location(os.fspath(path)))
    if is_bundle(place):
        return _of_bundle(place, table_bytes)
    data = read_artifact(place, "artifact")
    common: dict[str, Any] = {"place": str(place), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if is_model_text(data):
        text = model_text(data)
        trees, ensemble = _trees(text, None, table_bytes)
        return Inspection(
            kind="LightGBM model text",
            format="LightGBM model text",
            task=_task_of(ensemble.objective),
            outputs=ensemble.n_outputs,
            engineered_features=ensemble.feature_names,
            trees=trees,
            **common,
        )
    if is_skops(data):
        refused = untrusted_types(data, f"The artifact {place}")
        return Inspection(kind="scikit-learn model", format="skops file", task="unknown", refused=refused, **common)
    try:
        skeleton = skeleton_of(data)
    except ArtifactError as error:
        raise ArtifactError(f"The artifact {place} is refused: {error}.") from None
    except Exception as error:  # a damaged file may raise anything
        raise ArtifactError(
            f"{place} is neither a readable pickle nor a LightGBM model text ({type(error).__name__}: "
            f"{str(error)[:100]}): it is damaged or another kind of file. Copy it again from where it was made."
        ) from error
    return Inspection(**common, **_of_pickle(skeleton, table_bytes))


def _of_bundle(place: Location, table_bytes: int) -> Inspection:
    """A bundle holds nothing that could run: it is opened, and its canary rows are explained again."""
    explainer, manifest = read_bundle(place, {"table_bytes": table_bytes}), read_manifest(place)
    trees = None
    if manifest.kind == "tree":
        limits = manifest.iterations or {}
        text = model_text(place.join(KINDS["tree"]).read_bytes())
        trees, _ = _trees(text, limits.get("sparse"), table_bytes)
    has_model = MODEL in manifest.files
    refused = untrusted_types(read_model(place), f"The model {place}") if has_model else ()
    weights = explainer.feature_map
    shape = None if weights is None else (*weights.shape, weights.nnz / max(1, weights.shape[0] * weights.shape[1]))
    return Inspection(
        place=str(place),
        kind=f"portable bundle of a {manifest.kind} explainer" + " and its scikit-learn model" * has_model,
        format=f"bundle, format version {VERSION}",
        bytes=sum(file.bytes for file in manifest.files.values()) + int(place.fs.size(place.join(MANIFEST).path)),
        sha256=artifact_digest(place),
        task=manifest.task or "unknown",
        outputs=explainer.n_outputs,
        classes=manifest.classes,
        engineered_features=manifest.engineered_features,
        raw_features=manifest.raw_features,
        feature_map=shape,
        trees=trees,
        refused=refused,
        made_with=manifest.made_by,
        here={package: installed(package) for package in manifest.made_by},
    )


def _of_pickle(skeleton: Skeleton, table_bytes: int) -> dict[str, Any]:
    root = skeleton.root
    found: dict[str, Any] = {
        "kind": root.class_name if isinstance(root, Thing) else f"a {type(root).__name__}, no model and no explainer",
        "format": f"pickle, protocol {skeleton.protocol}" + f", {skeleton.compression}" * bool(skeleton.compression),
        "imports": skeleton.imports,
        "refused": tuple(name for name in skeleton.imports if not is_listed(name)),
        "made_with": made_with(skeleton),
        "task": "unknown",
    }
    found["here"] = {package: installed(package) for package in found["made_with"]}
    warnings = _version_warnings(found["made_with"], found["here"])
    if isinstance(root, Thing):
        explainer = root.class_name.endswith("ScoringExplainer")
        model = root.get("_model") if explainer else root
        found["steps"] = _steps(root)
        found["classes"] = _classes(skeleton, model)
        found["engineered_features"] = _names(root, "_engineered_features") or _names(root, "_features")
        found["raw_features"] = _names(root, "_raw_features")
        if explainer:
            found["feature_map"] = _feature_map(root.get("_feature_maps"))
        trees = _surrogate(model, skeleton if isinstance(model, Thing) else None, table_bytes, warnings)
        limited = root.get("_tree_explainer")
        limit = limited.get("_num_iters") if isinstance(limited, Thing) else None
        if trees is not None and isinstance(limit, int) and 0 < limit < trees.iterations:
            trees = dataclasses.replace(trees, sparse_iterations=limit)
        found["trees"] = trees
        found["task"] = _task(model, found["steps"], found["classes"], trees)
        if explainer and found["task"] == "regression":
            found["task"] = _EITHER  # of two classes, the surrogate is a regression of the margin
        found["outputs"] = _outputs(root, trees, found["classes"])
    if any(name.startswith(_COMPILED) for name in skeleton.imports):
        warnings.append(
            "it holds bytecode of a compiled function (shap's link), which is never run: the installed one is used"
        )
    found["warnings"] = tuple(warnings)
    return found


def _trees(text: str, best: int | None, table_bytes: int) -> tuple[Trees, Ensemble]:
    ensemble = read_model_text(text)
    leaves = np.diff(ensemble.leaf_offset)
    measured: dict[str, Any] = {
        "trees": ensemble.n_trees,
        "iterations": ensemble.n_trees // ensemble.n_outputs,
        "leaves": int(leaves.sum()),
        "most_leaves": int(leaves.max(initial=0)),
        "used_features": len(ensemble.used),
        "best_iteration": best if best is not None and best > 0 else None,
        "objective": ensemble.objective,
        "outputs": ensemble.n_outputs,
        "expected_values": tuple(float(value) for value in ensemble.expected_values()),
    }
    try:
        program = make_program(ensemble, max_doubles=table_bytes // 8)
    except Exception as error:
        return Trees(**measured, not_planned=f"{type(error).__name__}: {error}"), ensemble
    return Trees(
        **measured,
        groups=program.groups,
        direct_groups=program.direct,
        table_bytes=program.doubles * 8,
        microseconds=program.cycles / _CYCLES,
    ), ensemble


def _surrogate(model: Any, skeleton: Skeleton | None, table_bytes: int, warnings: list[str]) -> Trees | None:
    """The trees of a LightGBM model, of which the pickle holds the text."""
    if not isinstance(model, Thing) or skeleton is None:
        return None
    inside = Skeleton(model, (), 0, None)
    boosters = list(inside.things(*_BOOSTERS))
    texts = [text for booster in boosters if isinstance(text := booster.get("_handle", booster.get("handle")), str)]
    if not texts:
        return None
    if len(texts) > 1:
        warnings.append(f"it holds {len(texts)} LightGBM models: the first is described")
    best = boosters[0].get("best_iteration")
    try:
        return _trees(texts[0], best if isinstance(best, int) else None, table_bytes)[0]
    except ArtifactError as error:
        warnings.append(f"its LightGBM model cannot be read: {error}")
        return None


def _version_warnings(made: dict[str, str], here: dict[str, str | None]) -> list[str]:
    consequences = {
        "python": "bytecode in it runs on no other Python",
        "scikit-learn": "scikit-learn does not promise the same values, or that it opens at all, across versions",
        "pandas": "pandas' own objects often do not open across major versions",
    }
    return [
        f"{package} {version} made it, {here[package] or 'none'} is here: {consequences[package]}"
        for package, version in made.items()
        if package in consequences and differs(version, here[package])
    ]


def _steps(root: Thing) -> tuple[str, ...]:
    steps = root.get("steps")
    if not isinstance(steps, list):
        return ()
    return tuple(_shown(step[1]) for step in steps if isinstance(step, tuple) and len(step) == 2)


def _shown(step: Any) -> str:
    return step.class_name if isinstance(step, Thing) else str(step)


def _names(root: Thing, attribute: str) -> tuple[str, ...] | None:
    names = root.get(attribute)
    if isinstance(names, list | tuple | np.ndarray):
        return tuple(str(name) for name in names)
    return None


def _classes(skeleton: Skeleton, model: Any) -> tuple[Any, ...] | None:
    candidates: list[Any] = [model] if isinstance(model, Thing) else []
    if candidates and isinstance(steps := model.get("steps"), list):
        candidates += [step[1] for step in reversed(steps) if isinstance(step, tuple) and len(step) == 2]
    for thing in candidates:
        for name in ("classes_", "_classes"):
            classes = thing.get(name) if isinstance(thing, Thing) else None
            if isinstance(classes, np.ndarray | list):
                return tuple(np.asarray(classes).tolist())
    return None


def _task(model: Any, steps: Sequence[str], classes: Any, trees: Trees | None) -> str:
    name = (steps[-1] if steps else model.class_name) if isinstance(model, Thing) else ""
    if classes is not None or name.endswith(("Classifier", "SVC")) or "Classifi" in name:
        return "classification"
    if name.endswith(("Regressor", "Regression", "SVR")) and not name.startswith("Logistic"):
        return "regression"
    return _task_of(trees.objective) if trees is not None else "unknown"


def _task_of(objective: str) -> str:
    kind = objective.split(" ")[0]
    if kind in ("binary", "multiclass", "multiclassova", "cross_entropy"):
        return "classification"
    return "regression" if kind else "unknown"


def _outputs(root: Thing, trees: Trees | None, classes: tuple[Any, ...] | None) -> int | None:
    if not root.class_name.endswith("ScoringExplainer"):
        return None
    if trees is not None:
        return trees.outputs
    if classes is not None:
        return 1 if len(classes) == 2 else len(classes)
    return None


def _feature_map(maps: Any) -> tuple[int, int, float] | None:
    """Raw features, engineered features, and the share of entries that are not 0, of the product of the maps."""
    if not isinstance(maps, list | tuple):
        return None
    matrices = [_matrix(each) for each in maps]
    if not matrices or any(matrix is None for matrix in matrices):
        return None
    try:
        product = combine_maps(matrices)
    except ValueError:
        return None
    product.eliminate_zeros()
    raw, engineered = product.shape
    return raw, engineered, product.nnz / max(1, raw * engineered)


def _matrix(each: Any) -> Any:
    if isinstance(each, np.ndarray) and each.ndim == 2 and each.dtype.kind in "biuf":
        return each
    if not isinstance(each, Thing) or isinstance(each, Name):
        return None
    kinds = {"csr_matrix": sp.csr_matrix, "csc_matrix": sp.csc_matrix, "csr_array": sp.csr_matrix}
    shape = each.get("_shape")
    parts = [each.get(name) for name in ("data", "indices", "indptr")]
    if each.class_name not in kinds or not all(isinstance(part, np.ndarray) for part in parts):
        return None
    if type(shape) is not tuple or len(shape) != 2 or not all(type(n) is int and 0 <= n <= _MOST for n in shape):
        return None
    try:
        made = kinds[each.class_name](tuple(parts), shape=shape)
        made.check_format(full_check=True)
    except (ValueError, TypeError):
        return None
    return made
