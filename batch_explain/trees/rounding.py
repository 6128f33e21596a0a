"""Thresholds of libraries that round or scale a value before they compare it, as thresholds of the value itself.

Rounding to float32, subtracting and dividing by a positive number never change the order of two numbers. So there is a
largest double that still goes left, and comparing with it is the same decision for every double.
"""

from collections.abc import Callable

import numpy as np

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def below_as_float32(threshold: np.ndarray) -> np.ndarray:
    """The largest doubles whose float32 is < threshold (float32)."""
    return at_most_as_float32(np.nextafter(threshold.astype(np.float32), np.float32(-np.inf)))


def at_most_as_float32(threshold: np.ndarray) -> np.ndarray:
    """The largest doubles whose float32 is <= threshold.

    Halfway between two neighbours rounding goes to the even one.
    """
    threshold = np.asarray(threshold, dtype=np.float64)
    with np.errstate(over="ignore"):
        least = threshold.astype(np.float32)
        least = np.where(least.astype(np.float64) > threshold, np.nextafter(least, np.float32(-np.inf)), least)
    least = least.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        following = np.nextafter(least, np.float32(np.inf)).astype(np.float64)
        halfway = (least.astype(np.float64) + following) / 2
        stays = halfway.astype(np.float32) == least
    found = np.where(stays, halfway, np.nextafter(halfway, -np.inf))
    return np.where(np.abs(threshold) >= _FLOAT32_MAX, threshold, found)


def before_scaling(threshold: np.ndarray, scaled: Callable[[np.ndarray], np.ndarray], guess: np.ndarray) -> np.ndarray:
    """The largest doubles that are at most ``threshold`` after scaling.

    Parameters
    ----------
    threshold : ndarray of float64
    scaled : callable
        What the scaler computes of an array, number by number; never decreasing.
    guess : ndarray of float64
        About where they are.
    """
    low, high, step = guess.astype(np.float64), guess.astype(np.float64), np.abs(guess) * 1e-9 + 1e-9
    while (above := scaled(low) > threshold).any():
        low, step = np.where(above, low - step, low), step * 2
    while (below := scaled(high) <= threshold).any():
        high, step = np.where(below, high + step, high), step * 2
    first, last = _ordinal(low), _ordinal(high)
    while (open_ := last - first > 1).any():
        middle = first + (last - first) // 2
        goes = scaled(_double(middle)) <= threshold
        first, last = np.where(open_ & goes, middle, first), np.where(open_ & ~goes, middle, last)
    return _double(first)


def _ordinal(values: np.ndarray) -> np.ndarray:
    """Whole numbers that count the doubles in their order."""
    bits = (values + 0.0).view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def _double(ordinals: np.ndarray) -> np.ndarray:
    bits = np.where(ordinals < 0, np.int64(-(2**63)) - ordinals, ordinals)
    return np.ascontiguousarray(bits).view(np.float64)
