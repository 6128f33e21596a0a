"""Bars of microseconds a row on a logarithmic scale, as an SVG: made by hand, small, the same everywhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Pixels. It follows the reader's theme.
WIDTH, LEFT, RIGHT = 760, 176, 128
BAR, STEP, TITLE, GAP, AXIS = 16, 24, 30, 18, 44
STYLE = """
text { font: 13px -apple-system, BlinkMacSystemFont, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.note { fill: #59636e; font-size: 12px; }
.grid { stroke: #d1d9e0; }
.ours { fill: #0969da; }
.peer { fill: #8c959f; }
.predict { fill: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .note { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .ours { fill: #4493f8; }
  .peer { fill: #6e7681; }
  .predict { fill: #3d444d; }
}
"""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Parameters
    ----------
    us : float
        Microseconds a row.
    times : float or None
        What stands in brackets: times those of ours.
    kind : str
        ``ours``, ``peer`` or ``predict``.
    """

    name: str
    us: float
    times: float | None
    kind: str = "peer"


def chart(groups: Sequence[tuple[str, Sequence[Bar]]], note: str) -> str:
    """An SVG: a group of bars under each title, the note under the axis."""
    every = [bar.us for _, bars in groups for bar in bars]
    low, high = math.floor(math.log10(min(every)) - 0.05), math.ceil(math.log10(max(every)) - 0.05)

    def x(us: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(us) - low) / (high - low)

    plot = sum(TITLE + STEP * len(bars) + GAP for _, bars in groups) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {plot + AXIS}" width="{WIDTH}" role="img">',
        f"<title>{escape(_summary(groups))}</title>",
        f"<style>{STYLE}</style>",
    ]
    for power in range(low, high + 1):
        at = _pixel(x(10**power))
        parts.append(f'<text class="note" x="{at}" y="{plot + 16}" text-anchor="middle">{10.0**power:,g}</text>')
    parts.append(f'<text class="note" x="{LEFT}" y="{plot + 36}">{escape(note, quote=False)}</text>')
    top = 0
    for title, bars in groups:
        parts.append(f'<text class="title" x="0" y="{top + 18}">{escape(title)}</text>')
        top += TITLE
        for power in range(low, high + 1):
            at = _pixel(x(10**power))
            bottom = top + STEP * len(bars)
            parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top - 4}" y2="{bottom}"/>')
        for bar in bars:
            end = x(bar.us)
            label = f"{_number(bar.us)}" if bar.times is None else f"{_number(bar.us)} (×{_number(bar.times)})"
            parts.append(f'<text x="{LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(bar.name)}</text>')
            parts.append(
                f'<rect class="{bar.kind}" x="{LEFT}" y="{top}" width="{_pixel(end - LEFT)}" height="{BAR}" rx="2"/>'
            )
            parts.append(f'<text x="{_pixel(end + 6)}" y="{top + 13}">{escape(label)}</text>')
            top += STEP
        top += GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _summary(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    parts = [f"{title}: " + ", ".join(f"{bar.name} {_number(bar.us)}" for bar in bars) for title, bars in groups]
    return "Microseconds a row. " + "; ".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _pixel(value: float) -> str:
    return f"{value:.1f}"
