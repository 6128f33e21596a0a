"""How well surrogates follow genuine AutoML pipelines: the SDK's kind and faithful ones, on rows held out.

`python benchmarks/surrogates.py --json benchmarks/results/surrogates.json` beside the AutoML stack. Teachers of three
classes and of a regression, all on the same 6,000 mixed rows (numbers with gaps, a category, a date, short texts), of
which a fifth is held out. Agreement: how often surrogate and model name the same class. Log-loss: of the surrogate's
probabilities against the model's predicted class; divergence (Kullback-Leibler): against the model's own probabilities.
`--quick`: two teachers, few rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

ROWS, QUICK_ROWS, CALLS = 6_000, 1_000, 5
SURROGATES = ("sdk", "faithful")


def teachers() -> dict[str, tuple[str, Callable[[Any, Any], Any]]]:
    """Name -> task and what makes the fitted pipeline."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from tests.automl_fixtures import teachers as made

    def of(learner: Any, task: str = "classification") -> Callable[[Any, Any], Any]:
        return lambda X, y: made.pipeline(task, X, y, learner)

    def scaled(learner: Any) -> Callable[[Any, Any], Any]:
        return of(make_pipeline(StandardScaler(with_mean=False), learner))

    classes = "classification"
    return {
        "LightGBM": (classes, of(made.lightgbm(classes))),
        "voting (LightGBM, logistic)": (classes, made.voting_pipeline),
        "stack (LightGBM, logistic)": (classes, made.stack_pipeline),
        "logistic": (classes, of(LogisticRegression(max_iter=300))),
        "random forest": (classes, of(RandomForestClassifier(100, min_samples_leaf=3, random_state=0))),
        "k nearest neighbours": (classes, scaled(KNeighborsClassifier(25))),
        "SVM": (classes, scaled(SVC(gamma="auto", probability=True, random_state=0))),
        "LightGBM, regression": ("regression", of(made.lightgbm("regression"), "regression")),
    }


def rows(count: int) -> tuple[Any, Any, Any]:
    """Raw columns, three classes, and the number that these are made from."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "age": rng.integers(18, 90, count),
            "job": rng.choice(["admin", "blue", "mgmt", "tech"], count),
            "balance": rng.normal(1000, 500, count),
            "opened": pd.date_range("2020-01-01", periods=count, freq="h"),
            "note": rng.choice(["paid on time", "late once or twice", "no record of any loan"], count),
        }
    )
    X.loc[::17, "balance"] = np.nan
    steps = X.age / 30 + 2.0 * (X.job == "tech") + X.balance.fillna(0) / 600 * (X.note == "paid on time")
    signal = (steps + (X.opened.dt.hour > 12)).to_numpy() + rng.normal(0, 0.7, count)
    return X, np.array(["low", "mid", "top"])[np.digitize(signal, np.quantile(signal, [0.4, 0.75]))], signal


def measure(
    name: str, task: str, make: Callable[[Any, Any], Any], count: int, folder: Path, calls: int
) -> list[dict[str, Any]]:
    """Both surrogates of one teacher."""
    import joblib
    import numpy as np

    import batch_explain as bx
    from batch_explain.fitting.sdk import quiet

    X, classes, signal = rows(count)
    y = classes if task == "classification" else signal
    home = folder / name.replace(" ", "_")
    home.mkdir()
    with quiet():
        model = make(X, y)
    joblib.dump(model, home / "model.pkl")
    X.assign(answer=y).to_parquet(home / "train.parquet", index=False)
    found = []
    for surrogate in SURROGATES:
        started = time.perf_counter()
        fitted = bx.fit(
            model=home / "model.pkl", train=home / "train.parquet", label="answer", output=home / surrogate,
            surrogate=surrogate,
        )  # fmt: skip
        took = time.perf_counter() - started
        explainer = fitted.explainer
        with quiet():
            engineered = model[0].transform(X)
        matrix = np.asarray(engineered.toarray() if hasattr(engineered, "toarray") else engineered, dtype=np.float64)
        explainer.explain(matrix[:10])
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            explainer.explain_used(matrix)
            times.append(1e6 * (time.perf_counter() - started) / len(matrix))
        found.append(
            {
                "name": f"{name}, {surrogate}",
                "teacher": name,
                "surrogate": surrogate,
                "description": explainer.description,
                "fidelity": fitted.info["fidelity"],
                "model": fitted.info["accuracy"],
                "fit_s": round(took, 1),
                "us_per_row": common.spread(times),
                "splits": len(explainer.used) > 0,
            }
        )
    return found


def main() -> int:
    """Measure, print, write; 1 where a surrogate does not split."""
    options = common.options(__doc__, repetitions=CALLS).parse_args()
    begun = common.begin()
    sys.path.insert(0, str(common.ROOT))  # for tests.automl_fixtures
    chosen, count = teachers(), QUICK_ROWS if options.quick else ROWS
    if options.quick:
        chosen = {name: chosen[name] for name in ("logistic", "LightGBM, regression")}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (task, make) in chosen.items():
            print(name, file=sys.stderr, flush=True)
            results += measure(name, task, make, count, Path(folder), options.repetitions)
    lines = []
    for result in results:
        fidelity = result["fidelity"]
        numbers = [
            "" if (value := fidelity.get(key)) is None else f"{value:.4f}"
            for key in ("agreement", "log_loss", "divergence", "r2")
        ]
        spread = result["us_per_row"]["median"]
        lines.append([result["teacher"], result["surrogate"], *numbers, f"{spread:.2f}", f"{result['fit_s']:.0f}"])
    headings = ("teacher", "surrogate", "agreement", "log-loss", "divergence", "R²", "µs a row", "fit s")
    common.print_table("Fidelity on rows held out, and the time to explain a row", headings, lines)
    problems = [f"{each['name']} never splits" for each in results if not each["splits"]]
    return common.finish("surrogates", begun, options, settings={"rows": count}, results=results, problems=problems)


if __name__ == "__main__":
    sys.exit(main())
