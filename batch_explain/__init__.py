"""Explain every row of a scoring run: predictions, engineered and raw importances, global summaries."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from batch_explain.drift import compare_runs
    from batch_explain.engine.export import export_bundle
    from batch_explain.engine.inspect import inspect_artifact
    from batch_explain.engine.status import status as run_status
    from batch_explain.engine.steps import finalize_run
    from batch_explain.engine.summarize import summarize as summarize_run
    from batch_explain.engine.verify import verify as verify_run
    from batch_explain.explainers.load import load_explainer
    from batch_explain.fitting.fit import fit, open_fit
    from batch_explain.integrations.azureml import EntryScript
    from batch_explain.integrations.mlflow import log_to_mlflow
    from batch_explain.integrations.online import Scorer, load_scorer
    from batch_explain.integrations.registry import register
    from batch_explain.integrations.tracked import explain_dataset, plan_dataset
    from batch_explain.results import Run, open_explanation, open_run

__all__ = [
    "EntryScript",
    "Run",
    "Scorer",
    "__version__",
    "compare_runs",
    "explain_dataset",
    "export_bundle",
    "finalize_run",
    "fit",
    "inspect_artifact",
    "load_explainer",
    "load_scorer",
    "log_to_mlflow",
    "open_explanation",
    "open_fit",
    "open_run",
    "plan_dataset",
    "register",
    "run_status",
    "summarize_run",
    "verify_run",
]

# resolved at first use, so that 'batch-explain --help' imports nothing heavy
_PLACES = {
    "EntryScript": ("batch_explain.integrations.azureml", "EntryScript"),
    "compare_runs": ("batch_explain.drift", "compare_runs"),
    "export_bundle": ("batch_explain.engine.export", "export_bundle"),
    "explain_dataset": ("batch_explain.integrations.tracked", "explain_dataset"),
    "finalize_run": ("batch_explain.engine.steps", "finalize_run"),
    "fit": ("batch_explain.fitting.fit", "fit"),
    "inspect_artifact": ("batch_explain.engine.inspect", "inspect_artifact"),
    "load_explainer": ("batch_explain.explainers.load", "load_explainer"),
    "load_scorer": ("batch_explain.integrations.online", "load_scorer"),
    "log_to_mlflow": ("batch_explain.integrations.mlflow", "log_to_mlflow"),
    "open_explanation": ("batch_explain.results", "open_explanation"),
    "open_fit": ("batch_explain.fitting.fit", "open_fit"),
    "open_run": ("batch_explain.results", "open_run"),
    "plan_dataset": ("batch_explain.integrations.tracked", "plan_dataset"),
    "register": ("batch_explain.integrations.registry", "register"),
    "run_status": ("batch_explain.engine.status", "status"),
    "summarize_run": ("batch_explain.engine.summarize", "summarize"),
    "verify_run": ("batch_explain.engine.verify", "verify"),
    "Run": ("batch_explain.results", "Run"),
    "Scorer": ("batch_explain.integrations.online", "Scorer"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'batch_explain' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
