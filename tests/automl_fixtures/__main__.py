"""`python -m tests.automl_fixtures OUT [kind ...]`: build the kinds, check them, print a line about each."""

import sys
import time
from typing import Any

import numpy as np

from .kinds import KINDS, KindPaths, build, features_used
from .oracle import Oracle, sdk_explain
from .quiet import quiet

TOLERANCE = 1e-9


def main(out: str, names: list[str]) -> int:
    """Return 0 if, for every kind, the SDK's importances add up to what its explained model answers."""
    failures = 0
    started = time.perf_counter()
    for name in names or KINDS:
        before = time.perf_counter()
        paths = build([name], out)[name]
        built = time.perf_counter()
        oracle = sdk_explain(paths)
        explained = time.perf_counter()
        residual = additivity_residual(oracle)
        failures += residual > TOLERANCE
        print(
            f"{name:25} {describe(paths)}\n"
            f"{'':25} importances {oracle.engineered.shape}, raw {oracle.raw.shape}, "
            f"sum - margin: {residual:.1e}"
            f"{'' if residual <= TOLERANCE else '  <-- DOES NOT ADD UP'}"
            f"  [build {built - before:.1f} s, oracle {explained - built:.1f} s]"
        )
    print(f"{time.perf_counter() - started:.0f} s in all")
    return int(failures > 0)


def describe(paths: KindPaths) -> str:
    """What stands in the artifacts: explainer, explained model, featurization, features made and used."""
    import joblib
    import pandas as pd
    from scipy.sparse import issparse

    with quiet():
        model, explainer = joblib.load(paths.model), joblib.load(paths.explainer)
        features = model.steps[0][1].transform(pd.read_parquet(paths.raw).head(100))
    used: Any = features_used(explainer)
    return (
        f"{type(explainer).__name__} of {type(explainer._model).__name__}, "
        f"{'sparse' if issparse(features) else 'dense'}, {features.shape[1]} engineered features, "
        f"{'no' if used is None else used} used in splits"
    )


def additivity_residual(oracle: Oracle) -> float:
    """The largest |sum of a row's importances + expected value - margin|, relative to margins above 1."""
    sums = oracle.engineered.sum(axis=2) + oracle.expected_values[:, np.newaxis]
    return float(np.max(np.abs(sums - oracle.margins) / np.maximum(1, np.abs(oracle.margins))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
