"""Tasks on a Dask cluster: local processes of our own, or a running scheduler's workers. Only here Dask is used."""

import contextlib
import functools
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import dask
import distributed
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.deploy.cluster import Cluster

from batch_explain.engine.carried import Carried, lacks
from batch_explain.engine.chunks import Waiting
from batch_explain.engine.environment import environment
from batch_explain.engine.executors import WINDOW, Executor
from batch_explain.engine.partitions import Partition
from batch_explain.engine.plan import Plan
from batch_explain.engine.same_versions import needed, refuse_unlike_workers
from batch_explain.engine.workers import load_on_worker, run_on_worker
from batch_explain.errors import (
    ArtifactError,
    BatchExplainError,
    InterruptedRunError,
    OptionError,
    first_line,
    mask_secrets,
)
from batch_explain.storage.attempts import read_attempts
from batch_explain.storage.filesystems import Location
from batch_explain.storage.ranges import let_go
from batch_explain.storage.receipts import Receipt

_CONNECT_SECONDS = 20
_WORKERS_SECONDS = 120  # until a cluster that has none has its first worker: a node must come up
_LOOK_SECONDS = 0.2
_COUNT_SECONDS = 2.0  # between looks at how many workers there are
_POLL_SECONDS, _DESERTED_POLLS = 10, 5

# Our own workers are ended beyond --memory-limit, and that is all. Dask would pause those that hold four fifths of it,
# for ever: what an idle worker holds, it keeps for its next batch. Nor need they be asked a hundred times a second what
# they are at (its profile), which takes a twentieth of their time.
_OWN_WORKERS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    "distributed.worker.profile.enabled": False,
}
_NAMED = 4  # partitions or workers in a message
# Deaths after which the scheduler of our own processes still tries a task again; a cluster has its own setting (Dask's
# allowed-failures). A task that it gives up is tried once more alone.
_ALLOWED_DEATHS = 1
_SILENT = logging.CRITICAL + 1  # distributed logs a connection that is lost on the way out as critical
_LOGGERS = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")

_LOG = logging.getLogger(__name__)


class KilledWorkerError(Exception):
    """The scheduler gave up a task, because several workers died while they had it."""


class CarriedArtifacts(WorkerPlugin):
    """Has the scheduler give the artifacts of one run to all workers, those that come later as well."""

    def __init__(self, carried: Carried, name: str) -> None:
        self._carried = carried
        self.name = name

    def setup(self, worker: Any) -> None:
        """Before a worker's first task."""
        self._carried.unpack(worker.local_directory)

    def teardown(self, worker: Any) -> None:
        """When it goes, or the run is over."""
        self._carried.remove()


class ClusterExecutor(Executor):
    """A Dask cluster: local processes of our own, or a running scheduler's workers.

    Tasks are small (options, the plan's digest, some numbers): each worker process reads the plan from the run's folder
    and loads the artifacts once. Workers may come and go.

    Parameters
    ----------
    plan : Plan
    workers : int
        Processes of our own, where there is no scheduler.
    client : distributed.Client, optional
        Of a running cluster; it is left open.
    """

    def __init__(self, plan: Plan, workers: int, client: Client | None = None) -> None:
        self._plan = plan
        self._given = client
        self._address = None if plan.options.scheduler == "processes" else plan.options.scheduler
        self._counted_at = 0.0
        self._begun: distributed.Event | None = None
        self._needed = needed()
        # of this run alone: the cluster may have others, and remember older ones
        self._name = f"batch-explain-{uuid.uuid4().hex}"
        self.workers = workers

    def __enter__(self) -> Executor:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet_distributed())
            if self._address is None:
                stack.enter_context(environment(_worker_environment()))  # to the end: dead workers are replaced
                stack.enter_context(dask.config.set(_OWN_WORKERS))
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
                self._client = self._given or stack.enter_context(_connected(self._address))
                self._wait_for_workers(stack)
            if _has_dashboard():
                self.dashboard = self._client.dashboard_link
            self._stack = stack.pop_all()
        return self

    def load(self) -> None:
        """See :class:`Executor`: what is missing on a worker is known before anything is written."""
        options, key = self._plan.options, self._artifact_key
        if self._address is not None:
            self._guard(lambda: refuse_unlike_workers(self._client, self._needed))
            if any(answer is True for answer in self._ask(lacks, options, key).values()):
                self._carry(CarriedArtifacts(Carried.of(options, key), self._name))
        answers = self._ask(load_on_worker, options, key, self._plan.learned)
        failed = {worker: answer for worker, answer in answers.items() if isinstance(answer, Exception)}
        for worker, error in failed.items():
            if self._address is not None and isinstance(error, ArtifactError | ImportError):
                others = f" and on {len(failed) - 1} more" if len(failed) > 1 else ""
                raise ArtifactError(
                    f"The artifacts, which this process could load, cannot be loaded on the worker "
                    f"{mask_secrets(str(worker))}{others}; install there what is installed here. {first_line(error)}"
                ) from error
            self._guard(functools.partial(_raise, error))

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """What a call gives, or raises, on each worker; not of workers that went meanwhile."""
        answers = self._guard(lambda: self._client.run(call, *arguments, on_error="return"))
        there = self._guard(self._client.nthreads)
        return {worker: answer for worker, answer in answers.items() if worker in there}

    def _carry(self, plugin: CarriedArtifacts) -> None:
        """Give the artifacts to the workers, until the run is over."""
        old = not hasattr(self._client, "register_plugin")  # Dask of the AutoML stack
        register = self._client.register_worker_plugin if old else self._client.register_plugin
        self._stack.callback(_quietly, lambda: self._client.unregister_worker_plugin(plugin.name))
        self._guard(lambda: register(plugin, name=plugin.name))

    def __exit__(self, *exception: object) -> None:
        if self._address is not None:
            _quietly(lambda: self._client.run(_let_go, wait=False))
        self._stack.close()

    def _wait_for_workers(self, stack: contextlib.ExitStack) -> None:
        """Wait for the first worker: clusters that adapt have none before there is a task."""
        if not self._count_workers():
            where = mask_secrets(str(self._address))
            _LOG.warning("the Dask scheduler at %s has no workers; waiting %d s for one", where, _WORKERS_SECONDS)
            self._ask_for_workers(stack)
            deadline = time.monotonic() + _WORKERS_SECONDS
            while not self._count_workers():
                if time.monotonic() > deadline:
                    raise OptionError(
                        f"The Dask scheduler at {where} has no workers, and none came in {_WORKERS_SECONDS:g} s. "
                        f"Start some with 'dask worker {where}'."
                    )
                time.sleep(_LOOK_SECONDS)

    def _ask_for_workers(self, stack: contextlib.ExitStack) -> None:
        """Submit a task that waits for the run's own: a cluster that adapts starts a worker for it, and keeps it."""
        begun = distributed.Event(client=self._client)
        waiting = self._client.submit(begun.wait, _WORKERS_SECONDS + _CONNECT_SECONDS, pure=False)
        stack.callback(_quietly, waiting.cancel)
        stack.callback(_quietly, begun.set)
        self._begun = begun

    def _count_workers(self) -> int:
        self._counted_at = time.monotonic()
        self.workers = sum(self._guard(self._client.nthreads).values())
        return self.workers

    def _workers_now(self) -> int:
        """Tasks at a time; a cluster's workers are counted again from time to time."""
        if self._address is not None and time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._count_workers()
        return max(1, self.workers)

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
        waiting = Waiting(partitions)
        while suspects := (yield from self._run_together(waiting)):
            for partition in suspects:
                yield self._run_alone(partition)

    def _run_together(self, waiting: Waiting) -> Generator[Receipt, None, list[Partition]]:
        """Run partitions in a sliding window; after deaths no more are submitted, and the suspects are returned."""
        suspects: list[Partition] = []
        running: dict[Any, list[Partition]] = {}
        while True:
            while not suspects and waiting and len(running) < WINDOW * self._workers_now():
                chunk = waiting.take(self._workers_now())
                running[self._submit(chunk)] = chunk
            if self._begun is not None:
                self._begun.set()
                self._begun = None
            if not running:
                break
            for future in self._guard(functools.partial(self._finished, set(running))):
                chunk = running.pop(future)
                try:
                    receipts = self._guard(future.result)
                except KilledWorkerError:
                    suspects += chunk
                else:
                    yield from receipts
        return sorted(suspects, key=lambda partition: partition.index)

    def _run_alone(self, partition: Partition) -> Receipt:
        """Run one partition while nothing else runs that could kill its workers."""
        future = self._submit([partition], "-alone")
        self._guard(functools.partial(self._finished, {future}))
        try:
            receipts: list[Receipt] = self._guard(future.result)
        except KilledWorkerError as error:
            raise _poisonous(partition) from error
        return receipts[0]

    def _finished(self, running: set[Any]) -> set[Any]:
        """Wait for any task; give up when the cluster has had no workers, or paused ones alone, for a while."""
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

    def _submit(self, chunk: Sequence[Partition], suffix: str = "") -> Any:
        return self._client.submit(
            run_on_worker,
            self._plan.options,
            self._digest,
            tuple(partition.index for partition in chunk),
            self._needed,
            key=f"{self._name}-{chunk[0].index}{suffix}",
            pure=False,
        )


def dask_setup(_worker: Any) -> None:
    """Have a worker process of our own ignore SIGINT and be quiet; Dask calls it in each, whenever it is started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in (*_LOGGERS, "batch_explain"):  # a storage that does not answer, the run's own process tells
        logging.getLogger(name).setLevel(_SILENT)


def _has_dashboard() -> bool:
    import importlib.util

    return importlib.util.find_spec("bokeh") is not None


def _worker_environment() -> dict[str, str]:
    """Environment of our own worker processes: native libraries on one thread, and none of Dask's log lines."""
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


def _connected(address: str) -> Client:
    """A client of the scheduler at an address, or of a scheduler file."""
    try:
        if address.endswith(".json"):
            return Client(scheduler_file=address, timeout=_CONNECT_SECONDS)
        return Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError, TypeError) as error:  # TypeError: tls:// without certificates
        raise _unreachable(address, error) from error


def client_of(scheduler: Any) -> contextlib.AbstractContextManager[Client]:
    """A client that a caller passed, left open; or one of the caller's cluster, closed at the end.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if isinstance(scheduler, Client) and not scheduler.asynchronous:
        return contextlib.nullcontext(scheduler)
    if isinstance(scheduler, Cluster) and not scheduler.asynchronous:
        client: contextlib.AbstractContextManager[Client] = Client(scheduler)
        return client
    raise OptionError(
        f"scheduler is a {type(scheduler).__name__}. Pass processes, threads, sync, the address of a Dask scheduler, "
        "or a client or cluster of dask.distributed that is not asynchronous."
    )


async def _let_go() -> None:  # what nobody waits for has to be a coroutine
    let_go()


def _quietly(call: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        call()


def _raise(error: Exception) -> None:
    raise error


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
