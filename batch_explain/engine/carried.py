"""Artifacts carried to workers that do not have the files."""

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batch_explain.engine.plan import artifact_digests
from batch_explain.errors import ArtifactError, BatchExplainError, first_line
from batch_explain.explainers.folders import explainer_in, model_in
from batch_explain.options import RunOptions
from batch_explain.storage.dataset import discover
from batch_explain.storage.filesystems import Location

_Key = tuple[tuple[str, str], ...]  # (an artifact's name, its SHA-256) of each

_OPTIONS = {"model": "model", "explainer": "explainer", "feature map": "feature_map", "background": "background"}
_FIND = {"model": model_in, "explainer": explainer_in}

_here: dict[tuple[str, str], list[str]] = {}  # an artifact -> where this process has it, for each run that carried it
_failed: list[str] = []  # why some could not be written


@dataclass
class Carried:
    """Artifacts as their files' contents.

    Parameters
    ----------
    artifacts : dict
        (Name, SHA-256) -> what its file or folder is called, and its files' contents by their paths below it; that of
        a file is ``.``.
    """

    artifacts: dict[tuple[str, str], tuple[str, dict[str, bytes]]]
    _folder: str | None = field(default=None, init=False)

    @classmethod
    def of(cls, options: RunOptions, artifact_key: _Key) -> "Carried":
        """Those of the artifacts that are files of this machine."""
        found = {}
        for name, digest in artifact_key:
            given = getattr(options, _OPTIONS[name])
            if given is None or not Location(given).is_local:  # a model that is its own explainer is carried once
                continue
            if name == "background":
                files = {file.path: Location(file.url).read_bytes() for file in discover(given)}
                found[name, digest] = ("background", files)
            else:
                place = _FIND[name](Location(given)) if name in _FIND else Location(given)
                found[name, digest] = (place.name, _files(Path(place.path)))
        return cls(found)

    def unpack(self, folder: str | None) -> None:
        """Write them below a folder, where :func:`located` finds them; why that failed, it says."""
        try:
            self._folder = tempfile.mkdtemp(prefix="batch-explain-", dir=folder)
            for number, (artifact, (name, files)) in enumerate(self.artifacts.items()):
                root = Path(self._folder, str(number), name)
                for path, content in files.items():
                    target = root / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
                _here.setdefault(artifact, []).append(str(root))
        except OSError as error:
            _failed.append(first_line(error))

    def remove(self) -> None:
        """Remove what was unpacked."""
        if self._folder is not None:
            for artifact in self.artifacts:
                _here[artifact] = [each for each in _here.get(artifact, ()) if not each.startswith(self._folder)]
            shutil.rmtree(self._folder, ignore_errors=True)


def located(options: RunOptions, artifact_key: _Key) -> RunOptions:
    """The options, with the places here of artifacts that are not where they are said to be and were carried.

    Raises
    ------
    ArtifactError
        If they were carried, and could not be written.
    """
    if not (_here or _failed) or not lacks(options, artifact_key):  # who loads them reads them all the same
        return options
    places: dict[str, Any] = {_OPTIONS[each[0]]: _here[each][-1] for each in artifact_key if _here.get(each)}
    if not places and _failed:
        raise ArtifactError(
            f"The artifacts that were sent to a worker could not be written there: {_failed[-1]}. Free space in its "
            "local directory, and go on with --resume."
        )
    return replace(options, **places) if places else options


def lacks(options: RunOptions, artifact_key: _Key) -> bool:
    """Whether this process does not find the artifacts that a run was planned with where they are said to be."""
    try:
        return tuple(sorted(artifact_digests(options).items())) != artifact_key
    except (OSError, BatchExplainError):
        return True


def _files(place: Path) -> dict[str, bytes]:
    if not place.is_dir():
        return {".": place.read_bytes()}
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
