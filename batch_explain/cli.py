"""The command line: thin verbs over the Python interface."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

import batch_explain
from batch_explain.errors import BatchExplainError, InterruptedRunError, OptionError, OutputRefusedError, mask_secrets

if TYPE_CHECKING:
    from batch_explain.events import Observer
    from batch_explain.results import Run

_PATIENCE = 7.0  # seconds between a signal and a forced end
_STOPPED = (
    "The run was stopped. What is done is kept: go on with the same command and --resume, or start anew with "
    "--overwrite."
)
_TRACEBACK_VARIABLE = "BATCH_EXPLAIN_TRACEBACK"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(batch_explain.__version__, prog_name="batch-explain")
def cli() -> None:
    """Explain every row of a scoring run.

    Exit codes: 0 done; 1 bug; 2 nothing started; 3 bad rows or files; 5 stopped half-way; 6 results do not add up.
    """


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--quiet", is_flag=True, default=None, help="Show errors only."),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="Progress as text (default) or as JSON lines.",
        ),
    ):
        command = option(command)
    return command


@cli.command()
@click.option("--input", metavar="URL", help="Parquet file, folder or glob.")
@click.option("--model", metavar="FILE", help="Pickle of the fitted pipeline; left out: the input is engineered.")
@click.option("--explainer", metavar="FILE", help="scoring_explainer.pkl, or a LightGBM model text file.")
@click.option("--feature-map", metavar="FILE", help="Parquet of raw_feature, engineered_feature, weight.")
@click.option("--output", metavar="URL", help="Folder for the results; empty or new.")
@click.option("--id-columns", metavar="A,B", help="Columns copied to every table (default: source_file, source_row).")
@click.option(
    "--columns-map",
    metavar="MODEL=FILE",
    multiple=True,
    help="A column's name in the file, where it differs.",
)
@click.option("--outputs", metavar="A,B", help="Tables: predictions, engineered, raw (default: all that can be made).")
@click.option("--scheduler", metavar="NAME|URL", help="processes (default), threads, sync, or tcp://host:port.")
@click.option("--workers", metavar="N", help="Workers (default: one a core).")
@click.option("--partition-rows", metavar="N", help="Most rows of one task (default: 100000).")
@click.option("--batch-rows", metavar="N", help="Most rows of one step inside a task (default: 10000).")
@click.option("--table-memory", metavar="SIZE", help="Most memory for TreeSHAP's tables (default: 400MB).")
@click.option("--limit", metavar="N", help="Explain only the first N rows (a trial).")
@click.option("--check", metavar="sample|all", help="Additivity on 256 rows a batch (default) or on every row.")
@click.option("--dtype", metavar="float64|float32", help="How importances are stored (default: float64).")
@click.option("--compression", metavar="NAME", help="snappy (default), zstd or none.")
@click.option("--overwrite", is_flag=True, default=None, help="Remove the earlier run in the output first.")
@click.option("--resume", is_flag=True, default=None, help="Continue the run that was stopped in the output.")
@click.option("--task-timeout", metavar="TIME", help="Longest time for one task, such as 10m (default: none).")
@click.option("--config", metavar="FILE", help="TOML file with any of these options; the command line wins.")
@_output_options
def run(config: str | None, **given: Any) -> None:
    """Explain a parquet dataset."""
    values = {
        **_read_config(config),
        **{name: value for name, value in given.items() if value not in (None, ())},
    }
    quiet, log_format = bool(values.pop("quiet", False)), str(values.pop("log_format", "text"))

    def explain() -> "Run":
        with _observers(quiet, log_format) as observers:
            return batch_explain.explain_dataset(observers=observers, **values)

    finished = _guarded(explain)
    if not quiet:
        _print_run(finished)


@cli.command()
@click.option("--folder", default="batch-explain-demo", show_default=True, metavar="DIR", help="Where it is made.")
@click.option("--rows", default=200_000, show_default=True, type=click.IntRange(min=1), help="Rows of the dataset.")
@click.option("--scheduler", metavar="NAME|URL", default="processes", show_default=True, help="As in run.")
@click.option("--workers", metavar="N", help="As in run.")
@_output_options
def demo(folder: str, rows: int, quiet: bool | None, log_format: str | None, **given: Any) -> None:
    """Make a dataset, a model and an explainer, and run the main job on them.

    With the Azure stack installed the model is a genuine AutoML pipeline, else a scikit-learn one.
    """

    def explain() -> "Run":
        from batch_explain.demo import make_demo

        if not quiet:
            click.echo(f"making {rows:,} rows, a model and an explainer in {folder} …", err=True)
        try:
            paths = make_demo(folder, rows=rows)
        except OSError as error:
            raise OutputRefusedError(
                f"The demo cannot be made in {folder}: {error}. Choose another --folder."
            ) from error
        with _observers(bool(quiet), log_format or "text") as observers:
            return batch_explain.explain_dataset(
                input=paths.input,
                model=paths.model,
                explainer=paths.explainer,
                id_columns=paths.id_columns,
                output=os.path.join(folder, "explained"),
                overwrite=True,
                observers=observers,
                **{name: value for name, value in given.items() if value is not None},
            )

    finished = _guarded(explain)
    if not quiet:
        _print_run(finished)


def main() -> None:
    """Entry point of the ``batch-explain`` command."""
    cli()


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        _fail(OptionError(f"The configuration {path} cannot be read: {error.strerror}. Check the path."))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        _fail(OptionError(f"The configuration {path} is not TOML: {error}. Write lines such as: input = 'rows/'."))
    return {name.replace("-", "_"): value for name, value in content.items()}


@contextlib.contextmanager
def _observers(quiet: bool, log_format: str) -> Iterator[list["Observer"]]:
    from batch_explain.events import JsonLog, PlainLog, ProgressBar

    if log_format not in ("text", "json"):
        raise OptionError(f"--log-format is '{log_format}'. Use text or json.")
    if quiet:
        yield []
    elif log_format == "json":
        yield [JsonLog()]
    elif sys.stderr.isatty():
        bar = ProgressBar()
        try:
            yield [bar]
        finally:
            bar.close()
    else:
        yield [PlainLog()]


def _guarded(work: Callable[[], "Run"]) -> "Run":
    """Do the work; end with one paragraph and the exit code of the error's kind, never with a traceback."""
    watch = _StopWatch()
    previous = {name: signal.signal(name, watch.stop) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        return work()
    except BatchExplainError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(InterruptedRunError(_STOPPED))
    except Exception as error:
        if os.environ.get(_TRACEBACK_VARIABLE):
            raise
        _say(
            f"This is a bug in batch-explain, not in your data: {type(error).__name__}: {mask_secrets(str(error))}. "
            f"Please report it, with the trace that {_TRACEBACK_VARIABLE}=1 shows."
        )
        sys.exit(1)
    finally:
        watch.end()
        for name, handler in previous.items():
            signal.signal(name, handler)


class _StopWatch:
    """Turns SIGINT and SIGTERM into a KeyboardInterrupt, and ends the process where that takes too long.

    A task may be in a library's code for minutes, and a cluster that is being closed waits for its tasks. Whatever is
    half-written then has no final name.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def stop(self, _signal: int, _frame: Any) -> None:
        if self._timer is not None:  # asked again, while it is stopping
            return
        self._timer = threading.Timer(_PATIENCE, self._force)
        self._timer.daemon = True
        self._timer.start()
        raise KeyboardInterrupt

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _force(self) -> None:
        import psutil

        _say(_STOPPED)
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children(recursive=True):  # our worker processes
                with contextlib.suppress(psutil.Error):
                    child.kill()
        os._exit(InterruptedRunError.exit_code)


def _fail(error: BatchExplainError) -> NoReturn:
    _say(str(error))
    sys.exit(error.exit_code)


def _say(message: str) -> None:
    # libraries' texts and names in files may hold line breaks or worse
    printable = "".join(character if character.isprintable() else " " for character in message)
    click.echo(f"batch-explain: {printable}", err=True)


def _print_run(run: "Run", top: int = 5) -> None:
    """A short table: what a person wants to know first."""
    from rich.console import Console
    from rich.table import Table

    info = run.info
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("rows explained", f"{info['rows']['explained']:,}")
    if info["rows_per_second"]:
        table.add_row("rows per second", f"{info['rows_per_second']:,.0f}")
    if info["artifacts"]["model"]:
        table.add_row("model", info["artifacts"]["model"]["kind"])
    table.add_row("explainer", info["artifacts"]["explainer"]["description"])
    table.add_row("surrogate fidelity", _fidelity(info["fidelity"]))
    for level in ("raw", "engineered"):
        if info["features"][level]:
            table.add_row(f"top {level} features", _top(run, level, top))
    table.add_row("results", str(run.location))
    wide = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, width=wide).print(table)


def _fidelity(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not known"
    if found["measure"] == "r2":
        return "not known" if found["r2"] is None else f"R² {found['r2']:.4f}"
    if found["agreement"] is None:
        return "not known"
    return f"agrees on {found['agreement']:.2%} of rows, log-loss {found['log_loss']:.4f}"


def _top(run: "Run", level: str, count: int) -> str:
    """Features by mean |importance|, averaged over the outputs."""
    means = (
        run.summary(level).groupby("feature", sort=False)["mean_abs"].mean().sort_values(ascending=False, kind="stable")
    )
    return ", ".join(f"{feature} {value:.3g}" for feature, value in means.head(count).items())
