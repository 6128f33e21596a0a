"""The folder of a fit: what may stand in it, and taking it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from batch_explain.errors import OutputRefusedError
from batch_explain.fitting.options import FitOptions
from batch_explain.forms.saved import METADATA
from batch_explain.storage.atomic import sha256_of
from batch_explain.storage.dataset import dataset_root
from batch_explain.storage.filesystems import Location

RECORD, BUNDLE, PICKLE = "fit.json", "bundle", "scoring_explainer.pkl"
HELD_OUT, HELD_OUT_ROWS, EXPLANATIONS = "held_out", "held_out.parquet", "explanations"
_OURS = {RECORD, BUNDLE, PICKLE, HELD_OUT, HELD_OUT_ROWS, EXPLANATIONS, "_run"}


def refuse_taken(output: Location, options: FitOptions) -> list[str]:
    """What an earlier fit left in the output; nothing is changed.

    Raises
    ------
    OutputRefusedError
        If the output is not empty (unless it holds a fit and ``overwrite`` is given), or lies where it must not.
    """
    for name, url in (("--train", options.train), ("--test", options.test), ("--model", options.model)):
        if url is None:
            continue
        place = Location(url)
        if output.contains(place) or (
            name != "--model" and dataset_root(url).contains(output) and place.fs.isdir(place.path)
        ):
            raise OutputRefusedError(
                f"The output {output} and what {name} names lie inside one another. Choose an output beside {place}."
            )
    try:
        if output.fs.isfile(output.path):
            raise OutputRefusedError(f"The output {output} is a file. Name a folder that is empty or does not exist.")
        entries = output.fs.ls(output.path, detail=False) if output.fs.isdir(output.path) else []
    except OSError as error:
        raise OutputRefusedError(f"The output {output} cannot be listed: {error}. Choose another place.") from error
    names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries]
    if foreign := sorted(name for name in set(names) - _OURS if not name.endswith(".tmp")):
        raise OutputRefusedError(
            f"The output {output} holds '{foreign[0]}', which no fit wrote. Name a folder that is empty or "
            "does not exist."
        )
    if names and not options.overwrite:
        state = "a fit" if RECORD in names else "a fit that was not finished"
        raise OutputRefusedError(f"The output {output} holds {state}. Choose another place, or pass --overwrite.")
    return names


def remove(output: Location, leftovers: Sequence[str]) -> None:
    """The record first: what is being removed is no finished fit."""
    for name in sorted(set(leftovers) - {"_run"}, key=lambda name: name != RECORD):
        place = output.join(name)
        with suppress(FileNotFoundError):
            place.fs.rm(place.path, recursive=True)


def checksums(output: Location) -> list[dict[str, Any]]:
    """Each file but those of the run and the bundle, which hold their own: of these, what holds them."""
    names = [PICKLE, HELD_OUT_ROWS, f"{BUNDLE}/bundle.json", f"{HELD_OUT}/_SUCCESS"]
    saved_ones = [f"{EXPLANATIONS}/{level}/{METADATA}" for level in ("engineered", "raw")]
    places = {name: output.join(*name.split("/")) for name in names + saved_ones}
    return [
        {"path": name, "bytes": int(place.fs.size(place.path)), "sha256": sha256_of(place)}
        for name, place in places.items()
        if place.exists()
    ]
