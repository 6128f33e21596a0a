"""One row of a finished run, found by its ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batch_explain.errors import IntegrityError, OptionError
from batch_explain.storage.parquet_files import open_parquet


@dataclass(frozen=True)
class Row:
    """An explained row.

    Parameters
    ----------
    ids : dict
        Id column -> its value.
    predictions : dict
        ``prediction``, ``probability_<class>``; empty where the run wrote no predictions.
    expected_values : pandas.Series of float64
        By output (``importance`` for a single one); NaN where not known.
    raw, engineered : pandas.DataFrame or None
        Importances: one line for each feature, in the order of the table, and one column for each output. None where
        the run has no such table. With the expected value a column adds up to the surrogate's margin.
    """

    ids: dict[str, Any]
    predictions: dict[str, Any]
    expected_values: "pd.Series[float]"
    raw: pd.DataFrame | None
    engineered: pd.DataFrame | None

    def __repr__(self) -> str:
        lines = [", ".join(f"{name}={value!r}" for name, value in self.ids.items())]
        lines += [f"{name}: {value}" for name, value in self.predictions.items()]
        lines += [f"expected value{_of(output)}: {value:.6g}" for output, value in self.expected_values.items()]
        for level in ("raw", "engineered"):
            frame = getattr(self, level)
            for output in () if frame is None else frame:
                values = frame[output]
                top = values.loc[values.abs().sort_values(ascending=False, kind="stable").index[:5]]
                largest = ", ".join(f"{name} {value:+.4g}" for name, value in top.items())
                lines.append(f"{level}{_of(output)}: {largest}{', …' if len(values) > len(top) else ''}")
        return "<Row " + "\n     ".join(lines) + ">"


SINGLE = "importance"  # name of the only column where there is a single output


def _of(output: Any) -> str:
    return "" if output == SINGLE else f" of {output}"


def wanted_ids(ids: Sequence[str], id: Any) -> dict[str, Any]:
    """The value of each id column.

    Raises
    ------
    OptionError
        If it names others, or not all.
    """
    if isinstance(id, Mapping):
        if set(id) != set(ids):
            raise OptionError(
                f"The rows of this run are identified by {', '.join(map(repr, ids))}, and not by "
                f"{', '.join(map(repr, id)) or 'nothing'}. Give a value for each."
            )
        return {name: id[name] for name in ids}
    if len(ids) > 1:
        example = ", ".join(f"{name!r}: …" for name in ids)
        raise OptionError(f"A row of this run is identified by {len(ids)} columns: pass {{{example}}}, not one value.")
    return {ids[0]: id}


def find(table: ds.Dataset, wanted: Mapping[str, Any]) -> tuple[int, int]:
    """Where a row stands: the number of its part, and its position there.

    Row groups whose statistics exclude it are not read, and of the others the id columns alone.

    Raises
    ------
    OptionError
        If there is no such row, or more than one.
    IntegrityError
        If a part has other columns than the first.
    """
    named = ", ".join(f"{name} = {value!r}" for name, value in wanted.items())
    condition, found = _condition(table.schema, wanted), []
    for part, fragment in enumerate(() if condition is None else table.get_fragments()):
        starts = np.cumsum([0, *(group.num_rows for group in fragment.row_groups)])
        for piece in fragment.split_by_row_group(filter=condition, schema=table.schema):
            group = piece.row_groups[0].id
            ids = ds.dataset(_read(table, fragment, group, list(wanted)))
            scanned = ids.to_table(columns={"found": condition})["found"]
            hits = np.flatnonzero(scanned.fill_null(False).to_numpy())
            found += [(part, int(starts[group] + hit)) for hit in hits]
        if len(found) > 1:
            raise OptionError(
                f"More than one row has {named}: this id does not tell rows apart. Filter run.table(…) by it, or run "
                "with --id-columns that do."
            )
    if not found:
        raise OptionError(
            f"The run has no row with {named}. Rows in quarantine are not explained: see run.table('quarantine')."
        )
    return found[0]


def read_row(table: ds.Dataset, place: tuple[int, int], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """All columns of a row, from the row group that holds it.

    Raises
    ------
    IntegrityError
        If another row stands there: the tables are not of one run.
    """
    part, position = place
    for fragment in list(table.get_fragments())[part : part + 1]:
        for group in fragment.row_groups:
            if position < group.num_rows:
                found = _read(table, fragment, group.id).slice(position, 1)
                condition = _condition(table.schema, wanted)
                if condition is not None and found.filter(condition).num_rows == 1:
                    return {name: found.column(at)[0].as_py() for at, name in enumerate(found.column_names)}
                break
            position -= group.num_rows
    raise _replaced()


def _read(table: ds.Dataset, part: ds.Fragment, group: int, columns: list[str] | None = None) -> pa.Table:
    """A row group, or columns of it; not by the fragment's own scanner, for the reason that ``open_parquet`` gives."""
    with part.open() as stream:
        parquet = open_parquet(stream, metadata=part.metadata)
        if not parquet.schema_arrow.equals(table.schema):
            raise _replaced()
        return parquet.read_row_group(group, columns=columns, use_threads=False)


def _replaced() -> IntegrityError:
    return IntegrityError(
        "The tables of the run do not hold the same rows at the same places: a part was replaced. Ask batch-explain "
        "verify, and run again."
    )


def _condition(schema: pa.Schema, wanted: Mapping[str, Any]) -> pc.Expression | None:
    """Which rows have these ids; None where none can, because a value is not of its column's type."""
    condition = pc.scalar(True)
    for name, value in wanted.items():
        column = ds.field(name)
        if value is None:
            condition = condition & column.is_null()
            continue
        try:
            scalar = pa.scalar(value)
            condition = condition & (column == scalar.cast(schema.field(name).type))
        except (pa.ArrowException, ValueError, TypeError):
            return None
    return condition


def row_of(info: Mapping[str, Any], tables: Mapping[tuple[str, str | None], ds.Dataset], id: Any) -> Row:
    """See :meth:`batch_explain.results.Run.row`.

    Parameters
    ----------
    info : mapping
        ``run.json``.
    tables : mapping
        Level (``predictions``, ``raw``, ``engineered``) and output -> the table, as far as the run has them.
    id : object or mapping
    """
    wanted = wanted_ids(info["ids"], id)
    if not tables:
        raise OptionError(
            "The run wrote no table with a line for each row. Run again with predictions, raw or engineered in "
            "--outputs."
        )
    place = find(next(iter(tables.values())), wanted)
    cells = {key: read_row(table, place, wanted) for key, table in tables.items()}
    first = next(iter(cells.values()))
    ids = {name: first[name] for name in info["ids"]}
    without = {key: {name: value for name, value in row.items() if name not in ids} for key, row in cells.items()}
    columns = list(info["outputs"] or [SINGLE])
    importances = {
        level: pd.DataFrame(
            {column: pd.Series(without[level, output], dtype="float64") for column, output in _outputs(info)},
            columns=columns,
        ).rename_axis("feature")
        for level in ("raw", "engineered")
        if any(level == each for each, _ in tables)
    }
    return Row(
        ids=ids,
        predictions=without.get(("predictions", None), {}),
        expected_values=pd.Series(info["expected_values"], index=columns, dtype="float64"),
        raw=importances.get("raw"),
        engineered=importances.get("engineered"),
    )


def _outputs(info: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [(label, label) for label in info["outputs"]] if info["outputs"] else [(SINGLE, None)]
