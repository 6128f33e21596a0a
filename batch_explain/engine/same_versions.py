"""Workers must have the packages, and the versions, that the run was planned with: values and bytes depend on them."""

import functools
import platform
import sys
from importlib import metadata
from typing import Any

from batch_explain.engine.plan import versions
from batch_explain.errors import OptionError, mask_secrets

_MODULES = {"batch-explain": "batch_explain", "scikit-learn": "sklearn", "interpret-community": "interpret_community"}
_NAMED = 4  # workers in a message


def needed() -> dict[str, str]:
    """Packages that this process uses, of those that values and bytes depend on -> version; Python as 3.10 is."""
    known = {name: version for name, version in versions().items() if name not in ("python", "platform")}
    found = {name: version for name, version in known.items() if _module(name) in sys.modules}
    return {"python": _minor(platform.python_version()), **found}


def refuse_unlike_workers(client: Any) -> None:
    """See, before anything of ours runs there, whether all workers of a cluster have what is needed.

    What is asked there are functions of the standard library alone: a worker may lack everything else.

    Raises
    ------
    OptionError
        If one lacks a package, or has another version of it; packages and workers are named.
    """
    wrong: dict[str, list[str]] = {}
    for name, version in needed().items():
        ask = (platform.python_version,) if name == "python" else (metadata.version, name)
        for worker, answer in client.run(*ask, on_error="return").items():
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
def refuse_other_versions(planned_with: tuple[tuple[str, str], ...]) -> None:
    """See, once in a worker that may have come late, whether it has the versions of the plan.

    Raises
    ------
    OptionError
        If it has another version of a package that it uses.
    """
    here, planned = needed(), dict(planned_with)
    planned["python"] = _minor(planned["python"])
    if wrong := [name for name in here if name in planned and here[name] != planned[name]]:
        name = wrong[0]
        raise OptionError(
            f"The worker {platform.node()} has {name} {here[name]}, and the run was planned with {planned[name]}. "
            "Values depend on this package: install the same version on all workers, and go on with --resume."
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
