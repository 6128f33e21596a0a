"""Nothing in a hostile file runs; everything in a genuine one opens, whatever wrote it."""

import bz2
import copyreg
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import resource
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.ensemble import HistGradientBoostingClassifier

import batch_explain as bx
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.explainers.models import load_model
from batch_explain.explainers.pickles import open_pickle
from batch_explain.explainers.skeleton import Thing, skeleton_of
from batch_explain.storage.filesystems import Location
from tests import hostile
from tests.conftest import ROOT, Small, once

HERE = "tests.test_pickles"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def opened(data: bytes, folder: Path, **options: Any) -> Any:
    """What this program makes of a file's bytes."""
    place = folder / "file.pkl"
    place.write_bytes(data)
    return load_model(Location(str(place)), **options)


def opened_file(path: Path, trust: Sequence[str] = ()) -> Any:
    return open_pickle(Path(path).read_bytes(), Location(str(path)), "explainer", trust)


def refusal(data: bytes, folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        opened(data, folder)
    return str(caught.value)


# Hostile files.


@pytest.mark.parametrize("name", hostile.NAMES)
def test_a_hostile_file_is_refused_before_it_runs(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    place = tmp_path / "scoring_explainer.pkl"
    place.write_bytes(hostile.make(name, str(canary)))
    before = set(tmp_path.iterdir())
    with pytest.raises(ArtifactError):
        bx.load_explainer(place)
    assert set(tmp_path.iterdir()) == before


def test_the_hostile_files_are_alive(tmp_path: Path) -> None:
    """Opened as Python opens them, most do plant their canary."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    alive = set(done.stdout.splitlines())
    assert len(hostile.NAMES) >= 110
    assert len(alive) >= 70, sorted(set(hostile.NAMES) - alive)
    assert {
        "system of protocol 0", "system of protocol 5", "builtins.exec", "INST", "STACK_GLOBAL", "getattr chain",
        "object array of joblib", "scipy distribution", "NEWOBJ memmap", "set state of the instance", "zlib",
    } <= alive  # fmt: skip


@once
def test_the_command_line_ends_with_2_and_names_it(tmp_path: Path, small: Small) -> None:
    model, canary = tmp_path / "model.pkl", tmp_path / "canary"
    model.write_bytes(hostile.make("os.system", str(canary)))
    small.write(tmp_path / "rows" / "a.parquet")
    command = [sys.executable, "-m", "batch_explain", "run", "--input", tmp_path / "rows", "--model", model]
    command += ["--explainer", small.explainer, "--output", tmp_path / "out", "--scheduler", "sync"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "os.system" in done.stderr and "do not use the file" in done.stderr and "Traceback" not in done.stderr
    assert not canary.exists()


def test_a_registered_extension_code_is_looked_up_on_the_list(tmp_path: Path) -> None:
    """The unpickler's own cache of extension codes would skip the list."""
    canary = tmp_path / "canary"
    copyreg.add_extension("posix", "system", 240)
    try:
        data = b"\x80\x02\x82\xf0" + hostile.body((f"touch {canary}",), 2) + b"R."
        pickle.loads(data)  # alive, and now it is in the cache
        assert canary.exists()
        canary.unlink()
        assert "posix.system" in refusal(data, tmp_path)
        assert not canary.exists()
    finally:
        copyreg.remove_extension("posix", "system", 240)
    assert "extension code" in refusal(b"\x80\x02\x82\xf1.", tmp_path)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("bytes", b"\x80\x04\x8e" + (10**10).to_bytes(8, "little") + b"."),
        ("text", b"\x80\x04\x8d" + (10**10).to_bytes(8, "little") + b"."),
        ("bytearray", b"\x80\x05\x96" + (10**10).to_bytes(8, "little") + b"."),
        ("frame", b"\x80\x04\x95" + (10**10).to_bytes(8, "little") + b"."),
        ("number", b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"."),
        ("bytearray by call", hostile.call("builtins", "bytearray", 10**10)),
        ("bytes by call", hostile.call("builtins", "bytes", 10**10)),
        ("set of a range", hostile.whole(hostile.named("builtins", "set"), b"(", hostile.named("builtins", "range"),
                                         hostile.body((10**9,)), b"RtR")),
        ("text type", hostile.call("numpy", "dtype", "U999999999")),
        ("empty array", hostile.whole(hostile.named("numpy.core.multiarray", "_reconstruct"), b"(",
                                      hostile.named("numpy", "ndarray"), hostile.body((10**11,)), b"C\x01btR")),
    ],
)  # fmt: skip
def test_absurd_sizes_take_no_memory(what: str, data: bytes, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        message = refusal(data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "not a readable pickle" in message


def test_a_joblib_array_that_is_not_there_takes_no_memory(tmp_path: Path) -> None:
    stream = io.BytesIO()
    joblib.dump(np.arange(7, dtype=np.int64), stream)
    data = stream.getvalue()
    assert data.count(b"K\x07\x85") == 1
    data = data.replace(b"K\x07\x85", b"\x8a\x05\x00\x00\x00\x00\x10\x85")  # 2 ** 36 of them
    data = data.replace(b"\x95" + data[3:11], b"", 1)  # without the frame, whose length has changed
    assert "ends early" in refusal(data, tmp_path)


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_not_unpacked(compress: Any, tmp_path: Path) -> None:
    """A gigabyte of zeros: memory stays bounded, whatever the file expands to."""
    pieces = b"\x80\x04\x8e" + (10**9).to_bytes(8, "little") + bytes(70_000_000)
    data = compress(pieces)
    assert len(data) < 500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(data, tmp_path)
    assert "expands to more than" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_bytes_are_never_taken_for_pointers(tmp_path: Path) -> None:
    """numpy believes the flags of a pickled type: without that of objects, an array's bytes are its pointers."""
    forged = hostile.whole(
        hostile.named("numpy.core.multiarray", "_reconstruct"), b"(", hostile.named("numpy", "ndarray"),
        hostile.body((0,)), b"C\x01btR(K\x01", hostile.body((1,)),
        hostile.named("numpy", "dtype"), hostile.body(("O8", False, True)), b"R",
        hostile.body((3, "|", None, None, None, -1, -1, 0)), b"b\x89C\x08AAAAAAAAtb",
    )  # fmt: skip
    assert "not a readable pickle" in refusal(forged, tmp_path)
    fields = hostile.whole(
        hostile.named("numpy", "dtype"), hostile.body(("V8", False, True)), b"R(K\x03U\x01|N",
        hostile.body(("a",)), b"}U\x01a(", hostile.named("numpy", "dtype"), hostile.body(("O8", False, True)),
        b"RK\x00tsK\x08K\x01K\x00tb",
    )  # fmt: skip
    assert "objects" in refusal(fields, tmp_path)
    larger = hostile.whole(
        hostile.named("numpy", "dtype"), hostile.body(("V8", False, True)), b"R(K\x03U\x01|N",
        hostile.body(("a",)), b"}U\x01a(", hostile.named("numpy", "dtype"), hostile.body(("f8", False, True)),
        b"RK\x00tsJ\x00\x00\x01\x00K\x01K\x00tb",
    )  # fmt: skip
    assert "structured type" in refusal(larger, tmp_path)


def test_a_key_too_deep_to_hash_is_refused(tmp_path: Path) -> None:
    """Hashing tuples 200,000 deep overflows the stack of C, which ends the process."""
    assert "tuples" in refusal(b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s.", tmp_path)


# Genuine files.


def _zoo() -> list[Any]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({0: [1.0, np.nan], 1: pd.to_datetime(["2020", None]), 2: pd.Categorical([1, 2])})
    return [
        {"a": [1, 2.5, "x", b"y", None, True, (1, 2), {3}, frozenset({4}), 2**70, 1j, slice(1, 2), bytearray(b"z")]},
        OrderedDict(a=1), defaultdict(int, a=1), deque([1, 2], 5), type(None), int, object,
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">i4"),
        np.array(["a", None, 1.5], dtype=object), np.array(["ab", "c"]), np.array([], dtype=np.float32),
        np.array(["2020-01-01"], dtype="M8[ns]"), np.array([(1, 2.0)], dtype=[("a", "u1"), ("b", "f8")]),
        np.ma.array([1, 2], mask=[0, 1]), np.float64(1.5), np.str_("s"), np.datetime64("2020", "D"), np.log1p,
        rng, np.random.RandomState(3), scipy.sparse.random(5, 5, 0.5, "csr", random_state=0),
        scipy.sparse.eye(3, format="csc"), frame.select_dtypes("number"), frame, frame[0],
        pd.Timestamp("2020", tz="UTC"), pd.Timedelta(1), pd.NaT, pd.RangeIndex(3),
        pd.Index([1.5]), pd.date_range("2020", periods=3, tz="UTC"), pd.MultiIndex.from_product([[1, 2], [3.5]]),
    ]  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ma.MaskedArray):
        return bool((one.filled(9) == other.filled(9)).all())
    if isinstance(one, np.ndarray):
        return one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=") and np.array_equal(one, other)
    if scipy.sparse.issparse(one):
        return (one != other).nnz == 0 and one.format == other.format
    if isinstance(one, pd.DataFrame | pd.Series | pd.Index):
        return bool(one.equals(other))
    if isinstance(one, np.random.Generator | np.random.RandomState):
        return bool(one.normal() == other.normal())
    return one is other if one is pd.NaT else bool(one == other)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "joblib", "zlib", "gzip", "bz2", "xz", "lzma"])
def test_what_models_hold_comes_back(protocol: Any, tmp_path: Path) -> None:
    for thing in _zoo():
        if isinstance(protocol, int):
            data = pickle.dumps(thing, protocol)
        else:
            stream = io.BytesIO()
            joblib.dump(thing, stream, 0 if protocol == "joblib" else (protocol, 3))
            data = stream.getvalue()
        found = opened(data, tmp_path)
        assert type(found) is type(thing)
        assert _same(found, thing), (thing, found)
        skeleton_of(data)


def _estimators() -> list[Any]:
    """One of each of scikit-learn's own, as far as they can be made without arguments."""
    from sklearn.utils import all_estimators

    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, kind in all_estimators():
            try:
                made.append(kind())
            except TypeError:
                continue
    return made


def test_scikit_learns_own_estimators_open(tmp_path: Path) -> None:
    """Fitted where they can be, and they predict as before."""
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    held = (
        "AdaBoostClassifier", "BaggingRegressor", "BayesianRidge", "CalibratedClassifierCV", "DecisionTreeRegressor",
        "ElasticNetCV", "ExtraTreesClassifier", "GaussianNB", "GaussianProcessRegressor",
        "GradientBoostingRegressor", "HistGradientBoostingClassifier", "IterativeImputer", "KBinsDiscretizer",
        "KMeans", "KNeighborsClassifier", "KernelDensity", "LinearDiscriminantAnalysis", "LinearSVC",
        "LogisticRegression", "MLPRegressor", "NuSVC", "PCA", "PowerTransformer", "QuantileTransformer",
        "RandomForestRegressor", "Ridge", "SGDClassifier", "SVC", "SelectKBest", "SplineTransformer",
        "TargetEncoder", "TransformedTargetRegressor", "TruncatedSVD",
    )  # fmt: skip
    rows = np.abs(np.random.default_rng(0).normal(size=(40, 4)))
    classes = (rows[:, 0] > 0.6).astype(int)
    composed = [
        make_pipeline(
            ColumnTransformer([("s", StandardScaler(), [0, 1])], remainder="passthrough"), SVC(probability=False)
        ),
        make_pipeline(
            FeatureUnion([("a", StandardScaler()), ("b", FunctionTransformer(np.log1p))]), DecisionTreeClassifier()
        ),
        GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2]}, cv=2),
    ]
    fitted = 0
    for estimator in [*_estimators(), *composed]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, few in (("n_estimators", 5), ("max_iter", 50), ("n_init", 1)):
                if name in estimator.get_params() and "Search" not in type(estimator).__name__:
                    estimator.set_params(**{name: few})
            if type(estimator).__name__ in held or estimator in composed:
                estimator.fit(rows, classes)
                fitted += 1
            for data in (pickle.dumps(estimator, 2), pickle.dumps(estimator, 5)):
                found = opened(data, tmp_path)
                assert type(found) is type(estimator)
            if type(estimator).__name__ in held and hasattr(estimator, "predict"):
                assert np.array_equal(found.predict(rows), estimator.predict(rows)), estimator
    assert fitted >= len(composed) + 25
    text = TfidfVectorizer().fit(["a few words", "more words"])
    assert (opened(pickle.dumps(text), tmp_path).transform(["words"]) != text.transform(["words"])).nnz == 0


def test_lightgbm_models_open(tmp_path: Path, small: Small) -> None:
    import lightgbm

    rows = np.random.default_rng(0).normal(size=(200, 3))
    model = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(rows, rows[:, 0])
    for thing in (model, model.booster_):
        assert np.array_equal(opened(pickle.dumps(thing), tmp_path).predict(rows), thing.predict(rows))


@pytest.mark.automl
def test_automls_models_and_explainers_open(automl: Any) -> None:
    """Every kind; on every Python they can be looked at."""
    from tests.automl_fixtures import KINDS

    own = "tests.automl_fixtures.learners.ThresholdClassifier"
    for kind in KINDS:
        paths = automl(kind)
        for path in (paths.model, paths.explainer):
            assert opened_file(path, [own]) is not None
            assert isinstance(skeleton_of(Path(path).read_bytes()).root, Thing)


@pytest.mark.automl
def test_a_compiled_link_is_the_installed_one(automl: Any) -> None:
    """An explainer holds the bytecode of shap's link function: it is never made a function."""
    import shap

    explainer = opened_file(automl("regression").explainer)
    assert explainer._tree_explainer._tree_explainer.link is shap.links.identity


# What is trusted.


class OwnClassifier(HistGradientBoostingClassifier):
    """A user's own learner."""


class Doubler(TransformerMixin, BaseEstimator):
    """A user's own."""

    def fit(self, X: Any, y: Any = None) -> "Doubler":
        return self

    def transform(self, X: Any) -> Any:
        return X * 2


def test_a_class_of_the_users_own_is_refused_by_name_until_it_is_trusted(tmp_path: Path) -> None:
    data = pickle.dumps(Doubler())
    message = refusal(data, tmp_path)
    assert f"--trust {HERE}.Doubler" in message and "refused before it ran" in message
    assert isinstance(opened(data, tmp_path, trust=[f"{HERE}.Doubler"]), Doubler)
    with pytest.raises(ArtifactError, match="Doubler"):
        opened(data, tmp_path, trust=[HERE, f"{HERE}.*", f"{HERE}.Doubler.fit", "Doubler"])


@pytest.mark.parametrize("name", ["*", "my_module.*", "Doubler", "a.b.", "a b.c", ""])
def test_only_exact_names_can_be_trusted(name: str, tmp_path: Path, small: Small) -> None:
    with pytest.raises(OptionError, match="trust"):
        bx.explain_dataset(input="x", model=small.model, explainer=small.explainer, output=tmp_path / "o", trust=[name])


@once
def test_a_run_with_trusted_names_says_so_and_resumes_with_the_same(tmp_path: Path, small: Small) -> None:
    """And ``verify`` does not believe what the folder says. Worker processes: ``test_workers_die.py``."""
    pipeline = joblib.load(small.model)
    pipeline.steps[-1][1].__class__ = OwnClassifier
    model = tmp_path / "model.pkl"
    joblib.dump(pipeline, model)
    small.write(tmp_path / "rows" / "a.parquet", small.frame.head(60))
    options: dict[str, Any] = {
        "input": tmp_path / "rows", "model": model, "explainer": small.explainer, "output": tmp_path / "out",
        "scheduler": "sync", "partition_rows": 30,
        "sha256": {"model": hashlib.sha256(model.read_bytes()).hexdigest()},
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="--trust"):
        bx.explain_dataset(**options)
    run = bx.explain_dataset(**options, trust=f"{HERE}.OwnClassifier")
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["options"]["trust"] == [f"{HERE}.OwnClassifier"]
    assert any(f"{HERE}.OwnClassifier" in decision for decision in info["decisions"])
    assert run.info["rows"]["explained"] == 60
    with pytest.raises((OptionError, ArtifactError), match="trust"):
        bx.explain_dataset(**options, resume=True)
    refused = bx.verify_run(tmp_path / "out", recompute=10)
    assert not refused.ok and "OwnClassifier" in str(refused.problems[0])
    assert bx.verify_run(tmp_path / "out", recompute=10, trust=[f"{HERE}.OwnClassifier"]).ok


def test_another_file_than_the_fingerprint_says_is_not_opened(tmp_path: Path, small: Small) -> None:
    with pytest.raises(ArtifactError, match="SHA-256"):
        opened(hostile.make("os.system", str(tmp_path / "canary")), tmp_path, sha256="0" * 64)
    with pytest.raises(ArtifactError, match="SHA-256"):
        bx.load_explainer(small.explainer, sha256="0" * 64)
    digest = hashlib.sha256(small.explainer.read_bytes()).hexdigest()
    assert bx.load_explainer(small.explainer, sha256=digest.upper()).n_outputs == 1
    for wrong in ("abc", "model=abc", "other=" + "0" * 64, ["model=" + "0" * 64] * 2):
        with pytest.raises(OptionError, match="sha256"):
            bx.explain_dataset(input="x", explainer=small.explainer, output=tmp_path / "o", sha256=wrong)


# Other Pythons, other versions.


def test_a_pickle_of_what_is_not_here_says_what_it_was_made_with(tmp_path: Path) -> None:
    explainer = "azureml.interpret.scoring.scoring_explainer._scoring_explainer"
    missing = hostile.named(explainer.replace("azureml", "azureml_not_here"), "TreeScoringExplainer")
    message = refusal(hostile.whole(missing, b")\x81."), tmp_path)
    assert "azureml_not_here" in message and "--trust" in message
    state = hostile.body({"_sklearn_version": "0.24.1", "mean_": 1})
    old = hostile.whole(
        hostile.named("sklearn.preprocessing._data", "StandardScaler"), b")\x81", state, b"b",
        hostile.named("sklearn.ensemble._gb_losses", "LeastSquaresError"), b")\x81\x86",
    )  # fmt: skip
    message = refusal(old, tmp_path)
    assert (
        "_gb_losses" in message
        and "made with scikit-learn 0.24.1" in message
        and "versions it was made with" in message
    )


# Looking without running.


def test_inspecting_runs_nothing(tmp_path: Path) -> None:
    """Of hostile files neither, whatever they are; and what they name is shown."""
    for name in hostile.NAMES:
        canary, place = tmp_path / "canary", tmp_path / "file.pkl"
        place.write_bytes(hostile.make(name, str(canary)))
        before = set(tmp_path.iterdir())
        try:
            found = bx.inspect_artifact(place)
        except ArtifactError:
            continue
        finally:
            assert set(tmp_path.iterdir()) == before, name
        if name.startswith("system of"):
            assert found.refused == ("posix.system",)


def test_a_model_text_and_a_pickled_model_are_described(tmp_path: Path) -> None:
    import lightgbm

    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(500, 3)), columns=list("abc"))
    model = lightgbm.LGBMClassifier(n_estimators=7, num_leaves=5, verbose=-1).fit(rows, rows.a > rows.b * rows.c)
    assert (model.booster_.feature_importance() > 0).sum() == 3
    model.booster_.save_model(tmp_path / "model.txt")
    joblib.dump(model, tmp_path / "model.pkl", compress=3)
    leaves = model.booster_.trees_to_dataframe().query("split_feature.isna()")
    base = model.booster_.predict(rows.head(1), pred_contrib=True)[0, -1]
    for name in ("model.txt", "model.pkl"):
        found = bx.inspect_artifact(tmp_path / name)
        assert found.task == "classification" and found.trees is not None
        assert (found.trees.trees, found.trees.leaves, found.trees.used_features) == (7, len(leaves), 3)
        assert found.trees.expected_values[0] == pytest.approx(base, abs=1e-12)
        assert found.trees.groups > 0 and found.trees.microseconds > 0
        assert found.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert found.classes == (False, True) and "zlib" in found.format and not found.refused


@pytest.mark.automl
def test_an_explainer_is_described_as_it_is(automl: Any) -> None:
    """Against the opened object."""
    from tests.automl_fixtures.quiet import quiet

    for kind in ("multiclass", "regression", "wide_binary"):
        paths = automl(kind)
        found = bx.inspect_artifact(paths.explainer)
        with quiet():
            explainer = joblib.load(paths.explainer)
        assert found.kind == "TreeScoringExplainer" and found.outputs == paths.outputs
        assert found.task == ("classification" if paths.outputs > 1 else "regression or two classes")
        assert found.engineered_features == tuple(explainer.engineered_features)
        assert found.raw_features == tuple(explainer.raw_features)
        assert found.trees is not None and found.trees.trees == explainer._model.booster_.num_trees()
        assert found.feature_map is not None and found.feature_map[1] == len(explainer.engineered_features)
        assert found.made_with["python"] == "3.10" and not found.refused


@pytest.mark.automl
@pytest.mark.parametrize("kind", ["PreprocWrapper", "StandardScalerWrapper"])
def test_a_wrapped_preprocessor_is_one(kind: str, tmp_path: Path) -> None:
    """AutoML's wrapper imports and calls the class that its state names, when it is fitted."""
    wrapper = hostile.named("azureml.automl.runtime.shared.model_wrappers", kind) + b")\x81"
    state = {"cls": None, "args": {"args": ["touch", str(tmp_path / "canary")]}, "model": None}
    named = {"module_name": "subprocess", "class_name": "Popen"}
    assert "subprocess.Popen" in refusal(hostile.whole(wrapper, hostile.body({**state, **named}), b"b"), tmp_path)
    genuine = {"module_name": "sklearn.preprocessing._data", "class_name": "StandardScaler"}
    assert type(opened(hostile.whole(wrapper, hostile.body({**state, **genuine}), b"b"), tmp_path)).__name__ == kind
