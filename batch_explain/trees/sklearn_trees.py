"""scikit-learn's trees, forests and boosting, from the arrays of their fitted trees."""

from typing import Any

import numpy as np

from batch_explain.trees.assemble import Nodes, NotTreesError, Sum, split_outputs
from batch_explain.trees.rounding import at_most_as_float32


def read_forest(model: Any) -> Sum:
    """A forest, extra trees or a single tree: the mean of what its leaves hold.

    A classifier's leaves hold probabilities, so its outputs are probabilities, one for each class.

    Raises
    ------
    NotTreesError
        If it has several targets.
    """
    estimators = getattr(model, "estimators_", None)
    trees = [model] if estimators is None else list(np.ravel(estimators))
    if model.n_outputs_ != 1:
        raise NotTreesError("it predicts several targets")
    classes = getattr(model, "classes_", None)
    found = [_nodes(tree.tree_, 1 / len(trees), shares=classes is not None) for tree in trees]
    outputs = split_outputs(found)
    link = "identity" if classes is None else "probability"
    return Sum(outputs, np.zeros(len(outputs)), link, missing=_takes_missing(trees[0]), single=False)


def read_gradient_boosting(model: Any) -> Sum:
    """``GradientBoostingClassifier`` and ``GradientBoostingRegressor``: the initial value, and trees by learning rate.

    Raises
    ------
    NotTreesError
        If it starts from a model of its own, or its loss has no known link.
    """
    init = model.init_
    if init != "zero" and type(init).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise NotTreesError(f"it starts from the predictions of another model (init={type(init).__name__})")
    first = np.zeros((1, model.n_features_in_))
    outputs = model.estimators_.shape[1]
    base = np.zeros(outputs) if init == "zero" else np.asarray(model._raw_predict_init(first), dtype=np.float64)[0]
    trees = [
        [_nodes(tree.tree_, model.learning_rate, shares=False) for tree in column] for column in model.estimators_.T
    ]
    if not hasattr(model, "classes_"):
        link = "identity"
    elif model.loss not in ("log_loss", "deviance"):
        raise NotTreesError(
            f"its loss is '{model.loss}', whose margins have no link to probabilities that is known here"
        )
    else:
        link = "sigmoid" if outputs == 1 else "softmax"
    return Sum(trees, base, link, missing=False)


def read_hist_gradient_boosting(model: Any) -> Sum:
    """``HistGradientBoostingClassifier`` and ``HistGradientBoostingRegressor``.

    Raises
    ------
    NotTreesError
        If it recodes categories in a way that cannot be followed, or its loss has no known link.
    """
    columns = _columns_of(model)
    baseline = np.ravel(model._baseline_prediction).astype(np.float64)
    outputs: list[list[Nodes]] = [[] for _ in baseline]
    bits, f_map = model._bin_mapper.make_known_categories_bitsets()
    known = {int(feature): _categories(bits[place]) for feature, place in enumerate(f_map) if _has_bits(model, feature)}
    for iteration in model._predictors:
        for output, predictor in enumerate(iteration):
            outputs[output].append(_hist_nodes(predictor, known, columns))
    if not hasattr(model, "classes_"):
        if model.loss not in ("squared_error", "least_squares", "absolute_error", "quantile"):
            raise NotTreesError(f"its loss is '{model.loss}': its prediction is not the sum of its trees")
        link = "identity"
    else:
        link = "sigmoid" if len(baseline) == 1 else "softmax"
    return Sum(outputs, baseline, link)


def _nodes(tree: Any, factor: float, *, shares: bool) -> Nodes:
    value = tree.value[:, 0, :].astype(np.float64)
    if shares:  # counts, in older versions
        value = value / value.sum(axis=1, keepdims=True)
    missing = getattr(tree, "missing_go_to_left", None)
    return Nodes(
        left=tree.children_left.astype(np.int64),
        right=tree.children_right.astype(np.int64),
        feature=np.maximum(tree.feature, 0),
        threshold=at_most_as_float32(tree.threshold),
        default_left=np.zeros(tree.node_count, bool) if missing is None else np.asarray(missing, dtype=bool),
        cover=tree.weighted_n_node_samples.astype(np.float64),
        value=value * factor,
        categories={},
    )


def _takes_missing(tree: Any) -> bool:
    return hasattr(tree.tree_, "missing_go_to_left")


def _has_bits(model: Any, feature: int) -> bool:
    mask = model._bin_mapper.is_categorical_
    return mask is not None and bool(mask[feature])


def _columns_of(model: Any) -> np.ndarray:
    """The model's column for each of its trees' columns: categorical ones stand first where it recodes them."""
    recoder = getattr(model, "_preprocessor", None)
    if recoder is None:
        return np.arange(model.n_features_in_)
    order: list[int] = []
    for _, transformer, columns in recoder.transformers_:
        if type(transformer).__name__ == "OrdinalEncoder":
            for categories in transformer.categories_:
                found = np.asarray([each for each in categories if each == each])
                if found.dtype.kind not in "iuf" or not np.array_equal(found, np.arange(len(found))):
                    raise NotTreesError("its categories are not the numbers 0, 1, 2 and so on, so it recodes them")
        places = np.arange(model.n_features_in_)[columns] if not isinstance(columns, list) else columns
        order += [int(place) for place in places]
    return np.array(order)


def _hist_nodes(predictor: Any, known: dict[int, np.ndarray], columns: np.ndarray) -> Nodes:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    left = np.where(leaf, -1, nodes["left"].astype(np.int64))
    right = np.where(leaf, -1, nodes["right"].astype(np.int64))
    categories = {}
    if "is_categorical" in nodes.dtype.names:
        for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf).tolist():
            chosen = _categories(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]])
            if nodes["missing_go_to_left"][node]:  # so do unknown ones: what goes right is a set
                chosen = np.setdiff1d(known[int(nodes["feature_idx"][node])], chosen)
                left[node], right[node] = right[node], left[node]
            categories[node] = chosen
    return Nodes(
        left=left,
        right=right,
        feature=columns[np.where(leaf, 0, nodes["feature_idx"].astype(np.int64))],
        threshold=nodes["num_threshold"].astype(np.float64),
        default_left=nodes["missing_go_to_left"].astype(bool),
        cover=nodes["count"].astype(np.float64),
        value=nodes["value"].astype(np.float64)[:, None],
        categories=categories,
    )


def _categories(words: np.ndarray) -> np.ndarray:
    """Numbers whose bit is set, of words of 32 bits."""
    return np.flatnonzero((np.asarray(words, dtype=np.int64)[:, None] >> np.arange(32) & 1).ravel())
