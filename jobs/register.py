"""Register a model, its scoring explainer (or a bundle), or both.

    python register.py --name bank --model model.pkl --explainer scoring_explainer.pkl --alias champion

In MLflow's registry, which on Azure ML is the workspace's (MLFLOW_TRACKING_URI, and azureml-mlflow beside mlflow), or
with --sdk-v1 in the workspace of config.json. What to change: nothing; `--help` lists the options.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import batch_explain as bx
from batch_explain.errors import BatchExplainError


def main() -> None:
    """Register, and print what to pass to `batch-explain run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", help="model.pkl, as AutoML's best run has it")
    parser.add_argument("--explainer", help="scoring_explainer.pkl, a bundle's folder, or a LightGBM model text")
    parser.add_argument("--alias", help="of MLflow's registry: champion, …")
    parser.add_argument("--sdk-v1", action="store_true", help="Model.register, in the workspace of config.json")
    given = parser.parse_args()
    if given.model is None and given.explainer is None:
        parser.error("pass --model, --explainer, or both")
    if given.sdk_v1:
        place = register_v1(given.name, given.model, given.explainer)
    else:
        version = bx.register(given.name, model=given.model, explainer=given.explainer, alias=given.alias)
        place = f"models:/{version.name}/{version.version}"
    for kind in ("model", "explainer"):
        if getattr(given, kind) is not None:
            print(f"--{kind} {place}")


def register_v1(name: str, model: str | None, explainer: str | None) -> str:
    """Register one folder as SDK v1 does, in which jobs and endpoints find both by their usual names."""
    from azureml.core import Model, Workspace

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, name)
        folder.mkdir()
        if model is not None:
            shutil.copy(model, folder / "model.pkl")
        if explainer is not None and Path(explainer).is_dir():
            shutil.copytree(explainer, folder / "bundle")
        elif explainer is not None:
            pickled = Path(explainer).suffix == ".pkl"
            shutil.copy(explainer, folder / ("scoring_explainer.pkl" if pickled else "explainer.txt"))
        registered = Model.register(Workspace.from_config(), model_path=str(folder), model_name=name)
    return f"azureml-model:{registered.name}:{registered.version}"


if __name__ == "__main__":
    try:
        main()
    except BatchExplainError as error:  # one paragraph: what, where, what to do
        sys.exit(f"register.py: {error}")
