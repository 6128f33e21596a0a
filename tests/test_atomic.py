"""Files are there whole or not at all, on local folders and on object stores."""

from pathlib import Path

import fsspec
import pytest

import batch_explain as bx
from batch_explain.errors import mask_secrets
from batch_explain.storage.atomic import NewFile, new_file, sha256_of, write_json
from batch_explain.storage.filesystems import Location
from batch_explain.storage.tables import encode_label
from tests.comparing import digests
from tests.conftest import Small, once


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_a_file_appears_at_commit(root: Location) -> None:
    file = NewFile(root, "a/b.bin")
    file.stream.write(b"content")
    assert not root.join("a/b.bin").exists()
    record = file.commit()
    assert root.join("a/b.bin").read_bytes() == b"content"
    assert (record.path, record.bytes, record.sha256) == ("a/b.bin", 7, sha256_of(root.join("a/b.bin")))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(root: Location) -> None:
    write_json(root, "a.json", {"old": 1})
    with pytest.raises(RuntimeError), new_file(root, "a.json") as stream:
        stream.write(b"half")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(root, "a.json", {"nan": float("nan")})
    assert root.join("a.json").read_bytes() == b'{\n "old": 1\n}\n'
    assert [name.rsplit("/", 1)[-1] for name in root.fs.find(root.path)] == ["a.json"]


@once
def test_a_run_on_an_object_store_is_the_local_run(small: Small, tmp_path: Path) -> None:
    """Input and output through fsspec: the same bytes as from and to a folder."""
    source = small.write(tmp_path / "rows.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/data/rows.parquet", source.read_bytes())
    options = {"model": small.model, "explainer": small.explainer, "scheduler": "sync", "partition_rows": 700}
    bx.explain_dataset(input=source, output=tmp_path / "out", **options)
    run = bx.explain_dataset(input="memory://data/rows.parquet", output="memory://results", **options)
    assert run.table("raw").count_rows() == 2_000
    memory.get("/results", str(tmp_path / "fetched"), recursive=True)
    assert digests(tmp_path / "fetched") == digests(tmp_path / "out")
    assert not [path for path in memory.find("/results") if ".tmp" in path or "probe" in path]


@pytest.mark.parametrize("label", ["a/b", "..", ".", "", "ä b", "x" * 300, "a\nb", "%2F", "C:\\x", "<script>"])
def test_labels_become_one_safe_folder_name(label: str) -> None:
    from urllib.parse import unquote

    encoded = encode_label(label)
    assert "/" not in encoded and encoded not in (".", "..")
    assert encoded.isascii() and encoded.isprintable() and len(encoded) <= 200
    assert unquote(encoded) == label or len(label) > 200


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://acc.blob.core.windows.net/c/x?sv=2022&sig=abc%3D&se=2030", "abc"),
        ("ftp://user:hunter2@host/x", "hunter2"),
        ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0;", "c2VjcmV0"),
        ("s3://b/x?X-Amz-Signature=deadbeef", "deadbeef"),
    ],
)
def test_secrets_are_masked(text: str, secret: str) -> None:
    assert secret not in mask_secrets(text)
    assert "***" in mask_secrets(text)
