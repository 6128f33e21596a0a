"""Each write, fsync, rename, link, list and delete fails in turn: a clear error, and --resume finishes the run.

Every third or tenth call in CI, every one with ``-m soak``.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

import batch_explain as bx
from batch_explain.errors import BatchExplainError
from tests.comparing import digests
from tests.conftest import Engineered, once
from tests.test_restart import leftovers

CALLS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "write": (os, ("write",)),
    "fsync": (os, ("fsync",)),
    "rename": (os, ("replace", "link")),
    "delete": (os, ("remove",)),
    "list": (LocalFileSystem, ("ls", "find", "isdir", "exists")),
    "remove": (LocalFileSystem, ("rm", "rm_file")),
}


@dataclass
class Faults:
    """Counts the calls of one kind, and does something else instead of the chosen one."""

    kind: str
    chosen: int = -1
    instead: Callable[..., Any] | None = None
    names: list[str] = field(default_factory=list)

    @contextmanager
    def injected(self) -> Iterator[None]:
        owner, functions = CALLS[self.kind]
        with pytest.MonkeyPatch.context() as patch:
            for name in functions:
                patch.setattr(owner, name, self._wrapped(name, getattr(owner, name)))
            yield

    def _wrapped(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.names.append(name)
            if len(self.names) - 1 == self.chosen and self.instead is not None:
                return self.instead(really, *arguments, **options)
            return really(*arguments, **options)

        return call


def failing(number: int) -> Callable[..., Any]:
    def fail(_really: Any, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def half_then_full(really: Any, descriptor: int, data: Any) -> int:
    """A disk that takes half of a write, and then is full."""
    really(descriptor, memoryview(data)[: len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(really: Any, descriptor: int, data: Any) -> int:
    """A short write, as POSIX allows: the rest must be written by another call."""
    count: int = really(descriptor, memoryview(data)[: max(1, len(data) // 2)])
    return count


def slow(really: Any, *arguments: Any, **options: Any) -> Any:
    time.sleep(0.2)
    return really(*arguments, **options)


@pytest.fixture
def run(engineered: Engineered, tmp_path: Path) -> Callable[..., bx.Run]:
    engineered.frame.to_parquet(tmp_path / "rows.parquet", row_group_size=1_000)
    options: dict[str, Any] = {
        "input": tmp_path / "rows.parquet",
        "explainer": engineered.explainer,
        "scheduler": "sync",
        "partition_rows": 1_000,
    }
    return lambda output, **more: bx.explain_dataset(**options, output=output, **more)


@once
@pytest.mark.parametrize(
    ("before", "every"),
    [
        ("nothing", 3),
        ("a run to overwrite", 10),
        ("a run to resume", 10),
        pytest.param("nothing", 1, marks=pytest.mark.soak),
        pytest.param("a run to overwrite", 1, marks=pytest.mark.soak),
        pytest.param("a run to resume", 1, marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("write", failing(errno.ENOSPC)),
        ("write", half_then_full),
        ("fsync", failing(errno.EIO)),
        ("rename", failing(errno.EACCES)),
        ("delete", failing(errno.EACCES)),
        ("list", failing(errno.EIO)),
        ("remove", failing(errno.EACCES)),
    ],
    ids=["write-ENOSPC", "write-torn", "fsync-EIO", "rename-EACCES", "delete-EACCES", "list-EIO", "remove-EACCES"],
)
def test_any_call_may_fail(
    kind: str, fault: Callable[..., Any], before: str, every: int, run: Callable[..., bx.Run], tmp_path: Path
) -> None:
    run(tmp_path / "whole")
    expected = digests(tmp_path / "whole")
    counted = Faults(kind)
    how = prepare(before, run, tmp_path / "counted")
    with counted.injected():
        run(tmp_path / "counted", **how)
    assert counted.names or (kind, before) == ("remove", "nothing")
    failed, chosen = 0, range(0, len(counted.names), every)
    for number in chosen:
        output = tmp_path / f"out-{number}"
        how = prepare(before, run, output)
        try:
            with Faults(kind, number, fault).injected():
                run(output, **how)
        except BatchExplainError as error:
            failed += 1
            assert error.exit_code in (2, 5), (number, error)
            assert "rrno" in str(error) or os.strerror(errno.ENOSPC) in str(error), (number, error)
            assert error.exit_code == 2 or "--resume" in str(error), (number, error)
            if (output / "_SUCCESS").exists() and before == "nothing":
                assert digests(output) == expected  # it was the very last call
            run(output, resume=True)
        assert digests(output) == expected, (number, counted.names[number])
        assert not leftovers(output), (number, counted.names[number], leftovers(output))
    if kind not in ("delete", "remove"):
        assert failed >= len(chosen) / 3


def prepare(before: str, run: Callable[..., bx.Run], output: Path) -> dict[str, bool]:
    """What is in the output, and how it is taken."""
    if before == "nothing":
        return {}
    run(output)
    if before == "a run to overwrite":
        return {"overwrite": True}
    (output / "_SUCCESS").unlink()
    (output / "_run/receipts/part-00001.json").unlink()
    (output / "engineered/.part-00001.parquet.x.tmp").write_bytes(b"half")
    return {"resume": True}


@once
@pytest.mark.parametrize(("kind", "fault"), [("write", half), ("write", slow), ("fsync", slow), ("rename", slow)])
def test_short_and_slow_calls_change_nothing(
    kind: str, fault: Callable[..., Any], run: Callable[..., bx.Run], tmp_path: Path
) -> None:
    run(tmp_path / "whole")
    counted = Faults(kind)
    with counted.injected():
        run(tmp_path / "counted")
    for number in range(0, len(counted.names), 1 if fault is half else 7):
        with Faults(kind, number, fault).injected():
            run(tmp_path / f"out-{number}")
        assert digests(tmp_path / f"out-{number}") == digests(tmp_path / "whole")
