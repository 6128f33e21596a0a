"""Cutting trees into groups of leaves, each small enough for tables.

The contribution of one leaf to a row's SHAP values depends on the row only through *which of the path's features are
satisfied*: with value v, zero fractions z_j (products of cover ratios) and satisfied o_j in {0, 1},

    phi_j = v (o_j - z_j) * integral over t in [0, 1] of  prod over i != j of g_i(t),   g_i(t) = z_i + (o_i - z_i) t

(Lundberg et al. 2018, algorithm 2, in the integral form of the Shapley value: Owen 1972, "Multilinear extensions of
games"). With k features the integrand is a polynomial of degree k - 1, so Gauss-Legendre quadrature is exact.

A *group* is a few leaves of a tree. The variables tested on their paths, with the cells that no path tells apart made
one *state*, number the *patterns*: all combinations of states. A group takes one of four forms:

- **direct**: one table of the summed contributions for every pattern;
- **two parts**: the features are divided in two (those that all the leaves' paths have alike, and the others, whose
  table sums over the leaves), with a table each. The integral of a product of two polynomials, of which one has degree
  d, is a dot product of d + 1 coefficients in the orthonormal Legendre basis, so the tables hold such coefficients;
- **many parts**, for the longest paths: the tables hold values at quadrature points, multiplied point by point;
- **no tables**, where there is no memory for them: the formula itself.

Against background rows (``background.py``) a leaf's value is a mean over rows, which does not factorise. There a group
is direct, or **against background rows**: each leaf's answers are gone through, without tables.

A group that is not direct is computed once for each combination of patterns that occurs in a block of rows, not once a
row: deep paths split off few rows at a time, so that most rows agree on most of their splits.

Groups are chosen tree by tree, from the leaves up: all leaves below a node together, or those of its children apart,
whichever is cheaper by a cost model of the kernel. The tables' memory has a price there, which is raised until a bound
on the memory is met. Then neighbours are joined while that is cheaper still: leaves along a chain of splits have most
of their paths in common, but no node that they alone are below.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.trees.ensemble import Ensemble
from batch_explain.treeshap.background import Answers
from batch_explain.treeshap.forms import BACKGROUND, MAX_DIRECT, MAX_PART, MAX_PLANE, Form, forms_against, forms_of
from batch_explain.treeshap.splits import Splits, Variable

MAX_FEATURES = 512  # on one path

# Price of a double of table in cycles a row: what it costs to stream the tables once for every block of rows.
STREAMING = 1.2e-4
HIGHEST = 1.0  # where it is raised to meet a bound
HIGHEST_AGAINST = 1e4  # against background rows, where what tables save is much and every leaf can do without
# For the price at which tables meet a bound: cuts at most, a share of the bound that is enough, prices that are alike.
SEARCHES, CLOSE, SAME = 7, 0.98, 1.02


@dataclass(frozen=True)
class Leaf:
    """One leaf's path.

    Parameters
    ----------
    value : float
    cells : dict
        Variable -> the set of cells that it must be in.
    zero_fraction : dict
        Feature -> product of the cover ratios of its splits. Empty where there are answers.
    answers : Answers or None
        Of background rows, each of which has an equal share of ``value``.
    """

    value: float
    cells: dict[int, int]
    zero_fraction: dict[int, float]
    answers: Answers | None = None


@dataclass
class Group:
    """A few leaves of a tree.

    Parameters
    ----------
    leaves : list of Leaf
    sets : dict
        Variable -> the sets of cells that paths require.
    differing : frozenset of int
        Features that the leaves' paths do not all split alike.
    forms : list of Form
        Ways to lay it out; none where it has too many patterns.
    """

    leaves: list[Leaf]
    sets: dict[int, frozenset[int]]
    differing: frozenset[int]
    forms: list[Form] = field(default_factory=list)


@dataclass(frozen=True)
class Chosen:
    """A group in the form that was chosen for it."""

    group: Group
    form: Form

    def parts(self, variables: Sequence[Variable]) -> list[list[int]]:
        """The variables of each part."""
        by_feature = _by_feature(self.group.sets, variables)
        if self.form.terms == BACKGROUND:  # a feature of many variables is in several
            every = [v for found in by_feature.values() for v in found]
            edges = [*itertools.accumulate(self.form.sizes, initial=0), len(every)]
            return [every[start:stop] for start, stop in itertools.pairwise(edges)]
        shared = [feature for feature in by_feature if feature not in self.group.differing]
        parts, start = [], 0
        for size in self.form.sizes:
            parts.append(shared[start : start + size])
            start += size
        taken = set(shared[:start])
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


def cut_trees(
    ensemble: Ensemble, splits: Splits, *, max_doubles: int, background: np.ndarray | None = None
) -> list[list[Chosen]]:
    """Cut every tree into groups.

    Parameters
    ----------
    ensemble : Ensemble
    splits : Splits
    max_doubles : int
        Bound on the size of all tables together. It is exceeded only where even the smallest tables are larger.
    background : ndarray of bool, shape (node, row), optional
        Whether each background row goes left at each inner node: for interventional values.

    Returns
    -------
    list of list of Chosen
        Groups of each tree.
    """
    _check_depth(ensemble)
    forms = functools.cache(forms_of)  # nine of ten groups have the shape of one before them
    trees = [_Tree(ensemble, splits, tree, forms, background) for tree in range(ensemble.n_trees)]
    max_doubles -= sum(tree.answers_doubles for tree in trees)
    price, chosen = _within(trees, max_doubles, HIGHEST if background is None else HIGHEST_AGAINST)
    left = max(0, max_doubles - _doubles(chosen))
    for number, tree in enumerate(trees):
        joined = tree.join(chosen[number], price)
        more = _doubles([joined]) - _doubles([chosen[number]])
        if more <= left:
            chosen[number] = joined
            left -= more
    return chosen


def _within(trees: "list[_Tree]", max_doubles: int, highest: float) -> tuple[float, list[list[Chosen]]]:
    """The least price of memory at which the tables keep to the bound, roughly, and the groups at that price."""

    def cut(price: float) -> tuple[float, int, list[list[Chosen]]]:
        chosen = [tree.cut(price) for tree in trees]
        return price, _doubles(chosen), chosen

    price, size, chosen = cut(STREAMING)
    lower = (price, size)
    while size > max_doubles and price < highest:
        lower = (price, size)
        price, size, chosen = cut(price * 4.0)
    if size > max_doubles or lower[0] == price:
        return price, chosen
    moved = 0  # how often in a row the higher price fell, or (negative) the lower one rose
    for _ in range(SEARCHES):
        if size >= CLOSE * max_doubles or price < lower[0] * SAME:
            break
        # the size falls about as a power of the price; where it falls in steps, one end stays: then halve the range
        aim = (1.0 + CLOSE) / 2.0 * max_doubles
        share = min(0.9, math.log(lower[1] / aim) / math.log(lower[1] / max(1, size)))
        middle = cut(lower[0] * (price / lower[0]) ** (share if abs(moved) < 2 else 0.5))
        if middle[1] <= max_doubles:
            price, size, chosen = middle
            moved = max(moved, 0) + 1
        else:
            lower = middle[:2]
            moved = min(moved, 0) - 1
    return price, chosen


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
        forms: Callable[..., list[Form]],
        background: np.ndarray | None,
    ) -> None:
        self._variables = splits.variables
        nodes = slice(int(ensemble.node_offset[tree]), int(ensemble.node_offset[tree + 1]))
        leaves = slice(int(ensemble.leaf_offset[tree]), int(ensemble.leaf_offset[tree + 1]))
        self._left, self._right = ensemble.left[nodes].tolist(), ensemble.right[nodes].tolist()
        self._states: dict[tuple[int, frozenset[int]], int] = {}
        self._forms = forms
        self._against = background is not None
        values = ensemble.leaf_value[leaves].tolist()
        if background is None:
            shares: Sequence[tuple[Any, Any]] = _covers(
                self._left, self._right, ensemble.node_count[nodes], ensemble.leaf_count[leaves]
            )
        else:
            shares = [(goes, ~goes) for goes in background[nodes]]
        paths = self._paths(splits.variable[nodes], splits.left[nodes], shares)
        if not self._left:  # a constant, which needs no group
            found = []
        elif background is None:
            found = [Leaf(value, cells, ratios) for value, (cells, ratios) in zip(values, paths, strict=True)]
        else:
            found = [
                Leaf(value / background.shape[1], cells, {}, Answers.of(satisfied))
                for value, (cells, satisfied) in zip(values, paths, strict=True)
            ]
        self.answers_doubles = sum(leaf.answers.doubles for leaf in found if leaf.answers is not None)
        self._of_leaf = [self._group([leaf], {v: frozenset((c,)) for v, c in leaf.cells.items()}) for leaf in found]
        self._of_node: list[Group | None] = [None] * len(self._left)
        # the lower child first, so that the leaves along a chain of splits are neighbours
        self._children: list[tuple[int, int]] = [(0, 0)] * len(self._left)
        height = [1] * len(self._left)
        for node in range(len(self._left) - 1, -1, -1):
            heights = [height[child] if child >= 0 else 0 for child in (self._left[node], self._right[node])]
            height[node] = 1 + max(heights)
            children = self._left[node], self._right[node]
            self._children[node] = children if heights[0] <= heights[1] else children[::-1]
            left, right = map(self._child, children)
            if left is not None and right is not None:
                feature = self._variables[splits.variable[nodes][node]].feature
                group = self._union(left, right, left.differing | right.differing | {feature})
                self._of_node[node] = group if group.forms else None

    def _child(self, child: int) -> Group | None:
        return self._of_node[child] if child >= 0 else self._of_leaf[~child]

    def _paths(
        self, variables: list[int], goes_left: list[int], shares: Sequence[tuple[Any, Any]]
    ) -> list[tuple[dict[int, int], dict[int, Any]]]:
        """Of each leaf: the cells that each variable must be in, and the product of each feature's shares."""
        cells: list[dict[int, int]] = [{} for _ in variables]
        products: list[dict[int, Any]] = [{} for _ in variables]
        leaves: list[tuple[dict[int, int], dict[int, Any]]] = [({}, {})] * (len(variables) + 1)
        for node, variable in enumerate(variables):  # children have larger numbers than their parents
            feature, everything = self._variables[variable].feature, self._variables[variable].all_cells
            for child, goes, share in (
                (self._left[node], goes_left[node], shares[node][0]),
                (self._right[node], everything & ~goes_left[node], shares[node][1]),
            ):
                path, product = dict(cells[node]), dict(products[node])
                path[variable] = path.get(variable, everything) & goes
                product[feature] = product[feature] * share if feature in product else share
                if child >= 0:
                    cells[child], products[child] = path, product
                else:
                    leaves[~child] = path, product
        return leaves

    def cut(self, price: float) -> list[Chosen]:
        """The groups that cover all leaves at the least cost, where a double of table costs ``price`` cycles a row."""
        if not self._left:
            return []
        leaves = [_cheapest(group, price) for group in self._of_leaf]
        best: list[tuple[float, list[Chosen]]] = [(0.0, [])] * len(self._left)
        for node in range(len(self._left) - 1, -1, -1):
            found = [best[child] if child >= 0 else leaves[~child] for child in self._children[node]]
            apart = found[0][0] + found[1][0]
            group = self._of_node[node]
            whole = _cheapest(group, price) if group is not None else (math.inf, [])
            best[node] = whole if whole[0] <= apart else (apart, found[0][1] + found[1][1])
        return best[0][1]

    def join(self, chosen: list[Chosen], price: float) -> list[Chosen]:
        """Join neighbours, those first that gain most by it, while any do."""
        joined = list(chosen)
        found = [self._joined(*pair, price) for pair in itertools.pairwise(joined)]
        while found:
            at = max(range(len(found)), key=lambda i: found[i][0])
            gain, both = found[at]
            if both is None or gain <= 0:
                break
            joined[at : at + 2] = [both]
            first = max(at - 1, 0)
            around = itertools.pairwise(joined[first : at + 2])
            found[first : at + 2] = [self._joined(*pair, price) for pair in around]
        return joined

    def _joined(self, one: Chosen, other: Chosen, price: float) -> tuple[float, Chosen | None]:
        """The two as one group, and what that saves."""
        left, right = one.group, other.group
        group = self._union(left, right, left.differing | right.differing | self._told_apart(left, right))
        if not group.forms:
            return -math.inf, None
        cost, (both,) = _cheapest(group, price)
        apart = sum(chosen.form.cost + price * chosen.form.doubles for chosen in (one, other))
        return apart - cost, both

    def _told_apart(self, left: Group, right: Group) -> set[int]:
        """Features that each group's leaves have alike, but not the same in both groups."""
        one, other = left.leaves[0], right.leaves[0]
        cells = {self._variables[v].feature for v, _ in one.cells.items() ^ other.cells.items()}
        return cells | {feature for feature, _ in one.zero_fraction.items() ^ other.zero_fraction.items()}

    def _union(self, left: Group, right: Group, differing: Iterable[int]) -> Group:
        sets = dict(left.sets)
        for variable, cells in right.sets.items():
            sets[variable] = sets[variable] | cells if variable in sets else cells
        return self._group(left.leaves + right.leaves, sets, frozenset(differing))

    def _group(
        self, leaves: list[Leaf], sets: dict[int, frozenset[int]], differing: frozenset[int] = frozenset()
    ) -> Group:
        if self._against:
            return self._group_against(leaves, sets)
        size: dict[int, int] = {}  # feature -> states of its variables together
        terms, patterns = 0, 1
        for variable, found in sets.items():
            states = self._n_states(variable, found)
            if states > MAX_PLANE:
                return Group(leaves, sets, differing)
            feature = self._variables[variable].feature
            size[feature] = size[feature] * states if feature in size else states
            terms += states - 1
            patterns *= states
        shared = tuple(states for feature, states in size.items() if feature not in differing)
        if len(leaves) == 1:
            forms = self._forms(shared, (), len(shared), 0, terms, 1)
            if not forms:
                raise ArtifactError(
                    "A path of the ensemble splits on one feature at too many of its thresholds, of which there are "
                    "thousands: that is beyond what exact SHAP values are computed for. Train the surrogate with a "
                    "smaller max_bin, or a max_depth."
                )
            return Group(leaves, sets, differing, forms)
        if patterns > MAX_DIRECT:
            others = tuple(size[feature] for feature in differing if feature in size)
            if math.prod(others) > MAX_PART:
                return Group(leaves, sets, differing, [])
        others = tuple(states for feature, states in size.items() if feature in differing)
        longest = max(len(leaf.zero_fraction) for leaf in leaves)
        # a leaf's features are those that all share, and some of the others
        return Group(
            leaves, sets, differing, self._forms(shared, others, longest, longest - len(shared), terms, len(leaves))
        )

    def _group_against(self, leaves: list[Leaf], sets: dict[int, frozenset[int]]) -> Group:
        states: dict[int, list[int]] = {}
        for variable, found in sets.items():
            states.setdefault(self._variables[variable].feature, []).append(self._n_states(variable, found))
        answers = sum(len(leaf.answers.rows) for leaf in leaves if leaf.answers is not None)
        return Group(leaves, sets, frozenset(), forms_against(list(states.values()), len(leaves), answers))

    def _n_states(self, variable: int, sets: frozenset[int]) -> int:
        if len(sets) == 1:
            return 2
        key = (variable, sets)
        if key not in self._states:
            self._states[key] = len(partition_cells(self._variables[variable].all_cells, sets))
        return self._states[key]


def _covers(
    left: list[int], right: list[int], node_count: np.ndarray, leaf_count: np.ndarray
) -> list[tuple[float, float]]:
    """Of each inner node, the shares of training rows that went to either child."""
    counts = node_count.tolist(), leaf_count.tolist()

    def share(child: int, node: int) -> float:
        return float((counts[0][child] if child >= 0 else counts[1][~child]) / counts[0][node])

    return [(share(a, node), share(b, node)) for node, (a, b) in enumerate(zip(left, right, strict=True))]


def _cheapest(group: Group, price: float) -> tuple[float, list[Chosen]]:
    best, least = group.forms[0], math.inf
    for form in group.forms:
        cost = form.cost + price * form.doubles
        if cost < least:
            best, least = form, cost
    return least, [Chosen(group, best)]


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
