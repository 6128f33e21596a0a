"""The kernel on other hardware: for aarch64, run by qemu, and as a compiler without dispatch makes it.

Both also run the code with AVX-512's vectors of 64 bytes, without its instructions: not every CPU has these.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch_explain.treeshap.forms import BACKGROUND, DIRECT, NO_TABLES
from batch_explain.treeshap.kernel import TreeShap
from tests.comparing import assert_close
from tests.conftest import ROOT, once
from tests.lightgbm_models import booster, contributions
from tests.test_treeshap import MODELS, ensemble_of, rows_of

COMPILERS = {
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
    "baseline": (["c++", "-DBATCH_EXPLAIN_BASELINE"], []),
}
# a model's name, the bound of its tables, and how many background rows there are
CASES = [
    ("trained", 400_000_000, 0),
    ("wide", 400_000, 0),
    ("chains", 1, 0),
    ("trained", 400_000_000, 70),
    ("trained", 0, 70),
]


@once
@pytest.mark.parametrize("name", COMPILERS)
def test_the_same_bits(name: str, tmp_path: Path) -> None:
    compiler, emulator = COMPILERS[name]
    for program in (compiler[0], *emulator):
        if shutil.which(program) is None:
            assert not os.environ.get("CI"), f"CI needs {program}: apt-get install g++-aarch64-linux-gnu qemu-user"
            pytest.skip(f"there is no {program}")
    command = [*emulator, compiled(compiler, tmp_path / "run_program")]
    forms: set[int] = set()
    for model, table_bytes, background in CASES:
        rows = rows_of(model)
        explainer = TreeShap(
            ensemble_of(model), table_bytes=table_bytes, background=rows[:background] if background else None
        )
        forms |= set(explainer.program.arrays["terms"])
        here = explainer.explain(rows)
        assert here.engineered is not None
        expected_bits = (here.engineered.tobytes(), here.margins.tobytes())
        assert alone(command, explainer, rows, tmp_path) == dict.fromkeys(
            ["baseline", "vectors-of-64-bytes"], expected_bits
        )
        if model != "chains" and not background:  # long paths cost LightGBM its digits
            expected = contributions(booster(MODELS[model]()), rows)[:, :, explainer.used]
            assert_close(here.engineered.transpose(0, 2, 1), expected, 1e-9)
    assert {DIRECT, NO_TABLES, BACKGROUND} < forms and max(forms) > DIRECT  # every form of a group


def compiled(compiler: list[str], binary: Path) -> Path:
    """The kernel without Python, by the flags of CMakeLists.txt."""
    flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno"]
    subprocess.run([*compiler, *flags, "-o", binary, ROOT / "tests/native/run_program.cpp"], check=True, timeout=300)
    return binary


def alone(command: list[Any], explainer: TreeShap, rows: np.ndarray, folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """Engineered values and margins, by each of that program's ways to compute them."""
    arrays: dict[str, Any] = explainer.program.arrays | {
        "doubles": explainer.program.doubles, "rows": np.ascontiguousarray(rows), "n_rows": len(rows),
        "row_stride": rows.shape[1], "block": 1_024, "position": explainer.used.astype(np.int32),
        "expected": explainer.expected_values,
    }  # fmt: skip
    for name, array in arrays.items():
        np.asarray(array).tofile(folder / name)
    done = subprocess.run([*command, folder], check=True, capture_output=True, text=True, timeout=300)
    return {
        name: ((folder / f"engineered.{name}").read_bytes(), (folder / f"margins.{name}").read_bytes())
        for name in done.stdout.split()
    }
