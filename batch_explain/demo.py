"""A demonstration made on the spot: bank-marketing data, a model, and the surrogate that explains it.

With the AutoML stack installed, the model is a genuine AutoML pipeline with its scoring explainer; without
it, a scikit-learn pipeline with a LightGBM surrogate saved as text. No workspace is needed, no download.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batch_explain.errors import OutputRefusedError
from batch_explain.fitting.sdk import quiet

if TYPE_CHECKING:
    import pandas as pd

ID_COLUMN = "customer_id"

# column: {value: (share of the rows, what it adds to the log-odds of subscribing)}
_MARKER = "made-by-batch-explain-demo.txt"

_CATEGORIES = {
    "job": {
        "admin": (0.24, 0.1),
        "blue_collar": (0.22, -0.5),
        "technician": (0.17, 0.0),
        "services": (0.10, -0.3),
        "management": (0.09, 0.2),
        "retired": (0.06, 0.8),
        "self_employed": (0.05, 0.0),
        "student": (0.04, 1.0),
        "unemployed": (0.03, 0.2),
    },
    "marital": {"married": (0.60, -0.1), "single": (0.28, 0.3), "divorced": (0.12, -0.1)},
    "education": {
        "primary": (0.15, -0.4),
        "secondary": (0.50, 0.0),
        "tertiary": (0.30, 0.4),
        "unknown": (0.05, 0.0),
    },
    "housing": {"yes": (0.55, -0.6), "no": (0.45, 0.6)},
    "loan": {"yes": (0.16, -0.8), "no": (0.84, 0.0)},
    "contact": {"cellular": (0.65, 0.5), "telephone": (0.30, -0.5), "unknown": (0.05, -1.0)},
}
# an agent's note is one of each, in this order
_NOTE = (
    {"spoke to customer about": (0.7, 0.0), "short call about": (0.2, -0.5), "long call about": (0.1, 0.5)},
    {
        "term deposit": (0.5, 0.2),
        "mortgage rate": (0.2, -0.2),
        "savings plan": (0.2, 0.2),
        "card fees": (0.1, -0.4),
    },
    {
        "no decision yet": (0.5, 0.0),
        "not interested": (0.25, -1.5),
        "will call back": (0.15, 0.8),
        "asked for documents": (0.1, 1.8),
    },
)
_MONTHS = (0.0, 0.0, 0.9, 0.5, -0.6, 0.0, -0.2, 0.0, 0.8, 0.8, -0.1, 0.5)  # likewise, January first
_TRAINING_SEED = 2024  # not the datasets' default: a model is shown on customers it has not seen


@dataclass(frozen=True)
class DemoPaths:
    """Where a demonstration lies: what `batch-explain run` needs to be told."""

    input: Path
    model: Path
    explainer: Path
    id_columns: tuple[str, ...]


def bank_frame(rows: int, seed: int = 0) -> tuple[pd.DataFrame, pd.Series[Any]]:
    """Draw customers of a bank's telephone campaign.

    Parameters
    ----------
    rows
        Number of customers.
    seed
        Seed of the random generator: the same arguments give the same rows.

    Returns
    -------
    X
        The raw columns, and the id column `customer_id`, which no model may see. `balance` (euros) is missing
        in 4% of the rows; `duration` is in seconds; `pdays` is days since the last campaign, -1 for none.
    y
        `subscribed`: 1 for about 16% of the customers, otherwise 0.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    odds = np.full(rows, -3.2)

    def draw(choices: dict[str, tuple[float, float]]) -> Any:
        share, effect = np.array(list(choices.values())).T
        code = np.searchsorted(np.cumsum(share)[:-1], rng.random(rows), side="right")
        odds[:] += effect[code]
        return np.array(list(choices), dtype=object)[code]  # the rows share one string per value

    age = np.clip(18 + rng.gamma(4.0, 5.8, rows), 18, 95).astype(np.int64)
    balance = np.round(rng.lognormal(7.0, 1.1, rows) - 600, 2)
    duration = np.maximum(5, rng.lognormal(5.3, 0.8, rows)).astype(np.int64)
    hour = 24 * rng.integers(0, 366, rows) + rng.integers(8, 19, rows)  # office hours of 2024, a leap year
    last_contact = np.datetime64("2024-01-01T00", "ns") + hour.astype("timedelta64[h]")
    month = last_contact.astype("datetime64[M]").astype(np.int64) % 12
    campaign = rng.geometric(0.4, rows)
    previous = np.where(rng.random(rows) < 0.18, rng.geometric(0.55, rows), 0)
    pdays = np.where(previous > 0, rng.integers(1, 400, rows), -1)
    odds += 1.9 * np.log(duration / 200) + 0.5 * np.log1p(np.maximum(balance, 0) / 1000) + 0.9 * (age >= 60)
    odds += 1.3 * np.array(_MONTHS)[month] - 0.2 * np.minimum(campaign, 8)
    odds += np.where(previous > 0, np.where(pdays < 120, 2.2, 0.8), 0.0)
    X = pd.DataFrame(
        {
            ID_COLUMN: 10_000_000 + np.arange(rows),
            "age": age,
            **{column: draw(choices) for column, choices in _CATEGORIES.items()},
            "balance": np.where(rng.random(rows) < 0.04, np.nan, balance),
            "last_contact": last_contact,
            "duration": duration,
            "campaign": campaign,
            "pdays": pdays,
            "previous": previous,
            "note": draw(_NOTE[0]) + " " + draw(_NOTE[1]) + " " + draw(_NOTE[2]),
        }
    )
    y = rng.random(rows) < 1 / (1 + np.exp(-odds))
    return X, pd.Series(y.astype(np.int64), name="subscribed")


def make_bank_dataset(folder: str | os.PathLike[str], *, rows: int = 200_000, files: int = 8, seed: int = 0) -> None:
    """Write the columns of `bank_frame(rows, seed)`, in order, as parquet files of two row groups each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(bank_frame(rows, seed)[0], preserve_index=False)
    edges = [rows * i // files for i in range(files + 1)]
    for i in range(files):
        part = table.slice(edges[i], edges[i + 1] - edges[i])
        half = max(1, -(-part.num_rows // 2))
        pq.write_table(part, folder / f"bank-{i:05d}.parquet", row_group_size=half, compression="zstd")


def automl_available() -> bool:
    """Whether the AutoML runtime and azureml-interpret are installed; it imports neither."""
    spec = importlib.util.find_spec("azureml")  # a dotted name would import its parents, which takes 2 s
    roots = (spec.submodule_search_locations or []) if spec else []
    parts = ("train/automl/runtime", "interpret")
    return all(any(Path(root, part).is_dir() for root in roots) for part in parts)


def train_automl(folder: str | os.PathLike[str], *, train_rows: int = 5_000) -> tuple[Path, Path]:
    """Fit an AutoML pipeline and its scoring explainer; return the paths of the two pickles.

    The steps are the documented ones; only AutoML's featurizer suggestion is called without a remote run.
    """
    X, y = _training_frame(train_rows)
    with quiet():
        import joblib
        from azureml.automl.runtime import data_transformation
        from azureml.automl.runtime.shared.model_wrappers import LightGBMClassifier
        from azureml.interpret import MimicWrapper
        from azureml.interpret.scoring.scoring_explainer import TreeScoringExplainer, save
        from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations
        from sklearn.pipeline import Pipeline

        task, labels = "classification", y.to_numpy()
        featurizer = data_transformation._suggest_featurizers_and_create_datatransformer(
            task, X, labels, enable_feature_sweeping=False
        )
        # the wrapper takes any min_data_in_leaf but 20 for a fraction of the rows, and then nothing splits
        learner = LightGBMClassifier(n_estimators=60, min_data_in_leaf=20, n_jobs=1)
        learner.fit(featurizer.fit_transform(X, labels), labels)
        model = Pipeline([("datatransformer", featurizer), ("LightGBMClassifier", learner)])

        setup = automl_setup_model_explanations(model, X=X, X_test=X.iloc[:100], y=labels, task=task, downsample=False)
        mimic = MimicWrapper(
            None,
            setup.automl_estimator,
            setup.surrogate_model,
            init_dataset=setup.X_transform,
            run=None,
            features=setup.engineered_feature_names,
            feature_maps=[setup.feature_map],
            classes=setup.classes,
            explainer_kwargs=setup.surrogate_model_params,
        )
        explainer = TreeScoringExplainer(
            mimic.explainer,
            feature_maps=[setup.feature_map],
            raw_features=setup.raw_feature_names,
            engineered_features=setup.engineered_feature_names,
        )
        _require_splits(explainer._model.booster_)
        paths = _output_paths(folder, "scoring_explainer.pkl")
        joblib.dump(model, paths[0])
        save(explainer, directory=os.fspath(folder), exist_ok=True)
    return paths


def train_sklearn(folder: str | os.PathLike[str], *, train_rows: int = 5_000) -> tuple[Path, Path]:
    """Fit a scikit-learn pipeline and its surrogate; return the paths of the pickle and the model text.

    The surrogate is what azureml-interpret makes of a binary model: a regressor on the teacher's log-odds,
    clipped at 5 either way, over the engineered features.
    """
    import joblib
    from lightgbm import LGBMRegressor
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
    from threadpoolctl import threadpool_limits

    X, y = _training_frame(train_rows)
    X = X.drop(columns="note")  # AutoML's featurizer makes something of text; this example does not
    number = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    one_hot = OneHotEncoder(drop="if_binary", handle_unknown="ignore", sparse_output=False)
    calendar = FunctionTransformer(calendar_parts, feature_names_out=calendar_names)
    features = ColumnTransformer(
        [
            ("number", number, ["age", "balance", "duration"]),
            ("category", one_hot, list(_CATEGORIES)),
            ("calendar", calendar, ["last_contact"]),
            ("count", "passthrough", ["campaign", "pdays", "previous"]),
        ],
        verbose_feature_names_out=False,
    )
    model = Pipeline([("features", features), ("classifier", HistGradientBoostingClassifier(random_state=0))])
    with threadpool_limits(1):  # on a busy machine OpenMP's spinning threads take up to ten times as long
        model.fit(X, y.to_numpy())
        engineered = features.transform(X)
        probability = model[-1].predict_proba(engineered)[:, 1]
    log_odds = np.clip(np.log(probability) - np.log1p(-probability), -5, 5)
    surrogate = LGBMRegressor(n_jobs=1, random_state=0, verbosity=-1)
    surrogate.fit(engineered, log_odds, feature_name=list(features.get_feature_names_out()))
    _require_splits(surrogate.booster_)
    paths = _output_paths(folder, "surrogate.txt")
    joblib.dump(model, paths[0])
    surrogate.booster_.save_model(paths[1])
    return paths


def make_demo(folder: str | os.PathLike[str], *, rows: int = 200_000) -> DemoPaths:
    """Write a dataset, a model and its explainer: AutoML's where that is installed, else scikit-learn's.

    Raises
    ------
    RuntimeError
        If the surrogate came out without a single split: every importance would be 0.
    OutputRefusedError
        If the folder holds anything but an earlier demo.
    """
    marker = Path(folder) / _MARKER
    if Path(folder).is_dir() and any(Path(folder).iterdir()) and not marker.exists():
        raise OutputRefusedError(f"The folder {folder} is not empty and no demo made it. Choose another by --folder.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by 'batch-explain demo', which may overwrite it.\n")
    data = Path(folder) / "input"
    make_bank_dataset(data, rows=rows)
    model, explainer = (train_automl if automl_available() else train_sklearn)(folder)
    return DemoPaths(data, model, explainer, (ID_COLUMN,))


def calendar_parts(frame: pd.DataFrame) -> Any:
    """Month, weekday (Monday is 0) and hour of a frame's only column: (rows, 3), NaN where it is missing."""
    when = frame.iloc[:, 0].dt
    return np.column_stack([when.month, when.day_of_week, when.hour]).astype(np.float64)


def calendar_names(_: object, columns: Any) -> Any:
    """Names of what `calendar_parts` makes of a column."""
    return np.array([f"{columns[0]}_{part}" for part in ("month", "weekday", "hour")], dtype=object)


def _training_frame(rows: int) -> tuple[pd.DataFrame, pd.Series[Any]]:
    X, y = bank_frame(rows, _TRAINING_SEED)
    return X.drop(columns=ID_COLUMN), y


def _output_paths(folder: str | os.PathLike[str], explainer: str) -> tuple[Path, Path]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / "model.pkl", Path(folder) / explainer


def _require_splits(booster: Any) -> None:
    if not booster.feature_importance("split").any():
        raise RuntimeError("The surrogate of the demonstration has no splits: train it on more rows.")
