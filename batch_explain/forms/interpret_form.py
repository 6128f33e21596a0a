"""A run as interpret-community's explanation: global over all rows, local of the sample."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.errors import OptionError
from batch_explain.forms.local import Values, local_of
from batch_explain.report.summaries import Level


def interpret_explanation(
    info: Mapping[str, Any], summary: pa.Table, sample: pa.Table | None, *, level: str, rows: int | None
) -> Any:
    """See :meth:`batch_explain.results.Run.to_interpret`.

    Built by the library's own factories, whose underscore is the library's: its explainers, in other packages too, and
    its reader of saved explanations call them, and there are no others.
    """
    try:
        from interpret_community.explanation.explanation import _create_global_explanation, _create_local_explanation
    except ImportError as error:
        raise OptionError(
            f"interpret-community is not installed here ({error}). Install batch_explain[automl] on Python 3.10."
        ) from error
    found = Level.of(level, info, summary)
    classes = _classes(info)
    mirrored = classes is not None and not info["outputs"]  # one output pushes toward the second of two classes
    common = {
        "method": f"batch_explain.{info['artifacts']['explainer']['kind']}",
        "model_type": None if info["artifacts"]["model"] is None else info["artifacts"]["model"]["kind"],
        "features": list(found.features),
        "num_features": len(found.features),
        "is_raw": level == "raw",
        "is_engineered": level == "engineered",
        "classification": classes is not None,
        "expected_values": _expected(info, mirrored),
    }
    per_class = np.nan_to_num(found.statistics["mean_abs"])  # NaN: there were no rows
    ranking = {}
    if classes is not None:
        common["classes"] = classes
        per_class = np.repeat(per_class, 2, axis=0) if mirrored else per_class
        ranking = {"per_class_values": per_class, "per_class_rank": _ranks(per_class)}
    overall = per_class.mean(axis=0)
    local = None
    if sample is not None:
        drawn = local_of(info, sample, level, rows)
        values, data = drawn.importances, {}
        if classes is not None:
            values = np.stack((-values[0], values[0])) if mirrored else values
        if drawn.values is not None:
            data["eval_data"] = _cells(drawn.values)
            if drawn.predictions is not None:
                data["eval_ys_predicted"] = np.array(drawn.predictions)
        common.update(data)
        local = _create_local_explanation(
            local_importance_values=values if classes is not None else values[0], **common
        )  # fmt: skip
    return _create_global_explanation(
        local_explanation=local,
        global_importance_values=overall,
        global_importance_rank=_ranks(overall),
        **ranking,
        **common,
    )


def _classes(info: Mapping[str, Any]) -> list[str] | None:
    """Names in the order of the values; None for regression."""
    if info["outputs"]:
        return list(info["outputs"])
    if info["task"] != "classification":
        return None
    # a surrogate without a model knows its two classes by number
    return [str(label) for label in info["classes"] or (0, 1)]


def _expected(info: Mapping[str, Any], mirrored: bool) -> np.ndarray | None:
    if None in info["expected_values"]:
        return None
    expected = np.array(info["expected_values"], dtype=np.float64)
    return np.concatenate((-expected, expected)) if mirrored else expected


def _ranks(values: np.ndarray) -> np.ndarray:
    """Positions of the features, the largest first; ties in feature order."""
    return np.argsort(-values, axis=-1, kind="stable")


def _cells(values: tuple[Values, ...]) -> np.ndarray:
    """Shape (row, feature), of what JSON can hold: numbers and text."""
    return np.column_stack(
        [[str(value) if isinstance(value, date) else value for value in each.shown] for each in values]
    )
