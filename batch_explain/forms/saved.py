"""Explanations in a folder, in the form of interpret-community's ``save_explanation``: written and read without it."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import OptionError
from batch_explain.forms.explanation import Explanation, ranked
from batch_explain.storage.atomic import write_bytes
from batch_explain.storage.filesystems import Location

METADATA = "explanation_metadata.json"  # written last
_VERSION = 1
_TASKS = ("classification", "regression")


def is_saved(location: Location) -> bool:
    """Whether an explanation is there."""
    return location.join(METADATA).exists()


def save(explanation: Explanation, location: Location) -> None:
    """Write an explanation into a new or empty folder; ``load_explanation`` reads it.

    Parameters
    ----------
    explanation : Explanation
    location : Location

    Raises
    ------
    OptionError
        If there is something already, or nothing can be written there.
    """
    content: dict[str, Any] = {
        "features": list(explanation.features),
        "local_importance_values": _listed(explanation.local_values),
        "expected_values": _listed(explanation.expected_values),
        "classes": None if explanation.classes is None else list(explanation.classes),
        "global_importance_rank": ranked(explanation.global_values).tolist(),
        "global_importance_values": explanation.global_values.tolist(),
        "eval_data": _listed(explanation.eval_data),
        "eval_y_predicted": explanation.eval_predictions,
    }
    if explanation.per_class_values is not None:
        content["per_class_rank"] = ranked(explanation.per_class_values).tolist()
        content["per_class_values"] = explanation.per_class_values.tolist()
    files = {f"{name}.json": {"metadata": "list", "data": data} for name, data in content.items() if data is not None}
    kept = {name: _json(each) for name, each in files.items()}
    kept[METADATA] = _json(_metadata(explanation))
    try:
        if location.exists():
            raise OptionError(f"{location} is there already. Choose a new folder for the explanation.")
        for name, text in kept.items():
            write_bytes(location, name, text)
    except OSError as error:
        raise OptionError(f"The explanation cannot be written to {location}: {error}. Choose another place.") from error


def read(location: Location) -> Explanation:
    """Read an explanation that :func:`save` or interpret-community's ``save_explanation`` wrote.

    Global importances that it does not hold are the means of its local ones.

    Raises
    ------
    OptionError
        If it is damaged, or holds neither.
    OSError
        If it cannot be read.
    """
    try:
        return _read(location)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
        raise OptionError(
            f"The explanation {location} cannot be used: {said}. Save it again, with interpret-community's "
            "save_explanation, as a whole explanation that names its features."
        ) from error


def _read(location: Location) -> Explanation:
    about = _load(location, METADATA)
    classes = _parsed(location, "classes")
    classified = str(about["model_type"]) == "classification"
    features = tuple(str(name) for name in _parsed(location, "features") or ())
    if not features or len(set(features)) < len(features):
        raise ValueError("its features have no names, or some the same one")
    names = tuple(str(label) for label in classes) if classified and classes is not None else None
    local = _local(location, len(features), None if names is None else len(names), classified)
    per_class = _numbers(location, "per_class_values", (len(names or ()), len(features))) if names else None
    whole = _numbers(location, "global_importance_values", (len(features),))
    if local is not None:
        means = np.abs(local).mean(axis=-2)
        per_class = means if per_class is None and names else per_class
        whole = (means.mean(axis=0) if means.ndim == 2 else means) if whole is None else whole
    if whole is None:
        raise ValueError("it has no importances")
    task = str(about.get("model_task"))
    return Explanation(
        method=str(about["method"]),
        task=task if task in _TASKS else "unknown",
        features=features,
        # both may be false: it does not say
        level="raw" if about["is_raw"] else "engineered" if about["is_engineered"] else None,
        classes=names,
        global_values=np.abs(whole),
        per_class_values=None if per_class is None else np.abs(per_class),
        local_values=local,
        expected_values=_numbers(location, "expected_values", None),
        eval_data=_table(_parsed(location, "eval_data")),
        eval_predictions=_parsed(location, "eval_y_predicted"),
        model=None if about.get("model_class") is None else str(about["model_class"]),
        id=str(about["explanation_id"]),
    )


def _metadata(explanation: Explanation) -> dict[str, Any]:
    classes, local = explanation.classes, explanation.local_values
    return {
        "explanation_id": explanation.id or str(uuid.uuid4()),
        "model_type": "regression" if classes is None else "classification",
        "data_type": "tabular",
        "model_task": explanation.task,
        "method": explanation.method,
        "model_class": explanation.model,
        "is_raw": explanation.level == "raw",
        "is_engineered": explanation.level == "engineered",
        "global": True,
        "local": local is not None,
        "num_classes": 1 if classes is None else len(classes),
        "num_examples": 0 if local is None else local.shape[-2],
        "num_features": len(explanation.features),
        "is_local_sparse": False,
        "serialization_version": _VERSION,
    }


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _load(location: Location, name: str) -> Any:
    return json.loads(location.join(name).read_bytes())


def _parsed(location: Location, name: str) -> Any:
    """What a file holds; None where there is none."""
    place = location.join(f"{name}.json")
    return json.loads(place.read_bytes())["data"] if place.exists() else None


def _numbers(location: Location, name: str, shape: tuple[int, ...] | None) -> np.ndarray | None:
    found = _parsed(location, name)
    if found is None:
        return None
    values = np.asarray(found, dtype=np.float64)
    if shape is not None and values.shape != shape:
        raise ValueError(f"{name} has the shape {values.shape}, not {shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds what is no number")
    return values if values.ndim else values[None]


def _local(location: Location, features: int, classes: int | None, classified: bool) -> np.ndarray | None:
    found = _parsed(location, "local_importance_values")
    if found is None:
        return None
    if _load(location, METADATA).get("is_local_sparse"):
        parts = found if isinstance(found[0][0], list) else [found]
        dense = [sp.csr_matrix((part[0], part[1], part[2]), shape=tuple(part[3])).toarray() for part in parts]
        values = np.array(dense if classified and classes else dense[0], dtype=np.float64)
    else:
        values = np.asarray(found, dtype=np.float64)
    expected = 3 if classified and classes else 2
    if values.ndim != expected or values.shape[-1] != features or (expected == 3 and len(values) != classes):
        raise ValueError(f"local_importance_values has the shape {values.shape}, for {features} features")
    return values


def _table(found: Any) -> np.ndarray | None:
    """Rows of values; None where there are none, or an id of a dataset elsewhere."""
    if not isinstance(found, list) or not found or not all(isinstance(row, list) for row in found):
        return None
    return None if len({len(row) for row in found}) > 1 else np.array(found, dtype=object)


def _listed(values: np.ndarray | Sequence[Any] | None) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values
