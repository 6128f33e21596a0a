"""CSV and TSV: a header, UTF-8, values in quotes as RFC 4180 has them, empty is null.

Types are those that fit all values of a column in all files: whole numbers, numbers, true and false, dates and times as
ISO 8601 writes them, else text. Where a quotation mark stands nowhere but around values, a line break is the end of a
row if the number of those before it is even: so a file can be cut into blocks.
"""

import csv
import io
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from batch_explain.storage import text_files
from batch_explain.storage.formats import FormatError
from batch_explain.storage.text_files import MOMENT, Dialect

_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
_LIKE_A_CODE = r"^[-+]?(0\d|\d{19,}$)"  # numbers that would lose digits as numbers
_BOOLEANS = pa.array(_TRUE + _FALSE)
_NUMBERS = {pa.int64(), pa.float64()}


class _Csv(Dialect):
    def __init__(self, name: str, delimiter: str) -> None:
        self.name, self._delimiter = name, delimiter
        mark = rb"\r\n" + re.escape(delimiter.encode())
        # a quotation mark that begins a value, to the one that ends it; the mark first, because it is searched for
        self._quoted = re.compile(rb'"(?<![^' + mark + rb']")[^"]*(?:""[^"]*)*"(?=[' + mark + rb"]|\Z)")

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

    def types(self, block: bytes, header: bytes, before: int, known: list[pa.DataType]) -> tuple[int, pa.Schema]:
        names = self.names(header)
        self._check_quotes(block, names, before)
        texts = self._parsed(block, len(names), dict.fromkeys(range(len(names)), pa.string()), before)
        known = known or [pa.null()] * len(names)
        found = [(name, _type_of(texts.column(at), known[at])) for at, name in enumerate(names)]
        return texts.num_rows, pa.schema(found)

    def parse(self, block: bytes, header: bytes, columns: list[str], schema: pa.Schema) -> pa.Table:
        names = self.names(header)
        if not columns:
            return pa.table({"_": self._parsed(block, len(names), {0: pa.string()}, 0).column(0)})
        types = {names.index(name): schema.field(name).type for name in columns}
        return self._parsed(block, len(names), types, 0).rename_columns(columns)

    def _parsed(self, block: bytes, columns: int, types: dict[int, pa.DataType], before: int) -> pa.Table:
        """Some of so many columns, by position, because names may repeat."""
        if not block.strip(b"\r\n"):
            return pa.table([pa.array([], kind) for kind in types.values()], [str(at) for at in types])
        wrong: list[Any] = []

        def note(row: Any) -> str:
            wrong.append(row)
            return "skip"

        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(
                use_threads=False, block_size=len(block) + 1, column_names=[str(at) for at in range(columns)]
            ),
            pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=note),
            pa.csv.ConvertOptions(
                check_utf8=False,  # all of the block was
                column_types={str(at): kind for at, kind in types.items()},
                include_columns=[str(at) for at in types],
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


def _type_of(column: pa.ChunkedArray, known: pa.DataType) -> pa.DataType:
    """The narrowest type that holds all values of a column of texts without loss, and those of a known type too."""
    texts = column.drop_null()
    if not len(texts) or pa.types.is_string(known):
        return known
    undecided = pa.types.is_null(known)
    if (undecided or known == pa.bool_()) and pc.all(pc.is_in(texts, _BOOLEANS)).as_py():
        return pa.bool_()
    trimmed = pc.ascii_trim_whitespace(texts)
    if undecided or known == pa.int64():
        numbers = _cast(trimmed, pa.int64())
        if numbers is not None and pc.all(pc.equal(numbers.cast(pa.string()), trimmed)).as_py():
            return pa.int64()
    if (undecided or known in _NUMBERS) and _cast(trimmed, pa.float64()) is not None:
        whole = trimmed.filter(pc.invert(pc.match_substring(trimmed, ".")))
        return pa.string() if pc.any(pc.match_substring_regex(whole, _LIKE_A_CODE)).as_py() else pa.float64()
    if (undecided or known == MOMENT) and _cast(texts, MOMENT) is not None:
        return MOMENT
    return pa.string()


def _cast(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return None
