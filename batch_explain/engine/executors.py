"""Where tasks run: this thread, threads, or worker processes (:mod:`batch_explain.engine.cluster`)."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING

from batch_explain.engine.environment import cores
from batch_explain.engine.explaining import Context
from batch_explain.engine.partitions import Partition
from batch_explain.engine.task import run_partition
from batch_explain.storage.ranges import let_go
from batch_explain.storage.receipts import Receipt

if TYPE_CHECKING:
    from distributed import Client

WINDOW = 4  # tasks submitted ahead, for each worker


class Executor(ABC):
    """Runs tasks; a context manager.

    Attributes
    ----------
    workers : int
        Tasks at a time.
    dashboard : str or None
        Address of the Dask dashboard.
    """

    workers: int = 1
    dashboard: str | None = None

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *exception: object) -> None:  # noqa: B027 - most have nothing to release
        """Release the workers."""

    @abstractmethod
    def load(self) -> None:
        """Load the artifacts on every worker, where that is not done yet; nothing is written."""

    @abstractmethod
    def run(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        """Receipts in the order in which tasks finish; the first error stops the run."""


def executor_for(context: Context, client: "Client | None" = None) -> Executor:
    """The executor that the options ask for; ``client`` is the caller's own, of a running cluster."""
    plan = context.plan
    options = plan.options
    wanted = min(options.workers or cores(), len(plan.partitions))
    if options.scheduler == "sync" or (options.scheduler == "processes" and wanted == 1):
        return SyncExecutor(context)
    if options.scheduler == "threads":
        return ThreadExecutor(context, wanted)
    from batch_explain.engine.cluster import ClusterExecutor

    return ClusterExecutor(plan, wanted, client)


class SyncExecutor(Executor):
    """One task after the other, in this thread, with the artifacts that are loaded already."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def load(self) -> None:
        """See :class:`Executor`."""
        self._context.artifacts.explainer.prepare()

    def run(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        """See :class:`Executor`."""
        try:
            for partition in partitions:
                yield run_partition(self._context, partition)
        finally:
            let_go()


class ThreadExecutor(Executor):
    """Threads of this process, sharing the loaded artifacts."""

    def __init__(self, context: Context, workers: int) -> None:
        self.workers = workers
        self._context = context

    def __enter__(self) -> Executor:
        self._pool = futures.ThreadPoolExecutor(self.workers, thread_name_prefix="batch-explain")
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.stopping.set()  # running tasks end at their next batch
        self._pool.shutdown(wait=True, cancel_futures=True)
        let_go()

    def load(self) -> None:
        """See :class:`Executor`."""
        self._context.artifacts.explainer.prepare()

    def run(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        """See :class:`Executor`."""
        waiting = iter(partitions)
        running = {self._submit(p) for p in itertools.islice(waiting, self.workers * WINDOW)}
        while running:
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running.update(self._submit(p) for p in itertools.islice(waiting, 1))

    def _submit(self, partition: Partition) -> "futures.Future[Receipt]":
        return self._pool.submit(run_partition, self._context, partition)
