"""A comparison of two runs, as a person reads it."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from batch_explain.drift import Comparison

_STABLE, _SHIFTED = 0.1, 0.25  # of the stability index, as is usual


def headlines(found: "Comparison") -> list[tuple[str, str]]:
    """What a person wants to know first."""
    limit = ""
    if found.max_drift is not None:
        limit = f", {'above' if found.above_limit else 'within'} the limit of {found.max_drift:g}"
    pairs = [("baseline", f"{found.baseline.location} ({found.baseline.kind})"), ("level", found.level)]
    pairs.append(("drift (1 - nDCG)", f"{found.drift:.4f}{limit}"))
    pairs += [(f"nDCG{'' if label is None else f' of {label}'}", f"{value:.4f}") for label, value in found.ndcg.items()]
    pairs += _predictions(found)
    names = {"r2": "R²", "log_loss": "log-loss"}
    changes = [
        f"{names.get(name, name)} {each['baseline']:.4f} → {each['run']:.4f} ({each['change']:+.4f})"
        for name, each in (found.fidelity or {}).items()
    ]
    pairs.append(("surrogate fidelity", ", ".join(changes) or "not known of both"))
    for name, only in found.only().items():
        for what in ("outputs", "features"):
            if missing := only[what]:
                pairs.append(
                    (f"{what} of the {name} only", ", ".join(map(str, missing[:10])) + "…" * (len(missing) > 10))
                )
    return pairs


def _predictions(found: "Comparison") -> Iterator[tuple[str, str]]:
    if not found.predictions:
        yield "predictions", "their shift is not known"
    for each in found.predictions:
        name = each["of"] if each["output"] is None else f"{each['of']} of {each['output']}"
        if each["psi"] is None:
            yield name, "its shift is not known"
            continue
        yield name, f"PSI {each['psi']:.4f}, Jensen-Shannon distance {each['js']:.4f}"
        if "shares" in each:
            names = sorted({*each["shares"], *each["shares_baseline"]}, key=lambda c: -each["shares"].get(c, 0))
            shares = [
                f"{c} {each['shares_baseline'].get(c, 0):.1%} → {each['shares'].get(c, 0):.1%}" for c in names[:10]
            ]
            yield "shares of classes", ", ".join(shares) + "…" * (len(names) > 10)


def moved_most(found: "Comparison", top: int) -> "Table":
    """The features whose share of the importance changed most."""
    from rich.table import Table
    from rich.text import Text

    frame = found.frame()
    frame["change"] = frame["share"] - frame["share_baseline"]
    order = frame["change"].abs().sort_values(ascending=False, kind="stable").index[:top]
    several = list(found.ndcg) != [None]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*(["output"] if several else []), "feature"):
        table.add_column(name, overflow="fold")
    for name in ("rank", "was", "share", "change", "PSI importance", "PSI values", "JS values"):
        table.add_column(name, justify="right")
    for row in frame.loc[order].to_dict("records"):
        texts = [str(row["output"])] if several else []
        table.add_row(
            *(Text("".join(c if c.isprintable() else " " for c in text)) for text in (*texts, str(row["feature"]))),
            *(_shown(row[name], ".0f") for name in ("rank", "rank_baseline")),
            f"{row['share']:.1%}",
            f"{row['change']:+.1%}",
            *(_index(row[name]) for name in ("psi_importance", "psi_value")),
            _shown(row["js_value"], ".3f"),
        )
    return table


def _index(value: float) -> str:
    style = "red" if value >= _SHIFTED else "yellow" if value >= _STABLE else ""
    return f"[{style}]{value:.3f}[/]" if style else _shown(value, ".3f")


def _shown(value: float, form: str) -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"
