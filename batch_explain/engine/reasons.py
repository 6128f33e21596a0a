"""What the reasons of a run are, each row's most important features: decided in the plan."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.reason_files import OTHER, SIGNS, Code, read_codes, read_groups, some_like
from batch_explain.engine.schema import some_of
from batch_explain.errors import OptionError
from batch_explain.options import REASONS, RunOptions
from batch_explain.storage.dataset import InputFile

_TEXT = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Candidate:
    """A feature, or a group of them, that can be a reason.

    Parameters
    ----------
    name : str
    members : tuple of int
        Positions of its features among the computed importances of its level.
    group : bool
        Whether it is one.
    column : str or None
        Column of the input that holds its own value; None for a group, and at the engineered level.
    positive, negative : Code or None
        What it is called where it pushes up, and where it pushes down.
    """

    name: str
    members: tuple[int, ...]
    group: bool
    column: str | None = None
    positive: Code | None = None
    negative: Code | None = None


@dataclass(frozen=True)
class Reasons:
    """What the reasons of a run are.

    Parameters
    ----------
    level : str
        ``raw`` or ``engineered``.
    top_k : int
    which : str
        ``by-magnitude``, ``positive`` or ``negative``.
    predicted : bool
        Only of the predicted class.
    candidates : tuple of Candidate
        In the order of their (first) features, which is also the order of equal importances.
    value : str or None
        ``double`` or ``string``: type of the features' own values; None: they are left out.
    coded : bool
        Whether there are codes.
    dtype : str
        ``float64`` or ``float32``: how importances are stored.
    excluded : tuple of str
    sources : dict
        ``table of reason codes``, ``table of feature groups`` -> SHA-256 of the file.
    """

    level: str
    top_k: int
    which: str
    predicted: bool
    candidates: tuple[Candidate, ...]
    value: str | None
    coded: bool
    dtype: str
    excluded: tuple[str, ...]
    sources: dict[str, str]

    @property
    def fields(self) -> list[pa.Field]:
        """The table's columns beside the ids."""
        found = [
            ("output", _TEXT),
            ("rank", pa.int32()),
            ("feature", _TEXT),
            ("importance", pa.type_for_alias(self.dtype)),
        ]
        found += [] if self.value is None else [("value", pa.type_for_alias(self.value))]
        found += [("code", _TEXT), ("text", _TEXT)] if self.coded else []
        return [pa.field(*field) for field in found]

    def most(self, outputs: int) -> int:
        """Most reasons of a row, for so many outputs."""
        return min(self.top_k, len(self.candidates)) * (1 if self.predicted else outputs)

    def describe(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {
            "level": self.level,
            "top_k": self.top_k,
            "which": self.which,
            "for": "predicted" if self.predicted else "all",
            "features": [candidate.name for candidate in self.candidates],
            "groups": [candidate.name for candidate in self.candidates if candidate.group],
            "excluded": list(self.excluded),
            "sha256": self.sources,
        }

    def to_json(self) -> dict[str, Any]:
        """The stored form, in the plan: as it comes back from JSON."""
        candidates = [{**asdict(each), "members": list(each.members)} for each in self.candidates]
        return {**asdict(self), "candidates": candidates, "excluded": list(self.excluded)}

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> "Reasons | None":
        """Read :meth:`to_json`'s form."""
        if content is None:
            return None
        candidates = tuple(
            Candidate(
                each["name"],
                tuple(each["members"]),
                each["group"],
                each["column"],
                *(None if each[sign] is None else Code(**each[sign]) for sign in SIGNS),
            )
            for each in content["candidates"]
        )
        return cls(**{**content, "candidates": candidates, "excluded": tuple(content["excluded"])})


def level_of_reasons(options: RunOptions, artifacts: Artifacts) -> str | None:
    """The level of the reasons; None where none are asked for.

    Raises
    ------
    OptionError
        If raw ones are asked for, and there is no feature map.
    """
    if REASONS not in (options.outputs or ()):
        return None
    raw = "raw" in artifacts.levels(())
    if options.reasons_level == "raw" and not raw:
        raise OptionError(
            "--reasons-level is raw, but neither the explainer nor the model has a feature map from raw to engineered "
            "features. Pass --feature-map, or --reasons-level engineered."
        )
    return options.reasons_level or ("raw" if raw else "engineered")


def decide_reasons(
    options: RunOptions, artifacts: Artifacts, files: Sequence[InputFile], keys: Mapping[str, pa.DataType]
) -> tuple[Reasons | None, list[str]]:
    """Decide what the reasons of a run are, and what was decided on the user's behalf.

    Parameters
    ----------
    options : RunOptions
    artifacts : Artifacts
    files : sequence of InputFile
        Those that can be read.
    keys : mapping
        Hive key -> type.

    Raises
    ------
    OptionError
        If a file or an option of reasons does not fit the features or the model.
    """
    level = level_of_reasons(options, artifacts)
    if level is None:
        return None, []
    decisions = _about_predicted(artifacts) if options.reasons_for == "predicted" else []
    explainer = artifacts.explainer
    features = explainer.engineered_features if level == "engineered" else explainer.raw_features or ()
    computed = [features[at] for at in explainer.used] if level == "engineered" else list(features)
    if len(set(features)) < len(features):
        raise OptionError(
            f"Reasons name {level} features, but some of the explainer's have the same name. Leave 'reasons' out of "
            "--outputs, or make the explainer with distinct names."
        )
    groups: dict[str, str] = {}
    sources: dict[str, str] = {}
    if options.group_features is not None:
        groups, sources["table of feature groups"] = read_groups(options.group_features, set(features))
    excluded = _excluded(options, features, groups)
    members: dict[str, list[int]] = {}
    for at in _not_always_zero(artifacts, level):
        members.setdefault(groups.get(computed[at], computed[at]), []).append(at)
    members = {name: places for name, places in members.items() if name not in excluded}
    if not members:
        raise OptionError("--exclude-features leaves no feature that could be a reason. Exclude fewer of them.")
    codes: dict[tuple[str, str], Code] = {}
    if options.reason_codes is not None:
        known = {*features, *groups.values()}
        codes, sources["table of reason codes"] = read_codes(options.reason_codes, known)
        decisions += _without_code(options, members, codes)
    columns = _columns(options, artifacts, level)
    candidates = tuple(
        Candidate(
            name,
            tuple(places),
            name in groups.values(),
            None if name in groups.values() else columns.get(name),
            *(codes.get((name, sign), Code(OTHER, OTHER)) if codes or options.reason_codes else None for sign in SIGNS),
        )
        for name, places in members.items()
    )
    shown = level == "engineered" or bool(columns)
    if not shown:
        decisions.append("reasons have no values: the input holds engineered features, not the raw ones")
    value = None
    if shown and not options.no_row_values:
        value = "double" if level == "engineered" or _all_numbers(candidates, files, keys) else "string"
    return Reasons(
        level=level,
        top_k=options.top_k,
        which=options.reasons,
        predicted=options.reasons_for == "predicted",
        candidates=candidates,
        value=value,
        coded=options.reason_codes is not None,
        dtype=options.dtype,
        excluded=options.exclude_features,
        sources=sources,
    ), decisions


def _about_predicted(artifacts: Artifacts) -> list[str]:
    """What reasons for the predicted class mean for this model; refused where it predicts no class."""
    teacher, outputs = artifacts.teacher, artifacts.labels
    if teacher is None or teacher.classes is None:
        why = "there is no --model to predict one" if teacher is None else "the model is not a classifier"
        raise OptionError(
            f"--reasons-for is predicted, but no class is predicted: {why}. Use --reasons-for all, or leave it out."
        )
    if outputs is None and len(teacher.classes) != 2:
        raise OptionError(
            f"--reasons-for is predicted, but the explainer has one output for {len(teacher.classes)} classes. Use "
            "--reasons-for all, or leave it out."
        )
    if outputs is None:
        return [
            f"reasons are for the predicted class: where it is '{teacher.classes[0]}', importances have the other sign "
            "than in the model's single output, which pushes toward the second class"
        ]
    if len(outputs) < len(teacher.classes):
        return ["rows of a class that has no output have no reasons: they are for the predicted class alone"]
    return []


def _not_always_zero(artifacts: Artifacts, level: str) -> list[int]:
    """Places, among the computed features of a level, of those that can be other than 0."""
    explainer = artifacts.explainer
    if level == "engineered":
        return list(range(len(explainer.used)))
    if explainer.feature_map is None:  # learned from the first row, of a dataset that has none
        return list(range(len(explainer.raw_features or ())))
    return np.flatnonzero(explainer.feature_map[:, explainer.used].getnnz(axis=1)).tolist()


def _excluded(options: RunOptions, features: Sequence[str], groups: Mapping[str, str]) -> set[str]:
    known = {*features, *groups.values()}
    for name in options.exclude_features:
        if name not in known:
            raise OptionError(
                f"--exclude-features names '{name}', which is no feature{some_like(name, known)}. Name features as the "
                "importances' tables do, or pass another --reasons-level."
            )
        if name not in groups.values() and name in groups:
            raise OptionError(
                f"--exclude-features names '{name}', which is in the group '{groups[name]}'. Exclude the group, or "
                "take the feature out of it."
            )
    return set(options.exclude_features)


def _without_code(options: RunOptions, names: Mapping[str, Any], codes: Mapping[tuple[str, str], Code]) -> list[str]:
    """What is said of features that could be reasons and have no code; refused unless they are to be "other"."""
    needed = [sign for sign in SIGNS if options.reasons in ("by-magnitude", sign)]
    missing = [(name, sign) for name in names for sign in needed if (name, sign) not in codes]
    if not missing:
        return []
    listed = some_of([f"{name} ({sign})" for name, sign in missing], 5)
    if options.missing_code == "error":
        raise OptionError(
            f"--reason-codes: {len(missing)} of {len(names) * len(needed)} features and directions that could be "
            f"reasons have no code: {listed}. Add them to {options.reason_codes}, exclude them, or pass --missing-code "
            "other."
        )
    return [f"features and directions without a reason code have the code '{OTHER}': {listed}"]


def _columns(options: RunOptions, artifacts: Artifacts, level: str) -> dict[str, str]:
    """Raw feature -> the input's column that holds its value."""
    if level == "engineered" or artifacts.takes_engineered:
        return {}
    in_file = dict(options.columns_map)
    return {column.name: in_file.get(column.name, column.name) for column in artifacts.columns}


def _all_numbers(candidates: Sequence[Candidate], files: Sequence[InputFile], keys: Mapping[str, pa.DataType]) -> bool:
    columns = [candidate.column for candidate in candidates if candidate.column is not None]
    schemas = {file.schema for file in files}
    types = {keys[name] if name in keys else schema.field(name).type for schema in schemas for name in columns}
    return all(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
        for kind in types
    )
