"""The versions that a pickle was made with, as far as it tells, and what differs here."""

import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from batch_explain.explainers.skeleton import Skeleton, Thing, skeleton_of

_PYTHON_IN_PATH = re.compile(r"[/\\](?:lib[/\\])?[Pp]ython(3)\.?(\d+)[/\\]")


def made_with(source: bytes | Skeleton) -> dict[str, str]:
    """Packages and Python -> the version that a pickle was made with.

    Parameters
    ----------
    source : bytes or Skeleton

    Returns
    -------
    dict
        Only what the pickle tells: scikit-learn writes its version, numpy and pandas can be told from their modules'
        names, Python from the path of a compiled function. Empty for what is no pickle.
    """
    try:
        skeleton = source if isinstance(source, Skeleton) else skeleton_of(source)
    except Exception:  # damaged in any way
        return {}
    found: dict[str, str] = {}
    for node in skeleton.walk():
        if isinstance(node, Thing):
            _look_at(node, found)
    found.update(_by_modules(skeleton.imports))
    return dict(sorted(found.items()))


def _look_at(thing: Thing, found: dict[str, str]) -> None:
    version = thing.attributes.get("_sklearn_version")
    if isinstance(version, str):
        found.setdefault("scikit-learn", version)
    if thing.kind.startswith("numba.core.serialize.") and (python := _python_of(thing.args)):
        found.setdefault("python", python)


def _python_of(args: Iterable[Any]) -> str | None:
    """The Python whose library folder a compiled function came from: its bytecode runs on no other."""
    for arg in args:
        if isinstance(arg, bytes):
            for node in skeleton_of(arg).walk():
                if isinstance(node, str) and (match := _PYTHON_IN_PATH.search(node)):
                    return f"{match[1]}.{match[2]}"
    return None


def _by_modules(imports: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in imports:
        if name.startswith("numpy._core."):
            found["numpy"] = "2 or later"
        elif name.startswith("numpy.core."):
            found["numpy"] = "1"
        elif name.startswith("pandas.core.indexes.numeric."):
            found["pandas"] = "1"
    return found


def installed(package: str) -> str | None:
    """The version of a package here; None: it is not installed."""
    if package == "python":
        import platform

        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def differs(recorded: str, here: str | None) -> bool:
    """Whether a recorded version, which may be just its beginning, is another than the one here."""
    if here is None:
        return True
    if recorded.endswith(" or later"):
        return int(here.split(".")[0]) < int(recorded.split()[0])
    return here.split(".")[: recorded.count(".") + 1] != recorded.split(".")
