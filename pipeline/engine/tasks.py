"""Maps, folds and shuffles over named items of work, on Ray.

A stage hands over a plain function and a list of items; the function runs in Ray tasks and writes its own part. Ray gives retries
after a dead worker or node, scheduling, spilling and autoscaling (queued tasks are demand). Tasks are used instead of Ray Data or
actors because a worker process then outlives its stage, with its imports and its model (docs/decisions/0002).

Ray is imported and started on the first use, so a run with nothing left to do starts none.
"""

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from loguru import logger

from pipeline import config
from pipeline.config.execution import STAGES_WITH_TASKS
from pipeline.engine.joining import join, recorded_cluster, session_logs, start_here
from pipeline.engine.messages import log_messages
from pipeline.engine.usage import Usage, measured
from pipeline.errors import ConfigError, CrispwrapError, WorkerError
from pipeline.terminal.progress import Progress

# Tasks queued for each running one: hides the latency of submitting, and tells an autoscaler that there is more.
_QUEUED_PER_SLOT = 3
_LOOK_S = 10.0  # between two looks at a cluster that finishes nothing
_RESOURCES_S = 2.0  # what a cluster has may change, but asking takes milliseconds


class Engine:
    """A Ray cluster, joined or started when first needed; use as a context manager.

    Only a Ray that was started here is shut down at the end. `check` is called as tasks finish, and while none does, and stops the
    work by raising.
    """

    def __init__(self, settings: config.Engine, check: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.check = check
        self.progress = Progress()
        self._stage = ""  # whose tasks they are, for `engine.placement`; those of none run anywhere
        self.usage = Usage()
        self._ray: Any = None
        self._owned = False
        self._resources_until = 0.0
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._ray is not None and error is not None and (logs := session_logs(self._ray)):
            error.add_note(f"those of Ray and its workers: {logs}{'' if self._owned else ' on each node'}")
        if self._owned:
            self._ray.shutdown()
            self._ray, self._owned = None, False

    @contextmanager
    def placed(self, stage: str) -> Iterator[None]:
        """While tasks are those of a stage, and go where its `engine.placement` has them."""
        before, self._stage = self._stage, stage
        try:
            yield
        finally:
            self._stage = before

    def start(self) -> None:
        """Join or start Ray now, so that no step is charged for it."""
        self._start()

    @property
    def started(self) -> bool:
        return self._ray is not None

    @property
    def num_gpus(self) -> float:
        """GPUs of the cluster."""
        return self._resources().get("GPU", 0.0)

    @property
    def gpus_per_model(self) -> float:
        """GPUs of a worker that runs a model."""
        if self.settings.gpus_per_worker is not None:  # asked for, though an autoscaler may not have brought any up yet
            return self.settings.gpus_per_worker
        return 1.0 if self.num_gpus else 0.0

    @property
    def accelerators(self) -> set[str]:
        """The kinds of GPUs of the cluster, as Ray calls them."""
        named = (name.partition("accelerator_type:")[2] for name in self._resources())
        return {name for name in named if name}

    @property
    def num_workers(self) -> int:
        """Tasks that run at once."""
        return self.settings.workers or max(1, int(self._resources().get("CPU", 1)))

    def threads_for(self, num_tasks: int) -> int:
        """Cores that each of so few tasks may use, so that none lies idle; all of one machine at the most."""
        nodes = [node["Resources"].get("CPU", 1) for node in self._start().nodes() if node["Alive"]]
        return max(1, min(self.num_workers // max(1, num_tasks), int(max(nodes))))

    def _resources(self) -> dict[str, float]:
        """What the cluster has, as of some seconds ago at most."""
        now = time.monotonic()
        if now > self._resources_until:
            self._known_resources: dict[str, float] = self._start().cluster_resources()
            self._resources_until = now + _RESOURCES_S
        return self._known_resources

    def _slots(self, num_gpus: float) -> int:
        """Tasks that can run at once; where GPUs are asked for and none is there yet, one, for which an autoscaler brings one."""
        if not num_gpus:
            return self.num_workers
        held = self.num_gpus
        if not held:
            self._say_once("no node of the cluster has a GPU yet; tasks that are to have one (engine.gpus_per_worker) wait for it")
        if 0 < held < num_gpus:
            raise ConfigError(f"engine.gpus_per_worker {num_gpus:g} is more than the {held:g} GPUs of the cluster; set it lower")
        return max(1, int(held / num_gpus))

    def _most_in_flight(self, num_gpus: float) -> int:
        """Tasks that are given to Ray at once; a Ray that was started here holds them to `engine.workers` itself."""
        if self.settings.workers and not self._owned:
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
        ray = self._start()
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
        ray = self._start()
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
        ray = self._start()
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
                    result, busy_s, rss_bytes = self._ray.get(ref)
                except (self._ray.exceptions.RayError, CrispwrapError) as error:
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
            done, _ = self._ray.wait(list(running), num_returns=1, timeout=_LOOK_S)
            if done:
                return done[0]
            if not said and not self._resources().get("CPU"):
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
        return self._start().remote(**options)(function)

    def _placed(self) -> dict[str, Any]:
        """Ray's options for where tasks of the stage run."""
        assert self._stage in ("", *STAGES_WITH_TASKS), f"{self._stage} has tasks"
        placement = self.settings.placement.get(self._stage)
        if placement is None:
            return {}
        nodes = [node for node in self._start().nodes() if node["Alive"]]
        if not any(placement.suits(node.get("Labels", {}), node["Resources"]) for node in nodes):
            asked = " and ".join(str(wanted) for wanted in (placement.labels, placement.resources) if wanted)
            self._say_once(f"engine.placement.{self._stage}: no node has {asked} yet; its tasks wait for one")
        return {"label_selector": placement.labels, "resources": placement.resources}

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.warning(line)

    def _explain(self, error: BaseException, where: str) -> BaseException:
        """The error that a user should see for one that came out of a task."""
        cause = getattr(error, "cause", None)
        for candidate in (cause, error):  # Ray raises a class that is both; the message is the cause's
            if isinstance(candidate, CrispwrapError):
                return type(candidate)(str(candidate))
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return WorkerError(f"{where} failed: {cause!r}\n{error}")
        return WorkerError(
            f"{where}: its worker died {self.settings.attempts} times ({type(error).__name__}); finished parts are kept. "
            "If it ran out of memory, set engine.workers lower or prepare.part_bytes smaller, and run again"
        )

    def _start(self) -> Any:
        if self._ray is not None:
            return self._ray
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the behaviour to come; silences a warning
        import ray

        if not ray.is_initialized():
            log_messages()
            address = self.settings.address or os.environ.get("RAY_ADDRESS") or recorded_cluster(ray)
            if address and address != "local":
                join(ray, address)
            else:
                start_here(ray, self.settings.workers or os.cpu_count() or 1)
                self._owned = True
        self._ray = ray
        return ray


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
