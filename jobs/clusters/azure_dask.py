"""One node of azure_command_job.yml: Dask workers, one a core; on the first node also the scheduler and the run.

Azure ML sets RANK, WORLD_SIZE (nodes, as there is one process on each) and MASTER_ADDR, the first node's address. The
arguments are those of ``batch-explain run``. DASK_PORT is the scheduler's port, 8786 where nothing is said.
"""

import contextlib
import os
import subprocess
import sys

from distributed import Client
from wait_for_workers import wait_for_workers  # beside this file

SECONDS = 900  # until all nodes are there


def main(options: list[str]) -> int:
    """Do this node's part; the exit code is that of ``batch-explain run``, or of the node's workers."""
    rank, nodes, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), len(os.sched_getaffinity(0))
    port = os.environ.get("DASK_PORT", "8786")
    scheduler = f"tcp://{os.environ['MASTER_ADDR']}:{port}"
    dask = [sys.executable, "-m", "dask"]
    processes = []
    if rank == 0:
        processes.append(subprocess.Popen([*dask, "scheduler", "--port", port, "--no-dashboard"]))
    # No memory limit of Dask's, which would pause workers for ever: --memory-limit of the run plans batches to fit.
    worker = [*dask, "worker", scheduler, "--nworkers", str(workers), "--nthreads", "1", "--memory-limit", "0"]
    processes.append(subprocess.Popen([*worker, "--no-dashboard", "--death-timeout", str(SECONDS)]))
    if rank > 0:
        return processes[0].wait()  # until the first node ends the cluster
    wait_for_workers(scheduler, nodes * workers, SECONDS)
    run = [sys.executable, "-m", "batch_explain", "run", *options, "--scheduler", scheduler, "--resume"]
    code = subprocess.run(run, check=False).returncode
    # ends the workers of all nodes; those of a scheduler that died have ended
    with contextlib.suppress(OSError, TimeoutError), Client(scheduler, timeout=10) as client:
        client.shutdown()
    for process in processes:
        process.wait()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
