"""What a worker process holds and does: the plan and the artifacts, loaded once, and tasks."""

import functools
import threading
import time
from typing import Any

from threadpoolctl import threadpool_limits

from batch_explain.engine.artifacts import Artifacts, name_outputs
from batch_explain.engine.carried import located
from batch_explain.engine.explaining import Context
from batch_explain.engine.plan import artifact_digests, read_plan
from batch_explain.engine.same_versions import refuse_other_versions
from batch_explain.engine.task import run_partition
from batch_explain.errors import ArtifactError, InterruptedRunError
from batch_explain.options import RunOptions
from batch_explain.storage.ranges import let_go
from batch_explain.storage.receipts import Receipt

_LOADING = threading.Lock()


def run_on_worker(
    options: RunOptions, digest: str, numbers: tuple[int, ...], needed: tuple[tuple[str, str], ...] = ()
) -> list[Receipt]:
    """Do some partitions, one after the other; plan and artifacts are loaded at the process's first task."""
    refuse_other_versions(needed)
    context = worker_context(options, digest)
    try:
        return [run_partition(context, context.plan.partition(number)) for number in numbers]
    except BaseException:
        let_go(mine=True)
        raise


def load_on_worker(options: RunOptions, artifact_key: tuple[tuple[str, str], ...], learned: dict[str, Any]) -> None:
    """Load the artifacts in a worker process, and see whether it can compute as the planning one does."""
    with _LOADING:
        explainer = _load_artifacts(options, artifact_key)[0].explainer
        explainer.take_learned(learned)
        explainer.prepare()


def worker_context(options: RunOptions, digest: str) -> Context:
    """The plan of that digest in the run's folder and its artifacts, loaded once a process."""
    with _LOADING:
        return _load_context(options, digest)


def loaded_artifacts(options: RunOptions) -> Artifacts:
    """The artifacts as they are now, loaded once a process."""
    with _LOADING:
        return _load_artifacts(options, tuple(sorted(artifact_digests(options).items())))[0]


@functools.lru_cache(maxsize=1)
def _load_artifacts(options: RunOptions, artifact_key: tuple[tuple[str, str], ...]) -> tuple[Artifacts, float]:
    """Artifacts, once a process, and when; they must be the very files that were planned with."""
    here = located(options, artifact_key)
    found = artifact_digests(here)
    if changed := [name for name, digest in artifact_key if found.get(name) != digest]:
        raise ArtifactError(
            f"The {' and the '.join(changed)} that a worker finds is not the one that the run was planned with: it was "
            "replaced, or the worker has another copy. Start the run again with the same files everywhere."
        )
    threadpool_limits(1, user_api="blas")  # for the life of the worker: tasks run one after the other in it
    return Artifacts.load(here), time.time()


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
