"""JSON lines: an object a line; types are JSON's own, and dates and times where all texts of a column are some."""

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from batch_explain.storage import text_files
from batch_explain.storage.formats import FormatError
from batch_explain.storage.text_files import MOMENT, Dialect

_LONG_INTEGER = re.compile(rb"(?<![\w.+\"-])-?[1-9]\d{18,}(?![\w.\"])")
_NUMBERS = {pa.int64(), pa.float64()}


class _JsonLines(Dialect):
    name = "JSON lines"

    def joined(self, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
        if one == other or pa.types.is_null(other):
            return one
        if pa.types.is_null(one):
            return other
        if {one, other} == _NUMBERS:
            return pa.float64()
        if {one, other} == {pa.string(), MOMENT}:
            return pa.string()
        return one if pa.types.is_nested(one) and pa.types.is_nested(other) else None  # which nobody can need

    def header_end(self, beginning: bytes) -> int:
        mark = text_files.BYTE_ORDER_MARK
        if len(beginning) < len(mark):
            return -1
        return len(mark) if beginning.startswith(mark) else 0

    def rows_end(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def names(self, header: bytes) -> list[str]:
        return []

    def types(self, block: bytes, header: bytes, before: int, known: list[pa.DataType]) -> tuple[int, pa.Schema]:
        try:
            table = _parsed(block, None)
        except pa.ArrowInvalid as error:
            raise FormatError(_placed(str(error), before)) from None
        lines = sum(1 for line in block.splitlines() if line.strip())
        if table.num_rows != lines:
            raise FormatError(
                f"rows {before} to {before + table.num_rows} stand in {lines} lines: each must have a line of its own"
            )
        for field in table.schema:
            if field.type == pa.float64():
                _refuse_rounded(field.name, table[field.name], block, before)
        return lines, pa.schema([field.with_type(_type_of(table[field.name])) for field in table.schema])

    def parse(self, block: bytes, header: bytes, columns: list[str], schema: pa.Schema) -> pa.Table:
        if not columns:
            return pa.table({"_": pa.nulls(_parsed(block, pa.schema([])).num_rows)})
        return _parsed(block, pa.schema([schema.field(name) for name in columns]))


JSON_LINES = _JsonLines()


def _parsed(block: bytes, schema: pa.Schema | None) -> pa.Table:
    if not block.strip():  # blank lines, of which pyarrow says that the file is empty
        return pa.table({}) if schema is None else schema.empty_table()
    return pa.json.read_json(
        pa.BufferReader(block),
        pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        pa.json.ParseOptions(schema, unexpected_field_behavior="infer" if schema is None else "ignore"),
    )


def _type_of(column: pa.ChunkedArray) -> pa.DataType:
    """As pyarrow finds it: texts are dates and times where all look like some."""
    if not pa.types.is_timestamp(column.type):
        return column.type
    try:
        column.cast(MOMENT)
    except pa.ArrowInvalid:  # beyond the years that nanoseconds can hold
        return pa.string()
    return MOMENT


def _refuse_rounded(name: str, column: pa.ChunkedArray, block: bytes, before: int) -> None:
    """Whole numbers beyond 64 bits, of which pyarrow makes floats in silence: ids, most often."""
    large = pc.greater_equal(pc.abs(column), float(2**63))
    at = pc.index(large, True).as_py()
    if at >= 0 and _LONG_INTEGER.search(block):
        raise FormatError(
            f"row {before + at}, column '{name}': a whole number that 64 bits do not hold would be rounded. Write it "
            "as a text"
        )


def _placed(reason: str, before: int) -> str:
    """Arrow's reason, with the row's place in the file and the column as people write them."""
    reason = reason.removeprefix("JSON parse error: ")
    reason = re.sub(r"in row (\d+)$", lambda found: f"in row {before + int(found[1])}", reason)
    reason = re.sub(r"^Column\(/(.*?)\)", r"column '\1'", reason)
    return reason.replace("Column()", "the line")
