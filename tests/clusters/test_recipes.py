"""The recipes in jobs/clusters, run to the end on this machine; only the queue and the platform are stand-ins."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.clusters.conftest import RECIPES, Task
from tests.conftest import ROOT

pytest.importorskip("dask_jobqueue", reason="run by tox -e clusters")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | variables


def run(*command: str | Path, timeout: int = 120, **options: object) -> tuple[int, str]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout, **options
    )  # type: ignore[call-overload]
    return done.returncode, done.stdout


def test_azure_nodes(task: Task) -> None:
    """Two nodes of one core, with the variables that the platform sets."""
    cores = sorted(os.sched_getaffinity(0))
    variables = environment(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="6105", DASK_PORT=free_port())
    nodes = []
    for rank in range(2):
        on_a_core = ["taskset", "--cpu-list", str(cores[rank % len(cores)])]
        nodes.append(
            subprocess.Popen(
                [*on_a_core, sys.executable, RECIPES / "azure_dask.py", *task.arguments],
                env=variables | {"RANK": str(rank), "NODE_RANK": str(rank), "LOCAL_RANK": "0"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert "2 workers" in said[0]
    task.assert_done()


@pytest.mark.soak
def test_azure_nodes_end_with_the_run(task: Task) -> None:
    """What is wrong with the run is what the job fails with, and no node waits for ever."""
    variables = environment(WORLD_SIZE="1", RANK="0", MASTER_ADDR="127.0.0.1", DASK_PORT=free_port())
    command = ["taskset", "--cpu-list", "0", sys.executable, RECIPES / "azure_dask.py", *task.arguments]
    code, said = run(*command, "--id-columns=nobody", env=variables)
    assert code == 2 and "nobody" in said, said


SRUN = r"""
tasks=$(sed -E 's/.*--ntasks=([0-9]+).*/\1/' <<<"$*")
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < tasks; i++)); do "$@" & done
trap 'kill $(jobs -p)' TERM
wait
"""


def test_a_slurm_job(task: Task, commands: Callable[..., Path]) -> None:
    stand_ins = commands(srun=SRUN, hostname="echo 127.0.0.1")
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1", "SLURM_SUBMIT_DIR": str(RECIPES)}
    variables = environment(PATH=f"{stand_ins}:{os.environ['PATH']}", PORT=free_port(), **slurm)
    code, said = run(RECIPES / "slurm.sh", *task.arguments, env=variables)
    assert code == 0 and "2 workers" in said, said
    task.assert_done()


SBATCH = r"""
cp "$1" "$COPY" # as Slurm does: the file is removed when this has returned
setsid bash "$COPY" >"$COPY.log" 2>&1 &
echo "Submitted batch job $!"
"""
OWN_VALUES = """
import json, runpy, sys
recipe = runpy.run_path(sys.argv[1])
recipe["RUN"].clear()
recipe["RUN"].update(json.loads(sys.argv[2]), report=False)
recipe["CLUSTER"].update(cores=1, processes=1, memory="2GB", interface="lo")
recipe["main"].__globals__["JOBS"] = 1
recipe["main"]()
"""


def test_workers_as_slurm_jobs(task: Task, commands: Callable[..., Path], tmp_path: Path) -> None:
    stand_ins = commands(sbatch=SBATCH, scancel='kill -- "-$1"')
    variables = environment(PATH=f"{stand_ins}:{os.environ['PATH']}", COPY=str(tmp_path / "job.sh"))
    recipe = [str(RECIPES / "slurm_jobqueue.py"), json.dumps(task.options)]
    code, said = run(sys.executable, "-c", OWN_VALUES, *recipe, env=variables, cwd=tmp_path)
    assert code == 0 and "1,000 rows explained" in said, said
    assert "MEMORY__PAUSE=False" in (tmp_path / "job.sh").read_text()
    task.assert_done()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[str]:
    """Options of ``dask ssh`` for a server on this machine."""
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(server).exists():
        assert not os.environ.get("CI"), "CI needs sshd: apt-get install openssh-server"
        pytest.skip("there is no sshd")
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    port, user = free_port(), os.environ.get("USER") or "root"
    os.makedirs("/run/sshd", exist_ok=True)
    options = {
        "ListenAddress": "127.0.0.1", "Port": port, "HostKey": tmp_path / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": tmp_path / "key.pub", "StrictModes": "no", "PermitRootLogin": "yes",
        "SetEnv": f"PYTHONPATH={ROOT}",
    }  # fmt: skip
    (tmp_path / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    process = subprocess.Popen([server, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    yield f"--ssh-username {user} --ssh-port {port} --ssh-private-key {tmp_path / 'key'}"
    process.terminate()
    process.wait(30)


def test_machines_by_ssh(task: Task, sshd: str) -> None:
    variables = environment(HOSTS="127.0.0.1", WORKERS="1", PORT=free_port(), SSH_OPTIONS=sshd)
    code, said = run(RECIPES / "dask_ssh.sh", *task.arguments, env=variables)
    assert code == 0 and "1 worker" in said, said
    task.assert_done()


def test_the_pods_of_kubernetes(task: Task) -> None:
    """Their commands, on this machine: the ports and the service's name are others here."""
    documents = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())
    pods = {each["kind"]: each["spec"] for each in documents}
    job = pods["Job"]["template"]["spec"]
    here = {
        "8786": free_port(), ":8787": f"127.0.0.1:{free_port()}", "batch-explain-scheduler": "127.0.0.1",
        "/jobs/clusters": str(RECIPES), "$(DASK_WORKER_NAME)": "worker-0",
    }  # fmt: skip
    variables = environment(DASK_SCHEDULER_ADDRESS=f"tcp://127.0.0.1:{here['8786']}")  # as the operator sets it

    def command(container: dict[str, list[str]]) -> list[str]:
        program, *arguments = container["command"]
        for there, instead in here.items():
            arguments = [argument.replace(there, instead) for argument in arguments]
        name = {"python": "", "dask": "-m dask", "batch-explain": "-m batch_explain"}[program]
        return [sys.executable, *name.split(), *arguments]

    cluster = pods["DaskCluster"]
    parts = [subprocess.Popen(command(cluster[part]["spec"]["containers"][0]), env=variables) for part in cluster]
    try:
        assert run(*command(job["initContainers"][0])[:-1], "1", env=variables)[0] == 0
        probe = cluster["scheduler"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
        with urllib.request.urlopen(f"http://{here[':8787']}{probe['path']}") as answer:
            assert answer.status == 200
        code, said = run(*command(job["containers"][0]), *task.arguments, env=variables)
    finally:
        for part in reversed(parts):
            part.terminate()
            part.wait(60)
    assert code == 0 and "1 worker" in said, said
    task.assert_done()
