"""The verb that measures: ``bench``."""

import json
import sys
from typing import Any

import click

from batch_explain.cli import _NOTHING_WRITTEN, _guarded, cli
from batch_explain.errors import IntegrityError, OutputRefusedError


@cli.command()
@click.option(
    "--input", metavar="URL", help="Rows to measure with, as in run (none of these three: a built-in example)."
)
@click.option("--model", metavar="FILE", help="As in run.")
@click.option("--explainer", metavar="FILE", help="As in run.")
@click.option("--feature-map", metavar="FILE", help="As in run.")
@click.option("--rows", type=click.IntRange(min=1), help="Rows to estimate the time of (default: the input's).")
@click.option("--cores", type=click.IntRange(min=1), help="Cores to estimate it for (default: those of this machine).")
@click.option("--seconds", default=60.0, show_default=True, help="To measure in, about; loading comes before.")
@click.option("--max-bad-rows", metavar="N|P%", help="As in run.")
@click.option("--trust", metavar="NAME", multiple=True, help="As in run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--output", metavar="FILE", help="Write the JSON there too.")
@click.option("--chart", metavar="FILE", help="Write a chart: .svg, or .html with the table.")
@click.option("--quiet", is_flag=True, help="Do not say what is being measured.")
def bench(as_json: bool, output: str | None, chart: str | None, quiet: bool, **given: Any) -> None:
    """Measure what a row costs here: the SDK's explain(), LightGBM's pred_contrib, our kernel, and the whole run.

    All in turns on the same rows, with their spread, and an estimate for many rows. Exit codes: 0 done; 2 nothing to
    measure; 3 rows that cannot be explained; 6 values differ.
    """
    from batch_explain.bench.bench import bench as measure
    from batch_explain.bench.files import check_places, write_files

    def say(what: str) -> None:
        if not quiet and not as_json:
            click.echo(what, err=True)

    def work() -> dict[str, Any]:
        check_places(output, chart)
        found = measure(say=say, **given)
        try:
            write_files(found, output, chart)
        except OSError as error:
            raise OutputRefusedError(f"What was measured cannot be written: {error}. Choose another place.") from error
        return found

    found = _guarded(work, _NOTHING_WRITTEN)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print_bench(found)
    if found["problems"]:
        _guarded(lambda: _refuse(found["problems"]))


def _refuse(problems: list[str]) -> None:
    raise IntegrityError(" ".join(problems))


def _print_bench(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from batch_explain.bench import text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, heading in enumerate(text.HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for cells in text.lines(found):
        table.add_row(*cells)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else text.WIDTH)
    console.print(text.title(found))
    console.print(table)
    for line in text.wrapped(found):
        console.print(line)
