"""Cutting trees into groups of leaves, each small enough for tables.

The contribution of one leaf to a row's SHAP values depends on the row only through *which of the path's features are
satisfied*: with value v, zero fractions z_j (products of cover ratios) and satisfied o_j in {0, 1},

    phi_j = v (o_j - z_j) * integral over t in [0, 1] of  prod over i != j of g_i(t),   g_i(t) = z_i + (o_i - z_i) t

(Lundberg et al. 2018, algorithm 2, in the integral form of the Shapley value: Owen 1972, "Multilinear extensions of
games"). With k features the integrand is a polynomial of degree k - 1, so Gauss-Legendre quadrature is exact.

A *group* is all leaves below a node, its root. The variables tested on their paths, with the cells that no path tells
apart made one *state*, number the *patterns*: all combinations of states. A group takes one of three forms:

- **direct**: one table of the summed contributions for every pattern;
- **two parts**: the features are divided in two (those split below the root, whose table sums over the leaves, and
  those only above it), with a table each. The integral of a product of two polynomials, of which one has degree d, is
  a dot product of d + 1 coefficients in the orthonormal Legendre basis, so the tables hold such coefficients;
- **many parts**, for the longest paths: the tables hold values at quadrature points, multiplied point by point.

A group in parts is computed once for each combination of patterns that occurs in a block of rows, not once a row: deep
paths split off few rows at a time, so that most rows agree on most of their splits.

Groups are chosen tree by tree, from the leaves up: the cheapest by a cost model of the kernel, where the tables' memory
has a price, which is raised until a bound on the memory is met.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.trees.ensemble import Ensemble
from batch_explain.treeshap.splits import Splits, Variable

LANES = 4  # of the kernel: columns of a table that one look-up reads
MAX_DIRECT = 4096  # patterns of a direct table
MAX_PART = 512  # patterns of each of two parts
MAX_PARTS = 160
MAX_FEATURES = 512  # on one path
MANY_FEATURES = (4, 2)  # of each of many parts: as fast as can be, or as small

# Price of a double of table in cycles a row: what it costs to stream the tables once for every block of rows.
STREAMING = 3e-4
HALVINGS = 3

# Costs in processor cycles a row, fitted to timings of the kernel.
TERM, PLANE, GROUP = 0.12, 0.3, 0.3
LOOK_UP = ((64, 2.3), (128, 2.4), (256, 2.6), (512, 3.6), (1024, 5.0), (2048, 7.5), (4096, 10.0))  # patterns, cost
# A group in parts: hashing a row's patterns, looking a quad up, and the share of rows, for each bit of the patterns,
# whose combination is new in the block and must be computed: by part, quad and term, or (many parts) part and point.
HASH, HASH_PART, OCCURRING, NEW = 15.0, 3.0, 3.6, 0.02
PARTS, PART_QUAD, PART_TERM = 8.0, 2.2, 1.1
MANY_PART, MANY_POINT = 6.0, 0.8
LINE = ((2_000, 0.3), (16_000, 1.2), (64_000, 2.5), (math.inf, 5.0))  # doubles of a table, cost of each cache line


@dataclass(frozen=True)
class Leaf:
    """One leaf's path.

    Parameters
    ----------
    value : float
    cells : dict
        Variable -> the set of cells that it must be in.
    zero_fraction : dict
        Feature -> product of the cover ratios of its splits.
    """

    value: float
    cells: dict[int, int]
    zero_fraction: dict[int, float]


class Form(NamedTuple):
    """How a group's tables could be laid out.

    Parameters
    ----------
    cost : float
        Cycles a row.
    doubles : int
        Size of the tables.
    sizes : tuple of int
        Number of features of each part but the last, taken from those that are split only above the root, in their
        order; the last part has all others, and its table sums over the leaves. Empty: a single part.
    terms : int
        Coefficients or points that are stored; 0: direct.
    points : int
        Quadrature points that the tables are computed with.
    """

    cost: float
    doubles: int
    sizes: tuple[int, ...]
    terms: int
    points: int


@dataclass
class Group:
    """All leaves below a node.

    Parameters
    ----------
    leaves : list of Leaf
    sets : dict
        Variable -> the sets of cells that paths require.
    split_below : frozenset of int
        Features that are split at or below the root.
    forms : list of Form
        Ways to lay it out; none where it has too many patterns.
    """

    leaves: list[Leaf]
    sets: dict[int, frozenset[int]]
    split_below: frozenset[int]
    forms: list[Form] = field(default_factory=list)


@dataclass(frozen=True)
class Chosen:
    """A group in the form that was chosen for it."""

    group: Group
    form: Form

    def parts(self, variables: Sequence[Variable]) -> list[list[int]]:
        """The variables of each part."""
        by_feature = _by_feature(self.group.sets, variables)
        above = [feature for feature in by_feature if feature not in self.group.split_below]
        parts, start = [], 0
        for size in self.form.sizes:
            parts.append(above[start : start + size])
            start += size
        taken = set(above[:start])
        parts.append([feature for feature in by_feature if feature not in taken])
        return [[v for feature in part for v in by_feature[feature]] for part in parts]


def _by_feature(sets: Iterable[int], variables: Sequence[Variable]) -> dict[int, list[int]]:
    """Variables of each feature, in the order of the path."""
    found: dict[int, list[int]] = {}
    for variable in sets:
        found.setdefault(variables[variable].feature, []).append(variable)
    return found


def partition_cells(all_cells: int, sets: Iterable[int]) -> list[int]:
    """The states of a variable: its cells, those together that are in exactly the same sets; cell 0 is in the first."""
    states = [all_cells]
    for cells in sets:
        if not states[0] & cells & 1:
            cells = ~cells
        states = [part for state in states for part in (state & cells, state & ~cells) if part]
    return states


def cut_trees(ensemble: Ensemble, splits: Splits, *, max_doubles: int) -> list[list[Chosen]]:
    """Cut every tree into groups.

    Parameters
    ----------
    ensemble : Ensemble
    splits : Splits
    max_doubles : int
        Bound on the size of all tables together. It is exceeded only where even the smallest tables are larger.

    Returns
    -------
    list of list of Chosen
        Groups of each tree.
    """
    leaf_forms: dict[tuple[tuple[int, ...], int], list[Form]] = {}
    _check_depth(ensemble)
    trees = [_Tree(ensemble, splits, tree, leaf_forms) for tree in range(ensemble.n_trees)]
    price = STREAMING
    chosen = [tree.cut(price) for tree in trees]
    if _doubles(chosen) <= max_doubles:
        return chosen
    # raise the price until the bound is met, then halve the interval between the last two a few times
    while _doubles(chosen) > max_doubles and price < 1.0:
        price *= 4.0
        chosen = [tree.cut(price) for tree in trees]
    step = 2.0
    for _ in range(HALVINGS):
        found = [tree.cut(price / step) for tree in trees]
        if _doubles(found) <= max_doubles:
            chosen, price = found, price / step
        step = math.sqrt(step)
    return chosen


def _check_depth(ensemble: Ensemble) -> None:
    most = int(np.diff(ensemble.leaf_offset).max(initial=1))
    if most > MAX_FEATURES and _longest_path(ensemble) > MAX_FEATURES:
        raise ArtifactError(
            f"A path of the ensemble splits on more than {MAX_FEATURES} distinct features, which is beyond what exact "
            "SHAP values are computed for. Train the surrogate with a smaller num_leaves, or a max_depth."
        )


def _longest_path(ensemble: Ensemble) -> int:
    """Most inner nodes on one path: no path has more distinct features."""
    longest = 0
    for tree in range(ensemble.n_trees):
        nodes = slice(int(ensemble.node_offset[tree]), int(ensemble.node_offset[tree + 1]))
        depth = np.ones(nodes.stop - nodes.start, dtype=np.int64)
        for node, children in enumerate(zip(ensemble.left[nodes], ensemble.right[nodes], strict=True)):
            for child in children:
                if child >= 0:
                    depth[child] = depth[node] + 1
        longest = max(longest, int(depth.max(initial=0)))
    return longest


def _doubles(chosen: list[list[Chosen]]) -> int:
    return sum(one.form.doubles for tree in chosen for one in tree)


class _Tree:
    """One tree: every group that it could be cut into, and the cheapest cut at a price of memory."""

    def __init__(
        self,
        ensemble: Ensemble,
        splits: Splits,
        tree: int,
        leaf_forms: dict[tuple[tuple[int, ...], int], list[Form]],
    ) -> None:
        self._variables = splits.variables
        nodes = slice(int(ensemble.node_offset[tree]), int(ensemble.node_offset[tree + 1]))
        leaves = slice(int(ensemble.leaf_offset[tree]), int(ensemble.leaf_offset[tree + 1]))
        self._left, self._right = ensemble.left[nodes].tolist(), ensemble.right[nodes].tolist()
        self._states: dict[tuple[int, frozenset[int]], int] = {}
        self._leaf_forms = leaf_forms
        paths = self._paths(
            splits.variable[nodes], splits.left[nodes], ensemble.node_count[nodes].tolist(),
            ensemble.leaf_count[leaves].tolist(), ensemble.leaf_value[leaves].tolist(),
        )  # fmt: skip
        self._of_leaf = [self._group([leaf], {v: frozenset((c,)) for v, c in leaf.cells.items()}) for leaf in paths]
        self._of_node: list[Group | None] = [None] * len(self._left)
        for node in range(len(self._left) - 1, -1, -1):
            left, right = self._child(self._left[node]), self._child(self._right[node])
            if left is None or right is None:
                continue
            sets = dict(left.sets)
            for variable, cells in right.sets.items():
                sets[variable] = sets[variable] | cells if variable in sets else cells
            below = left.split_below | right.split_below | {self._variables[splits.variable[nodes][node]].feature}
            group = self._group(left.leaves + right.leaves, sets, below)
            if group.forms:
                self._of_node[node] = group

    def _child(self, child: int) -> Group | None:
        return self._of_node[child] if child >= 0 else self._of_leaf[~child]

    def _paths(
        self, variables: list[int], goes_left: list[int], count: list[float], leaf_count: list[float],
        leaf_value: list[float],
    ) -> list[Leaf]:  # fmt: skip
        cells: list[dict[int, int]] = [{} for _ in variables]
        ratios: list[dict[int, float]] = [{} for _ in variables]
        leaves: list[Leaf] = [Leaf(value, {}, {}) for value in leaf_value]
        for node, variable in enumerate(variables):  # children have larger numbers than their parents
            feature, everything = self._variables[variable].feature, self._variables[variable].all_cells
            for child, goes in (
                (self._left[node], goes_left[node]),
                (self._right[node], everything & ~goes_left[node]),
            ):
                path, ratio = dict(cells[node]), dict(ratios[node])
                path[variable] = path.get(variable, everything) & goes
                share = (count[child] if child >= 0 else leaf_count[~child]) / count[node]
                ratio[feature] = ratio.get(feature, 1.0) * share
                if child >= 0:
                    cells[child], ratios[child] = path, ratio
                else:
                    leaves[~child] = Leaf(leaf_value[~child], path, ratio)
        return leaves

    def cut(self, price: float) -> list[Chosen]:
        """The groups that cover all leaves at the least cost, where a double of table costs ``price`` cycles a row."""
        if not self._left:
            return []
        leaves = [_cheapest(group, price) for group in self._of_leaf]
        best: list[tuple[float, list[Chosen]]] = [(0.0, [])] * len(self._left)
        for node in range(len(self._left) - 1, -1, -1):
            found = [best[child] if child >= 0 else leaves[~child] for child in (self._left[node], self._right[node])]
            apart = found[0][0] + found[1][0]
            group = self._of_node[node]
            whole = _cheapest(group, price) if group is not None else (math.inf, [])
            best[node] = whole if whole[0] <= apart else (apart, found[0][1] + found[1][1])
        return best[0][1]

    def _group(self, leaves: list[Leaf], sets: dict[int, frozenset[int]], below: frozenset[int] = frozenset()) -> Group:
        size: dict[int, int] = {}  # feature -> states of its variables together
        terms, patterns = 0, 1
        for variable, found in sets.items():
            states = self._n_states(variable, found)
            feature = self._variables[variable].feature
            size[feature] = size[feature] * states if feature in size else states
            terms += states - 1
            patterns *= states
        above = tuple(states for feature, states in size.items() if feature not in below)
        if len(leaves) == 1:
            shape = (above, terms)
            if shape not in self._leaf_forms:
                self._leaf_forms[shape] = _forms(above, (), len(above), 0, terms)
            return Group(leaves, sets, below, self._leaf_forms[shape])
        if patterns > MAX_DIRECT:
            inside = tuple(size[feature] for feature in below if feature in size)
            if math.prod(inside) > MAX_PART:
                return Group(leaves, sets, below, [])
        inside = tuple(states for feature, states in size.items() if feature in below)
        longest = max(len(leaf.zero_fraction) for leaf in leaves)
        # a leaf's features are those above, which all share, and some of those below
        return Group(leaves, sets, below, _forms(above, inside, longest, longest - len(above), terms))

    def _n_states(self, variable: int, sets: frozenset[int]) -> int:
        if len(sets) == 1:
            return 2
        key = (variable, sets)
        if key not in self._states:
            self._states[key] = len(partition_cells(self._variables[variable].all_cells, sets))
        return self._states[key]


def _cheapest(group: Group, price: float) -> tuple[float, list[Chosen]]:
    best, least = group.forms[0], math.inf
    for form in group.forms:
        cost = form.cost + price * form.doubles
        if cost < least:
            best, least = form, cost
    return least, [Chosen(group, best)]


def _forms(above: tuple[int, ...], below: tuple[int, ...], longest: int, degree: int, terms: int) -> list[Form]:
    """Every form that a group can take.

    Parameters
    ----------
    above, below : tuple of int
        States of each feature that is split only above the root, and of each that is split below it.
    longest, degree : int
        Most features of a leaf, and most of them that are split below the root.
    terms : int
        Terms of the patterns.
    """
    forms = []
    patterns, features = math.prod(above) * math.prod(below), len(above) + len(below)
    overhead = GROUP + TERM * terms
    if patterns <= MAX_DIRECT:
        quads = -(-features // LANES)
        look_up = next(cost for most, cost in LOOK_UP if patterns <= most)
        cost = overhead + PLANE * (1 if patterns <= 256 else 2) + quads * look_up
        forms.append(Form(cost, quads * LANES * patterns, (), 0, max(1, -(-longest // 2))))
    if patterns > 256:
        kept = len(above)
        while kept and math.prod(above[:kept]) > MAX_PART:  # the features next to the root join those below it
            kept -= 1
        joined = above[kept:] + below
        if kept and math.prod(joined) <= MAX_PART:
            forms.append(_two_parts(above[:kept], joined, degree + len(above) - kept, overhead))
        if len(above) > 1 and math.prod(below) <= MAX_PART:
            forms += [
                _many_parts(above, below, most, longest, overhead)
                for most in MANY_FEATURES
                if len(above) // most + 2 <= MAX_PARTS
            ]
    return forms


def _two_parts(above: tuple[int, ...], below: tuple[int, ...], degree: int, overhead: float) -> Form:
    terms = min(len(above), degree) + 1
    cost, new, doubles = overhead, PARTS, 0
    for states in (above, below):
        patterns, quads = math.prod(states), -(-len(states) // LANES)
        record = _padded(terms) + quads * terms * LANES
        doubles += patterns * record
        cost += PLANE + quads * OCCURRING
        new += quads * (PART_QUAD + PART_TERM * terms) + record / 8 * _line(patterns * record)
    cost += _lazily(2, math.prod(above) * math.prod(below), new)
    return Form(cost, doubles, (len(above),), terms, -(-(len(above) + degree) // 2) + 1)


def _many_parts(above: tuple[int, ...], below: tuple[int, ...], most: int, longest: int, overhead: float) -> Form:
    count = max(2, -(-len(above) // most))
    edges = [i * len(above) // count for i in range(count + 1)]
    pieces = [above[start:stop] for start, stop in itertools.pairwise(edges)]
    points = max(1, -(-longest // 2))
    cost, new, doubles = overhead, PARTS, 0
    for states in (*pieces, below):
        patterns, quads = math.prod(states), -(-len(states) // LANES)
        record = _padded(points) + quads * points * LANES
        doubles += patterns * record
        cost += PLANE + quads * OCCURRING
        new += quads * (PART_QUAD + PART_TERM * points) + record / 8 * _line(patterns * record)
        new += MANY_PART + MANY_POINT * (count + 1) * _padded(points) / LANES
    cost += _lazily(count + 1, math.prod(above) * math.prod(below), new)
    return Form(cost, doubles, tuple(map(len, pieces)), points, points)


def _lazily(parts: int, combinations: int, new: float) -> float:
    """Cost of a group in parts, of which only the combinations that occur are computed, at ``new`` each."""
    return HASH + HASH_PART * parts + min(1.0, NEW * math.log2(combinations)) * new


def _padded(n: int) -> int:
    return -(-n // LANES) * LANES


def _line(doubles: int) -> float:
    return next(cost for most, cost in LINE if doubles <= most)


def quadrature(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights on [0, 1]: exact for polynomials up to degree 2 points - 1."""
    at, weight = np.polynomial.legendre.leggauss(points)
    return (at + 1) / 2, weight / 2


def rule(kind: str, points: int, terms: int) -> np.ndarray:
    """What turns values at the points into what a table stores, shape (terms, points).

    ``integral``: the weights. ``moments``: coefficients in the orthonormal Legendre basis on [0, 1]. ``values``: the
    values themselves, ``weighted``: times the weights.
    """
    at, weight = quadrature(points)
    if kind == "integral":
        return weight[None, :]
    if kind == "moments":
        basis = np.polynomial.legendre.legvander(2 * at - 1, terms - 1) * np.sqrt(2 * np.arange(terms) + 1)
        return np.ascontiguousarray((basis * weight[:, None]).T)
    return np.eye(points) if kind == "values" else np.diag(weight)
