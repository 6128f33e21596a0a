"""An explanation as interpret-community's own object."""

from typing import Any

from batch_explain.errors import OptionError
from batch_explain.forms.explanation import Explanation, ranked


def interpret_explanation(explanation: Explanation) -> Any:
    """Make the library's object.

    Built by the library's own factories, whose underscore is the library's: its explainers, in other packages too, and
    its reader of saved explanations call them, and there are no others.

    Raises
    ------
    OptionError
        If interpret-community is not installed.
    """
    try:
        from interpret_community.explanation.explanation import _create_global_explanation, _create_local_explanation
    except ImportError as error:
        raise OptionError(
            f"interpret-community is not installed here ({error}). Install batch_explain[automl] on Python 3.10."
        ) from error
    common = {
        "method": explanation.method,
        "model_type": explanation.model,
        "features": list(explanation.features),
        "num_features": len(explanation.features),
        "is_raw": explanation.level == "raw",
        "is_engineered": explanation.level == "engineered",
        "classification": explanation.classes is not None,
        "expected_values": explanation.expected_values,
    }
    ranking = {}
    if explanation.classes is not None:
        common["classes"] = list(explanation.classes)
        if explanation.per_class_values is not None:
            ranking["per_class_values"] = explanation.per_class_values
            ranking["per_class_rank"] = ranked(explanation.per_class_values)
    if explanation.eval_data is not None:
        common["eval_data"] = explanation.eval_data
        if explanation.eval_predictions is not None:
            common["eval_ys_predicted"] = explanation.eval_predictions
    local = None
    if explanation.local_values is not None:
        local = _create_local_explanation(local_importance_values=explanation.local_values, **common)
    return _create_global_explanation(
        local_explanation=local,
        global_importance_values=explanation.global_values,
        global_importance_rank=ranked(explanation.global_values),
        **ranking,
        **common,
    )
