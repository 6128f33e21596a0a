"""Interventional SHAP values against background rows: brute force, the formula in fractions, and shap."""

from fractions import Fraction
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import batch_explain as bx
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.trees.ensemble import Ensemble
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.treeshap.forms import BACKGROUND, DIRECT
from batch_explain.treeshap.kernel import TreeShap, load_kernel
from batch_explain.treeshap.reference import goes_left
from tests.conftest import Engineered, Small
from tests.lightgbm_models import constant_tree, random_tree, train, written

ROWS = 300


def data(width: int, *, gaps: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(ROWS, width))
    X[:, -1] = rng.integers(0, 9, ROWS)
    y = X @ rng.normal(size=width) + X[:, 0] * X[:, 1] + X[:, -1] % 3
    if gaps:
        X[rng.random(X.shape) < 0.2] = np.nan
    return X, y


def explained(text: str, rows: Any, background: np.ndarray, **options: Any) -> tuple[np.ndarray, TreeShap]:
    """Values (output, feature, row), which add up to LightGBM's own margins."""
    ensemble = read_model_text(text)
    kernel = TreeShap(ensemble, background=background, **options)
    found = kernel.explain(rows)
    values = np.zeros((ensemble.n_outputs, ensemble.n_features, rows.shape[0]))
    values[:, kernel.used] = found.engineered
    booster = lightgbm.Booster(model_str=text)
    margins = booster.predict(rows, raw_score=True).reshape(rows.shape[0], -1).T
    base = booster.predict(background, raw_score=True).reshape(len(background), -1).mean(axis=0)
    scale = max(1.0, np.abs(values).max())
    np.testing.assert_allclose(kernel.expected_values, base, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(values.sum(axis=1) + base[:, None], margins, rtol=0, atol=1e-10 * scale)
    assert np.abs(values).max() > 0
    return values, kernel


def brute_force(text: str, row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The definition: every coalition, its features of the row, all others of each background row in turn."""
    booster, width = lightgbm.Booster(model_str=text), len(row)
    worth = {}
    for size in range(width + 1):
        for chosen in combinations(range(width), size):
            mixed = background.copy()
            mixed[:, list(chosen)] = row[list(chosen)]
            worth[chosen] = booster.predict(mixed, raw_score=True).reshape(len(mixed), -1).mean(axis=0)
    values = np.zeros((len(worth[()]), width))
    for feature in range(width):
        for chosen in worth:
            if feature not in chosen:
                weight = factorial(len(chosen)) * factorial(width - len(chosen) - 1) / factorial(width)
                both = tuple(sorted((*chosen, feature)))
                values[:, feature] += weight * (worth[both] - worth[chosen])
    return values


@pytest.mark.parametrize(
    ("options", "gaps"),
    [
        ({}, False),
        ({"num_leaves": 12}, True),
        ({"objective": "multiclass", "num_class": 3}, True),
        ({"zero_as_missing": True}, True),
        ({"use_missing": False}, True),
        ({"boosting": "dart"}, False),
    ],
)
def test_it_is_the_definition(options: dict[str, Any], gaps: bool) -> None:
    """Missing values, categories and features that come again on a path among them."""
    X, y = data(5, gaps=gaps)
    target = np.digitize(y, [-1, 1]) if "num_class" in options else y
    text = train(X, target, rounds=4, categorical=[4], **options)
    background = X[:20]
    rows = X[50:58]
    expected = np.stack([brute_force(text, row, background) for row in rows], axis=-1)
    for table_bytes, form in ((400_000_000, DIRECT), (0, BACKGROUND)):
        values, kernel = explained(text, rows, background, table_bytes=table_bytes)
        assert set(kernel.program.arrays["terms"].tolist()) == {form}
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9)


def in_fractions(ensemble: Ensemble, row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Leaf by leaf: a feature that only the row satisfies, or only the background row, has a Shapley weight there."""
    values = [[Fraction(0)] * ensemble.n_features for _ in range(ensemble.n_outputs)]
    for tree in range(ensemble.n_trees):
        first, leaf = int(ensemble.node_offset[tree]), int(ensemble.leaf_offset[tree])
        for other in background:
            waiting: list[tuple[int, dict[int, tuple[bool, bool]]]] = [(0, {})]
            while waiting:
                node, path = waiting.pop()
                if node < 0:
                    _add(
                        values[tree % ensemble.n_outputs],
                        float(ensemble.leaf_value[leaf + ~node]),
                        path,
                        len(background),
                    )
                    continue
                feature = int(ensemble.feature[first + node])
                mine, its = (goes_left(ensemble, first + node, float(each[feature])) for each in (row, other))
                o, z = path.get(feature, (True, True))
                for child, way in ((ensemble.left[first + node], True), (ensemble.right[first + node], False)):
                    found = (o and mine == way, z and its == way)
                    if any(found):  # else nobody gets there
                        waiting.append((int(child), {**path, feature: found}))
    return np.array([[float(value) for value in output] for output in values])


def _add(values: list[Fraction], value: float, path: dict[int, tuple[bool, bool]], rows: int) -> None:
    ours = [feature for feature, (o, z) in path.items() if o and not z]
    its = [feature for feature, (o, z) in path.items() if z and not o]
    a, b = len(ours), len(its)
    for feature in ours:
        values[feature] += Fraction(value) * Fraction(factorial(a - 1) * factorial(b), factorial(a + b) * rows)
    for feature in its:
        values[feature] -= Fraction(value) * Fraction(factorial(a) * factorial(b - 1), factorial(a + b) * rows)


def test_leaves_too_wide_for_a_table_are_exact() -> None:
    """Deep trees of three classes with missing values and categories, more than 64 different answers to a leaf."""
    X, y = data(60, gaps=True)
    X[:, -2] = np.random.default_rng(1).integers(0, 30, ROWS)
    target = np.digitize(y + X[:, -2] % 5, [1, 4])
    text = train(
        X, target, rounds=2, categorical=[58, 59], num_leaves=90, objective="multiclass", num_class=3,
        min_data_in_leaf=1, extra_trees=True, feature_fraction_bynode=0.05,
    )  # fmt: skip
    background, rows = X[:90], X[100:104]
    ensemble = read_model_text(text)
    assert (ensemble.category_set >= 0).any() and np.isnan(rows).any()
    expected = np.stack([in_fractions(ensemble, row, background) for row in rows], axis=-1)
    scale = max(1.0, np.abs(expected).max())
    for table_bytes in (400_000_000, 400_000, 0):
        values, kernel = explained(text, rows, background, table_bytes=table_bytes)
        arrays = kernel.program.arrays
        assert (arrays["terms"] == BACKGROUND).any(), "or this shows nothing"
        assert np.diff(arrays["first_answer"]).max() > 64
        assert kernel.table_bytes <= table_bytes or not table_bytes
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10 * scale)
    assert (arrays["terms"] == BACKGROUND).all()


def test_a_feature_with_too_many_variables_for_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 splits of one feature on a path, told apart by as many variables as with 10,000 thresholds."""
    monkeypatch.setattr("batch_explain.treeshap.splits.MAX_THRESHOLDS", 1)
    rng = np.random.default_rng(0)
    chain = random_tree(rng, 61, 3)
    chain["split_feature"] = np.arange(60) % 3 // 2  # two of three of the first
    chain["decision_type"] = np.full(60, 2)
    chain["threshold"] = np.linspace(-2.0, 2.0, 60)
    chain["left_child"] = -np.arange(1, 61)
    chain["right_child"] = np.array([*range(1, 60), -61])
    text = written([chain], 3)
    background, rows = rng.normal(size=(12, 3)), rng.normal(size=(6, 3))
    values, kernel = explained(text, rows, background)
    arrays = kernel.program.arrays
    assert (np.diff(arrays["first_part"])[arrays["terms"] == BACKGROUND] > 1).any(), "a group of several parts"
    for at, row in enumerate(rows):
        np.testing.assert_allclose(values[:, :, at], brute_force(text, row, background), rtol=0, atol=1e-9)


def test_a_tree_of_one_leaf_has_no_part_in_it() -> None:
    """As where one class of several had nothing to gain by a split."""
    rng = np.random.default_rng(0)
    text = written([random_tree(rng, 6, 3), constant_tree(1.5), constant_tree(-2.0), random_tree(rng, 6, 3)], 3, 2)
    background, rows = rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    values, _ = explained(text, rows, background)
    for at, row in enumerate(rows):
        np.testing.assert_allclose(values[:, :, at], brute_force(text, row, background), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("leaves", "features", "trees"), [(40, 30, 2), (61, 60, 1), (25, 8, 3), (2, 3, 2)])
def test_long_and_wide_paths_are_exact(leaves: int, features: int, trees: int) -> None:
    """Paths too long for one table: a chain of 60 features, and random trees."""
    rng = np.random.default_rng(leaves)
    if features == 60:
        chain = random_tree(rng, leaves, features)
        chain["split_feature"] = np.arange(60)
        chain["left_child"] = -np.arange(1, 61)
        chain["right_child"] = np.array([*range(1, 60), -61])
        text = written([chain], features)
    else:
        text = written([random_tree(rng, leaves, features) for _ in range(trees)], features)
    background, rows = rng.normal(size=(12, features)), rng.normal(size=(6, features))
    ensemble = read_model_text(text)
    for table_bytes in (400_000_000, 20_000):
        values, kernel = explained(text, rows, background, table_bytes=table_bytes)
        scale = max(1.0, np.abs(values).max())
        for at, row in enumerate(rows):
            expected = in_fractions(ensemble, row, background)
            np.testing.assert_allclose(values[:, :, at], expected, rtol=0, atol=1e-10 * scale)
    assert kernel.program.groups >= 1


def test_it_is_shap_and_the_same_bits_everywhere() -> None:
    """shap's own interventional explainer, which computes in float32; every instruction set; sparse rows."""
    shap = pytest.importorskip("shap")
    X, y = data(40, gaps=False)
    text = train(X, y, rounds=10, num_leaves=60, extra_trees=True, feature_fraction_bynode=0.1)
    rng = np.random.default_rng(2)
    background, rows = rng.normal(size=(500, 40)), X[60:160]
    masker = shap.maskers.Independent(background, max_samples=500)
    theirs = shap.TreeExplainer(
        lightgbm.Booster(model_str=text), data=masker, feature_perturbation="interventional"
    ).shap_values(rows, check_additivity=False)
    for table_bytes, form in ((400_000_000, DIRECT), (0, BACKGROUND)):
        options = {"table_bytes": table_bytes}
        values, kernel = explained(text, rows, background, **options)
        arrays = kernel.program.arrays
        assert (arrays["terms"] == form).any() and np.diff(arrays["first_answer"]).max() > 256
        np.testing.assert_allclose(values[0], np.asarray(theirs).T, rtol=0, atol=1e-5 * np.abs(theirs).max())
        for isa in load_kernel().instruction_sets():
            again, _ = explained(text, rows, background, isa=isa, **options)
            assert again.tobytes() == values.tobytes()
        shuffled, _ = explained(text, rows, background[::-1].copy(), **options)
        assert shuffled.tobytes() == values.tobytes(), "the order of the background rows changes nothing"
        sparse = sp.csr_matrix(np.where(rows > 0.3, rows, 0.0))
        dense, _ = explained(text, sparse.toarray(), background, **options)
        found = TreeShap(read_model_text(text), background=background, **options).explain(sparse).engineered
        np.testing.assert_array_equal(found, dense[:, kernel.used])


def test_a_run_against_background_rows(small: Small, tmp_path: Path) -> None:
    """Featurized like the input; engineered by the formula, raw adds up; verified; refused where it is changed."""
    frame = small.frame[:200]
    background = small.frame[300:340].drop(columns="customer_id")
    background.to_parquet(tmp_path / "background.parquet", index=False)
    given: dict[str, Any] = {
        "input": small.write(tmp_path / "rows.parquet", frame), "model": small.model, "explainer": small.explainer,
        "background": tmp_path / "background.parquet", "id_columns": "customer_id", "partition_rows": 80,
        "scheduler": "threads", "workers": 2, "check": "all",
    }  # fmt: skip
    run = bx.explain_dataset(**given, output=tmp_path / "out")
    import joblib

    featurizer = joblib.load(small.model)[:-1]
    ensemble = read_model_text(small.explainer.read_text())
    rows, others = (np.asarray(featurizer.transform(each)) for each in (frame, background))
    names = run.info["features"]["engineered"]
    table = run.table("engineered").to_table().to_pandas()
    found = np.array([table[name] if name in table else np.zeros(len(table)) for name in names])
    for at in (0, 79, 80, 199):
        np.testing.assert_allclose(found[:, at], in_fractions(ensemble, rows[at], others)[0], rtol=0, atol=1e-9)
    raw = run.table("raw").to_table().to_pandas()
    total = raw[run.info["features"]["raw"]].sum(axis=1) + run.info["expected_values"][0]
    margin = lightgbm.Booster(model_file=small.explainer).predict(rows, raw_score=True)
    np.testing.assert_allclose(total, margin, rtol=0, atol=1e-9)
    assert any("interventional" in each and "40 background rows" in each for each in run.info["decisions"])
    assert bx.verify_run(tmp_path / "out", recompute="30").ok
    (tmp_path / "out/_SUCCESS").unlink()
    background[:20].to_parquet(tmp_path / "background.parquet", index=False)
    with pytest.raises(OptionError, match="the background is another file"):
        bx.explain_dataset(**given, output=tmp_path / "out", resume=True)


def test_what_cannot_be_a_background(engineered: Engineered, small: Small, tmp_path: Path) -> None:
    rows = engineered.frame
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    cases = {
        "too many": (pd.concat([rows] * 2)[:501], "has 501 rows; it takes 1 to 500"),
        "none": (rows[:0], "has 0 rows"),
        "a column less": (rows[:20].drop(columns=rows.columns[0]), "rows of --background cannot be used"),
    }
    for name, (frame, message) in cases.items():
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
        with pytest.raises(OptionError, match=message):
            bx.explain_dataset(
                input=tmp_path / "rows.parquet", explainer=engineered.explainer, output=tmp_path / "out",
                background=tmp_path / f"{name}.parquet", scheduler="sync",
            )  # fmt: skip
        assert not (tmp_path / "out").exists()
    infinite = rows[:20].astype(np.float64)
    infinite.iloc[3, 2] = np.inf
    for frame, message in (
        (pd.concat([rows] * 2)[:501], "The background has 501 rows; it takes 1 to 500"),
        (rows[:0], "has 0 rows"),
        (infinite, "1 of the 20 background rows hold infinite values"),
        (sp.csr_matrix(infinite.to_numpy()), "1 of the 20 background rows hold infinite values"),
    ):
        with pytest.raises(OptionError, match=message):
            bx.load_explainer(engineered.explainer, background=frame)
    with pytest.raises(OptionError, match="takes 1 to 500"):
        TreeShap(read_model_text(engineered.explainer.read_text()), background=np.zeros((501, rows.shape[1])))
    with pytest.raises(ArtifactError, match=r"more than the 0\.0 MB that its tables may take"):
        bx.load_explainer(engineered.explainer, background=rows[:30], table_bytes=1_000).explain(rows[:5])
    found = bx.load_explainer(engineered.explainer, background=rows[:30])
    values = found.explain(rows[:5]).values
    assert not np.allclose(values, bx.load_explainer(engineered.explainer).explain(rows[:5]).values)
    with pytest.raises(ArtifactError, match="which a bundle does not hold"):
        bx.export_bundle(found, tmp_path / "bundle")
