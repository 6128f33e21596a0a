"""Artifacts carried to workers that do not have the files."""

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batch_explain.engine.plan import artifact_digests
from batch_explain.errors import BatchExplainError
from batch_explain.explainers.folders import explainer_in, model_in
from batch_explain.options import RunOptions
from batch_explain.storage.filesystems import Location


def _itself(place: Location) -> Location:
    return place


_FINDERS = {"model": model_in, "explainer": explainer_in, "feature_map": _itself, "background": _itself}
_here: dict[str, str] = {}  # where an artifact was said to be -> where this process has it


@dataclass
class Carried:
    """Artifacts as their files' contents.

    Parameters
    ----------
    artifacts : dict
        Where one was said to be -> its name, and its files' contents by their paths below it; that of a file is ``.``.
    """

    artifacts: dict[str, tuple[str, dict[str, bytes]]]
    _folder: str | None = field(default=None, init=False)

    @classmethod
    def of(cls, options: RunOptions) -> "Carried":
        """Those of the artifacts that are files of this machine."""
        found = {}
        for name, find in _FINDERS.items():
            given = getattr(options, name)
            if given is not None and Location(given).is_local:
                place = find(Location(given))
                found[given] = (place.name, _files(Path(place.path)))
        return cls(found)

    def unpack(self) -> None:
        """Write them to a folder of this process, in which :func:`with_carried` finds them."""
        self._folder = tempfile.mkdtemp(prefix="batch-explain-")
        for number, (given, (name, files)) in enumerate(self.artifacts.items()):
            root = Path(self._folder, str(number), name)
            for path, content in files.items():
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            _here[given] = str(root)

    def remove(self) -> None:
        """Remove what was unpacked."""
        for given in self.artifacts:
            _here.pop(given, None)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def with_carried(options: RunOptions) -> RunOptions:
    """The options, with artifacts that were carried to this process at their places here."""
    places: dict[str, Any] = {name: _here[given] for name in _FINDERS if (given := getattr(options, name)) in _here}
    return replace(options, **places) if places else options


def lacks(options: RunOptions, artifact_key: tuple[tuple[str, str], ...]) -> bool:
    """Whether this process does not find the artifacts that a run was planned with where they are said to be."""
    try:
        return tuple(sorted(artifact_digests(options).items())) != artifact_key
    except (OSError, BatchExplainError):
        return True


def _files(place: Path) -> dict[str, bytes]:
    if not place.is_dir():
        return {".": place.read_bytes()}
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
