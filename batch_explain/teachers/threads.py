"""Keeping models to one thread: the engine owns the cores."""

import sys
from typing import Any

_DEPTH = 8


def keep_to_one_thread(model: Any) -> None:
    """Set ``n_jobs`` to 1 on a fitted model and on every estimator inside it; predictions do not depend on it."""
    if "sklearn.base" in sys.modules:  # importing it takes seconds, and without it there are no estimators
        _visit(model, set(), _DEPTH)


def _visit(thing: Any, seen: set[int], depth: int) -> None:
    from sklearn.base import BaseEstimator

    if depth == 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, list | tuple):
        for part in thing[:1000]:
            _visit(part, seen, depth - 1)
    elif isinstance(thing, BaseEstimator):
        if getattr(thing, "n_jobs", 1) != 1:
            thing.n_jobs = 1
        for part in vars(thing).values():
            if isinstance(part, BaseEstimator | list | tuple):
                _visit(part, seen, depth - 1)
