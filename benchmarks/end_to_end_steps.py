"""What `end_to_end.py` does in processes of their own (`--step NAME SPEC`), because it needs the SDK or numpy."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import engineered as engineered_case

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
FILES, ROW_GROUPS = 8, 2
SEED = 7
SAMPLE_ROWS = 2_000
TOLERANCE = 1e-9
ID = "row"


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


STEPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prepare": prepare,
    "script": script,
    "judge": judge,
    "prepare_engineered": engineered_case.prepare,
    "judge_engineered": engineered_case.judge,
}


def run_step(name: str, spec_path: Path) -> None:
    """Do a step in this process; its answer goes beside its specification."""
    sys.path.insert(0, str(ROOT))  # for tests.automl_fixtures
    with contextlib.redirect_stdout(sys.stderr):  # the SDK narrates
        answer = STEPS[name](json.loads(spec_path.read_text()))
    common.write_json(spec_path.with_suffix(".answer.json"), answer)
