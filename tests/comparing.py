"""Reading a run's tables back, and comparing within the contract's tolerance."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from batch_explain.results import Run

RESULT_FOLDERS = (
    "predictions", "engineered", "raw", "features", "reasons", "quarantine", "summary", "feature_map.parquet",
)  # fmt: skip


def frame_of(run: Run, level: str, output: str | None = None) -> pd.DataFrame:
    """A table of a run, in the order of its parts."""
    return run.table(level, output).to_table(use_threads=False).to_pandas()


def values_of(run: Run, level: str, features: list[str]) -> np.ndarray:
    """Importances, shape (output, row, feature); features that have no column are 0."""
    frames = [frame_of(run, level, label) for label in run.outputs or [None]]
    return np.stack([frame.reindex(columns=features, fill_value=0.0).to_numpy() for frame in frames])


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """|difference| <= tolerance x max(1, the row's largest |value|); shape (…, row, feature)."""
    assert found.shape == expected.shape
    scale = np.maximum(1.0, np.abs(expected).max(axis=-1, keepdims=True, initial=0.0))
    assert np.all(np.abs(found - expected) <= tolerance * scale), np.abs((found - expected) / scale).max()


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of every result file that must not depend on how a run was carried out."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in RESULT_FOLDERS
        for path in sorted([output / name] if (output / name).is_file() else (output / name).rglob("*"))
        if path.is_file()
    }
