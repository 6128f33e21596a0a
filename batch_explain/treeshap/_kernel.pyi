from typing import Any

import numpy as np

TABLE_FORMAT: str

def instruction_sets() -> list[str]: ...
def build_tables(arrays: dict[str, Any], tables: np.ndarray) -> None: ...
def explain(
    isa: str,
    block: int,
    arrays: dict[str, Any],
    tables: np.ndarray,
    dense: np.ndarray | None,
    indptr: np.ndarray | None,
    indices: np.ndarray | None,
    values: np.ndarray | None,
    position: np.ndarray,
    expected: np.ndarray,
    engineered: np.ndarray | None,
    raw: np.ndarray | None,
    map_indptr: np.ndarray,
    map_indices: np.ndarray,
    map_data: np.ndarray,
    margins: np.ndarray,
    begin: int,
    end: int,
) -> None: ...
