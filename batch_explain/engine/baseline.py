"""A run's baseline: looked at before the run begins, compared with when it is closed."""

from batch_explain.baselines import Side, open_baseline, side_of_run
from batch_explain.drift import Comparison, common, compare
from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.plan import Plan
from batch_explain.errors import DriftError, InterruptedRunError, OptionError
from batch_explain.options import RunOptions
from batch_explain.results import Run
from batch_explain.storage.filesystems import Location


def check_baseline(plan: Plan, artifacts: Artifacts) -> None:
    """Refuse a baseline that the run could not be compared with.

    Raises
    ------
    OptionError
        If it is missing, unfinished, of other outputs or features, or lies in the output.
    """
    place = plan.options.baseline
    if place is None:
        return
    baseline, output = Location(place), Location(plan.options.output)
    if baseline.contains(output) or output.contains(baseline):
        raise OptionError(
            f"--baseline {baseline} lies in the output {output}, or around it. Give the run another output."
        )
    labels = artifacts.labels or (None,)
    features = {"engineered": artifacts.explainer.engineered_features, "raw": artifacts.explainer.raw_features or ()}
    common(
        dict.fromkeys(labels),
        {level: set(features[level]) for level in plan.levels},
        artifacts.task,
        _opened(place, single=len(labels) == 1),
    )


def compared(run: Run, baseline: str, max_drift: float | None) -> Comparison:
    """Compare a run that is about to be closed with its baseline.

    Raises
    ------
    InterruptedRunError
        If the baseline, which was there when the run began, cannot be compared with any more.
    """
    now = side_of_run(run)
    try:
        return compare(now, _opened(baseline, single=list(now.outputs) == [None]), max_drift=max_drift)
    except OptionError as error:
        raise InterruptedRunError(
            f"All rows are explained, but the baseline is no longer what it was when the run began. {error} Then go on "
            "with --resume, or without --baseline."
        ) from error


def check_compared(run: Run, options: RunOptions) -> None:
    """Refuse another baseline for a run that is finished.

    Raises
    ------
    OptionError
        If it was compared with another one, or with none.
    """
    if options.baseline is None:
        return
    asked, found = _opened(options.baseline, single=not run.outputs), run.info.get("drift")
    before = None if found is None else found["baseline"]
    same = ("run_json_sha256",) if asked.digest else ("kind", "location")
    if before is None or any(before[name] != asked.to_json()[name] for name in same):
        raise OptionError(
            f"The run in {run.location} is finished, and was compared with "
            f"{'no baseline' if before is None else before['location']}. Compare it with {options.baseline} by "
            "batch-explain compare, or start anew with --overwrite."
        )


def refuse_drift(run: Run, max_drift: float | None) -> None:
    """End a finished run that is too far from its baseline.

    Raises
    ------
    DriftError
    """
    found = run.info.get("drift")
    if max_drift is None or found is None or found["drift"] <= max_drift:
        return
    worst = min(found["ndcg"], key=lambda each: float(each["ndcg"]))["output"]
    of = "" if worst is None else f" of output '{worst}'"
    raise DriftError(
        f"The run is complete, but the ranking of its {found['level']} importances{of} drifted by {found['drift']:.4f} "
        f"(1 - nDCG) from {found['baseline']['location']}, which is above --max-drift ({max_drift:g}). What changed "
        f"stands in {run.location.join('summary/drift.json')}: look whether the data or the model did."
    )


def _opened(place: str, *, single: bool) -> Side:
    try:
        return open_baseline(place, single=single)
    except OptionError as error:
        raise OptionError(f"--baseline: {error}") from error
