"""What benchmarks share: their options, tables and JSON; how they measure is `batch_explain/bench/measuring.py`.

A script begins with `options(__doc__)` and `begin()` and ends with `finish(...)`. Only the standard library, psutil and
rich are imported: a process that is started from a large one would inherit its peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
if importlib.util.find_spec("batch_explain") is None:
    sys.path.append(str(ROOT))

from batch_explain.bench.measuring import (  # noqa: E402 - from the working tree, where nothing is installed
    Begun,
    Measured,
    cores,
    machine,
    measure,
    record,
    spread,
    target,
    versions,
)

__all__ = [
    "RESULTS", "ROOT", "Begun", "Measured", "begin", "commit", "cores", "finish", "machine", "measure", "options",
    "print_table", "record", "replace_between", "spread", "target", "versions", "write_json",
]  # fmt: skip


def options(
    description: str | None, *, repetitions: int | None = None, seconds: float | None = None
) -> argparse.ArgumentParser:
    """The options that all scripts have; those with a default only where it is given."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--quick", action="store_true", help="tiny, in seconds: that values are right, no times")
    if repetitions is not None:
        parser.add_argument("--repetitions", type=int, default=repetitions, help="of each way (default: %(default)s)")
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help="of each measurement (default: %(default)s)")
    return parser


def begin() -> Begun:
    """Start the clock; says where the machine is busy."""
    begun = Begun()
    if begun.busy:
        load = begun.machine["load_average"][0]
        print(f"The machine is busy (load {load}): times will be too long.", file=sys.stderr)
    return begun


def finish(
    benchmark: str,
    begun: Begun,
    given: argparse.Namespace,
    *,
    results: Any,
    settings: dict[str, Any] | None = None,
    targets: Sequence[dict[str, Any]] = (),
    problems: Sequence[str] = (),
) -> int:
    """Print targets and problems, write the JSON where it is asked for; the exit code: 1 if there is a problem.

    ``settings`` go with the options that were given.
    """
    if targets:
        lines = [
            [each["name"], _number(each["reached"]), each["asked"], "met" if each["met"] else "MISSED"]
            for each in targets
        ]
        print_table("", ["target", "reached", "asked", ""], lines)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if given.json:
        chosen = {name: value for name, value in vars(given).items() if name not in ("json", "folder")}
        content = record(
            benchmark,
            begun,
            settings={**chosen, **(settings or {})},
            results=results,
            targets=targets,
            problems=problems,
            commit=commit(ROOT),
        )
        write_json(given.json, content)
    return 1 if problems else 0


def commit(root: Path) -> str | None:
    """The commit of a working tree, with ``+`` where files differ from it; None outside of git."""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column to the left, the numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=bool(number), vertical="bottom")
    for row in rows:
        table.add_row(*row)
    # on a narrow terminal too: lines that wrap can be read, numbers that are cut off cannot
    Console(highlight=False, markup=False, width=200).print(table)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that a person can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def replace_between(path: Path, marker: str, text: str) -> None:
    """Put text between `<!-- marker -->` and `<!-- /marker -->`, which have to stand there, on lines of their own.

    Raises
    ------
    ValueError
        If the file has not exactly one such pair.
    """
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->\n"
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path.name} has no single pair of lines '{begin.strip()}' and '{end.strip()}'")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}{text.strip()}\n{end}{after}", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
