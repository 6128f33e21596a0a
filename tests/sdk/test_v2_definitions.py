"""The v2 definitions in jobs/, loaded and checked by azure-ai-ml itself, and what it does not notice."""

import re
from pathlib import Path

import pytest
import yaml

ml = pytest.importorskip("azure.ai.ml", reason="run by tox -e sdk-v2")

JOBS = Path(__file__).parents[2] / "jobs"


def test_the_pipeline_and_its_parallel_step() -> None:
    pipeline = ml.load_job(JOBS / "parallel_pipeline.yml")
    found = pipeline._validate()
    assert found.passed, found.error_messages
    assert list(pipeline.jobs) == ["plan", "explain", "finalize"]
    component = ml.load_component(JOBS / "parallel_job.yml")
    assert component._validate().passed
    assert component.input_data.strip("${}").removeprefix("inputs.") in component.inputs
    task = yaml.safe_load((JOBS / "parallel_job.yml").read_text())["task"]
    assert (JOBS / task["code"] / task["entry_script"]).is_file()
    assert (JOBS / task["environment"]["conda_file"]).is_file()
    given = pipeline.jobs["explain"].inputs
    assert set(given) == set(component.inputs)
    used = set(re.findall(r"\$\{\{inputs\.(\w+)\}\}", component.task.program_arguments)) | {"rows", "planned"}
    assert used == set(component.inputs)


def test_steps_follow_each_other() -> None:
    """The platform orders steps by what they hand on."""
    jobs = yaml.safe_load((JOBS / "parallel_pipeline.yml").read_text())["jobs"]
    for earlier, later in (("plan", "explain"), ("explain", "finalize")):
        handed_on = {f"${{{{parent.jobs.{earlier}.outputs.{name}}}}}" for name in jobs[earlier]["outputs"]}
        assert handed_on & {str(value) for value in jobs[later]["inputs"].values()}


def test_a_wrong_definition_is_refused(tmp_path: Path) -> None:
    """The check is one that can fail."""
    for file in (*JOBS.glob("*.yml"), JOBS / "parallel_run_step.py"):
        (tmp_path / file.name).write_text(file.read_text().replace("timeout: 600", "timeout: soon"))
    with pytest.raises(Exception, match="timeout"):
        ml.load_component(tmp_path / "parallel_job.yml")


def test_the_schedule() -> None:
    from azure.ai.ml.entities._load_functions import load_schedule

    schedule = load_schedule(JOBS / "parallel_schedule.yml")
    assert schedule.trigger.expression == "30 2 * * *"
    assert list(schedule.create_job.jobs) == ["plan", "explain", "finalize"]


def test_the_batch_endpoint() -> None:
    endpoint = ml.load_batch_endpoint(JOBS / "batch_endpoint/endpoint.yml")
    deployment = ml.load_batch_deployment(JOBS / "batch_endpoint/deployment.yml")
    assert deployment.endpoint_name == endpoint.name and deployment.output_action == "summary_only"
    assert deployment.mini_batch_size == 10 and deployment.retry_settings.timeout == 300
    assert_is_there("batch_endpoint")


def test_the_online_endpoint() -> None:
    endpoint = ml.load_online_endpoint(JOBS / "online_endpoint/endpoint.yml")
    deployment = ml.load_online_deployment(JOBS / "online_endpoint/deployment.yml")
    assert deployment.endpoint_name == endpoint.name and deployment.request_settings is not None
    assert_is_there("online_endpoint")


def assert_is_there(folder: str) -> None:
    """The files that a deployment names, which the SDK does not look for."""
    content = yaml.safe_load((JOBS / folder / "deployment.yml").read_text())
    code = content["code_configuration"]
    assert (JOBS / folder / code["code"] / code["scoring_script"]).is_file()
    assert (JOBS / folder / content["environment"]["conda_file"]).is_file()
