"""scikit-learn models as skops files: a zip of JSON and arrays, opened only after skops' own audit of its types."""

import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from batch_explain.errors import ArtifactError
from batch_explain.explainers.pickles import short_error
from batch_explain.explainers.stream import ALWAYS_ALLOWED, MOST_BYTES, MOST_EXPANSION

_MAGIC = b"PK\x03\x04"  # of a zip archive
_SHOWN = 5
_SCHEMA, _MOST_SCHEMA = "schema.json", 256 << 20
_NEVER = {("numpy", "void"), ("numpy", "bytes_")}  # a number makes so many bytes of them; no fitted model holds one
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_skops(data: bytes) -> bool:
    """Whether a file may be one that skops wrote."""
    return data.startswith(_MAGIC)


def skops_bytes(model: Any) -> bytes:
    """A fitted scikit-learn model as a skops file.

    Raises
    ------
    ArtifactError
        If skops is not installed, or cannot write it.
    """
    skops = _skops("To write a model into a bundle")
    try:
        return bytes(skops.dumps(model))
    except Exception as error:
        raise ArtifactError(
            f"The model cannot be written as a skops file: {short_error(error)}. Leave --with-model out, and keep the "
            "engineered features with --outputs features, or the pickle."
        ) from error


def untrusted_types(data: bytes, where: str) -> tuple[str, ...]:
    """Names of the types in a skops file that skops does not trust by itself; nothing of the file is run.

    Raises
    ------
    ArtifactError
        If it is damaged, or expands beyond every measure.
    """
    skops = _skops(f"To open {where}")
    try:
        _check_archive(data, len(data))
        _check_schema(data)
        return tuple(skops.get_untrusted_types(data=data))
    except ArtifactError as error:
        raise ArtifactError(f"{where} is refused: {error}.") from None
    except Exception as error:  # a damaged file may raise anything
        raise _damaged(where, error) from error


def open_skops(data: bytes, where: str, trust: Iterable[str] = ()) -> Any:
    """Open a skops file.

    Parameters
    ----------
    data : bytes
    where : str
        Where it came from, for messages.
    trust : iterable of str
        Names of types that it may hold beside those that skops trusts, exactly: ``package.module.Class``.

    Raises
    ------
    ArtifactError
        If it holds other types (they are named, and nothing of it was run), is damaged, or does not open here.
    """
    trust = tuple(trust)
    if others := [name for name in untrusted_types(data, where) if name not in trust]:
        shown = ", ".join(others[:_SHOWN]) + " …" * (len(others) > _SHOWN)
        raise ArtifactError(
            f"{where} holds {shown}, which skops does not trust by itself; nothing of it was run. If you know this "
            f"code and trust whoever made the file, pass {' '.join(f'--trust {name}' for name in others[:_SHOWN])}; "
            "otherwise do not use the file."
        )
    try:
        return _skops(f"To open {where}").loads(data, trusted=list(trust))
    except Exception as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{where} cannot be opened ({short_error(error)}): it is damaged, no skops file, or of versions that do not "
        "fit those here. Copy it again, or export it again from the model."
    )


def _skops(what_for: str) -> ModuleType:
    try:
        import skops.io
    except ImportError:
        raise ArtifactError(
            f"{what_for}, skops is needed, which is not installed here: pip install 'batch-explain[skops]'. It does "
            "not go together with the AutoML stack."
        ) from None
    found: ModuleType = skops.io
    return found


def _check_archive(data: bytes, size: int) -> None:
    """No member may expand beyond measure, and no array claim more than its member holds; nor inside of another."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        most = min(MOST_BYTES, max(ALWAYS_ALLOWED, MOST_EXPANSION * size))
        if sum(member.file_size for member in members) > most:
            raise ArtifactError(f"the file of {size:,} bytes expands to more than {most:,}, as no model does")
        for member in members:
            if member.filename.endswith(".npz"):
                _check_archive(archive.read(member), size)
            elif member.filename.endswith(".npy"):
                with archive.open(member) as stream:
                    _check_array(stream, member)


def _check_array(stream: Any, member: zipfile.ZipInfo) -> None:
    read_header = _HEADERS.get(np.lib.format.read_magic(stream))
    if read_header is None:
        raise ArtifactError(f"the array {member.filename} in it has an unknown format")
    shape, _, dtype = read_header(stream)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ArtifactError(f"the array {member.filename} in it holds objects")
    if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ArtifactError(f"the array {member.filename} in it does not hold what its header says")


def _check_schema(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.getinfo(_SCHEMA).file_size > _MOST_SCHEMA:
            raise ArtifactError(f"its {_SCHEMA} is larger than that of any model")
        found = json.loads(archive.read(_SCHEMA))
    for node in _nodes(found):
        if (node.get("__module__"), node.get("__class__")) in _NEVER:
            raise ArtifactError(f"it holds a {node['__module__']}.{node['__class__']}, as no model does")


def _nodes(found: Any) -> Iterator[dict[str, Any]]:
    waiting = [found]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
