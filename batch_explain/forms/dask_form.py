"""A table of a finished run as a Dask dataframe."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from batch_explain.errors import OptionError
from batch_explain.storage.filesystems import Location
from batch_explain.storage.parquet_files import read_parquet

# An integer that is missing in one part alone would make a float of it there, and lose an id's last digits.
_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


def dask_frame(parts: Sequence[Location], schema: pa.Schema) -> Any:
    """See :meth:`batch_explain.results.Run.to_dask`.

    ``dask.dataframe.read_parquet`` is not used: it does not keep a given order of files in all versions, and gives a
    part with nulls other types than its neighbours.
    """
    try:
        import dask.dataframe as dd
    except ImportError as error:
        raise OptionError(f"Dask's dataframes are not installed here ({error}). Install dask[dataframe].") from error
    return dd.from_map(_read_part, list(parts), meta=_pandas(schema.empty_table()))


def _read_part(part: Location) -> pd.DataFrame:
    return _pandas(read_parquet(part))


def _pandas(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(types_mapper=_NULLABLE.get)
    return frame
