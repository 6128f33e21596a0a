"""Quads of features that several groups have in common.

A look-up reads four features of a group, a *quad*, at a row's pattern. What it reads is transposed and added to the
four features' sums, which takes longer than the look-up. So groups that are worked on together divide their features
into quads that they share as far as can be: what is looked up for these is added first, and transposed once. No group
has more quads for it than it would have alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from batch_explain.treeshap.forms import LANES


@dataclass
class Quad:
    """Up to four features, and the groups that look them up together.

    Parameters
    ----------
    features : list of int
    groups : list of int
        Places among the groups. A group need not have all of the features; one that it has may be in another of its
        quads as well, where a later group filled a place.
    """

    features: list[int]
    groups: list[int] = field(default_factory=list)


def common_quads(groups: Sequence[Sequence[int]]) -> list[Quad]:
    """Divide the features of each group into quads.

    Group after group takes the quads of those before it that hold most of its features, a place that is free included,
    as long as that does not cost it a look-up more; what is left becomes quads of its own, those features together that
    most groups have.

    Parameters
    ----------
    groups : sequence of sequence of int
        Features of each group, in the order of its paths.
    """
    uses = Counter(feature for features in groups for feature in features)
    quads: list[Quad] = []
    for number, features in enumerate(groups):
        left = sorted(features, key=lambda feature: -uses[feature])
        before = list(quads)
        while left and before:
            taken = [_taken(quad, left) for quad in before]
            held = [sum(feature in quad.features for feature in left) for quad in before]
            best = max(range(len(before)), key=lambda i: (len(taken[i]), held[i], -len(before[i].features)))
            quad, found = before.pop(best), taken[best]
            # the others of a full look-up must fill whole ones
            if len(found) < (len(left) - 1) % LANES + 1:
                break
            quad.features += [feature for feature in found if feature not in quad.features]
            quad.groups.append(number)
            left = [feature for feature in left if feature not in found]
        quads += [Quad(left[at : at + LANES], [number]) for at in range(0, len(left), LANES)]
    return quads


def _taken(quad: Quad, features: list[int]) -> list[int]:
    """Those of the features that a quad holds, or has a place for if it holds any."""
    held = [feature for feature in features if feature in quad.features]
    room = LANES - len(quad.features) if held else 0
    return held + [feature for feature in features if feature not in quad.features][:room]
