"""LightGBM's model text is read exactly, and refused in a paragraph where it is damaged."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch_explain.errors import ArtifactError
from batch_explain.trees.ensemble import MISSING_NAN, MISSING_NONE, MISSING_ZERO, Ensemble
from batch_explain.trees.lightgbm_text import UnknownFormatError, read_model_text
from batch_explain.treeshap.kernel import TreeShap
from tests.comparing import assert_close
from tests.lightgbm_models import (
    Tree,
    booster,
    constant_tree,
    contributions,
    random_tree,
    rewritten,
    train,
    written,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def text() -> str:
    """Three classes, two numerical features with gaps and a categorical one."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    X[::7, 0] = np.nan
    X[:, 2] = rng.integers(0, 70, 300)
    y = np.digitize(np.nan_to_num(X[:, 0]) + X[:, 1] + 2 * (X[:, 2] % 3), [1, 3])
    return train(X, y, rounds=3, categorical=[2], objective="multiclass", num_class=3, num_leaves=9)


def trees_of(ensemble: Ensemble) -> list[dict[str, Any]]:
    """The trees in the form of ``dump_model``, of what both say."""

    def node(tree: int, at: int) -> dict[str, Any]:
        if at < 0:
            leaf = int(ensemble.leaf_offset[tree]) + ~at
            return {"value": ensemble.leaf_value[leaf], "count": ensemble.leaf_count[leaf]}
        i = int(ensemble.node_offset[tree]) + at
        found: dict[str, Any] = {"feature": ensemble.feature[i], "count": ensemble.node_count[i]}
        if ensemble.category_set[i] >= 0:
            found |= {"categories": ensemble.category_sets[ensemble.category_set[i]].tolist()}
        else:
            missing = {MISSING_NONE: "None", MISSING_ZERO: "Zero", MISSING_NAN: "NaN"}[int(ensemble.missing[i])]
            threshold = min(float(ensemble.threshold[i]), 1e300)  # JSON has no infinity
            found |= {"threshold": threshold, "missing": missing, "default_left": ensemble.default_left[i]}
        return found | {"left": node(tree, int(ensemble.left[i])), "right": node(tree, int(ensemble.right[i]))}

    return [node(tree, 0) for tree in range(ensemble.n_trees)]


def trees_of_dump(model: Any) -> list[dict[str, Any]]:
    def node(of: Any) -> dict[str, Any]:
        if "split_feature" not in of:
            return {"value": of["leaf_value"], "count": of["leaf_count"]}
        found = {"feature": of["split_feature"], "count": of["internal_count"]}
        if of["decision_type"] == "==":
            found |= {"categories": [int(category) for category in of["threshold"].split("||")]}
        else:
            found |= {"threshold": of["threshold"], "missing": of["missing_type"], "default_left": of["default_left"]}
        return found | {"left": node(of["left_child"]), "right": node(of["right_child"])}

    return [node(tree["tree_structure"]) for tree in model["tree_info"]]


def values_of(ensemble: Ensemble, rows: np.ndarray) -> np.ndarray:
    """Shape (output, row, feature + 1), as LightGBM has it."""
    explainer = TreeShap(ensemble)
    found = explainer.explain(rows).engineered
    assert found is not None
    values = np.zeros((ensemble.n_outputs, len(rows), ensemble.n_features + 1))
    values[:, :, explainer.used] = found.transpose(0, 2, 1)
    values[:, :, -1] = explainer.expected_values[:, None]
    return values


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_the_trees_are_those_that_lightgbm_describes(text: str) -> None:
    ensemble = read_model_text(text)
    described = booster(text).dump_model()
    assert trees_of(ensemble) == trees_of_dump(described)
    assert ensemble.feature_names == tuple(described["feature_names"])
    assert (ensemble.n_outputs, ensemble.n_trees, ensemble.n_features) == (3, 9, 3)
    assert ensemble.objective == "multiclass num_class:3" and not ensemble.averaged
    assert len(ensemble.category_sets) > 2 and ensemble.used.tolist() == [0, 1, 2]


def test_the_text_may_come_from_windows_and_without_sizes(text: str) -> None:
    without = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    assert without != text
    for variant in (text.replace("\n", "\r\n"), without, text.partition("\nparameters:")[0]):
        assert trees_of(read_model_text(variant)) == trees_of(read_model_text(text))


def test_arrays_are_frozen(text: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        read_model_text(text).threshold[0] = 1.0


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_models_of_other_versions(path: Path) -> None:
    """Texts and contributions as LightGBM 3.3 and 4.6 wrote them (see golden/make.py)."""
    text, golden = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    assert f"version={'v3' if '3.3' in path.name else 'v4'}\n" in text
    rows = np.array(golden["rows"])
    for iterations, key in ((-1, "contributions"), (2, "two_iterations")):
        ensemble = read_model_text(text).first(iterations)
        assert set(ensemble.used.tolist()) >= {0, 1, 3}
        assert len(ensemble.category_sets) > 0 or iterations == 2
        expected = np.array(golden[key]).reshape(len(rows), ensemble.n_outputs, -1).transpose(1, 0, 2)
        assert_close(values_of(ensemble, rows), expected, 1e-10)


def test_there_is_a_golden_model_of_each_version() -> None:
    assert {path.name.split("-")[1] for path in GOLDEN.glob("*.txt")} == {"3.3.5", "4.6.0"}


@pytest.mark.parametrize("iterations", [-1, 0, 1, 2, 3, 4])
def test_first_iterations(text: str, iterations: int) -> None:
    rows = np.random.default_rng(1).normal(size=(20, 3))
    ensemble = read_model_text(text).first(iterations)
    assert ensemble.n_trees == 3 * (iterations if 0 < iterations < 3 else 3)
    assert_close(values_of(ensemble, rows), contributions(booster(text), rows, iterations), 1e-12)


def test_constant_trees_have_no_node() -> None:
    rng = np.random.default_rng(0)
    ensemble = read_model_text(written([constant_tree(2.5), random_tree(rng, 4, 2), constant_tree(-1.0)], 2))
    assert ensemble.node_offset.tolist() == [0, 0, 3, 3]
    assert ensemble.leaf_offset.tolist() == [0, 1, 5, 6]
    assert ensemble.first(1).expected_values().tolist() == [2.5]
    assert len(ensemble.first(1).used) == 0


def test_random_forests_are_averaged() -> None:
    X = np.random.default_rng(0).normal(size=(100, 2))
    assert read_model_text(train(X, X[:, 0], boosting="rf")).averaged


# ---- what is refused -------------------------------------------------------------------------------------------------


def refusal(text: str) -> str:
    """The message with which a text is refused: one paragraph."""
    with pytest.raises(ArtifactError) as caught:
        read_model_text(text)
    message = str(caught.value)
    assert "\n" not in message and 30 < len(message) < 400, message
    assert message.endswith(".") and "LightGBM model" in message
    return message


def test_linear_trees() -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    text = train(X, X[:, 0] ** 2, linear_tree=True, rounds=2)
    assert "linear tree (linear_tree=true)" in refusal(text)
    assert "Train the surrogate with linear_tree=false" in refusal(text)


def test_a_later_format_is_an_error_of_its_own(text: str) -> None:
    with pytest.raises(UnknownFormatError, match=r"'v9'; this program reads v3 and v4"):
        read_model_text(text.replace("version=v4", "version=v9"))
    assert "None" in refusal(text.replace("version=v4\n", ""))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_truncated(text: str, share: float) -> None:
    refusal(text[: int(share * text.index("end of trees"))])


@pytest.mark.parametrize("other", ["", "\0\1\2", "{}", "tree", "not a model\n" * 3, "end of trees", "\nend of trees\n"])
def test_something_else(other: str) -> None:
    refusal(other)


def test_a_tree_is_missing(text: str) -> None:
    without = re.sub(r"Tree=4\n.*?(?=Tree=5)", "", text, flags=re.DOTALL)
    assert "trees are missing" in refusal(without)
    assert "no multiple of its 3 outputs" in refusal(re.sub(r"tree_sizes=.*\n", "", without))


def test_zero_count_inner_node() -> None:
    def empty(tree: Tree) -> None:
        if tree["Tree"] == "1":
            tree["internal_count"][2] = 0

    rng = np.random.default_rng(0)
    text = rewritten(written([random_tree(rng, 6, 2) for _ in range(3)], 2), empty)
    assert "Inner node 2 of tree 1 of the LightGBM model has a count of 0" in refusal(text)


_DAMAGES: dict[str, tuple[str, Any, str]] = {
    "too few thresholds": ("threshold", lambda v: v[:-1], "'threshold' of tree 1 has 7 numbers instead of 8"),
    "too many leaves": ("leaf_value", lambda v: [*v, 1.0], "'leaf_value' of tree 1 has 10 numbers instead of 9"),
    "too few counts": ("leaf_count", lambda v: v[:-1], "'leaf_count' of tree 1 has 8 numbers"),
    "NaN threshold": ("threshold", lambda v: [np.nan, *v[1:]], "threshold that is not a number"),
    "NaN leaf": ("leaf_value", lambda v: [np.nan, *v[1:]], "value or count is not a number"),
    "infinite leaf": ("leaf_value", lambda v: [np.inf, *v[1:]], "value or count is not a number"),
    "negative count": ("leaf_count", lambda v: [-5, *v[1:]], "count is negative"),
    "negative inner count": ("internal_count", lambda v: [-5, *v[1:]], "has a count of -5"),
    "NaN count": ("internal_count", lambda v: [np.nan, *v[1:]], "has a count of nan"),
    "infinite count": ("internal_count", lambda v: [np.inf, *v[1:]], "has a count of inf"),
    "feature beyond the last": ("split_feature", lambda v: [3, *v[1:]], "a feature that does not exist"),
    "negative feature": ("split_feature", lambda v: [-1, *v[1:]], "a feature that does not exist"),
    "half a feature": ("split_feature", lambda v: [0.5, *v[1:]], "not whole"),
    "huge feature": ("split_feature", lambda v: [2**40, *v[1:]], "not whole, or too large"),
    "infinite feature": ("split_feature", lambda v: [np.inf, *v[1:]], "not whole, or too large"),
    "a cycle": ("left_child", lambda v: [0, *v[1:]], "do not form a tree"),
    "a child twice": ("right_child", lambda v: [v[0], v[0], *v[2:]], "do not form a tree"),
    "a leaf beyond the last": ("right_child", lambda v: [*v[:-1], -99], "do not form a tree"),
    "a node beyond the last": ("left_child", lambda v: [99, *v[1:]], "do not form a tree"),
    "unknown missing type": ("decision_type", lambda v: [12, *v[1:]], "unknown type of missing values"),
    "negative decision": ("decision_type", lambda v: [-8, *v[1:]], "unknown"),
    "text": ("left_child", lambda v: ["x", *v[1:]], "something other than numbers"),
    "nothing": ("decision_type", lambda v: [], "0 numbers instead of 8"),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_damaged_lines(text: str, name: str) -> None:
    key, damage, expected = _DAMAGES[name]
    head, *trees = re.split(r"^(?=Tree=)", text, flags=re.MULTILINE)

    def line(found: "re.Match[str]") -> str:
        values = [int(v) if v.lstrip("-").isdigit() else float(v) for v in found.group(1).split()]
        return f"{key}={' '.join(map(str, damage(values)))}"

    assert "num_leaves=9\n" in trees[1]
    trees[1] = re.sub(rf"^{key}=(.*)$", line, trees[1], flags=re.MULTILINE)
    message = refusal(head + "".join(trees))
    assert expected in message and "tree 1" in message


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (r"^num_leaves=.*", "num_leaves=", "'num_leaves' of tree 0 is missing or no whole number"),
        (r"^num_leaves=.*", "num_leaves=0", "tree 0 has 0 leaves"),
        (r"^num_leaves=.*", "num_leaves=-3", "tree 0 has -3 leaves"),
        (r"^num_leaves=.*", "num_leaves=1000000000000", "instead of 999999999999"),
        (r"^max_feature_idx=.*", "max_feature_idx=7", "it names 3 features where max_feature_idx promises 8"),
        (r"^max_feature_idx=.*\n", "", "'max_feature_idx' of the header"),
        (r"^num_tree_per_iteration=.*", "num_tree_per_iteration=0", "no multiple of its 0 outputs"),
        (r"^num_tree_per_iteration=.*", "num_tree_per_iteration=2", "9 trees, which is no multiple of its 2 outputs"),
        (r"^feature_names=.*\n", "", "it names 0 features"),
        (r"^num_cat=[1-9].*", "num_cat=50", "'cat_boundaries' of tree"),
        (r"^num_cat=[1-9].*", "num_cat=-1", "of tree"),
        (r"^num_cat=[1-9].*", "num_cat=100000000000000000000000", "of tree"),
        (r"^cat_boundaries=0", "cat_boundaries=1", "categories of tree"),
        (r"^cat_boundaries=.* (\d+)$", r"cat_boundaries=0 -1 \1", "of tree"),
        (r"^cat_boundaries=.* (\d+)$", r"cat_boundaries=0 9999999", "of tree"),
        (r"^cat_threshold=\S+", "cat_threshold=4294967296", "categories of tree"),
        (r"^cat_threshold=\S+", "cat_threshold=-1", "categories of tree"),
        (r"^cat_threshold=\S+", "cat_threshold=1e30", "of tree"),
    ],
)
def test_damaged_words(text: str, pattern: str, replacement: str, expected: str) -> None:
    damaged = re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert damaged != text
    assert expected in refusal(damaged)


def test_a_set_of_categories_that_does_not_exist(text: str) -> None:
    def point_beyond(tree: Tree) -> None:
        tree["threshold"] = np.where(tree["decision_type"] & 1, 40.0, tree["threshold"])

    assert "a set of categories that does not exist" in refusal(rewritten(text, point_beyond))


_TOKENS = st.sampled_from(
    ["nan", "-1", "0", "1e400", "", "x", "inf", "-inf", "3", "99999999999999999999", "0.5", "1_0", "٣"]
)


@st.composite
def mutations(draw: Any, text: str) -> str:
    """A text with a few lines lost, doubled or moved, and a few numbers replaced."""
    lines = text.partition("\nparameters:")[0].split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["lose", "double", "move", "replace", "replace", "replace", "cut"]))
        if kind == "lose":
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        else:
            key, equals, value = lines[at].partition("=")
            words = value.split()
            if words:
                words[draw(st.integers(0, len(words) - 1))] = draw(_TOKENS)
            lines[at] = key + equals + " ".join(words)
        lines = lines or [""]
    return "\n".join(lines)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_text_is_refused_or_explained(text: str, data: st.DataObject) -> None:
    """Never another error, and never a crash of the kernel."""
    mutated = data.draw(mutations(text))
    try:
        ensemble = read_model_text(mutated)
    except ArtifactError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        rows = np.array([[0.1, np.nan, 5.0], [1.0, -1.0, -1.0]])[:, : ensemble.n_features]
        explainer = TreeShap(ensemble)
        found = explainer.explain(rows)
        assert found.engineered is not None
        total = found.engineered.sum(axis=1) + explainer.expected_values[:, None]
        # numbers that were put in can be huge, and cancel
        scale = 1.0 + np.abs(found.engineered).sum(axis=1) + np.abs(explainer.expected_values[:, None])
        assert np.all(np.abs(found.margins - total) <= 1e-9 * scale)


@settings(max_examples=300, deadline=None)
@given(st.text(), st.binary())
def test_any_text_is_refused(noise: str, binary: bytes) -> None:
    for other in (noise, binary.decode("latin-1"), "tree\nversion=v4\n" + noise + "\nend of trees\n"):
        with pytest.raises(ArtifactError):
            read_model_text(other)
