"""Taking the output folder: refused unless it is empty, or a run of ours that may be overwritten."""

import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from batch_explain.errors import OutputRefusedError
from batch_explain.options import ALL_TABLES, RunOptions
from batch_explain.storage.atomic import sha256_of
from batch_explain.storage.dataset import dataset_root, location_of
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import LOCK_FILE, Lock, refuse_if_held, take_lock

PLAN_FILE = "_run/plan.json"
RUN_ID_FILE = "_run/id"

_OURS = {*ALL_TABLES, "_run", "_SUCCESS", "run.json", "feature_map.parquet", "quarantine", "summary", "report.html"}


@dataclass(frozen=True)
class Claim:
    """An output that may be taken; nothing is changed before :meth:`take`.

    Parameters
    ----------
    output : Location
    leftovers : tuple of str
        What an earlier run left in it.
    plan : str or None
        Digest of that run's plan.
    resumes : bool
        Whether that run is to be continued.
    """

    output: Location
    leftovers: tuple[str, ...]
    plan: str | None = None
    resumes: bool = False

    def take(self) -> Lock:
        """Lock the folder, and remove what an earlier run left: all of it, or its temporary files if it goes on.

        Raises
        ------
        OutputRefusedError
            If the place cannot be written, or another run has taken it.
        """
        try:
            lock = take_lock(self.output)
        except OSError as error:
            raise _unwritable(self.output, error) from error
        try:
            entries = {name for name in _entries(self.output) if not _is_temporary(name)}
            if not entries <= {*self.leftovers, "_run"} or _digest_of_plan(self.output) != self.plan:
                raise OutputRefusedError(
                    f"The output {self.output} changed while this run was being planned: another run has taken it. "
                    "Give each run its own output."
                )
            if self.resumes:
                remove_temporary(self.output)
            else:
                self._remove_leftovers()
            probe = self.output.join(f".probe-{uuid.uuid4().hex}.tmp")
            probe.fs.pipe_file(probe.path, b"")
            probe.fs.rm_file(probe.path)
        except OSError as error:
            lock.release()
            raise _unwritable(self.output, error) from error
        except BaseException:
            lock.release()
            raise
        return lock

    def _remove_leftovers(self) -> None:
        """``_SUCCESS`` first, then the receipts, the plan last.

        So a reader never sees a torn run as a finished one, what is being removed is not continued, and a removal that
        is cut short can be repeated.
        """
        fs = self.output.fs
        if "_SUCCESS" in self.leftovers:
            fs.rm_file(self.output.join("_SUCCESS").path)
        own = [name for name in _entries(self.output.join("_run")) if name not in _LAST]
        for name in sorted(own, key=lambda name: name != "receipts"):
            fs.rm(self.output.join("_run", name).path, recursive=True)
        for name in self.leftovers:
            if name not in ("_SUCCESS", "_run"):
                fs.rm(self.output.join(name).path, recursive=True)
        with suppress(FileNotFoundError):
            fs.rm_file(self.output.join(PLAN_FILE).path)


_LAST = (PLAN_FILE.rsplit("/", 1)[-1], LOCK_FILE.rsplit("/", 1)[-1])


def remove_temporary(output: Location) -> None:
    """Remove the temporary files that killed processes left in a run's folder."""
    for path in output.fs.find(output.path):
        if _is_temporary(path.rsplit("/", 1)[-1]):
            with suppress(FileNotFoundError):  # its process may live, and have named or removed it
                output.fs.rm_file(path)


def _digest_of_plan(output: Location) -> str | None:
    place = output.join(PLAN_FILE)
    return sha256_of(place) if place.exists() else None


def _is_temporary(name: str) -> bool:
    return name.endswith(".tmp")


def _unwritable(output: Location, error: OSError) -> OutputRefusedError:
    return OutputRefusedError(
        f"The output {output} cannot be written: {error}. Choose another place or mend its permissions."
    )


def claim_output(options: RunOptions) -> Claim:
    """Check that the output may be taken.

    Raises
    ------
    OutputRefusedError
        If it is a file, lies inside the input (or the input in it), is held by another run, is not empty without
        ``overwrite`` or ``resume``, or holds anything that no run of this tool wrote.
    """
    try:
        return _claim(options)
    except OSError as error:
        raise OutputRefusedError(
            f"The output {Location(options.output)} cannot be listed: {error}. Choose another place, or mend its "
            "permissions."
        ) from error


def _claim(options: RunOptions) -> Claim:
    output, root = Location(options.output), dataset_root(options.input)
    source = location_of(options.input)
    if root.contains(output) and source.fs.isdir(source.path):
        raise OutputRefusedError(
            f"The output {output} lies inside the input {source}: its parts would be read as input. Choose a place "
            "beside the input."
        )
    if output.contains(source) or output.contains(root):
        raise OutputRefusedError(
            f"The input {source} lies inside the output {output}. Choose another place for the output."
        )
    if output.fs.isfile(output.path):
        raise OutputRefusedError(f"The output {output} is a file. Name a folder that is empty or does not exist.")
    entries = _entries(output)
    if not entries:
        _refuse_unwritable(output)
        return Claim(output, ())
    refuse_if_held(output)
    plan = _digest_of_plan(output)
    has_plan = plan is not None
    if not has_plan and _is_barely_begun(output, entries):
        return Claim(output, tuple(entries))
    if not options.overwrite and not options.resume:
        cure = "Choose another place."
        if has_plan and output.join("_SUCCESS").exists():
            cure = "Choose another place, or pass --overwrite to remove that run."
        elif has_plan:
            cure = "Pass --resume to continue the run that is in it, --overwrite to remove it, or choose another place."
        raise OutputRefusedError(f"The output {output} is not empty. {cure}")
    verb, touch = ("--resume", "continue it") if options.resume else ("--overwrite", "touch it")
    if not has_plan:
        raise OutputRefusedError(
            f"The output {output} is not empty and holds no run of this tool, so {verb} does not {touch}. Choose "
            "another place, or empty it yourself."
        )
    if options.resume:
        return Claim(output, tuple(entries), plan, resumes=True)
    if foreign := sorted(name for name in set(entries) - _OURS if not _is_temporary(name)):
        raise OutputRefusedError(
            f"The output {output} holds a run but also {', '.join(map(repr, foreign[:5]))}, which no run wrote, so "
            "--overwrite does not touch it. Move these away first."
        )
    given = (
        ("model", options.model),
        ("explainer", options.explainer),
        ("feature map", options.feature_map),
        ("background", options.background),
    )
    for what, path in given:
        if path is not None and output.contains(Location(path)):
            raise OutputRefusedError(
                f"The {what} {Location(path)} lies inside the output {output}, which is to be removed. Move it."
            )
    return Claim(output, tuple(entries), plan)


def _is_barely_begun(output: Location, entries: Iterable[str]) -> bool:
    """Whether nothing is there but what a run makes before its plan: its lock and temporary files."""
    lock = LOCK_FILE.rsplit("/", 1)[-1]
    return all(name == "_run" or _is_temporary(name) for name in entries) and all(
        name == lock or _is_temporary(name) for name in _entries(output.join("_run"))
    )


def _refuse_unwritable(output: Location) -> None:
    """Know early that a local place cannot be written: nothing is loaded or made for it."""
    if not output.is_local:
        return
    folder = output.path
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise OutputRefusedError(f"The output {output} cannot be made: {folder} is a file. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputRefusedError(
            f"The output {output} cannot be written: no permission for {folder}. Choose another place."
        )


def _entries(output: Location) -> list[str]:
    if not output.fs.isdir(output.path):
        return []
    return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in output.fs.ls(output.path, detail=False)]
