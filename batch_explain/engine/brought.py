"""A run without a plan beforehand: a platform brings the files, and their partitions are numbered by what they hold.

The first file that comes decides the tables; each task leaves a note of its partition, which the end gathers into the
plan.
"""

import hashlib
import json
import time
from dataclasses import replace
from typing import Any

from batch_explain.engine.estimate import rows_by_footers
from batch_explain.engine.explaining import Context
from batch_explain.engine.partitions import FilePartition, cut
from batch_explain.engine.plan import Plan, write_plan
from batch_explain.engine.runner import plan_run
from batch_explain.engine.schema import as_trained, check_columns, id_fields, some_of
from batch_explain.engine.task import run_partition
from batch_explain.engine.workers import loaded_artifacts
from batch_explain.errors import InputError, InterruptedRunError, OptionError, OutputRefusedError
from batch_explain.options import RunOptions
from batch_explain.storage.atomic import write_json
from batch_explain.storage.dataset import (
    InputFile,
    dataset_root,
    discover,
    hive_types,
    types_from_json,
    types_to_json,
)
from batch_explain.storage.filesystems import Location
from batch_explain.storage.lock import living_holder
from batch_explain.storage.output import PLAN_FILE, RUN_ID_FILE, claim_output
from batch_explain.storage.receipts import Receipt, valid_receipt
from batch_explain.storage.tables import part_name

BROUGHT_FOLDER = "_run/brought"
_BEGIN_SECONDS = 300.0  # for another process to make the plan
_DIGITS = 10**18  # of a partition's number: below 2^63


def begin(options: RunOptions, file: InputFile) -> None:
    """Make a plan without partitions, unless the output has a plan already; one of several processes makes it.

    Raises
    ------
    OutputRefusedError
        If the output holds anything else.
    """
    refuse_filter(options)
    output, deadline = Location(options.output), time.monotonic() + _BEGIN_SECONDS
    while not is_begun(output):
        try:
            claim = claim_output(options)
            plan, _ = plan_run(options, [file], loaded_artifacts(options))
            if plan.series is not None:
                raise OptionError(
                    "The model forecasts: its partitions are whole series, whose rows may be in any file, so a "
                    "platform cannot bring them file by file. Explain them with batch-explain run."
                )
            noted = f"no plan was made beforehand: the first file that came, {file.path}, decided the tables"
            with claim.take():
                if not is_begun(output):
                    write_plan(replace(plan, files=(), partitions=(), decisions=(*plan.decisions, noted)))
        except OutputRefusedError:
            if living_holder(output, wait=False) is None and not output.join(PLAN_FILE).exists():
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def refuse_filter(options: RunOptions) -> None:
    """A platform counts the rows that it hands out and gets back; OptionError."""
    if options.filter is not None:
        raise OptionError(
            "--filter leaves rows out, and a platform that hands out whole files expects them back. Explain the "
            "rows with batch-explain run, or write the wanted ones to their own files."
        )


def is_begun(output: Location) -> bool:
    """Whether there is a plan, written to its end."""
    return output.join(RUN_ID_FILE).exists() and output.join(PLAN_FILE).exists()


def run_brought(context: Context, file: InputFile) -> list[tuple[FilePartition, Receipt]]:
    """Explain a file that no plan knows; what is done already is not done again.

    Raises
    ------
    InputError
        If it has other columns than the first file, or another file of the same name was explained before.
    BatchExplainError
        As :func:`batch_explain.engine.task.run_partition` does.
    """
    plan, output = context.plan, Location(context.plan.options.output)
    file = as_trained([file], context.artifacts.columns, plan.options.columns_map)[0]
    _refuse_other_columns(context, file)
    done = []
    most = rows_by_footers(plan.options, context.artifacts, plan.batch_rows)
    for piece in cut([file], plan.options.rows_of_a_partition(file.rows, most)):
        part = replace(piece, index=number_of(file.path, piece.start, piece.stop))
        _note(output, part, plan.run_id)
        task = replace(context, plan=replace(plan, files=(file,), partitions=(part,), numbers=(part.index,)))
        done.append((part, run_partition(task, part)))
    return done


def number_of(path: str, start: int, stop: int) -> int:
    """A partition's number, by where its rows are: the same for every attempt at it, in whatever mini-batch."""
    digest = hashlib.sha256(f"{start}:{stop}:{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest, "big") % _DIGITS


def gathered(plan: Plan, listed: str | None) -> Plan:
    """The plan with all partitions that were brought.

    Parameters
    ----------
    plan : Plan
        Without partitions.
    listed : str or None
        The input: each of its files must have been brought. None: nobody knows.

    Raises
    ------
    InterruptedRunError
        If files of the input were not brought, or nothing was.
    """
    output = Location(plan.options.output)
    files: dict[str, InputFile] = {}
    parts = []
    for content in _notes(output):
        file = _file(content, plan.options.input)
        files[file.path] = file
        parts.append(FilePartition(content["index"], file, content["start"], content["stop"]))
    if not parts:
        raise InterruptedRunError(f"No mini-batch was explained into {output}. Run the parallel step first.")
    decisions = plan.decisions
    if listed is None:
        decisions = (*decisions, "the files are those that the platform brought: --input was not there to compare with")
    else:
        _refuse_not_brought(files, discover(listed, plan.options.max_bad_files), plan)
    parts.sort(key=lambda part: (part.file.path, part.start))
    return replace(
        plan,
        files=tuple(files[path] for path in sorted(files)),
        partitions=tuple(parts),
        numbers=tuple(part.index for part in parts),
        decisions=decisions,
    )


def forget_notes(output: Location) -> None:
    """Remove the notes: the plan holds what they say."""
    folder = output.join(BROUGHT_FOLDER)
    if folder.fs.isdir(folder.path):
        folder.fs.rm(folder.path, recursive=True)


def _refuse_other_columns(context: Context, file: InputFile) -> None:
    plan, artifacts, keys = context.plan, context.artifacts, hive_types([file])
    if set(keys) != set(plan.hive) or any(kind != plan.hive[key] != "string" for key, kind in keys.items()):
        raise InputError(
            f"The folders of {file.path} have the keys {some_of(sorted(keys)) or 'none'}, and those of the first file "
            f"{some_of(sorted(plan.hive)) or 'none'}, or values of another type. Make a plan first, with batch-explain "
            "plan: it sees all files."
        )
    check_columns(plan.options, [file], artifacts.columns, plan.hive, engineered=artifacts.takes_engineered)
    stored = next(iter(plan.tables.values()))[0].schema
    for field in id_fields(plan.options, plan.ids, [file], plan.hive):
        if field.type != stored.field(field.name).type:
            raise InputError(
                f"The id column '{field.name}' is {field.type} in {file.path}, and {stored.field(field.name).type} in "
                "the first file. Write the files with one type, or leave it out of --id-columns."
            )


def _note(output: Location, part: FilePartition, run_id: str) -> None:
    """Note a partition before it is explained; refuse another one of the same name.

    One that is done and has no note is in the plan already: the run has ended.
    """
    path = f"{BROUGHT_FOLDER}/{part_name(part.index)}.json"
    about = {**part.file.to_json(), "types": types_to_json([part.file])}
    content = {"index": part.index, "start": part.start, "stop": part.stop, "file": about}
    try:
        before = json.loads(output.join(path).read_bytes())
    except (FileNotFoundError, ValueError):
        if valid_receipt(output, part.index, run_id) is None:
            write_json(output, path, content)
        return
    if before["file"]["fingerprint"] != part.file.fingerprint or before["file"]["path"] != part.file.path:
        raise InputError(
            f"Two different files come as {part.file.path}, and the rows of one would take the place of the other's. "
            "Make a plan first with batch-explain plan, or pass --input-root, the folder that the files' names are "
            "relative to; id columns of a DataFrame must tell its rows apart from all others."
        )


def _notes(output: Location) -> list[dict[str, Any]]:
    folder = output.join(BROUGHT_FOLDER)
    if not folder.fs.isdir(folder.path):
        return []
    names = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in folder.fs.ls(folder.path, detail=False))
    return [json.loads(folder.join(name).read_bytes()) for name in names if name.endswith(".json")]


def _file(content: dict[str, Any], source: str) -> InputFile:
    found = dict(content["file"])
    schema = types_from_json(found.pop("types"))
    return InputFile.from_json(found, dataset_root(source).join(found["path"]).url, schema)


def _refuse_not_brought(files: dict[str, InputFile], listed: list[InputFile], plan: Plan) -> None:
    wanted = {file.path: file for file in listed if file.problem is None}
    if missing := [path for path in wanted if path not in files]:
        raise InterruptedRunError(
            f"{len(missing):,} of {len(wanted):,} files of the input were never brought: {some_of(missing, 5)}. Have "
            "the platform explain them (what is done is skipped), then finalize again."
        )
    changed = [
        path for path, file in files.items() if path not in wanted or wanted[path].fingerprint != file.fingerprint
    ]
    if changed:
        raise OptionError(
            f"{len(changed):,} files that were explained into {plan.options.output} are not, or not like this, in the "
            f"input: {some_of(changed, 5)}. Finalize with the --input that the mini-batches came from."
        )
