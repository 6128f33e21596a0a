"""The command line: thin verbs over the Python interface."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import batch_explain
from batch_explain.errors import (
    BatchExplainError,
    DriftError,
    InterruptedRunError,
    OptionError,
    OutputRefusedError,
    mask_secrets,
)

if TYPE_CHECKING:
    from batch_explain.drift import Comparison
    from batch_explain.engine.status import Status
    from batch_explain.engine.verify import Verification
    from batch_explain.events import Observer
    from batch_explain.fitting.fit import Fitted
    from batch_explain.results import Run

_Answer = TypeVar("_Answer")

_PATIENCE = 7.0  # seconds between a signal and a forced end
_STOPPED = (
    "The run was stopped. What is done is kept: go on with the same command and --resume, or start anew with "
    "--overwrite."
)
_NOTHING_WRITTEN = "Stopped. Nothing was written: ask again at any time."
_ASK_AGAIN = "Stopped. The run is as it was: choose another --output and ask again."
_LOG_AGAIN = "Stopped. The run is as it was: log it again at any time."
_SHOWN_PROBLEMS = 50
_TRACEBACK_VARIABLE = "BATCH_EXPLAIN_TRACEBACK"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(batch_explain.__version__, prog_name="batch-explain")
def cli() -> None:
    """Explain every row of a scoring run.

    Exit codes: 0 done; 1 bug; 2 nothing started; 3 bad rows or files; 4 drift above its limit; 5 stopped half-way;
    6 results do not add up.
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
@click.option(
    "--input", metavar="URL", help="Files of parquet, CSV, JSON lines or Arrow, a folder, a glob, or delta://FOLDER."
)
@click.option(
    "--model",
    metavar="FILE",
    help="The fitted pipeline: pickle, skops file or bundle; none: engineered input.",
)
@click.option("--explainer", metavar="FILE", help="scoring_explainer.pkl, a bundle's folder, or a LightGBM model text.")
@click.option("--direct", is_flag=True, default=None, help="Explain the model by its own trees: no --explainer.")
@click.option("--feature-map", metavar="FILE", help="Parquet of raw_feature, engineered_feature, weight.")
@click.option("--background", metavar="FILE", help="Up to 500 rows like the input's: interventional SHAP against them.")
@click.option("--output", metavar="URL", help="Folder for the results; empty or new.")
@click.option("--id-columns", metavar="A,B", help="Columns copied to every table (default: source_file, source_row).")
@click.option("--history", metavar="URL", help="Forecasting: earlier rows with known targets, for the model's lags.")
@click.option("--target-column", metavar="NAME", help="Column of known targets in --history, or in the input itself.")
@click.option(
    "--columns-map",
    metavar="MODEL=FILE",
    multiple=True,
    help="A column's name in the file, where it differs.",
)
@click.option(
    "--outputs",
    metavar="A,B",
    help="Tables: predictions, engineered, raw (default: these, if they can be made), features, reasons.",
)
@click.option("--top-k", metavar="N", help="Most reasons of a row and output (default: 5).")
@click.option("--reasons", metavar="WHICH", help="by-magnitude (default), positive or negative.")
@click.option("--reasons-level", metavar="LEVEL", help="raw (default, if there is a feature map) or engineered.")
@click.option("--reasons-for", metavar="all|predicted", help="All outputs (default), or the predicted class.")
@click.option(
    "--reason-codes", metavar="FILE", help="CSV of feature, direction (positive, negative, empty), code, text."
)
@click.option("--missing-code", metavar="error|other", help="What a feature without a code is (default: error).")
@click.option("--exclude-features", metavar="A,B", help="Features or groups that are never reasons.")
@click.option("--group-features", metavar="FILE", help="CSV of feature, group: a group's importances add up.")
@click.option("--scheduler", metavar="NAME|URL", help="processes (default), threads, sync, tcp://host:port or a .json.")
@click.option("--workers", metavar="N", help="Workers (default: one a core).")
@click.option("--partition-rows", metavar="N", help="Most rows of a partition (default: 100000; of many more).")
@click.option("--batch-rows", metavar="N", help="Most rows of one step inside a task (default: 25600).")
@click.option("--table-memory", metavar="SIZE", help="Most memory for TreeSHAP's tables (default: 400MB).")
@click.option("--memory-limit", metavar="SIZE", help="Most memory of each worker process, such as 2GB (default: none).")
@click.option(
    "--filter", metavar="CONDITIONS", help="Explain only such rows: \"age >= 18 and job in ('clerk', 'nurse')\"."
)
@click.option("--limit", metavar="N", help="Explain only the first N rows (a trial).")
@click.option("--check", metavar="sample|all", help="Additivity on 256 rows a batch (default) or on every row.")
@click.option("--dtype", metavar="float64|float32", help="How importances are stored (default: float64).")
@click.option("--compression", metavar="NAME", help="snappy (default), zstd or none.")
@click.option("--output-format", metavar="NAME", help="parquet (default), or delta: tables that are Delta tables too.")
@click.option("--append-to", metavar="FOLDER", help="Delta tables that the run's rows are appended to, a commit each.")
@click.option("--overwrite", is_flag=True, default=None, help="Remove the earlier run in the output first.")
@click.option("--resume", is_flag=True, default=None, help="Continue the run that was stopped in the output.")
@click.option("--max-bad-rows", metavar="N|P%", help="Rows that may be left out, put into quarantine (default: 0).")
@click.option("--max-bad-files", metavar="N", help="Unreadable files that may be left out (default: 0).")
@click.option(
    "--cohort",
    multiple=True,
    metavar="COLUMN",
    help="Summarise by this column too (repeatable): COLUMN, COLUMN:18,30,50 or COLUMN@4 (quartiles).",
)
@click.option("--sample-rows", metavar="N", help="Rows kept for plots (default: 2000; 0: none).")
@click.option(
    "--no-row-values", is_flag=True, default=None, help="Keep rows' own values out of quarantine, sample and reasons."
)
@click.option("--baseline", metavar="RUN", help="A finished run, or a saved explanation, to compare this run with.")
@click.option("--max-drift", metavar="X", help="Exit 4 where 1 - nDCG of the importances' ranking is above X (0 to 1).")
@click.option("--report/--no-report", default=None, help="Write report.html, the run as one page (default: yes).")
@click.option("--mlflow", is_flag=True, default=None, help="Log the finished run to MLflow (MLFLOW_TRACKING_URI …).")
@click.option(
    "--azure-run", metavar="ID|current", help="Upload the explanations to this Azure ML run (config.json, SDK v1)."
)
@click.option("--task-timeout", metavar="TIME", help="Longest time for one task, such as 10m (default: none).")
@click.option(
    "--trust",
    metavar="NAME",
    multiple=True,
    help="One more class or function that the pickles may use, exactly: my_module.MyTransformer.",
)
@click.option(
    "--sha256",
    metavar="NAME=HEX",
    multiple=True,
    help="What the SHA-256 of the model or the explainer must be: model=…, explainer=….",
)
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

    drifted: list[DriftError] = []

    def complete() -> "Run":
        try:
            return explain()
        except DriftError as error:
            drifted.append(error)
            return batch_explain.open_run(values["output"])

    finished = _guarded(complete)
    if not quiet:
        _print_run(finished)
    for error in drifted:
        _fail(error)


@cli.command()
@click.option(
    "--explainer", metavar="FILE", help="scoring_explainer.pkl, or a LightGBM model text (none: the model's own trees)."
)
@click.option("--model", metavar="FILE", help="Pickle of the fitted pipeline: names the classes and the task.")
@click.option("--feature-map", metavar="FILE", help="As in run.")
@click.option("--with-model", is_flag=True, help="Write the model too, as a skops file (scikit-learn only).")
@click.option("--output", metavar="URL", required=True, help="Folder for the bundle; empty or new.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle in the output.")
@click.option("--trust", metavar="NAME", multiple=True, help="As in run.")
def export(explainer: str | None, output: str, **given: Any) -> None:
    """Write an explainer as a portable bundle.

    A bundle is a folder with no code in it: numbers and text, which any supported Python opens, azureml or not, and run
    takes as its --explainer. Explainers that need the SDK's own code (kernel, deep) cannot be written as one.
    """
    done = _guarded(lambda: batch_explain.export_bundle(explainer, output, **given), _NOTHING_WRITTEN)
    pairs = [("explainer", done.description), ("task", done.task or "not known, because there is no --model")]
    if done.classes is not None:
        pairs.append(("classes", ", ".join(map(str, done.classes))))
    pairs += [("note", note) for note in done.notes]
    _print_pairs([*pairs, ("bundle", f"{done.location} ({done.bytes:,} bytes)")])


@cli.command()
@click.option("--model", metavar="FILE", required=True, help="The fitted pipeline, as in run.")
@click.option("--train", metavar="URL", required=True, help="Parquet of the rows that it was trained on.")
@click.option("--label", metavar="COLUMN", required=True, help="The column with the true answer.")
@click.option("--output", metavar="URL", required=True, help="Folder for the explainer; empty or new.")
@click.option("--test", metavar="URL", help="Rows that are explained and judged on (default: a fifth of --train).")
@click.option("--task", metavar="NAME", help="classification or regression (default: what the model is).")
@click.option(
    "--surrogate", metavar="KIND", help="sdk (default): as Azure ML makes it; faithful: learns the model's confidence."
)
@click.option("--direct", is_flag=True, default=None, help="No surrogate: the model's own trees, as in run.")
@click.option("--surrogate-model", metavar="NAME", help="lightgbm (default) or linear.")
@click.option(
    "--surrogate-arg",
    "surrogate_args",
    metavar="NAME=VALUE",
    multiple=True,
    help="Of the surrogate's own model, such as num_leaves=63 (repeatable).",
)
@click.option("--augment-data", is_flag=True, default=None, help="The SDK's: more training rows by permuted columns.")
@click.option("--max-augmentations", metavar="N", help="The SDK's max_num_of_augmentations (default: 10).")
@click.option("--categorical-features", metavar="A,B", help="Engineered features that hold codes of categories.")
@click.option("--shap-values-output", metavar="NAME", help="default, or probability (dense rows of several classes).")
@click.option("--max-train-rows", metavar="N", help="More are sampled, always the same ones (default: 100000).")
@click.option("--scheduler", metavar="NAME", help="As in run, for the rows that are explained.")
@click.option("--trust", metavar="NAME", multiple=True, help="As in run.")
@click.option("--overwrite", is_flag=True, default=None, help="Remove the earlier fit in the output first.")
@_output_options
def fit(quiet: bool | None, log_format: str | None, **given: Any) -> None:
    """Make an explainer of a fitted model, and judge it on rows that it was not fitted on.

    The output holds the explainer as a bundle (of AutoML pipelines scoring_explainer.pkl too), the explained rows with
    a report, a baseline for later runs, and fit.json.
    """
    values = {name: value for name, value in given.items() if value not in (None, ())}

    def work() -> "Fitted":
        with _observers(bool(quiet), log_format or "text") as observers:
            return batch_explain.fit(observers=observers, **values)

    found = _guarded(work, "Stopped. What is there has no fit.json: begin again with --overwrite.")
    if not quiet:
        info = found.info
        right = info["accuracy"] or {"measure": "accuracy", "accuracy": None}
        value = right[right["measure"]]
        pairs = [
            ("explainer", info["surrogate"]["description"]),
            ("surrogate fidelity", _fidelity(info["fidelity"])),
            (f"model's {right['measure'].replace('r2', 'R²')}", "not known" if value is None else f"{value:.4f}"),
            *(("decided", decision) for decision in info["decisions"]),
            *(("warning", warning) for warning in info["warnings"]),
        ]
        _print_pairs(
            [*pairs, ("results", str(found.location)), ("report", str(found.location.join("held_out/report.html")))]
        )


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


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--recompute", metavar="N|P%", help="Explain so many random rows again, and compare them: 100 or 0.1%.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), help="Chooses these rows (default: others each time).")
@click.option("--trust", metavar="NAME", multiple=True, help="As in run, for --recompute.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(run: str, recompute: str | None, seed: int | None, trust: tuple[str, ...], as_json: bool) -> None:
    """Check that the folder RUN holds exactly what the run wrote.

    Exit codes: 0 all right; 2 no run there; 5 nothing wrong, but not finished; 6 something is wrong.
    """
    found = _guarded(
        lambda: batch_explain.verify_run(run, recompute=recompute, seed=seed, trust=trust), _NOTHING_WRITTEN
    )
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        _print_verification(found)
    sys.exit(found.exit_code)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(run: str, as_json: bool) -> None:
    """Tell where the run in the folder RUN stands, while it runs or after.

    Exit codes: 0 there is a run; 2 there is none.
    """
    found = _guarded(lambda: batch_explain.run_status(run), _NOTHING_WRITTEN)
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        _print_status(found)


@cli.command()
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(artifact: str, as_json: bool) -> None:
    """Tell what a model, an explainer, a bundle or a LightGBM model text is, without running anything of it.

    Exit codes: 0 it could be read; 2 it could not.
    """
    found = _guarded(lambda: batch_explain.inspect_artifact(artifact), _NOTHING_WRITTEN)
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False, default=str))
    else:
        from batch_explain.engine.inspect_text import describe

        _print_pairs(describe(found))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--cohort", multiple=True, required=True, metavar="COLUMN", help="As in run (repeatable).")
@click.option("--output", required=True, metavar="URL", help="Folder for the summaries; empty or new, outside RUN.")
@click.option("--quiet", is_flag=True, help="Show errors only.")
def summarize(run: str, cohort: tuple[str, ...], output: str, quiet: bool) -> None:
    """Summarise the finished run RUN by cohorts that it did not have; nothing is explained again.

    Columns that are not among the run's ids are read from its input, which must be there and unchanged.
    """
    found = _guarded(lambda: batch_explain.summarize_run(run, cohort=list(cohort), output=output), _ASK_AGAIN)
    if not quiet:
        groups = (
            found[["cohort", "group", "count"]].drop_duplicates(["cohort", "group"]).fillna({"group": "(no value)"})
        )
        pairs = [(f"{name}: {label}", f"{rows:,} rows") for name, label, rows in groups.itertuples(index=False)]
        _print_pairs([*pairs, ("results", output)])


@cli.command()
@click.argument("run", metavar="RUN")
@click.argument("baseline", metavar="BASELINE")
@click.option("--max-drift", metavar="X", help="Exit 4 where 1 - nDCG of the worst output is above X (0 to 1).")
@click.option("--level", metavar="raw|engineered", help="Whose importances (default: raw, where both have them).")
@click.option("--top", default=15, show_default=True, type=click.IntRange(min=0), help="Features that are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", metavar="FILE", help="Write this JSON to a file too.")
def compare(
    run: str, baseline: str, max_drift: str | None, level: str | None, top: int, as_json: bool, output: str | None
) -> None:
    """Compare the finished run RUN with BASELINE: another run, or an explanation saved by interpret-community.

    Exit codes: 0 compared; 2 they cannot be; 4 the drift is above --max-drift.
    """

    def work() -> "Comparison":
        from batch_explain.options import drift_limit

        limit = None if max_drift is None else drift_limit(max_drift)
        found = batch_explain.compare_runs(run, baseline, level=level, max_drift=limit)
        if output is not None:
            _write_comparison(output, found.to_json())
        return found

    found = _guarded(work, _ASK_AGAIN)
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        _print_comparison(found.to_json(), top)
    sys.exit(DriftError.exit_code if found.above_limit else 0)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--output", metavar="FILE", default="report.html", show_default=True, help="A file outside RUN.")
@click.option("--quiet", is_flag=True, help="Show errors only.")
def report(run: str, output: str, quiet: bool) -> None:
    """Make the report of the finished run RUN again: one HTML file that asks for nothing from anywhere.

    An earlier report in its place is replaced; anything else is not.
    """
    _guarded(lambda: batch_explain.open_run(run).report(output), _ASK_AGAIN)
    if not quiet:
        _print_pairs([("report", output)])


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--quiet", is_flag=True, help="Show errors only.")
def log(run: str, quiet: bool) -> None:
    """Log the finished run RUN to MLflow, unless it is logged there already.

    The server, the experiment and the credentials are those of MLflow's own environment.

    Exit codes: 0 it is logged; 2 no finished run, or MLflow cannot be used; 5 not all of it was taken.
    """

    def logged() -> str:
        with _observers(quiet, "text"):
            return batch_explain.log_to_mlflow(batch_explain.open_run(run))

    found = _guarded(logged, _LOG_AGAIN)
    if not quiet:
        _print_pairs([("MLflow run", found)])


@cli.command()
@click.option("--name", metavar="NAME", required=True, help="Of the registered model; made if there is none.")
@click.option("--explainer", metavar="FILE", help="scoring_explainer.pkl, a bundle's folder, or a LightGBM model text.")
@click.option("--model", metavar="FILE", help="The fitted pipeline: a pickle or a skops file.")
@click.option("--alias", metavar="NAME", help="A name that means this version from now on: models:/NAME@ALIAS.")
@click.option("--tag", metavar="KEY=VALUE", multiple=True, help="Of the version (repeatable).")
def register(name: str, tag: tuple[str, ...], **given: Any) -> None:
    """Register a model, its explainer or both in MLflow's registry: a new version, models:/NAME/VERSION.

    `run` takes that address as --model and as --explainer. The server and the credentials are those of MLflow's own
    environment; on Azure ML that is the workspace.
    """
    tags = dict(each.partition("=")[::2] for each in tag)
    found = _guarded(lambda: batch_explain.register(name, tags=tags, **given), _NOTHING_WRITTEN)
    _print_pairs([("registered", found.uri)])


@cli.group()
def explanation() -> None:
    """Explanations as training leaves them: saved, fetched from an Azure ML run, or uploaded to one."""


@explanation.command()
@click.argument("run", metavar="RUN")
@click.option("--output", metavar="FOLDER", required=True, help="A new folder.")
@click.option("--level", metavar="raw|engineered", default="raw", show_default=True)
@click.option("--rows", type=int, metavar="N", help="Rows of the sample with local importances (default: 1000).")
def save(run: str, output: str, level: str, rows: int | None) -> None:
    """Save the finished run RUN in interpret-community's form: global over all rows, local of the sample."""
    _guarded(lambda: batch_explain.open_run(run).save_explanation(output, level, rows), _ASK_AGAIN)
    _print_pairs([("explanation", output)])


@explanation.command()
@click.option("--azure-run", metavar="ID|current", required=True, help="The run that was explained.")
@click.option("--best", metavar="METRIC|primary", help="ID is an AutoML experiment: its best child by this metric.")
@click.option("--workspace", metavar="FILE", help="The workspace's config.json (default: here or in a folder above).")
@click.option("--output", metavar="FOLDER", required=True, help="A new folder on this machine.")
def download(azure_run: str, best: str | None, workspace: str | None, output: str) -> None:
    """Fetch an Azure ML run's explanations, raw and engineered: baselines for `run` and `compare`."""
    from batch_explain.integrations.azure_runs import AzureRun

    found = _guarded(lambda: AzureRun.find(azure_run, best=best, workspace=workspace).download(output), _ASK_AGAIN)
    _print_pairs([(level, str(place)) for level, place in found.items()])


@explanation.command()
@click.argument("run", metavar="RUN")
@click.option("--azure-run", metavar="ID|current", required=True, help="The run that they are put beside.")
@click.option("--workspace", metavar="FILE", help="The workspace's config.json (default: here or in a folder above).")
def upload(run: str, azure_run: str, workspace: str | None) -> None:
    """Upload the finished run RUN's explanations to an Azure ML run: the studio shows them, unless they are there."""
    from batch_explain.integrations.azure_runs import AzureRun

    def uploaded() -> list[str]:
        return AzureRun.find(azure_run, workspace=workspace).upload(batch_explain.open_run(run))

    _print_pairs([("explanation", comment) for comment in _guarded(uploaded, _LOG_AGAIN)])


def main() -> None:
    """Entry point of the ``batch-explain`` command."""
    try:
        cli()
    finally:
        logging.disable(logging.CRITICAL)  # last words of Dask's futures would bury the paragraph


def _write_comparison(path: str, content: dict[str, Any]) -> None:
    from batch_explain.storage.atomic import write_json
    from batch_explain.storage.filesystems import Location

    place = Location(path)
    try:
        write_json(place.parent, place.name, content)
    except OSError as error:
        raise OutputRefusedError(
            f"The comparison cannot be written to {place}: {error}. Choose another place."
        ) from error


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
    observers: list[Observer] = []
    with contextlib.ExitStack() as stack:
        if quiet:
            pass
        elif log_format == "json":
            observers = [JsonLog()]
        elif sys.stderr.isatty():
            bar = ProgressBar()
            stack.callback(bar.close)
            observers = [bar]
        else:
            observers = [PlainLog()]
        stack.enter_context(_warnings_shown_by(observers))
        yield observers


@contextlib.contextmanager
def _warnings_shown_by(observers: list["Observer"]) -> Iterator[None]:
    """Have this package's log lines appear among the events, or not at all where nobody observes."""
    from batch_explain.events import Waiting

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for observer in observers:
                observer(Waiting(record.getMessage()))

    logger, handler = logging.getLogger("batch_explain"), Shown()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _guarded(work: Callable[[], _Answer], stopped: str = _STOPPED) -> _Answer:
    """Do the work; end with one paragraph and the exit code of the error's kind, never with a traceback."""
    watch = _StopWatch(stopped)
    previous = {name: signal.signal(name, watch.stop) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        return work()
    except BatchExplainError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(InterruptedRunError(stopped))
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

    def __init__(self, message: str) -> None:
        self._message = message
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

        _say(self._message)
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children(recursive=True):  # our worker processes
                with contextlib.suppress(psutil.Error):
                    child.kill()
        os._exit(InterruptedRunError.exit_code)


def _fail(error: BatchExplainError) -> NoReturn:
    _say(str(error))
    sys.exit(error.exit_code)


def _say(message: str) -> None:
    click.echo(f"batch-explain: {_printable(message)}", err=True)


def _printable(text: str) -> str:
    """On one line: libraries' texts and names in files may hold line breaks or worse."""
    return "".join(character if character.isprintable() else " " for character in text)


def _print_pairs(pairs: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in pairs:
        table.add_row(name, _printable(text))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def _print_lines(lines: list[str]) -> None:
    for line in lines[:_SHOWN_PROBLEMS]:
        click.echo(f"- {_printable(line)}")
    if len(lines) > _SHOWN_PROBLEMS:
        click.echo(f"and {len(lines) - _SHOWN_PROBLEMS:,} more")


def _print_verification(found: "Verification") -> None:
    wrong = len(found.problems)
    verdict = "all right" if found.ok else f"{wrong:,} thing{'s' * (wrong > 1)} wrong"
    if not found.finished:
        verdict += (
            f"; the run is not finished: {found.partitions:,} of {found.planned_partitions:,} partitions are done. Go "
            "on with the run's command and --resume"
        )
    pairs = [
        ("verified", f"{found.files:,} files, {found.bytes:,} bytes, {found.rows:,} rows, in {found.seconds:.1f} s"),
        ("result", verdict),
    ]
    if found.recomputed is not None:
        again = found.recomputed
        pairs.insert(1, ("computed again", f"{again.rows:,} rows (--seed {again.seed})"))
        if found.recomputed.other_versions:
            pairs.insert(2, ("other versions", ", ".join(found.recomputed.other_versions)))
    _print_pairs(pairs)
    _print_lines([str(problem) for problem in found.problems])


def _print_status(found: "Status") -> None:
    from batch_explain.engine.status import describe

    state = found.state
    if found.holder is not None:
        silent = "" if found.silent_seconds is None else f"; last sign of life {found.silent_seconds:,.0f} s ago"
        state += f" ({found.holder}{silent})"
    elif found.state == "stopped":
        state += " (go on with the run's command and --resume)"
    pairs = [("state", state)]
    if found.partitions is None:
        pairs.append(("partitions", f"{found.done:,} done; the plan is not there yet or cannot be read"))
    else:
        counts = [
            (len(found.running), "running"),
            (len(found.interrupted), "interrupted"),
            (len(found.failed), "failed"),
        ]
        counts.append((found.missing or 0, "not begun"))
        others = "".join(f", {count:,} {name}" for count, name in counts if count)
        pairs.append(("partitions", f"{found.done:,} of {found.partitions:,} done{others}"))
        pairs.append(("rows", f"{found.rows_done:,} of {found.rows:,} done"))
    if found.rows_quarantined:
        pairs.append(("rows in quarantine", f"{found.rows_quarantined:,}"))
    if found.rows_left_out:
        pairs.append(("rows left out by --filter", f"{found.rows_left_out:,}"))
    pairs.append(("results", found.output))
    _print_pairs(pairs)
    _print_lines(describe([*found.failed, *found.interrupted]))


def _print_run(run: "Run", top: int = 5) -> None:
    """A short table: what a person wants to know first."""
    info = run.info
    pairs = [("rows explained", f"{info['rows']['explained']:,}")]
    if info["rows"].get("left_out"):
        pairs.append(("rows left out by --filter", f"{info['rows']['left_out']:,}"))
    if info["rows"]["quarantined"]:
        pairs.append(("rows in quarantine", f"{info['rows']['quarantined']:,}: {_reasons(info['quarantine'])}"))
    if unreadable := info["quarantine"]["unreadable_files"]:
        pairs.append(("files not readable", ", ".join(file["path"] for file in unreadable[:top])))
    if info["rows_per_second"]:
        pairs.append(("rows per second", f"{info['rows_per_second']:,.0f}"))
    if info["artifacts"]["model"]:
        pairs.append(("model", info["artifacts"]["model"]["kind"]))
    pairs.append(("explainer", info["artifacts"]["explainer"]["description"]))
    pairs.append(("surrogate fidelity", _fidelity(info["fidelity"])))
    if drift := info["drift"]:
        limit = "" if drift["max_drift"] is None else f" (limit {drift['max_drift']:g})"
        pairs.append(("drift (1 - nDCG)", f"{drift['drift']:.4f}{limit} from {drift['baseline']['location']}"))
    written = {file["path"] for file in info["files"]}
    for level in ("raw", "engineered"):
        if f"summary/{level}.parquet" in written and info["features"][level]:
            pairs.append((f"top {level} features", _top(run, level, top)))
    pairs += [("warning", warning) for warning in info["warnings"]]
    pairs.append(("results", str(run.location)))
    if any(entry["path"] == "report.html" for entry in info["files"]):
        pairs.append(("report", str(run.location.join("report.html"))))
    _print_pairs(pairs)


def _print_comparison(found: dict[str, Any], top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from batch_explain.report.drift_text import columns, headlines, moved_most

    _print_pairs(headlines(found))
    if not top:
        return
    names = columns(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(names):
        is_text = at < names.index("rank")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    styles = {"": "", "some": "yellow", "much": "red"}
    for moved in moved_most(found, top):
        cells = zip(moved.cells, moved.shifts, strict=True)
        table.add_row(*(Text(_printable(cell), style=styles[shift]) for cell, shift in cells))
    click.echo()
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _reasons(quarantine: dict[str, Any], most: int = 3) -> str:
    found = [f"{count:,} × {reason}" for reason, count in quarantine["reasons"].items()]
    return "; ".join(found[:most] + ["…"] * (len(found) > most)) or "in files that cannot be read"


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
    return ", ".join(f"{_shortened(str(feature))} {value:.3g}" for feature, value in means.head(count).items())


def _shortened(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[:most]}…"


from batch_explain.cli import bench as bench  # noqa: E402
from batch_explain.cli import steps as steps  # noqa: E402 - its verbs take run's options
