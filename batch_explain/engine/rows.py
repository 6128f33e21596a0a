"""Rows of the input, with the places where they stand."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """Some rows as they were read, or lines of such rows.

    Parameters
    ----------
    table : pyarrow.Table
        Their columns, by the files' names.
    paths : str, or pyarrow.StringArray
        The file of all rows, or of each.
    numbers : ndarray of int
        Position of each in its file.
    """

    table: pa.Table
    paths: str | pa.Array
    numbers: np.ndarray

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, positions: np.ndarray) -> "Rows":
        """Rows by their positions here."""
        at = pa.array(positions)
        paths = self.paths if isinstance(self.paths, str) else self.paths.take(at)
        return replace(self, table=self.table.take(at), paths=paths, numbers=self.numbers[positions])

    def path(self, position: int) -> str:
        """The file of a row."""
        return self.paths if isinstance(self.paths, str) else str(self.paths[position].as_py())

    def place(self, position: int) -> str:
        """Where a row stands, for people."""
        return f"row {int(self.numbers[position])} of {self.path(position)}"

    def span(self) -> str:
        """Where all of them stand, for people."""
        if isinstance(self.paths, str):
            first = int(self.numbers[0]) if len(self) else 0
            return f"rows {first} to {first + len(self)} together of {self.paths}"
        return f"{len(self)} rows of whole series together"

    def source(self) -> list[pa.Array]:
        """``source_file`` and ``source_row`` of each."""
        files = pa.repeat(pa.scalar(self.paths), len(self)) if isinstance(self.paths, str) else self.paths
        return [files, pa.array(self.numbers)]
