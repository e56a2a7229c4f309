"""Maps, folds and shuffles over items of work, on Ray.

A stage passes a plain function and a list of items; the function runs in Ray tasks and writes its own part. Ray provides retries
after the death of a worker or node, scheduling, spilling, and autoscaling by queued tasks. Tasks are used instead of Ray Data or
actors because a worker process then outlives its stage, with its imports and its model (docs/decisions/0002).

Ray is imported and started on first use, so a run whose steps are all cached starts none.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from loguru import logger

from pipeline import config
from pipeline.config.stages import STAGES
from pipeline.engine.ray_cluster import RayCluster
from pipeline.engine.usage import Usage, measure
from pipeline.errors import ConfigError, CrispwrapError, WorkerError
from pipeline.terminal.progress import Progress

# Queued tasks for each running one: they hide the submission latency, and show an autoscaler the demand.
_QUEUED_PER_SLOT = 3
_POLL_S = 10.0  # between two checks while no task finishes

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")
Partition = TypeVar("Partition")
Piece = TypeVar("Piece")


class Engine:
    """Runs the work of a stage on a Ray cluster, which is joined or started on first use; a context manager.

    `for_stage` returns an engine on the same cluster for the tasks of one stage, with its own `usage`. On exit, Ray is shut down
    only if it was started here. `check` is called whenever a task finishes, and regularly while none does; it stops the work by
    raising.
    """

    def __init__(
        self,
        settings: config.Engine,
        check: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
        *,
        stage: str = "",
        cluster: RayCluster | None = None,
    ) -> None:
        self.settings = settings
        self.check = check
        self.progress = progress or Progress()
        self.usage = Usage()
        self._stage = stage  # selects `engine.placement`; empty: tasks run anywhere
        self._cluster = cluster or RayCluster(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cluster.close(error)

    def for_stage(self, stage: str) -> "Engine":
        """An engine on the same cluster for the tasks of a stage; its `usage` starts at zero."""
        assert stage in STAGES, stage
        return Engine(self.settings, self.check, self.progress, stage=stage, cluster=self._cluster)

    def start(self) -> Any:
        """Join or start Ray now, so that its start time is not counted as part of a step; return the module `ray`."""
        return self._cluster.start()

    @property
    def started(self) -> bool:
        """Whether Ray was joined or started."""
        return self._cluster.started

    @property
    def num_gpus(self) -> float:
        """Number of GPUs of the cluster."""
        return self._cluster.resources().get("GPU", 0.0)

    @property
    def gpus_per_model(self) -> float:
        """GPUs per worker that runs a model."""
        if self.settings.gpus_per_worker is not None:  # also if an autoscaler has not started a GPU node yet
            return self.settings.gpus_per_worker
        return 1.0 if self.num_gpus else 0.0

    @property
    def accelerators(self) -> set[str]:
        """Ray's names of the GPU types in the cluster."""
        named = (name.partition("accelerator_type:")[2] for name in self._cluster.resources())
        return {name for name in named if name}

    @property
    def num_workers(self) -> int:
        """Number of tasks that run at the same time."""
        return self.settings.workers or max(1, int(self._cluster.resources().get("CPU", 1)))

    def threads_for(self, num_tasks: int) -> int:
        """Cores per task if only `num_tasks` tasks run, so that no core is idle; at most those of one machine."""
        nodes = [node["Resources"].get("CPU", 1) for node in self._cluster.live_nodes()]
        return max(1, min(self.num_workers // max(1, num_tasks), int(max(nodes))))

    def _slots(self, num_gpus: float) -> int:
        """Number of tasks that can run at the same time; at least one, for which an autoscaler can start a GPU node."""
        if not num_gpus:
            return self.num_workers
        available = self.num_gpus
        if not available:
            self._cluster.warn_once(
                "no node of the cluster has a GPU yet; tasks that need one (engine.gpus_per_worker) wait for it"
            )
        if 0 < available < num_gpus:
            raise ConfigError(f"engine.gpus_per_worker {num_gpus:g} is more than the {available:g} GPUs of the cluster; lower it")
        return max(1, int(available / num_gpus))

    def _max_in_flight(self, num_gpus: float) -> int:
        """Number of tasks submitted to Ray at the same time. A Ray started here enforces `engine.workers` itself."""
        if self.settings.workers and not self._cluster.owned:
            return self.settings.workers
        return self._slots(num_gpus) * (1 + _QUEUED_PER_SLOT)

    def map(
        self,
        function: Callable[[Item, Shared], Result],
        items: Sequence[Item],
        *,
        shared: Shared,
        title: str,
        unit: str = "parts",
        num_gpus: float = 0,
        before: int = 0,
        quarantined: Callable[[Result], int] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Yield (index of the item, `function(item, shared)`) in the order in which the tasks finish, each once.

        `shared` is what all items need: it is sent to each node once. After a failure no further task is started, running tasks are
        awaited (their parts are kept), and the first error is raised. For the progress display, `before` units are already
        complete, and `quarantined` returns the number of rows that a result quarantined.

        Raises:
            CrispwrapError: raised by the function, or WorkerError for a worker that died `engine.attempts` times.
        """
        if not items:
            return
        ray = self._cluster.start()
        shared_ref = ray.put(shared)
        task = self._remote(_run_task, num_gpus=num_gpus)
        waiting = iter(enumerate(items))
        running: dict[Any, int] = {}

        def refill() -> None:
            limit = self._max_in_flight(num_gpus)  # again each time: an autoscaler adds nodes
            while len(running) < limit and (entry := next(waiting, None)) is not None:
                index, item = entry
                running[task.remote(function, item, shared_ref)] = index

        yield from self._collect(running, refill, items, title=title, unit=unit, before=before, quarantined=quarantined)

    def fold(
        self,
        function: Callable[[Item, Shared], Result],
        items: Sequence[Item],
        combine: Callable[[Result, Result], Result],
        zero: Result,
        *,
        shared: Shared,
        title: str,
    ) -> Result:
        """Combine the results of a map; `combine` must be associative and commutative, with `zero` as its neutral element.

        Workers combine groups of results: the driver receives about the square root of the number of items.

        Raises:
            CrispwrapError: as `map`.
        """
        if not items:
            return zero
        ray = self._cluster.start()
        shared_ref = ray.put(shared)
        map_task, combine_task = self._remote(_run_task), self._remote(_combine_task)
        runs = _split_into_runs(items)
        with self._measure_mapping():
            running = {
                combine_task.remote(combine, *(map_task.remote(function, item, shared_ref) for item in run)): index
                for index, run in enumerate(runs)
            }
        state = zero
        for _, result in self._collect(running, lambda: None, runs, title=title, unit="parts"):
            state = combine(state, result)
        return state

    def shuffle(
        self,
        mapper: Callable[[Item, list[Partition], Shared], Sequence[Piece]],
        items: Sequence[Item],
        reducer: Callable[[Partition, Sequence[Piece], Shared], Result],
        partitions: Sequence[Partition],
        *,
        shared: Shared,
        title: str,
        unit: str,
        threads: int = 1,
    ) -> Iterator[tuple[int, Result]]:
        """Regroup items into partitions.

        `mapper(item, partitions, shared)` returns one piece for each partition. `reducer(partition, pieces, shared)` gets the
        pieces of its partition, in the order of the items, and `threads` cores.

        Pieces are kept in Ray's object store, which spills to disk. Yields (index of the partition, result) as reducers finish.

        Raises:
            CrispwrapError: as `map`.
        """
        if not partitions:
            return
        ray = self._cluster.start()
        shared_ref = ray.put(shared)
        map_task = self._remote(_map_task, num_returns=1 + len(partitions))
        reduce_task = self._remote(_reduce_task, num_cpus=threads)
        pieces: list[list[Any]] = []
        mapper_usage: list[Any] = []
        with self._measure_mapping():
            for item in items:
                usage, *refs = map_task.remote(mapper, item, list(partitions), shared_ref)
                mapper_usage.append(usage)
                pieces.append(refs)
            running = {
                reduce_task.remote(reducer, partition, shared_ref, *(row[index] for row in pieces)): index
                for index, partition in enumerate(partitions)
            }
        pieces.clear()  # now only the reducers refer to the pieces, so each is freed when its reducer is done
        yield from self._collect(running, lambda: None, partitions, title=title, unit=unit, cores=threads)
        for busy_s, rss_bytes in ray.get(mapper_usage):
            self.usage.add(busy_s, rss_bytes)

    def _collect(
        self,
        running: dict[Any, int],
        refill: Callable[[], None],
        items: Sequence[Any],
        *,
        title: str,
        unit: str,
        cores: int = 1,
        before: int = 0,
        quarantined: Callable[[Any], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) of running tasks as they finish; after a failure start no more, and raise it at the end."""
        failure: BaseException | None = None
        total = before + sum(map(_count_units, items))
        with self._measure_mapping(), self.progress.activity(title, total, unit, before=before) as activity:
            while True:
                if failure is None:
                    refill()
                if not running:
                    break
                ref = self._wait_for_task(running)
                index = running.pop(ref)
                try:
                    result, busy_s, rss_bytes = self._cluster.start().get(ref)
                except (self._cluster.start().exceptions.RayError, CrispwrapError) as error:
                    failure = failure or self._to_user_error(error, f"{title}, {_describe_item(items[index])}")
                    continue
                self.usage.add(busy_s * cores, rss_bytes)
                activity.advance(_count_units(items[index]), quarantined(result) if quarantined else 0)
                yield index, result
        if failure is not None:
            raise failure

    def _wait_for_task(self, running: dict[Any, int]) -> Any:
        """Return the next finished task. While none finishes, call `check`, and warn once if the cluster cannot run any."""
        has_warned = False
        while True:
            self.check()
            finished, _ = self._cluster.start().wait(list(running), num_returns=1, timeout=_POLL_S)
            if finished:
                return finished[0]
            if not has_warned and not self._cluster.resources().get("CPU"):
                logger.warning("no node of the cluster has a CPU now: the remaining tasks wait until one joins")
                has_warned = True

    @contextmanager
    def _measure_mapping(self) -> Iterator[None]:
        """Add the time of a block to `usage.mapping_s` and `usage.driver_s`."""
        wall_s, driver_s = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.usage.mapping_s += time.monotonic() - wall_s
            self.usage.driver_s += time.process_time() - driver_s

    def _remote(self, function: Callable[..., Any], **options: Any) -> Any:
        # max_calls=0: keep the worker process after a GPU task too, with the model that it loaded.
        options = {"num_cpus": 1, "max_retries": self.settings.attempts - 1, "max_calls": 0, **self._placement_options(), **options}
        return self._cluster.start().remote(**options)(function)

    def _placement_options(self) -> dict[str, Any]:
        """Ray options that place the tasks of the stage."""
        assert not self._stage or STAGES[self._stage].has_tasks, f"{self._stage} has tasks"
        placement = self.settings.placement.get(self._stage)
        if placement is None:
            return {}
        nodes = self._cluster.live_nodes()
        if not any(placement.matches_node(node.get("Labels", {}), node["Resources"]) for node in nodes):
            required = " and ".join(str(part) for part in (placement.labels, placement.resources) if part)
            self._cluster.warn_once(f"engine.placement.{self._stage}: no node has {required} yet; tasks of this stage wait for one")
        return {"label_selector": placement.labels, "resources": placement.resources}

    def _to_user_error(self, error: BaseException, where: str) -> BaseException:
        """Convert an error raised by a task to one that the user can act on."""
        cause = getattr(error, "cause", None)
        for candidate in (cause, error):  # Ray raises a class derived from both; the cause has the message
            if isinstance(candidate, CrispwrapError):
                return type(candidate)(str(candidate))
        if isinstance(error, self._cluster.start().exceptions.RayTaskError):
            return WorkerError(f"{where} failed: {cause!r}\n{error}")
        return WorkerError(
            f"{where}: its worker died {self.settings.attempts} times ({type(error).__name__}); finished parts are kept. "
            "If it ran out of memory, lower engine.workers or prepare.part_bytes, and run again"
        )


def _describe_item(item: Any) -> str:
    """A short name of an item of work for messages."""
    if isinstance(item, list) and item:
        return _describe_item(item[0]) + (f" and {len(item) - 1} more" if len(item) > 1 else "")
    return str(item if isinstance(item, str | int) else getattr(item, "name", None) or type(item).__name__)


def _count_units(item: Any) -> int:
    """Units of work in an item: those of a run or of nested runs, otherwise one."""
    return sum(map(_count_units, item)) if isinstance(item, list) else 1


def _split_into_runs(items: Sequence[Any]) -> list[list[Any]]:
    """Split the items into about as many runs as a run has items."""
    size = math.isqrt(len(items) - 1) + 1
    return [list(items[first : first + size]) for first in range(0, len(items), size)]


def _run_task(function: Callable[[Item, Shared], Result], item: Item, shared: Shared) -> tuple[Result, float, int]:
    return measure(lambda: function(item, shared))


def _combine_task(combine: Callable[[Any, Any], Any], *results: tuple[Any, float, int]) -> tuple[Any, float, int]:
    """Combine the results of several tasks into one, with their total usage."""
    states, busy_s, rss_bytes = zip(*results, strict=True)
    state, own_s, own_bytes = measure(lambda: functools.reduce(combine, states))
    return state, own_s + sum(busy_s), max(own_bytes, *rss_bytes)


def _map_task(
    mapper: Callable[[Item, list[Partition], Shared], Sequence[Piece]], item: Item, partitions: list[Partition], shared: Shared
) -> tuple[Any, ...]:
    """The mapper's usage, (busy seconds, resident bytes), and its pieces."""
    pieces, busy_s, rss_bytes = measure(lambda: tuple(mapper(item, partitions, shared)))
    assert len(pieces) == len(partitions)
    return (busy_s, rss_bytes), *pieces


def _reduce_task(
    reducer: Callable[[Partition, Sequence[Piece], Shared], Result], partition: Partition, shared: Shared, *pieces: Piece
) -> tuple[Result, float, int]:
    return measure(lambda: reducer(partition, pieces, shared))
