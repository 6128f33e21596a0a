"""The forms that a group of leaves can take, and what each costs: see :mod:`batch_explain.treeshap.groups`."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

DIRECT, NO_TABLES, BACKGROUND = 0, -1, -2  # instead of a number of terms
LANES = 4  # of the kernel: columns of a table that one look-up reads
MAX_PLANE = 256  # patterns that one byte numbers: states of a variable
MAX_DIRECT = 4096  # patterns of a direct table: 16 bits hold one
MAX_PART = 512  # patterns of each of two parts
MAX_PARTS = 160
MANY_FEATURES = (4, 2)  # of each of many parts: as fast as can be, or as small
NO_TABLES_FEATURES, NO_TABLES_PATTERNS = 8, 1 << 24  # of each part of a group without tables; 32 bits hold a pattern
# Against background rows: of each part, of a group of several leaves (64 bits hold a combination), of a variable.
PART_BITS, GROUP_BITS, STATES_BITS = 24, 64, 6

# Costs in processor cycles a row, fitted to timings of the kernel, as if no groups had quads in common.
TERM, PLANE, GROUP = 0.12, 0.3, 0.3
LOOK_UP = ((64, 2.3), (128, 2.4), (256, 2.7), (512, 4.2), (1024, 6.5), (2048, 10.0), (4096, 14.0))  # patterns, cost
# A group in parts: hashing a row's patterns, looking a quad up, and the share of rows, for each bit of the patterns,
# whose combination is new in the block and must be computed: by part, quad and term, or (many parts) part and point.
HASH, HASH_PART, OCCURRING, NEW = 15.0, 3.0, 3.6, 0.02
PARTS, PART_QUAD, PART_TERM = 8.0, 2.0, 0.7
MANY_PART, MANY_POINT = 3.0, 0.4
FORMULA, FORMULA_FACTOR = 100.0, 16.0  # without tables: a combination, and of each factor at four points
# Against background rows, for a combination, each leaf and each answer. The sum of what they take is a quarter of this:
# where leaves are many and deep, nearly every row's combination is new, and the share above is too low.
BACKGROUND_COMBINATION, BACKGROUND_LEAF, BACKGROUND_ANSWER = 300.0, 400.0, 20.0
LINE = ((2_000, 0.3), (16_000, 1.2), (64_000, 2.5), (math.inf, 5.0))  # doubles of a table, cost of each cache line


class Form(NamedTuple):
    """How a group's tables could be laid out.

    Parameters
    ----------
    cost : float
        Cycles a row.
    doubles : int
        Size of the tables.
    sizes : tuple of int
        Number of features of each part but the last, taken from those that all leaves share, in their order; the last
        part has all others, and its table sums over the leaves. Empty: a single part. BACKGROUND: numbers of variables
        instead, one feature's next to each other; those of the last part are left out.
    terms : int
        Coefficients or points that are stored, or DIRECT, NO_TABLES or BACKGROUND.
    points : int
        Quadrature points that the tables are computed with.
    """

    cost: float
    doubles: int
    sizes: tuple[int, ...]
    terms: int
    points: int


def forms_of(
    shared: tuple[int, ...], differing: tuple[int, ...], longest: int, degree: int, terms: int, leaves: int
) -> list[Form]:
    """Every form that a group can take.

    Parameters
    ----------
    shared, differing : tuple of int
        States of each feature that all leaves' paths have alike, and of each other feature.
    longest, degree : int
        Most features of a leaf, and most of them that not all leaves share.
    terms : int
        Terms of the patterns.
    leaves : int
    """
    forms: list[Form] = []
    patterns, features = math.prod(shared) * math.prod(differing), len(shared) + len(differing)
    overhead = GROUP + TERM * terms
    if patterns <= MAX_DIRECT:
        forms.append(_direct(patterns, features, max(1, -(-longest // 2)), overhead))
    if patterns > 256:
        kept = len(shared)
        while kept and math.prod(shared[:kept]) > MAX_PART:  # those farthest from the root join the others
            kept -= 1
        joined = shared[kept:] + differing
        if kept and math.prod(joined) <= MAX_PART:
            forms.append(_two_parts(shared[:kept], joined, degree + len(shared) - kept, overhead))
        if len(shared) > 1 and math.prod(differing) <= MAX_PART:
            forms += [
                _many_parts(shared, differing, most, longest, overhead)
                for most in MANY_FEATURES
                if len(shared) // most + 2 <= MAX_PARTS
            ]
        if shared and math.prod(differing) <= MAX_PART:
            pieces = _pieces_without_tables(shared)
            if len(pieces) < MAX_PARTS and max(map(math.prod, pieces)) <= NO_TABLES_PATTERNS:
                forms.append(_no_tables(pieces, differing, longest, overhead, len(shared) + leaves * degree))
    return forms


def forms_against(states: Sequence[Sequence[int]], leaves: int, answers: int) -> list[Form]:
    """Every form that a group can take against background rows; a group of one leaf has one at least.

    Parameters
    ----------
    states : sequence of sequence of int
        Of each feature, of each of its variables. Those of one leaf are 2.
    leaves, answers : int
        Answers of all leaves together.
    """
    forms: list[Form] = []
    each = [number for variables in states for number in variables]
    if max(each) > MAX_PLANE:
        return forms
    patterns, overhead = math.prod(each), GROUP + TERM * (sum(each) - len(each))
    if patterns <= MAX_DIRECT:
        forms.append(_direct(patterns, len(states), 1, overhead))
    bits = [[(number - 1).bit_length() for number in variables] for variables in states]
    if max(each) > 1 << STATES_BITS or (leaves > 1 and sum(map(sum, bits)) > GROUP_BITS):
        return forms
    sizes, features, room = [0], [0], PART_BITS  # of each part: variables, features
    for variables in bits:
        features[-1] += 1
        for width in variables:
            if width > room:
                sizes.append(0)
                features.append(1)
                room = PART_BITS
            sizes[-1] += 1
            room -= width
    cost = overhead + PLANE * -(-sum(map(sum, bits)) // 8) + sum(-(-n // LANES) for n in features) * OCCURRING
    new = BACKGROUND_COMBINATION + BACKGROUND_LEAF * leaves + BACKGROUND_ANSWER * answers
    cost += _lazily(len(sizes), patterns, new)
    return [*forms, Form(cost, 0, tuple(sizes[:-1]), BACKGROUND, 1)]


def _direct(patterns: int, features: int, points: int, overhead: float) -> Form:
    quads = -(-features // LANES)
    look_up = next(cost for most, cost in LOOK_UP if patterns <= most)
    cost = overhead + PLANE * (1 if patterns <= 256 else 2) + quads * look_up
    return Form(cost, quads * LANES * patterns, (), DIRECT, points)


def _two_parts(shared: tuple[int, ...], differing: tuple[int, ...], degree: int, overhead: float) -> Form:
    terms = min(len(shared), degree) + 1
    cost, new, doubles = overhead, PARTS, 0
    for states in (shared, differing):
        patterns, quads = math.prod(states), -(-len(states) // LANES)
        record = padded(terms) + quads * terms * LANES
        doubles += patterns * record
        cost += PLANE + quads * OCCURRING
        new += quads * (PART_QUAD + PART_TERM * terms) + record / 8 * _line(patterns * record)
    cost += _lazily(2, math.prod(shared) * math.prod(differing), new)
    return Form(cost, doubles, (len(shared),), terms, -(-(len(shared) + degree) // 2) + 1)


def _many_parts(shared: tuple[int, ...], differing: tuple[int, ...], most: int, longest: int, overhead: float) -> Form:
    count = max(2, -(-len(shared) // most))
    pieces = _pieces(shared, count)
    points = max(1, -(-longest // 2))
    cost, new, doubles = overhead, PARTS, 0
    for states in (*pieces, differing):
        patterns, quads = math.prod(states), -(-len(states) // LANES)
        record = padded(points) + quads * points * LANES
        doubles += patterns * record
        cost += PLANE + quads * OCCURRING
        new += quads * (PART_QUAD + PART_TERM * points) + record / 8 * _line(patterns * record)
        new += MANY_PART + MANY_POINT * (count + 1) * padded(points) / LANES
    cost += _lazily(count + 1, math.prod(shared) * math.prod(differing), new)
    return Form(cost, doubles, tuple(map(len, pieces)), points, points)


def _no_tables(
    pieces: list[tuple[int, ...]], differing: tuple[int, ...], longest: int, overhead: float, factors: int
) -> Form:
    points = max(1, -(-longest // 2))
    cost = overhead + sum(PLANE + -(-len(states) // LANES) * OCCURRING for states in (*pieces, differing))
    new = FORMULA + FORMULA_FACTOR * factors * padded(points) / LANES
    cost += _lazily(len(pieces) + 1, math.prod(map(math.prod, (*pieces, differing))), new)
    return Form(cost, 0, tuple(map(len, pieces)), NO_TABLES, points)


def _pieces_without_tables(states: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Pieces of few features and patterns; a feature that has too many patterns alone is a piece."""
    pieces: list[tuple[int, ...]] = [()]
    for each in states:
        if len(pieces[-1]) == NO_TABLES_FEATURES or math.prod(pieces[-1]) * each > NO_TABLES_PATTERNS:
            pieces.append(())
        pieces[-1] += (each,)
    return [piece for piece in pieces if piece]


def _pieces(states: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """As many pieces, of the same length or nearly so."""
    edges = [i * len(states) // count for i in range(count + 1)]
    return [states[start:stop] for start, stop in itertools.pairwise(edges)]


def _lazily(parts: int, combinations: int, new: float) -> float:
    """Cost of a group in parts, of which only the combinations that occur are computed, at ``new`` each."""
    return HASH + HASH_PART * parts + min(1.0, NEW * math.log2(combinations)) * new


def padded(n: int) -> int:
    """A number of terms, as a table stores them: whole vectors."""
    return -(-n // LANES) * LANES


def _line(doubles: int) -> float:
    return next(cost for most, cost in LINE if doubles <= most)
