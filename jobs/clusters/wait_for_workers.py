"""Waits until a Dask cluster has its workers: wait_for_workers.py tcp://host:8786 16 [SECONDS]."""

import sys

from distributed import Client


def wait_for_workers(address: str, workers: int, seconds: float = 600) -> None:
    """Return when so many worker processes have joined; TimeoutError after so long."""
    with Client(address, timeout=seconds) as client:
        client.wait_for_workers(workers, timeout=seconds)


if __name__ == "__main__":
    wait_for_workers(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:]))
