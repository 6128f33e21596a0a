"""Quads of features that several groups have in common.

A look-up reads four features of a group, a *quad*, at a row's pattern. What it reads is transposed and added to the
four features' sums, which takes longer than the look-up. So groups that are worked on together divide their features
into quads that they share as far as can be: what is looked up for these is added first, and transposed once. No group,
or part of one, has more quads for it than it would have alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from batch_explain.treeshap.forms import LANES


@dataclass
class Quad:
    """Up to four features, and the groups that look them up together.

    Parameters
    ----------
    features : list of int
    groups : list of int
        Places among the groups, or parts of groups. One need not have all of the features; one that it has may be in
        another of its quads as well, where a later one filled a place.
    """

    features: list[int]
    groups: list[int]


def common_quads(groups: Sequence[Sequence[int]]) -> list[Quad]:
    """Divide the features of each group into quads.

    Group after group takes the quads of those before it that hold most of its features, a place that is free included,
    as long as that does not cost it a look-up more; what is left becomes quads of its own, those features together that
    most groups have.

    Parameters
    ----------
    groups : sequence of sequence of int
        Features of each group, or part of one, in the order of its paths.

    Returns
    -------
    list of Quad
    """
    uses = Counter(feature for features in groups for feature in features)
    quads: list[Quad] = []
    for number, features in enumerate(groups):
        left = sorted(features, key=lambda feature: -uses[feature])
        before = list(quads)
        while left and before:
            found = [_taken(quad, left) for quad in before]
            most = [
                (len(held) + len(added), len(held), -len(quad.features))
                for quad, (held, added) in zip(before, found, strict=True)
            ]
            best = most.index(max(most))
            quad, (held, added) = before.pop(best), found[best]
            # the others of a full look-up must fill whole ones
            if len(held) + len(added) < (len(left) - 1) % LANES + 1:
                break
            quad.features += added
            quad.groups.append(number)
            left = [feature for feature in left if feature not in quad.features]
        quads += [Quad(left[at : at + LANES], [number]) for at in range(0, len(left), LANES)]
    return quads


def _taken(quad: Quad, features: list[int]) -> tuple[list[int], list[int]]:
    """Those of the features that a quad holds, and those that it has a place for if it holds any."""
    held = [feature for feature in features if feature in quad.features]
    room = LANES - len(quad.features) if held else 0
    return held, [feature for feature in features if feature not in quad.features][:room]
