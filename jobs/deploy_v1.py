"""Deploy a registered model and its explainer as an AciWebservice (SDK v1), and call it once.

    python register.py --name bank --model model.pkl --explainer scoring_explainer.pkl --sdk-v1
    python deploy_v1.py --name bank-scoring --model bank:1 --rows rows.json

SDK v1 is unsupported since June 2026: new deployments are those of jobs/online_endpoint/. Both serve the same scoring
script, jobs/online_endpoint/score.py. What to change: CPU, memory, and conda.yml's first lines.
"""

import argparse
import json
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Deploy, call, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the web service")
    parser.add_argument("--model", required=True, help="NAME:VERSION of what register.py made, or of a bundle")
    parser.add_argument("--rows", required=True, help="JSON file of records for the test call: [{column: value, …}, …]")
    given = parser.parse_args()

    from azureml.core import Environment, Model, Workspace
    from azureml.core.model import InferenceConfig
    from azureml.core.webservice import AciWebservice

    workspace = Workspace.from_config()
    environment = Environment.from_conda_specification("batch-explain", str(HERE / "conda.yml"))
    service = Model.deploy(
        workspace,
        given.name,
        [Model(workspace, id=given.model)],
        InferenceConfig(
            entry_script="score.py", source_directory=str(HERE / "online_endpoint"), environment=environment
        ),
        AciWebservice.deploy_configuration(cpu_cores=2, memory_gb=4, auth_enabled=True),
        overwrite=True,
    )
    service.wait_for_deployment(show_output=True)
    answer = service.run(json.dumps({"data": json.loads(Path(given.rows).read_text())}))
    shown = ("predictions", "raw_features", "raw_local_importance_values", "reasons")
    print(json.dumps({name: answer[name] for name in shown}, indent=1))


if __name__ == "__main__":
    main()
