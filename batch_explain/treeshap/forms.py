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
MAX_PIECE = 4096  # patterns of each of many parts
MANY_FEATURES = (4, 2)  # of each of many parts: as fast as can be, or as small
NO_TABLES_FEATURES, NO_TABLES_PATTERNS = 8, 1 << 24  # of each part of a group without tables; 32 bits hold a pattern
# Against background rows: of each part, of a group of several leaves (64 bits hold a combination), of a variable.
PART_BITS, GROUP_BITS, STATES_BITS = 24, 64, 6

# Costs in processor cycles a row, at 3 GHz, fitted to timings of the kernel's runs with 25,600 rows to a block, where
# groups that have quads in common share what transposing and adding them takes.
TERM, PLANE, GROUP = 0.04, 0.12, 0.12  # forming patterns
_Steps = tuple[tuple[float, float], ...]  # up to which size, what it costs
LOOK_UP: _Steps = ((64, 1.7), (128, 1.8), (256, 1.9), (512, 2.0), (1024, 2.2), (2048, 2.5), (4096, 3.3))  # by patterns
OCCURRING: _Steps = ((6_000, 2.3), (12_000, 2.5), (30_000, 2.7), (math.inf, 3.2))  # a quad of a part, by combinations
# Numbering a row's combination: one of few, and more for each that there could be, or by a hash.
FEW, FEW_EACH, FEW_COMBINATIONS, HASH = 2.5, 6e-5, 1 << 16, 12.0
# The share of a block's 25,600 rows whose combination is new in it and must be computed, over the square root of how
# many there could be. What computing one takes: itself, each quad and term, and (many parts) four points of each part.
NEW, MOST_NEW = 0.001, 0.35
COMBINATION, QUAD_TERM, MANY_POINTS = 4.0, 1.0, 4.0
FORMULA, FORMULA_FACTOR = 75.0, 12.0  # without tables: a combination, and of each factor at four points
# Against background rows, for a combination, each leaf and each answer, and the share for each bit of the combinations.
# The sum of what they take is a quarter of this: where leaves are many and deep, nearly every row's combination is new.
BACKGROUND_COMBINATION, BACKGROUND_LEAF, BACKGROUND_ANSWER, BACKGROUND_NEW = 220.0, 300.0, 15.0, 0.02
LINE: _Steps = ((2_000, 0.0), (16_000, 0.25), (64_000, 0.9), (math.inf, 2.5))  # a cache line, by doubles of its table


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
    """Every form that a group can take, but those that another one beats in cost and in size.

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
        for kept in range(len(shared), 0, -1):  # those farthest from the root join the others
            joined = shared[kept:] + differing
            if math.prod(joined) > MAX_PART:
                break
            if math.prod(shared[:kept]) <= MAX_PART:
                forms.append(_two_parts(shared[:kept], joined, degree + len(shared) - kept, overhead))
        if len(shared) > 1 and math.prod(differing) <= MAX_PART:
            forms += [
                _many_parts(shared, differing, most, longest, overhead)
                for most in MANY_FEATURES
                if len(shared) // most + 2 <= MAX_PARTS and max(map(math.prod, _pieces_of(shared, most))) <= MAX_PIECE
            ]
        if shared and math.prod(differing) <= MAX_PART:
            pieces = _pieces_without_tables(shared)
            if len(pieces) < MAX_PARTS and max(map(math.prod, pieces)) <= NO_TABLES_PATTERNS:
                forms.append(_no_tables(pieces, differing, longest, overhead, len(shared) + leaves * degree))
    return _worthwhile(forms)


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
    quads = sum(-(-n // LANES) for n in features)
    cost = overhead + PLANE * -(-sum(map(sum, bits)) // 8) + quads * _step(OCCURRING, patterns)
    new = BACKGROUND_COMBINATION + BACKGROUND_LEAF * leaves + BACKGROUND_ANSWER * answers
    cost += _numbering(len(sizes), patterns) + min(1.0, BACKGROUND_NEW * math.log2(patterns)) * new
    return [*forms, Form(cost, 0, tuple(sizes[:-1]), BACKGROUND, 1)]


def _direct(patterns: int, features: int, points: int, overhead: float) -> Form:
    quads = -(-features // LANES)
    cost = overhead + PLANE * (1 if patterns <= 256 else 2) + quads * _step(LOOK_UP, patterns)
    return Form(cost, quads * LANES * patterns, (), DIRECT, points)


def _two_parts(shared: tuple[int, ...], differing: tuple[int, ...], degree: int, overhead: float) -> Form:
    terms = min(len(shared), degree) + 1
    cost, doubles = _in_parts((shared, differing), terms, COMBINATION)
    return Form(overhead + cost, doubles, (len(shared),), terms, -(-(len(shared) + degree) // 2) + 1)


def _many_parts(shared: tuple[int, ...], differing: tuple[int, ...], most: int, longest: int, overhead: float) -> Form:
    pieces = _pieces_of(shared, most)
    points = max(1, -(-longest // 2))
    new = COMBINATION + MANY_POINTS * (len(pieces) + 1) * padded(points) / LANES
    cost, doubles = _in_parts((*pieces, differing), points, new)
    return Form(overhead + cost, doubles, tuple(map(len, pieces)), points, points)


def _in_parts(parts: Sequence[tuple[int, ...]], terms: int, new: float) -> tuple[float, int]:
    """Cost, and size of the tables, of parts where computing a combination takes ``new`` and what its terms take."""
    doubles = 0
    for states in parts:
        patterns, quads = math.prod(states), -(-len(states) // LANES)
        record = padded(terms) + quads * terms * LANES
        doubles += patterns * record
        new += quads * terms * QUAD_TERM + record / 8 * _step(LINE, patterns * record)
    return _lazily(parts, new), doubles


def _no_tables(
    pieces: list[tuple[int, ...]], differing: tuple[int, ...], longest: int, overhead: float, factors: int
) -> Form:
    points = max(1, -(-longest // 2))
    new = FORMULA + FORMULA_FACTOR * factors * padded(points) / LANES
    return Form(overhead + _lazily((*pieces, differing), new), 0, tuple(map(len, pieces)), NO_TABLES, points)


def _pieces_without_tables(states: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Pieces of few features and patterns; a feature that has too many patterns alone is a piece."""
    pieces: list[tuple[int, ...]] = [()]
    for each in states:
        if len(pieces[-1]) == NO_TABLES_FEATURES or math.prod(pieces[-1]) * each > NO_TABLES_PATTERNS:
            pieces.append(())
        pieces[-1] += (each,)
    return [piece for piece in pieces if piece]


def _pieces_of(states: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Two pieces at least, of so many features at most, and of the same length or nearly so."""
    count = max(2, -(-len(states) // most))
    edges = [i * len(states) // count for i in range(count + 1)]
    return [states[start:stop] for start, stop in itertools.pairwise(edges)]


def _lazily(parts: Sequence[tuple[int, ...]], new: float) -> float:
    """Cost of a group in parts, of which only the combinations that occur are computed, at ``new`` each."""
    combinations = math.prod(map(math.prod, parts))
    look_up = _step(OCCURRING, combinations)
    cost = sum(PLANE + -(-len(states) // LANES) * look_up for states in parts)
    # more than 64 bits are no key, and all rows are taken as different
    share = 1.0 if combinations >> 64 else min(MOST_NEW, NEW * math.sqrt(combinations))
    return cost + _numbering(len(parts), combinations) + share * new


def _numbering(parts: int, combinations: int) -> float:
    return FEW + FEW_EACH * combinations if parts == 2 and combinations <= FEW_COMBINATIONS else HASH


def _worthwhile(forms: list[Form]) -> list[Form]:
    """The cheapest, and of the dearer ones those that are smaller than all before."""
    kept: list[Form] = []
    for form in sorted(forms, key=lambda form: form[:2]):
        if not kept or form.doubles < kept[-1].doubles:
            kept.append(form)
    return kept


def padded(n: int) -> int:
    """A number of terms, as a table stores them: whole vectors."""
    return -(-n // LANES) * LANES


def _step(costs: _Steps, size: int) -> float:
    return next(cost for most, cost in costs if size <= most)
