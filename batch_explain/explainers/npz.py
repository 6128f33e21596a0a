"""Arrays of numbers in an ``.npz`` file, read without trusting it: no pickle, and nothing larger than the file."""

import io
import math
import zipfile
from collections.abc import Mapping

import numpy as np

_HEADER = (1, 0)  # of the npy format: the only one that numpy writes for plain arrays


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file's content: uncompressed, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), version=_HEADER, allow_pickle=False)
    return buffer.getvalue()


def read_npz(content: bytes, wanted: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Read exactly the wanted arrays.

    Parameters
    ----------
    content : bytes
        The file.
    wanted : mapping
        Name -> dtype, such as ``<f8``.

    Returns
    -------
    dict
        Name -> array, not writeable.

    Raises
    ------
    ValueError
        If the file holds anything else, or claims more than it holds.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in wanted):
                raise ValueError(f"it does not hold just the arrays {', '.join(wanted)}")
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > len(content) for m in members):
                raise ValueError("an array in it is compressed, or larger than the file")
            return {name: _array(name, archive.read(f"{name}.npy"), np.dtype(kind)) for name, kind in wanted.items()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, SyntaxError, MemoryError) as error:
        raise ValueError(f"it cannot be read ({error})") from error


def _array(name: str, content: bytes, dtype: "np.dtype[np.generic]") -> np.ndarray:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != _HEADER:
        raise ValueError(f"the array {name} has another format")
    shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
    values = content[stream.tell() :]
    if found != dtype or fortran or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"the array {name} does not hold what its header says")
    return np.frombuffer(values, dtype).reshape(shape)
