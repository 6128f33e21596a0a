"""Nothing in a bundle is believed unseen: damage, false claims and forged files are refused."""

import hashlib
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from tests.conftest import once
from tests.test_bundle import GOLDEN, KINDS, refusal

pytestmark = once

FILES = [
    (kind, path.name)
    for kind in KINDS
    for path in sorted((GOLDEN / kind / "bundle").iterdir())
]  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(GOLDEN / kind / "bundle", tmp_path / "bundle"))


def reseal(bundle: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> None:
    """Change bundle.json, and make all its checksums those of the files as they are now: what a forger would do."""
    place = bundle / "bundle.json"
    content = json.loads(place.read_text())
    for name, entry in content["files"].items():
        if (bundle / name).exists():
            data = (bundle / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(content)
    del content["sha256"]

    def text() -> bytes:
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"

    content["sha256"] = hashlib.sha256(text()).hexdigest()
    place.write_bytes(text())


@pytest.mark.parametrize("kind, name", FILES)
def test_any_flipped_bit_is_found(kind: str, name: str, copy: Callable[[str], Path]) -> None:
    bundle = copy(kind)
    content = (bundle / name).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 15):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (bundle / name).write_bytes(flipped)
        assert name in refusal(bundle), bit


@pytest.mark.parametrize("kind, name", FILES)
def test_a_missing_or_cut_file(kind: str, name: str, copy: Callable[[str], Path]) -> None:
    bundle = copy(kind)
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    assert name in refusal(bundle)
    (bundle / name).unlink()
    assert name in refusal(bundle)


def test_a_damaged_bundle_ends_a_run_with_2(copy: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = copy("multiclass-sparse")
    (bundle / "surrogate.txt").write_text("tree\n")
    arguments = ["run", "--input", str(GOLDEN / "multiclass-sparse/features"), "--explainer", str(bundle)]
    result = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "out"), "--scheduler", "sync"])
    assert result.exit_code == 2
    assert "surrogate.txt" in result.output and "Copy it again" in result.output
    assert not (tmp_path / "out").exists()


CLAIMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (lambda c: c.update(format_version=2, more=1), "format version 2.*Install a newer"),
    "older": (lambda c: c.update(format_version=0), "format version 0"),
    "another file": (lambda c: c.update(format="something else"), "another kind of file"),
    "extra entry": (lambda c: c.update(run="rm -rf"), "other entries"),
    "gone entry": (lambda c: c.pop("link"), "other entries"),
    "path out": (lambda c: c["files"].update({"../evil.txt": {"bytes": 4, "sha256": "0" * 64}}), "'files'"),
    "absolute path": (lambda c: c["files"].update({"/etc/passwd": {"bytes": 4, "sha256": "0" * 64}}), "'files'"),
    "file not named": (lambda c: c["files"].pop("canary.parquet"), "'files'"),
    "huge file": (lambda c: c["files"]["surrogate.txt"].update(bytes=1 << 60), "surrogate.txt"),
    "bytes as text": (lambda c: c["files"]["surrogate.txt"].update(bytes="9"), "surrogate.txt"),
    "path for a checksum": (lambda c: c["files"]["surrogate.txt"].update(sha256=["../x"]), "surrogate.txt"),
    "kind": (lambda c: c.update(kind=["tree"]), "'kind'"),
    "kind of another file": (lambda c: c.update(kind="linear", iterations=None), "'files'"),
    "classes": (lambda c: c.update(classes=["low", "mid"]), "'expected_values'"),
    "classes are objects": (lambda c: c.update(classes=[{}, [], None]), "'classes'"),
    "task": (lambda c: c.update(task="regression"), "'classes'"),
    "features": (lambda c: c["engineered_features"].pop(), "engineered features"),
    "features are numbers": (lambda c: c.update(engineered_features=[1, 2]), "'engineered_features'"),
    "raw features": (lambda c: c["raw_features"].pop(), "feature map"),
    "expected values": (lambda c: c["expected_values"].update(dense=[0, 0, 0]), "expected values"),
    "number of outputs": (lambda c: c["expected_values"].update(dense=[0.0], sparse=[0.0]), "expected values"),
    "iterations": (lambda c: c["iterations"].update(dense=1, sparse=1), "expected values|canary"),
    "iterations are text": (lambda c: c["iterations"].update(dense="1"), "'iterations'"),
    "probability": (lambda c: c.update(shap_values_output="probability"), "shap_values_output"),
    "link": (lambda c: c.update(link="identity"), "objective"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_false_claims_with_right_checksums(case: str, copy: Callable[[str], Path]) -> None:
    change, message = CLAIMS[case]
    bundle = copy("multiclass-sparse")
    (bundle.parent / "evil.txt").write_text("evil")
    reseal(bundle)
    bx.load_explainer(bundle)  # the forger's own checksums are right
    reseal(bundle, change)
    assert re.search(message, refusal(bundle)), refusal(bundle)


def edit_line(key: str, edit: Callable[[list[str]], None], tree: int = 0) -> Callable[[str], str]:
    def change(text: str) -> str:
        head, *sections = text.split("\nTree=")
        lines = sections[tree].split("\n")
        at = next(i for i, line in enumerate(lines) if line.startswith(key + "="))
        values = lines[at].removeprefix(key + "=").split()
        edit(values)
        lines[at] = key + "=" + " ".join(values)
        sections[tree] = "\n".join(lines)
        return "\nTree=".join([head, *sections])

    return change


TREE_EDITS = {
    "leaf value": edit_line("leaf_value", lambda v: v.__setitem__(2, "0.5")),
    "threshold": edit_line("threshold", lambda v: v.__setitem__(0, repr(float(v[0]) + 1e-3 + abs(float(v[0])) * 1e-3))),
    "feature": edit_line("split_feature", lambda v: v.__setitem__(0, "0" if v[0] != "0" else "1"), tree=4),
    "missing goes elsewhere": edit_line("decision_type", lambda v: v.__setitem__(0, str(int(v[0]) ^ 2 | 8)), tree=1),
}


@pytest.mark.parametrize("case", TREE_EDITS)
def test_an_edited_tree_with_right_checksums(case: str, copy: Callable[[str], Path]) -> None:
    bundle = copy("multiclass-sparse")
    place = bundle / "surrogate.txt"
    text = place.read_text()
    place.write_text(TREE_EDITS[case](text))
    assert place.read_text() != text
    reseal(bundle)
    message = refusal(bundle)
    assert "canary rows" in message or "expected values" in message


def test_an_edited_feature_map_with_right_checksums(copy: Callable[[str], Path]) -> None:
    bundle = copy("multiclass-sparse")
    with np.load(bundle / "feature_map.npz") as found:
        arrays = dict(found)
    arrays["data"] = arrays["data"] * 0.5
    np.savez(bundle / "feature_map.npz", **arrays)
    reseal(bundle)
    assert "raw importances" in refusal(bundle)


def _pickled(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{**arrays, "data": np.array([print], dtype=object)})


def _bomb(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **{**arrays, "data": np.zeros(1 << 22)})


def _giant(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A header that promises 8 TB."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as stream:
                if name == "data":
                    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}
                    np.lib.format.write_array_header_1_0(stream, header)
                else:
                    np.lib.format.write_array(stream, array, version=(1, 0))


NPZ_LIES: dict[str, Callable[[Path, dict[str, np.ndarray]], None]] = {
    "pickle": _pickled,
    "bomb": _bomb,
    "giant": _giant,
    "another array": lambda path, arrays: np.savez(path, **arrays, more=np.zeros(1)),
    "no array": lambda path, arrays: np.savez(path, data=arrays["data"]),
    "wrong dtype": lambda path, arrays: np.savez(path, **{**arrays, "data": arrays["data"].astype("f4")}),
    "indices out": lambda path, arrays: np.savez(path, **{**arrays, "indices": arrays["indices"] + 1000}),
    "indices negative": lambda path, arrays: np.savez(path, **{**arrays, "indices": arrays["indices"] - 1}),
    "pointers": lambda path, arrays: np.savez(path, **{**arrays, "indptr": arrays["indptr"] * 7}),
    "shape": lambda path, arrays: np.savez(path, **{**arrays, "shape": np.array([1 << 40, 20])}),
    "NaN": lambda path, arrays: np.savez(path, **{**arrays, "data": arrays["data"] * np.nan}),
    "no zip": lambda path, arrays: path.write_bytes(b"PK\x03\x04 nothing") and None,
}


@pytest.mark.parametrize("case", NPZ_LIES)
def test_arrays_that_lie(case: str, copy: Callable[[str], Path]) -> None:
    bundle = copy("multiclass-sparse")
    with np.load(bundle / "feature_map.npz") as found:
        arrays = dict(found)
    NPZ_LIES[case](bundle / "feature_map.npz", arrays)
    reseal(bundle)
    assert "feature_map" in refusal(bundle) or "feature map" in refusal(bundle)


CANARY_LIES: dict[str, Callable[[pa.Table], tuple[pa.Table, dict[str, Any]]]] = {
    "compressed": lambda table: (table, {"compression": "snappy"}),
    "no rows": lambda table: (table.slice(0, 0), {"compression": "none"}),
    "many rows": lambda table: (pa.concat_tables([table] * 100), {"compression": "none", "use_dictionary": True}),
    "other columns": lambda table: (table.drop(["raw"]), {"compression": "none"}),
    "other widths": lambda table: (
        table.set_column(1, "row", table["engineered"]).cast(table.schema),
        {"compression": "none"},
    ),
    "swapped rows": lambda table: (
        table.set_column(1, "row", table["row"].take(pa.array(range(table.num_rows)[::-1]))),
        {"compression": "none"},
    ),
}


@pytest.mark.parametrize("case", CANARY_LIES)
def test_canaries_that_lie(case: str, copy: Callable[[str], Path]) -> None:
    bundle = copy("multiclass-sparse")
    table, options = CANARY_LIES[case](pq.read_table(bundle / "canary.parquet"))
    pq.write_table(table, bundle / "canary.parquet", **options)
    reseal(bundle)
    assert "canary" in refusal(bundle)


def test_linear_arrays_of_wrong_shape(copy: Callable[[str], Path]) -> None:
    for name, change in (
        ("coefficients", lambda a: a[:, 1:]),
        ("means", lambda a: a * np.inf),
        ("intercepts", lambda a: a[:1]),
    ):
        bundle = copy("linear-multiclass")
        with np.load(bundle / "linear.npz") as found:
            arrays = dict(found)
        np.savez(bundle / "linear.npz", **{**arrays, name: change(arrays[name])})
        reseal(bundle)
        assert "linear.npz" in refusal(bundle)
        shutil.rmtree(bundle)
