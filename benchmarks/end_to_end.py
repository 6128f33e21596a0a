"""The documented Azure scoring script against `batch-explain run`, on the same rows and the same machine.

`python benchmarks/end_to_end.py` in the [automl] environment. Every run is a fresh process; what it returned is
compared, row by row, with what the SDK answers for the row at that position.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import common
import engineered
from end_to_end_steps import ID, ROOT, SAMPLE_ROWS, TOLERANCE, run_step
from engine_run import engine_environment, run_engine

KINDS = ("binary", "multiclass", "dense_regression")

SCRIPT, ALL_ROWS = "documented script", "documented script, downsample=False"
ENGINE, ENGINE_ONE = "batch-explain run", "batch-explain run --workers 1"


@dataclass(frozen=True)
class Task:
    """One kind's input, ready to be explained: where it lies (relative to the folder) and what it is."""

    kind: str
    task: str
    outputs: int
    rows: int
    engineered_features: int
    raw_features: int
    sparse: bool
    trees: int
    input_bytes: int
    engineered_names: list[str]
    raw_names: list[str]

    def describe(self) -> str:
        """The title of its table."""
        return (
            f"{self.kind}: {self.rows:,} rows, {self.raw_features} raw and {self.engineered_features} engineered "
            f"features ({'sparse' if self.sparse else 'dense'}), {self.outputs} output"
            f"{'s' if self.outputs > 1 else ''}, {self.trees} trees"
        )


@dataclass
class Outcome:
    """One run of one way: what was measured from outside, what it said of itself, what its rows are worth.

    `seconds` is the whole process, less the time in which it stored its results for the comparison.
    """

    seconds: float = 0.0
    work_seconds: float = 0.0
    steady_seconds: float | None = None  # of batch-explain: without stopping the workers and closing the run
    steps: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    largest_process_mb: float = 0.0
    worker_peaks_mb: list[float] = field(default_factory=list)
    rows_explained: int = 0
    right: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    broken: bool = False  # it ended without any result

    @property
    def startup_seconds(self) -> float:
        """Interpreter, imports, loading, planning, starting of workers, and leaving."""
        return self.seconds - self.work_seconds


class StepFailedError(RuntimeError):
    """A process ended without its answer."""


class Benchmark:
    """All runs of one call of this program."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.tasks: dict[str, Task] = {}
        self.outcomes: dict[tuple[str, str], list[Outcome]] = {}
        self.engine_env, self.engine_source = engine_environment(folder)
        self.ways = ([ALL_ROWS] if options.sdk_all_rows else []) + [SCRIPT, ENGINE]
        if common.cores() > 1:
            self.ways.append(ENGINE_ONE)
        self._started = time.perf_counter()
        self._number = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def run(self) -> None:
        """Prepare, then round after round: what disturbs the machine falls on all ways, not on one."""
        options = self.options
        self.say(f"building {', '.join(options.kinds)} and {options.rows:,} rows of each")
        answer, _ = self.step("prepare", {"folder": str(self.folder), "kinds": options.kinds, "rows": options.rows})
        self.tasks = {kind: Task(kind=kind, **facts) for kind, facts in answer.items()}
        for number in range(max(options.repetitions, options.repetitions_all_rows)):
            for task in self.tasks.values():
                for way in self.ways:
                    wanted = options.repetitions_all_rows if way == ALL_ROWS else options.repetitions
                    done = self.outcomes.setdefault((task.kind, way), [])
                    if number < wanted and self._in_time(done):
                        self.say(f"{task.kind}: {way}" + (f" ({number + 1} of {wanted})" if wanted > 1 else ""))
                        done.append(self.measure(task, way))

    def say(self, what: str) -> None:
        """One line of progress."""
        minutes, seconds = divmod(int(self.elapsed), 60)
        print(f"[{minutes:2d}:{seconds:02d}] {what}", file=sys.stderr, flush=True)

    def _in_time(self, done: list[Outcome]) -> bool:
        """Whether a repeat would end in time; the first run of each way is always made."""
        judging = 3
        limit = 60 * self.options.minutes
        return not done or not limit or self.elapsed + done[-1].seconds + judging < limit

    def measure(self, task: Task, way: str) -> Outcome:
        """Run one way once, and compare what it made with the reference."""
        try:
            return self._engine(task, way) if way in (ENGINE, ENGINE_ONE) else self._script(task, way)
        except StepFailedError as error:
            return Outcome(failures=[str(error)], broken=True)

    def _script(self, task: Task, way: str) -> Outcome:
        home, out = self.folder / task.kind, self._new_folder()
        spec: dict[str, Any] = {
            "model": str(home / "model.pkl"),
            "explainer": str(home / "scoring_explainer.pkl"),
            "input": str(home / "input"),
            "task": task.task,
            "outputs": task.outputs,
            "downsample": way == SCRIPT,
            "out": str(out),
        }
        if way == ALL_ROWS:
            spec["reference"] = str(home / "reference_all_rows.npz")
        answer, measured = self.step("script", spec)
        steps = answer["steps"]
        outcome = Outcome(
            seconds=measured.seconds - answer["storing_seconds"],
            work_seconds=sum(seconds for name, seconds in steps.items() if name not in ("imports", "load")),
            steps=_rounded(steps),
            cpu_seconds=answer["cpu_seconds"],
            peak_rss_mb=answer["peak_rss_mb"],
            largest_process_mb=answer["peak_rss_mb"],
            rows_explained=answer["rows_explained"],
            failures=answer["failures"],
        )
        outcome.right = self._judge(task, {"result": str(out / "result.npz")}, sample=way == ALL_ROWS)
        if way == ALL_ROWS:
            found = self._judge(task, {"result": spec["reference"]}, sample=True)
            outcome.right["reference_holds"] = found["rows"] == found["checked"]
        shutil.rmtree(out)
        return outcome

    def _engine(self, task: Task, way: str) -> Outcome:
        home, out = self.folder / task.kind, self._new_folder()
        arguments = ["--id-columns", ID, "--input", str(home / "input"), "--model", str(home / "model.pkl")]
        arguments += ["--explainer", str(home / "scoring_explainer.pkl")]
        if way == ENGINE_ONE:
            arguments += ["--workers", "1"]
        found = run_engine(arguments, out, env=self.engine_env)
        if found.measured.exit_code:
            raise StepFailedError(self._ending("batch-explain run", found.measured.exit_code, out / "log.json"))
        outcome = Outcome(
            seconds=found.measured.seconds,
            work_seconds=found.explain_seconds + found.closing_seconds,
            steady_seconds=found.explain_seconds,
            steps=_rounded({**found.timings, "stop_workers_and_finalize": found.closing_seconds}),
            cpu_seconds=found.measured.cpu_seconds,
            peak_rss_mb=found.measured.tree_rss_mb,
            largest_process_mb=found.measured.largest_rss_mb,
            worker_peaks_mb=found.worker_peaks_mb,
            rows_explained=found.info["rows"]["explained"],
        )
        names = {"engineered": task.engineered_names, "raw": task.raw_names}
        outcome.right = self._judge(task, {"run": str(out / "run"), "names": names})
        shutil.rmtree(out)
        return outcome

    def _judge(self, task: Task, candidate: dict[str, Any], sample: bool = False) -> dict[str, Any]:
        """Compare with the SDK's answers for all rows, where they were computed, or else for the sample."""
        home = self.folder / task.kind
        reference = home / "reference_all_rows.npz"
        if sample or not reference.exists():
            reference = home / "reference.npz"
        answer, _ = self.step("judge", {"reference": str(reference), **candidate})
        return answer

    def step(self, name: str, spec: dict[str, Any]) -> tuple[dict[str, Any], common.Measured]:
        """Do a step in a fresh process, whose own output goes to a file.

        Raises
        ------
        StepFailedError
            If it ends without its answer.
        """
        folder = self._new_folder()
        path = folder / "spec.json"
        common.write_json(path, spec)
        command = [sys.executable, str(Path(__file__).resolve()), "--step", name, str(path)]
        log = folder / "stderr.txt"
        measured = common.measure(command, cwd=self.folder, stdout=folder / "stdout.txt", stderr=log)
        answer = path.with_suffix(".answer.json")
        if measured.exit_code or not answer.exists():
            raise StepFailedError(self._ending(f"step {name}", measured.exit_code, log))
        content = json.loads(answer.read_text())
        shutil.rmtree(folder)
        return content, measured

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self.folder / "scratch" / f"{self._number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _ending(self, what: str, exit_code: int, log: Path) -> str:
        """The last line of a process that failed, without this machine's paths."""
        text = log.read_text(errors="replace")
        for path, name in ((self.folder, "FOLDER"), (ROOT, "REPOSITORY"), (Path(sys.prefix), "PREFIX")):
            text = text.replace(str(path), name)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{what} ended with {exit_code}: {lines[-1] if lines else 'it said nothing'}"

    # What came of it

    def predict_seconds(self, kind: str) -> list[float]:
        """How long `model.predict` alone took on all rows, each time that the script called it."""
        runs = [run for way in (ALL_ROWS, SCRIPT) for run in self.outcomes.get((kind, way), [])]
        return [run.steps["predict"] for run in runs if "predict" in run.steps]

    def result(self, task: Task, way: str) -> dict[str, Any]:
        """All runs of one way, their spread, and their ratios by medians."""
        runs = self.outcomes[task.kind, way]
        whole = [run for run in runs if not run.broken]
        found: dict[str, Any] = {
            "name": f"{task.kind}, {way}",
            "kind": task.kind,
            "way": way,
            "runs": len(runs),
            "rows_asked": task.rows,
            "rows_explained": min((run.rows_explained for run in whole), default=0),
            "rows_right": min((run.right["rows"] for run in whole), default=0),
            "rows_checked": max((run.right["checked"] for run in whole), default=0),
            "failures": sorted({failure for run in runs for failure in run.failures}),
        }
        if whole:
            explained = found["rows_explained"]
            found |= {
                "total_seconds": common.spread([run.seconds for run in whole]),
                "startup_seconds": common.spread([run.startup_seconds for run in whole]),
                "work_seconds": common.spread([run.work_seconds for run in whole]),
                "us_per_row_asked": common.spread([1e6 * run.work_seconds / task.rows for run in whole]),
                "us_per_row_explained": common.spread([1e6 * run.work_seconds / explained for run in whole]),
                "cpu_seconds": common.spread([run.cpu_seconds for run in whole]),
                "peak_rss_mb": common.spread([run.peak_rss_mb for run in whole], 0),
            }
            predict = self._median_predict(task.kind)
            found["times_predict"] = _times([run.work_seconds for run in whole], predict)
            steady = [run.steady_seconds for run in whole if run.steady_seconds is not None]
            found["steady_us_per_row"] = common.spread([1e6 * seconds / task.rows for seconds in steady])
            found["steady_times_predict"] = _times(steady, predict)
        found["each"] = [asdict(run) for run in runs]
        return found

    def _median_predict(self, kind: str) -> float | None:
        found = common.spread(self.predict_seconds(kind), 6)
        return found["median"] if found else None

    def results(self) -> list[dict[str, Any]]:
        """Every kind and way, with what each row costs the documented script in relation to it."""
        found: list[dict[str, Any]] = []
        for task in self.tasks.values():
            ways = {way: self.result(task, way) for way in self.ways}
            for content in ways.values():
                for name, other in (("script", SCRIPT), ("script_all_rows", ALL_ROWS)):
                    for measure in ("us_per_row_explained", "total_seconds"):
                        theirs = _median(ways[other], measure) if other in ways else None
                        content[f"{name}_by_this_{measure}"] = _ratio(theirs, _median(content, measure))
            found += ways.values()
        return found

    def settings(self) -> dict[str, Any]:
        """What was measured, and what it is compared with."""
        return {
            "from": self.engine_source,
            "reference": self.reference(),
            "inputs": [
                {name: value for name, value in asdict(task).items() if not name.endswith("_names")}
                for task in self.tasks.values()
            ],
            "predict": [
                {"kind": task.kind, "seconds": common.spread(self.predict_seconds(task.kind), 6)}
                for task in self.tasks.values()
            ],
        }

    def reference(self) -> str:
        """What the rows are compared with."""
        sample = f"the SDK with downsample=False on {min(SAMPLE_ROWS, self.options.rows):,} fixed positions"
        if not self.options.sdk_all_rows:
            return sample
        return f"the SDK with downsample=False on all rows (itself compared with {sample})"

    def problems(self) -> list[str]:
        """Where batch-explain, or the measurement, is not what it has to be; the script's own failures are not here."""
        found = []
        for (kind, way), runs in self.outcomes.items():
            rows = self.tasks[kind].rows
            for run in runs:
                right = run.right
                if run.broken:
                    found.append(f"{kind}, {way}: {run.failures[0]}")
                elif way in (ENGINE, ENGINE_ONE):
                    if right["rows"] != right["checked"] or run.rows_explained != rows:
                        found.append(
                            f"{kind}, {way}: {run.rows_explained:,} of {rows:,} rows explained, {right['rows']:,} of "
                            f"{right['checked']:,} right, largest difference {right['largest_difference']:.1e}"
                        )
                elif not right.get("reference_holds", True) or (
                    rows <= 5_000 and right["engineered"] != right["checked"]
                ):
                    found.append(f"{kind}, {way}: the SDK does not agree with itself; the reference cannot be trusted")
        return sorted(set(found))

    def print(self) -> None:
        """One table a kind, then what failed."""
        results = self.results()
        headings = (
            "way", "runs", "total s", "start-up\ns", "work s", "µs/row\nasked", "µs/row\nexplained", "×\npredict",
            "steady\n× predict", "script÷this\nper row", "rows\nexplained", "rows right", "peak\nRSS MB",
        )  # fmt: skip
        for task in self.tasks.values():
            predict = common.spread(self.predict_seconds(task.kind), 6)
            rows = [_predict_line(task, predict, len(self.predict_seconds(task.kind)))] if predict else []
            rows += [_line(found) for found in results if found["kind"] == task.kind]
            common.print_table(task.describe(), headings, rows)
            print()
        for found in results:
            for failure in found["failures"]:
                print(f"{found['kind']}, {found['way']}: {failure}")
        print(
            "\nSeconds are medians (min–max). work = without start-up (interpreter, imports, loading, planning, "
            "starting workers); µs and ratios\nare of the work. script÷this: the documented script's µs per row "
            "explained, divided by this way's. rows right: engineered and raw\nimportances at that position within "
            f"{TOLERANCE:g} of {self.reference()}.\nThe time of a call that fails is counted. Peak RSS: all processes "
            "together; shared pages count in each."
        )


def _rounded(steps: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 4) for name, seconds in steps.items()}


def _times(seconds: list[float], predict: float | None) -> dict[str, float] | None:
    """Each run's, of predict's median: they take turns, but a run of batch-explain has no predict of its own."""
    return common.spread([each / predict for each in seconds]) if predict else None


def _median(result: dict[str, Any], measure: str) -> float | None:
    found = result.get(measure)
    return found["median"] if found else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 3) if one and other else None


def _range(found: dict[str, float]) -> str:
    """Median, with the range where there is one."""
    middle = _seconds(found["median"])
    if found["min"] == found["max"]:
        return middle
    return f"{middle} ({_seconds(found['min'])}–{_seconds(found['max'])})"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _predict_line(task: Task, seconds: dict[str, float], runs: int) -> list[str]:
    each = f"{1e6 * seconds['median'] / task.rows:.1f}"
    return ["model.predict alone", str(runs), "", "", _range(seconds), each, "", "1.0", "1.0", "", "", "", ""]


def _line(found: dict[str, Any]) -> list[str]:
    if "total_seconds" not in found:
        return [found["way"], str(found["runs"]), "fails", *[""] * 10]
    each = found["each"]
    right = f"{found['rows_right']:,} of {found['rows_checked']:,}"
    if any(run["failures"] for run in each):
        right = (
            f"raw fails (engineered {min(run['right']['engineered'] for run in each):,} of {found['rows_checked']:,})"
        )
    times, by_script = found["times_predict"], found["script_by_this_us_per_row_explained"]
    steady = found["steady_times_predict"]
    return [
        found["way"],
        str(found["runs"]),
        _range(found["total_seconds"]),
        f"{found['startup_seconds']['median']:.1f}",
        _range(found["work_seconds"]),
        f"{found['us_per_row_asked']['median']:.1f}",
        f"{found['us_per_row_explained']['median']:.1f}",
        f"{times['median']:.1f}" if times else "",
        f"{steady['median']:.2f}" if steady else "",
        f"{by_script:.2f}" if by_script else "",
        f"{found['rows_explained']:,}",
        right,
        f"{found['peak_rss_mb']['max']:.0f}",
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = common.options(__doc__, repetitions=3)
    add = parser.add_argument
    add("--rows", type=int, help="rows of each kind (default: 100,000; of --engineered: 1,000,000)")
    add("--kinds", default=",".join(KINDS), help="names from tests.automl_fixtures (default: %(default)s)")
    add("--repetitions-all-rows", type=int, default=1, help="runs of the script with downsample=False (default: 1)")
    add(
        "--sdk-all-rows",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the script with downsample=False too, the reference then being all rows (default: yes)",
    )
    add("--minutes", type=float, default=12, help="begin no repeat that would end later; 0: no limit (default: 12)")
    add("--reasons", action="store_true", help="with --engineered: what reasons cost, beside runs without them")
    add("--engineered", action="store_true", help="another case: 1,000,000 rows of engineered parquet, no SDK needed")
    add("--folder", type=Path, help="keep models, rows and references here (default: a temporary folder)")
    options = parser.parse_args(arguments)
    if options.rows is None:
        options.rows = 1_000_000 if options.engineered else 100_000
    if options.quick:
        options.rows, options.repetitions, options.sdk_all_rows = 2_000, 1, False
    options.kinds = [kind.strip() for kind in options.kinds.split(",")]
    options.repetitions_all_rows = options.repetitions_all_rows if options.sdk_all_rows else 0
    if options.rows < 1 or options.repetitions < 1 or options.repetitions_all_rows < options.sdk_all_rows:
        parser.error("--rows, --repetitions and --repetitions-all-rows must be at least 1")
    return options


def main(arguments: list[str]) -> int:
    """Measure, print, write; 1 if batch-explain failed or a row of it is wrong, 2 if nothing could be measured."""
    options = parse(arguments)
    with contextlib.ExitStack() as stack:
        if options.folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-")))
        else:
            folder = options.folder.resolve()
            folder.mkdir(parents=True, exist_ok=True)
        begun = common.begin()
        if options.engineered:
            return engineered.main(options, folder, begun)
        benchmark = Benchmark(options, folder)
        try:
            benchmark.run()
        except StepFailedError as error:
            print(f"Nothing could be measured: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Stopped: nothing is reported.", file=sys.stderr)
            return 130
        benchmark.print()
        return common.finish(
            "end_to_end",
            begun,
            options,
            settings=benchmark.settings(),
            results=benchmark.results(),
            problems=benchmark.problems(),
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        run_step(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
