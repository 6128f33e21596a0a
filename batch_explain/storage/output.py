"""Taking the output folder: refused unless it is empty, or a run of ours that may be overwritten."""

import os
import uuid
from dataclasses import dataclass

from batch_explain.errors import OutputRefusedError
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import dataset_root
from batch_explain.storage.filesystems import Location

PLAN_FILE = "_run/plan.json"
RUN_ID_FILE = "_run/id"

_OURS = {
    "_run", "_SUCCESS", "run.json", "feature_map.parquet", "predictions", "engineered", "raw", "summary",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """An output that may be taken; nothing is changed before :meth:`take`."""

    output: Location
    leftovers: tuple[str, ...]

    def take(self) -> None:
        """Remove what the earlier run left, its ``_SUCCESS`` first, and make the folder.

        Raises
        ------
        OutputRefusedError
            If the place cannot be written.
        """
        fs = self.output.fs
        try:
            if sorted(_entries(self.output)) != sorted(self.leftovers):
                raise OutputRefusedError(
                    f"The output {self.output} changed while this run was being planned: another run has taken it. "
                    "Give each run its own output."
                )
            # _SUCCESS first, the plan last: a reader never sees a torn run as a finished one, and a removal that is
            # cut short can be repeated
            for name in sorted(self.leftovers, key=lambda name: (name != "_SUCCESS", name == "_run")):
                if name == "_run":
                    for entry in _entries(self.output.join("_run")):
                        if entry != PLAN_FILE.rsplit("/", 1)[-1]:
                            fs.rm(self.output.join("_run", entry).path, recursive=True)
                fs.rm(self.output.join(name).path, recursive=True)
            fs.makedirs(self.output.path, exist_ok=True)
            probe = self.output.join(f".probe-{uuid.uuid4().hex}")
            fs.pipe_file(probe.path, b"")
            fs.rm_file(probe.path)
        except OSError as error:
            raise OutputRefusedError(
                f"The output {self.output} cannot be written: {error}. Choose another place or mend its permissions."
            ) from error


def claim_output(options: RunOptions) -> Claim:
    """Check that the output may be taken.

    Raises
    ------
    OutputRefusedError
        If it is a file, lies inside the input (or the input in it), is not empty without ``overwrite``, or holds
        anything that no run of this tool wrote.
    """
    output, root = Location(options.output), dataset_root(options.input)
    source = Location(options.input)
    if root.contains(output) and source.fs.isdir(source.path):
        raise OutputRefusedError(
            f"The output {output} lies inside the input {source}: its parts would be read as input. Choose a place "
            "beside the input."
        )
    if output.contains(source) or output.contains(root):
        raise OutputRefusedError(
            f"The input {source} lies inside the output {output}. Choose another place for the output."
        )
    try:
        if output.fs.isfile(output.path):
            raise OutputRefusedError(f"The output {output} is a file. Name a folder that is empty or does not exist.")
        entries = _entries(output)
    except OSError as error:
        raise OutputRefusedError(f"The output {output} cannot be listed: {error}. Choose another place.") from error
    if not entries:
        _refuse_unwritable(output)
        return Claim(output, ())
    foreign = sorted(name for name in set(entries) - _OURS if not (name.startswith(".") and name.endswith(".tmp")))
    is_run = output.join(PLAN_FILE).exists()
    if not options.overwrite:
        cure = "Choose another place" + (", or pass --overwrite to remove that run." if is_run else ".")
        raise OutputRefusedError(f"The output {output} is not empty. {cure}")
    if not is_run:
        raise OutputRefusedError(
            f"The output {output} is not empty and holds no run of this tool, so --overwrite does not touch it. Choose "
            "another place, or empty it yourself."
        )
    if foreign:
        raise OutputRefusedError(
            f"The output {output} holds a run but also {', '.join(map(repr, foreign[:5]))}, which no run wrote, so "
            "--overwrite does not touch it. Move these away first."
        )
    given = (("model", options.model), ("explainer", options.explainer), ("feature map", options.feature_map))
    for what, path in given:
        if path is not None and output.contains(Location(path)):
            raise OutputRefusedError(
                f"The {what} {Location(path)} lies inside the output {output}, which is to be removed. Move it."
            )
    return Claim(output, tuple(entries))


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
