"""Scoring script of an online endpoint: predictions, importances and reasons of the rows of a request.

Registered beside each other in one folder: the model (`model.pkl`) and its `scoring_explainer.pkl`; or a bundle, whose
requests hold the engineered features. `bx.load_scorer` says what else it takes: reason codes, groups, trusted names.
"""

import os

from azureml_inference_server_http.api.aml_response import AMLResponse

import batch_explain as bx

scorer: bx.Scorer


def init():
    """Load once in each worker process."""
    global scorer
    scorer = bx.load_scorer(os.environ["AZUREML_MODEL_DIR"], top_k=5)
    scorer.describe(run)  # /swagger.json


def run(data):
    """Answer one request: 200 and the values, or 400 and what is wrong with it."""
    status, text = scorer.answer(data)
    return AMLResponse(text, status, {"Content-Type": "application/json"})
