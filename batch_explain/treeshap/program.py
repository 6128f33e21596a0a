"""From groups to the flat arrays that the kernel runs: see ``_native/kernel.h`` for what each one means to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch_explain.trees.ensemble import Ensemble
from batch_explain.treeshap.background import shapley_weights
from batch_explain.treeshap.forms import BACKGROUND, DIRECT, LANES, MAX_PLANE, NO_TABLES, padded
from batch_explain.treeshap.groups import Chosen, Leaf, cut_trees, partition_cells, quadrature, rule
from batch_explain.treeshap.quads import common_quads
from batch_explain.treeshap.splits import Splits, Variable, splits_of

# Direct groups that are worked on together, and the size of their tables: these, the rows' patterns and what occurs of
# another group should stay in a second-level cache.
RUN_GROUPS = 8
RUN_DOUBLES = 64_000
_EVERYTHING = (1 << 64) - 1

_TYPES: dict[str, type] = {
    # of a group
    "first_part": np.int32, "terms": np.int32, "points": np.int32,
    # of a part
    "first_plane": np.int32, "patterns": np.int64, "record": np.int32, "quads": np.int32, "first_occurring": np.int32,
    "table": np.int64,
    "rule": np.int32, "key_shift": np.int32, "first_leaf": np.int64, "first_var": np.int64,
    # of a plane and a term
    "plane_scale": np.int32, "first_term": np.int64, "first_predicate": np.int64,
    "term_column": np.int32, "term_mask": np.uint8, "term_threshold": np.int8, "term_delta": np.uint8,
    # of a run, a quad of its groups, a feature of a quad, and a look-up
    "first_quad": np.int64, "first_look_up": np.int64, "first_quad_slot": np.int64, "quad_slot": np.int32,
    "look_up_group": np.int32, "look_up_table": np.int64,
    # for building the tables: of a variable of a part, a leaf, a factor of a leaf
    "var_states": np.int32, "leaf_value": np.float64, "first_factor": np.int64, "allowed_start": np.int64,
    "zero_fraction": np.float64, "place": np.int32, "allowed": np.uint64,
    # against background rows: of a leaf, and a test of one
    "first_answer": np.int64, "first_word": np.int64, "first_test": np.int64,
    "test_var": np.int32, "test_factor": np.int32, "test_states": np.uint64,
}  # fmt: skip

# array of beginnings -> array that it points into; each gets the end as one more entry, in this order
_BEGINNINGS = {
    "first_part": "patterns", "first_plane": "plane_scale", "first_leaf": "leaf_value",
    "first_quad": "first_look_up", "first_quad_slot": "quad_slot", "first_look_up": "look_up_group",
    "first_var": "var_states", "first_term": "term_column", "first_factor": "place", "first_test": "test_var",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Program:
    """What the kernel runs.

    Parameters
    ----------
    arrays : dict of ndarray
        The kernel's inputs by name.
    doubles : int
        Size of the tables.
    groups, direct, look_ups : int
        Numbers of groups, of direct ones among them, and of quads that are looked up for each row, those in common once
        for each part of a group.
    answers_bytes : int
        Size of what is kept of background rows.
    cycles : float
        What a row costs by the cost model, in processor cycles.
    """

    arrays: dict[str, Any]
    doubles: int
    groups: int
    direct: int
    look_ups: int
    cycles: float
    answers_bytes: int


def make_program(ensemble: Ensemble, *, max_doubles: int, background: np.ndarray | None = None) -> Program:
    """Cut an ensemble into groups and lay them out.

    Parameters
    ----------
    ensemble : Ensemble
    max_doubles : int
        Bound on the tables' size.
    background : ndarray of bool, shape (node, row), optional
        See :func:`batch_explain.treeshap.groups.cut_trees`.
    """
    splits = splits_of(ensemble)
    trees = cut_trees(ensemble, splits, max_doubles=max_doubles, background=background)
    layout = _Layout(splits)
    output_start: list[int] = [0]
    run_start: list[int] = []
    run_factored: list[int] = []
    for output in range(ensemble.n_outputs):
        for run in _runs([chosen for tree in trees[output :: ensemble.n_outputs] for chosen in tree]):
            run_start.append(layout.groups)
            run_factored.append(layout.groups + sum(chosen.form.terms == DIRECT for chosen in run))
            layout.add_run(run)
        output_start.append(len(run_start))
    run_start += [layout.groups] * 2  # the kernel looks one run ahead
    arrays = layout.arrays()
    arrays |= {
        "output_start": np.array(output_start, dtype=np.int64),
        "run_start": np.array(run_start, dtype=np.int64),
        "run_factored": np.array(run_factored, dtype=np.int64),
        "most_groups": int(np.diff(run_start).max(initial=0)),
        "most_quads": layout.most_occurring,
        "used": len(ensemble.used),
    }
    return Program(
        arrays,
        layout.doubles,
        layout.groups,
        direct=int((arrays["terms"] == DIRECT).sum()),
        look_ups=len(arrays["look_up_group"]),
        cycles=sum(chosen.form.cost for tree in trees for chosen in tree),
        answers_bytes=sum(arrays[name].nbytes for name in ("fails", "answer_rows", "answer_failed")),
    )


def _runs(groups: list[Chosen]) -> list[list[Chosen]]:
    """Groups that are worked on together: a few direct ones, and after them one other at most."""
    runs: list[list[Chosen]] = []
    doubles, direct, other = RUN_DOUBLES, 0, False
    for chosen in groups:
        is_direct = chosen.form.terms == DIRECT
        if doubles >= RUN_DOUBLES or direct == RUN_GROUPS or (other and not is_direct):
            runs.append([])
            doubles, direct, other = 0, 0, False
        runs[-1].append(chosen)
        if is_direct:
            doubles += chosen.form.doubles
            direct += 1
        else:
            other = True
    return [sorted(run, key=lambda chosen: chosen.form.terms != DIRECT) for run in runs]


class _Layout:
    """Collects the arrays, group by group."""

    def __init__(self, splits: Splits) -> None:
        self._variables = splits.variables
        self._lists: dict[str, list[Any]] = {name: [] for name in _TYPES}
        self._columns = _Columns(splits.variables)
        self._rules: dict[tuple[str, int, int], int] = {}
        self._answers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # fails, rows, failed
        self.doubles = self.groups = self._bits = self._n_words = self._n_answers = self._longest = 0
        self.most_occurring = self._occurring = 0  # quads of a run's groups that are not direct

    def add_run(self, run: list[Chosen]) -> None:
        """Groups that are worked on together, whose parts' features are in quads that they have in common."""
        a = self._lists
        parts = [(number, part) for number, chosen in enumerate(run) for part in chosen.parts(self._variables)]
        quads = common_quads([self._features(part) for _, part in parts])
        own = [[i for i, quad in enumerate(quads) if place in quad.groups] for place in range(len(parts))]
        table: dict[tuple[int, int], int] = {}  # of a part and a quad
        self._occurring = 0
        for number, chosen in enumerate(run):
            mine = [place for place, (group, _) in enumerate(parts) if group == number]
            looked_up = [(place, i) for place in mine for i in own[place]]
            begin, occurring = self.doubles, self._occurring
            of_parts = [[quads[i].features for i in own[place]] for place in mine]
            self._add_group(chosen, [parts[place][1] for place in mine], of_parts)
            for at, key in enumerate(looked_up):
                direct = begin + at * (self.doubles - begin) // len(looked_up)
                table[key] = direct if chosen.form.terms == DIRECT else ~(occurring + at)
        self.most_occurring = max(self.most_occurring, self._occurring)
        a["first_quad"].append(len(a["first_look_up"]))
        for i, quad in enumerate(quads):
            a["first_quad_slot"].append(len(a["quad_slot"]))
            a["quad_slot"] += quad.features
            a["first_look_up"].append(len(a["look_up_group"]))
            a["look_up_group"] += [parts[place][0] for place in quad.groups]
            a["look_up_table"] += [table[place, i] for place in quad.groups]

    def _add_group(self, chosen: Chosen, parts: list[list[int]], quads: list[list[list[int]]]) -> None:
        """A group: the variables of each part, and the quads that their features are in."""
        group, form = chosen.group, chosen.form
        a = self._lists
        a["first_part"].append(len(a["patterns"]))
        a["terms"].append(form.terms)
        a["points"].append(form.points)
        self.groups += 1
        self._bits = 0
        if form.terms == BACKGROUND:
            self._add_against(chosen, parts, quads)
            return
        *shared, differing = parts
        if form.terms == DIRECT:
            kinds = ["integral"]
        elif form.terms == NO_TABLES:
            kinds = ["integral"] * (len(shared) + 1)
        elif len(shared) == 1:
            kinds = ["moments", "moments"]
        else:
            kinds = ["values"] * len(shared) + ["weighted"]
        for kind, part, of_part in zip(kinds, shared, quads, strict=False):
            leaf = Leaf(1.0, group.leaves[0].cells, group.leaves[0].zero_fraction)
            self._add_part(part, [leaf], chosen, kind, of_part)
        self._add_part(differing, group.leaves, chosen, kinds[-1], quads[-1])

    def _add_against(self, chosen: Chosen, parts: list[list[int]], quads: list[list[list[int]]]) -> None:
        """A group against background rows: its leaves come after all parts, because they are of all parts."""
        variables: dict[int, tuple[int, list[int]]] = {}  # place among the group's, and states
        place: dict[int, int] = {}
        before = 0
        for part, of_part in zip(parts, quads, strict=True):
            states, columns = self._add_part(part, [], chosen, "integral", of_part)
            for v, found in states.items():
                variables[v] = len(variables), found
            place |= {feature: before * LANES + column for feature, column in columns.items()}
            before += len(of_part)
        for leaf in chosen.group.leaves:
            self._add_leaf_against(leaf, variables, place)

    def _add_part(
        self, part: list[int], leaves: list[Leaf], chosen: Chosen, kind: str, quads: list[list[int]]
    ) -> tuple[dict[int, list[int]], dict[int, int]]:
        """One part of a group: its variables' states and its features' columns."""
        a, terms = self._lists, chosen.form.terms
        states = {
            v: partition_cells(self._variables[v].all_cells, chosen.group.sets[v])
            for v in sorted(part, key=lambda v: self._unevenness(v, leaves))
        }
        numbers = {v: _numbers(len(found), terms) for v, found in states.items()}
        patterns = math.prod(numbers.values())
        a["quads"].append(len(quads))
        a["first_occurring"].append(self._occurring)
        self._occurring += 0 if terms == DIRECT else len(quads)
        record = LANES if terms == DIRECT else padded(terms) + len(quads) * terms * LANES if terms > 0 else 0
        a["first_plane"].append(len(a["plane_scale"]))
        a["patterns"].append(patterns)
        a["record"].append(record)
        a["key_shift"].append(self._bits)
        self._bits += (patterns - 1).bit_length()
        a["table"].append(self.doubles)
        a["rule"].append(self._rules.setdefault((kind, chosen.form.points, max(1, terms)), len(self._rules)))
        a["first_leaf"].append(len(a["leaf_value"]))
        a["first_var"].append(len(a["var_states"]))
        self.doubles += patterns * record * (len(quads) if terms == DIRECT else 1)
        self._add_planes(states, numbers)
        # one column for each feature, even of those in several quads: all other columns stay 0
        columns = {f: i * LANES + lane for i, quad in enumerate(quads) for lane, f in enumerate(quad)}
        place = {feature: columns[feature] for feature in self._features(part)}
        for leaf in leaves:
            self._add_leaf(leaf, states, place)
        return states, place

    def _unevenness(self, v: int, leaves: list[Leaf]) -> float:
        """How far from a half the training rows are that pass a variable's feature, on average over the leaves.

        The states of a part's first variable stand next to each other in its table. Where rows are divided evenly
        between them, most rows' entries are in the fewest cache lines. Against background rows there are no ratios, and
        all variables are alike.
        """
        feature = self._variables[v].feature
        passing = [leaf.zero_fraction[feature] for leaf in leaves if feature in leaf.zero_fraction]
        return sum(abs(ratio - 0.5) for ratio in passing) / max(1, len(passing))

    def _features(self, part: list[int]) -> list[int]:
        return list(dict.fromkeys(self._variables[v].feature for v in part))

    def _add_planes(self, states: dict[int, list[int]], numbers: dict[int, int]) -> None:
        """The variables in order, as many to a plane as a byte can number."""
        scale = size = 1
        members: list[tuple[int, int]] = []
        for v, number in numbers.items():
            if size * number > MAX_PLANE:
                self._add_plane(members, states, scale)
                scale, size, members = scale * size, 1, []
            members.append((v, size))
            self._lists["var_states"].append(number)
            size *= number
        self._add_plane(members, states, scale)

    def _add_plane(self, members: list[tuple[int, int]], states: dict[int, list[int]], scale: int) -> None:
        a = self._lists
        a["first_term"].append(len(a["term_column"]))
        a["plane_scale"].append(scale)
        predicates: list[tuple[int, int, int, int]] = []
        for v, stride in members:
            if self._variables[v].thresholds is None:
                predicates += [
                    (*self._columns.predicate(v, classes), 0, stride << bit)
                    for bit, classes in enumerate(_bits_of_number(states[v]))
                ]
                continue
            # the state's number is a telescoping sum over the thresholds where it changes
            for cell, difference in _changes(states[v], self._variables[v].all_cells):
                self._add_term(self._columns.numerical(v), 0, cell - 128, difference * stride)
        a["first_predicate"].append(len(a["term_column"]))
        for term in predicates:
            self._add_term(*term)

    def _add_term(self, column: int, mask: int, threshold: int, delta: int) -> None:
        a = self._lists
        a["term_column"].append(column)
        a["term_mask"].append(mask)
        a["term_threshold"].append(threshold)
        a["term_delta"].append(delta % MAX_PLANE)

    def _add_leaf(self, leaf: Leaf, states: dict[int, list[int]], place: dict[int, int]) -> None:
        a = self._lists
        known = leaf.zero_fraction if leaf.answers is None else dict.fromkeys(leaf.answers.features, 0.0)
        factors = [feature for feature in place if feature in known]
        self._begin_leaf(leaf, factors, place)
        bit = {feature: i for i, feature in enumerate(factors)}
        for v, found in states.items():
            cells = leaf.cells.get(v)
            if cells is None:
                a["allowed"] += [_EVERYTHING] * len(found)
            else:
                without = _EVERYTHING & ~(1 << bit[self._variables[v].feature])
                a["allowed"] += [_EVERYTHING if state & cells else without for state in found]

    def _add_leaf_against(self, leaf: Leaf, variables: dict[int, tuple[int, list[int]]], place: dict[int, int]) -> None:
        a, answers = self._lists, leaf.answers
        assert answers is not None
        # what most answers fail comes first: where the row fails it as well, most leaves are done with
        failing = dict(zip(answers.features, answers.failing().tolist(), strict=True))
        factors = sorted(answers.features, key=lambda feature: -failing[feature])
        self._begin_leaf(leaf, factors, place)
        rank = {feature: i for i, feature in enumerate(factors)}
        for v in sorted(leaf.cells, key=lambda v: rank[self._variables[v].feature]):
            at, states = variables[v]
            a["test_var"].append(at)
            a["test_factor"].append(rank[self._variables[v].feature])
            a["test_states"].append(sum(1 << i for i, cells in enumerate(states) if cells & leaf.cells[v]))

    def _begin_leaf(self, leaf: Leaf, factors: list[int], place: dict[int, int]) -> None:
        a, answers = self._lists, leaf.answers
        a["leaf_value"].append(leaf.value)
        a["first_factor"].append(len(a["place"]))
        a["allowed_start"].append(len(a["allowed"]))
        a["first_answer"].append(self._n_answers)
        a["first_word"].append(self._n_words)
        a["first_test"].append(len(a["test_var"]))
        a["place"] += [place[feature] for feature in factors]
        if answers is None:
            a["zero_fraction"] += [leaf.zero_fraction[feature] for feature in factors]
            return
        a["zero_fraction"] += [0.0] * len(factors)
        position = {feature: i for i, feature in enumerate(answers.features)}
        fails = answers.fails[[position[feature] for feature in factors]].ravel()
        self._answers.append((fails, answers.rows, answers.failed))
        self._n_answers += len(answers.rows)
        self._n_words += len(fails)
        self._longest = max(self._longest, len(factors))

    def arrays(self) -> dict[str, Any]:
        a = self._lists
        a["first_answer"].append(self._n_answers)
        a["table"].append(self.doubles)
        for name, target in _BEGINNINGS.items():
            a[name].append(len(a[target]))
        arrays: dict[str, Any] = {name: np.array(values, dtype=_TYPES[name]) for name, values in a.items()}
        most = max(a["points"], default=1)
        arrays["points_start"] = np.cumsum([0, *range(most + 1)])
        arrays["point"] = np.concatenate([np.empty(0), *(quadrature(q)[0] for q in range(1, most + 1))])
        rules = [rule(*key).ravel() for key in self._rules]
        arrays["rule_start"] = np.cumsum([0, *map(len, rules)])
        arrays["rules"] = np.concatenate([np.empty(0), *rules])
        kept = tuple(zip(*self._answers, strict=True)) or ((), (), ())
        for name, kind, found in zip(("fails", "answer_rows", "answer_failed"), ("u8", "u2", "u2"), kept, strict=True):
            arrays[name] = np.concatenate([np.empty(0, kind), *found])
        arrays["shapley"] = shapley_weights(self._longest).ravel()
        arrays["longest"] = self._longest
        arrays["widest"] = int(np.diff(arrays["first_part"]).max(initial=1))
        return arrays | self._columns.arrays()


def _numbers(states: int, terms: int) -> int:
    """Numbers that a variable of so many states takes: whole bits against background rows."""
    return 1 << (states - 1).bit_length() if terms == BACKGROUND else states


def _changes(states: list[int], all_cells: int) -> list[tuple[int, int]]:
    """Where the state's number changes from cell to cell: (last cell before, difference). It is 0 at cell 0."""
    edges = 0
    for cells in states:
        edges |= cells ^ (cells >> 1)
    edges &= all_cells >> 1
    now, changes = 0, []
    while edges:
        cell = (edges & -edges).bit_length() - 1
        edges &= edges - 1
        following = _state_of(states, cell + 1)
        changes.append((cell, following - now))
        now = following
    return changes


def _state_of(states: list[int], cell: int) -> int:
    return next(number for number, cells in enumerate(states) if cells >> cell & 1)


def _bits_of_number(states: list[int]) -> list[int]:
    """For each bit of a state's number, the cells of the states that have it."""
    return [
        sum(cells for number, cells in enumerate(states) if number >> bit & 1)
        for bit in range((len(states) - 1).bit_length())
    ]


class _Columns:
    """The columns of codes: one for each numerical variable, and one for up to eight predicates on classes."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        self._variables = variables
        self._numerical: dict[int, int] = {}
        self._predicates: dict[tuple[int, int], tuple[int, int]] = {}
        self._open: dict[int, int] = {}
        self._columns: list[tuple[int, list[int]]] = []  # variable, and the classes of each predicate

    def numerical(self, v: int) -> int:
        if v not in self._numerical:
            self._numerical[v] = len(self._columns)
            self._columns.append((v, []))
        return self._numerical[v]

    def predicate(self, v: int, classes: int) -> tuple[int, int]:
        """Column, and mask of the bit, that tell whether a row's class is one of ``classes``."""
        if (v, classes) not in self._predicates:
            if v not in self._open or len(self._columns[self._open[v]][1]) == 8:
                self._open[v] = len(self._columns)
                self._columns.append((v, []))
            held = self._columns[self._open[v]][1]
            self._predicates[v, classes] = (self._open[v], 1 << len(held))
            held.append(classes)
        return self._predicates[v, classes]

    def arrays(self) -> dict[str, np.ndarray]:
        owners = [self._variables[v] for v, _ in self._columns]
        categorical = {v: None for v, held in self._columns if held}
        table = {v: i for i, v in enumerate(categorical)}
        classes = [self._variables[v].classes for v in categorical]
        sizes = [len(found) for found in classes if found is not None]
        starts, counts = [], []
        thresholds, bytes_of_class = [np.empty(0)], [np.empty(0, np.uint8)]
        n_thresholds = n_bytes = 0
        for owner, (_, held) in zip(owners, self._columns, strict=True):
            if owner.thresholds is not None:
                # padded for a search that halves
                padded = (1 << len(owner.thresholds).bit_length()) - 1
                thresholds += [owner.thresholds, np.full(padded - len(owner.thresholds), np.inf)]
                starts.append(n_thresholds)
                counts.append(len(owner.thresholds))
                n_thresholds += padded
            else:
                predicates = [
                    sum(1 << bit for bit, cells in enumerate(held) if cells >> c & 1) for c in range(owner.cells)
                ]
                bytes_of_class.append(np.array(predicates, dtype=np.uint8))
                starts.append(n_bytes)
                counts.append(owner.cells)
                n_bytes += owner.cells
        return {
            "column_feature": np.array([owner.feature for owner in owners], dtype=np.int32),
            "column_kind": np.array([bool(held) for _, held in self._columns], dtype=np.int8),
            "column_missing": np.array([owner.missing for owner in owners], dtype=np.int8),
            "column_default_left": np.array([owner.default_left for owner in owners], dtype=np.int8),
            "column_start": np.array(starts, dtype=np.int64),
            "column_count": np.array(counts, dtype=np.int32),
            "column_lookup": np.array([table.get(v, -1) for v, _ in self._columns], dtype=np.int32),
            "thresholds": np.concatenate(thresholds),
            "bytes_of_class": np.concatenate(bytes_of_class),
            "class_start": np.cumsum([0, *sizes])[:-1].astype(np.int64) if sizes else np.empty(0, np.int64),
            "class_count": np.array(sizes, dtype=np.int64),
            "classes": np.concatenate([np.empty(0, np.int32), *(c for c in classes if c is not None)]).astype(np.int32),
        }
