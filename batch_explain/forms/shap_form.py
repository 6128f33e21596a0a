"""Sampled rows as shap's own ``Explanation``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.errors import OptionError
from batch_explain.forms.local import at_output, local_of


def shap_explanation(
    info: Mapping[str, Any], sample: pa.Table, *, level: str, rows: int | None, output: str | None
) -> Any:
    """See :meth:`batch_explain.results.Run.to_shap`."""
    at = at_output(info, output)
    local = local_of(info, sample, level, rows)
    try:
        import shap
    except ImportError as error:
        raise OptionError(f"shap is not installed here ({error}). Install batch_explain[notebook].") from error
    expected = np.array([np.nan if value is None else value for value in info["expected_values"]], dtype=np.float64)
    base = np.tile(expected, (local.importances.shape[1], 1))
    values = local.values
    plain = values is None or all(each.numeric for each in values)
    return shap.Explanation(
        values=np.moveaxis(local.importances, 0, -1) if at is None else local.importances[at],
        base_values=base if at is None else base[:, at],
        data=None if values is None else np.column_stack([each.values for each in values]),
        display_data=None if values is None or plain else np.column_stack([each.shown for each in values]),
        feature_names=list(local.features),
        output_names=list(info["outputs"]) if at is None else output,
    )
