"""The documented scoring script of an AutoML model with its explainer: what benchmarks/online.py compares with."""

import json
import os

import joblib
import numpy as np
import pandas as pd
from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations


def init():
    """Load once in each worker process."""
    global model, explainer, types
    folder = os.environ["AZUREML_MODEL_DIR"]
    model = joblib.load(os.path.join(folder, "model.pkl"))
    explainer = joblib.load(os.path.join(folder, "scoring_explainer.pkl"))
    types = pd.read_parquet(os.path.join(folder, "raw.parquet")).dtypes


def run(data):
    """Predict, and explain twice: engineered and raw."""
    rows = pd.DataFrame(json.loads(data)["data"])
    for name, dtype in types.items():  # as inference_schema turns a request into the sample's types
        rows[name] = pd.to_datetime(rows[name]).dt.tz_localize(None) if dtype.kind == "M" else rows[name].astype(dtype)
    predictions = model.predict(rows)
    setup = automl_setup_model_explanations(model, X_test=rows, task=os.environ["SDK_TASK"])
    engineered = explainer.explain(setup.X_test_transform)
    raw = explainer.explain(setup.X_test_transform, get_raw=True)
    return {
        "predictions": predictions.tolist(),
        "engineered_local_importance_values": listed(engineered),
        "raw_local_importance_values": listed(raw),
    }


def listed(values):
    """Nested lists: sparse rows have sparse importances, of each class where there are several."""
    parts = values if isinstance(values, list) else [values]
    found = [part.toarray() if hasattr(part, "toarray") else np.asarray(part) for part in parts]
    return [part.tolist() for part in found]
