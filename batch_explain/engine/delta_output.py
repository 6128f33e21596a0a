"""``--output-format delta``: a run's tables as Delta tables, in its own folder or appended to others."""

from collections.abc import Sequence

from batch_explain.engine.plan import Plan
from batch_explain.errors import OutputRefusedError
from batch_explain.options import DELTA, REASONS
from batch_explain.storage.dataset import location_of
from batch_explain.storage.delta_tables import Part, check_table, commit
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt
from batch_explain.storage.tables import part_path


def check_delta_tables(plan: Plan) -> None:
    """Refuse, before anything is done, tables that could not be appended to.

    Raises
    ------
    OptionError, OutputRefusedError
        As :func:`batch_explain.storage.delta_tables.check_table` does, or if the tables would lie in the output or the
        input.
    """
    if plan.options.output_format != DELTA:
        return
    output, target = Location(plan.options.output), target_of(plan)
    if plan.options.append_to is not None:
        for place, what in ((output, "output"), (location_of(plan.options.input), "input")):
            if place.contains(target) or target.contains(place):
                raise OutputRefusedError(
                    f"--append-to {target} and the {what} {place} lie one in the other. Name a folder beside them."
                )
    for specs in plan.tables.values():
        for spec in specs:
            check_table(target, spec)


def commit_delta_tables(plan: Plan, receipts: Sequence[Receipt]) -> dict[str, int]:
    """Commit all tables, those that are not committed yet; folder -> version."""
    output, target = Location(plan.options.output), target_of(plan)
    versions = {}
    for level, specs in plan.tables.items():
        for spec in specs:
            parts = []
            for receipt in receipts:
                rows = sum(receipt.statistics["lines_of_reasons"]) if level == REASONS else receipt.lines
                files = {record.path: record for record in receipt.files}
                parts.append(Part(files[part_path(spec.folder, receipt.index)], rows))
            versions[spec.folder] = commit(target, output, spec, parts, plan.run_id)
    return versions


def target_of(plan: Plan) -> Location:
    """The folder of the Delta tables."""
    return Location(plan.options.append_to or plan.options.output)
