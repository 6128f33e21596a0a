"""LightGBM regressors with one output each, joined into one model with an output for each of them."""

import re
from collections.abc import Sequence

_TREE = re.compile(r"^Tree=\d+\n", re.MULTILINE)
_END = "end of trees\n"
_CONSTANT = (
    "num_leaves=1\nnum_cat=0\nsplit_feature=\nsplit_gain=\nthreshold=\ndecision_type=\nleft_child=\nright_child=\n"
    "leaf_value=0\nleaf_weight=\nleaf_count=\ninternal_value=\ninternal_weight=\ninternal_count=\nis_linear=0\n"
    "shrinkage=1\n\n\n"
)


def joined(texts: Sequence[str]) -> str:
    """One model text whose output ``k`` is the ``k``-th model's only one; softmax is its link.

    In LightGBM's format tree ``t`` adds to output ``t`` modulo the number of outputs, so a model with fewer trees than
    others is filled up with trees of one leaf of 0.

    Parameters
    ----------
    texts : sequence of str
        Model texts of one output over the same columns.
    """
    outputs = len(texts)
    blocks = [_trees(text) for text in texts]
    rounds = max(map(len, blocks))
    trees = [trees[at] if at < len(trees) else _CONSTANT for at in range(rounds) for trees in blocks]
    numbered = "".join(f"Tree={number}\n{tree}" for number, tree in enumerate(trees))
    header = texts[0][: _TREE.search(texts[0]).start()]  # type: ignore[union-attr]
    for name, value in {
        "num_class": str(outputs),
        "num_tree_per_iteration": str(outputs),
        "objective": f"multiclass num_class:{outputs}",
    }.items():
        header = re.sub(rf"^{name}=.*$", f"{name}={value}", header, flags=re.MULTILINE)
    header = re.sub(r"^tree_sizes=.*\n", "", header, flags=re.MULTILINE)  # LightGBM then finds the trees by itself
    return f"{header}{numbered}{_END}\n"


def _trees(text: str) -> list[str]:
    """Each tree's lines below its ``Tree=`` line, with the blank lines that end it."""
    body = text[: text.index(_END)]
    return [tree.rstrip("\n") + "\n\n\n" for tree in _TREE.split(body)[1:]]
