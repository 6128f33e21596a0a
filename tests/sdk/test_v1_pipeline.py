"""The v1 pipeline in jobs/, built by azureml-pipeline-steps without a workspace."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("azureml.pipeline.steps", reason="run by tox -e sdk-v1")

JOBS = Path(__file__).parents[2] / "jobs"


def test_the_steps_are_built() -> None:
    from azureml.data import OutputFileDatasetConfig
    from azureml.pipeline.steps import CommandStep, ParallelRunStep

    script = runpy.run_path(str(JOBS / "parallel_run_pipeline.py"))
    rows = OutputFileDatasetConfig(name="scored").as_input("rows")
    plan, explain, finalize = script["steps"](rows)
    assert isinstance(plan, CommandStep) and isinstance(explain, ParallelRunStep) and isinstance(finalize, CommandStep)
    settings = explain._parallel_run_config
    assert settings.output_action == "summary_only" and settings.run_invocation_timeout == script["TIMEOUT"]
    assert settings.mini_batch_size == int(script["MINI_BATCH"]) and settings.error_threshold == 0
    assert (Path(settings.source_directory) / settings.entry_script).is_file()
    assert explain.run_after_steps == [plan] and finalize.run_after_steps == [explain]
