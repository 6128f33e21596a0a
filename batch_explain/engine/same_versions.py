"""Workers must have the packages, and the versions, that this process computes with: values depend on them."""

import functools
import platform
import sys
from importlib import metadata
from typing import Any

from batch_explain.engine.plan import versions
from batch_explain.errors import InterruptedRunError, OptionError, mask_secrets

_MODULES = {"batch-explain": "batch_explain", "scikit-learn": "sklearn", "interpret-community": "interpret_community"}
_ALWAYS = ("batch-explain", "numpy", "pyarrow", "lightgbm")  # even where this process has not come to them yet
_NAMED = 4  # workers in a message


def needed() -> tuple[tuple[str, str], ...]:
    """Packages that this process uses, of those that values depend on, with their versions; Python's as 3.10."""
    known = {name: version for name, version in versions().items() if name not in ("python", "platform")}
    found = {name: version for name, version in known.items() if name in _ALWAYS or _module(name) in sys.modules}
    return (("python", _minor(platform.python_version())), *found.items())


def refuse_unlike_workers(client: Any, packages: tuple[tuple[str, str], ...]) -> None:
    """See, before anything of ours runs there, whether all workers of a cluster have what is needed.

    What is asked there are functions of the standard library alone: a worker may lack everything else.

    Raises
    ------
    OptionError
        If one lacks a package, or has another version of it; packages and workers are named.
    """
    wrong: dict[str, list[str]] = {}
    for name, version in packages:
        ask = (platform.python_version,) if name == "python" else (metadata.version, name)
        for worker, answer in client.run(*ask, on_error="return").items():
            if isinstance(answer, Exception) and not isinstance(answer, metadata.PackageNotFoundError):
                continue  # it has gone; one that is there will say more when it loads
            there = _said(name, answer)
            if there != version:
                has = f"no {name}" if there is None else f"{name} {there}"
                wrong.setdefault(f"{has} (here: {version})", []).append(mask_secrets(str(worker)))
    if wrong:
        raise OptionError(
            f"The cluster's workers are not as this process is: {'; '.join(map(_line, wrong.items()))}. Values depend "
            "on these packages: install the same versions on all workers, or run from their environment."
        )


@functools.lru_cache(maxsize=1)
def refuse_other_versions(packages: tuple[tuple[str, str], ...]) -> None:
    """See, once in a worker that may have come late, whether it has what is needed.

    Raises
    ------
    InterruptedRunError
        If it lacks a package, or has another version of it.
    """
    for name, version in packages:
        try:
            there = _said(name, platform.python_version() if name == "python" else metadata.version(name))
        except metadata.PackageNotFoundError:
            there = None
        if there != version:
            raise InterruptedRunError(
                f"A worker on {platform.node()} has {f'{name} {there}' if there else f'no {name}'}, and the run began "
                f"with {version}. Values depend on this package: install the same version on all workers, and go on "
                "with --resume."
            )


def _module(package: str) -> str:
    return _MODULES.get(package, package.replace("-", "."))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _said(name: str, answer: Any) -> str | None:
    if isinstance(answer, Exception):
        return None
    return _minor(str(answer)) if name == "python" else str(answer)


def _line(wrong: tuple[str, list[str]]) -> str:
    has, workers = wrong
    more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
    return f"{', '.join(workers[:_NAMED])}{more}: {has}"
