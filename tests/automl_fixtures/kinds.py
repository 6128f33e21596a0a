"""Every kind of model and explainer that a run may be given, by name, and the folder they are built into."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import explainers, frames, teachers
from .quiet import quiet
from .teachers import CLASSIFICATION, REGRESSION

MODEL, EXPLAINER, RAW, STAMP = "model.pkl", "scoring_explainer.pkl", "raw.parquet", "built_from.txt"
_SDK = ("azureml-train-automl-runtime", "azureml-interpret", "interpret-community", "lightgbm", "shap")


class VacuousModelError(RuntimeError):
    """A tree model that never splits: its importances are all zero, and every check on it would pass."""


@dataclass(frozen=True)
class KindPaths:
    """The artifacts of one kind.

    Attributes
    ----------
    model, explainer, raw
        The fitted pipeline, its scoring explainer, and the raw input columns: model.pkl,
        scoring_explainer.pkl and raw.parquet.
    task
        "classification" or "regression".
    outputs
        How many columns of importances: one per class for several classes, else 1.
    """

    model: Path
    explainer: Path
    raw: Path
    task: str
    outputs: int


@dataclass(frozen=True)
class Kind:
    """How one kind is made: data, then target, then teacher, then explainer."""

    frame: Callable[[], frames.Frame]
    task: str
    explainer: Callable[..., Any] = explainers.tree
    target: Callable[[np.ndarray], np.ndarray] | None = None  # None: the signal itself, for regression
    teacher: Callable[..., Any] | None = None  # (X, y) -> fitted pipeline; None: AutoML's LightGBM
    rows: int = frames.ROWS  # how many of the training rows go to raw.parquet

    @property
    def outputs(self) -> int:
        return 3 if self.target is frames.three_classes else 1


def _own_predict(X: Any, y: np.ndarray) -> Any:
    from .learners import ThresholdClassifier

    return teachers.pipeline(CLASSIFICATION, X, y, ThresholdClassifier(teachers.lightgbm(CLASSIFICATION)))


def _logistic(X: Any, y: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression

    return teachers.pipeline(CLASSIFICATION, X, y, LogisticRegression())


def _unbalanced(signal: np.ndarray) -> np.ndarray:
    return (signal > np.quantile(signal, 0.7)).astype(int)


def _yes_no(signal: np.ndarray) -> np.ndarray:
    return np.array(["no", "yes"])[frames.two_classes(signal)]


_two, _three = frames.two_classes, frames.three_classes

KINDS: dict[str, Kind] = {
    "binary": Kind(frames.mixed, CLASSIFICATION, target=_two),
    "multiclass": Kind(frames.mixed, CLASSIFICATION, target=_three),
    "regression": Kind(frames.mixed, REGRESSION),
    "dense_regression": Kind(frames.numeric, REGRESSION),
    "dense_multiclass": Kind(frames.numeric, CLASSIFICATION, target=_three),
    "wide_binary": Kind(frames.wide, CLASSIFICATION, target=_unbalanced, rows=600),
    "voting_multiclass": Kind(frames.mixed, CLASSIFICATION, target=_three, teacher=teachers.voting_pipeline),
    "stack_binary": Kind(frames.mixed, CLASSIFICATION, target=_two, teacher=teachers.stack_pipeline),
    "linear_regression": Kind(frames.numeric, REGRESSION, explainers.linear),
    "kernel_regression": Kind(frames.numeric, REGRESSION, explainers.kernel, rows=100),
    "kernel_binary": Kind(frames.numeric, CLASSIFICATION, explainers.kernel, target=_two, rows=60),
    "kernel_multiclass": Kind(frames.numeric, CLASSIFICATION, explainers.kernel, target=_three, rows=60),
    "transformations_binary": Kind(
        frames.mixed,
        CLASSIFICATION,
        explainers.from_transformations,
        target=_yes_no,
        teacher=teachers.sklearn_pipeline,
    ),
    "probability_multiclass": Kind(frames.numeric, CLASSIFICATION, explainers.probability_tree, target=_three),
    "labelled_multiclass": Kind(frames.mixed, CLASSIFICATION, target=_three, teacher=teachers.label_encoding_pipeline),
    "own_predict_binary": Kind(frames.mixed, CLASSIFICATION, target=_unbalanced, teacher=_own_predict),
    "early_stopped_regression": Kind(frames.numeric, REGRESSION, explainers.early_stopped_tree),
    "linear_multiclass": Kind(frames.numeric, CLASSIFICATION, explainers.linear, target=_three),
    "linear_binary": Kind(frames.numeric, CLASSIFICATION, explainers.direct_linear, target=_two, teacher=_logistic),
    "tree_sklearn_regression": Kind(frames.numeric, REGRESSION, explainers.sklearn_tree),
}


def build(kinds: Iterable[str], folder: Path | str) -> dict[str, KindPaths]:
    """Build the kinds that `folder` does not hold yet, each in `folder`/<kind>, and say where they are.

    A kind appears there complete or not at all: neither a killed build nor two at once leave half of one. A
    kind that was made from other code or by other versions is built again.

    Raises
    ------
    KeyError
        A name is not in `KINDS`.
    VacuousModelError
        A LightGBM learner or a tree surrogate never splits.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp()
    built = {}
    for name in kinds:
        kind, home = KINDS[name], folder / name
        if not _complete(home, stamp):
            _build_one(kind, home, stamp)
        built[name] = KindPaths(home / MODEL, home / EXPLAINER, home / RAW, kind.task, kind.outputs)
    return built


def features_used(explainer: Any) -> int | None:
    """How many features the explainer's trees split on; None when it has no trees."""
    model = explainer._model
    if hasattr(model, "booster_"):
        return int((model.booster_.feature_importance() > 0).sum())
    if hasattr(model, "tree_"):
        return len({int(feature) for feature in model.tree_.feature if feature >= 0})
    return None


def _build_one(kind: Kind, home: Path, stamp: str) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        with quiet():
            _write_artifacts(kind, scratch)
        (scratch / STAMP).write_text(stamp)
        _move_into_place(scratch, home, stamp)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_artifacts(kind: Kind, folder: Path) -> None:
    import joblib
    from azureml.interpret.scoring.scoring_explainer import save

    X, signal = kind.frame()
    y = kind.target(signal) if kind.target else signal
    teacher = kind.teacher or (lambda X, y: teachers.pipeline(kind.task, X, y, teachers.lightgbm(kind.task)))
    model = teacher(X, y)
    explainer = kind.explainer(model, X, y, kind.task)
    if features_used(explainer) == 0:
        raise VacuousModelError("the trees of the surrogate never split")
    if not all(booster.feature_importance().any() for booster in teachers.boosters(model)):
        raise VacuousModelError("the trees of a LightGBM learner never split")
    joblib.dump(model, folder / MODEL)
    save(explainer, directory=str(folder), exist_ok=True)
    X.iloc[: kind.rows].to_parquet(folder / RAW)


def _complete(home: Path, stamp: str) -> bool:
    return (home / STAMP).is_file() and (home / STAMP).read_text() == stamp


def _move_into_place(scratch: Path, home: Path, stamp: str) -> None:
    if home.exists() and not _complete(home, stamp):
        shutil.rmtree(home)
    try:
        scratch.rename(home)
    except OSError:
        if not _complete(home, stamp):  # else another build was faster
            raise


def _stamp() -> str:
    """A digest of all that shapes the artifacts: this package's code, Python, the SDK."""
    digest = hashlib.sha256(sys.version.encode())
    for package in _SDK:
        digest.update(f"{package}={metadata.version(package)};".encode())
    for source in ("explainers", "frames", "kinds", "learners", "teachers"):
        digest.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    return digest.hexdigest()
