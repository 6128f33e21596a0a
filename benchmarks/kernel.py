"""The kernel against LightGBM, shap, woodelf and shapiq: the same models and rows, one process, one thread.

`python benchmarks/kernel.py` in an environment with the [bench] extra. Times are compared within rounds in which the
methods take turns; what each timed call returned is held against LightGBM's pred_contrib.
"""
# ruff: noqa: E402 (the variables come before the libraries that read them)

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse
import contextlib
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import common
import numpy as np
from kernel_cases import CASES, GROWTH, Model, train
from kernel_peers import PEERS, Method, Ours, PredContrib, with_expected
from kernel_report import print_case, print_rest, targets

import batch_explain
from batch_explain.treeshap.kernel import DEFAULT_TABLE_BYTES, TreeShap, choose_isa, load_kernel

TOLERANCE, PEER_TOLERANCE = 1e-9, 1e-3  # relative to the row's largest value; a peer may calculate in float32
REFERENCE_ROWS = 200
LONG_CALLS, LONG_ROUNDS = 2, 2  # a peer that prepares in each call: the rows of each of two calls take so many times
PATIENCE = 20  # times a method's whole time, for one call
ONE_THREAD = 1.15  # CPU seconds a second, as clocks allow
TABLE_CASES = (GROWTH[0], GROWTH[-1])
# Times the repetitions, of the kernel alone: its calls are short, and ratios of short calls vary. Most where there is a
# target for a ratio: on a machine with neighbours a single one was 0.6 to 1.3 times their median.
MORE_ROUNDS, MOST_ROUNDS = 3, 12
GROWTH_ROWS = 25_000  # of a call: a block, so that the rounds are many
BOUNDS = (1, 4, 16)  # the default bound of the tables' memory, divided by these

# of a fresh process: the model's text and a row in, the values out
FIRST_ROW = """
import sys
import numpy as np
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.treeshap.kernel import TreeShap
with open(sys.argv[1], encoding="utf-8") as file:
    shap = TreeShap(read_model_text(file.read()))
np.save(sys.argv[3], shap.explain(np.load(sys.argv[2])).engineered)
"""


@dataclass
class Timed:
    """A method on one case: the rows of a call, and what came of each call.

    Attributes
    ----------
    why : str or None
        Why there is nothing to measure.
    seconds, cpu : list of float
        Of each call.
    difference : float
        Largest difference to the reference, relative to the largest value of its row.
    """

    kind: type[Method]
    method: Method | None = None
    why: str | None = None
    one_row_seconds: float = 0.0
    rows: int = 0
    prepared_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    difference: float = 0.0

    @property
    def us(self) -> list[float]:
        """Microseconds a row, of each call."""
        return [1e6 * seconds / self.rows for seconds in self.seconds]

    @property
    def right(self) -> bool:
        """Whether its values are those of the reference."""
        return self.difference <= (TOLERANCE if self.kind is Ours else PEER_TOLERANCE)

    def by(self, other: Timed) -> list[float]:
        """How many times the other's time this one takes, round by round."""
        return [mine / theirs for mine, theirs in zip(self.us, other.us, strict=False)]


class Benchmark:
    """All measurements, in the order in which they are made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.isa = choose_isa(load_kernel().instruction_sets(), None)
        self.models: dict[str, Model] = {}
        self.kernels: dict[str, Ours] = {}  # of the cases that are measured again below
        self.cases: list[dict[str, Any]] = []
        self.growth: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.threads: dict[str, Any] | None = None
        self.first_row: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Measure everything."""
        for name in self.options.cases:
            self._say(f"{name}: training")
            case = CASES[name].quick() if self.options.quick else CASES[name]
            model = train(case, self.options.rows, self.options.train_threads)
            self._measure_case(name, model)
            self.models[name] = model
        self._measure_growth()
        for name in self._known(TABLE_CASES):
            self._say(f"{name}: tables")
            self._measure_tables(name)
        for name in self._known(GROWTH[:1]):
            self._measure_threads(name)
        with tempfile.TemporaryDirectory(prefix="batch-explain-benchmark-") as folder:
            for name in self._known(TABLE_CASES):
                self._say(f"{name}: first row of a fresh process")
                self._measure_first_row(name, Path(folder))

    def _known(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if name in self.models]

    def _say(self, what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    # Peers

    def _measure_case(self, name: str, model: Model) -> None:
        methods = [self._prepare(kind, model) for kind in (Ours, *PEERS)]
        reference = with_expected(
            model, PredContrib(model).run(model.rows[:REFERENCE_ROWS]), min(REFERENCE_ROWS, self.options.rows)
        )
        for timed in methods:
            self._say(f"{name}: {timed.kind.name}{': ' + timed.why if timed.why else ''}")
            if timed.method is not None:
                with self._failing(timed):
                    self._choose_rows(timed)
        inputs = {timed.kind: timed.method.take(timed.rows) for timed in methods if timed.method is not None}
        for number in range(self.options.repetitions):
            for timed in methods:
                if timed.method is not None and self._goes_on(timed, number):
                    self._call(timed, inputs[timed.kind], reference)
        self._check(name, methods)
        self.cases.append(self._case(name, model, methods))
        if name in GROWTH:
            self.kernels[name] = methods[0].method  # type: ignore[assignment]
        print_case(self.cases[-1])

    def _prepare(self, kind: type[Method], model: Model) -> Timed:
        timed = Timed(kind)
        if not kind.installed():
            timed.why = "not installed"
            return timed
        with self._failing(timed):
            started = time.perf_counter()
            timed.method = kind(model)
            timed.prepared_seconds = time.perf_counter() - started
            timed.one_row_seconds = self._run(timed.method, timed.method.take(1))
        return timed

    def _run(self, method: Method, rows: Any) -> float:
        """Seconds of a call that does not count, and has an end."""
        limit = max(60, PATIENCE * self.options.seconds)

        def give_up(*_: object) -> None:
            raise TimeoutError(f"no answer within {limit:,.0f} s")

        before = signal.signal(signal.SIGALRM, give_up)  # heard when compiled code returns to Python
        signal.setitimer(signal.ITIMER_REAL, limit)
        started = time.perf_counter()
        try:
            method.run(rows)
            return time.perf_counter() - started
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @contextlib.contextmanager
    def _failing(self, timed: Timed) -> Iterator[None]:
        """Whatever a peer raises is why it cannot take the case; this kernel and LightGBM must take all."""
        try:
            yield
        except Exception as error:
            if timed.kind.needs == "lightgbm":
                raise
            timed.method = None
            timed.why = f"cannot: {type(error).__name__}: {error}".splitlines()[0]

    def _choose_rows(self, timed: Timed) -> None:
        """As many rows as its share of the time allows, found by calls of more and more rows; they warm it up too."""
        method, options = timed.method, self.options
        assert method is not None
        if method.prepares_each_call:
            fixed = timed.one_row_seconds
            aim = options.seconds * LONG_CALLS + fixed
        else:
            fixed = 0.0
            aim = options.seconds / options.repetitions
        count = min(method.few_rows, options.rows)
        while True:
            seconds = self._run(method, method.take(count))
            a_row = max(seconds - fixed, seconds / 100) / count
            possible = min(options.rows, _round((aim - fixed) / a_row))
            if possible < 1.5 * count or count == options.rows:
                timed.rows = max(1, possible)
                return
            count = min(possible, 16 * count)

    def _goes_on(self, timed: Timed, number: int) -> bool:
        """Whether there is time for another call; every method gets one, those that are not very slow two."""
        assert timed.method is not None
        if timed.method.prepares_each_call:
            return number < LONG_ROUNDS
        return number < 2 or sum(timed.seconds) * (number + 1) / number < 1.5 * self.options.seconds

    def _call(self, timed: Timed, rows: Any, reference: np.ndarray) -> None:
        method = timed.method
        assert method is not None
        cpu, started = time.process_time(), time.perf_counter()
        result = method.run(rows)
        timed.seconds.append(time.perf_counter() - started)
        timed.cpu.append(time.process_time() - cpu)
        count = min(timed.rows, len(reference))
        found, wanted = method.values(result, count), reference[:count]
        wanted = wanted[:, :, :-1] if timed.kind.explains else wanted.sum(axis=2)
        apart = np.abs(found - wanted).reshape(count, -1).max(axis=1)
        largest = np.abs(wanted).reshape(count, -1).max(axis=1)
        timed.difference = max(timed.difference, float(np.max(apart / largest)))

    def _check(self, name: str, methods: list[Timed]) -> None:
        for timed in methods:
            if not timed.seconds:
                continue
            if not timed.right:
                self.problems.append(
                    f"{name}: {timed.kind.name} is {timed.difference:.1e} from pred_contrib; its times do not count"
                )
            if sum(timed.seconds) > 0.1 and sum(timed.cpu) > ONE_THREAD * sum(timed.seconds):
                self.problems.append(f"{name}: {timed.kind.name} used more than one thread")

    def _case(self, name: str, model: Model, methods: list[Timed]) -> dict[str, Any]:
        ours = methods[0]
        peers = [timed for timed in methods[1:] if timed.kind.explains and timed.seconds and timed.right]
        fastest = min(peers, key=lambda timed: median(timed.us))
        work = model.case.trees * model.case.outputs * model.case.leaves * model.path
        return {
            "name": name,
            "title": model.describe(),
            "trees": model.ensemble.n_trees,
            "leaves": model.case.leaves,
            "features": model.ensemble.n_features,
            "used_features": len(model.ensemble.used),
            "outputs": model.case.outputs,
            "mean_path_splits": round(model.path, 3),
            "training_rows": model.case.training_rows,
            "training_seconds": round(model.training_seconds, 2),
            "ns_per_leaf_and_split": round(1e3 * median(ours.us) / work, 5),
            "fastest_peer": fastest.kind.name,
            "methods": [self._method(timed, ours) for timed in methods],
        }

    def _method(self, timed: Timed, ours: Timed) -> dict[str, Any]:
        found: dict[str, Any] = {"name": timed.kind.name, "explains": timed.kind.explains, "status": timed.why or "ok"}
        if timed.seconds:
            found |= {
                "rows": timed.rows,
                "calls": len(timed.seconds),
                "prepare_seconds": round(timed.prepared_seconds, 4),
                "us_per_row": common.spread(timed.us, 4),
                "times_ours": common.spread(timed.by(ours), 4),
                "cpu_per_second": round(sum(timed.cpu) / sum(timed.seconds), 3),
                "max_relative_difference": timed.difference,
                "right": timed.right,
            }
        return found

    # The kernel alone

    def _turns(self, calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
        """Seconds of each call of each function; they take turns, ``rounds`` times the repetitions."""
        found: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds * self.options.repetitions):
            for call, seconds in zip(calls, found, strict=True):
                started = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - started)
        return found

    def _measure_growth(self) -> None:
        """Time against leaves × mean path: the models take turns, so that they meet the same machine.

        All turns are about as long, a smaller model's of several calls: what neighbours take for a moment would be
        missed by the median of short turns, but be in every long one.
        """
        names, rows = self._known(GROWTH), min(GROWTH_ROWS, self.options.rows)
        kernels = [(self.kernels[name], self.models[name]) for name in names]
        calls = [partial(kernel.run, model.rows[:rows]) for kernel, model in kernels]
        once = [min(seconds) for seconds in self._turns(calls, 1)]
        counts = [max(1, round(max(once) / seconds)) for seconds in once]

        def turn(call: Callable[[], Any], count: int) -> None:
            for _ in range(count):
                call()

        turns = [partial(turn, call, count) for call, count in zip(calls, counts, strict=True)]
        times = [
            [turn_seconds / count for turn_seconds in seconds]
            for seconds, count in zip(self._turns(turns, MOST_ROUNDS), counts, strict=True)
        ]
        work = [model.case.leaves * model.path for _, model in kernels]
        for number, (name, seconds) in enumerate(zip(names, times, strict=True)):
            relative = [
                (mine / work[number]) / (first / work[0]) for mine, first in zip(seconds, times[0], strict=True)
            ]
            self.growth.append(
                {
                    "name": name,
                    "rows": rows,
                    "calls": counts[number],
                    "leaves": self.models[name].case.leaves,
                    "mean_path_splits": round(self.models[name].path, 3),
                    "us_per_row": common.spread([1e6 * each / rows for each in seconds], 4),
                    "per_leaf_and_split_of_first": common.spread(relative, 4),
                }
            )
        self.kernels = {}

    def _measure_tables(self, name: str) -> None:
        """Building, memory and speed under smaller and smaller bounds."""
        model, rows = self.models[name], max(1, self.options.rows // 5)
        built: list[tuple[int, TreeShap, list[float]]] = []
        for divisor in BOUNDS:
            seconds: list[float] = []
            while not seconds or (len(seconds) < 3 and sum(seconds) * (1 + 1 / len(seconds)) < self.options.seconds):
                started = time.perf_counter()
                shap = TreeShap(model.ensemble, table_bytes=DEFAULT_TABLE_BYTES // divisor)
                seconds.append(time.perf_counter() - started)
            built.append((divisor, shap, seconds))
        X = model.rows[:rows]
        values = built[0][1].explain(X).engineered
        times = self._turns([partial(shap.explain, X) for _, shap, _ in built], MORE_ROUNDS)
        for (divisor, shap, seconds), each in zip(built, times, strict=True):
            found = shap.explain(X).engineered
            largest = np.abs(values).max(axis=(0, 1))
            difference = float((np.abs(found - values).max(axis=(0, 1)) / largest).max())
            if difference > TOLERANCE:
                self.problems.append(f"{name}: with 1/{divisor} of the tables values are {difference:.1e} away")
            self.tables.append(
                {
                    "name": f"{name}, 1/{divisor} of the default bound" if divisor > 1 else f"{name}, default bound",
                    "case": name,
                    "divisor": divisor,
                    "bound_mb": round(DEFAULT_TABLE_BYTES / divisor / 1e6, 1),
                    "table_mb": round(shap.table_bytes / 1e6, 1),
                    "build_seconds": common.spread(seconds),
                    "us_per_row": common.spread([1e6 * s / rows for s in each], 4),
                    "times_default": common.spread([s / first for s, first in zip(each, times[0], strict=True)]),
                    "max_relative_difference": difference,
                }
            )

    def _measure_threads(self, name: str) -> None:
        """One thread, two, and two processes that share nothing: what the machine's cores can give at this time."""
        model, shap = self.models[name], TreeShap(self.models[name].ensemble)
        rows = model.rows.shape[0]
        halves = [model.rows[: rows // 2], model.rows[rows // 2 :]]
        with contextlib.ExitStack() as stack:
            apart = [stack.enter_context(_forked(lambda half=half: shap.explain(half))) for half in halves]  # type: ignore[misc]

            def both_apart() -> None:
                for process in apart:
                    process.send("go")
                for process in apart:
                    process.recv()

            both_apart()
            calls = [lambda: shap.explain(model.rows), lambda: shap.explain(model.rows, threads=2), both_apart]
            one, two, processes = self._turns(calls, MOST_ROUNDS)
        self.threads = {
            "name": name,
            "rows": rows,
            "cores": common.cores(),
            "one_us_per_row": common.spread([1e6 * s / rows for s in one], 4),
            "two_us_per_row": common.spread([1e6 * s / rows for s in two], 4),
            "times_faster": common.spread([a / b for a, b in zip(one, two, strict=True)]),
            "processes_times_faster": common.spread([a / b for a, b in zip(one, processes, strict=True)]),
        }

    def _measure_first_row(self, name: str, folder: Path) -> None:
        """A fresh process, from before it is started until it is gone."""
        model = self.models[name]
        text, row, out = folder / "model.txt", folder / "row.npy", folder / "values.npy"
        text.write_text(model.text, encoding="utf-8")
        np.save(row, model.rows[:1])
        expected = TreeShap(model.ensemble).explain(model.rows[:1]).engineered
        package = str(Path(batch_explain.__file__).parents[1])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", FIRST_ROW, str(text), str(row), str(out)]
        seconds = []
        for _ in range(1 + self.options.repetitions):
            out.unlink(missing_ok=True)
            started = time.perf_counter()
            ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - started)
            if ended.returncode:
                raise RuntimeError(f"the fresh process failed: {ended.stderr[-500:]}")
            if not np.array_equal(np.load(out), expected):
                self.problems.append(f"{name}: a fresh process gives other values")
        del seconds[0]  # it may have had to compile Python's bytecode, which an installation keeps
        self.first_row.append({"name": name, "seconds": common.spread(seconds)})

    # What came of it

    def results(self) -> dict[str, Any]:
        """Everything that was measured."""
        return {
            "cases": self.cases,
            "growth": self.growth,
            "tables": self.tables,
            "threads": self.threads,
            "first_row": self.first_row,
        }


@contextlib.contextmanager
def _forked(work: Callable[[], Any]) -> Iterator[Connection]:
    """A copy of this process that does the work whenever it is sent something, and answers when it is done."""
    here, there = multiprocessing.Pipe()

    def serve() -> None:
        here.close()
        with contextlib.suppress(EOFError):
            while there.recv():
                work()
                there.send("done")

    process = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.kill()
        process.join()


def _round(value: float) -> int:
    """To two digits, downwards."""
    whole = max(1, int(value))
    unit = 10 ** max(0, len(str(whole)) - 2)
    return whole // unit * unit


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = common.options(__doc__, repetitions=5, seconds=10)
    add = parser.add_argument
    add("--cases", default=",".join(CASES), help="some of them, by name (default: %(default)s)")
    add("--rows", type=int, default=100_000, help="at most so many a call (default: %(default)s)")
    add("--train-threads", type=int, default=common.cores(), help="only to train (default: all cores)")
    options = parser.parse_args(arguments)
    options.cases = [name.strip() for name in options.cases.split(",")]
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.quick:
        options.repetitions, options.rows, options.seconds = 2, 300, 0.2
    if options.repetitions < 1 or options.rows < 1 or options.seconds <= 0:
        parser.error("--repetitions, --rows and --seconds must be positive")
    return options


def main(arguments: list[str]) -> int:
    """Measure, print, write; 1 if a value is wrong. A target that is missed is printed."""
    options = parse(arguments)
    begun = common.begin()
    warnings.simplefilter("ignore")  # the peers'
    benchmark = Benchmark(options)
    benchmark.run()
    results = benchmark.results()
    print_rest(results)
    return common.finish(
        "kernel",
        begun,
        options,
        settings={"isa": benchmark.isa},
        results=results,
        targets=[] if options.quick else targets(results),
        problems=benchmark.problems,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
