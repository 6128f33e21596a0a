"""Going on with a run that was stopped: the same input, artifacts and options, and what is done already."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from batch_explain.engine.plan import Plan, changed_versions, read_plan_json
from batch_explain.engine.quarantine import QUARANTINE
from batch_explain.engine.schema import some_of
from batch_explain.errors import OptionError
from batch_explain.options import RunOptions
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import (
    PARTIALS_FOLDER,
    RECEIPTS_FOLDER,
    Receipt,
    names_and_sizes,
    receipt_path,
    valid_receipt,
)

# Places are compared by what is in them; how, where and how patiently the work is done changes no result.
FREE = {
    "input", "output", "model", "explainer", "feature_map", "background", "history", "reason_codes", "group_features",
    "overwrite", "resume", "scheduler", "workers", "task_timeout", "memory_limit", "max_bad_rows", "max_bad_files",
    "sha256", "baseline", "max_drift", "report",
}  # fmt: skip


def resumed(fresh: Plan) -> Plan:
    """The plan of the run in the output, to be gone on with.

    Parameters
    ----------
    fresh : Plan
        What would be done by a new run, from the input, artifacts and options as they are now.

    Raises
    ------
    OptionError
        If any of them is not what the stopped run was begun with; it is named.
    """
    output = Location(fresh.options.output)
    now = fresh.to_json()
    try:
        before = read_plan_json(output)
        stored = Plan.from_json(before, fresh.options)
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"The plan in {output} cannot be read ({type(error).__name__}: {error}). Start anew with --overwrite."
        ) from error
    if changes := [*_changed_options(before, now), *_changed_artifacts(before, now), *_changed_files(before, now)]:
        raise OptionError(
            f"The run in {output} cannot be resumed, because it was begun with something else: {'; '.join(changes)}. "
            "Restore it, or start anew with --overwrite."
        )
    versions = ", ".join(changed_versions(before["versions"], now["versions"]))
    fixed = ("tables", "series", "partitions", "cohorts", "sketches", "sample_rows", "reasons")
    if any(before[name] != now[name] for name in fixed):
        raise OptionError(
            f"The run in {output} cannot be resumed: this program or its libraries would make other tables, "
            f"partitions or summaries ({versions or 'the versions are the same'}). Finish it with the ones that "
            "began it, or start anew with --overwrite."
        )
    decisions = stored.decisions
    if versions:
        decisions = (*decisions, f"the run was resumed with other versions: {versions}")
    return replace(stored, options=fresh.options, decisions=decisions, versions=fresh.versions)


def finished(plan: Plan) -> list[Receipt]:
    """Receipts of the partitions that need not be done again: their files are all there with their sizes."""
    output = Location(plan.options.output)
    done = set(names_and_sizes(output, RECEIPTS_FOLDER))
    folders = {PARTIALS_FOLDER, QUARANTINE, *(spec.folder for specs in plan.tables.values() for spec in specs)}
    sizes = {path: size for folder in folders for path, size in names_and_sizes(output, folder).items()}
    found = (
        valid_receipt(output, partition.index, plan.run_id, sizes)
        for partition in plan.partitions
        if receipt_path(partition.index) in done
    )
    return [receipt for receipt in found if receipt is not None]


def _changed_options(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    was, given = before["options"], now["options"]
    return [
        f"--{name.replace('_', '-')} was {_shown(before)} and is {_shown(given[name])}"
        for name in given
        if name not in FREE
        # an earlier version of this program did not know all options: it ran with their defaults
        and (before := _plain(was.get(name, getattr(RunOptions, name, None)))) != _plain(given[name])
    ]


def _changed_artifacts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    was, given = ({**plan["artifacts"], **(plan["reasons"] or {}).get("sources", {})} for plan in (before, now))
    return [f"the {name} is another file" for name in sorted({*was, *given}) if was.get(name) != given.get(name)]


def _changed_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        *_changed_of("input", before["files"], now["files"]),
        *_changed_of("history", (before["series"] or {}).get("history", ()), (now["series"] or {}).get("history", ())),
    ]


def _changed_of(what: str, before: Iterable[dict[str, Any]], now: Iterable[dict[str, Any]]) -> list[str]:
    was, given = ({file["path"]: file["fingerprint"] for file in files} for files in (before, now))
    kinds = {
        "new": [path for path in given if path not in was],
        "gone": [path for path in was if path not in given],
        "changed": [path for path in was if path in given and was[path] != given[path]],
    }
    return [
        f"the {what} file{'s' * (len(paths) > 1)} {some_of(paths, 5)} {'are' if len(paths) > 1 else 'is'} {kind}"
        for kind, paths in kinds.items()
        if paths
    ]


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
