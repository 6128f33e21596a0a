"""The compiled TreeSHAP kernel in runs: default, limits, fallback, tables shared by processes, raw values only."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import batch_explain as bx
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.explainers import tree
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.options import RunOptions
from batch_explain.storage.shared import shared_array
from batch_explain.trees.lightgbm_text import read_model_text
from batch_explain.treeshap.kernel import ISA_VARIABLE, TreeShap
from tests.comparing import assert_close, digests, frame_of, values_of
from tests.conftest import Engineered, once


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared tables of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def feature_map(tmp_path: Path, engineered: Engineered) -> Path:
    """Twelve engineered features of four raw ones; f10 maps to two of them, f11 to none."""
    pairs = [(f"raw{i % 3}", f"f{i}", 2.0) for i in range(11)] + [("raw3", "f10", 6.0)]
    raw, features, weights = zip(*pairs, strict=True)
    path = tmp_path / "map.parquet"
    pq.write_table(pa.table({"raw_feature": raw, "engineered_feature": features, "weight": weights}), path)
    return path


def run_on(engineered: Engineered, folder: Path, **options: Any) -> bx.Run:
    source = folder / "rows.parquet"
    if not source.exists():
        engineered.frame.to_parquet(source, row_group_size=700)
    values = {
        "explainer": engineered.explainer,
        "scheduler": "sync",
        "output": folder / "out",
        "report": False,
        **options,
    }
    return bx.explain_dataset(input=source, **values)


def lightgbms_own(engineered: Engineered) -> np.ndarray:
    """Shape (output, row, feature)."""
    return np.asarray(engineered.booster.predict(engineered.frame, pred_contrib=True))[None, :, :-1]


def test_run_json_names_the_kernel(engineered: Engineered, tmp_path: Path) -> None:
    run = run_on(engineered, tmp_path)
    assert run.info["treeshap"]["kernel"] in ("baseline", "avx2", "avx512")
    assert run.info["treeshap"]["tables"] == "of each process"
    assert 0 < run.info["treeshap"]["table_bytes"] <= run.info["options"]["table_memory"] == 400_000_000


@pytest.mark.parametrize("scheduler", ["sync", pytest.param("processes", marks=once)])
def test_without_the_kernel_lightgbm_answers_and_the_run_says_so(
    engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "none-such")
    run = run_on(engineered, tmp_path, scheduler=scheduler, workers=2)
    assert run.info["treeshap"] == {"kernel": "lightgbm"}
    assert any("pred_contrib" in said and "none-such" in said for said in run.info["decisions"])
    assert_close(values_of(run, "engineered", list(engineered.frame)), lightgbms_own(engineered), 1e-12)


def test_a_newer_model_text_is_left_to_lightgbm(
    engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_explain.trees.lightgbm_text.VERSIONS", ("v3",))
    run = run_on(engineered, tmp_path)
    assert run.info["treeshap"] == {"kernel": "lightgbm"}
    assert any("'v4'" in said for said in run.info["decisions"])
    assert_close(values_of(run, "engineered", list(engineered.frame)), lightgbms_own(engineered), 1e-12)


def test_a_worker_without_the_kernel_is_refused(engineered: Engineered, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write other bits than the others."""
    planned = bx.load_explainer(engineered.explainer).learned()
    monkeypatch.setenv(ISA_VARIABLE, "none-such")
    with pytest.raises(ArtifactError, match=r"none-such.*same package on every worker"):
        bx.load_explainer(engineered.explainer).take_learned(planned)


def test_a_worker_with_the_kernel_follows_a_plan_without(engineered: Engineered) -> None:
    explainer = bx.load_explainer(engineered.explainer)
    explainer.take_learned({"treeshap": "lightgbm"})
    assert explainer.treeshap == {"kernel": "lightgbm"}
    np.testing.assert_allclose(
        explainer.explain(engineered.frame).values.transpose(0, 2, 1), lightgbms_own(engineered), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("limits", [(-1, 5), (7, -1), (4, 9), (3, 3)])
def test_dense_and_sparse_rows_have_limits_of_their_own(
    limits: tuple[int, int], kernel: bool, engineered: Engineered, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setenv(ISA_VARIABLE, "none-such")
    booster = engineered.booster
    rows = np.nan_to_num(engineered.frame.to_numpy()[:200])
    explainer = TreeExplainer(booster.model_to_string(), iterations=limits[0], sparse_iterations=limits[1])
    for given, limit in ((rows, limits[0]), (sp.csr_matrix(rows), limits[1])):
        expected = booster.predict(rows, pred_contrib=True, num_iteration=limit)
        found = explainer.explain(given)
        np.testing.assert_allclose(found.values[0].T, expected[:, :-1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.expected_values, expected[0, -1:], rtol=0, atol=1e-12)
        margins = explainer.explain_used(given).margins
        np.testing.assert_allclose(margins, explainer.margins(given), rtol=0, atol=1e-12)


def test_explaining_a_model_text_imports_neither_lightgbm_nor_pandas_nor_sklearn(engineered: Engineered) -> None:
    code = (
        "import sys, numpy as np, batch_explain as bx\n"
        f"bx.load_explainer({str(engineered.explainer)!r}).explain(np.zeros((3, 12)))\n"
        "print([name for name in ('lightgbm', 'pandas', 'sklearn', 'distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_a_damaged_text_never_reaches_lightgbm(
    engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads beyond its arrays where children do not form a tree."""
    text = engineered.explainer.read_text()
    line = next(line for line in text.split("\n") if line.startswith("left_child="))
    (tmp_path / "bad.txt").write_text(text.replace(line, "left_child=" + " ".join(["999"] * len(line.split())), 1))
    monkeypatch.setattr(lightgbm, "Booster", None)
    with pytest.raises(ArtifactError, match=r"bad\.txt: .*do not form a tree"):
        bx.load_explainer(tmp_path / "bad.txt")


def test_rows_of_another_width_are_refused(engineered: Engineered) -> None:
    explainer = bx.load_explainer(engineered.explainer)
    with pytest.raises(ValueError, match="11 columns"):
        explainer.explain_used(np.zeros((2, 11)))
    with pytest.raises(ValueError, match="13 columns"):
        TreeShap(read_model_text(engineered.explainer.read_text())).explain(sp.csr_matrix((2, 13)))


@once
def test_table_memory_bounds_the_tables_and_changes_nothing_else(
    engineered: Engineered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = engineered.booster.model_to_string()
    small, large = TreeExplainer(text, table_bytes=100_000), TreeExplainer(text)
    rows = engineered.frame.to_numpy()
    np.testing.assert_allclose(small.explain(rows).values, large.explain(rows).values, rtol=0, atol=1e-12)
    assert small.treeshap is not None and large.treeshap is not None
    assert small.treeshap["table_bytes"] <= 100_000 < large.treeshap["table_bytes"]
    asked: list[int] = []
    monkeypatch.setattr(
        tree, "TreeShap", lambda *args, **options: asked.append(options["table_bytes"]) or TreeShap(*args, **options)
    )
    run = run_on(engineered, tmp_path, table_memory="2MiB")
    assert set(asked) == {2 << 20}
    assert run.info["options"]["table_memory"] == 2 << 20


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("400MB", 400_000_000),
        ("2 GB", 2 * 10**9),
        ("1.5gib", 3 << 29),
        (5_000_000, 5_000_000),
        ("3_000_000", 3_000_000),
    ],
)
def test_sizes(written: Any, size: int) -> None:
    assert RunOptions.create(input="a", output="b", explainer="c", table_memory=written).table_memory == size


@pytest.mark.parametrize("written", ["many", "4XB", "-1GB", "", "5", "0"])
def test_what_is_no_size(written: str) -> None:
    with pytest.raises(OptionError, match="--table-memory"):
        RunOptions.create(input="a", output="b", explainer="c", table_memory=written)


# Raw importances


def test_a_feature_map_in_a_file(engineered: Engineered, feature_map: Path, tmp_path: Path) -> None:
    run = run_on(engineered, tmp_path, feature_map=feature_map)
    weights = np.zeros((4, 12))
    weights[np.arange(11) % 3, np.arange(11)] = 1.0
    weights[[1, 3], 10] = 0.25, 0.75
    expected = lightgbms_own(engineered)
    assert_close(values_of(run, "engineered", list(engineered.frame)), expected, 1e-12)
    assert_close(values_of(run, "raw", ["raw0", "raw1", "raw2", "raw3"]), expected @ weights.T, 1e-12)
    again = run_on(engineered, tmp_path, feature_map=tmp_path / "out/feature_map.parquet", output=tmp_path / "again")
    assert_close(values_of(again, "raw", ["raw0", "raw1", "raw2", "raw3"]), expected @ weights.T, 1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not readable parquet"),
        ({"raw_feature": ["a"], "weight": [1.0]}, "no column 'engineered_feature'"),
        ({"raw_feature": ["a"], "engineered_feature": ["f99"], "weight": [1.0]}, "does not have: 'f99'"),
        ({"raw_feature": ["a"], "engineered_feature": ["f0"], "weight": [None]}, "not numbers"),
        ({"raw_feature": [None], "engineered_feature": ["f0"], "weight": [1.0]}, "gaps"),
        ({"raw_feature": ["a"], "engineered_feature": ["f0"], "weight": ["x"]}, "not numbers"),
    ],
)
def test_feature_maps_that_do_not_fit(
    content: dict[str, Any] | None, message: str, engineered: Engineered, tmp_path: Path
) -> None:
    path = tmp_path / "map.parquet"
    if content:
        pq.write_table(pa.table(content), path)
    with pytest.raises(ArtifactError, match=message):
        run_on(engineered, tmp_path, feature_map=path)


def test_a_feature_map_with_a_column_twice(engineered: Engineered, tmp_path: Path) -> None:
    columns = {"raw_feature": ["a"], "engineered_feature": ["f0"], "weight": [1.0], "again": [2.0]}
    pq.write_table(pa.table(columns).rename_columns([*list(columns)[:3], "weight"]), tmp_path / "map.parquet")
    with pytest.raises(ArtifactError, match="'weight', or several of that name"):
        run_on(engineered, tmp_path, feature_map=tmp_path / "map.parquet")


@pytest.mark.parametrize("kernel", [True, False])
def test_raw_alone_never_forms_engineered_values(
    kernel: bool, engineered: Engineered, feature_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setenv(ISA_VARIABLE, "none-such")
    both = run_on(engineered, tmp_path, feature_map=feature_map)
    formed = []
    explain = TreeShap.explain

    def watched(self: TreeShap, *args: Any, **options: Any) -> Any:
        found = explain(self, *args, **options)
        formed.append(found.engineered is not None)
        return found

    monkeypatch.setattr(TreeShap, "explain", watched)
    run = run_on(engineered, tmp_path, feature_map=feature_map, outputs="raw", output=tmp_path / "raw", check="all")
    # the first row is explained to prove that all fits together, and its engineered values are not formed either
    assert not any(formed) and bool(formed) == kernel
    pd.testing.assert_frame_equal(frame_of(run, "raw"), frame_of(both, "raw"))
    pd.testing.assert_frame_equal(run.summary("raw"), both.summary("raw"))
    assert run.info["additivity"]["rows_checked"] == 3_000
    assert run.info["additivity"]["largest_residual"] < 1e-12
    assert any("neither computed nor summarised" in said for said in run.info["decisions"])
    with pytest.raises(OptionError, match="no summary 'engineered'"):
        run.summary("engineered")


def test_a_surrogate_that_misses_its_margin_is_found_with_raw_alone(
    engineered: Engineered, feature_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TreeExplainer, "margins", lambda self, rows: np.zeros((1, rows.shape[0])))
    with pytest.raises(bx.errors.IntegrityError, match="miss the surrogate's margin"):
        run_on(engineered, tmp_path, feature_map=feature_map, outputs="raw")


# Tables that processes share


def _filled(array: np.ndarray) -> None:
    array[:] = np.arange(len(array))


def _refuse(array: np.ndarray) -> None:
    raise AssertionError("computed a second time")


def _inode_of(digest: str) -> int:
    """Inode of the file that this process has mapped for a digest."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return int(next(line.split()[4] for line in lines if f"/{digest}.f64" in line))


def _use(connection: Any) -> None:
    array = shared_array("abc", 5_000, _refuse)
    connection.send((_inode_of("abc"), float(array.sum()), array.flags.writeable))
    connection.recv()


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@once
@needs_linux
def test_two_processes_map_one_file(own_temporary_folder: Path) -> None:
    array = shared_array("abc", 5_000, _filled)
    folder = own_temporary_folder / f"batch-explain-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_use, args=(there,))
    other.start()
    assert here.recv() == (_inode_of("abc"), float(np.arange(5_000).sum()), False)
    del array  # the other process still uses it
    assert [path.name for path in folder.iterdir()] == ["abc.f64"]
    here.send("go")
    other.join(60)
    assert not folder.exists()


def test_a_file_cut_short_is_made_again(own_temporary_folder: Path) -> None:
    folder = own_temporary_folder / f"batch-explain-{os.getuid()}"
    folder.mkdir(mode=0o700)
    (folder / "abc.f64").write_bytes(b"half of it")
    array = shared_array("abc", 1_000, _filled)
    np.testing.assert_array_equal(array, np.arange(1_000))
    assert array.ctypes.data % 64 == 0


@once
@pytest.mark.parametrize("spoil", ["open_to_others", "a_link", "no_room"])
def test_without_a_safe_place_each_process_has_its_own(
    spoil: str, engineered: Engineered, own_temporary_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_temporary_folder / f"batch-explain-{os.getuid()}"
    if spoil == "open_to_others":
        folder.mkdir()
        folder.chmod(0o777)
    elif spoil == "a_link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    explainer = bx.load_explainer(engineered.explainer, make_array=shared_array)
    rows = engineered.frame.to_numpy()
    expected = bx.load_explainer(engineered.explainer).explain(rows).values
    np.testing.assert_array_equal(explainer.explain(rows).values, expected)
    assert explainer.treeshap is not None
    assert explainer.treeshap["tables"] == "of each process"
    assert ("No space" if spoil == "no_room" else "user alone") in explainer.treeshap["not_shared"]
    assert not list((tmp_path / "elsewhere").glob("*")) if spoil == "a_link" else True


@once
def test_a_run_shares_its_tables_and_leaves_nothing_behind(
    engineered: Engineered, own_temporary_folder: Path, tmp_path: Path
) -> None:
    alone = run_on(engineered, tmp_path, partition_rows=700)
    run = run_on(engineered, tmp_path, output=tmp_path / "shared", scheduler="processes", workers=2, partition_rows=700)
    assert run.info["treeshap"]["tables"] == "shared by the processes"
    assert run.info["worker_processes"] == 2
    assert digests(tmp_path / "shared") == digests(tmp_path / "out")
    assert alone.info["treeshap"]["tables"] == "of each process"
    del run
    assert not list(own_temporary_folder.glob("batch-explain-*"))
