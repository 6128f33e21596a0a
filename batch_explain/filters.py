"""``--filter``: which rows are wanted, as simple conditions that must all hold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batch_explain.errors import OptionError

Literal = bool | int | float | str
COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
      | (?P<text>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")+"|`[^`]+`)
      | (?P<operator>==|!=|<>|<=|>=|=|<|>)
      | (?P<mark>[(),])
      | (?P<word>[^\W\d][\w.]*)
    )""",
    re.VERBOSE,
)
_PLAIN_NAME = re.compile(r"[^\W\d][\w.]*")
_RESERVED = {"and", "or", "not", "in", "is", "null", "true", "false", "like", "between"}
_HELP = (
    "Write conditions such as age >= 18 and job in ('clerk', 'nurse') and score is not null: a column (in double "
    "quotes where its name is no plain word), one of = != < <= > >= in, is null, is not null, and numbers, 'texts', "
    "true or false"
)


@dataclass(frozen=True)
class Condition:
    """One condition.

    Parameters
    ----------
    column : str
    operator : str
        One of ``= != < <= > >=``, ``in``, ``is null``, ``is not null``.
    values : tuple
        What the column is compared with: one value, several of ``in``, none of the last two.
    """

    column: str
    operator: str
    values: tuple[Literal, ...] = ()

    def __str__(self) -> str:
        plain = _PLAIN_NAME.fullmatch(self.column) and self.column.lower() not in _RESERVED
        name = self.column if plain else '"' + self.column.replace('"', '""') + '"'
        shown = ", ".join(map(_shown, self.values))
        return f"{name} {self.operator}" + (f" ({shown})" if self.operator == "in" else f" {shown}" * bool(self.values))


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold; as text, what :meth:`parse` reads."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read a filter as people write it.

        Raises
        ------
        OptionError
            If it is anything else than conditions joined by ``and``.
        """
        return cls(tuple(_Reader(text).conditions()))

    @property
    def columns(self) -> list[str]:
        """Those that are compared, each once."""
        return list(dict.fromkeys(condition.column for condition in self.conditions))

    def without(self, columns: Sequence[str]) -> "Filter | None":
        """The conditions on other columns; None where there are none."""
        rest = tuple(condition for condition in self.conditions if condition.column not in columns)
        return Filter(rest) if rest else None

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._refused(f"cannot be read from {text[at:].strip()[:30]!r} on")
            kind = str(found.lastgroup)
            self._tokens.append((kind, found[kind], found.start(kind)))
            at = found.end()

    def conditions(self) -> list[Condition]:
        found = [self._condition()]
        while self._at < len(self._tokens):
            kind, text, _ = self._next("'and', or the end")
            if kind != "word" or text.lower() != "and":
                raise self._refused(f"has {text!r} where 'and' is expected (there is no 'or')")
            found.append(self._condition())
        return found

    def _condition(self) -> Condition:
        column = self._column()
        kind, text, _ = self._next("a comparison")
        if kind == "operator":
            return Condition(column, {"==": "=", "<>": "!="}.get(text, text), (self._value(),))
        word = text.lower() if kind == "word" else ""
        if word == "in":
            return Condition(column, "in", self._values())
        if word == "is":
            no = self._takes("not")
            if self._takes("null"):
                return Condition(column, "is not null" if no else "is null")
            raise self._refused("has 'is' without 'null'")
        raise self._refused(f"has {text!r} where a comparison is expected")

    def _column(self) -> str:
        kind, text, _ = self._next("a column")
        if kind == "quoted":
            return text[1:-1].replace('""', '"') if text[0] == '"' else text[1:-1]
        if kind != "word" or text.lower() in _RESERVED:
            raise self._refused(f"has {text!r} where a column is expected")
        return text

    def _value(self) -> Literal:
        kind, text, _ = self._next("a value")
        if kind == "number":
            return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "word" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind == "word" and text.lower() == "null":
            raise self._refused("compares with null, which nothing is equal to: write 'is null' or 'is not null'")
        raise self._refused(f"has {text} where a value is expected (texts stand in single quotes)")

    def _values(self) -> tuple[Literal, ...]:
        values: list[Literal] = []
        mark = self._next("'('")[1]
        while mark != ")":
            if mark != ("," if values else "("):
                raise self._refused(f"has {mark!r} in a list after 'in': write (1, 2, 3)")
            values.append(self._value())
            mark = self._next("')'")[1]
        if not values:
            raise self._refused("has no list after 'in': write (1, 2, 3)")
        return tuple(values)

    def _takes(self, word: str) -> bool:
        is_next = self._at < len(self._tokens) and self._tokens[self._at][1].lower() == word
        self._at += is_next
        return is_next

    def _next(self, expected: str) -> tuple[str, str, int]:
        if self._at == len(self._tokens):
            raise self._refused(f"ends where {expected} is expected")
        self._at += 1
        return self._tokens[self._at - 1]

    def _refused(self, why: str) -> OptionError:
        return OptionError(f"--filter is {self._text!r}, which {why}. {_HELP}.")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
