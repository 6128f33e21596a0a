"""TreeSHAP values are exact: against LightGBM, brute-force Shapley, a high-precision reference and the margin."""

import json
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from batch_explain.errors import ArtifactError
from batch_explain.trees.ensemble import Ensemble
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.treeshap.kernel import DEFAULT_TABLE_BYTES, TreeShap, aligned
from batch_explain.treeshap.reference import goes_left, shap_values
from tests.comparing import assert_close
from tests.conftest import HAS_AUTOML, once
from tests.lightgbm_models import (
    CATEGORICAL,
    NUMERICAL,
    SPECIAL,
    SPECIAL_CATEGORIES,
    Tree,
    booster,
    constant_tree,
    contributions,
    margins,
    random_tree,
    rewritten,
    train,
    written,
)

TOLERANCE = 1e-10
TRUSTED_FEATURES = 20  # of a path: LightGBM's own recursion loses digits beyond

_hypothesis = settings(
    # the kernel is the same everywhere: beside the AutoML stack the examples are about its LightGBM
    max_examples=150 if HAS_AUTOML else 500,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_soak = settings(_hypothesis, max_examples=20_000)


# ---- checking --------------------------------------------------------------------------------------------------------


def explained(ensemble: Ensemble, rows: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, shape (output, row, feature), expected values and margins; features not split on are exactly 0."""
    explainer = TreeShap(ensemble, make_array=bounded, **options)
    found = explainer.explain(rows)
    assert found.engineered is not None and found.raw is None
    values = np.zeros((ensemble.n_outputs, len(rows), ensemble.n_features))
    values[:, :, explainer.used] = found.engineered.transpose(0, 2, 1)
    return values, explainer.expected_values, found.margins


def bounded(digest: str, doubles: int, fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """An array for tables that keep to the default bound."""
    assert doubles * 8 <= DEFAULT_TABLE_BYTES, f"{doubles * 8:,} bytes of tables"
    tables = aligned(doubles)
    fill(tables)
    return tables


def longest_path(ensemble: Ensemble) -> int:
    """Most distinct features on any path."""
    longest = 0
    for first, last in zip(ensemble.node_offset, ensemble.node_offset[1:], strict=False):
        features: list[set[int]] = [set() for _ in range(last - first)]
        for node in range(last - first):
            features[node].add(int(ensemble.feature[first + node]))
            longest = max(longest, len(features[node]))
            for child in (int(ensemble.left[first + node]), int(ensemble.right[first + node])):
                if child >= 0:
                    features[child] |= features[node]
    return longest


def check(text: str, rows: np.ndarray, iterations: int = -1, *, adds_up: bool = True, **options: Any) -> Ensemble:
    """Compare a model's values with LightGBM's; where those lose digits, the first rows with the reference's.

    ``adds_up`` is false of models whose counts do not add up: what LightGBM says of them does not either.
    """
    ensemble = read_model_text(text).first(iterations)
    values, expected_values, found_margins = explained(ensemble, rows, **options)
    model = booster(text)
    expected = contributions(model, rows, iterations)
    unused = np.setdiff1d(np.arange(ensemble.n_features), ensemble.used)
    assert not expected[:, :, unused].any()
    if longest_path(ensemble) <= TRUSTED_FEATURES:
        assert_close(values, expected[:, :, :-1], TOLERANCE)
    else:
        assert_close(values[:, :2], np.stack([shap_values(ensemble, row) for row in rows[:2]], axis=1), TOLERANCE)
    assert_close(expected_values, expected[:, 0, -1], 1e-12)
    sums = values.sum(axis=2) + expected_values[:, None]
    assert_close(found_margins, sums, 1e-12)
    if adds_up:
        scale = np.maximum(1.0, np.abs(values).max(axis=2, initial=0.0))
        assert np.all(np.abs(sums - margins(model, rows, iterations)) <= TOLERANCE * scale)
    return ensemble


def brute_force(text: str, rows: np.ndarray) -> np.ndarray:
    """Shapley values by their definition, shape (output, row, feature), from LightGBM's own description of its trees.

    The worth of a set of features: the tree's value where splits on them are decided, and the others averaged by the
    rows that went each way in training.
    """
    model = json.loads(json.dumps(booster(text).dump_model()))
    outputs, features = model["num_tree_per_iteration"], model["max_feature_idx"] + 1
    values = np.zeros((outputs, len(rows), features))

    def count(node: Any) -> float:
        return float(node["internal_count"] if "split_feature" in node else node["leaf_count"])

    def left(node: Any, value: float) -> bool:
        if node["decision_type"] == "==":
            members = {int(category) for category in node["threshold"].split("||") if category}
            return bool(np.isfinite(value)) and value > -1 and int(value) in members
        if abs(value) <= 1e-35 or (np.isnan(value) and node["missing_type"] != "NaN"):
            value = 0.0
        if (node["missing_type"] == "Zero" and value == 0) or (node["missing_type"] == "NaN" and np.isnan(value)):
            return bool(node["default_left"])
        return bool(value <= float(node["threshold"]))

    def worth(node: Any, known: frozenset[int], row: np.ndarray) -> float:
        if "split_feature" not in node:
            return float(node["leaf_value"])
        children = node["left_child"], node["right_child"]
        feature = node["split_feature"]
        if feature in known:
            return worth(children[0 if left(node, row[feature]) else 1], known, row)
        return sum(count(child) / count(node) * worth(child, known, row) for child in children)

    for tree in model["tree_info"]:
        root, output = tree["tree_structure"], tree["tree_index"] % outputs
        used = split_features(root)
        sets = [frozenset(found) for size in range(len(used) + 1) for found in combinations(used, size)]
        for at, row in enumerate(rows):
            worths = {known: worth(root, known, row) for known in sets}
            for known in sets:
                weight = 1 / (len(used) * math.comb(len(used) - 1, len(known))) if len(known) < len(used) else 0.0
                for feature in set(used) - known:
                    values[output, at, feature] += weight * (worths[known | {feature}] - worths[known])
    return values


def split_features(node: Any) -> list[int]:
    """Of a tree in ``dump_model``'s form."""
    if "split_feature" not in node:
        return []
    children = (split_features(node["left_child"]), split_features(node["right_child"]))
    return sorted({node["split_feature"], *children[0], *children[1]})


# ---- inputs ----------------------------------------------------------------------------------------------------------


def table(rng: np.random.Generator, count: int, features: int, categorical: int, categories: int) -> np.ndarray:
    """Rows with gaps and zeros; the last ``categorical`` columns are categories."""
    X = np.round(rng.normal(size=(count, features)), int(rng.integers(1, 9)))
    X[rng.random(X.shape) < rng.choice([0.0, 0.3])] = 0.0
    X[rng.random(X.shape) < rng.choice([0.0, 0.3])] = np.nan
    if categorical:
        X[:, -categorical:] = rng.integers(0, categories, (count, categorical))
    return X


def probes(rng: np.random.Generator, X: np.ndarray, ensemble: Ensemble, categorical: int, count: int) -> np.ndarray:
    """Rows for a model: training values, special values, thresholds, and the numbers next to thresholds."""
    rows = X[rng.integers(len(X), size=count)].copy()
    thresholds = ensemble.threshold[~np.isnan(ensemble.threshold)]
    for column in range(rows.shape[1]):
        is_set = column >= rows.shape[1] - categorical
        pool = SPECIAL_CATEGORIES if is_set else SPECIAL
        if len(thresholds) and not is_set:
            chosen = rng.choice(thresholds, 3)
            pool = np.concatenate([pool, chosen, np.nextafter(chosen, np.inf), np.nextafter(chosen, -np.inf)])
        special = rng.random(count) < 0.4
        rows[special, column] = rng.choice(pool, special.sum())
    return rows


def target(rng: np.random.Generator, X: np.ndarray, objective: str, classes: int) -> np.ndarray:
    """What can be learned from every column, of the kind that an objective takes."""
    clean = np.nan_to_num(X, nan=1.5)
    score = (np.sin(clean * rng.uniform(0.5, 3, X.shape[1])) * rng.normal(1, 0.3, X.shape[1])).sum(axis=1)
    rank = score.argsort().argsort()
    if objective == "binary":
        return (rank > len(X) // 3).astype(float)
    if objective == "multiclass":
        return rank * classes // len(X)
    if objective in ("poisson", "tweedie"):
        return np.floor(np.exp(rank / len(X) * 3))
    return score * 10.0 ** rng.integers(-2, 3)


@st.composite
def trained_models(draw: Any) -> tuple[str, np.ndarray, np.random.Generator, int]:
    """Text, training rows, a random generator, and the number of categorical columns (the last ones)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    objective = draw(st.sampled_from(["regression", "binary", "multiclass", "poisson", "tweedie"]))
    booster_kind = draw(st.sampled_from(["gbdt", "gbdt", "dart", "rf", "goss"]))
    classes = draw(st.sampled_from([3, 3, 4, 7, 20])) if objective == "multiclass" else 1
    features = draw(st.integers(1, 9))
    categorical = draw(st.integers(0, min(2, features)))
    X = table(rng, draw(st.integers(60, 250)), features, categorical, draw(st.sampled_from([3, 12, 40])))
    options: dict[str, Any] = {
        "objective": objective,
        "boosting": "gbdt" if booster_kind == "goss" else booster_kind,
        "data_sample_strategy": "goss" if booster_kind == "goss" else "bagging",
        "learning_rate": draw(st.sampled_from([0.1, 0.5, 1.0])),
        "num_leaves": draw(st.sampled_from([2, 3, 5, 8, 16, 31])),
        "max_depth": draw(st.sampled_from([-1, -1, 1, 2, 4])),
        "min_data_in_leaf": draw(st.sampled_from([1, 3, 10])),
        "max_bin": draw(st.sampled_from([4, 15, 255])),
        "use_missing": draw(st.booleans()),
        "zero_as_missing": draw(st.sampled_from([False, False, True])),
        "max_cat_to_onehot": draw(st.sampled_from([1, 4])),
        "seed": draw(st.integers(0, 100)),
    }
    if classes > 1:
        options["num_class"] = classes
    rounds = draw(st.integers(1, 3 if classes > 4 else 6))
    text = train(
        X,
        target(rng, X, objective, classes),
        rounds=rounds,
        categorical=range(features - categorical, features),
        splits=False,
        **options,
    )
    assume("\nsplit_feature=" in text)  # a few of these find nothing to split
    return text, X, rng, categorical


def scrambled(rng: np.random.Generator, tree: Tree) -> None:
    """Give splits other missing types, directions and thresholds, and other features of their kind."""
    if tree["num_leaves"] == "1":
        return
    for node, decision in enumerate(tree["decision_type"]):
        if decision & CATEGORICAL:
            continue
        if rng.random() < 0.7:
            tree["decision_type"][node] = rng.choice(list(NUMERICAL.values()))
        if rng.random() < 0.3:
            tree["threshold"][node] = rng.choice([0.0, -0.0, 1e-35, -1e-300, 5e-324, np.inf, 1e300, 0.5])
    if "cat_threshold" in tree and rng.random() < 0.5:
        tree["cat_threshold"] = rng.integers(0, 1 << 32, len(tree["cat_threshold"]))


def miscounted(rng: np.random.Generator, tree: Tree) -> None:
    """Counts that do not add up, as distributed training leaves them: the formula holds all the same."""
    for key in ("internal_count", "leaf_count"):
        if len(tree[key]):
            tree[key] = np.maximum(1, np.round(tree[key] * rng.uniform(0.7, 1.3, len(tree[key])))).astype(int)


# ---- any model -------------------------------------------------------------------------------------------------------


def check_trained(case: tuple[str, np.ndarray, np.random.Generator, int], change: str, iterations: int) -> None:
    text, X, rng, categorical = case
    if change != "nothing":
        text = rewritten(text, lambda tree: scrambled(rng, tree))
    if change == "splits and counts":
        text = rewritten(text, lambda tree: miscounted(rng, tree))
    rows = probes(rng, X, read_model_text(text), categorical, 12)
    check(text, rows, iterations, adds_up=change != "splits and counts")


_changes = st.sampled_from(["nothing", "splits", "splits", "splits and counts"])


@_hypothesis
@given(trained_models(), _changes, st.sampled_from([-1, -1, 1, 2, 100]))
def test_any_trained_model_is_lightgbms(case: Any, change: str, iterations: int) -> None:
    check_trained(case, change, iterations)


@pytest.mark.soak
@_soak
@given(trained_models(), _changes, st.sampled_from([-1, -1, 1, 2, 100]))
def test_soak_any_trained_model_is_lightgbms(case: Any, change: str, iterations: int) -> None:
    check_trained(case, change, iterations)


@st.composite
def written_models(draw: Any) -> tuple[str, np.ndarray]:
    """A model of random trees of any shape, and rows for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = draw(st.integers(1, 14))
    outputs = draw(st.sampled_from([1, 1, 2, 5]))
    categorical = draw(st.integers(0, min(3, features)))
    sets = range(features - categorical, features)
    leaves = draw(st.sampled_from([2, 3, 9, 31, 64]))
    chain, thresholds = draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.sampled_from([2, 10, 1000]))
    count = draw(st.integers(1, 4)) * outputs
    trees = [
        constant_tree(float(rng.normal()))
        if rng.random() < 0.1 and number
        else random_tree(
            rng, int(rng.integers(2, leaves + 1)), features, chain=chain, categorical=sets, thresholds=thresholds
        )
        for number in range(count)
    ]
    text = written(trees, features, outputs)
    X = rng.integers(-10, 11, (30, features)) / 10.0
    X[:, features - categorical :] = rng.integers(-1, 160, (30, categorical))
    return text, probes(rng, X, read_model_text(text), categorical, 12)


@once
@_hypothesis
@given(written_models())
def test_any_written_model_is_lightgbms(case: tuple[str, np.ndarray]) -> None:
    check(*case)


@pytest.mark.soak
@_soak
@given(written_models())
def test_soak_any_written_model_is_lightgbms(case: tuple[str, np.ndarray]) -> None:
    check(*case)


@settings(_hypothesis, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 9), st.integers(0, 1), st.sampled_from([1, 3]))
def test_brute_force_shapley(seed: int, features: int, leaves: int, categorical: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    sets = range(features - categorical, features)
    trees = [random_tree(rng, leaves, features, categorical=sets, thresholds=6) for _ in range(2 * outputs)]
    text = written(trees, features, outputs)
    X = rng.integers(-3, 4, (9, features)) / 3.0
    X[:, features - categorical :] = rng.integers(-1, 160, (9, categorical))
    ensemble = read_model_text(text)
    rows = probes(rng, X, ensemble, categorical, 4)
    expected = brute_force(text, rows)
    assert_close(explained(ensemble, rows)[0], expected, TOLERANCE)
    assert_close(np.stack([shap_values(ensemble, row) for row in rows], axis=1), expected, 1e-12)


# ---- the reference ---------------------------------------------------------------------------------------------------


def test_the_reference_is_the_integral() -> None:
    """By mpmath's numerical integration of the same integrand, on a path with more features than LightGBM bears."""
    import mpmath

    features = 24
    rng = np.random.default_rng(0)
    ensemble = read_model_text(written([random_tree(rng, features + 1, features, chain=1.0, distinct=True)], features))
    row = rng.normal(size=features)
    paths: list[tuple[float, dict[int, tuple[Any, int]]]] = []

    def descend(node: int, path: dict[int, tuple[Any, int]]) -> None:
        if node < 0:
            paths.append((float(ensemble.leaf_value[~node]), path))
            return
        feature, left = int(ensemble.feature[node]), goes_left(ensemble, node, row[ensemble.feature[node]])
        for child, taken in ((int(ensemble.left[node]), left), (int(ensemble.right[node]), not left)):
            count = ensemble.node_count[child] if child >= 0 else ensemble.leaf_count[~child]
            descend(child, {**path, feature: (mpmath.mpf(count) / mpmath.mpf(ensemble.node_count[node]), int(taken))})

    descend(0, {})
    with mpmath.workdps(30):
        for feature in (0, features - 1):
            total = mpmath.mpf(0)
            for value, path in paths:
                if feature in path:
                    others = [factor for other, factor in path.items() if other != feature]
                    zero, one = path[feature]
                    total += (
                        value
                        * (one - zero)
                        * mpmath.quad(
                            lambda t, others=others: mpmath.fprod(z + (o - z) * t for z, o in others),
                            [0, 1],
                            maxdegree=5,
                        )
                    )
            assert float(total) == pytest.approx(shap_values(ensemble, row)[0, feature], rel=1e-14, abs=1e-15)


# ---- shapes of trees -------------------------------------------------------------------------------------------------


def some_rows(rng: np.random.Generator, count: int, features: int) -> np.ndarray:
    rows = rng.normal(size=(count, features)) / 2
    rows[rng.random(rows.shape) < 0.1] = 0.0
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows


@once
@pytest.mark.parametrize("chain", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("leaves", [2, 3, 4, 7, 31, 61, 128, 255, 512])
def test_leaves_and_depth(leaves: int, chain: float) -> None:
    """From bushes to single paths of ever the same 18 features, each with one kind of missing value, as trained."""
    rng = np.random.default_rng(leaves)
    features = 18
    trees = [random_tree(rng, leaves, features, chain=chain) for _ in range(2)]
    for tree in trees:
        tree["decision_type"] = (tree["split_feature"] % 3) << 2 | rng.integers(2, size=leaves - 1) << 1
    check(written(trees, features), some_rows(rng, 10, features))


def test_one_path_with_every_kind_of_missing_value_of_every_feature() -> None:
    """Five variables a feature; the tables keep to their bound all the same."""
    rng = np.random.default_rng(255)
    check(written([random_tree(rng, 255, 18, chain=1.0) for _ in range(2)], 18), some_rows(rng, 10, 18))


@once
@pytest.mark.parametrize("features", [21, 25, 30, 45, 60])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_long_chains_of_distinct_features(side: str, features: int) -> None:
    """Beyond LightGBM's own precision: against the reference."""
    rng = np.random.default_rng(features)
    tree = random_tree(rng, features + 1, features, chain=1.0, distinct=True)
    if side != "both":
        inner, leaf = np.arange(1, features), ~np.arange(features)
        tree["left_child"] = np.append(inner, ~features) if side == "left" else leaf
        tree["right_child"] = leaf if side == "left" else np.append(inner, ~features)
        # each node takes an eighth of the rows off
        tree["leaf_count"] = np.ceil(1e6 * 0.875 ** np.arange(features + 1)).astype(int)
        tree["internal_count"] = np.cumsum(tree["leaf_count"][::-1])[::-1][:-1]
    # most of a row's features are satisfied, so that the values of deep leaves are reached
    rows = some_rows(rng, 2, features)
    rows[1] = -2.0 if side == "left" else 2.0
    ensemble = check(written([tree], features), rows)
    assert longest_path(ensemble) == features


@pytest.mark.parametrize("features", [90, 140])
def test_longer_chains_than_anyone_has_add_up(features: int) -> None:
    rng = np.random.default_rng(0)
    text = written([random_tree(rng, features + 1, features, chain=1.0, distinct=True)], features)
    rows = some_rows(rng, 20, features)
    values, expected, _ = explained(read_model_text(text), rows)
    assert_close(values.sum(axis=2) + expected[:, None], margins(booster(text), rows), TOLERANCE)


def test_a_path_too_long_for_the_kernel_is_refused_or_right() -> None:
    """The kernel's scratch memory holds 256 quadrature points: enough for 512 distinct features on one path."""
    rng = np.random.default_rng(0)
    text = written([random_tree(rng, 541, 540, chain=1.0, distinct=True)], 540)
    rows = np.zeros((1, 540))
    try:
        values, expected, _ = explained(read_model_text(text), rows)
    except ArtifactError as error:
        assert "more than 512 distinct features" in str(error)
    else:
        assert_close(values.sum(axis=2) + expected[:, None], margins(booster(text), rows), TOLERANCE)


def test_a_trained_chain() -> None:
    """One-hot columns of ever smaller effect: each split takes one off."""
    columns = 60
    X = np.repeat(np.eye(columns), 4, axis=0)
    text = train(
        X,
        np.repeat(0.8 ** np.arange(columns), 4),
        rounds=1,
        num_leaves=columns,
        enable_bundle=False,
        min_data_in_leaf=1,
    )
    ensemble = check(text, X[[0, 100, -1]])
    assert longest_path(ensemble) > TRUSTED_FEATURES


def test_one_feature_many_times_on_one_path() -> None:
    rng = np.random.default_rng(3)
    X = rng.uniform(-1, 1, (1_000, 2))
    text = train(X, np.exp(6 * X[:, 0]) + X[:, 1], rounds=3, num_leaves=200, max_bin=1023, learning_rate=1.0)
    ensemble = check(text, np.vstack([X[:20], np.full((1, 2), np.nan)]))
    assert longest_path(ensemble) == 2


@once
@pytest.mark.parametrize("features", [20, 45])
def test_512_leaves(features: int) -> None:
    rng = np.random.default_rng(features)
    X = rng.normal(size=(3_000, features))
    # ever smaller effects of rare things: long paths that leave one feature after the other behind
    X[:, 1:] = np.where(rng.random((3_000, features - 1)) < 0.1, X[:, 1:] ** 2 + 1, 0.0)
    text = train(X, X @ 0.9 ** np.arange(features), rounds=2, num_leaves=512, max_bin=63)
    assert "num_leaves=512" in text
    ensemble = check(text, X[:2])
    assert (longest_path(ensemble) > TRUSTED_FEATURES) == (features > TRUSTED_FEATURES)


@once
def test_2000_trees() -> None:
    rng = np.random.default_rng(1)
    X = table(rng, 200, 6, 1, 12)
    text = train(X, target(rng, X, "regression", 1), rounds=2_000, num_leaves=5, max_bin=31, categorical=[5])
    assert read_model_text(text).n_trees == 2_000
    for iterations in (-1, 777):
        check(text, X[:5], iterations)


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_classes(classes: int) -> None:
    rng = np.random.default_rng(classes)
    X = table(rng, 400, 5, 1, 8)
    y = target(rng, X, "multiclass", classes)
    objective = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": classes}
    text = train(X, y, rounds=4, num_leaves=7, categorical=[4], **objective)
    ensemble = check(text, X[:20], 3)
    assert ensemble.n_outputs == (1 if classes == 2 else classes)
    assert ensemble.n_trees == 3 * ensemble.n_outputs


@once
@pytest.mark.parametrize(
    "objective", ["multiclassova", "cross_entropy", "regression_l1", "gamma", "quantile", "lambdarank"]
)
def test_other_objectives(objective: str) -> None:
    """Values are of margins, whatever those mean."""
    rng = np.random.default_rng(0)
    X = table(rng, 200, 4, 0, 0)
    rank = np.nan_to_num(X[:, 0] + X[:, 1]).argsort().argsort()
    if objective == "lambdarank":
        import lightgbm

        data = lightgbm.Dataset(X, rank % 4, group=[20] * 10)
        options = {"objective": objective, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 3, "num_leaves": 7}
        text = lightgbm.train(options, data, num_boost_round=3).model_to_string()
        assert "split_feature=0" in text or "split_feature=1" in text
    elif objective == "multiclassova":
        text = train(X, rank * 3 // 200, objective=objective, num_class=3, num_leaves=7)
    else:
        text = train(X, (rank + 1) / 201, objective=objective, num_leaves=7)
    check(text, X[:10])


@once
@pytest.mark.parametrize("kind", ["dart", "rf", "goss"])
def test_boosters(kind: str) -> None:
    rng = np.random.default_rng(2)
    X = table(rng, 300, 6, 1, 9)
    kinds = {"data_sample_strategy": "goss", "learning_rate": 0.5} if kind == "goss" else {"boosting": kind}
    text = train(X, target(rng, X, "regression", 1), rounds=12, num_leaves=9, categorical=[5], **kinds)
    for iterations in (-1, 5):
        assert check(text, X[:10], iterations).averaged == (kind == "rf")


# ---- missing values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default_left", [False, True])
@pytest.mark.parametrize("missing", range(3), ids=["none", "zero", "NaN"])
@pytest.mark.parametrize("threshold", [-0.5, -1e-300, 0.0, 5e-324, 1e-35, 0.5, 1e300, np.inf])
def test_every_kind_of_missing_value(missing: int, default_left: bool, threshold: float) -> None:
    """One split, and two of the feature on one path, of which the other is of another kind."""

    def splits_like(tree: Tree) -> None:
        tree["decision_type"][0] = NUMERICAL[missing, default_left]
        tree["threshold"][0] = threshold

    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 2))
    rows = np.array([[special, other] for special in SPECIAL for other in (-1.0, 1.0)])
    for leaves in (2, 6):
        check(rewritten(train(X, X[:, 0] * (X[:, 1] + 0.1), num_leaves=leaves), splits_like), rows)


@pytest.mark.parametrize("missing", [1, 2], ids=["zero", "NaN"])
def test_both_default_directions_of_one_feature_in_one_tree(missing: int) -> None:
    rng = np.random.default_rng(5)
    trees = [random_tree(rng, 20, 2, chain=chain) for chain in (0.0, 1.0, 1.0)]
    for tree in trees:
        tree["decision_type"] = np.array([NUMERICAL[missing, bool(node % 2)] for node in range(19)])
    rows = np.array([[a, b] for a in SPECIAL for b in (*SPECIAL[:4], 0.3)])
    check(written(trees, 2), rows)


@pytest.mark.parametrize(
    "options", [{"zero_as_missing": True}, {"use_missing": False}, {}], ids=["zero", "none", "NaN"]
)
def test_missing_types_as_trained(options: dict[str, bool]) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(500, 4))
    X[rng.random(X.shape) < 0.3] = 0.0
    if not options:
        X[rng.random(X.shape) < 0.3] = np.nan
    text = train(X, np.where(X[:, 0] == 0, 3, np.nan_to_num(X).sum(axis=1)), num_leaves=12, **options)
    ensemble = check(text, probes(rng, X, read_model_text(text), 0, 40))
    expected = {"zero_as_missing": 1, "use_missing": 0}.get(next(iter(options), ""), 2)
    assert set(ensemble.missing.tolist()) == {expected} or expected == 2 in ensemble.missing


# ---- categories and thresholds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("categories", [2, 8, 9, 40, 300, 1500])
def test_categories(categories: int) -> None:
    """Bitsets of one word and of many; classes of categories that no split tells apart: few, and more than 256."""
    rng = np.random.default_rng(categories)
    X = np.column_stack([rng.integers(0, categories, 4_000), rng.normal(size=4_000)]).astype(float)
    effect = rng.normal(size=(3, categories))
    y = effect[(X[:, 1] * 2).astype(int) % 3, X[:, 0].astype(int)]
    text = train(
        X, y, rounds=6, num_leaves=24, learning_rate=1.0, categorical=[0], max_cat_to_onehot=1, max_cat_threshold=2_000,
        max_bin=2_000,
    )  # fmt: skip
    rows = np.column_stack(
        [[*SPECIAL_CATEGORIES, *range(20), categories, 2.0 * categories, 1e9, 1e300, np.inf], np.zeros(37)]
    )
    ensemble = check(text, rows)
    assert len(ensemble.category_sets) > 0
    if categories >= 300:
        members = np.array([np.isin(np.arange(categories), found) for found in ensemble.category_sets])
        assert len(np.unique(members, axis=1).T) > 256 and len(members) > 8


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("leaves", [256, 300])
def test_a_tree_that_tells_each_category_of_a_feature_apart(leaves: int, background: bool) -> None:
    """More states of one variable than a byte can number."""
    rng = np.random.default_rng(leaves)
    tree = random_tree(rng, leaves, 1, chain=1.0, categorical=[0])
    words = -(-leaves // 32)
    sets = np.zeros((leaves - 1, words), dtype=np.uint64)
    at = np.arange(leaves - 1)
    sets[at, at // 32] = np.uint64(1) << (at % 32).astype(np.uint64)
    goes_on = tree["left_child"] >= 0  # the others do, not the category alone
    sets[goes_on] ^= np.uint64((1 << 32) - 1)
    tree["cat_boundaries"] = np.arange(leaves) * words
    tree["cat_threshold"] = sets.ravel()
    rows = np.append(np.arange(leaves + 40.0), [np.nan, -1.0, 1e9])[:, None]
    text = written([tree], 1)
    if not background:
        check(text, rows)
        return
    compared = rows[::7]
    found = TreeShap(read_model_text(text), background=compared).explain(rows)
    margins = booster(text).predict(rows, raw_score=True)
    # of one feature, all of the difference
    assert found.engineered is not None
    assert_close(found.engineered[0, 0], margins - booster(text).predict(compared, raw_score=True).mean(), 1e-10)


def test_an_empty_and_a_full_set_of_categories() -> None:
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 12, 2, categorical=[0, 1]) for _ in range(3)]
    for tree in trees:
        tree["cat_threshold"][: tree["cat_boundaries"][2]] = 0
        tree["cat_threshold"][tree["cat_boundaries"][3] : tree["cat_boundaries"][5]] = (1 << 32) - 1
    check(written(trees, 2), np.column_stack([np.arange(-2, 140), rng.integers(-2, 140, 142)]).astype(float))


@pytest.mark.parametrize("thresholds", [255, 256, 257, 900])
def test_many_thresholds_of_one_feature(thresholds: int) -> None:
    """More than a byte can number."""
    rng = np.random.default_rng(thresholds)
    values = np.arange(thresholds - 1) / thresholds + rng.uniform(0, 0.5 / thresholds)
    trees = [random_tree(rng, 40, 2, chain=0.3) for _ in range(-(-thresholds // 15))]
    left = np.append(values, [-0.25, 5.0])
    for tree in trees:
        on_first = np.flatnonzero(tree["split_feature"] == 0)
        taken, left = left[: len(on_first)], left[len(on_first) :]
        tree["threshold"][on_first] = np.append(taken, rng.choice(values, len(on_first) - len(taken)))
        tree["decision_type"][:] = NUMERICAL[2, True]
    assert not len(left)
    ensemble = read_model_text(written(trees, 2))
    assert len(np.unique(ensemble.threshold[ensemble.feature == 0])) == thresholds + 1
    rows = np.concatenate([values, np.nextafter(values, 1), np.nextafter(values, -1), SPECIAL])
    check(written(trees, 2), np.column_stack([rows, rng.normal(size=len(rows))]))


def test_max_bin_1000() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4_000, 2))
    text = train(X, np.sin(20 * X[:, 0]) + X[:, 1], rounds=40, num_leaves=31, max_bin=2_000)
    ensemble = check(text, X[:50])
    assert len(np.unique(ensemble.threshold[ensemble.feature == 0])) > 255


# ---- counts, constants -----------------------------------------------------------------------------------------------


def test_a_leaf_that_no_training_row_came_by() -> None:
    """Its path probability is 0: the formula holds, where LightGBM divides 0 by 0."""
    rng = np.random.default_rng(4)
    features = 4
    trees = [random_tree(rng, 8, features, thresholds=6) for _ in range(3)]
    for tree in trees:
        for leaf in (0, 5):
            side = "left_child" if ~leaf in tree["left_child"] else "right_child"
            parent = int(np.flatnonzero(tree[side] == ~leaf)[0])
            sibling = tree["right_child" if side == "left_child" else "left_child"][parent]
            if sibling >= 0 or leaf == 0:
                empty(tree, leaf)
    text = written(trees, features)
    rows = np.array(
        [[a, b, c, d] for a in (-1, 1) for b in (-1, 0.2) for c in (-1, np.nan) for d in (-0.1, 2)], dtype=float
    )
    ensemble = read_model_text(text)
    assert (ensemble.leaf_count == 0).any()
    assert np.isnan(contributions(booster(text), rows)).any()
    values, expected_values, _ = explained(ensemble, rows)
    assert_close(values, brute_force(text, rows), TOLERANCE)
    assert_close(values, np.stack([shap_values(ensemble, row) for row in rows], axis=1), 1e-12)
    assert_close(values.sum(axis=2) + expected_values[:, None], margins(booster(text), rows), TOLERANCE)


def empty(tree: Tree, leaf: int) -> None:
    """Take a leaf's training rows out of the tree."""
    rows, child = tree["leaf_count"][leaf], ~leaf
    tree["leaf_count"][leaf] = 0
    while True:
        parents = np.flatnonzero((tree["left_child"] == child) | (tree["right_child"] == child))
        if not len(parents):
            return
        child = int(parents[0])
        tree["internal_count"][child] -= rows


def test_constant_trees_and_stumps() -> None:
    """A model of nothing but constants, and constants between trees that split."""
    rng = np.random.default_rng(0)
    rows = some_rows(rng, 5, 3)
    only = check(written([constant_tree(0.5), constant_tree(-2.0)], 3), rows)
    assert len(only.used) == 0 and only.expected_values().tolist() == [-1.5]
    check(written([random_tree(rng, 2, 3), constant_tree(1.0), random_tree(rng, 2, 3)], 3), rows)
    check(
        written([constant_tree(3.0), random_tree(rng, 5, 3), constant_tree(1.0), constant_tree(0.0)], 3, outputs=2),
        rows,
    )
    constant = train(np.zeros((50, 3)), np.full(50, 4.0), splits=False, objective="regression")
    assert check(constant, rows).expected_values() == pytest.approx([4.0])


def test_no_rows_and_one_row() -> None:
    rng = np.random.default_rng(0)
    text = written([random_tree(rng, 9, 3)], 3)
    values, _, found_margins = explained(read_model_text(text), np.empty((0, 3)))
    assert values.shape == (1, 0, 3) and found_margins.shape == (1, 0)
    check(text, rng.normal(size=(1, 3)))


@pytest.mark.parametrize(
    "make", [lambda rng: 10.0 ** rng.integers(-300, -200, 9), lambda rng: 1e200 * rng.normal(size=9)]
)
def test_leaf_values_of_any_size(make: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    tree = random_tree(rng, 9, 4)
    tree["leaf_value"] = make(rng)
    check(written([tree], 4), some_rows(rng, 10, 4))


@pytest.mark.parametrize("features", [1, 2])
def test_a_path_with_too_many_variables_of_one_feature_is_refused(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 splits of one feature on a path, told apart by as many variables as with 7,500 thresholds."""
    monkeypatch.setattr("batch_explain.treeshap.splits.MAX_THRESHOLDS", 1)
    chain = random_tree(np.random.default_rng(0), 31 * features, features, chain=1.0, distinct=True)
    chain["threshold"] = np.linspace(-2.0, 2.0, 31 * features - 1)
    with pytest.raises(ArtifactError, match="one feature at too many of its thresholds"):
        TreeShap(read_model_text(written([chain], features)))
