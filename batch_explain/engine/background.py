"""The rows of ``--background``: read, checked and featurized as the input's rows are."""

import hashlib

import pyarrow as pa

from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.schema import as_trained, check_columns
from batch_explain.errors import BadDataError, InputError, OptionError
from batch_explain.options import RunOptions
from batch_explain.storage.atomic import sha256_of
from batch_explain.storage.dataset import discover
from batch_explain.storage.filesystems import Location
from batch_explain.storage.reading import read_batches
from batch_explain.treeshap.background import MOST_ROWS, check_count


def take_background(options: RunOptions, artifacts: Artifacts) -> None:
    """Have the explainer compare with the background rows.

    Raises
    ------
    OptionError
        If there are none, or too many, or they cannot be used.
    ArtifactError
        If the explainer has no trees.
    """
    assert options.background is not None
    files = as_trained(discover(options.background), artifacts.columns, options.columns_map)
    place = files[0].url if len(files) == 1 else options.background
    count = sum(file.rows for file in files)
    check_count(count, f"--background {Location(place)}")  # before they are read
    in_file = dict(options.columns_map)
    names = [in_file.get(column.name, column.name) for column in artifacts.columns]
    try:
        check_columns(options, files, artifacts.columns, {}, engineered=artifacts.takes_engineered)
        tables = [
            table
            for file in files
            for table in read_batches(file, start=0, stop=file.rows, columns=names, batch_rows=MOST_ROWS)
        ]
        rows = pa.concat_tables([table.select(names) for table in tables]).combine_chunks()
        renamed = rows.rename_columns([column.name for column in artifacts.columns])
        matrix = artifacts.engineered(renamed)[0]
    except (InputError, BadDataError) as error:
        raise OptionError(f"The rows of --background cannot be used: {error}") from error
    artifacts.explainer.set_background(matrix)


def background_digest(url: str) -> str:
    """SHA-256 over those of its files."""
    digests = [sha256_of(Location(file.url)) for file in discover(url)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
