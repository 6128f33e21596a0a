"""Drift: two finished runs compared, or a run and an explanation of the model made when it was trained."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from batch_explain.baselines import LEVELS, Side, open_baseline, side_of_run
from batch_explain.errors import OptionError
from batch_explain.results import Run, open_run
from batch_explain.summary.distributions import Distribution, shift
from batch_explain.summary.sketches import PREDICTION, VALUE

VERSION = 1
_FIDELITY = ("r2", "agreement", "log_loss")
_COLUMNS = (
    "output", "feature", "rank", "rank_baseline", "share", "share_baseline", "psi_importance", "js_importance",
    "psi_value", "js_value",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """A run compared with its baseline.

    Parameters
    ----------
    run, baseline : Side
    level : str
        ``raw`` or ``engineered``.
    ndcg : dict
        Output that both have -> nDCG of the run's ranking (see :func:`ndcg`).
    features : pandas.DataFrame
        See :meth:`frame`.
    predictions : tuple of dict
        ``of`` (``prediction``, ``class``, ``probability``, ``margin``), ``output``, ``psi``, ``js``; those of ``class``
        also have ``shares`` and ``shares_baseline``.
    max_drift : float or None
        The limit.
    """

    run: Side
    baseline: Side
    level: str
    ndcg: dict[str | None, float]
    features: pd.DataFrame
    predictions: tuple[dict[str, Any], ...]
    max_drift: float | None = None

    @property
    def drift(self) -> float:
        """1 - nDCG of the worst output."""
        return 1 - min(self.ndcg.values())

    @property
    def above_limit(self) -> bool:
        """Whether the drift is above the limit."""
        return self.max_drift is not None and self.drift > self.max_drift

    @cached_property
    def fidelity(self) -> dict[str, Any] | None:
        """Each number of the surrogate's fidelity: run, baseline and change; None where they are not both known."""
        now, before = self.run.fidelity, self.baseline.fidelity
        if now is None or before is None or now["measure"] != before["measure"]:
            return None
        known = [name for name in _FIDELITY if now.get(name) is not None and before.get(name) is not None]
        return {
            name: {"run": now[name], "baseline": before[name], "change": now[name] - before[name]} for name in known
        }

    def frame(self) -> pd.DataFrame:
        """What changed of each feature, by output and the run's rank.

        Returns
        -------
        pandas.DataFrame
            ``output`` (None for a single one), ``feature``, ``rank`` and ``rank_baseline`` (by mean |importance|; NaN
            where the feature is not known), ``share`` and ``share_baseline`` (of the sum of all mean |importances|; 0
            where it is not known), ``psi_importance``, ``js_importance``, ``psi_value``, ``js_value`` (see
            :mod:`batch_explain.summary.distributions`; NaN where they are not known).
        """
        return self.features.copy()

    def only(self) -> dict[str, dict[str, list[Any]]]:
        """Outputs and features that one side alone has."""
        sides = {"run": (self.run, self.baseline), "baseline": (self.baseline, self.run)}
        return {
            name: {
                "outputs": [label for label in mine.outputs if label not in theirs.outputs],
                "features": sorted(mine.levels[self.level] - theirs.levels[self.level]),
            }
            for name, (mine, theirs) in sides.items()
        }

    def headline(self) -> dict[str, Any]:
        """The outcome in short, as it stands in ``run.json``."""
        return {
            "baseline": self.baseline.to_json(),
            "level": self.level,
            "drift": self.drift,
            "max_drift": self.max_drift,
            "above_limit": self.above_limit,
            "ndcg": [{"output": label, "ndcg": value} for label, value in self.ndcg.items()],
        }

    def to_json(self) -> dict[str, Any]:
        """All of it; without features that are 0 in every row of both, and null for what is not known."""
        frame = self.features
        moved = frame[(frame["share"] > 0) | (frame["share_baseline"] > 0) | frame["psi_value"].notna()]
        features = [
            {str(name): None if pd.isna(value) else value for name, value in record.items()}
            for record in moved.astype({"rank": "Int64", "rank_baseline": "Int64"}).astype(object).to_dict("records")
        ]
        return {
            "format_version": VERSION,
            **self.headline(),
            "rows": self.run.rows,
            "features": features,
            "predictions": list(self.predictions),
            "fidelity": self.fidelity,
            "only_in": self.only(),
        }


def ndcg(baseline: Sequence[float] | np.ndarray, run: Sequence[float] | np.ndarray) -> float:
    """Normalized discounted cumulative gain of a run's ranking of features, as monitors of models take it.

    With a(f) the baseline's mean |importance| of a feature, and f'_1, f'_2, … the features in the run's order, DCG is
    the sum over i of a(f'_i) / log2(i + 1); iDCG is the same in the baseline's own order, and nDCG = DCG / iDCG.
    Features of equal importance in the run share the places that they take (as in scikit-learn's ``ndcg_score``).

    Amazon SageMaker Clarify: https://docs.aws.amazon.com/sagemaker/latest/dg/clarify-model-monitor-feature-attribution-drift.html
    (an alarm below 0.9). Azure Machine Learning's monitor calls ``ndcg_score`` in the same way (component
    ``feature_attribution_drift`` of its model monitoring).

    Parameters
    ----------
    baseline, run : sequence of float
        Mean |importance| of the same features. Both sources take the features for the same on both sides; here a
        feature that one side does not know is 0 there.

    Returns
    -------
    float
        From 0 to 1; 1 where all of both are 0, and 0 where only the baseline's are.
    """
    from sklearn.metrics import ndcg_score

    expected, found = np.asarray(baseline, dtype=np.float64), np.asarray(run, dtype=np.float64)
    if np.array_equal(expected, found):
        return 1.0
    if not expected.any():
        return 0.0
    if len(expected) == 1:
        return 1.0
    return min(1.0, float(ndcg_score(expected[None], found[None])))


def compare_runs(
    run: str | os.PathLike[str] | Run,
    baseline: str | os.PathLike[str] | Run,
    *,
    level: str | None = None,
    max_drift: float | None = None,
) -> Comparison:
    """Compare a finished run with another one, or with an explanation.

    Parameters
    ----------
    run : str, path or Run
        A finished run.
    baseline : str, path or Run
        A finished run, or the folder of an explanation that interpret-community saved.
    level : str, optional
        ``raw`` or ``engineered``; left out: raw where both have it.
    max_drift : float, optional
        The limit that :attr:`Comparison.above_limit` tells of.

    Returns
    -------
    Comparison

    Raises
    ------
    OptionError
        If there is no finished run or explanation, or the two have no output or no feature in common.
    """
    now = side_of_run(run if isinstance(run, Run) else open_run(run))
    if isinstance(baseline, Run):
        before = side_of_run(baseline)
    else:
        before = open_baseline(os.fspath(baseline), single=list(now.outputs) == [None])
    return compare(now, before, level=level, max_drift=max_drift)


def compare(run: Side, baseline: Side, *, level: str | None = None, max_drift: float | None = None) -> Comparison:
    """Compare two sides; see :func:`compare_runs`."""
    level, labels = common(run.outputs, run.levels, run.task, baseline, level)
    frames = [_features(run, baseline, level, label) for label in labels]
    return Comparison(
        run=run,
        baseline=baseline,
        level=level,
        ndcg={
            label: ndcg(frame["mean_abs_baseline"].to_numpy(), frame["mean_abs"].to_numpy())
            for label, frame in zip(labels, frames, strict=True)
        },
        features=pd.concat(frames, ignore_index=True)[list(_COLUMNS)],
        predictions=tuple(_predictions(run, baseline)),
        max_drift=max_drift,
    )


def common(
    outputs: Mapping[str | None, None],
    levels: Mapping[str, set[str]],
    task: str,
    baseline: Side,
    level: str | None = None,
) -> tuple[str, list[str | None]]:
    """The level that is compared, and the outputs that both have.

    Parameters
    ----------
    outputs, levels, task
        Of the run, which need not have begun.
    baseline : Side
    level : str, optional

    Raises
    ------
    OptionError
        If they have no feature or no output in common, or are of different tasks.
    """
    where = f"the baseline {baseline.location}"
    if "unknown" not in (task, baseline.task) and task != baseline.task:
        raise OptionError(f"The run is a {task}, and {where} a {baseline.task}. Pass a baseline of the same model.")
    if level is not None and level not in LEVELS:
        raise OptionError(f"--level is '{level}'. Use raw or engineered.")
    labels = [label for label in outputs if label in baseline.outputs]
    if not labels:
        mine, theirs = (
            ", ".join("a single one" if label is None else repr(label) for label in side)
            for side in (outputs, baseline.outputs)
        )
        raise OptionError(
            f"The run's outputs ({mine}) are not those of {where} ({theirs}). Pass a baseline of the same classes."
        )
    shared = {name: levels.get(name, set()) & baseline.levels.get(name, set()) for name in LEVELS}
    chosen = level if level is not None else next((name for name in LEVELS if shared.get(name)), None)
    if chosen is None or not shared.get(chosen):
        which = f"{chosen} " if chosen else ""
        raise OptionError(
            f"The run and {where} have no {which}feature in common. Pass a baseline of the same model, and the "
            "--level that both have."
        )
    return chosen, labels


def _features(run: Side, baseline: Side, level: str, label: str | None) -> pd.DataFrame:
    """One output's features: those of the run by rank, then those that only the baseline has."""
    now, before = run.importances[level][label], baseline.importances[level][label]
    names = [*now.index, *before.index.difference(now.index, sort=False)]
    frame = pd.DataFrame({"output": pd.Series([label] * len(names), dtype=object), "feature": names})
    for side, name in ((now, ""), (before, "_baseline")):
        values = side.reindex(names)
        frame[f"mean_abs{name}"] = values.fillna(0.0).to_numpy()
        ranks = side.rank(ascending=False, method="first").reindex(names)
        frame[f"rank{name}"] = ranks.to_numpy()
        total = frame[f"mean_abs{name}"].sum()
        frame[f"share{name}"] = frame[f"mean_abs{name}"] / total if total else 0.0
    for kind in ("importance", "value"):
        found = [
            shift(
                *(
                    side.importance_of(level, label, feature)
                    if kind == "importance"
                    else side.distributions.get((VALUE, level, None, feature))
                    for side in (baseline, run)
                )
            )
            for feature in names
        ]
        frame[f"psi_{kind}"], frame[f"js_{kind}"] = (
            np.array([pair[at] for pair in found], dtype=np.float64) for at in range(2)
        )
    return frame.sort_values(["rank", "rank_baseline"], kind="stable", na_position="last")


def _predictions(run: Side, baseline: Side) -> list[dict[str, Any]]:
    found = []
    for key, now in run.distributions.items():
        if key[0] == PREDICTION and (before := baseline.distributions.get(key)) is not None:
            psi, js = shift(before, now)
            entry: dict[str, Any] = {"of": key[3], "output": key[2], "psi": psi, "js": js}
            if key[3] == "class":
                entry |= {"shares": _shares(now), "shares_baseline": _shares(before)}
            found.append(entry)
    return found


def _shares(classes: Distribution) -> dict[str, float]:
    return {name: count / classes.total for name, count in classes.categories.items()}
