"""The real azureml-inference-server-http on loopback, serving a scoring script."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.mlflow_server import free_port

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "jobs" / "online_endpoint" / "score.py"
APP = "azureml_inference_server_http.server.entry:app"


class Server:
    """Gunicorn with the server's application, started as ``azmlinfsrv`` starts it, which would listen to the world.

    Parameters
    ----------
    folder : Path
        For its log.
    models : Path
        ``AZUREML_MODEL_DIR``.
    script : Path
        The scoring script.
    workers : int
        Processes.
    threads : int
        Of each; as many requests it answers at a time.
    """

    def __init__(
        self, folder: Path, models: Path, *, script: Path = SCRIPT, workers: int = 1, threads: int = 1
    ) -> None:
        self.port = free_port()
        self.log = folder / f"server-{self.port}.txt"
        gunicorn = ("-m", "gunicorn", "-b", f"127.0.0.1:{self.port}", "-w", str(workers), "--threads", str(threads))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AML_APP_ROOT": str(script.parent),
            "AZUREML_ENTRY_SCRIPT": script.name,
            "AZUREML_MODEL_DIR": str(models),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *gunicorn, "--timeout", "300", APP],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment,
                start_new_session=True,  # a group with its workers
            )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> "Server":
        """Until it answers."""
        deadline = time.monotonic() + 180
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start:\n{self.log.read_text()[-4_000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/", timeout=120) as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                time.sleep(0.1)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
