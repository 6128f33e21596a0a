"""Genuine AutoML models with their scoring explainers, built offline, and what the SDK itself says of them.

`build` makes the artifacts that `explain_dataset` takes; `sdk_explain` gives the numbers it has to reproduce.
Both need the [automl] environment (Python 3.10); importing this package does not.
"""

from .kinds import KINDS, KindPaths, VacuousModelError, build
from .oracle import Oracle, sdk_explain

__all__ = ["KINDS", "KindPaths", "Oracle", "VacuousModelError", "build", "sdk_explain"]
