"""Writes a golden file: two small models and their own contributions, by whichever LightGBM runs this.

Run once for each version, outside the project's environments, from this folder::

    uv run --no-project --python 3.10 --with lightgbm==3.3.5 --with 'numpy<1.24' python make.py
    uv run --no-project --python 3.10 --with lightgbm==4.6.0 python make.py
"""

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

COLOUR = 2  # the categorical column


def train(objective: str, **parameters: Any) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    X = rng.normal(size=(400, 5))
    X[rng.random(X.shape) < 0.15] = 0.0
    X[rng.random(X.shape) < 0.15] = np.nan
    X[:, COLOUR] = rng.integers(0, 40, 400)
    y = np.nan_to_num(X[:, 0]) + 2 * (X[:, COLOUR] % 3) * np.isnan(X[:, 1]) + np.nan_to_num(X[:, 3]) ** 2
    if objective == "poisson":
        y = y - y.min()
    if objective == "multiclass":
        y = np.digitize(y, [0.3, 1.5])
    fixed = {"num_leaves": 6, "min_data_in_leaf": 5, "min_data_per_group": 5, "cat_smooth": 1, "verbosity": -1}
    booster = lightgbm.train(
        {**fixed, "objective": objective, **parameters},
        lightgbm.Dataset(X, y, categorical_feature=[COLOUR]),
        num_boost_round=3,
    )
    # unseen, negative, fractional and missing categories; zeros, denormals, infinities
    rows = np.vstack([X[:8], rng.normal(size=(8, 5))])
    rows[8:, COLOUR] = [-1, 40, 33, 5.7, np.nan, 1e6, -0.5, 64]
    rows[8:12, 0] = [0, 1e-40, np.inf, -np.inf]
    return {
        "text": booster.model_to_string(),
        "rows": rows.tolist(),
        "contributions": booster.predict(rows, pred_contrib=True).tolist(),
        "two_iterations": booster.predict(rows, pred_contrib=True, num_iteration=2).tolist(),
    }


if __name__ == "__main__":
    models = {"multiclass": train("multiclass", num_class=3), "zero_as_missing": train("poisson", zero_as_missing=True)}
    for name, model in models.items():
        stem = f"lightgbm-{lightgbm.__version__}-{name}"
        Path(f"{stem}.txt").write_text(model.pop("text"))
        Path(f"{stem}.json").write_text(json.dumps(model) + "\n")
