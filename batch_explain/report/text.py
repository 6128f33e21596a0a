"""Names and values of all kinds as text: on one line, short enough, and never markup."""

import math

_PLOTLY_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})
_MINUS = "\N{MINUS SIGN}"


def printable(text: str) -> str:
    """On one line: control characters become blanks, halves of a surrogate pair a question mark."""
    if text.isprintable():
        return text
    return "".join(
        "?" if "\ud800" <= each <= "\udfff" else each if each.isprintable() or each in _JOINERS else " "
        for each in text
    )


_JOINERS = "\u200c\u200d\u200e\u200f"  # scripts need them


def visible(name: str) -> str:
    """A name on one line; quotes where there is nothing to see."""
    text = printable(name)
    return text if text.strip() else f"“{text}”"


def shortened(text: str, most: int) -> str:
    """At most so many characters, the last one being … where some are left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def plot_label(text: str, most: int = 40) -> str:
    """A name as Plotly shows it literally, which takes ``<b>``, ``<a href>`` and ``$…$`` for markup.

    A long one is cut in its middle: names of engineered features often differ at their ends alone.
    """
    text, tail = visible(text), (most - 1) // 3
    if len(text) > most:
        text = f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"
    return text.translate(_PLOTLY_MARKUP)


def isolated(text: str) -> str:
    """Text whose direction does not turn around what stands beside it."""
    return f"\u2068{text}\u2069"


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many digits; an en dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    size = abs(value)
    if value == int(value) and size < 1e15:
        text = f"{int(size):,}"
    elif size >= 10 ** (digits - 1):
        text = f"{size:,.0f}" if size < 1e15 else f"{size:.{digits - 1}e}"
    elif size >= 1e-4:
        text = f"{size:.{digits}g}"
    else:
        text = f"{size:.{digits - 2}e}"
    return (_MINUS if value < 0 else "") + text


def file_size(size: float) -> str:
    """A number of bytes, as people say it."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def duration(seconds: float) -> str:
    """A time, as people say it."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
