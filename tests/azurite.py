"""A real object store on this machine: Microsoft's Azurite, and what tests do with it."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

ACCOUNT = "devstoreaccount1"
# Azurite's published one: it opens nothing but an emulator
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
PROGRAM = "azurite-blob"

# The client waits 80 s for a dead server. Its number of tries stays, the pauses between them do not.
IMPATIENT = """
from azure.storage.blob._shared import policies_async
policies_async.ExponentialRetry.get_backoff_time = lambda self, settings: 0.2
"""


@dataclass
class Azurite:
    """A server with its blobs in a folder; it can be stopped and started again.

    Parameters
    ----------
    folder : Path
    """

    folder: Path
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> "Azurite":
        """Start it, on a free port the first time, and wait until it listens."""
        program = shutil.which(PROGRAM)
        assert program is not None
        log = self.folder / "log.txt"
        arguments = ["--location", str(self.folder), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                # the last: today's client asks for newer versions of the service than it knows
                [program, "--silent", "--disableTelemetry", *arguments, "--skipApiVersionCheck"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        deadline = time.monotonic() + 60
        while not (found := re.search(r"successfully listens on http://127.0.0.1:(\d+)", log.read_text())):
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.port = int(found[1])
        return self

    def stop(self) -> None:
        """Stop it; by a signal that lets it write down which blobs it has, or they are gone with it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def connection(self, key: str = KEY) -> str:
        """The connection string of its account."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
            f"BlobEndpoint=http://127.0.0.1:{self.port}/{ACCOUNT};"
        )

    def with_sas(self, container: str) -> tuple[str, str]:
        """A connection string without the key but with a signed token for one container, and the token's signature."""
        from datetime import datetime, timedelta, timezone
        from urllib.parse import parse_qs

        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        token = generate_container_sas(
            ACCOUNT,
            container,
            account_key=KEY,
            permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True, add=True),
            expiry=datetime.now(timezone.utc) + timedelta(hours=1),
        )
        endpoint = f"BlobEndpoint=http://127.0.0.1:{self.port}/{ACCOUNT}"
        return f"{endpoint};SharedAccessSignature={token}", parse_qs(token)["sig"][0]

    @cached_property
    def filesystem(self) -> Any:
        """Adlfs itself, without what the engine puts around it."""
        import adlfs

        return adlfs.AzureBlobFileSystem(
            connection_string=self.connection(), use_listings_cache=False, skip_instance_cache=True
        )


@dataclass(frozen=True)
class Container:
    """An empty container of a server.

    Parameters
    ----------
    server : Azurite
    name : str
    """

    server: Azurite
    name: str

    def url(self, path: str) -> str:
        """Where the engine finds a path."""
        return f"abfs://{self.name}/{path}"

    @property
    def fs(self) -> Any:
        """See :attr:`Azurite.filesystem`."""
        return self.server.filesystem

    def names(self, folder: str) -> list[str]:
        """All blobs below a folder."""
        prefix = f"{self.name}/{folder}/"
        return [str(name).removeprefix(prefix) for name in self.fs.find(prefix.rstrip("/"))]

    def fetch(self, folder: str, target: Path) -> Path:
        """A copy of a folder."""
        fs = self.fs
        for name in self.names(folder):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fs.cat_file(f"{self.name}/{folder}/{name}"))
        return target

    def environment(self, **variables: str) -> dict[str, str]:
        """Of a process that uses the account's key."""
        return {**os.environ, CONNECTION: self.server.connection(), "PYTHONPATH": str(ROOT), **variables}
