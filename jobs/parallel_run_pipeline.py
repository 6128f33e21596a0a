"""The nightly explanation as a pipeline of SDK v1: plan, ParallelRunStep, finalize; submitted once, or published.

    python parallel_run_pipeline.py --publish

SDK v1 is unsupported since June 2026; new pipelines are those of parallel_pipeline.yml. What to change: the settings
below. Results go to blob storage by their address, not through a mount: whole files only, and one run at a time.
"""

import argparse
from pathlib import Path

from azureml.core import Dataset, Environment, Experiment, Workspace
from azureml.core.runconfig import RunConfiguration
from azureml.data import OutputFileDatasetConfig
from azureml.pipeline.core import Pipeline, PipelineParameter
from azureml.pipeline.steps import CommandStep, ParallelRunConfig, ParallelRunStep

HERE = Path(__file__).parent

COMPUTE, NODES, PROCESSES = "cpu-cluster", 4, 4
STORAGE_ACCOUNT = "mystorageaccount"  # that OUTPUT is in; the cluster's identity may write there
DATASET, MODEL = "scoring-rows", "azureml-model:bank"
OUTPUT = "abfs://explained/today"
OPTIONS = ["--id-columns", "customer_id", "--outputs", "predictions,raw,reasons", "--max-bad-rows", "100"]
MINI_BATCH = "10"  # files; `batch-explain plan --mini-batch-timeout 600` says how many are done in that time
TIMEOUT = 600


def steps(rows, compute=COMPUTE, where=None):
    """Build the three steps.

    Parameters
    ----------
    rows : consumption config
        The input: a file dataset's ``as_named_input(...).as_mount()``, or an earlier step's output.
    compute : str or compute target
    where : PipelineParameter, optional
        Address of the results.
    """
    where = where or PipelineParameter("output", OUTPUT)
    environment = Environment.from_conda_specification("batch-explain", str(HERE / "conda.yml"))
    variables = {"AZURE_STORAGE_ACCOUNT_NAME": STORAGE_ACCOUNT, "AZURE_STORAGE_ANON": "false"}
    settings = RunConfiguration()
    settings.environment, settings.target, settings.environment_variables = environment, compute, variables
    artifacts = ["--model", MODEL, "--explainer", MODEL]
    plan = CommandStep(
        name="plan",
        command=[
            "batch-explain", "plan", "--input", rows, *artifacts, "--output", where, *OPTIONS,
            "--mini-batch-timeout", TIMEOUT, "--overwrite",
        ],
        runconfig=settings,
        compute_target=compute,
        allow_reuse=False,
    )  # fmt: skip
    explain = ParallelRunStep(
        name="explain",
        parallel_run_config=ParallelRunConfig(
            source_directory=str(HERE),
            entry_script="parallel_run_step.py",
            environment=environment,
            environment_variables=variables,
            compute_target=compute,
            node_count=NODES,
            process_count_per_node=PROCESSES,
            mini_batch_size=MINI_BATCH,
            run_invocation_timeout=TIMEOUT,
            run_max_try=3,
            error_threshold=0,  # of items; rows have --max-bad-rows
            output_action="summary_only",
            logging_level="INFO",
        ),
        inputs=[rows],
        output=OutputFileDatasetConfig(name="answers"),  # a line for each file; the results are at --output-folder
        arguments=[*artifacts, "--output-folder", where],  # --output is the platform's own
        allow_reuse=False,
    )
    finalize = CommandStep(
        name="finalize",
        command=["batch-explain", "finalize", "--output", where, *artifacts],
        runconfig=settings,
        compute_target=compute,
        allow_reuse=False,
    )
    explain.run_after(plan)
    finalize.run_after(explain)
    return [plan, explain, finalize]


def main() -> None:
    """Submit the pipeline, or publish it for a schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="publish it instead of submitting it once")
    given = parser.parse_args()
    workspace = Workspace.from_config()
    rows = Dataset.get_by_name(workspace, DATASET).as_named_input("rows").as_mount()
    pipeline = Pipeline(workspace, steps(rows))
    if given.publish:
        published = pipeline.publish("batch-explain nightly", "Explains every row of the scoring dataset")
        print(f"published as {published.id}: schedule it by azureml.pipeline.core.schedule.Schedule.create")
    else:
        Experiment(workspace, "batch-explain").submit(pipeline).wait_for_completion()


if __name__ == "__main__":
    main()
