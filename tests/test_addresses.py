"""Addresses in the spellings of other tools."""

import re

import pytest

import batch_explain as bx
from batch_explain.errors import InputError
from batch_explain.storage.filesystems import Location
from tests.conftest import Engineered, once

HOST = "acc.dfs.core.windows.net"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("wasbs://c@acc.blob.core.windows.net/a/b", f"abfs://c@{HOST}/a/b"),
        ("wasb://c@acc.blob.core.windows.net/", f"abfs://c@{HOST}/"),
        ("https://acc.blob.core.windows.net/c/a%20b/d", f"abfs://c@{HOST}/a b/d"),
        ("https://acc.dfs.core.windows.net/c", f"abfs://c@{HOST}/"),
        ("https://acc.blob.core.chinacloudapi.cn/c/a", "abfs://c@acc.dfs.core.chinacloudapi.cn/a"),
        (f"abfs://c@{HOST}/a%20b", f"abfs://c@{HOST}/a%20b"),
        ("https://example.org/blob.core.windows.net/c", "https://example.org/blob.core.windows.net/c"),
        ("rows/wasbs:", "rows/wasbs:"),
    ],
)
def test_the_same_place_as_fsspec_spells_it(given: str, expected: str) -> None:
    assert Location(given).url == expected


def test_a_label_below_a_translated_address_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    adlfs = pytest.importorskip("adlfs")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aGVsbG8=")
    adlfs.AzureBlobFileSystem.clear_instance_cache()
    place = Location("https://acc.blob.core.windows.net/c/out").join("engineered/output=50%2F50")
    assert place.path == "c/out/engineered/output=50%2F50" and Location(place.url).path == place.path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("https://acc.blob.core.windows.net/c/a?sv=1&sig=SECRET", "AZURE_STORAGE_SAS_TOKEN"),
        ("azureml://datastores/blobs/paths/rows/", "names the datastore 'blobs' of a workspace"),
    ],
)
def test_what_cannot_be_used_says_what_can(given: str, message: str, engineered: Engineered) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        bx.explain_dataset(input=given, explainer=engineered.explainer, output="out")
    assert "SECRET" not in str(caught.value)


@once
def test_a_run_in_memory(engineered: Engineered) -> None:
    fs = Location("memory://rows").fs
    with fs.open("/rows/0.parquet", "wb") as stream:
        stream.write(engineered.frame.to_parquet(index=False))
    run = bx.explain_dataset(
        input="memory://rows", explainer=engineered.explainer, output="memory://out", scheduler="threads", workers=2,
        partition_rows=500,
    )  # fmt: skip
    assert bx.verify_run("memory://out").ok and run.info["rows"]["explained"] == len(engineered.frame)
    bx.explain_dataset(
        input="memory://rows", explainer=engineered.explainer, output="memory://out", scheduler="sync", overwrite=True
    )  # fmt: skip
    fs.rm("/out", recursive=True)
    fs.rm("/rows", recursive=True)
