"""Arrow's own threads keep off Python's streams: one that lets go of them as Python ends aborts the process."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batch_explain as bx
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import open_parquet, read_parquet
from batch_explain.storage.remote import RemoteFilesystem
from tests.conftest import Small


class Threads:
    """Names of the threads that read streams, and of those that let go of what they gave."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def note(self) -> None:
        self.names.add(threading.current_thread().name)

    @property
    def foreign(self) -> list[str]:
        """Those that Python did not start."""
        return [name for name in self.names if name.startswith("Dummy-")]

    def stream(self, content: bytes) -> io.BytesIO:
        note = self.note

        class Given(bytes):
            def __del__(self) -> None:
                note()

        class Watched(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                note()
                return Given(super().read(size))

        return Watched(content)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    """Of all that is read from ``memory://``, which is emptied afterwards."""
    found, opened = Threads(), RemoteFilesystem.open

    def watched(fs: RemoteFilesystem, path: str, mode: str = "rb", **options: Any) -> Any:
        return found.stream(fs.cat_file(path)) if mode == "rb" else opened(fs, path, mode, **options)

    monkeypatch.setattr(RemoteFilesystem, "open", watched)
    yield found
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def table() -> pa.Table:
    rows = range(4_000)
    frame = pd.DataFrame({"number": rows, "text": map(str, rows)}, index=pd.Index([n / 2 for n in rows], name="half"))
    table = pa.Table.from_pandas(frame.assign(kind=frame.text.str[0].astype("category")))
    return table.append_column("list", pa.array([[n] * (n % 3) for n in rows]))


def test_a_table_is_read_by_its_reader_alone(threads: Threads, table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    fsspec.filesystem("memory").put(str(tmp_path / "a.parquet"), "/a.parquet")
    expected, place = pq.read_table(tmp_path / "a.parquet"), Location("memory://a.parquet")
    found = read_parquet(place)
    assert found.equals(expected, check_metadata=True)
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas())
    assert read_parquet(place, ["text", "number"]).equals(expected.select(["text", "number"]))
    with place.open() as stream:
        assert open_parquet(stream).read_row_group(2, use_threads=False).equals(expected.slice(1_000, 500))
    assert threads.names == {threading.current_thread().name}


def test_so_are_all_of_a_run(threads: Threads, small: Small, tmp_path: Path) -> None:
    frame = small.frame[:600].reset_index(drop=True).astype({"age": str})
    frame.loc[7, "age"] = "old"
    for number, rows in enumerate((frame[:300], frame[300:])):
        small.write(tmp_path / f"rows/{number}.parquet", rows, row_group_size=50)
    fsspec.filesystem("memory").put(str(tmp_path / "rows"), "/rows", recursive=True)
    options: dict[str, Any] = {"model": small.model, "explainer": small.explainer, "batch_rows": 40, "max_bad_rows": 1}
    for number, where in enumerate((None, "balance > 100")):
        run = bx.explain_dataset(
            input="memory://rows", output=f"memory://runs/{number}", id_columns="customer_id", filter=where,
            scheduler="threads", workers=2, outputs="predictions,engineered,raw,reasons", **options,
        )  # fmt: skip
        assert run.info["rows"]["quarantined"] == 1
    assert bx.verify_run("memory://runs/0", recompute=50).ok
    bx.summarize_run("memory://runs/0", cohort="marital", output="memory://cohorts")
    bx.compare_runs("memory://runs/0", "memory://runs/1")
    assert len(run.summary()) and len(run.sample()) and len(run.sketches())
    assert run.row(int(run.sample()["customer_id"][0])).predictions
    assert len(run.to_dask("raw").compute(scheduler="sync")) == run.info["rows"]["explained"]
    run.report(tmp_path / "report.html")
    run.save_explanation(tmp_path / "explanation")
    bx.explain_dataset(
        input="memory://rows", output="memory://runs/mapped", feature_map="memory://runs/0/feature_map.parquet",
        scheduler="sync", **options,
    )  # fmt: skip
    script = bx.EntryScript(append=["predictions"], output="memory://runs/batches", **options)
    script.init([])
    assert len(script.run([str(tmp_path / "rows/0.parquet")])) == 300
    assert not threads.foreign
