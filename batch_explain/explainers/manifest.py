"""``bundle.json``: what a bundle says of itself, checked word by word before anything else is opened."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from batch_explain.errors import ArtifactError
from batch_explain.storage.atomic import FileRecord, json_bytes

VERSION = 1
KINDS = {"tree": "surrogate.txt", "linear": "linear.npz"}  # kind -> the file that holds it
FEATURE_MAP, CANARY, MODEL = "feature_map.npz", "canary.parquet", "model.skops"

_TASKS = ("classification", "regression", None)
_LINKS = ("identity", "sigmoid", "softmax", "probability", "unknown")
_LABELS = bool | int | float | str
_MAX_INT = 2**31


@dataclass(frozen=True)
class Manifest:
    """The content of ``bundle.json``.

    Parameters
    ----------
    kind : str
        ``tree`` or ``linear``.
    task : str or None
        ``classification`` or ``regression``; None where no model was given.
    classes : tuple or None
        The model's labels: texts, numbers or booleans; None for regression, or where no model was given.
    surrogate_classes : tuple or None
        The surrogate's own.
    engineered_features : tuple of str
        Names of the input columns.
    raw_features : tuple of str or None
    expected_values : dict
        ``dense`` and ``sparse`` -> base value of each output for rows of this format.
    iterations : dict or None
        ``dense``, ``sparse`` -> boosting iterations used, -1: all; ``probability`` -> those of the probabilities that
        values are rescaled to, or None. None for a linear explainer.
    shap_values_output : str
        ``default`` (margins), or ``probability``: dense values of several outputs are rescaled.
    link : str
        From margin to prediction: ``identity``, ``sigmoid``, ``softmax``, ``unknown``.
    notes : tuple of str
        Decisions made when it was exported.
    made_by : dict
        Package -> version.
    files : dict
        Name -> size and SHA-256 of each other file.
    """

    kind: str
    task: str | None
    classes: tuple[Any, ...] | None
    surrogate_classes: tuple[Any, ...] | None
    engineered_features: tuple[str, ...]
    raw_features: tuple[str, ...] | None
    expected_values: dict[str, tuple[float, ...]]
    iterations: dict[str, int | None] | None
    shap_values_output: str
    link: str
    notes: tuple[str, ...]
    made_by: dict[str, str]
    files: dict[str, FileRecord]

    def to_bytes(self) -> bytes:
        """The file's content: the fields, the format's version, and a checksum of both.

        Raises
        ------
        ArtifactError
            If a class label or a number is none that the format holds.
        """
        labels = (*(self.classes or ()), *(self.surrogate_classes or ()))
        if strange := [label for label in labels if not _label(label)]:
            raise ArtifactError(
                f"The class label {strange[0]!r} is a {type(strange[0]).__name__}; a bundle holds texts, finite "
                "numbers and booleans. Train the model with such labels."
            )
        if not all(math.isfinite(value) for values in self.expected_values.values() for value in values):
            raise ArtifactError("The explainer's expected value is not a finite number. Make the explainer again.")
        files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in self.files.items()}
        content = {"format": "batch-explain bundle", "format_version": VERSION, **asdict(self), "files": files}
        return _sealed(content)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Read the file.

        Raises
        ------
        ArtifactError
            If it is damaged, of another format version, or says what no bundle says.
        """
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            _refuse("it is not JSON")
        if not isinstance(found, dict) or found.get("format") != "batch-explain bundle":
            raise ArtifactError("bundle.json was not written by 'batch-explain export': it is another kind of file.")
        version = found.get("format_version")
        if isinstance(version, int) and version > VERSION:
            raise ArtifactError(
                f"The bundle has format version {version}, and this program reads up to {VERSION}. Install a newer "
                f"batch-explain, or export the explainer again with this one ({_made_by(found)})."
            )
        if version != VERSION:
            _refuse(f"it has format version {version!r}")
        checked = {name: value for name, value in found.items() if name != "sha256"}
        try:
            intact = _sealed(checked) == content
        except ValueError:  # NaN, which JSON has not
            intact = False
        if not intact:
            _refuse("its content does not have the checksum that stands in it")
        names = {field.name for field in fields(cls)}
        if names ^ (set(checked) - {"format", "format_version"}):
            _refuse(f"it has other entries than {', '.join(sorted(names))}")
        return cls(**_checked({name: checked[name] for name in names}))


def _sealed(content: dict[str, Any]) -> bytes:
    return json_bytes({**content, "sha256": hashlib.sha256(json_bytes(content)).hexdigest()})


def _made_by(found: dict[str, Any]) -> str:
    versions = found.get("made_by")
    version = versions.get("batch-explain") if isinstance(versions, dict) else None
    return f"it was made by batch-explain {str(version)[:20]}"


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """The fields in their own types, if every one of them is what it has to be."""
    for name, ok in {
        "kind": found["kind"] in tuple(KINDS),
        "task": found["task"] in _TASKS,
        "classes": _is_list(found["classes"], _label, optional=True),
        "surrogate_classes": _is_list(found["surrogate_classes"], _label, optional=True),
        "engineered_features": _is_list(found["engineered_features"], _text) and len(found["engineered_features"]) > 0,
        "raw_features": _is_list(found["raw_features"], _text, optional=True),
        "expected_values": _is_dict(found["expected_values"], ("dense", "sparse"))
        and all(_is_list(values, _number) and values for values in found["expected_values"].values()),
        "iterations": found["iterations"] is None
        if found["kind"] == "linear"
        else _is_dict(found["iterations"], ("dense", "sparse", "probability"))
        and all(_count(n) for name, n in found["iterations"].items() if name != "probability" or n is not None),
        "shap_values_output": found["shap_values_output"] in ("default", "probability"),
        "link": found["link"] in _LINKS,
        "notes": _is_list(found["notes"], _text),
        "made_by": isinstance(found["made_by"], dict) and all(map(_text, found["made_by"].values())),
    }.items():
        if not ok:
            _refuse(f"its '{name}' is not what the format says")
    classes = found["classes"]
    if (classes is not None) != (found["task"] == "classification") or (classes is not None and len(classes) < 2):
        _refuse("its 'classes' do not belong to its 'task'")
    outputs = {len(values) for values in found["expected_values"].values()}
    if len(outputs) > 1 or (classes is not None and max(outputs) > len(classes)):
        _refuse("its 'expected_values' do not belong to its 'classes'")
    as_tuples = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    expected = {name: tuple(map(float, values)) for name, values in found["expected_values"].items()}
    return {**found, **as_tuples, "expected_values": expected, "files": _files(found)}


def _files(found: dict[str, Any]) -> dict[str, FileRecord]:
    """Each file's record; the names are the format's own, so that none leads out of the folder."""
    required = {KINDS[found["kind"]], CANARY}
    allowed = required | {FEATURE_MAP} if found["raw_features"] is not None else required
    if found["task"] is not None:
        allowed = allowed | {MODEL}
    given = found["files"]
    if not isinstance(given, dict) or not required <= set(given) <= allowed:
        _refuse(f"its 'files' are not just {', '.join(sorted(allowed))}")
    for name, entry in given.items():
        fit = _is_dict(entry, ("bytes", "sha256")) and _text(entry["sha256"]) and type(entry["bytes"]) is int
        if not fit or entry["bytes"] < 1:
            _refuse(f"what it says of {name} is not what the format says")
    return {name: FileRecord(name, **entry) for name, entry in given.items()}


def _is_list(value: Any, each: Any, *, optional: bool = False) -> bool:
    return (optional and value is None) or (isinstance(value, list) and all(map(each, value)))


def _is_dict(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and set(value) == set(keys)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _count(value: Any) -> bool:
    return type(value) is int and -1 <= value < _MAX_INT


def _label(value: Any) -> bool:
    return isinstance(value, _LABELS) and (not isinstance(value, float) or math.isfinite(value))


def _refuse(reason: str) -> NoReturn:
    raise ArtifactError(
        f"bundle.json is damaged: {reason}. Copy the bundle again from where it was made, or export it again."
    )
