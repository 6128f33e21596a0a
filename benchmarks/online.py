"""An online endpoint under load: requests a second, and how long one waits.

`python benchmarks/online.py --json benchmarks/results/online.json`, in the core environment (a bundle, engineered rows)
and, with `--automl`, in the AutoML one (a genuine AutoML model, against the SDK's own scoring script in the same run).
The real server (gunicorn with azureml-inference-server-http) runs on loopback with `--workers` processes; requests of
one row come over `--connections` connections from this process, on the same cores. `--quick`: a second each.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import common

sys.path.insert(0, str(common.ROOT))
TREES, LEAVES, FEATURES, RAW_FEATURES = 100, 31, 50, 20
MANY_ROWS = 10_000


class Connection:
    """One client. Workers that close a connection after an answer get another one, as behind a load balancer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, body: bytes) -> bytes:
        """The body of the answer to POST /score; RuntimeError where it is no 200."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=300)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)
        got = b""
        while (end := got.find(b"\r\n\r\n")) < 0:
            if not (more := self._socket.recv(1 << 16)):
                raise RuntimeError("the server closed the connection without an answer")
            got += more
        lines, parts = got[:end].lower(), [got[end + 4 :]]
        length, have = int(lines.split(b"content-length:")[1].split(b"\r\n")[0]), len(parts[0])
        while have < length:
            parts.append(self._socket.recv(1 << 20))
            have += len(parts[-1])
        if b"connection: close" in lines:
            self._socket.close()
            self._socket = None
        if b" 200 " not in lines[:20]:
            raise RuntimeError(f"the server answered {lines[:20]!r}: {b''.join(parts)[:300]!r}")
        return b"".join(parts)


def load(port: int, bodies: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Ask for some seconds over several connections, each its next request when it has its answer."""
    waits: list[float] = []
    errors: list[BaseException] = []
    started = time.perf_counter()

    def client(number: int) -> None:
        connection = Connection(port)
        try:
            at = number
            while time.perf_counter() - started < seconds:
                began = time.perf_counter()
                connection.ask(bodies[at % len(bodies)])
                waits.append(time.perf_counter() - began)
                at += connections
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    taken = time.perf_counter() - started
    waits.sort()
    return {
        "requests_per_second": len(waits) / taken,
        "p50_ms": 1e3 * waits[len(waits) // 2],
        "p99_ms": 1e3 * waits[int(len(waits) * 0.99)],
    }


def bundle(folder: Path) -> tuple[Path, list[dict[str, float]]]:
    """A bundle of 100 trees with a feature map, and engineered rows for it."""
    import lightgbm
    import numpy as np
    import pandas as pd

    import batch_explain as bx

    rng = np.random.default_rng(0)
    names = [f"f{number}" for number in range(FEATURES)]
    X = pd.DataFrame(rng.normal(size=(20_000, FEATURES)), columns=names)
    signal = 2 * X.f0 + X.f1 * X.f2 + np.sin(X[names[3:20]]).sum(axis=1)
    options = {"objective": "binary", "verbosity": -1, "num_leaves": LEAVES, "seed": 0}
    booster = lightgbm.train(options, lightgbm.Dataset(X, (signal > 0).astype(int)), TREES)
    booster.save_model(folder / "surrogate.txt")
    weights = {"raw_feature": [f"r{number % RAW_FEATURES}" for number in range(FEATURES)], "engineered_feature": names}
    pd.DataFrame({**weights, "weight": 1.0}).to_parquet(folder / "map.parquet")
    (folder / "models").mkdir()
    bx.export_bundle(folder / "surrogate.txt", folder / "models/bundle", feature_map=folder / "map.parquet")
    return folder / "models", X.iloc[:MANY_ROWS].to_dict("records")


def automl(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A genuine AutoML model with its scoring explainer, and raw rows for it."""
    import pandas as pd

    from tests.automl_fixtures import build

    paths = build(["binary"], folder)["binary"]
    rows = json.loads(pd.read_parquet(paths.raw).to_json(orient="records", date_format="iso"))
    return Path(paths.model).parent, rows


def measure(
    name: str,
    models: Path,
    rows: list[dict[str, Any]],
    options: argparse.Namespace,
    script: Path | None,
    threads: int = 1,
) -> dict[str, Any]:
    """Start a server, warm it up, load it in several rounds."""
    from tests.online_server import SCRIPT, Server

    bodies = [json.dumps({"data": [row]}).encode() for row in rows[:500]]
    many = json.dumps({"data": (rows * (MANY_ROWS // len(rows) + 1))[: 100 if options.quick else MANY_ROWS]}).encode()
    with tempfile.TemporaryDirectory() as folder:
        workers = {"workers": options.workers, "threads": threads}
        server = Server(Path(folder), models, script=script or SCRIPT, **workers).wait()
        try:
            load(server.port, bodies, options.connections, 0.5 if options.quick else 3)
            seconds = 1 if options.quick else options.seconds
            rounds = [load(server.port, bodies, options.connections, seconds) for _ in range(options.repetitions)]
            result: dict[str, Any] = {
                "name": name,
                **workers,
                "connections": options.connections,
                "features": len(rows[0]),
                **{key: common.spread([each[key] for each in rounds], 1) for key in rounds[0]},
            }
            if script is None:
                began = time.perf_counter()
                answer = Connection(server.port).ask(many)
                result["rows_of_one_request"] = len(
                    json.loads(answer)["predictions"] or json.loads(answer)["margins"][0]
                )
                result["seconds_of_that"] = round(time.perf_counter() - began, 2)
                result["megabytes_of_that"] = round(len(answer) / 1e6, 1)
        finally:
            server.stop()
    return result


def main() -> int:
    """Measure, print, write."""
    parser = common.options(__doc__, repetitions=3, seconds=10)
    parser.add_argument("--automl", action="store_true", help="a genuine AutoML model and the SDK's script as well")
    parser.add_argument("--workers", type=int, default=2, help="processes of the server (default: 2)")
    parser.add_argument("--threads", type=int, default=4, help="of a process that explains rows together (default: 4)")
    parser.add_argument("--connections", type=int, default=4, help="clients at once (default: 4)")
    options = parser.parse_args()
    begun = common.begin()
    options.repetitions = 1 if options.quick else options.repetitions
    results = []
    with tempfile.TemporaryDirectory() as folder:
        models, rows = bundle(Path(folder))
        results.append(measure("bundle, engineered rows", models, rows, options, None))
        if options.automl:
            models, rows = automl(Path(folder))
            os.environ["SDK_TASK"] = "classification"
            results.append(measure("AutoML model", models, rows, options, None))
            results.append(measure("AutoML model, threads", models, rows, options, None, options.threads))
            sdk = Path(__file__).with_name("online_sdk_score.py")
            results.append(measure("AutoML model, the SDK's script", models, rows, options, sdk))
            results.append(measure("the SDK's script, threads", models, rows, options, sdk, options.threads))
    lines = [
        [
            result["name"],
            f"{result['requests_per_second']['median']:,.0f}",
            f"{result['p50_ms']['median']:.1f}",
            f"{result['p99_ms']['median']:.1f}",
            f"{result.get('seconds_of_that', ''):}",
        ]
        for result in results
    ]
    headings = ("", "requests a second", "p50 ms", "p99 ms", f"{MANY_ROWS:,} rows at once s")
    title = f"One row a request, {options.workers} workers, {options.connections} connections"
    common.print_table(title, headings, lines)
    return common.finish("online", begun, options, results=results)


if __name__ == "__main__":
    sys.exit(main())
