"""Where `batch-explain run` is found; one run, measured, is `batch_explain/bench/whole_run.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common import ROOT

from batch_explain.bench.whole_run import EngineRun, run_engine

__all__ = ["EngineRun", "engine_environment", "run_engine"]


def engine_environment(folder: Path) -> tuple[dict[str, str] | None, str]:
    """The environment in which `python -m batch_explain` is found: the installed package, or else this working tree."""
    command = [sys.executable, "-c", "import batch_explain"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0:
        return None, "installed"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}, "working tree"
