"""Maps, folds and shuffles over named items of work, on Ray.

A stage hands over a plain function and a list of items; the function runs in Ray tasks and writes its own part. Ray gives retries
after a dead worker or node, scheduling, spilling and autoscaling (queued tasks are demand). Tasks are used instead of Ray Data or
actors because a worker process then outlives its stage, with its imports and its model (docs/decisions/0002).

Ray is imported and started on the first use, so a run with nothing left to do starts none.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from loguru import logger

from pipeline import config
from pipeline.config.stages import STAGES
from pipeline.engine.cluster import RayCluster
from pipeline.engine.usage import Usage, measured
from pipeline.errors import ConfigError, CrispwrapError, WorkerError
from pipeline.terminal.progress import Progress

# Tasks queued for each running one: hides the latency of submitting, and tells an autoscaler that there is more.
_QUEUED_PER_SLOT = 3
_LOOK_S = 10.0  # between two looks at a cluster that finishes nothing


class Engine:
    """Runs the work of a stage on a Ray cluster, which is joined or started when first needed; use as a context manager.

    `for_stage` gives an engine of the same cluster for the tasks of one stage, with a `usage` of its own. Only a Ray that was
    started here is shut down at the end. `check` is called as tasks finish, and while none does, and stops the work by raising.
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
        self._stage = stage  # whose `engine.placement` its tasks obey; those of no stage run anywhere
        self._cluster = cluster or RayCluster(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cluster.close(error)

    def for_stage(self, stage: str) -> "Engine":
        """An engine for the tasks of a stage, on the same cluster; its `usage` begins at zero."""
        assert stage in STAGES, stage
        return Engine(self.settings, self.check, self.progress, stage=stage, cluster=self._cluster)

    def start(self) -> Any:
        """Join or start Ray now, so that no step is charged for it; return the module `ray`."""
        return self._cluster.start()

    @property
    def started(self) -> bool:
        """Whether Ray was joined or started."""
        return self._cluster.started

    @property
    def num_gpus(self) -> float:
        """GPUs of the cluster."""
        return self._cluster.resources().get("GPU", 0.0)

    @property
    def gpus_per_model(self) -> float:
        """GPUs of a worker that runs a model."""
        if self.settings.gpus_per_worker is not None:  # asked for, though an autoscaler may not have brought any up yet
            return self.settings.gpus_per_worker
        return 1.0 if self.num_gpus else 0.0

    @property
    def accelerators(self) -> set[str]:
        """The kinds of GPUs of the cluster, as Ray calls them."""
        named = (name.partition("accelerator_type:")[2] for name in self._cluster.resources())
        return {name for name in named if name}

    @property
    def num_workers(self) -> int:
        """Tasks that run at once."""
        return self.settings.workers or max(1, int(self._cluster.resources().get("CPU", 1)))

    def threads_for(self, num_tasks: int) -> int:
        """Cores that each of so few tasks may use, so that none lies idle; all of one machine at the most."""
        nodes = [node["Resources"].get("CPU", 1) for node in self._cluster.live_nodes()]
        return max(1, min(self.num_workers // max(1, num_tasks), int(max(nodes))))

    def _slots(self, num_gpus: float) -> int:
        """Tasks that can run at once; where GPUs are asked for and none is there yet, one, for which an autoscaler brings one."""
        if not num_gpus:
            return self.num_workers
        held = self.num_gpus
        if not held:
            self._cluster.warn_once(
                "no node of the cluster has a GPU yet; tasks that are to have one (engine.gpus_per_worker) wait for it"
            )
        if 0 < held < num_gpus:
            raise ConfigError(f"engine.gpus_per_worker {num_gpus:g} is more than the {held:g} GPUs of the cluster; set it lower")
        return max(1, int(held / num_gpus))

    def _most_in_flight(self, num_gpus: float) -> int:
        """Tasks that are given to Ray at once; a Ray that was started here holds them to `engine.workers` itself."""
        if self.settings.workers and not self._cluster.owned:
            return self.settings.workers
        return self._slots(num_gpus) * (1 + _QUEUED_PER_SLOT)

    def map(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        *,
        title: str,
        unit: str = "parts",
        shared: tuple[Any, ...] = (),
        num_gpus: float = 0,
        before: int = 0,
        quarantined: Callable[[Any], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """(index of the item, `function(item, *shared)`), in the order in which they finish, each once.

        `shared` goes to each node once. After a failure nothing further is started, what runs is awaited (its parts are kept),
        and the first error is raised. For those who watch: `before` units were there already, and `quarantined` gives the rows that
        a result left out.

        Raises:
            CrispwrapError: what the function raised, or WorkerError for a worker that died `engine.attempts` times.
        """
        if not items:
            return
        ray = self._cluster.start()
        shared_refs = [ray.put(value) for value in shared]
        task = self._remote(_run, num_gpus=num_gpus)
        waiting = iter(enumerate(items))
        running: dict[Any, int] = {}

        def refill() -> None:
            limit = self._most_in_flight(num_gpus)  # anew: an autoscaler brings nodes
            while len(running) < limit and (entry := next(waiting, None)) is not None:
                index, item = entry
                running[task.remote(function, item, *shared_refs)] = index

        yield from self._finished(running, refill, items, title=title, unit=unit, before=before, quarantined=quarantined)

    def fold(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        combine: Callable[[Any, Any], Any],
        zero: Any,
        *,
        title: str,
        shared: tuple[Any, ...] = (),
    ) -> Any:
        """The results of a map, combined; `combine` must not depend on order and grouping, and `zero` must change nothing.

        Workers combine what is many: the driver gets no more than about the square root of the number of items.

        Raises:
            CrispwrapError: as `map`.
        """
        if not items:
            return zero
        ray = self._cluster.start()
        shared_refs = [ray.put(value) for value in shared]
        map_task, combine_task = self._remote(_run), self._remote(_combine)
        runs = _runs(items)
        with self._mapping():
            running = {
                combine_task.remote(combine, *(map_task.remote(function, item, *shared_refs) for item in run)): index
                for index, run in enumerate(runs)
            }
        state = zero
        for _, result in self._finished(running, lambda: None, runs, title=title, unit="parts"):
            state = combine(state, result)
        return state

    def shuffle(
        self,
        mapper: Callable[..., Sequence[Any]],
        items: Sequence[Any],
        reducer: Callable[..., Any],
        partitions: Sequence[Any],
        *,
        title: str,
        unit: str,
        shared: tuple[Any, ...] = (),
        threads: int = 1,
    ) -> Iterator[tuple[int, Any]]:
        """Regroup: `mapper(item, partitions, *shared)` returns one piece for each partition, and
        `reducer(partition, pieces, *shared)` gets the pieces of its partition, in the order of the items, and `threads` cores.

        Pieces lie in Ray's object store, which spills to disk; yields (index of the partition, result) as they finish.

        Raises:
            CrispwrapError: as `map`.
        """
        if not partitions:
            return
        ray = self._cluster.start()
        shared_refs = [ray.put(value) for value in shared]
        map_task = self._remote(_pieces, num_returns=1 + len(partitions))
        reduce_task = self._remote(_reduce, num_cpus=threads)
        pieces: list[list[Any]] = []
        taken: list[Any] = []  # by the mappers
        with self._mapping():
            for item in items:
                usage, *refs = map_task.remote(mapper, item, list(partitions), *shared_refs)
                taken.append(usage)
                pieces.append(refs)
            running = {
                reduce_task.remote(reducer, partition, len(items), *(row[index] for row in pieces), *shared_refs): index
                for index, partition in enumerate(partitions)
            }
        pieces.clear()  # the reducers hold them now, so that each is freed when its reducer is done
        yield from self._finished(running, lambda: None, partitions, title=title, unit=unit, cores=threads)
        for busy_s, rss_bytes in ray.get(taken):
            self.usage.add(busy_s, rss_bytes)

    def _finished(
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
        """(index, result) of running tasks as they finish; after a failure no more are started, and it is raised at the end."""
        failure: BaseException | None = None
        total = before + sum(map(_units, items))
        with self._mapping(), self.progress.phase(title, total, unit, before=before) as phase:
            while True:
                if failure is None:
                    refill()
                if not running:
                    break
                ref = self._done(running)
                index = running.pop(ref)
                try:
                    result, busy_s, rss_bytes = self._cluster.start().get(ref)
                except (self._cluster.start().exceptions.RayError, CrispwrapError) as error:
                    failure = failure or self._explain(error, f"{title}, {_name(items[index])}")
                    continue
                self.usage.add(busy_s * cores, rss_bytes)
                phase.advance(_units(items[index]), quarantined(result) if quarantined else 0)
                yield index, result
        if failure is not None:
            raise failure

    def _done(self, running: dict[Any, int]) -> Any:
        """The next task that is done. While none is: whether the run is to go on, and a word where the cluster can run none."""
        said = False
        while True:
            self.check()
            done, _ = self._cluster.start().wait(list(running), num_returns=1, timeout=_LOOK_S)
            if done:
                return done[0]
            if not said and not self._cluster.resources().get("CPU"):
                logger.warning("no node of the cluster has a CPU now: what is left waits until one joins")
                said = True

    @contextmanager
    def _mapping(self) -> Iterator[None]:
        """While tasks are out."""
        wall_s, driver_s = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.usage.mapping_s += time.monotonic() - wall_s
            self.usage.driver_s += time.process_time() - driver_s

    def _remote(self, function: Callable[..., Any], **options: Any) -> Any:
        # max_calls=0: a worker process is kept after a GPU task too, with the model that it loaded.
        options = {"num_cpus": 1, "max_retries": self.settings.attempts - 1, "max_calls": 0, **self._placed(), **options}
        return self._cluster.start().remote(**options)(function)

    def _placed(self) -> dict[str, Any]:
        """Ray's options for where tasks of the stage run."""
        assert not self._stage or STAGES[self._stage].has_tasks, f"{self._stage} has tasks"
        placement = self.settings.placement.get(self._stage)
        if placement is None:
            return {}
        nodes = self._cluster.live_nodes()
        if not any(placement.suits(node.get("Labels", {}), node["Resources"]) for node in nodes):
            asked = " and ".join(str(wanted) for wanted in (placement.labels, placement.resources) if wanted)
            self._cluster.warn_once(f"engine.placement.{self._stage}: no node has {asked} yet; its tasks wait for one")
        return {"label_selector": placement.labels, "resources": placement.resources}

    def _explain(self, error: BaseException, where: str) -> BaseException:
        """The error that a user should see for one that came out of a task."""
        cause = getattr(error, "cause", None)
        for candidate in (cause, error):  # Ray raises a class that is both; the message is the cause's
            if isinstance(candidate, CrispwrapError):
                return type(candidate)(str(candidate))
        if isinstance(error, self._cluster.start().exceptions.RayTaskError):
            return WorkerError(f"{where} failed: {cause!r}\n{error}")
        return WorkerError(
            f"{where}: its worker died {self.settings.attempts} times ({type(error).__name__}); finished parts are kept. "
            "If it ran out of memory, set engine.workers lower or prepare.part_bytes smaller, and run again"
        )


def _name(item: Any) -> str:
    """What an item of work calls itself."""
    if isinstance(item, list) and item:
        return _name(item[0]) + (f" and {len(item) - 1} more" if len(item) > 1 else "")
    return str(item if isinstance(item, str | int) else getattr(item, "name", None) or type(item).__name__)


def _units(item: Any) -> int:
    """Units of work in an item: those of a run, or of a run of runs, else one."""
    return sum(map(_units, item)) if isinstance(item, list) else 1


def _runs(items: Sequence[Any]) -> list[list[Any]]:
    """The items in runs, as many as items in a run."""
    size = math.isqrt(len(items) - 1) + 1
    return [list(items[first : first + size]) for first in range(0, len(items), size)]


def _run(function: Callable[..., Any], item: Any, *shared: Any) -> tuple[Any, float, int]:
    return measured(lambda: function(item, *shared))


def _combine(combine: Callable[[Any, Any], Any], *results: tuple[Any, float, int]) -> tuple[Any, float, int]:
    """What several tasks returned, as if one had."""
    states, busy_s, rss_bytes = zip(*results, strict=True)
    state, own_s, own_bytes = measured(lambda: functools.reduce(combine, states))
    return state, own_s + sum(busy_s), max(own_bytes, *rss_bytes)


def _pieces(mapper: Callable[..., Sequence[Any]], item: Any, partitions: list[Any], *shared: Any) -> Any:
    """What the mapper took, and its pieces."""
    pieces, busy_s, rss_bytes = measured(lambda: tuple(mapper(item, partitions, *shared)))
    assert len(pieces) == len(partitions)
    return (busy_s, rss_bytes), *pieces


def _reduce(reducer: Callable[..., Any], partition: Any, num_pieces: int, *rest: Any) -> tuple[Any, float, int]:
    return measured(lambda: reducer(partition, rest[:num_pieces], *rest[num_pieces:]))
