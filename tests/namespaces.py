"""Machines of their own, as far as a kernel can play them: network namespaces with addresses, and hidden folders."""

import datetime
import ipaddress
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


class Machines:
    """Network namespaces on one bridge; a context manager. Processes started in them are ended with it.

    Parameters
    ----------
    folder : Path
        For logs.
    count : int
        How many; number 0 has the address ``<net>.10``, and so on, and this process ``<net>.1``.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._name = f"be{os.getpid() % 100_000}"
        self._net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._log = (folder / "machines.txt").open("wb")
        self._count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def address(self, machine: int) -> str:
        """Its IP address."""
        return f"{self._net}.{10 + machine}"

    def __enter__(self) -> "Machines":
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self) -> None:
        _ip("link", "add", self._name, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        for machine in range(self._count):
            space, outer = f"{self._name}n{machine}", f"{self._name}v{machine}"
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outer, "master", self._name, "up")
            _ip("-n", space, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", space, "link", "set", device, "up")

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait(30)
        for machine in range(self._count):
            _ip("link", "del", f"{self._name}v{machine}", check=False)
            _ip("netns", "del", f"{self._name}n{machine}", check=False)
        _ip("link", "del", self._name, check=False)
        self._log.close()

    def start(
        self, machine: int, program: str, *arguments: str, hidden: Path | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Start ``python -m program`` on a machine, which finds a folder empty."""
        command = ["ip", "netns", "exec", f"{self._name}n{machine}"]
        if hidden is not None:
            command += ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
        process = subprocess.Popen(
            [*command, sys.executable, "-m", program, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdout=self._log,
            stderr=self._log,
        )
        self.processes.append(process)
        return process


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check)


def certificates(folder: Path, addresses: list[str]) -> tuple[Path, Path]:
    """A certificate that signs itself, for these addresses, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "cluster")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names: list[Any] = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return folder / "cert.pem", folder / "key.pem"
