"""The verbs of a run in steps: plan, and finalize."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

import batch_explain
from batch_explain.cli import (
    _NOTHING_WRITTEN,
    _fail,
    _guarded,
    _observers,
    _print_pairs,
    _print_run,
    _read_config,
    cli,
    run,
)
from batch_explain.errors import DriftError

if TYPE_CHECKING:
    from batch_explain.engine.steps import Planned
    from batch_explain.results import Run

_NOT_OF_A_PLAN = ("mlflow", "azure_run")
_STOPPED = "The run was not ended. Its partitions are kept: finalize it again at any time."


def plan(config: str | None, as_json: bool, **given: Any) -> None:
    """Plan a run and explain nothing: the first step where a platform brings the partitions.

    Takes the options of run. The tasks follow (batch_explain.integrations.azureml, or run --resume), then finalize.
    """
    values = {**_read_config(config), **{name: value for name, value in given.items() if value not in (None, ())}}
    quiet, log_format = bool(values.pop("quiet", False)), str(values.pop("log_format", "text"))
    for name in _NOT_OF_A_PLAN:  # in a configuration for run
        values.pop(name, None)

    def work() -> "Planned":
        with _observers(quiet or as_json, log_format) as observers:
            return batch_explain.plan_dataset(observers=observers, **values)

    found = _guarded(work, _NOTHING_WRITTEN)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
    elif not quiet:
        _print_plan(found)


plan = cli.command(
    "plan",
    params=[
        *(param for param in run.params if param.name not in _NOT_OF_A_PLAN),
        click.Option(
            ["--mini-batch-timeout"],
            metavar="SECONDS",
            help="What the platform gives to a mini-batch: measures rows, and says how many files it may have.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
    ],
)(plan)


@cli.command()
@click.option("--output", metavar="URL", required=True, help="The run's folder, with its plan.")
@click.option("--model", metavar="FILE", help="Where it is elsewhere than it was for plan.")
@click.option("--explainer", metavar="FILE", help="Where it is elsewhere than it was for plan.")
@click.option("--input", metavar="URL", help="Where it is elsewhere than it was for plan.")
@click.option("--feature-map", metavar="FILE", help="Where it is elsewhere than it was for plan.")
@click.option("--background", metavar="FILE", help="Where it is elsewhere than it was for plan.")
@click.option("--baseline", metavar="RUN", help="As in run.")
@click.option("--max-drift", metavar="X", help="As in run.")
@click.option("--max-bad-rows", metavar="N|P%", help="As in run.")
@click.option("--max-bad-files", metavar="N", help="As in run.")
@click.option("--trust", metavar="NAME", multiple=True, help="As in run.")
@click.option("--quiet", is_flag=True, help="Show errors only.")
def finalize(output: str, quiet: bool, **given: Any) -> None:
    """End a run whose partitions were explained elsewhere: check receipts, merge summaries, write report and _SUCCESS.

    Exit codes: 0 done; 2 no plan there; 3 bad rows or files; 4 drift; 5 partitions are missing.
    """
    drifted: list[DriftError] = []

    def work() -> "Run":
        values = {name: value for name, value in given.items() if value not in (None, ())}
        try:
            return batch_explain.finalize_run(output, **values)
        except DriftError as error:
            drifted.append(error)
            return batch_explain.open_run(output)

    found = _guarded(work, _STOPPED)
    if not quiet:
        _print_run(found)
    for error in drifted:
        _fail(error)


def _print_plan(found: "Planned") -> None:
    expected = found.expected
    pairs = [
        ("input", f"{found.rows:,} rows in {found.files:,} file{'s' * (found.files != 1)}"),
        ("partitions", f"{found.partitions:,}"),
        ("results", f"{found.output}, about {expected.output_bytes / 1e6:,.0f} MB before compression"),
        ("memory of a worker", f"about {expected.worker_bytes / 1e6:,.0f} MB"),
    ]
    if expected.seconds is not None:
        pairs.append(("time", f"about {expected.seconds:,.0f} s on this machine"))
    if found.forecast is not None:
        pairs.append(("mini-batches", found.forecast.advice))
    pairs += [("decided", decision) for decision in found.decisions]
    _print_pairs([*pairs, ("next", "the tasks, or batch-explain run --resume; then batch-explain finalize")])
