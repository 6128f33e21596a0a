"""The raw data: one frame per way in which AutoML featurizes."""

import numpy as np
import pandas as pd

ROWS = 1_800

#: A frame of raw columns and, row by row, the number that the target is made from.
Frame = tuple[pd.DataFrame, np.ndarray]


def mixed() -> Frame:
    """Numbers with gaps, a category, a date, short texts: featurized to csr, though 60% of it is filled."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "age": rng.integers(18, 90, ROWS),
            "job": rng.choice(["admin", "blue", "mgmt", "tech"], ROWS),
            "balance": rng.normal(1000, 500, ROWS),
            "opened": pd.date_range("2020-01-01", periods=ROWS, freq="h"),
            "note": rng.choice(["paid on time", "late once or twice", "no record of any loan"], ROWS),
        }
    )
    X.loc[::17, "balance"] = np.nan
    steps = 1.0 * (X.age > 50) + 2.0 * (X.job == "tech") + (X.balance.fillna(0) > 1200)
    return X, (steps + (X.opened.dt.hour > 12)).to_numpy() + rng.normal(0, 0.5, ROWS)


def numeric() -> Frame:
    """Numbers without gaps: featurized to a dense array, one engineered feature per column."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(ROWS, 8)), columns=[f"x{i}" for i in range(8)])
    signal = X.x0 * 2 + X.x1 * X.x2 + (X.x3 > 0) * 3
    return X, signal.to_numpy() + rng.normal(0, 0.3, ROWS)


def wide() -> Frame:
    """Free text, categories of all sizes, columns with nothing in them: about 42,000 engineered features."""
    rows = 3_000
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(400)])
    X = pd.DataFrame(
        {
            "number": rng.normal(size=rows),
            "code": rng.integers(0, 5, rows),
            "flag": rng.random(rows) > 0.5,
            "flag_or_none": pd.array(rng.choice([True, False, None], rows), dtype="object"),
            "few": rng.choice(list("abc"), rows),
            "dozens": rng.choice([f"c{i:03d}" for i in range(60)], rows),
            "hundreds": rng.choice([f"u{i:04d}" for i in range(700)], rows),
            "text": [" ".join(rng.choice(words, rng.integers(8, 30))) for _ in range(rows)],
            "when": pd.date_range("2019-01-01", periods=rows, freq="7h"),
            "empty": np.full(rows, np.nan),
            "constant": 1.0,
        }
    )
    X.loc[::11, "number"] = np.nan
    X.loc[::13, "few"] = None
    X.loc[::9, "text"] = None
    return X, (X.number.fillna(0) + (X.few == "a") + X.flag * 0.5).to_numpy()


def two_classes(signal: np.ndarray) -> np.ndarray:
    """Class 1 above the median, class 0 below."""
    return (signal > np.median(signal)).astype(int)


def three_classes(signal: np.ndarray) -> np.ndarray:
    """Text labels, of unequal size and in alphabetical order."""
    return np.array(["low", "mid", "top"])[np.digitize(signal, np.quantile(signal, [0.4, 0.75]))]
