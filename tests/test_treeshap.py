"""The kernel gives the same bits however it is run, and the same values however small its tables are."""

import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_explain.trees.ensemble import Ensemble
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.treeshap.forms import NO_TABLES
from batch_explain.treeshap.kernel import (
    BLOCK_ROWS,
    DEFAULT_TABLE_BYTES,
    ISA_VARIABLE,
    SHARE_ROWS,
    KernelMissingError,
    ShapValues,
    TreeShap,
    aligned,
    choose_isa,
    load_kernel,
)
from batch_explain.treeshap.quads import common_quads
from tests.comparing import assert_close
from tests.conftest import ROOT
from tests.lightgbm_models import NUMERICAL, SPECIAL, booster, constant_tree, contributions, random_tree, train, written

ISAS = ("baseline", "avx2", "avx512")
ROWS = 1_501  # no multiple of anything that the kernel cuts rows by


def _trained() -> str:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 8))
    X[::5, 1] = np.nan
    X[:, 7] = rng.integers(0, 50, 600)
    y = X[:, 0] * X[:, 2] + np.nan_to_num(X[:, 1]) + X[:, 7] % 3
    return train(
        X, np.digitize(y, [0, 2]), rounds=6, objective="multiclass", num_class=3, num_leaves=31, categorical=[7]
    )


def _wide() -> str:
    rng = np.random.default_rng(1)
    return written([random_tree(rng, 255, 40) for _ in range(3)], 40)


def _chains() -> str:
    rng = np.random.default_rng(2)
    trees = [random_tree(rng, 61, 60, chain=1.0, distinct=True), random_tree(rng, 40, 7, chain=0.9)]
    return written(trees, 60, outputs=2)


def _categories() -> str:
    rng = np.random.default_rng(3)
    return written([random_tree(rng, 40, 5, categorical=[1, 3], thresholds=900) for _ in range(20)], 5)


def _stumps() -> str:
    rng = np.random.default_rng(4)
    return written([random_tree(rng, 2, 30), constant_tree(1.0), random_tree(rng, 2, 30)], 30)


MODELS: dict[str, Callable[[], str]] = {
    "trained": _trained, "wide": _wide, "chains": _chains, "categories": _categories, "stumps": _stumps,
}  # fmt: skip


@cache
def ensemble_of(name: str) -> Ensemble:
    ensemble = read_model_text(MODELS[name]())
    assert len(ensemble.feature) > 0
    return ensemble


@cache
def explainer_of(name: str) -> TreeShap:
    return TreeShap(ensemble_of(name))


@cache
def rows_of(name: str, count: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(9)
    ensemble = ensemble_of(name)
    rows = rng.normal(size=(count, ensemble.n_features))
    rows[rng.random(rows.shape) < 0.4] = 0.0
    special = rng.random(rows.shape) < 0.1
    rows[special] = rng.choice(SPECIAL, special.sum())
    for column in np.unique(ensemble.feature[ensemble.category_set >= 0]):
        rows[:, column] = rng.integers(-3, 150, count)
    rows.flags.writeable = False
    return rows


@cache
def expected_of(name: str) -> ShapValues:
    return explainer_of(name).explain(rows_of(name))


def bits(values: ShapValues) -> list[bytes | None]:
    return [None if array is None else array.tobytes() for array in (values.engineered, values.raw, values.margins)]


def assert_same_bits(found: ShapValues, expected: ShapValues) -> None:
    assert bits(found) == bits(expected)


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set; those that this CPU lacks cannot run here, forced or not."""
    if request.param not in load_kernel().instruction_sets():
        pytest.skip(f"this CPU has no {request.param}")
    return str(request.param)


@pytest.mark.parametrize("name", MODELS)
def test_instruction_sets_give_the_same_bits(isa: str, name: str) -> None:
    explainer = TreeShap(ensemble_of(name), isa=isa)
    assert explainer.isa == isa
    weights = _map(len(explainer.used))
    found = explainer.explain(rows_of(name), feature_map=weights)
    assert_same_bits(found, explainer_of(name).explain(rows_of(name), feature_map=weights))
    assert_same_bits(ShapValues(found.engineered, None, found.margins), expected_of(name))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block_rows", [1, 100, 256, 257, 1_024, 1_000_000])
def test_blocks_give_the_same_bits(block_rows: int, name: str) -> None:
    assert_same_bits(explainer_of(name).explain(rows_of(name), block_rows=block_rows), expected_of(name))


def test_combinations_that_are_listed_and_hashed_give_the_same_bits() -> None:
    """Long blocks go through the combinations of two small parts, short ones hash those that occur."""
    rows, arrays = rows_of("wide", 20_000), explainer_of("wide").program.arrays
    parts = np.diff(arrays["first_part"])
    first = arrays["first_part"][:-1][(parts == 2) & (arrays["terms"] > 0)]
    combinations = arrays["patterns"][first] * arrays["patterns"][first + 1]
    assert np.any((combinations > 512) & (combinations < 65_536)) and np.any(combinations > 65_536)
    found = explainer_of("wide").explain(rows, block_rows=20_000)
    assert_same_bits(found, explainer_of("wide").explain(rows, block_rows=128))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threads", [2, 3, 7, 5_000])
def test_threads_give_the_same_bits(threads: int, name: str) -> None:
    count = 200 if threads > 1_000 else ROWS
    rows = rows_of(name)[:count]
    found = explainer_of(name).explain(rows, threads=min(threads, 250))
    assert_same_bits(found, explainer_of(name).explain(rows))


def test_threads_take_share_after_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three one, before any takes its second; all are one thread's values."""
    explainer, rows = explainer_of("stumps"), rows_of("stumps", 2 * 3 * SHARE_ROWS + 1)
    expected = explainer.explain(rows)
    run, all_at_work = TreeShap._run, threading.Barrier(3)
    shares: dict[int, list[Any]] = {}

    def watched(self: TreeShap, source: Any, weights: Any, found: ShapValues, share: Any, block_rows: int) -> None:
        taken = shares.setdefault(threading.get_ident(), [])
        taken.append(share)
        if len(taken) == 1:
            all_at_work.wait(timeout=60)
        run(self, source, weights, found, share, block_rows)

    monkeypatch.setattr(TreeShap, "_run", watched)
    assert_same_bits(explainer.explain(rows, threads=3), expected)
    assert len(shares) == 3
    assert sum(map(len, shares.values())) == 6


@pytest.mark.parametrize("fails", ["calling", "helping"])
def test_no_thread_goes_on_after_an_error(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both_at_work, begun = threading.Barrier(2), []

    def failing_in_one(*arguments: Any) -> None:
        begun.append(arguments)
        if len(begun) <= 2:
            both_at_work.wait(timeout=60)
        if (threading.current_thread() is threading.main_thread()) == (fails == "calling"):
            raise MemoryError("no more")
        time.sleep(0.5)  # until the other has failed

    monkeypatch.setattr(TreeShap, "_run", failing_in_one)
    with pytest.raises(MemoryError, match="no more"):
        explainer_of("stumps").explain(rows_of("stumps", 10 * SHARE_ROWS), threads=2)
    assert len(begun) == 2


@pytest.mark.parametrize("threads", [-1, 0, 3])
def test_no_rows_and_no_threads(threads: int) -> None:
    explainer, rows = explainer_of("stumps"), rows_of("stumps")
    assert_same_bits(explainer.explain(rows, threads=threads), explainer.explain(rows))
    assert explainer.explain(rows[:0], threads=threads).margins.shape == (explainer.n_outputs, 0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "batch", [slice(0, 0), slice(0, 1), slice(700, 701), slice(3, 260), slice(1_400, None), slice(None, None, -7)]
)
def test_batches_give_the_same_bits(batch: slice, name: str) -> None:
    found, whole = explainer_of(name).explain(rows_of(name)[batch]), expected_of(name)
    assert whole.engineered is not None
    assert_same_bits(
        found,
        ShapValues(
            np.ascontiguousarray(whole.engineered[:, :, batch]), None, np.ascontiguousarray(whole.margins[:, batch])
        ),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["F", "strided", "csr", "csr64", "csc", "coo", "unsorted", "split", "array"])
def test_layouts_give_the_same_bits(layout: str, name: str) -> None:
    dense = rows_of(name)
    sparse = sp.csr_matrix(dense)
    rows: Any
    if layout == "F":
        rows = np.asfortranarray(dense)
    elif layout == "strided":
        wide = np.full((ROWS * 2, dense.shape[1] * 3), np.nan)
        rows = wide[::2, ::3]
        rows[:] = dense
    elif layout == "csr64":
        sparse.indices, sparse.indptr = sparse.indices.astype(np.int64), sparse.indptr.astype(np.int64)
        rows = sparse
    elif layout in ("csc", "coo"):
        rows = sparse.asformat(layout)
    elif layout == "unsorted":
        rows = sp.csr_matrix(sparse)
        for start, stop in zip(rows.indptr, rows.indptr[1:], strict=False):
            rows.indices[start:stop] = rows.indices[start:stop][::-1].copy()
            rows.data[start:stop] = rows.data[start:stop][::-1].copy()
    elif layout == "split":
        # each entry stands twice, and halves of it add up to it to the bit; zeros stand there too
        rows = sp.csr_matrix(
            (np.repeat(sparse.data / 2, 2), np.repeat(sparse.indices, 2), sparse.indptr * 2), sparse.shape
        )
        rows.data[np.abs(np.repeat(sparse.data, 2)) < 1e-300] = 0.0
    elif layout == "array":
        rows = sp.csr_array(sparse)
    else:
        rows = sparse
    before = rows.data.copy() if sp.issparse(rows) else rows.copy()
    assert_same_bits(explainer_of(name).explain(rows), expected_of(name))
    np.testing.assert_array_equal(rows.data if sp.issparse(rows) else rows, before)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    block_rows=st.integers(1, 5_000),
    threads=st.integers(1, 4),
    name=st.sampled_from(sorted(MODELS)),
)
def test_any_way_to_run_gives_the_same_bits(seed: int, block_rows: int, threads: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(ROWS)[: rng.integers(1, ROWS)]
    rows: Any = rows_of(name)[chosen]
    if rng.random() < 0.5:
        rows = sp.csr_matrix(rows)
    whole = expected_of(name)
    assert whole.engineered is not None
    found = explainer_of(name).explain(rows, block_rows=block_rows, threads=threads)
    assert_same_bits(found, ShapValues(whole.engineered[:, :, chosen].copy(), None, whole.margins[:, chosen].copy()))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_other_types_are_their_float64_values(dtype: type) -> None:
    rows = np.random.default_rng(0).integers(0, 3, (50, 30)).astype(dtype)
    explainer = explainer_of("stumps")
    assert_same_bits(explainer.explain(rows), explainer.explain(rows.astype(np.float64)))


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_smaller_tables_hold_the_same_values(name: str) -> None:
    ensemble, rows = ensemble_of(name), rows_of(name)[:300]
    whole = explainer_of(name)
    assert whole.table_bytes <= DEFAULT_TABLE_BYTES
    expected = whole.explain(rows)
    assert expected.engineered is not None
    sizes = [whole.table_bytes]
    for bound in (whole.table_bytes // 4, whole.table_bytes // 16, 1):
        explainer = TreeShap(ensemble, table_bytes=bound)
        found = explainer.explain(rows)
        assert found.engineered is not None
        assert_close(found.engineered.transpose(0, 2, 1), expected.engineered.transpose(0, 2, 1), 1e-12)
        assert_close(found.margins.T, expected.margins.T, 1e-12)
        sizes.append(explainer.table_bytes)
    assert sizes == sorted(sizes, reverse=True)
    # the bound is kept unless even the smallest tables are larger
    assert sizes[1] <= max(sizes[0] // 4, sizes[3]) and sizes[2] <= max(sizes[0] // 16, sizes[3])
    assert name != "wide" or sizes[2] <= sizes[0] // 16


@pytest.mark.parametrize("name", ["wide", "chains"])
def test_without_tables_any_way_to_run_gives_the_same_bits(isa: str, name: str) -> None:
    rows = rows_of(name)
    expected = TreeShap(ensemble_of(name), table_bytes=1, isa="baseline").explain(rows)
    explainer = TreeShap(ensemble_of(name), table_bytes=1, isa=isa)
    assert (explainer.program.arrays["terms"] == NO_TABLES).any()
    for block_rows, threads in ((256, 1), (1_000, 1), (BLOCK_ROWS, 2)):
        assert_same_bits(explainer.explain(rows, block_rows=block_rows, threads=threads), expected)


def test_without_tables_features_that_are_split_in_every_way() -> None:
    """One path that splits each feature with every kind of missing value: more than 2 ** 32 patterns together."""
    rng = np.random.default_rng(0)
    tree = random_tree(rng, 60, 8, chain=1.0, distinct=True)
    tree["decision_type"] = np.array(list(NUMERICAL.values()))[np.arange(59) // 8 % len(NUMERICAL)]
    text = written([tree], 8)
    rows = rng.uniform(-1, 1, (500, 8))
    rows[rng.random(rows.shape) < 0.15] = np.nan
    rows[rng.random(rows.shape) < 0.1] = 0.0
    explainer = TreeShap(read_model_text(text), table_bytes=1)
    assert (explainer.program.arrays["terms"] == NO_TABLES).any()
    found = explainer.explain(rows)
    assert found.engineered is not None
    expected = contributions(booster(text), rows)
    assert_close(found.engineered.transpose(0, 2, 1), expected[:, :, :-1][:, :, explainer.used], 1e-10)


def test_tables_of_others() -> None:
    """``make_array`` holds the tables: one digest for the same tables, another for others."""
    held: dict[str, np.ndarray] = {}
    fills: list[str] = []

    def make_array(digest: str, doubles: int, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        if digest not in held:
            held[digest] = aligned(doubles)
            fill(held[digest])
            fills.append(digest)
        return held[digest]

    for name in ("trained", "chains", "trained"):
        explainer = TreeShap(ensemble_of(name), make_array=make_array)
        assert_same_bits(explainer.explain(rows_of(name)), expected_of(name))
        assert explainer.table_bytes == held[fills[-1]].nbytes or name == "trained"
    TreeShap(ensemble_of("trained"), make_array=make_array, isa="baseline")
    assert len(fills) == len(held) == 2


@pytest.mark.parametrize("doubles", [0, 1, 7, 1_000])
def test_aligned(doubles: int) -> None:
    array = aligned(doubles)
    assert array.shape == (doubles,) and array.dtype == np.float64 and not array.any()
    assert array.ctypes.data % 64 == 0 or doubles == 0


# ---- features, raw and engineered ------------------------------------------------------------------------------------


def _map(used: int, raw: int = 4) -> sp.csr_matrix:
    rng = np.random.default_rng(8)
    weights = sp.random(raw, used, density=0.5, random_state=8, format="csr")
    weights.data = rng.normal(size=len(weights.data))
    return sp.vstack([weights, sp.csr_matrix((1, used))], format="csr")  # the last raw feature has no column


@pytest.mark.parametrize("name", MODELS)
def test_raw_values_are_the_map_times_engineered_ones(name: str) -> None:
    explainer, rows = explainer_of(name), rows_of(name)
    weights = _map(len(explainer.used))
    both = explainer.explain(rows, feature_map=weights)
    assert both.engineered is not None and both.raw is not None
    for found, engineered in zip(both.raw, both.engineered, strict=True):
        assert_close(found.T, (weights @ engineered).T, 1e-12)
    assert not both.raw[:, -1].any()
    only = explainer.explain(rows, feature_map=weights, engineered=False, block_rows=300, threads=2)
    assert only.engineered is None
    assert_same_bits(only, ShapValues(None, both.raw, both.margins))
    neither = explainer.explain(rows, engineered=False)
    assert_same_bits(neither, ShapValues(None, None, both.margins))


def test_features_that_no_tree_splits_on() -> None:
    """They are not in the results, and LightGBM's values of them are exactly 0; their values are not looked at."""
    ensemble, rows = ensemble_of("stumps"), rows_of("stumps")
    explainer = explainer_of("stumps")
    assert 0 < len(explainer.used) <= 2 and explainer.used.tolist() == sorted({*ensemble.feature.tolist()})
    expected = contributions(booster(MODELS["stumps"]()), rows)[0, :, :-1]
    unused = np.setdiff1d(np.arange(30), explainer.used)
    assert not expected[:, unused].any()
    others = rows.copy()
    others[:, unused] = np.nan
    assert_same_bits(explainer.explain(others), expected_of("stumps"))
    assert_same_bits(explainer.explain(sp.csr_matrix(others)), expected_of("stumps"))


def test_a_wide_sparse_matrix_of_few_used_columns() -> None:
    width = 40_000
    rng = np.random.default_rng(0)
    tree = random_tree(rng, 20, width)
    explainer = TreeShap(read_model_text(written([tree], width)))
    rows = sp.random(500, width, density=0.002, random_state=0, format="csr")
    rows = sp.hstack([rows, sp.csr_matrix((500, 0))], format="csr")
    picked = rows[:, explainer.used].toarray()
    picked[::2] = rng.normal(size=picked[::2].shape)
    rows = rows.tolil()
    rows[:, explainer.used] = picked
    rows = rows.tocsr()
    found = explainer.explain(rows)
    assert found.engineered is not None and found.engineered.any()
    assert_same_bits(found, explainer.explain(rows.toarray()))


# ---- choosing an instruction set -------------------------------------------------------------------------------------


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    yield monkeypatch


def test_the_best_instruction_set_is_chosen(no_variable: pytest.MonkeyPatch) -> None:
    available = load_kernel().instruction_sets()
    assert available[0] == "baseline" and set(available) <= set(ISAS)
    assert TreeShap(ensemble_of("stumps")).isa == available[-1]
    assert choose_isa(["baseline", "avx2"], None) == "avx2"


def test_the_environment_variable_is_honoured(no_variable: pytest.MonkeyPatch) -> None:
    no_variable.setenv(ISA_VARIABLE, "baseline")
    assert TreeShap(ensemble_of("stumps")).isa == "baseline"
    assert choose_isa(["baseline", "avx2"], "avx2") == "avx2"  # an argument counts more
    no_variable.setenv(ISA_VARIABLE, "")
    assert choose_isa(["baseline", "avx2"], None) == "avx2"


def test_the_environment_variable_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Another process, another instruction set, the same bits."""
    (tmp_path / "model.txt").write_text(MODELS["chains"]())
    np.save(tmp_path / "rows.npy", rows_of("chains"))
    code = """if True:
        import sys, zlib, numpy
        from batch_explain.treeshap.kernel import TreeShap
        from batch_explain.trees.lightgbm_text import read_model_text
        explainer = TreeShap(read_model_text(open("model.txt").read()))
        found = explainer.explain(numpy.load("rows.npy"))
        sys.stdout.write(f"{explainer.isa} {zlib.crc32(found.engineered.tobytes())}")
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), ISA_VARIABLE: "baseline"}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    engineered = expected_of("chains").engineered
    assert engineered is not None
    assert answer == f"baseline {zlib.crc32(engineered.tobytes())}"


@pytest.mark.parametrize("wrong", ["avx1024", "AVX2", "neon", "0"])
def test_an_instruction_set_that_is_not_there(wrong: str, no_variable: pytest.MonkeyPatch) -> None:
    expected = rf"'{wrong}' \(BATCH_EXPLAIN_ISA\) is not one that this CPU has: baseline"
    with pytest.raises(KernelMissingError, match=expected):
        TreeShap(ensemble_of("stumps"), isa=wrong)
    no_variable.setenv(ISA_VARIABLE, wrong)
    with pytest.raises(KernelMissingError, match=expected):
        TreeShap(ensemble_of("stumps"))


@given(st.lists(st.lists(st.integers(0, 14), unique=True, max_size=13), max_size=9))
def test_common_quads_divide_each_group_as_it_would_be_alone(groups: list[list[int]]) -> None:
    quads = common_quads(groups)
    for number, features in enumerate(groups):
        own = [quad.features for quad in quads if number in quad.groups]
        assert len(own) == -(-len(features) // 4)
        assert {feature for quad in own for feature in quad} >= set(features)
    for quad in quads:
        assert 1 <= len(set(quad.features)) == len(quad.features) <= 4
        assert sorted(set(quad.groups)) == quad.groups != []


def test_groups_look_up_their_common_features_together() -> None:
    apart = common_quads([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert [quad.groups for quad in apart] == [[0], [1]]
    shared, rest = common_quads([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    assert [shared.groups, rest.groups] == [[0, 1], [0, 1]]
    (extended,) = common_quads([[1, 2], [3, 2, 1]])  # there is a place for 3
    assert sorted(extended.features) == [1, 2, 3]
