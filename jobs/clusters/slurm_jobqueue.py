"""Explains a dataset on workers that are Slurm jobs of their own, from a login node or a notebook: dask-jobqueue.

What to change: queue, account, sizes and how the environment is opened in CLUSTER, JOBS, and the paths in RUN. Needs
``pip install dask-jobqueue``; for other queues take its PBSCluster, LSFCluster, SGECluster … with the same arguments.
The scheduler is in this process, which must live until the run is done and which the nodes must reach.
"""

from typing import Any

from dask_jobqueue import SLURMCluster

import batch_explain as bx

CLUSTER: dict[str, Any] = {
    "queue": "compute",
    "account": None,
    "cores": 16,  # of a job
    "processes": 16,  # one worker a core
    "memory": "64GB",  # of a job
    "walltime": "04:00:00",
    "job_script_prologue": [
        # "module load python; source ~/batch-explain/bin/activate",
        # Dask would pause workers for ever that hold much; one that goes beyond its share is ended.
        "export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
    ],
}
JOBS = 4
RUN: dict[str, Any] = {
    "input": "/mnt/data/scoring/today",
    "model": "/mnt/data/models/bank/model.pkl",
    "explainer": "/mnt/data/models/bank/scoring_explainer.pkl",
    "output": "/mnt/data/explained/today",
    "id_columns": "customer_id",
    "memory_limit": "3GB",  # a worker: batches are planned to fit
}


def main() -> None:
    """Start the workers, explain all rows, end the workers."""
    with SLURMCluster(**CLUSTER) as cluster:
        cluster.scale(jobs=JOBS)
        cluster.wait_for_workers(1)  # the others join when the queue lets them
        run = bx.explain_dataset(**RUN, scheduler=cluster.scheduler_address, resume=True)
    print(f"{run.info['rows']['explained']:,} rows explained: {RUN['output']}")


if __name__ == "__main__":
    main()
