"""The kernel on other hardware: for aarch64, run by qemu, and as a compiler without dispatch makes it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batch_explain.treeshap.forms import BACKGROUND, DIRECT, NO_TABLES
from batch_explain.treeshap.kernel import TreeShap
from tests.comparing import assert_close
from tests.conftest import ROOT, once
from tests.lightgbm_models import booster, contributions
from tests.test_treeshap import MODELS, ensemble_of, rows_of

pytestmark = once

COMPILERS = {
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
    "baseline": (["c++", "-DBATCH_EXPLAIN_BASELINE"], []),
}
# of the whole model's tables, in small ones, without any
BOUNDS = {"trained": 400_000_000, "wide": 400_000, "chains": 1}

Run = Callable[[TreeShap, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module", params=COMPILERS)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The kernel compiled without Python: engineered values and margins."""
    compiler, emulator = COMPILERS[request.param]
    for program in (compiler[0], *emulator):
        if shutil.which(program) is None:
            assert not os.environ.get("CI"), f"CI needs {program}: apt-get install g++-aarch64-linux-gnu qemu-user"
            pytest.skip(f"there is no {program}")
    folder = tmp_path_factory.mktemp(request.param)
    binary = folder / "run_program"
    flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno"]
    source = ROOT / "tests/native/run_program.cpp"
    subprocess.run([*compiler, *flags, "-o", binary, source], check=True, timeout=300)

    def run(explainer: TreeShap, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        arrays: dict[str, Any] = explainer.program.arrays | {
            "doubles": explainer.program.doubles, "rows": np.ascontiguousarray(rows), "n_rows": len(rows),
            "row_stride": rows.shape[1], "block": 1_024, "position": explainer.used.astype(np.int32),
            "expected": explainer.expected_values,
        }  # fmt: skip
        for name, array in arrays.items():
            np.asarray(array).tofile(folder / name)
        done = subprocess.run([*emulator, binary, folder], check=True, capture_output=True, text=True, timeout=300)
        assert done.stdout.split() == ["baseline"]
        shape = (explainer.n_outputs, len(explainer.used), len(rows))
        engineered, margins = (np.fromfile(folder / f"{name}.baseline") for name in ("engineered", "margins"))
        return engineered.reshape(shape), margins.reshape(shape[0], -1)

    return run


@pytest.mark.parametrize("name", BOUNDS)
def test_the_same_bits(alone: Run, name: str) -> None:
    rows = rows_of(name)
    explainer = TreeShap(ensemble_of(name), table_bytes=BOUNDS[name])
    engineered, margins = alone(explainer, rows)
    expected = contributions(booster(MODELS[name]()), rows)[:, :, :-1]
    if name != "chains":  # whose long paths cost LightGBM its digits
        assert_close(engineered.transpose(0, 2, 1), expected[:, :, explainer.used], 1e-9)
    here = explainer.explain(rows)
    assert here.engineered is not None
    assert (engineered.tobytes(), margins.tobytes()) == (here.engineered.tobytes(), here.margins.tobytes())


def test_every_form_of_a_group_is_among_them() -> None:
    terms = [TreeShap(ensemble_of(name), table_bytes=bound).program.arrays["terms"] for name, bound in BOUNDS.items()]
    forms = set(np.concatenate(terms))
    assert {DIRECT, NO_TABLES} < forms and max(forms) > DIRECT


@pytest.mark.parametrize("table_bytes", [400_000_000, 0])
def test_the_same_bits_against_background_rows(alone: Run, table_bytes: int) -> None:
    rows = rows_of("trained")
    explainer = TreeShap(ensemble_of("trained"), background=rows[:70], table_bytes=table_bytes)
    assert (explainer.program.arrays["terms"] == (DIRECT if table_bytes else BACKGROUND)).any()
    engineered, margins = alone(explainer, rows)
    here = explainer.explain(rows)
    assert here.engineered is not None
    assert (engineered.tobytes(), margins.tobytes()) == (here.engineered.tobytes(), here.margins.tobytes())
