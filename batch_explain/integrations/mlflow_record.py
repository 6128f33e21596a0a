"""What MLflow is told of a finished run, within its limits: plain numbers and texts, no server."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batch_explain.errors import mask_secrets
from batch_explain.options import RunOptions
from batch_explain.results import Run
from batch_explain.storage.atomic import sha256_of

PREFIX = "batch_explain."  # of params and tags: an MLflow run may be somebody else's, with an 'input' of its own
RUN_TAG = PREFIX + "run"

TOP_FEATURES = 20
LARGEST_FILE = 50_000_000  # bytes; of what is logged beside run.json

_LONGEST_VALUE = 500  # what older servers take; today's take 6,000
_LONGEST_NAME = 100  # a metric's name has at most 250 characters, with an output and a feature in it
_HASHED = re.compile(r"-[0-9a-f]{12}")
# Not all that MLflow allows: blanks at the ends are lost in some databases, a slash or dots alone make another path.
_PLAIN = re.compile(r"(?![. ])[\w.\- ]+(?<![. ])")


@dataclass(frozen=True)
class Record:
    """What is logged.

    Parameters
    ----------
    params, tags : dict of str
        Options that are not the default; what the run was made with, and where it is.
    metrics : dict of float
        All finite.
    features : dict
        What follows ``importance/`` in a metric's name -> ``output`` and ``feature``, where these are not as they were.
    files : tuple of str
        Files of the run.
    """

    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    features: dict[str, dict[str, str | None]]
    files: tuple[str, ...]


def identity(run: Run) -> str:
    """The SHA-256 of ``run.json``: what was logged is found again by it."""
    return sha256_of(run.location.join("run.json"))


def record_of(run: Run) -> Record:
    """What is logged of a run."""
    info, metrics, features = run.info, dict(_totals(run.info)), {}
    for output, feature, mean, share in _importances(run):
        labels = [label for label in (output, feature) if label is not None]
        place = "/".join(metric_label(label) for label in labels)
        metrics |= {f"importance/{place}": mean, f"importance_share/{place}": share}
        if place != "/".join(labels):
            features[place] = {"output": output, "feature": feature}
    sizes = {file["path"]: file["bytes"] for file in info["files"]}
    wanted = [path for path in sizes if re.fullmatch(r"summary/[^/]+\.json|report\.html", path)]
    files = ("run.json", *(path for path in wanted if sizes[path] <= LARGEST_FILE))
    tags = {
        "version": info["batch_explain"],
        "output": str(run.location),
        "explainer_sha256": info["artifacts"]["explainer"]["sha256"],
        "model_sha256": (info["artifacts"]["model"] or {}).get("sha256"),
        "too_large_to_log": ", ".join(sorted(set(wanted) - set(files))),
    }
    return Record(
        params={PREFIX + name: _text(value) for name, value in _options(info["options"])},
        tags={PREFIX + name: _text(value) for name, value in tags.items() if value},
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        features=features,
        files=files,
    )


def _options(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those that somebody chose."""
    for field in dataclasses.fields(RunOptions):
        default = None if field.default is dataclasses.MISSING else field.default
        value = options.get(field.name, default)
        if value != (list(default) if isinstance(default, tuple) else default):
            yield field.name, value


def _text(value: Any) -> str:
    text = mask_secrets(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _totals(info: dict[str, Any]) -> Iterator[tuple[str, float]]:
    drift = info.get("drift") or {}
    numbers = {
        **{f"rows_{name}": value for name, value in info["rows"].items()},
        "rows_per_second": info["rows_per_second"],
        "peak_rss_bytes": info["peak_rss_bytes"],
        "additivity_largest_residual": info["additivity"]["largest_residual"],
        **{f"seconds_{name}": value for name, value in info["timings_s"].items()},
        **{f"fidelity_{name}": value for name, value in (info["fidelity"] or {}).items()},
        "drift": drift.get("drift"),
    }
    for each in drift.get("ndcg", ()):
        if each["output"] is not None:
            numbers[f"drift_ndcg/{metric_label(each['output'])}"] = each["ndcg"]
    for name, value in numbers.items():
        if isinstance(value, int | float):
            yield name, float(value)


def _importances(run: Run) -> Iterator[tuple[str | None, str, float, float]]:
    """Mean |importance| of the top features of each output, and its share of all features' (NaN where all are 0)."""
    summary = run.summary("raw" if run.info["features"]["raw"] else "engineered")
    for label, frame in summary.groupby("output", dropna=False, sort=False):
        total = float(frame["mean_abs"].sum())
        for feature, mean in frame.nsmallest(TOP_FEATURES, "rank")[["feature", "mean_abs"]].itertuples(index=False):
            yield label if isinstance(label, str) else None, feature, mean, mean / total if total else math.nan


def metric_label(label: str) -> str:
    """A feature or an output as a part of a metric's name.

    Most stay as they are. What MLflow does not allow becomes ``_``, what is too long is cut, and 12 digits of the
    label's own SHA-256 are added, so that different labels stay different, and the same label is the same in all runs.
    """
    if _PLAIN.fullmatch(label) and len(label) <= _LONGEST_NAME and not _HASHED.fullmatch(label[-13:]):
        return label
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    kept = re.sub(r"[^\w.\- ]", "_", label)[: _LONGEST_NAME - 13].lstrip(". ")
    return f"{kept}-{digest}"
