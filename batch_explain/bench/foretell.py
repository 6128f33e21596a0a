"""How long N rows would take on M cores, and how sure that is."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from batch_explain.bench.runs import Way

SHORT_SECONDS = 2.0  # of tasks: below it, what a run of many rows does not feel counts


@dataclass(frozen=True)
class Foretold:
    """An estimate.

    Parameters
    ----------
    rows, cores : int
    seconds, least, most : float
        Of the whole run, by the median, the fastest and the slowest that was measured.
    rows_per_second : float
        While tasks run.
    apart_seconds : float
        Of these: start, and closing the run.
    gain : float or None
        What a further worker added, of what the first one does; None where it was not measured.
    assumed : tuple of str
        What has to hold for it.
    """

    rows: int
    cores: int
    seconds: float
    least: float
    most: float
    rows_per_second: float
    apart_seconds: float
    gain: float | None
    assumed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As part of the results."""
        return {
            "rows": self.rows,
            "cores": self.cores,
            "seconds": {"min": round(self.least, 1), "median": round(self.seconds, 1), "max": round(self.most, 1)},
            "rows_per_second": round(self.rows_per_second),
            "apart_seconds": round(self.apart_seconds, 1),
            "gain_of_a_worker": None if self.gain is None else round(self.gain, 3),
            "assumed": list(self.assumed),
        }

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.rows:,} rows on {self.cores} core{'s' * (self.cores > 1)}: about {duration(self.seconds)} "
            f"({duration(self.least)} to {duration(self.most)}), at {self.rows_per_second:,.0f} rows a second, "
            f"{duration(self.apart_seconds)} of it start and closing"
        )


def foretell(ways: list[Way], rows: int, cores: int) -> Foretold | None:
    """Estimate a run of so many rows from those that were measured; None where none was."""
    ways = [way for way in ways if way.runs]
    if not ways:
        return None
    nearest = next((way for way in ways if way.workers == cores), ways[0])
    one = next((way for way in ways if way.workers == 1), None)
    many = next((way for way in ways if way.workers > 1), None)
    gain = None
    if one is not None and many is not None:
        speedup = median(one.us) / median(many.us)
        gain = min(1.0, max(0.0, (speedup - 1) / (many.workers - 1)))
    assumed = ["the other rows cost what the measured ones do, and reading and writing keep up"]
    us = median(nearest.us)
    if nearest.workers != cores:
        each = 1.0 if gain is None else gain
        us *= (1 + each * (nearest.workers - 1)) / (1 + each * (cores - 1))
        how = "as one worker does (not measured)" if gain is None else f"{each:.0%} of one, as here"
        assumed.append(f"each worker after the first adds {how}")
    times = _within(nearest)
    apart = median(run.startup_seconds + run.closing_seconds for run in nearest.runs)
    return Foretold(
        rows=rows,
        cores=cores,
        seconds=apart + rows * us / 1e6,
        least=apart + rows * us / 1e6 * min(times),
        most=apart + rows * us / 1e6 * max(times),
        rows_per_second=1e6 / us,
        apart_seconds=apart,
        gain=gain,
        assumed=tuple(assumed),
    )


def _within(way: Way) -> list[float]:
    """How far runs are from their median; of a single run, its partitions from theirs."""
    values = way.us if len(way.runs) > 1 else way.runs[0].part_us_per_row
    middle = median(values)
    return [value / middle for value in values]


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one says it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
