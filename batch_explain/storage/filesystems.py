"""Places on any fsspec filesystem, local ones included."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from batch_explain.errors import InputError, mask_secrets
from batch_explain.storage.addresses import canonical
from batch_explain.storage.registered import fetched, is_registered
from batch_explain.storage.remote import RemoteFilesystem


@dataclass(frozen=True)
class Location:
    """A file or a folder: a local path or a URL such as ``abfs://container/folder``.

    Parameters
    ----------
    url : str
        As the user wrote it, or the same place as fsspec spells it: :mod:`batch_explain.storage.addresses`. Pickles as
        this text alone.

    Raises
    ------
    InputError
        If the address holds a token, or cannot be understood by itself.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", canonical(self.url))

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        if is_registered(self.url):
            return LocalFileSystem(), fetched(self.url)
        try:
            fs, path = fsspec.core.url_to_fs(self.url)
        except Exception as error:
            # a protocol that is not there, or one that connects at once and raises what it likes
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"The place {mask_secrets(self.url)} cannot be reached: {reason}. Check the address, and that the "
                "package for its protocol is installed."
            ) from error
        if hasattr(fs, "dircache"):
            fs.dircache.use_listings_cache = False  # other processes write into folders that this one has listed
            fs.dircache.clear()
        return fs, path.rstrip("/") or path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Location, (self.url,))

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem; a remote one raises nothing but OSErrors (see :mod:`batch_explain.storage.remote`)."""
        fs = self._resolved[0]
        return fs if self.is_local else RemoteFilesystem(fs)

    @property
    def path(self) -> str:
        """The path inside the filesystem, without protocol."""
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        """Whether the place is on this machine's own filesystem."""
        return isinstance(self._resolved[0], LocalFileSystem)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The folder that holds this place."""
        return self.at(self.path.rsplit("/", 1)[0] or "/")

    def at(self, path: str) -> "Location":
        """Another path on the same filesystem; a URL keeps its host and account."""
        if self.is_local:
            return self._local(path)
        below, above = path.removeprefix(self.path + "/"), self.path.removeprefix(path.rstrip("/") + "/")
        url = self.url.rstrip("/")
        if below != path:
            return Location(f"{url}/{below}")
        if above != self.path and url.endswith(above):
            return Location(url.removesuffix(above).rstrip("/"))
        return Location(self.fs.unstrip_protocol(path))

    def _local(self, path: str) -> "Location":
        """A path on this machine, without asking again what kind of address it is: a task names some 50 files."""
        place = object.__new__(Location)
        object.__setattr__(place, "url", path)
        place.__dict__["_resolved"] = self._resolved[0], path.rstrip("/") or path
        return place

    def join(self, *parts: str) -> "Location":
        """A place below this one."""
        return self.at("/".join([self.path.rstrip("/"), *parts]))

    def exists(self) -> bool:
        """Whether anything is there."""
        return bool(self.fs.exists(self.path))

    def open(self) -> BinaryIO:
        """Open for reading, in binary."""
        return cast(BinaryIO, open(self.path, "rb") if self.is_local else self.fs.open(self.path, "rb"))

    def open_arrow(self) -> Any:
        """Open for reading by pyarrow: without Python in between where the file is local."""
        if not self.is_local:
            return self.open()
        import pyarrow as pa

        return pa.OSFile(self.path, "rb")

    def read_bytes(self) -> bytes:
        """The whole content."""
        if not self.is_local:
            return bytes(self.fs.cat_file(self.path))  # one request
        with self.open() as stream:
            return stream.read()

    def real_path(self) -> str:
        """The path with links and ``..`` resolved, for comparing two local places."""
        return os.path.realpath(self.path) if self.is_local else self.path

    def contains(self, other: "Location") -> bool:
        """Whether ``other`` is this place or lies below it."""
        if type(self._resolved[0]) is not type(other._resolved[0]):
            return False
        here, there = self.real_path().rstrip("/"), other.real_path().rstrip("/")
        return there == here or there.startswith(here + "/")

    def __str__(self) -> str:
        local = not is_registered(self.url) and self.is_local
        return mask_secrets(self.path if local else self.url)
