"""scikit-learn models in bundles: skops files, opened only after an audit of their types."""

import importlib.util
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.errors import ArtifactError, OptionError
from batch_explain.explainers.bundle import artifact_digest
from batch_explain.explainers.models import load_model
from batch_explain.storage.filesystems import Location
from tests.comparing import digests
from tests.conftest import Small

HAS_SKOPS = importlib.util.find_spec("skops") is not None
needs_skops = pytest.mark.skipif(not HAS_SKOPS, reason="skops does not go together with the AutoML stack")


class Evil:
    """Runs when it is made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch never",)


class Shift(StandardScaler):
    """A class that no list names."""


@pytest.fixture(scope="module")
def bundle(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("skops") / "bundle"
    arguments = ["export", "--explainer", str(small.explainer), "--model", str(small.model), "--output", str(place)]
    result = CliRunner().invoke(cli, [*arguments, "--with-model"])
    assert result.exit_code == 0, result.output
    return place


def opened(data: bytes, folder: Path, **options: Any) -> Any:
    place = folder / "model.skops"
    place.write_bytes(data)
    return load_model(Location(str(place)), **options)


def refusal(data: bytes, folder: Path) -> str:
    """The paragraph with which a file is refused, without taking memory for what it claims."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError) as caught:
            opened(data, folder)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(data: bytes, edit: Callable[[dict[str, Any]], None], **members: bytes) -> bytes:
    """A skops file with another schema, and other members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        schema = json.loads(old.read("schema.json"))
        edit(schema)
        for name in old.namelist():
            if name not in ("schema.json", *members):
                new.writestr(name, old.read(name))
        for name, content in members.items():
            new.writestr(name, content)
        new.writestr("schema.json", json.dumps(schema))
    return buffer.getvalue()


@needs_skops
def test_a_run_on_the_bundle_alone_writes_the_same_tables(bundle: Path, small: Small, tmp_path: Path) -> None:
    rows = small.write(tmp_path / "rows.parquet")
    trust = bx.inspect_artifact(bundle).refused
    common = {"input": rows, "scheduler": "sync", "id_columns": "customer_id"}
    first = bx.explain_dataset(model=small.model, explainer=small.explainer, output=tmp_path / "a", **common)
    again = bx.explain_dataset(
        model=bundle,
        explainer=bundle,
        output=tmp_path / "b",
        trust=trust,
        sha256={"model": artifact_digest(Location(str(bundle)))},
        **common,
    )
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != {}
    assert again.info["artifacts"]["model"]["kind"] == first.info["artifacts"]["model"]["kind"]
    assert bx.verify_run(tmp_path / "b", recompute="100%", trust=trust).ok


@needs_skops
def test_inspect_names_the_model_and_its_untrusted_types(bundle: Path, small: Small, tmp_path: Path) -> None:
    import skops.io

    found = bx.inspect_artifact(bundle)
    assert "scikit-learn model" in found.kind
    pipeline = joblib.load(small.model)
    expected = skops.io.get_untrusted_types(data=skops.io.dumps(pipeline))
    assert list(found.refused) == expected
    place = tmp_path / "own.skops"
    skops.io.dump(make_pipeline(Shift(), LogisticRegression()), place)
    assert bx.inspect_artifact(place).refused == (f"{__name__}.Shift",)


@needs_skops
def test_other_types_are_refused_by_name_until_they_are_trusted(tmp_path: Path) -> None:
    import skops.io

    rows = np.random.default_rng(0).normal(size=(50, 3))
    model = make_pipeline(Shift(), LogisticRegression()).fit(rows, rows[:, 0] > 0)
    name = f"{__name__}.Shift"
    message = refusal(skops.io.dumps(model), tmp_path)
    assert f"--trust {name}" in message
    found = opened(skops.io.dumps(model), tmp_path, trust=[name])
    np.testing.assert_array_equal(found.predict_proba(rows), model.predict_proba(rows))


@needs_skops
def test_hostile_files_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import skops.io

    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(50, 3))
    good = skops.io.dumps(StandardScaler().fit(rows))
    array = next(name for name in zipfile.ZipFile(io.BytesIO(good)).namelist() if name.endswith(".npy"))
    call = skops.io.dumps(FunctionTransformer(os.system))
    assert "system" in refusal(call, tmp_path)

    def to_void(schema: dict[str, Any]) -> None:
        schema["content"]["content"]["mean_"].update(__class__="void", __module__="numpy")

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|S2000000000", "fortran_order": False, "shape": (1,)})
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    nothing = lambda schema: None  # noqa: E731
    for data, why in (
        (edited(good, to_void), "numpy.void"),
        (edited(good, nothing, **{array: header.getvalue()}), "header"),
        (edited(good, nothing, **{array: objects.getvalue()}), "objects"),
        (edited(good, nothing, bomb=bytes(100_000_000)), "expands"),
        (good[: len(good) // 2], "damaged"),
        (b"PK\x03\x04" + bytes(50), "damaged"),
    ):
        assert why in refusal(data, tmp_path), why
    assert not (tmp_path / "never").exists()


@needs_skops
def test_a_damaged_or_missing_model_is_refused(bundle: Path, small: Small, tmp_path: Path) -> None:
    import shutil

    plain = tmp_path / "plain"
    bx.export_bundle(small.explainer, plain, model=small.model)
    with pytest.raises(ArtifactError, match="no model in the bundle"):
        load_model(Location(str(plain)))
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "model.skops").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.skops").write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum"):
        load_model(Location(str(copy)))
    with pytest.raises(OptionError, match="--with-model"):
        bx.export_bundle(small.explainer, tmp_path / "x", with_model=True)


@pytest.mark.skipif(HAS_SKOPS, reason="skops is here")
def test_without_skops_the_paragraph_says_what_to_install(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"pip install 'batch-explain\[skops\]'"):
        bx.export_bundle(small.explainer, tmp_path / "x", model=small.model, with_model=True)


@pytest.mark.automl
def test_an_automl_model_cannot_travel_as_skops(automl: Any, tmp_path: Path) -> None:
    paths = automl("regression")
    with pytest.raises(ArtifactError, match="AutoML pipeline"):
        bx.export_bundle(paths.explainer, tmp_path / "x", model=paths.model, with_model=True)
