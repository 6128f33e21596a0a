"""One measurement, composed: the methods in turns, the whole job, an estimate, and how sure all that is."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from batch_explain.bench.foretell import SHORT_SECONDS, Foretold, foretell
from batch_explain.bench.measuring import Begun, record
from batch_explain.bench.measuring import spread as decimal_spread
from batch_explain.bench.methods import CONTRIB, MODEL, OURS, PREDICT, RUN, SDK, Method, methods_of
from batch_explain.bench.runs import Way, run_in_turns
from batch_explain.bench.subject import Subject
from batch_explain.bench.turns import CHECKED_ROWS, FEW_ROWS, Timed, difference, shares, spread_of, take_turns
from batch_explain.engine.environment import cores as cores_here
from batch_explain.errors import OptionError, mask_secrets

DEFAULT_SECONDS, LEAST_SECONDS = 60.0, 1.0
TOLERANCE = 1e-9
WIDE_SPREAD = 0.2
EXAMPLE_ROWS_ASKED = 1_000_000
_OF_METHODS = 0.4  # of the seconds; the rest is the whole runs'
_ONE_THREAD = 1.15  # CPU seconds a second, as clocks allow


def bench(
    *,
    rows: int | None = None,
    cores: int | None = None,
    seconds: float = DEFAULT_SECONDS,
    say: Callable[[str], None] = lambda what: None,
    **given: Any,
) -> dict[str, Any]:
    """Measure what a row costs, by whom: SDK, LightGBM, kernel and whole run on the same rows, taking turns.

    Parameters
    ----------
    rows, cores : int, optional
        For the estimate. Default: the input's rows (of the built-in example a million), and the cores that are here.
    seconds : float
        To measure in, about; loading and making the example come before.
    say : callable
        Told what is being done.
    **given
        ``input``, ``model``, ``explainer``, ``feature_map``, ``max_bad_rows``, ``trust``, as a run takes them; none of
        the first three: the built-in example.

    Returns
    -------
    dict
        In the form of :func:`batch_explain.bench.measuring.record`; ``problems`` names values that differ.

    Raises
    ------
    BatchExplainError
        As a run, where there is nothing to measure.
    """
    if not seconds >= LEAST_SECONDS:
        raise OptionError(f"--seconds is {seconds:g}. Use at least {LEAST_SECONDS:g}.")
    begun = Begun()
    with tempfile.TemporaryDirectory(prefix="batch-explain-bench-") as name:
        folder = Path(name)
        say("loading" if any(given.get(key) for key in ("input", "model", "explainer")) else "making the example")
        subject = Subject.load(folder, given)
        methods = methods_of(subject)
        timed = take_turns(methods, subject.matrix.shape[0], seconds * _OF_METHODS, say)
        of_a_row = sum(median(each.us) for each in timed if each.method.name in (MODEL, *OURS))
        ways = run_in_turns(subject, of_a_row, seconds * (1 - _OF_METHODS), folder, say, CHECKED_ROWS)
    asked = rows or (EXAMPLE_ROWS_ASKED if subject.built_in else subject.plan.rows)
    foretold = foretell(ways, asked, cores or cores_here())
    found = _results(methods, timed, ways)
    results = {
        "methods": found,
        "runs": [_of_way(way) for way in ways],
        "estimate": None if foretold is None else {"name": "estimate", **foretold.to_json()},
        "estimate_in_words": None if foretold is None else foretold.sentence(),
        "doubts": _doubts(begun, timed, ways, foretold),
    }
    return record(
        "bench", begun, settings=_settings(subject, seconds), results=results, problems=_problems(found, ways)
    )


def _settings(subject: Subject, seconds: float) -> dict[str, Any]:
    teacher, explainer = subject.artifacts.teacher, subject.artifacts.explainer
    return {
        "built_in": subject.built_in,
        "input": mask_secrets(subject.options.input),
        "input_rows": subject.plan.rows,
        "model": None if teacher is None else teacher.kind,
        "explainer": explainer.description,
        "kernel": None if explainer.treeshap is None else explainer.treeshap["kernel"],
        "engineered_features": len(explainer.engineered_features),
        "used_features": len(explainer.used),
        "outputs": explainer.n_outputs,
        "rows_in_memory": subject.matrix.shape[0],
        "rows_left_out": subject.left_out,
        "seconds": seconds,
    }


def _results(methods: list[Method], timed: list[Timed], ways: list[Way]) -> list[dict[str, Any]]:
    """A line for each method, and one for the whole run; in the order of the methods."""
    by_name = {each.method.name: each for each in timed}
    ours = next(each for name, each in by_name.items() if name in OURS)
    predict = by_name.get(MODEL) or by_name.get(PREDICT)
    reference, of = _reference(timed)
    found: list[dict[str, Any]] = []
    for method in methods:
        each = by_name.get(method.name)
        if each is None:
            found.append({"name": method.name, "status": f"not here: {method.why}"})
            continue
        found.append(
            {
                "name": method.name,
                "status": "ok",
                "rows": each.rows,
                "calls": each.calls * len(each.us),
                "rounds": len(each.us),
                "few_rows": each.rows < FEW_ROWS and each.rows < max(other.rows for other in timed),
                "us_per_row": spread(each.us),
                "rows_per_second": spread([1e6 / us for us in each.us]),
                "times_predict": None if predict is None else spread(shares(each, predict)),
                "times_ours": spread(shares(each, ours)),
                "memory_mb": round(each.memory_mb, 1),
                "cpu_per_second": round(each.cpu / each.wall, 3),
                **_compared(each.checked if each is not reference else None, reference, of),
            }
        )
    return [*found, _whole(ways[0], predict, ours, reference, of)]


def _whole(way: Way, predict: Timed | None, ours: Timed, reference: Timed | None, of: str | None) -> dict[str, Any]:
    """The run with all cores, as a method; against the medians of the others, because it takes no turns with them."""
    if way.failed is not None or not way.runs:
        return {"name": RUN, "status": f"failed: {way.failed}"}
    us = way.us

    def by(other: Timed | None) -> dict[str, float] | None:
        return None if other is None else spread([each / median(other.us) for each in us])

    return {
        "name": RUN,
        "status": "ok",
        "rows": way.rows,
        "calls": len(us),
        "rounds": len(us),
        "workers": way.workers,
        "few_rows": False,
        "us_per_row": spread(us),
        "rows_per_second": spread([1e6 / each for each in us]),
        "times_predict": by(predict),
        "times_ours": by(ours),
        "memory_mb": round(max(run.measured.sampled_rss_mb for run in way.runs), 1),
        **_compared(way.checked, reference, of),
    }


def _reference(timed: list[Timed]) -> tuple[Timed | None, str | None]:
    """What values are compared with: LightGBM's own, else the SDK's."""
    able = {each.method.name: each for each in timed if each.checked is not None}
    name = next((name for name in (CONTRIB, SDK, *able) if name in able and name not in OURS), None)
    return (None, None) if name is None else (able[name], name)


def _compared(checked: np.ndarray | None, reference: Timed | None, of: str | None) -> dict[str, Any]:
    if checked is None or reference is None or reference.checked is None:
        return {"largest_difference": None, "compared_with": None, "right": None}
    found = difference(checked, reference.checked)
    return {"largest_difference": found, "compared_with": of, "right": found <= TOLERANCE}


def _of_way(way: Way) -> dict[str, Any]:
    return {
        "name": way.name,
        "workers": way.workers,
        "rows": way.rows,
        "status": f"failed: {way.failed}" if way.failed else "ok" if way.runs else "not here: no time was left",
        "us_per_row": spread(way.us),
        "partition_us_per_row": spread([us for run in way.runs for us in run.part_us_per_row]),
        "total_seconds": spread([run.measured.seconds for run in way.runs]),
        "startup_seconds": spread([run.startup_seconds for run in way.runs]),
        "closing_seconds": spread([run.closing_seconds for run in way.runs]),
        "peak_rss_mb": spread([run.measured.sampled_rss_mb for run in way.runs]),
    }


def spread(values: list[float]) -> dict[str, float] | None:
    """To four significant digits: a ratio may be small."""
    return decimal_spread([float(f"{value:.4g}") for value in values], 12)


def _problems(methods: list[dict[str, Any]], ways: list[Way]) -> list[str]:
    found = [
        f"The values of {each['name']} are {each['largest_difference']:.1e} from those of {each['compared_with']}."
        for each in methods
        if each.get("right") is False
    ]
    return [*found, *(f"A whole run with {way.name} failed: {way.failed}" for way in ways if way.failed)]


def _doubts(begun: Begun, timed: list[Timed], ways: list[Way], foretold: Foretold | None) -> list[str]:
    """Why the times may be wrong."""
    found = []
    if begun.busy:
        load = begun.machine["load_average"][0]
        found.append(
            f"the machine was busy when it began (load {load} on {begun.machine['cores']} cores): times are too long"
        )
    everyone = [(each.method.name, each.us) for each in timed] + [(f"whole run, {way.name}", way.us) for way in ways]
    apart = [(name, spread_of(us)) for name, us in everyone if spread_of(us) > WIDE_SPREAD]
    if apart:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in apart)
        found.append(f"rounds are far apart (of their median: {listed}): measure again on a quiet machine")
    if threaded := [each.method.name for each in timed if each.cpu > _ONE_THREAD * each.wall]:
        found.append(f"more than one thread was used by {', '.join(threaded)}")
    if few := [each.method.name for each in timed if each.rows < FEW_ROWS]:
        found.append(f"few rows a call: {', '.join(few)}")
    if single := [way for way in ways if len(way.runs) == 1]:
        found.append(f"one whole run each ({', '.join(way.name for way in single)}): its spread is that of its parts")
    if short := [way for way in ways if way.runs and median(way.us) * way.rows < 1e6 * SHORT_SECONDS]:
        listed = ", ".join(f"{median(way.us) * way.rows / 1e6:.1f} s with {way.name}" for way in short)
        found.append(
            f"whole runs were short (tasks took {listed}), so that warming up counts: more --seconds or rows tell more"
        )
    if foretold is not None and foretold.cores > max(way.workers for way in ways):
        found.append(f"{foretold.cores} cores were not tried")
    return found
