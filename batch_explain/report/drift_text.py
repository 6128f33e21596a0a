"""A comparison of two runs as a person reads it, in the terminal and in the report.

Made of what stands in ``summary/drift.json``: see :meth:`batch_explain.drift.Comparison.to_json`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN = 10  # classes, or names that one side alone has
_MEASURES = {"r2": "R²", "log_loss": "log-loss"}
_STABLE, _SHIFTED = 0.1, 0.25  # of the stability index, as is usual


@dataclass(frozen=True)
class Moved:
    """What changed of a feature.

    Parameters
    ----------
    cells : tuple of str
        As :func:`columns` names them.
    shifts : tuple of str
        For each cell: ``""``, ``some``, or ``much``, by the usual bounds of the stability index.
    """

    cells: tuple[str, ...]
    shifts: tuple[str, ...]


def headlines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to know first."""
    limit = ""
    if found["max_drift"] is not None:
        limit = f", {'above' if found['above_limit'] else 'within'} the limit of {found['max_drift']:g}"
    baseline = found["baseline"]
    pairs = [("baseline", f"{baseline['location']} ({baseline['kind']})"), ("level", found["level"])]
    pairs.append(("drift (1 - nDCG)", f"{found['drift']:.4f}{limit}"))
    pairs += [
        ("nDCG" if each["output"] is None else f"nDCG of {each['output']}", f"{each['ndcg']:.4f}")
        for each in found["ndcg"]
    ]
    pairs += _predictions(found["predictions"])
    changes = [
        f"{_MEASURES.get(name, name)} {each['baseline']:.4f} → {each['run']:.4f} ({each['change']:+.4f})"
        for name, each in (found["fidelity"] or {}).items()
    ]
    pairs.append(("surrogate fidelity", ", ".join(changes) or "not known of both"))
    for name, only in found["only_in"].items():
        for what in ("outputs", "features"):
            if missing := only[what]:
                shown = ", ".join(map(str, missing[:_SHOWN])) + "…" * (len(missing) > _SHOWN)
                pairs.append((f"{what} of the {name} only", shown))
    return pairs


def columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of the features' table; the texts stand first, numbers from ``rank`` on."""
    names = ("feature", "rank", "was", "share", "change", "PSI importance", "PSI values", "JS values")
    return ("output", *names) if _several(found) else names


def moved_most(found: Mapping[str, Any], top: int) -> list[Moved]:
    """The features whose share of the importance changed most."""
    features = sorted(found["features"], key=lambda each: -abs(each["share"] - each["share_baseline"]))
    several = _several(found)
    moved = []
    for each in features[:top]:
        texts = (str(each["output"]),) * several + (str(each["feature"]),)
        numbers = (
            _shown(each["rank"], ".0f"),
            _shown(each["rank_baseline"], ".0f"),
            f"{each['share']:.1%}",
            f"{each['share'] - each['share_baseline']:+.1%}",
            *(_shown(each[name], ".3f") for name in ("psi_importance", "psi_value", "js_value")),
        )
        shifts = (*(_shift(each[name]) for name in ("psi_importance", "psi_value")), "")
        cells = texts + numbers
        moved.append(Moved(cells, ("",) * (len(cells) - len(shifts)) + shifts))
    return moved


def _several(found: Mapping[str, Any]) -> bool:
    return [each["output"] for each in found["ndcg"]] != [None]


def _predictions(found: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    if not found:
        yield "predictions", "their shift is not known"
    for each in found:
        name = each["of"] if each["output"] is None else f"{each['of']} of {each['output']}"
        if each["psi"] is None:
            yield name, "its shift is not known"
            continue
        yield name, f"PSI {each['psi']:.4f}, Jensen-Shannon distance {each['js']:.4f}"
        if "shares" in each:
            now, before = each["shares"], each["shares_baseline"]
            names = sorted({*now, *before}, key=lambda label: (-now.get(label, 0), label))
            shares = [f"{label} {before.get(label, 0):.1%} → {now.get(label, 0):.1%}" for label in names[:_SHOWN]]
            yield "shares of classes", ", ".join(shares) + "…" * (len(names) > _SHOWN)


def _shift(value: float | None) -> str:
    if value is None or value < _STABLE:
        return ""
    return "much" if value >= _SHIFTED else "some"


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
