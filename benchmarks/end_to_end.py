"""The documented Azure scoring script against `batch-explain run`, on the same rows and the same machine.

`python benchmarks/end_to_end.py` in the [automl] environment. Every run is a fresh process; what it returned is
compared, row by row, with what the SDK answers for the row at that position.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("binary", "multiclass", "dense_regression")
FILES, ROW_GROUPS = 8, 2
SEED = 7
SAMPLE_ROWS = 2_000
TOLERANCE = 1e-9
ID = "row"

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


# ---------------------------------------------------------------------------------------------------------------------
# Steps that need the SDK or numpy: each runs in a process of its own, `end_to_end.py --step NAME SPEC`
# ---------------------------------------------------------------------------------------------------------------------


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Build the kinds, write their rows as parquet, and ask the SDK about a sample of them."""
    import joblib

    from tests.automl_fixtures import KINDS as BUILDABLE
    from tests.automl_fixtures import build

    if unknown := [kind for kind in spec["kinds"] if kind not in BUILDABLE]:
        raise SystemExit(f"no kind {', '.join(unknown)}; there are {', '.join(BUILDABLE)}")

    folder, tasks = Path(spec["folder"]), {}
    for kind, paths in build(spec["kinds"], folder / "kinds").items():
        home = folder / kind
        shutil.rmtree(home, ignore_errors=True)  # rows and references of an earlier run
        home.mkdir()
        explainer = joblib.load(paths.explainer)
        if explainer._data_mapper is not None or not hasattr(explainer._model, "booster_"):
            raise SystemExit(f"{kind} has no LightGBM surrogate on engineered features: it is not measured here")
        # The fixtures pin the surrogate to one thread; the one that AutoML makes uses all cores.
        explainer._model.set_params(n_jobs=None)
        joblib.dump(explainer, home / "scoring_explainer.pkl")
        joblib.dump(joblib.load(paths.model), home / "model.pkl")
        input_bytes = _write_rows(paths.raw, home / "input", spec["rows"])
        tasks[kind] = {
            "task": paths.task,
            "outputs": paths.outputs,
            "rows": spec["rows"],
            "input_bytes": input_bytes,
            "trees": explainer._model.booster_.num_trees(),
            **_write_sample_reference(home, paths.task, paths.outputs),
        }
    return tasks


def _write_rows(source: Path, folder: Path, rows: int) -> int:
    """Draw the fixture's rows again and again, shake the numbers, and write several files of several row groups."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(SEED)
    fixture = pd.read_parquet(source)
    frame = fixture.iloc[rng.integers(0, len(fixture), rows)].reset_index(drop=True)
    for name in frame:
        frame[name] = _shaken(frame[name], rng)
    frame.insert(0, ID, np.arange(rows))
    table = pa.Table.from_pandas(frame, preserve_index=False)
    folder.mkdir(exist_ok=True)
    edges = [rows * i // FILES for i in range(FILES + 1)]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        size = max(1, -(-(stop - start) // ROW_GROUPS))
        pq.write_table(table.slice(start, stop - start), folder / f"rows-{i:05d}.parquet", row_group_size=size)
    return sum(file.stat().st_size for file in folder.iterdir())


def _shaken(column: pd.Series[Any], rng: np.random.Generator) -> pd.Series[Any]:
    """The same column with noise on its numbers and dates; gaps, texts and the type stay."""
    import numpy as np

    kind = column.dtype.kind
    moved = column
    if kind == "f":
        moved = column + rng.normal(0, 0.05 * np.nanstd(column), len(column))
    elif kind in "iu":
        moved = column + rng.integers(-2, 3, len(column))
        moved = moved.clip(column.min(), column.max()).astype(column.dtype)
    elif kind == "M":
        moved = column + rng.integers(0, 7200, len(column)).astype("timedelta64[s]")
    return moved


def _write_sample_reference(home: Path, task: str, outputs: int) -> dict[str, Any]:
    """What the SDK answers for fixed positions; raw by way of dense rows, where it cannot do sparse ones."""
    import joblib
    import numpy as np
    import pandas as pd
    from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations
    from scipy.sparse import issparse

    model, explainer = joblib.load(home / "model.pkl"), joblib.load(home / "scoring_explainer.pkl")
    data = pd.read_parquet(home / "input").drop(columns=ID)
    positions = np.arange(len(data))
    if len(data) > SAMPLE_ROWS:
        positions = np.sort(np.random.default_rng(SEED).choice(len(data), SAMPLE_ROWS, replace=False))
    rows = data.iloc[positions].reset_index(drop=True)
    features = automl_setup_model_explanations(model, X_test=rows, task=task, downsample=False).X_test_transform
    sparse = issparse(features)
    engineered = _stacked(explainer.explain(features), outputs)
    dense = features.toarray() if sparse and outputs > 1 else features
    raw = _stacked(explainer.explain(dense, get_raw=True), outputs)
    np.savez(home / "reference.npz", positions=positions, engineered=engineered, raw=raw)
    return {
        "sparse": sparse,
        "engineered_features": engineered.shape[2],
        "raw_features": raw.shape[2],
        "engineered_names": list(explainer.engineered_features),
        "raw_names": list(explainer.raw_features),
    }


def script(spec: dict[str, Any]) -> dict[str, Any]:
    """The documented scoring script, with a clock between its lines."""
    steps: dict[str, float] = {}
    failures: list[str] = []

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            steps[name] = time.perf_counter() - started

    with timed("imports"):
        import joblib
        import pandas as pd
        from azureml.train.automl.runtime.automl_explain_utilities import automl_setup_model_explanations
    with timed("load"):
        automl_model = joblib.load(spec["model"])
        scoring_explainer = joblib.load(spec["explainer"])
    with timed("read"):
        data = pd.read_parquet(spec["input"]).drop(columns=ID)
    with timed("predict"):
        predictions = automl_model.predict(data)
    with timed("setup"):
        asked = {} if spec["downsample"] else {"downsample": False}
        setup = automl_setup_model_explanations(automl_model, X_test=data, task=spec["task"], **asked)
    with timed("engineered"):
        engineered = scoring_explainer.explain(setup.X_test_transform)
    raw = None
    with timed("raw"):
        try:
            raw = scoring_explainer.explain(setup.X_test_transform, get_raw=True)
        except Exception as error:
            failures.append(f"get_raw=True fails: {type(error).__name__}: {error}")

    peak, cpu = _own_peak_mb(), time.process_time()
    storing = time.perf_counter()
    assert len(predictions) == len(data)
    explained = _store(spec, scoring_explainer, engineered, raw)
    return {
        "steps": steps,
        "failures": failures,
        "rows_explained": explained,
        "peak_rss_mb": peak,
        "cpu_seconds": cpu,
        "storing_seconds": time.perf_counter() - storing,
    }


def _store(spec: dict[str, Any], explainer: Any, engineered: Any, raw: Any) -> int:
    """Store what the script got, for the comparison; and as the reference, if it covers all rows in order."""
    import numpy as np

    out = Path(spec["out"])
    arrays: dict[str, Any] = {"engineered": _stacked(engineered, spec["outputs"])}
    if raw is not None:
        arrays["raw"] = _stacked(raw, spec["outputs"])
    np.savez(out / "result.npz", **arrays)
    if spec.get("reference"):
        if raw is None:  # explain() would have come to this, with the engineered values as an array
            arrays["raw"] = _stacked(explainer._get_raw_importances(arrays["engineered"]), spec["outputs"])
        np.savez(spec["reference"], positions=np.arange(arrays["engineered"].shape[1]), **arrays)
    return int(arrays["engineered"].shape[1])


def judge(spec: dict[str, Any]) -> dict[str, Any]:
    """Count the rows whose values are those of the reference for the row at the same position."""
    import numpy as np

    with np.load(spec["reference"]) as stored:
        positions, reference = stored["positions"], {level: stored[level] for level in ("engineered", "raw")}
    if "run" in spec:
        candidate = {level: _run_table(Path(spec["run"]), level, spec["names"][level]) for level in reference}
    else:
        with np.load(spec["result"]) as stored:
            candidate = {level: stored[level] for level in stored.files}
    right, largest = {}, 0.0
    for level, expected in reference.items():
        right[level] = np.zeros(len(positions), dtype=bool)
        if level in candidate:
            there = positions < candidate[level].shape[1]
            found, expected = candidate[level][:, positions[there]], expected[:, there]
            scale = np.maximum(1.0, np.abs(expected).max(axis=2, initial=0.0))
            difference = np.abs(found - expected).max(axis=2, initial=0.0) / scale
            difference = np.nan_to_num(difference, nan=np.finfo(np.float64).max)  # NaN is as wrong as can be
            right[level][there] = (difference <= TOLERANCE).all(axis=0)
            largest = max(largest, float(difference.max(initial=0.0)))
    return {
        "checked": len(positions),
        "rows": int((right["engineered"] & right["raw"]).sum()),
        "engineered": int(right["engineered"].sum()),
        "raw": int(right["raw"].sum()),
        "largest_difference": largest,
    }


def _run_table(run: Path, level: str, names: list[str]) -> np.ndarray:
    """A run's importances as (output, row, feature), its parts in order, every row at its place."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = json.loads((run / "run.json").read_text())
    left_out = set(info["features"]["not_written"]) if level == "engineered" else set()
    outputs = []
    for folder in info["tables"][level]:
        parts = sorted((run / folder).glob("part-*.parquet"), key=lambda part: (len(part.name), part.name))
        table = pa.concat_tables([pq.ParquetFile(part).read() for part in parts])
        if not np.array_equal(table[ID].to_numpy(), np.arange(table.num_rows)):
            raise SystemExit(f"the rows of {level} are not in the order of the input")
        if table.column_names != [ID, *(name for name in names if name not in left_out)]:
            raise SystemExit(f"the columns of {level} are not the explainer's, in its order")
        zeros = np.zeros(table.num_rows)  # what is left out is zero in every row
        columns = [zeros if name in left_out else table[name].to_numpy() for name in names]
        outputs.append(np.column_stack(columns))
    return np.stack(outputs)


def _stacked(values: Any, outputs: int) -> np.ndarray:
    """(output, row, feature) from what `explain` returns: nested lists, a csr matrix, or a list of those."""
    import numpy as np
    from scipy.sparse import issparse

    if issparse(values):
        values = [values]
    if issparse(values[0]):
        values = [output.toarray() for output in values]
    stacked = np.asarray(values, dtype=np.float64)
    return stacked.reshape(outputs, *stacked.shape[-2:])


def _own_peak_mb() -> float:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


STEPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"prepare": prepare, "script": script, "judge": judge}


def run_step(name: str, spec_path: Path) -> None:
    """Do a step in this process; its answer goes beside its specification."""
    sys.path.insert(0, str(ROOT))  # for tests.automl_fixtures
    with contextlib.redirect_stdout(sys.stderr):  # the SDK narrates
        answer = STEPS[name](json.loads(spec_path.read_text()))
    common.write_json(spec_path.with_suffix(".answer.json"), answer)


# ---------------------------------------------------------------------------------------------------------------------
# The benchmark
# ---------------------------------------------------------------------------------------------------------------------


class StepFailedError(RuntimeError):
    """A process ended without its answer."""


class Benchmark:
    """All runs of one call of this program."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.tasks: dict[str, Task] = {}
        self.outcomes: dict[tuple[str, str], list[Outcome]] = {}
        self.engine_env, self.engine_source = _engine_environment(folder)
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
        for number in range(max(options.repeat, options.repeat_all_rows)):
            for task in self.tasks.values():
                for way in self.ways:
                    wanted = options.repeat_all_rows if way == ALL_ROWS else options.repeat
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
        command = [sys.executable, "-m", "batch_explain", "run", "--log-format", "json", "--id-columns", ID]
        command += ["--input", str(home / "input"), "--model", str(home / "model.pkl")]
        command += ["--explainer", str(home / "scoring_explainer.pkl"), "--output", str(out / "run")]
        if way == ENGINE_ONE:
            command += ["--workers", "1"]
        log = out / "log.json"
        measured = common.measure(command, cwd=self.folder, stdout=out / "table.txt", stderr=log, env=self.engine_env)
        if measured.exit_code:
            raise StepFailedError(self._ending("batch-explain run", measured.exit_code, log))
        info = json.loads((out / "run" / "run.json").read_text())
        timings = info["timings_s"]
        inside = next(line["seconds"] for line in _json_lines(log) if line["event"] == "RunFinished")
        closing = inside - sum(timings.values())  # the workers are stopped, then the run is finalized
        outcome = Outcome(
            seconds=measured.seconds,
            work_seconds=timings["explain"] + closing,
            steps=_rounded({**timings, "stop_workers_and_finalize": closing}),
            cpu_seconds=measured.cpu_seconds,
            peak_rss_mb=measured.tree_rss_mb,
            largest_process_mb=measured.largest_rss_mb,
            worker_peaks_mb=_worker_peaks(out / "run"),
            rows_explained=info["rows"]["explained"],
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
            found["times_predict"] = _ratio(_median(found, "work_seconds"), self._median_predict(task.kind))
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

    def to_json(self, before: dict[str, Any]) -> dict[str, Any]:
        """Everything, for a machine."""
        options = {name: value for name, value in vars(self.options).items() if name not in ("folder", "json")}
        return {
            "benchmark": "end_to_end",
            "format_version": 1,
            "machine": {**before, "load_average_after": common.machine()["load_average"]},
            "versions": common.versions(),
            "batch_explain": {"from": self.engine_source, "commit": common.commit(ROOT)},
            "options": options,
            "seconds": round(self.elapsed, 1),
            "reference": self.reference(),
            "inputs": [
                {name: value for name, value in asdict(task).items() if not name.endswith("_names")}
                for task in self.tasks.values()
            ],
            "predict": [
                {"kind": task.kind, "seconds": common.spread(self.predict_seconds(task.kind), 6)}
                for task in self.tasks.values()
            ],
            "results": self.results(),
            "problems": self.problems(),
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
            "script÷this\nper row", "rows\nexplained", "rows right", "peak\nRSS MB",
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
        for problem in self.problems():
            print(f"PROBLEM: {problem}")


def _engine_environment(folder: Path) -> tuple[dict[str, str] | None, str]:
    """The environment in which `python -m batch_explain` is found: the installed package, or else this working tree."""
    command = [sys.executable, "-c", "import batch_explain"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0:
        return None, "installed"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}, "working tree"


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _worker_peaks(run: Path) -> list[float]:
    """Peak resident memory of each worker process, from the run's receipts."""
    peaks: dict[int, float] = {}
    for receipt in sorted((run / "_run" / "receipts").glob("*.json")):
        worker = json.loads(receipt.read_text())["worker"]
        peaks[worker["pid"]] = max(peaks.get(worker["pid"], 0.0), round((worker["peak_rss_bytes"] or 0) / 1e6, 1))
    return list(peaks.values())


def _rounded(steps: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 4) for name, seconds in steps.items()}


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
    return ["model.predict alone", str(runs), "", "", _range(seconds), each, "", "1.0", "", "", "", ""]


def _line(found: dict[str, Any]) -> list[str]:
    if "total_seconds" not in found:
        return [found["way"], str(found["runs"]), "fails", *[""] * 9]
    each = found["each"]
    right = f"{found['rows_right']:,} of {found['rows_checked']:,}"
    if any(run["failures"] for run in each):
        right = (
            f"raw fails (engineered {min(run['right']['engineered'] for run in each):,} of {found['rows_checked']:,})"
        )
    times, by_script = found["times_predict"], found["script_by_this_us_per_row_explained"]
    return [
        found["way"],
        str(found["runs"]),
        _range(found["total_seconds"]),
        f"{found['startup_seconds']['median']:.1f}",
        _range(found["work_seconds"]),
        f"{found['us_per_row_asked']['median']:.1f}",
        f"{found['us_per_row_explained']['median']:.1f}",
        f"{times:.1f}" if times else "",
        f"{by_script:.2f}" if by_script else "",
        f"{found['rows_explained']:,}",
        right,
        f"{found['peak_rss_mb']['max']:.0f}",
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, default=100_000, help="rows of each kind (default: %(default)s)")
    add("--kinds", default=",".join(KINDS), help="names from tests.automl_fixtures (default: %(default)s)")
    add("--repeat", type=int, default=3, help="runs of each way (default: %(default)s)")
    add("--repeat-all-rows", type=int, default=1, help="runs of the script with downsample=False (default: 1)")
    add(
        "--sdk-all-rows",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the script with downsample=False too, the reference then being all rows (default: yes)",
    )
    add("--minutes", type=float, default=12, help="begin no repeat that would end later; 0: no limit (default: 12)")
    add("--tiny", action="store_true", help="2,000 rows, once: correctness only, for CI")
    add("--folder", type=Path, help="keep models, rows and references here (default: a temporary folder)")
    add("--json", type=Path, metavar="PATH", help="write everything that was measured")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.rows, options.repeat, options.sdk_all_rows = 2_000, 1, False
    options.kinds = [kind.strip() for kind in options.kinds.split(",")]
    options.repeat_all_rows = options.repeat_all_rows if options.sdk_all_rows else 0
    if options.rows < 1 or options.repeat < 1 or options.repeat_all_rows < options.sdk_all_rows:
        parser.error("--rows, --repeat and --repeat-all-rows must be at least 1")
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
        before = common.machine()
        if before["load_average"][0] > 0.5:
            print(f"The machine is busy (load {before['load_average'][0]}): times will be too long.", file=sys.stderr)
        benchmark = Benchmark(options, folder)
        try:
            benchmark.run()
        except StepFailedError as error:
            print(f"Nothing could be measured: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Stopped: nothing is reported.", file=sys.stderr)
            return 130
        if options.json:
            common.write_json(options.json, benchmark.to_json(before))
        benchmark.print()
        return 1 if benchmark.problems() else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        run_step(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
