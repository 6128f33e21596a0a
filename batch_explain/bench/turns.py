"""Methods that take turns: each round has a turn of every method, so that what disturbs the machine falls on all."""

import contextlib
import ctypes
import io
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from batch_explain.bench.methods import Method

ROUNDS = 5
CHECKED_ROWS = 200
FEW_ROWS = 200  # a method that is given fewer is marked: it was too slow for more
_TURN_SECONDS = 0.2  # of methods whose rows take less: they are called again and again
_GROWTH = 16
_SAMPLE_SECONDS = 0.005


@dataclass
class Timed:
    """A method and what was measured of it.

    Attributes
    ----------
    rows : int
        Of a call.
    calls : int
        Of a turn.
    us : list of float
        Microseconds a row, of each turn.
    cpu, wall : float
        Seconds of all turns.
    memory_mb : float
        What the process grew by while it was called once, with all the rows.
    checked : ndarray, shape (output, used feature, row), or None
        Its values of the first rows.
    """

    method: Method
    rows: int = 0
    calls: int = 1
    us: list[float] = field(default_factory=list)
    cpu: float = 0.0
    wall: float = 0.0
    memory_mb: float = 0.0
    checked: np.ndarray | None = None


def take_turns(methods: list[Method], rows: int, seconds: float, say: Callable[[str], None]) -> list[Timed]:
    """Time those methods that can be called, on one thread, in about so many seconds.

    Parameters
    ----------
    rows : int
        Most rows of a call.
    """
    timed = [Timed(method) for method in methods if method.call is not None]
    ends = time.perf_counter() + seconds
    with threadpool_limits(1):
        for each in timed:
            say(each.method.name)
            with quiet():
                _size(each, rows, seconds / len(timed) / (ROUNDS + 1))
        for number in range(ROUNDS):
            if number > 1 and time.perf_counter() > ends:
                break
            with quiet():
                for each in timed:
                    _turn(each)
    return timed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The libraries' warnings and narration are not about times."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def _size(each: Timed, most: int, aim: float) -> None:
    """Find how many rows take as long as a turn may, by calls of more and more; check values, and measure memory."""
    count, used = 1, 0.0
    _clock(each, 1)  # warm: what is built once
    while True:
        seconds = _clock(each, count)
        used += seconds
        possible = max(1, min(most, int(aim * count / max(seconds, 1e-7))))
        if count == most or possible < 1.5 * count or used > 2 * aim:
            break
        count = min(possible, _GROWTH * count)
    each.rows = min(possible, _GROWTH * count)
    method = each.method
    assert method.call is not None
    data = method.take(each.rows)
    with _growth() as grown:
        found = method.call(data)
    each.memory_mb = grown[0]
    if method.values is not None:
        checked = min(CHECKED_ROWS, each.rows)
        if checked < each.rows:
            found = method.call(method.take(checked))
        each.checked = method.values(found, checked)
    seconds = _clock(each, each.rows)
    each.calls = max(1, round(min(_TURN_SECONDS, aim) / max(seconds, 1e-7)))


def _clock(each: Timed, rows: int) -> float:
    assert each.method.call is not None
    data = each.method.take(rows)
    started = time.perf_counter()
    each.method.call(data)
    return time.perf_counter() - started


def _turn(each: Timed) -> None:
    call, data = each.method.call, each.method.take(each.rows)
    assert call is not None
    cpu, started = time.process_time(), time.perf_counter()
    for _ in range(each.calls):
        call(data)
    seconds = time.perf_counter() - started
    each.cpu += time.process_time() - cpu
    each.wall += seconds
    each.us.append(1e6 * seconds / (each.rows * each.calls))


@contextlib.contextmanager
def _growth() -> Iterator[list[float]]:
    """MB that this process grew by at most, sampled; in a list of one."""
    process, ended, found = psutil.Process(), threading.Event(), [0.0]
    with contextlib.suppress(OSError, AttributeError):  # what earlier calls left behind would be taken again, unseen
        ctypes.CDLL(None).malloc_trim(0)
    before = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not ended.wait(_SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield found
    finally:
        ended.set()
        sampler.join()
        found[0] = (max(peak, process.memory_info().rss) - before) / 1e6


def difference(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of a row's values, relative to its largest value, at least 1."""
    rows = min(found.shape[2], reference.shape[2])
    found, reference = found[:, :, :rows], reference[:, :, :rows]
    scale = np.maximum(1.0, np.abs(reference).max(axis=1, keepdims=True, initial=0.0))
    return float(np.nan_to_num(np.abs(found - reference) / scale, nan=np.inf).max(initial=0.0))


def shares(each: Timed, other: Timed) -> list[float]:
    """How many times the other's time this one takes, round by round."""
    return [mine / theirs for mine, theirs in zip(each.us, other.us, strict=False)]


def spread_of(values: list[float]) -> float:
    """(max - min) / median: how far the rounds are apart."""
    return float((max(values) - min(values)) / np.median(values)) if values else 0.0
