"""How an input is divided among tasks; in forecasting: which columns name its series, and where its history is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.estimate import batch_rows, rows_by_footers
from batch_explain.engine.partitions import FilePartition, Partition, cut
from batch_explain.engine.schema import as_trained, check_columns, id_fields, require
from batch_explain.engine.series import KEY, Piece, SeriesColumns, SeriesPartition, cut_series
from batch_explain.errors import InputError, OptionError
from batch_explain.options import DEFAULT_PARTITION_ROWS, RunOptions
from batch_explain.storage.dataset import InputFile, discover, hive_types, input_files, types_to_json
from batch_explain.teachers.base import Series


@dataclass(frozen=True)
class Division:
    """An input, divided among tasks.

    Parameters
    ----------
    partitions : tuple of Partition
    series : SeriesColumns or None
        None: each row is explained for itself.
    ids : list of pyarrow.Field
        First columns of every table that say of which row, or of which time, series and origin a line is.
    decisions : list of str
    """

    partitions: tuple[Partition, ...]
    series: SeriesColumns | None
    ids: list[pa.Field]
    decisions: list[str]


def divide(
    options: RunOptions,
    files: Sequence[InputFile],
    artifacts: Artifacts,
    keys: dict[str, pa.DataType],
    id_columns: Sequence[str],
) -> Division:
    """Check the columns, and divide rows among tasks: series as a whole, where there are any.

    Parameters
    ----------
    options : RunOptions
    files : sequence of InputFile
        Those that can be read.
    artifacts : Artifacts
    keys : dict
        Hive key -> type.
    id_columns : sequence of str
        Columns copied to every table.

    Raises
    ------
    InputError, OptionError
        If columns are missing, doubled or of the wrong type, or there is no row to explain.
    """
    ids = id_fields(options, id_columns, files, keys)
    decisions = check_columns(options, files, artifacts.columns, keys, engineered=artifacts.takes_engineered)
    unlimited = replace(options, memory_limit=None)  # a run may be resumed with another limit, but has its partitions
    by_footers = rows_by_footers(options, artifacts, batch_rows(unlimited, artifacts))
    found = None if artifacts.teacher is None else artifacts.teacher.series
    if found is None:
        for name in ("history", "target_column"):
            if getattr(options, name) is not None:
                raise OptionError(
                    f"--{name.replace('_', '-')} is for forecasting models, and this is none: its rows are explained "
                    "one by one. Leave the option out."
                )
        total = sum(file.rows for file in files)
        rows = options.rows_of_a_partition(total, by_footers)
        if rows < min(total, options.rows_of_a_partition(total)):
            decisions.append(f"partitions have up to {rows:,} rows, because footers of more would be large")
        elif rows > DEFAULT_PARTITION_ROWS and options.partition_rows is None:
            decisions.append(f"partitions have up to {rows:,} rows, because there are so many")
        return Division(tuple(cut(files, rows, options.limit)), None, ids, decisions)
    if options.filter is not None:
        raise OptionError(
            "--filter is for rows that are explained one by one, and this model forecasts: a row that is left out "
            "would be missing from the history of those that follow. Leave it out, or write the series to explain to "
            "their own files."
        )
    in_file = dict(options.columns_map)
    kinds = {column.name: column.dtype for column in artifacts.columns}
    history = _history(options, found, artifacts)
    columns = SeriesColumns(
        time=in_file.get(found.time, found.time),
        names=tuple(in_file.get(name, name) for name in found.names),
        kinds=tuple(None if (kind := kinds[name]) is None else kind.str for name in found.names),
        keys=tuple(f"{KEY}{name}" for name in (found.time, *found.names, found.origin) if name is not None),
        origin=None if found.origin is None else f"{KEY}{found.origin}",
        target=_target(options, found, files, history),
        in_input=_in_input(options, files),
        history=tuple(history),
        history_hive=hive_types(history),
    )
    most = options.rows_of_a_partition(0, by_footers)  # a partition of series is in memory as a whole
    columns, partitions, noted = cut_series(columns, files, keys, most, options.limit)
    if not any(partition.rows for partition in partitions) and columns.context:
        raise OptionError(
            f"All rows of the input have a known target ('{columns.target}'), so there is nothing to forecast and to "
            "explain. Leave --target-column out to explain all rows, or add rows whose target is null."
        )
    fields = id_fields(options, [columns.time, *columns.names], files, keys)
    fields = [field.with_name(key) for field, key in zip(fields, columns.keys, strict=False)]
    if columns.origin is not None:
        fields.append(pa.field(columns.origin, pa.timestamp("ns")))
    several = "" if columns.origin is None else ", and has a line for each origin whose targets its lags know"
    decisions += [f"a row is known by {', '.join(columns.keys)}{several}", *noted]
    return Division(tuple(partitions), columns, [*fields, *(ids if id_columns else ())], decisions)


def _history(options: RunOptions, series: Series, artifacts: Artifacts) -> list[InputFile]:
    if options.history is None:
        return []
    if series.origin is None:
        raise OptionError(
            "--history is given, but the model has no lags and windows of the target: no feature of a row depends on "
            "earlier rows. Leave it out."
        )
    files = as_trained(discover(options.history), artifacts.columns, options.columns_map)
    keys = hive_types(files)
    check_columns(options, files, artifacts.columns, keys, engineered=False)
    return files


def _target(
    options: RunOptions, series: Series, files: Sequence[InputFile], history: Sequence[InputFile]
) -> str | None:
    """The column of known targets."""
    name = options.target_column or (series.target if history else None)
    if name is None:
        if history:
            raise OptionError(
                "--history needs the column of the known targets, which the model does not record. Name it by "
                "--target-column."
            )
        return None
    require(
        history,
        [name],
        {},
        what="column of known targets",
        cure="Name the right one by --target-column.",
    )
    if not history and not _in_input(options, files):
        raise InputError(
            f"The column '{name}' that --target-column names is not in the input, and there is no --history. Name the "
            "column of the known targets, or leave the option out."
        )
    return name


def _in_input(options: RunOptions, files: Sequence[InputFile]) -> bool:
    """Whether the input itself says which targets are known: only where that was asked for."""
    have = [options.target_column in file.schema.names for file in files]
    if any(have) and not all(have):
        raise InputError(
            f"The column '{options.target_column}' that --target-column names is in some files of the input, and not "
            f"in {files[have.index(False)].path}. Write it to all of them, null where the target is not known."
        )
    return any(have)


def partition_to_json(partition: Partition, files: Sequence[InputFile], series: SeriesColumns | None) -> Any:
    """The form in a stored plan."""
    place = {file.path: number for number, file in enumerate(files)}
    if isinstance(partition, FilePartition):
        return [place[partition.file.path], partition.start, partition.stop]
    assert isinstance(partition, SeriesPartition) and series is not None
    of_history = {file.path: number for number, file in enumerate(series.history)}
    return {
        "series": [[list(key), rows] for key, rows in partition.series],
        "input": [[place[piece.file.path], list(piece.groups), piece.rows] for piece in partition.input],
        "history": [[of_history[piece.file.path], list(piece.groups), 0] for piece in partition.history],
    }


def stored_rows(content: Any) -> int:
    """Rows to explain of a partition in :func:`partition_to_json`'s form."""
    if isinstance(content, dict):
        return sum(rows for _, rows in content["series"])
    _, start, stop = content
    return int(stop) - int(start)


def partition_from_json(
    index: int, content: Any, files: Sequence[InputFile], series: SeriesColumns | None
) -> Partition:
    """Read :func:`partition_to_json`'s form back."""
    if series is None:
        file, start, stop = content
        return FilePartition(index, files[file], start, stop)
    return SeriesPartition(
        index,
        tuple((tuple(key), rows) for key, rows in content["series"]),
        tuple(Piece(files[file], tuple(groups), rows) for file, groups, rows in content["input"]),
        tuple(Piece(series.history[file], tuple(groups), rows) for file, groups, rows in content["history"]),
    )


def series_to_json(series: SeriesColumns) -> dict[str, Any]:
    """The form in a stored plan."""
    return {
        "time": series.time,
        "names": list(series.names),
        "kinds": list(series.kinds),
        "keys": list(series.keys),
        "origin": series.origin,
        "target": series.target,
        "in_input": series.in_input,
        "history": [file.to_json() for file in series.history],
        "history_types": types_to_json(series.history),
        "history_hive": {key: str(kind) for key, kind in series.history_hive.items()},
        "context": series.context,
    }


def series_from_json(content: dict[str, Any] | None, options: RunOptions) -> SeriesColumns | None:
    """Read :func:`series_to_json`'s form back."""
    if content is None:
        return None
    history: tuple[InputFile, ...] = ()
    if options.history is not None:
        history = input_files(content["history"], options.history, content["history_types"])
    return SeriesColumns(
        time=content["time"],
        names=tuple(content["names"]),
        kinds=tuple(content["kinds"]),
        keys=tuple(content["keys"]),
        origin=content["origin"],
        target=content["target"],
        in_input=content["in_input"],
        history=history,
        history_hive={key: pa.type_for_alias(kind) for key, kind in content["history_hive"].items()},
        context=content["context"],
    )
