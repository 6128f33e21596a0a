"""Memory is planned before the run and kept in it."""

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest

import batch_explain as bx
from batch_explain.errors import OptionError
from batch_explain.events import Event, RunPlanned

ROWS, COLUMNS = 20_000, 600


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """20,000 rows of 600 columns in one row group, most of them used by the surrogate."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(ROWS, COLUMNS)), columns=[f"f{i}" for i in range(COLUMNS)])
    target = frame[:4_000].to_numpy() @ rng.normal(size=COLUMNS)
    options = {"objective": "regression", "verbosity": -1, "num_leaves": 31, "feature_fraction": 0.3, "num_threads": 2}
    booster = lightgbm.train(options, lightgbm.Dataset(frame[:4_000], target), 60)
    assert (booster.feature_importance() > 0).sum() > 400
    booster.save_model(folder / "surrogate.txt")
    frame.to_parquet(folder / "rows.parquet", row_group_size=ROWS)
    return {"input": folder / "rows.parquet", "explainer": folder / "surrogate.txt"}


def peaks(output: Path) -> list[int]:
    """Peak resident memory of each worker, in bytes."""
    receipts = [json.loads(path.read_text()) for path in (output / "_run/receipts").iterdir()]
    return [receipt["worker"]["peak_rss_bytes"] for receipt in receipts]


def test_a_limit_is_planned_for_and_kept(wide: dict[str, Any], tmp_path: Path) -> None:
    seen: list[Event] = []
    options = {**wide, "partition_rows": 5_000, "workers": 2, "compression": "none"}
    free = bx.explain_dataset(**options, output=tmp_path / "free", observers=[seen.append])
    planned = next(event for event in seen if isinstance(event, RunPlanned))
    assert planned.worker_bytes > 0.8 * max(peaks(tmp_path / "free"))  # foretold, if anything too high
    written = sum(path.stat().st_size for path in (tmp_path / "free/engineered").iterdir())
    assert 0.7 < planned.output_bytes / written < 1.4
    limit = planned.worker_bytes * 85 // 100
    held = bx.explain_dataset(**options, output=tmp_path / "held", memory_limit=limit)
    assert max(peaks(tmp_path / "held")) < limit
    assert any("memory is limited" in decision for decision in held.info["decisions"])
    left, right = (run.table("engineered").to_table().drop(["source_file"]) for run in (free, held))
    assert left.equals(right)


def test_a_limit_that_holds_nothing_is_refused(wide: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--memory-limit is 40 MB, but a worker needs .* MB.*Give it more"):
        bx.explain_dataset(**wide, output=tmp_path / "out", memory_limit="40MB")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="--memory-limit is 'much'"):
        bx.explain_dataset(**wide, output=tmp_path / "out", memory_limit="much")
