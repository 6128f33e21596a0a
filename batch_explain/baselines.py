"""What is compared: a run, or an explanation of the model made when it was trained; as far as each is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from batch_explain.errors import OptionError, mask_secrets
from batch_explain.forms.saved import is_saved, read
from batch_explain.results import Run, is_finished, open_run
from batch_explain.storage.atomic import sha256_of
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import read_parquet
from batch_explain.summary.distributions import Distribution, Key, read_distributions
from batch_explain.summary.sketches import IMPORTANCE, SKETCHES_PATH

LEVELS = ("raw", "engineered")


@dataclass(frozen=True)
class Side:
    """One of the two that are compared, as far as it is known.

    Parameters
    ----------
    location : str
    kind : str
        ``run`` or ``explanation``.
    digest : str or None
        SHA-256 of a finished run's ``run.json``.
    rows : int or None
    task : str
    importances : dict
        Level -> output -> mean absolute importance of each feature, in feature order.
    distributions : dict
        See :func:`batch_explain.summary.distributions.read_distributions`; empty where there are none.
    zero : frozenset of str
        Engineered features that are 0 in every row.
    fidelity : dict or None
        As in ``run.json``.
    """

    location: str
    kind: str
    digest: str | None
    rows: int | None
    task: str
    importances: Mapping[str, Mapping[str | None, pd.Series]]
    distributions: Mapping[Key, Distribution] = field(default_factory=dict)
    zero: frozenset[str] = frozenset()
    fidelity: Mapping[str, Any] | None = None

    @property
    def levels(self) -> dict[str, set[str]]:
        """Level -> names of its features."""
        return {level: set().union(*(s.index for s in found.values())) for level, found in self.importances.items()}

    @property
    def outputs(self) -> dict[str | None, None]:
        """Labels, in order."""
        return {label: None for found in self.importances.values() for label in found}

    def to_json(self) -> dict[str, Any]:
        """What it is."""
        return {"kind": self.kind, "location": self.location, "run_json_sha256": self.digest, "rows": self.rows}

    def importance_of(self, level: str, output: str | None, feature: str) -> Distribution | None:
        """The distribution of a feature's importances; None where it is not known."""
        if level == "engineered" and feature in self.zero:
            return Distribution.of_zeros(self.rows or 0)
        return self.distributions.get((IMPORTANCE, level, output, feature))


def side_of_run(run: Run) -> Side:
    """A run, finished or about to be closed.

    Raises
    ------
    OptionError
        If it has no summaries.
    """
    info = run.info
    importances: dict[str, dict[str | None, pd.Series]] = {}
    for level in LEVELS:
        if not run.location.join(f"summary/{level}.parquet").exists():
            continue
        summary = run.summary(level)
        order = {name: at for at, name in enumerate(info["features"][level] or ())}
        importances[level] = {}
        for label in info["outputs"] or [None]:
            mine = summary if label is None else summary[summary["output"] == label]
            series = pd.Series(mine["mean_abs"].to_numpy(), index=mine["feature"].to_numpy())
            importances[level][label] = series.sort_index(key=lambda names: names.map(order), kind="stable").fillna(0.0)
    place, closed = run.location.join(SKETCHES_PATH), is_finished(run.location)
    distributions: dict[Key, Distribution] = read_distributions(read_parquet(place)) if place.exists() else {}
    return Side(
        location=mask_secrets(str(run.location)),
        kind="run",
        digest=sha256_of(run.location.join("run.json")) if closed else None,
        rows=info["rows"]["explained"],
        task=info["task"],
        importances=importances,
        distributions=distributions,
        zero=frozenset(info["features"]["identically_zero"]),
        fidelity=info["fidelity"],
    )


def open_baseline(path: str, *, single: bool) -> Side:
    """A finished run, or a saved explanation.

    Parameters
    ----------
    path : str
    single : bool
        Whether the run that is compared with it has a single output: an explanation then counts as a whole, and else
        class by class.

    Raises
    ------
    OptionError
        If there is neither.
    """
    location = Location(path)
    try:
        if not is_finished(location) and is_saved(location):
            return _side_of_explanation(location, single=single)
        return side_of_run(open_run(path))
    except OSError as error:
        raise OptionError(
            f"The baseline {location} cannot be read: {error}. Check the place and its permissions."
        ) from error


def _side_of_explanation(location: Location, *, single: bool) -> Side:
    """An explanation made when the model was trained: global importances only."""
    found = read(location)
    classes = None if single else found.classes
    if classes is None and not single:
        raise OptionError(
            f"The explanation {location} does not name its classes, and the run has several outputs. Save an "
            "explanation that does."
        )
    if classes is not None and found.per_class_values is None:
        raise OptionError(
            f"The explanation {location} has no importances of each class, and the run has several outputs. Save a "
            "global explanation of all classes."
        )
    labels: list[str | None] = [None] if classes is None else [*classes]
    lines = found.global_values[None] if classes is None else found.per_class_values
    assert lines is not None
    importances = {label: pd.Series(line, index=found.features) for label, line in zip(labels, lines, strict=True)}
    return Side(
        location=mask_secrets(str(location)),
        kind="explanation",
        digest=None,
        rows=None,
        task=found.task,
        # where it does not say, the names decide
        importances=dict.fromkeys([found.level] if found.level else list(LEVELS), importances),
    )
