"""An inspection as the lines that a person reads."""

from collections import Counter
from collections.abc import Sequence

from batch_explain.engine.inspect import Inspection, Trees

_SHOWN = 8


def describe(found: Inspection) -> list[tuple[str, str]]:
    """(name, text) of each line."""
    lines = [("artifact", found.place), ("kind", found.kind)]
    if found.steps:
        lines.append(("steps", " → ".join(found.steps)))
    outputs = f", {found.outputs} output{'s' * (found.outputs != 1)}" if found.outputs is not None else ""
    lines.append(("task", f"{found.task}{outputs}"))
    if found.classes is not None:
        lines.append(("classes", _some([str(label) for label in found.classes])))
    for name, features in (("raw", found.raw_features), ("engineered", found.engineered_features)):
        if features is not None:
            lines.append((f"{name} features", f"{len(features):,}: {_some(features)}"))
    if found.feature_map is not None:
        raw, engineered, density = found.feature_map
        lines.append(("feature map", f"{raw:,} raw × {engineered:,} engineered, {density:.1%} of it filled"))
    if found.trees is not None:
        lines += _trees(found.trees)
    lines += [("format", found.format), ("size", f"{found.bytes:,} bytes"), ("sha256", found.sha256)]
    for package, version in found.made_with.items():
        lines.append((f"made with {package}", f"{version} (here: {found.here[package] or 'not installed'})"))
    if found.imports:
        packages = Counter(name.partition(".")[0] for name in found.imports)
        counts = ", ".join(f"{count} of {package}" for package, count in packages.most_common())
        lines.append(("names in the pickle", f"{len(found.imports)}: {counts}"))
        lines.append(("not on the list", ", ".join(found.refused) or "none"))
    elif found.refused:
        lines.append(("not trusted by skops", ", ".join(found.refused)))
    lines += [("warning", text) for text in found.warnings]
    if found.refused:
        lines.append(("warning", "it is refused unless each of these names is given to --trust, which lets it run"))
    return lines


def _trees(trees: Trees) -> list[tuple[str, str]]:
    best = f"; early stopping chose {trees.best_iteration:,}" if trees.best_iteration else ""
    if trees.sparse_iterations:
        best += f"; the explainer uses {trees.sparse_iterations:,} for sparse rows"
    values = _some([f"{value:.6g}" for value in trees.expected_values])
    plan = (
        f"{trees.groups:,} groups ({trees.direct_groups:,} direct), {trees.table_bytes / 1e6:,.1f} MB of tables, about "
        f"{trees.microseconds:.2g} µs a row on one core"
        if trees.not_planned is None
        else f"none: {trees.not_planned}"
    )
    return [
        ("trees", f"{trees.trees:,} of at most {trees.most_leaves:,} leaves, {trees.leaves:,} leaves in all"),
        ("iterations", f"{trees.iterations:,}{best}"),
        ("objective", trees.objective),
        ("features split on", f"{trees.used_features:,}"),
        ("expected value" + "s" * (len(trees.expected_values) > 1), values),
        ("kernel's plan", plan),
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
