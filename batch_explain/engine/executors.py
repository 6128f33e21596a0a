"""Where tasks run: this thread, threads, local processes, or a Dask cluster. Only here Dask is used."""

import contextlib
import functools
import itertools
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from typing import Any

from threadpoolctl import threadpool_limits

from batch_explain.engine.artifacts import Artifacts, name_outputs
from batch_explain.engine.environment import cores, environment
from batch_explain.engine.explaining import Context
from batch_explain.engine.partitions import Partition
from batch_explain.engine.plan import Plan, artifact_digests, read_plan
from batch_explain.engine.task import run_partition
from batch_explain.errors import (
    ArtifactError,
    BatchExplainError,
    InterruptedRunError,
    OptionError,
    first_line,
    mask_secrets,
)
from batch_explain.options import RunOptions
from batch_explain.storage.attempts import read_attempts
from batch_explain.storage.filesystems import Location
from batch_explain.storage.receipts import Receipt

_WINDOW = 4  # tasks submitted ahead, for each worker
_CONNECT_SECONDS = 20
_POLL_SECONDS, _DESERTED_POLLS = 10, 5

# Our own workers are ended beyond --memory-limit, and that is all. Dask would pause those that hold four fifths of it,
# for ever: what an idle worker holds, it keeps for its next batch.
_WORKER_MEMORY = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
}
_NAMED = 4  # partitions or workers in a message
# Deaths after which the scheduler of our own processes still tries a task again; a cluster has its own setting (Dask's
# allowed-failures). A task that it gives up is tried once more alone.
_ALLOWED_DEATHS = 1
_SILENT = logging.CRITICAL + 1  # distributed logs a connection that is lost on the way out as critical
_LOGGERS = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")


class KilledWorkerError(Exception):
    """The scheduler gave up a task, because several workers died while they had it."""


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


def executor_for(context: Context) -> Executor:
    """The executor that the options ask for."""
    plan = context.plan
    options = plan.options
    wanted = min(options.workers or cores(), len(plan.partitions))
    if options.scheduler == "sync" or (options.scheduler == "processes" and wanted == 1):
        return SyncExecutor(context)
    if options.scheduler == "threads":
        return ThreadExecutor(context, wanted)
    return ClusterExecutor(plan, wanted)


class SyncExecutor(Executor):
    """One task after the other, in this thread, with the artifacts that are loaded already."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def load(self) -> None:
        """See :class:`Executor`."""
        self._context.artifacts.explainer.prepare()

    def run(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        """See :class:`Executor`."""
        for partition in partitions:
            yield run_partition(self._context, partition)


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

    def load(self) -> None:
        """See :class:`Executor`."""
        self._context.artifacts.explainer.prepare()

    def run(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        """See :class:`Executor`."""
        waiting = iter(partitions)
        running = {self._submit(p) for p in itertools.islice(waiting, self.workers * _WINDOW)}
        while running:
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running.update(self._submit(p) for p in itertools.islice(waiting, 1))

    def _submit(self, partition: Partition) -> "futures.Future[Receipt]":
        return self._pool.submit(run_partition, self._context, partition)


class ClusterExecutor(Executor):
    """A Dask cluster: local processes of our own, or a running scheduler's workers.

    Tasks are small (options, the plan's digest, a number): each worker process reads the plan from the run's folder and
    loads the artifacts once.
    """

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan = plan
        self._address = None if plan.options.scheduler == "processes" else plan.options.scheduler
        self.workers = workers

    def __enter__(self) -> Executor:
        import dask
        from distributed import Client, LocalCluster

        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet_distributed())
            if self._address is None:
                stack.enter_context(environment(_worker_environment()))  # to the end: dead workers are replaced
                stack.enter_context(dask.config.set(_WORKER_MEMORY))
                with _deaf_to_interrupts(), _starting():
                    cluster = LocalCluster(
                        n_workers=self.workers,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=self._plan.options.memory_limit or 0,  # beyond it, Dask ends the worker
                        dashboard_address="127.0.0.1:0",  # any free port: 8787 may be taken
                        silence_logs=_SILENT,
                        scheduler_kwargs={"allowed_failures": _ALLOWED_DEATHS},
                        preload=[__name__],
                    )
                stack.enter_context(cluster)
                self._client = stack.enter_context(Client(cluster))
            else:
                try:
                    self._client = stack.enter_context(Client(self._address, timeout=_CONNECT_SECONDS))
                # TypeError: tls:// without certificates
                except (OSError, TimeoutError, ValueError, TypeError) as error:
                    raise _unreachable(self._address, error) from error
                self.workers = sum(self._client.nthreads().values())
                if not self.workers:
                    raise OptionError(
                        f"The Dask scheduler at {mask_secrets(self._address)} has no workers. Start some with 'dask "
                        f"worker {mask_secrets(self._address)}'."
                    )
            if _has_dashboard():
                self.dashboard = self._client.dashboard_link
            self._stack = stack.pop_all()
        return self

    def load(self) -> None:
        """See :class:`Executor`: what is missing on a worker is known before anything is written."""
        self._guard(
            lambda: self._client.run(load_on_worker, self._plan.options, self._artifact_key, self._plan.learned)
        )

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def _artifact_key(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(self._plan.artifacts.items()))

    @functools.cached_property
    def _digest(self) -> str:
        return self._plan.digest

    def run(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        """See :class:`Executor`; a task whose worker dies is tried again, but not for ever.

        When workers die, their tasks are suspects: those that ran, and those that waited for their turn. Each of them
        is tried alone then, and if workers still die, it is the cause.
        """
        waiting = iter(partitions)
        while suspects := (yield from self._run_together(waiting)):
            for partition in suspects:
                yield self._run_alone(partition)

    def _run_together(self, waiting: Iterator[Partition]) -> Generator[Receipt, None, list[Partition]]:
        """Run partitions in a sliding window; after deaths no more are submitted, and the suspects are returned."""
        suspects = []
        running = {
            self._submit(partition): partition for partition in itertools.islice(waiting, self.workers * _WINDOW)
        }
        while running:
            for future in self._guard(functools.partial(self._finished, set(running))):
                partition = running.pop(future)
                try:
                    receipt = self._guard(future.result)
                except KilledWorkerError:
                    suspects.append(partition)
                    continue
                yield receipt
                if not suspects:
                    running |= {self._submit(partition): partition for partition in itertools.islice(waiting, 1)}
        return sorted(suspects, key=lambda partition: partition.index)

    def _run_alone(self, partition: Partition) -> Receipt:
        """Run one partition while nothing else runs that could kill its workers."""
        future = self._submit(partition, "-alone")
        self._guard(functools.partial(self._finished, {future}))
        try:
            receipt: Receipt = self._guard(future.result)
        except KilledWorkerError as error:
            raise _poisonous(partition) from error
        return receipt

    def _finished(self, running: set[Any]) -> set[Any]:
        """Wait for any task; give up when the cluster has had no workers, or paused ones alone, for a while."""
        import distributed

        deserted = paused = 0
        while True:
            with contextlib.suppress(TimeoutError, distributed.TimeoutError):
                found: set[Any] = distributed.wait(running, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
                return found
            deserted = 0 if self._client.nthreads() else deserted + 1
            if deserted > _DESERTED_POLLS:
                raise InterruptedRunError(
                    f"The Dask cluster has no workers left. {self._last_worked_on()}Look in their logs whether they "
                    "died for want of memory, start some (nannies replace the dead), and go on with --resume."
                )
            names = self._paused()
            paused = paused + 1 if names else 0
            if paused > _DESERTED_POLLS:
                raise InterruptedRunError(
                    f"Nothing is worked on, because Dask has paused {', '.join(names[:_NAMED])}: what is held there is "
                    "near the worker's limit, and it gets no tasks until there is less. Give the workers more memory, "
                    "or set Dask's distributed.worker.memory.pause to false, and go on with --resume."
                )

    def _paused(self) -> list[str]:
        """Workers that Dask has paused, where nothing is worked on."""
        if any(attempt.failed is None for attempt in read_attempts(Location(self._plan.options.output))):
            return []
        try:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except TypeError:  # Dask of the AutoML stack, which tells of all workers
            workers = self._client.scheduler_info()["workers"]
        return sorted(mask_secrets(name) for name, worker in workers.items() if worker["status"] == "paused")

    def _last_worked_on(self) -> str:
        """The partitions that were being worked on when the workers went: one of them may have killed them."""
        attempts = read_attempts(Location(self._plan.options.output))
        partitions = [self._plan.partition(attempt.index) for attempt in attempts if attempt.failed is None]
        if not partitions:
            return ""
        named = [partition.name[0].lower() + partition.name[1:] for partition in partitions[:_NAMED]]
        more = f" and {len(partitions) - _NAMED} more" if len(partitions) > _NAMED else ""
        return f"When they went, they worked on {', '.join(named)}{more}. "

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Call, and say what to do where the cluster itself fails."""
        try:
            return call()
        except BatchExplainError:
            raise
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise KilledWorkerError from error
            if not _is_cluster_error(error):
                raise
            raise InterruptedRunError(
                f"The Dask cluster lost a task: {type(error).__name__}: {first_line(error)}. A worker lacks this "
                "package or its version, or the scheduler is gone: look after the cluster, and go on with --resume."
            ) from error

    def _submit(self, partition: Partition, suffix: str = "") -> Any:
        return self._client.submit(
            run_on_worker,
            self._plan.options,
            self._digest,
            partition.index,
            key=f"explain-{self._digest[:16]}-{partition.index}{suffix}",
            pure=False,
        )


def dask_setup(_worker: Any) -> None:
    """Have a worker process of our own ignore SIGINT and be quiet; Dask calls it in each, whenever it is started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (*_LOGGERS, "batch_explain"):  # a storage that does not answer, the run's own process tells
        logging.getLogger(name).setLevel(_SILENT)


def run_on_worker(options: RunOptions, digest: str, index: int) -> Receipt:
    """Run one task in a worker process, which loads plan and artifacts at its first task."""
    context = worker_context(options, digest)
    return run_partition(context, context.plan.partition(index))


def load_on_worker(options: RunOptions, artifact_key: tuple[tuple[str, str], ...], learned: dict[str, Any]) -> None:
    """Load the artifacts in a worker process, and see whether it can compute as the planning one does."""
    with _LOADING:
        explainer = _load_artifacts(options, artifact_key)[0].explainer
        explainer.take_learned(learned)
        explainer.prepare()


_LOADING = threading.Lock()


def worker_context(options: RunOptions, digest: str) -> Context:
    """The plan of that digest in the run's folder and its artifacts, loaded once a process."""
    with _LOADING:
        return _load_context(options, digest)


@functools.lru_cache(maxsize=1)
def _load_artifacts(options: RunOptions, artifact_key: tuple[tuple[str, str], ...]) -> tuple[Artifacts, float]:
    """Artifacts, once a process, and when; they must be the very files that were planned with."""
    found = artifact_digests(options)
    if changed := [name for name, digest in artifact_key if found.get(name) != digest]:
        raise ArtifactError(
            f"The {' and the '.join(changed)} that a worker finds is not the one that the run was planned with: it was "
            "replaced, or the worker has another copy. Start the run again with the same files everywhere."
        )
    threadpool_limits(1, user_api="blas")  # for the life of the worker: tasks run one after the other in it
    return Artifacts.load(options), time.time()


def loaded_artifacts(options: RunOptions) -> Artifacts:
    """The artifacts as they are now, loaded once a process."""
    with _LOADING:
        return _load_artifacts(options, tuple(sorted(artifact_digests(options).items())))[0]


@functools.lru_cache(maxsize=1)
def _load_context(options: RunOptions, digest: str) -> Context:
    try:
        plan = read_plan(options)
    except FileNotFoundError:
        plan = None
    except OSError as error:
        raise InterruptedRunError(
            f"The plan in {options.output} cannot be read: {error}. Look after that storage, and go on with --resume."
        ) from error
    if plan is None or plan.digest != digest:
        raise InterruptedRunError(
            f"The plan in {options.output} is not the one of this run: two runs write to the same place, or the "
            "workers do not share its filesystem. Give each run its own output on storage that all workers reach."
        )
    artifacts, loaded_at = _load_artifacts(options, tuple(sorted(plan.artifacts.items())))
    artifacts.explainer.take_learned(plan.learned)
    return Context(plan, name_outputs(artifacts), loaded_at)


def _has_dashboard() -> bool:
    import importlib.util

    return importlib.util.find_spec("bokeh") is not None


def _worker_environment() -> dict[str, str]:
    """Environment of our own worker processes: native libraries on one thread, and none of Dask's log lines."""
    import dask

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    own_logging = dask.config.get("logging-file-config", None)  # the user's; Dask refuses to have both
    return {**dict.fromkeys(names, "1"), **({} if own_logging else {"DASK_LOGGING__DISTRIBUTED": str(_SILENT)})}


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Child processes ignore SIGINT: a terminal's Ctrl-C goes to all of them, and it is for this one to stop them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, TimeoutError) as error:
        raise InterruptedRunError(
            f"Worker processes could not be started: {first_line(error)}. In a script, call explain_dataset below "
            "'if __name__ == \"__main__\":', or pass scheduler='threads'."
        ) from error


@contextlib.contextmanager
def _quiet_distributed() -> Iterator[None]:
    """Log lines of Dask and what it stands on are for their developers; ours say what a user needs."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _LOGGERS}
    for logger in levels:
        logger.setLevel(_SILENT)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _poisonous(partition: Partition) -> InterruptedRunError:
    return InterruptedRunError(
        f"{partition.name} kill every worker that takes them, for want of memory or by a "
        "crash of the model's libraries. Give workers more memory, "
        "use smaller --batch-rows with --overwrite, or explain these rows alone with --scheduler sync to see it. "
        "What is done is kept for --resume."
    )


def _unreachable(address: str, error: BaseException) -> OptionError:
    return OptionError(
        f"The Dask scheduler at {mask_secrets(address)} cannot be reached: {first_line(error)}. Check the address, "
        "and that the scheduler runs with the same version of dask and distributed."
    )


def _is_cluster_error(error: BaseException) -> bool:
    """Whether Dask raised it about a worker or a connection, not our code on the worker."""
    module = type(error).__module__.split(".")[0]
    return module in ("distributed", "dask", "asyncio", "concurrent", "tornado", "pickle") or isinstance(
        error, OSError | ImportError | TimeoutError
    )
