"""The CSV files that reasons are made with: codes, and groups of features."""

import csv
import difflib
import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass

from batch_explain.errors import OptionError
from batch_explain.storage.filesystems import Location

OTHER = "other"  # the code of a feature that has none
SIGNS = ("positive", "negative")


@dataclass(frozen=True)
class Code:
    """What a reason is called in a letter."""

    code: str
    text: str


def read_codes(path: str, known: Collection[str]) -> tuple[dict[tuple[str, str], Code], str]:
    """Read reason codes.

    Parameters
    ----------
    path : str
        CSV with the columns ``feature``, ``direction``, ``code`` and ``text``. An empty direction stands for both.
    known : collection of str
        Features and groups.

    Returns
    -------
    codes : dict
        (feature, ``positive`` or ``negative``) -> code.
    digest : str
        SHA-256 of the file.

    Raises
    ------
    OptionError
        If it cannot be read, names an unknown feature or direction, or gives a feature and direction two codes.
    """
    lines, digest = _read("--reason-codes", path, ("feature", "direction", "code", "text"))
    codes: dict[tuple[str, str], Code] = {}
    for number, line in lines:
        feature, direction, code = line["feature"], line["direction"].lower(), line["code"]
        _refuse_unknown("--reason-codes", path, number, feature, known)
        if direction not in ("", *SIGNS):
            raise OptionError(
                f"--reason-codes: line {number} of {Location(path)} has the direction '{direction}'. Write positive, "
                "negative, or nothing for either."
            )
        if not code:
            raise OptionError(
                f"--reason-codes: line {number} of {Location(path)} has no code for '{feature}'. Write one."
            )
        for sign in [direction] if direction else SIGNS:
            if (feature, sign) in codes:
                raise OptionError(
                    f"--reason-codes: line {number} of {Location(path)} gives '{feature}' a second code for {sign} "
                    "importances. Write one code for each feature and direction; an empty direction stands for both."
                )
            codes[feature, sign] = Code(code, line["text"])
    return codes, digest


def read_groups(path: str, known: Collection[str]) -> tuple[dict[str, str], str]:
    """Read groups of features.

    Parameters
    ----------
    path : str
        CSV with the columns ``feature`` and ``group``.
    known : collection of str
        Features.

    Returns
    -------
    groups : dict
        Feature -> its group.
    digest : str
        SHA-256 of the file.

    Raises
    ------
    OptionError
        If it cannot be read, names an unknown feature, puts one into two groups, or calls a group like a feature that
        is not in it.
    """
    lines, digest = _read("--group-features", path, ("feature", "group"))
    groups: dict[str, str] = {}
    for number, line in lines:
        feature, group = line["feature"], line["group"]
        _refuse_unknown("--group-features", path, number, feature, known)
        if not group:
            raise OptionError(
                f"--group-features: line {number} of {Location(path)} names no group for '{feature}'. Name one, or "
                "remove the line."
            )
        if feature in groups:
            raise OptionError(
                f"--group-features: line {number} of {Location(path)} puts '{feature}' into a group again (it is in "
                f"'{groups[feature]}'). Put each feature into one group."
            )
        groups[feature] = group
    for group in dict.fromkeys(groups.values()):
        if group in known and groups.get(group) != group:
            raise OptionError(
                f"--group-features: {Location(path)} has a group '{group}', which is also a feature outside of it. "
                "Give the group another name."
            )
    return groups, digest


def some_like(name: str, known: Collection[str]) -> str:
    """A hint at what may have been meant by an unknown name; empty where nothing is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f" (may be '{near[0]}')" if near else ""


def _refuse_unknown(option: str, path: str, number: int, feature: str, known: Collection[str]) -> None:
    if feature not in known:
        raise OptionError(
            f"{option}: line {number} of {Location(path)} names '{feature}', which is no feature"
            f"{some_like(feature, known)}. Name features as the importance tables do, or pass another --reasons-level."
        )


def _read(option: str, path: str, columns: tuple[str, ...]) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """Lines that are not empty, each with its number and its values by column; and the file's digest."""
    place = Location(path)
    try:
        content = place.read_bytes()
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(rows.line_num, [value.strip() for value in row]) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OptionError(
            f"{option}: {place} cannot be read ({reason}). Pass a CSV file in UTF-8 with the columns "
            f"{', '.join(columns)}."
        ) from error
    lines = [(number, row) for number, row in lines if any(row)]
    names = lines[0][1] if lines else []
    if missing := [name for name in columns if names.count(name) != 1]:
        raise OptionError(
            f"{option}: {place} does not have the column{'s' * (len(missing) > 1)} "
            f"{', '.join(map(repr, missing))} once in its first line. It needs {', '.join(columns)}."
        )
    for number, row in lines[1:]:
        if len(row) != len(names):
            raise OptionError(
                f"{option}: line {number} of {place} has {len(row)} values instead of {len(names)}. Put values with "
                "commas into quotes."
            )
    return [(number, dict(zip(names, row, strict=True))) for number, row in lines[1:]], hashlib.sha256(
        content
    ).hexdigest()
