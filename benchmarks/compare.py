"""Has anything become worse? `python benchmarks/compare.py OLD.json NEW.json`, two results of one script.

Ratios to a peer that was measured in the same run can be compared wherever they were measured; times, rates and memory
only where machine and versions are the same. Worse is what moved the wrong way by more than `--tolerance`, where
moreover the spreads do not overlap: then it exits with 1, as where a target is missed that was met. It says what it
could not compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import common

MORE_IS_BETTER = ("times_ours", "times_*faster", "*_per_second", "*_by_this_*", "efficiency", "speedup")
RATIOS = ("times_*", "*_times_predict", "share_*", "*_of_first", "*_by_this_*", "efficiency", "speedup", "overhead")
TIMES = ("*us_per_row", "*_seconds", "seconds", "*_ms", "*_s", "*_mb", "*_per_second")
# single runs, limits, what is a peer's or the machine's
LEFT_OUT = (
    "each", "cpu_per_second", "prepare_seconds", "training_seconds", "shap_us_per_row", "bound_mb",
    "processes_times_faster",
)  # fmt: skip
# of these only what they take against ours counts: that they became slower or faster by themselves is not our doing
PEERS = (
    "LightGBM *", "shap*", "woodelf*", "SDK *", "*documented script*", "*the SDK's*", "featurize + predict",
    "the model's margin",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A quantity of a result: its place, its spread, and what may be said of it."""

    where: str
    what: str
    least: float
    middle: float
    most: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.where}: {self.what}" if self.where else self.what

    @property
    def is_ratio(self) -> bool:
        """Whether it means the same on every machine."""
        return _any(self.what, RATIOS)

    @property
    def more_is_better(self) -> bool:
        """Which way is the wrong one."""
        return _any(self.what, MORE_IS_BETTER)


@dataclass(frozen=True)
class Pair:
    """The same figure before and now."""

    before: Figure
    now: Figure

    @property
    def worse_by(self) -> float:
        """0.1: a tenth worse, by the medians; negative: better."""
        old, new = self.before.middle, self.now.middle
        return (old / new if self.now.more_is_better else new / old) - 1

    @property
    def apart(self) -> bool:
        """Whether even the best of now is worse than the worst of before."""
        if self.now.more_is_better:
            return self.now.most < self.before.least
        return self.now.least > self.before.most

    def is_worse(self, tolerance: float) -> bool:
        """Worse beyond the tolerance and beyond the spreads."""
        return self.apart and self.worse_by > tolerance


def figures(results: Any, where: tuple[str, ...] = ()) -> Iterator[Figure]:
    """All spreads and single numbers of the kinds above; what lies in a list is called by its name."""
    if isinstance(results, list):
        for number, each in enumerate(results):
            if isinstance(each, dict):
                yield from figures(each, (*where, str(each.get("name", number))))
        return
    peer = bool(where) and _any(where[-1], PEERS)
    for key, value in results.items():
        if key in LEFT_OUT:
            continue
        if _is_number(value):
            value = {"min": value, "median": value, "max": value}
        if isinstance(value, list):
            yield from figures(value, where)
        elif isinstance(value, dict) and set(value) != {"min", "median", "max"}:
            yield from figures(value, (*where, key))
        elif isinstance(value, dict) and value["median"] > 0 and peer == (key == "times_ours"):
            yield from _figure(", ".join(where), key, value)


def _figure(where: str, key: str, value: dict[str, float]) -> Iterator[Figure]:
    if _any(key, (*RATIOS, *TIMES)):
        yield Figure(where, key, value["min"], value["median"], value["max"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def same_place(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why times cannot be compared; nothing if they can."""
    found = [
        f"another {name.replace('_', ' ')} ({old['machine'].get(name)}, then {new['machine'].get(name)})"
        for name in ("cpu", "cores", "memory_gb")
        if old["machine"].get(name) != new["machine"].get(name)
    ]
    packages = [
        name
        for name in sorted({*old["versions"], *new["versions"]} - {"batch-explain"})
        if old["versions"].get(name) != new["versions"].get(name)
    ]
    return found + ([f"other versions of {', '.join(packages)}"] if packages else [])


def other_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that differ, with both values."""
    names = sorted({*old["settings"], *new["settings"]} - {"from", "predict"})
    pairs = [(name, old["settings"].get(name), new["settings"].get(name)) for name in names]
    return [f"{name} was {was!r}, is {now!r}" for name, was, now in pairs if was != now and None not in (was, now)]


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs that can be compared, targets that are missed now and were met, and what cannot be compared."""
    why_not = same_place(old, new)
    before = {figure.name: figure for figure in figures(old["results"])}
    now = {figure.name: figure for figure in figures(new["results"])}
    both = [Pair(before[name], now[name]) for name in before if name in now]
    pairs = [pair for pair in both if pair.now.is_ratio or not why_not]
    said = [f"under the same settings: {each}" for each in other_settings(old, new)]
    if why_not:
        said.append(f"{len(both) - len(pairs)} times, rates and sizes: {'; '.join(why_not)}")
    for what, only in (("no longer there", before.keys() - now.keys()), ("new", now.keys() - before.keys())):
        if only:
            said.append(f"{len(only)} figures {what}: {_listed(sorted(only))}")
    met = {each["name"] for each in old["targets"] if each["met"]}
    missed = [
        f"{each['name']}: {each['reached']:g}, asked {each['asked']}"
        for each in new["targets"]
        if not each["met"] and each["name"] in met
    ]
    return pairs, missed, said


def _listed(names: list[str], most: int = 4) -> str:
    return "; ".join(names[:most]) + ("; …" if len(names) > most else "")


def read(path: Path) -> dict[str, Any]:
    """A benchmark's JSON.

    Raises
    ------
    SystemExit
        If it is none.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format_version") != 2:
        raise SystemExit(f"{path} is no result of these benchmarks, or of an older form: measure again")
    return content


def share(text: str) -> float:
    """``10%`` or ``0.1``."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def main(arguments: list[str]) -> int:
    """Compare, print; 1 where something is worse, 2 where the files are not of one benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=share, default=0.1, help="how much worse is still well (default: 10%%)")
    parser.add_argument("--all", action="store_true", help="show every figure, not only those that moved beyond it")
    options = parser.parse_args(arguments)
    old, new = read(options.old), read(options.new)
    if old["benchmark"] != new["benchmark"]:
        print(f"Of two benchmarks: {old['benchmark']} and {new['benchmark']}.", file=sys.stderr)
        return 2
    if old["settings"].get("quick") != new["settings"].get("quick"):
        print("One of them is of --quick, which measures nothing. Nothing was compared.", file=sys.stderr)
        return 2
    pairs, missed, said = compare(old, new)
    worse = [pair for pair in pairs if pair.is_worse(options.tolerance)]
    shown = [pair for pair in pairs if options.all or abs(pair.worse_by) > options.tolerance]
    title = f"{new['benchmark']}: {old['commit']} and {new['commit']}"
    lines = [_line(pair, options.tolerance) for pair in shown]
    common.print_table(title, ("", "before", "now", "worse by", ""), lines)
    beyond = f"worse by more than {options.tolerance:.0%} and beyond their spread"
    print(f"\n{len(pairs)} figures compared, {len(worse)} {beyond}.")
    for each in missed:
        print(f"A target that was met is missed: {each}")
    for problem in new["problems"]:
        print(f"PROBLEM: {problem}")
    for each in said:
        print(f"Not compared: {each}")
    return 1 if worse or missed or new["problems"] else 0


def _line(pair: Pair, tolerance: float) -> list[str]:
    verdict = "WORSE" if pair.is_worse(tolerance) else "within the spread" if pair.worse_by > tolerance else ""
    return [pair.now.name, _spread(pair.before), _spread(pair.now), f"{pair.worse_by:+.0%}", verdict]


def _spread(figure: Figure) -> str:
    if figure.least == figure.most:
        return f"{figure.middle:.4g}"
    return f"{figure.middle:.4g} ({figure.least:.4g}–{figure.most:.4g})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
