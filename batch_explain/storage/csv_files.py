"""CSV and TSV: a header, UTF-8, values in quotes as RFC 4180 has them, empty is null.

Types are those that fit all values of a column in all files: whole numbers, numbers, true and false, dates and times as
ISO 8601 writes them, else text. Where a quotation mark stands nowhere but around values, a line break is the end of a
row if the number of those before it is even: so a file can be cut into blocks.
"""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from batch_explain.storage import text_files
from batch_explain.storage.filesystems import Location
from batch_explain.storage.formats import Content, FormatError
from batch_explain.storage.text_files import MOMENT

_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
_LIKE_A_CODE = r"^[-+]?(0\d|\d{19,}$)"  # numbers that would lose digits as numbers
_NUMBERS = {pa.int64(), pa.float64()}


class _Csv:
    has_statistics = False
    types_are_inferred = True

    def __init__(self, name: str, delimiter: str) -> None:
        self.name, self._delimiter = name, delimiter
        mark = re.escape(delimiter.encode())
        self._quoted = re.compile(rb"(?:\A|(?<=[\r\n" + mark + rb']))"[^"]*(?:""[^"]*)*"(?=[\r\n' + mark + rb"]|\Z)")

    def look(self, stream: BinaryIO) -> Content:
        return text_files.look(self, stream)

    def read(
        self, place: Location, content: Content, groups: list[int], columns: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        yield from text_files.read(self, place, content, groups, columns, batch_rows)

    def joined(self, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
        if one == other or pa.types.is_null(other):
            return one
        if pa.types.is_null(one):
            return other
        return pa.float64() if {one, other} == _NUMBERS else pa.string()

    def header_end(self, beginning: bytes) -> int:
        at = -1
        while (at := beginning.find(b"\n", at + 1)) >= 0:
            if beginning.count(b'"', 0, at) % 2 == 0:
                return at + 1
        return -1

    def rows_end(self, data: bytes) -> int:
        odd, stop = data.count(b'"') % 2, len(data)
        while (at := data.rfind(b"\n", 0, stop)) >= 0:
            odd ^= data.count(b'"', at, stop) % 2
            if not odd:
                return at + 1
            stop = at
        return 0

    def names(self, header: bytes) -> list[str]:
        try:
            text = header.removeprefix(text_files.BYTE_ORDER_MARK).decode()
        except UnicodeDecodeError:
            raise FormatError("its header is not UTF-8") from None
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter, strict=True))
        if not rows or not any(rows[0]):
            raise FormatError("it has no header: its first line must name the columns")
        return rows[0]

    def types(self, block: bytes, header: bytes, before: int) -> tuple[int, pa.Schema]:
        names = self.names(header)
        self._check_quotes(block, names, before)
        texts = self._parsed(block, [pa.string()] * len(names), range(len(names)), before)
        return texts.num_rows, pa.schema([(name, _type_of(texts.column(at))) for at, name in enumerate(names)])

    def parse(self, block: bytes, header: bytes, columns: list[str], schema: pa.Schema) -> pa.Table:
        names = self.names(header)
        if not columns:
            return pa.table({"_": self._parsed(block, [pa.string()] * len(names), [0], 0).column(0)})
        wanted = [names.index(name) for name in columns]
        return self._parsed(block, schema.types, wanted, 0).rename_columns(columns)

    def _parsed(self, block: bytes, types: list[pa.DataType], wanted: Any, before: int) -> pa.Table:
        """Columns by position, because names may repeat."""
        if not block.strip(b"\r\n"):
            return pa.table([pa.array([], types[at]) for at in wanted], [str(at) for at in wanted])
        wrong: list[Any] = []

        def note(row: Any) -> str:
            wrong.append(row)
            return "skip"

        places = [str(at) for at in range(len(types))]
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=places),
            pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=note),
            pa.csv.ConvertOptions(
                check_utf8=False,  # all of the block was
                column_types=dict(zip(places, types, strict=True)),
                include_columns=[str(at) for at in wanted],
                null_values=[""],
                strings_can_be_null=True,
                true_values=_TRUE,
                false_values=_FALSE,
            ),
        )
        if wrong:
            row = wrong[0]
            raise FormatError(
                f"row {before + row.number - 1} has {row.actual_columns} values, and the header names "
                f"{row.expected_columns} columns"
            )
        return table

    def _check_quotes(self, block: bytes, names: list[str], before: int) -> None:
        if b'"' not in block:
            return
        rest = self._quoted.sub(b"", block)
        at = rest.find(b'"')
        if at < 0:
            return
        lines = rest[:at].split(b"\n")
        column = min(lines[-1].count(self._delimiter.encode()), len(names) - 1)
        raise FormatError(
            f"row {before + len(lines) - 1}, column '{names[column]}': a quotation mark stands inside a value that is "
            'not in quotes, or such a value does not end (write "a ""word"" in quotes")'
        )


CSV, TSV = _Csv("CSV", ","), _Csv("TSV", "\t")


def _type_of(column: pa.ChunkedArray) -> pa.DataType:
    """The narrowest type that holds all values of a column of texts without loss."""
    texts = column.drop_null()
    if not len(texts):
        return pa.null()
    if pc.all(pc.is_in(texts, pa.array(_TRUE + _FALSE))).as_py():
        return pa.bool_()
    trimmed = pc.utf8_trim_whitespace(texts)
    if (numbers := _cast(trimmed, pa.int64())) is not None and pc.all(
        pc.equal(numbers.cast(pa.string()), trimmed)
    ).as_py():
        return pa.int64()
    if _cast(trimmed, pa.float64()) is not None and not pc.any(pc.match_substring_regex(trimmed, _LIKE_A_CODE)).as_py():
        return pa.float64()
    return MOMENT if _cast(texts, MOMENT) is not None else pa.string()


def _cast(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return None
