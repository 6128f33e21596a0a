"""Interventional SHAP values: what a row costs against its path-dependent values, and against shap's own.

`python benchmarks/interventional.py --json benchmarks/results/interventional.json` in the core environment, on one
thread, the methods taking turns; `--quick`: tiny, correctness only. The table has the least of the repetitions, which a
busy machine disturbs least; the JSON has the spread. shap computes in float32 and takes milliseconds a row, so it gets
few rows.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import common

CASES = (
    (100, 31, 100),
    (100, 31, 300),
    (100, 127, 100),
    (100, 255, 100),
    (100, 255, 300),
)  # trees, leaves, background rows
FEATURES, ROWS, SHAP_ROWS = 50, 20_000, 20
TOLERANCE = 1e-5


def measure(trees: int, leaves: int, background_rows: int, rounds: int, rows: int) -> dict[str, Any]:
    """One model: building the tables, µs a row, and the largest difference to shap."""
    import lightgbm
    import numpy as np
    import shap

    from batch_explain.trees.lightgbm_text import read_model_text
    from batch_explain.treeshap.kernel import TreeShap

    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, FEATURES))
    y = X[:, :10] @ rng.normal(size=10) + np.sin(3 * X[:, 10]) + X[:, 11] * X[:, 12] + rng.normal(size=len(X))
    options = {"num_leaves": leaves, "verbosity": -1, "seed": 0, "num_threads": common.cores()}
    booster = lightgbm.train(options, lightgbm.Dataset(X, y), trees)
    ensemble = read_model_text(booster.model_to_string())
    background, asked = X[:background_rows], rng.normal(size=(rows, FEATURES))
    started = time.perf_counter()
    ours = TreeShap(ensemble, background=background)
    built = time.perf_counter() - started
    plain = TreeShap(ensemble)
    masker = shap.maskers.Independent(background, max_samples=background_rows)
    theirs = shap.TreeExplainer(booster, data=masker, feature_perturbation="interventional")
    few = asked[: min(SHAP_ROWS, rows)]
    expected = np.asarray(theirs.shap_values(few, check_additivity=False)).T
    found = np.zeros((FEATURES, len(few)))
    found[ours.used] = ours.explain(few).engineered[0]
    times: dict[str, list[float]] = {"interventional": [], "path-dependent": [], "shap": []}
    for _ in range(rounds):
        for name, work, count in (
            ("interventional", lambda: ours.explain(asked), rows),
            ("path-dependent", lambda: plain.explain(asked), rows),
            ("shap", lambda: theirs.shap_values(few, check_additivity=False), len(few)),
        ):
            started = time.perf_counter()
            work()
            times[name].append(1e6 * (time.perf_counter() - started) / count)
    return {
        "name": f"{trees} × {leaves}, {background_rows} background rows",
        "trees": trees,
        "leaves": leaves,
        "background_rows": background_rows,
        "tables_built_s": round(built, 3),
        "tables_mb": round(ours.table_bytes / 1e6, 1),
        "us_per_row": common.spread(times["interventional"]),
        "path_dependent_us_per_row": common.spread(times["path-dependent"]),
        "shap_us_per_row": common.spread(times["shap"]),
        "times_path_dependent": common.spread(_ratios(times["interventional"], times["path-dependent"])),
        "times_shap_faster": common.spread(_ratios(times["shap"], times["interventional"])),
        "relative_difference_to_shap": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }


def _ratios(of: list[float], to: list[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(of, to, strict=True)]


def main() -> int:
    """Measure, print, write; 1 where a value is wrong."""
    options = common.options(__doc__, repetitions=5).parse_args()
    begun = common.begin()
    cases = ((3, 7, 10),) if options.quick else CASES
    rounds, rows = (1, 200) if options.quick else (options.repetitions, ROWS)
    results = [measure(*case, rounds, rows) for case in cases]
    lines = []
    for result in results:
        names = ("us_per_row", "path_dependent_us_per_row", "shap_us_per_row")
        ours, plain, shap = (result[name]["min"] for name in names)
        lines.append(
            [
                result["name"],
                f"{ours:.2f}",
                f"{plain:.2f}",
                f"{ours / plain:.2f}",
                f"{shap:,.0f}",
                f"{shap / ours:,.0f}",
                f"{result['tables_built_s']:.1f}",
                f"{result['tables_mb']:.0f}",
                f"{result['relative_difference_to_shap']:.1e}",
            ]
        )
    headings = (
        "trees × leaves",
        "µs a row",
        "path-dependent",
        "× that",
        "shap",
        "× ours",
        "built s",
        "MB",
        "difference",
    )
    common.print_table(f"Interventional SHAP values, {FEATURES} features, one thread", headings, lines)
    problems = [
        f"{result['name']}: {result['relative_difference_to_shap']:.3g} from shap"
        for result in results
        if not result["relative_difference_to_shap"] <= TOLERANCE
    ]
    return common.finish("interventional", begun, options, results=results, problems=problems)


if __name__ == "__main__":
    sys.exit(main())
