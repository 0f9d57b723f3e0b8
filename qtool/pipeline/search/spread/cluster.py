"""Processes that trials are spread over: those of this machine, or of a Dask or Ray cluster."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qtool.errors import RecipeError, suggest

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
# Trials whose process was lost are started again so often.
ATTEMPTS = 3


@dataclass(frozen=True)
class Spread:
    """The processes that a command asks for.

    Attributes:
        jobs: of this machine at a time.
        cluster: ``dask://HOST:PORT`` or ``ray://HOST:PORT``, all of whose workers are used instead.
    """

    jobs: int = 1
    cluster: str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers and combinations that mean nothing.

        Raises:
            RecipeError: fewer than one process, or a number of them with a cluster.
        """
        if self.jobs < 1:
            raise RecipeError(f"jobs: found {self.jobs}, expected 1 or more")
        if self.jobs > 1 and self.cluster is not None:
            raise RecipeError(
                f"--jobs {self.jobs}: all workers of --cluster {self.cluster} are used; leave out "
                "one of the two"
            )

    @property
    def several(self) -> bool:
        """True where trials run in processes of their own."""
        return self.jobs > 1 or self.cluster is not None


@dataclass(frozen=True)
class Workers:
    """Processes that joblib reaches.

    Attributes:
        jobs: at a time; -1: as many as there are.
        count: of the processes.
        lost: exceptions that say that a process was lost.
        in_turn: results come in the order of the items, all at the end.
    """

    jobs: int
    count: int
    lost: tuple[type[Exception], ...]
    in_turn: bool = False

    def map(
        self, function: Callable[..., Result], items: Sequence[Item], *more: Any
    ) -> Iterator[Result]:
        """Yield ``function(item, *more)`` of every item, in any order.

        Args:
            function: of a module, so that other processes can import it.
            items: its first arguments.
            more: its other arguments.
        """
        from joblib import Parallel, delayed

        # Of items that are left where an error ends the work; the error says what happened.
        left = r"\d+ tasks (which were still being processed|have been successfully executed)"
        warnings.filterwarnings("ignore", left, UserWarning)
        order = "list" if self.in_turn else "generator_unordered"
        yield from Parallel(n_jobs=self.jobs, return_as=order)(
            delayed(function)(item, *more) for item in items
        )


@dataclass(frozen=True)
class ClusterKind:
    """An entry of CLUSTERS.

    Attributes:
        connect: opens the cluster at HOST:PORT and makes it joblib's, until the block ends.
        start: the commands that start such a cluster, for messages.
    """

    connect: Callable[[str], AbstractContextManager[Workers]]
    start: str


_HELD: dict[str, Any] = {}


def held(name: str, make: Callable[[], Result]) -> Result:
    """Return what this process made for a use of the processes before, or make it.

    Args:
        name: of the use; what was made for another one is dropped.
        make: reads model and data.
    """
    if name not in _HELD:
        release()
        _HELD[name] = make()
    result: Result = _HELD[name]
    return result


def release() -> None:
    """Drop what this process holds."""
    _HELD.clear()


@contextmanager
def _dask(address: str) -> Iterator[Workers]:
    from distributed import Client
    from distributed.scheduler import KilledWorker
    from joblib import parallel_config

    with Client(f"tcp://{address}", timeout=CONNECT_SECONDS) as client:
        threads = [worker["nthreads"] for worker in client.scheduler_info(-1)["workers"].values()]
        if not threads:
            raise RecipeError(
                f"--cluster dask://{address}: the scheduler has no workers; start some"
            )
        if max(threads) > 1:
            raise RecipeError(
                f"--cluster dask://{address}: found a worker with {max(threads)} threads, but each "
                "run needs a process of its own; start workers with --nthreads 1"
            )
        with parallel_config("dask", client=client):
            yield Workers(-1, len(threads), (KilledWorker,))
        # These processes go on; those of this machine and of Ray end with the search.
        client.run(release, on_error="ignore")


@contextmanager
def _ray(address: str) -> Iterator[Workers]:
    import ray
    from joblib import parallel_config
    from ray.util.joblib import register_ray

    ray.init(f"ray://{address}", log_to_driver=False)
    try:
        register_ray()
        with parallel_config("ray"):
            count = int(ray.cluster_resources().get("CPU", 1))
            yield Workers(-1, count, (ray.exceptions.RayError,), in_turn=True)
    finally:
        ray.shutdown()


CLUSTERS: dict[str, ClusterKind] = {
    "dask": ClusterKind(_dask, "dask scheduler; dask worker HOST:PORT --nthreads 1"),
    "ray": ClusterKind(_ray, "ray start --head --ray-client-server-port PORT"),
}
"""Scheme of ``--cluster`` -> entry."""


@contextmanager
def workers(spread: Spread) -> Iterator[Workers]:
    """Provide processes until the block ends.

    Args:
        spread: as the command asks for them.

    Raises:
        RecipeError: another form, a package that is not installed, or a cluster that does not
            answer.
    """
    if spread.cluster is None:
        from joblib.externals.loky import get_reusable_executor
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            yield Workers(spread.jobs, spread.jobs, (TerminatedWorkerError,))
        finally:
            # Idle ones live five minutes longer than this process and keep its stdout open.
            get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)
        return
    scheme, address = read_address(spread.cluster)
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(CLUSTERS[scheme].connect(address))
        except ModuleNotFoundError as error:
            raise RecipeError(
                f"--cluster {spread.cluster}: {error.name} is not installed; "
                f"pip install 'qtool[{scheme}]'"
            ) from error
        except OSError as error:  # ConnectionError and TimeoutError are such
            raise RecipeError(
                f"--cluster {spread.cluster}: no answer ({error}); start a cluster by: "
                f"{CLUSTERS[scheme].start}"
            ) from error
        yield cluster


def run_trials(
    spread: Spread,
    function: Callable[..., Result],
    pending: Callable[[int], Sequence[Item]],
    *more: Any,
) -> Iterator[Result]:
    """Yield ``function(trial, *more)`` of every trial; those of a lost process run again.

    Args:
        spread: the processes.
        function: of a module; it stores its outcome where ``pending`` and a later run find it.
        pending: returns the trials that are not finished, for a number of processes.
        more: further arguments of the function.

    Raises:
        RecipeError: the cluster does not answer, or processes were lost several times.
    """
    with workers(spread) as processes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                yield from processes.map(function, pending(processes.count), *more)
                return
            except processes.lost as error:
                if attempt == ATTEMPTS:
                    raise RecipeError(
                        f"a process was lost {ATTEMPTS} times ({error}); give fewer --jobs, if "
                        "memory ran out"
                    ) from error


def read_address(cluster: str) -> tuple[str, str]:
    """Return scheme and HOST:PORT of a cluster.

    Args:
        cluster: as the user wrote it.

    Raises:
        RecipeError: another form.
    """
    parts = urlsplit(cluster)
    try:
        complete = bool(parts.hostname and parts.port)
    except ValueError:  # a port that is no number
        complete = False
    if parts.scheme not in CLUSTERS or not complete or parts.path:
        raise RecipeError(
            f"--cluster {cluster}: expected dask://HOST:PORT or ray://HOST:PORT"
            f"{suggest(parts.scheme, CLUSTERS)}"
        )
    return parts.scheme, parts.netloc
