"""The one tree format as LightGBM's model text, which LightGBM and :mod:`batch_explain.trees.lightgbm_text` read.

So any sum of trees has a portable form, and an implementation of its margins that is not ours. LightGBM holds counts as
whole numbers: where covers are not (XGBoost's are sums of hessians), the text keeps them as they are, for our reader,
and LightGBM's own ``pred_contrib`` of it means nothing.
"""

import numpy as np

from batch_explain.trees.ensemble import Ensemble

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2


def write_model_text(ensemble: Ensemble) -> str:
    """Write an ensemble as a LightGBM model text (version 4).

    Parameters
    ----------
    ensemble : Ensemble

    Returns
    -------
    str
    """
    names = list(ensemble.feature_names)
    outputs = ensemble.n_outputs
    lines = [
        "tree",
        "version=v4",
        f"num_class={outputs}",
        f"num_tree_per_iteration={outputs}",
        "label_index=0",
        f"max_feature_idx={len(names) - 1}",
        f"objective={ensemble.objective}",
        *(["average_output"] if ensemble.averaged else []),
        f"feature_names={' '.join(names)}",
        f"feature_infos={' '.join(['[-inf:inf]'] * len(names))}",
        "",
    ]
    trees = [_tree(ensemble, number) for number in range(ensemble.n_trees)]
    return "\n".join(
        [*lines, *trees, "end of trees", "", "feature_importances:", "", "parameters:", "end of parameters"]
    )


def _tree(ensemble: Ensemble, number: int) -> str:
    nodes = slice(int(ensemble.node_offset[number]), int(ensemble.node_offset[number + 1]))
    leaves = slice(int(ensemble.leaf_offset[number]), int(ensemble.leaf_offset[number + 1]))
    values = ensemble.leaf_value[leaves]
    chosen = ensemble.category_set[nodes]
    categorical = chosen >= 0
    lines = [f"Tree={number}", f"num_leaves={len(values)}", f"num_cat={int(categorical.sum())}"]
    if len(values) > 1:
        thresholds = ensemble.threshold[nodes].copy()
        thresholds[categorical] = np.arange(categorical.sum())
        decisions = ensemble.missing[nodes].astype(np.int64) << _MISSING_SHIFT
        decisions |= np.where(ensemble.default_left[nodes], _DEFAULT_LEFT, 0) | np.where(categorical, _CATEGORICAL, 0)
        lines += [
            f"split_feature={_joined(ensemble.feature[nodes])}",
            f"split_gain={_joined(np.zeros(len(thresholds), dtype=np.int64))}",
            f"threshold={_joined(thresholds)}",
            f"decision_type={_joined(decisions)}",
            f"left_child={_joined(ensemble.left[nodes])}",
            f"right_child={_joined(ensemble.right[nodes])}",
            f"leaf_value={_joined(values)}",
            f"leaf_weight={_joined(ensemble.leaf_count[leaves])}",
            f"leaf_count={_joined(ensemble.leaf_count[leaves])}",
            f"internal_value={_joined(np.zeros(len(thresholds), dtype=np.int64))}",
            f"internal_weight={_joined(ensemble.node_count[nodes])}",
            f"internal_count={_joined(ensemble.node_count[nodes])}",
        ]
        if categorical.any():
            lines += _category_lines([ensemble.category_sets[each] for each in chosen[categorical]])
    else:
        lines.append(f"leaf_value={_joined(values)}")
    return "\n".join([*lines, "is_linear=0", "shrinkage=1", "", ""])


def _category_lines(sets: list[np.ndarray]) -> list[str]:
    words: list[int] = []
    bounds = [0]
    for categories in sets:
        size = int(categories.max(initial=0)) // 32 + 1
        bits = np.zeros(size, dtype=np.uint64)
        np.bitwise_or.at(bits, categories // 32, np.uint64(1) << (categories % 32).astype(np.uint64))
        words += bits.tolist()
        bounds.append(len(words))
    return [f"cat_boundaries={_joined(np.array(bounds))}", f"cat_threshold={_joined(np.array(words, dtype=np.int64))}"]


def _joined(values: np.ndarray) -> str:
    """Numbers that read back as they are; whole ones without a point, as LightGBM has its counts."""
    return " ".join(map(_spelled, values.tolist()))


def _spelled(value: float) -> str:
    whole = abs(value) < 2**53 and value == int(value) and str(value) != "-0.0"
    return str(int(value)) if whole else repr(value)
