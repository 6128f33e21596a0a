"""The largest few features of each row, exactly, with ties in the order of features. Knows only arrays."""

import itertools

import numpy as np

# What rows are compared with then stays in the second-level cache; no power of two: columns would share its lines.
_BLOCK_ROWS = 5_000
_FEW_ROWS = 64  # whose columns are too short for instructions that take a microsecond each


def largest(sizes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the ``k`` largest of each row's sizes.

    Parameters
    ----------
    sizes : ndarray, shape (feature, row), float64
        What is not above 0 (NaN too) is never found.
    k : int
        At least 1.

    Returns
    -------
    rows, ranks, features : ndarray of int, shape (found,)
        Row by row, the largest first; of equal ones the feature that comes first. Ranks count from 0. A row has fewer
        than ``k`` where fewer are above 0.
    """
    blocks = [_of_block(sizes[:, at : at + _BLOCK_ROWS], at, k) for at in range(0, sizes.shape[1], _BLOCK_ROWS)]
    if not blocks:
        return (np.zeros(0, dtype=np.int64),) * 3
    rows, ranks, features = (np.concatenate(each) for each in zip(*blocks, strict=True))
    return rows, ranks, features


def _of_block(sizes: np.ndarray, first: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features, count = sizes.shape
    # all that reach the k-th largest: k of them, or more where there are ties, or fewer
    reach = sizes >= np.maximum(_kth_largest(sizes, k), np.nextafter(0, 1))
    place = np.flatnonzero(np.ascontiguousarray(reach.T))
    found = np.add.reduce(reach, axis=0, dtype=np.intp)
    if (found == k).all():
        return _all_alike(sizes, np.ascontiguousarray(place.reshape(count, k).T) - np.arange(count) * features, first)
    row = np.repeat(np.arange(count), found)
    at = np.arange(len(place)) - np.repeat(np.cumsum(found) - found, found)
    names, table = (np.zeros((count, int(found.max(initial=0))), dtype) for dtype in (np.int64, np.float64))
    names[row, at] = place - row * features
    table[row, at] = sizes[names[row, at], row]
    order = np.argsort(-table, axis=1, kind="stable")[:, :k]
    rows, ranks = np.nonzero(np.arange(order.shape[1]) < found[:, None])
    return rows + first, ranks, np.take_along_axis(names, order, axis=1)[rows, ranks]


def _all_alike(sizes: np.ndarray, names: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same where each row has found just as many, ``names`` (found, row): few, so they are compared pair by pair.

    Half the time of the general way, which sorts row by row.
    """
    k, count = names.shape
    table, ranks = sizes[names, np.arange(count)], np.zeros(names.shape, dtype=np.int64)
    for one, other in itertools.combinations(range(k), 2):
        larger = table[other] > table[one]
        ranks[one] += larger
        ranks[other] += ~larger
    features = np.empty(count * k, dtype=np.int64)
    features[ranks + np.arange(0, count * k, k)] = names
    return np.repeat(np.arange(first, first + count), k), np.tile(np.arange(k), count), features


def _kth_largest(sizes: np.ndarray, k: int) -> np.ndarray:
    """The ``k``-th largest of each row, 0 where fewer are above 0.

    Each feature is inserted into the sorted ``k`` largest so far, for all rows at once: two instructions that compare
    four or eight rows, for each of them. Sorting or partitioning row by row takes twice as long or more, of many rows.
    """
    features, rows = sizes.shape
    if k >= features:
        return np.zeros(rows)
    if rows < _FEW_ROWS:
        return np.asarray(np.partition(np.fmax(sizes, 0), features - k, axis=0)[features - k])
    top = np.zeros((k, rows))
    value, rest = np.empty(rows), np.empty(rows)
    for number in range(features):
        np.fmax(sizes[number], 0, out=value)
        for at in range(min(k, number + 1)):
            np.minimum(top[at], value, out=rest)
            np.maximum(top[at], value, out=top[at])
            value, rest = rest, value
    return np.asarray(top[-1])
