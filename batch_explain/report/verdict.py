"""What the numbers of a run say, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batch_explain.report.text import number

FAITHFUL, LOOSE = 0.95, 0.8  # R² or agreement; below the second an explanation says little about the model


@dataclass(frozen=True)
class Verdict:
    """One judgement.

    Parameters
    ----------
    state : str
        ``good``, ``fair``, ``bad`` or ``unknown``.
    value : str
        The number.
    title, text : str
    """

    state: str
    value: str
    title: str
    text: str


def fidelity(found: Mapping[str, Any] | None, class_counts: Sequence[int] | None) -> Verdict:
    """How faithfully the surrogate follows the teacher.

    Parameters
    ----------
    found : mapping or None
        As ``run.json`` has it.
    class_counts : sequence of int or None
        Rows of each predicted class: a surrogate that agrees on no more rows than the largest class has is no better
        than naming that class always.
    """
    if found is None:
        return Verdict(
            "unknown", "not known", "Whether the surrogate follows the model is not known",
            "There is no model in this run, or no known link between its predictions and the surrogate's margin.",
        )  # fmt: skip
    regression = found["measure"] == "r2"
    value = found["r2"] if regression else found["agreement"]
    if value is None:
        return Verdict(
            "unknown", "not known", "Whether the surrogate follows the model is not known",
            "The predictions do not vary." if found["rows"] else "There are no rows to compare them on.",
        )  # fmt: skip
    rows = f"{found['rows']:,} rows"
    if regression:
        value_text, what = (
            f"R² {value:.4f}",
            f"R² of the surrogate against the model's predictions on {rows} is {value:.4f}.",
        )
    else:
        value_text = f"{value:.2%}"
        what = (
            f"On {value:.2%} of {rows} both name the same class; the surrogate's log-loss against the model's class is "
            f"{number(found['log_loss'])}."
        )
    share = max(class_counts) / sum(class_counts) if class_counts and sum(class_counts) else None
    if not regression and share is not None and share < 1 and value <= share:
        return Verdict(
            "bad", value_text, "The surrogate does not follow the model",
            f"{what} To name the most frequent class always would agree on {share:.2%}. What stands below explains the "
            "surrogate, and says little about the model.",
        )  # fmt: skip
    if value < LOOSE:
        return Verdict(
            "bad", value_text, "The surrogate does not follow the model",
            f"{what} What stands below explains the surrogate, and says little about the model.",
        )  # fmt: skip
    if value < FAITHFUL:
        return Verdict(
            "fair", value_text, "The surrogate follows the model only loosely",
            f"{what} What stands below explains the surrogate; where the two differ, it is not what the model did.",
        )  # fmt: skip
    return Verdict("good", value_text, "The surrogate follows the model", what)


def additivity(found: Mapping[str, Any]) -> Verdict:
    """Whether expected value and importances add up to the surrogate's margin."""
    residual, allowed, rows = found["largest_residual"], found["allowed"], f"{found['rows_checked']:,} rows"
    if residual is None:
        text = (
            "No row was checked." if allowed is not None else "This explainer's values need not add up to its margin."
        )
        return Verdict("unknown", "not checked", "Additivity was not checked", text)
    value = number(residual, 2)
    if allowed is None:
        return Verdict(
            "fair", value, "Importances need not add up",
            f"This explainer approximates: its values miss the margin by up to {value} on {rows}.",
        )  # fmt: skip
    return Verdict(
        "good", value, "Importances add up",
        f"Expected value + importances = margin, to {value} (relative to the row's largest value) on {rows} that were "
        f"checked; {allowed:g} is allowed.",
    )  # fmt: skip
