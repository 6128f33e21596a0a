"""A feature map in a file of its own, for explainers that hold none: what a run writes as feature_map.parquet."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, combine_maps
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import read_parquet

COLUMNS = ("raw_feature", "engineered_feature", "weight")


def take_feature_map(explainer: Explainer, path: str) -> None:
    """Give an explainer the feature map in a file.

    Parameters
    ----------
    explainer : Explainer
    path : str
        Parquet with the columns ``raw_feature``, ``engineered_feature`` and ``weight``, one row for each weight that is
        not 0. An engineered feature's weights need not add up to 1: they are scaled.

    Raises
    ------
    ArtifactError
        If there is no such file, or it does not fit the explainer's features.
    """
    place = Location(path)
    try:
        table = read_parquet(place)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"The feature map {place} is not readable parquet: {reason}. Check the path.") from error
    if wrong := [name for name in COLUMNS if table.column_names.count(name) != 1]:
        raise ArtifactError(
            f"The feature map {place} has no column {', '.join(map(repr, wrong))}, or several of that name. It needs "
            f"{', '.join(COLUMNS)}."
        )
    raw, engineered = (table[name].to_pylist() for name in COLUMNS[:2])
    try:
        weights = table["weight"].cast(pa.float64()).to_numpy()
    except (pa.ArrowException, ValueError):
        weights = np.array([np.nan])
    if not np.isfinite(weights).all() or None in raw:
        raise ArtifactError(f"The feature map {place} has gaps, or weights that are not numbers. Write it again.")
    names = [str(name) for name in dict.fromkeys(raw)]
    columns = _positions(engineered, explainer.engineered_features, place)
    place_of = {name: i for i, name in enumerate(names)}
    entries = (weights, ([place_of[str(name)] for name in raw], columns))
    if explainer.feature_map is not None:
        explainer.notes += ("the explainer's own feature map is replaced by the file that --feature-map names",)
    explainer.raw_features = tuple(names)
    shape = (len(names), len(explainer.engineered_features))
    explainer.set_feature_map(combine_maps([sp.csr_matrix(entries, shape=shape)]))


def _positions(wanted: Sequence[Any], features: Sequence[str], place: Location) -> list[int]:
    position = {name: i for i, name in enumerate(features)}
    if unknown := list(dict.fromkeys(name for name in wanted if name not in position)):
        listed = ", ".join(map(repr, unknown[:5]))
        raise ArtifactError(
            f"The feature map {place} names {len(unknown)} engineered features that the explainer does not have: "
            f"{listed}. Pass the map that was made for this very explainer."
        )
    return [position[name] for name in wanted]
